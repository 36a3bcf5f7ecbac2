//! From what a request asks of the shape of its answer to a guide.

use super::{Format, Input, Request, ToolChoice};
use crate::engine::Guide;
use crate::guide::{Calls, GuideError, Guides, Text, Wanted};
use crate::prompt::{Conversation, Ending, Role, Tool};

/// What holds an answer to what was asked for; one for each of the `n` answers. `None` where
/// nothing was asked and nothing can go wrong: text that is continued as it is.
///
/// # Errors
/// A schema that cannot be enforced, a tool that is not there: the client's mistake, all of them.
pub fn guide(guides: &Guides, request: &Request) -> Result<Option<Box<dyn Guide>>, GuideError> {
    let text = match &request.format {
        Format::Text => Text::Free,
        Format::JsonObject => Text::Object,
        Format::JsonSchema(schema) => Text::Schema(schema),
    };
    let Input::Chat(conversation) = &request.input else {
        let wanted = Wanted { text, ..Wanted::default() };
        return match text {
            Text::Free => Ok(None),
            _ => guides.guide(&wanted).map(Some),
        };
    };
    let calls = match &request.tool_choice {
        ToolChoice::None => Calls::Never,
        ToolChoice::Auto => Calls::Optional,
        ToolChoice::Required => Calls::Required,
        ToolChoice::Named(name) => Calls::Named(name),
    };
    let allowed: Vec<Tool> = match &request.allowed_tools {
        Some(names) => {
            let is_allowed = |tool: &&Tool| names.iter().any(|name| name == tool.name());
            conversation.tools.iter().filter(is_allowed).cloned().collect()
        }
        None => conversation.tools.clone(),
    };
    let wanted = Wanted {
        reasoning: opens_reasoning(conversation),
        tools: &allowed,
        calls,
        parallel: request.parallel_tool_calls,
        text,
    };
    guides.guide(&wanted).map(Some)
}

/// Whether the answer begins with reasoning.
fn opens_reasoning(conversation: &Conversation) -> bool {
    let continued = match conversation.messages.last() {
        Some(last) if conversation.ending == Ending::Continue && last.role == Role::Assistant => {
            !last.content.is_empty() || !last.tool_calls.is_empty()
        }
        _ => false,
    };
    conversation.thinking.is_on() && !continued
}
