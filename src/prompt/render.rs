//! A conversation to a prompt: DeepSeek V4's template.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::fingerprint::Fingerprinter;
use super::{json, Fingerprint, Message, Rendered, Role, Thinking, Tool, ToolCall};
use crate::tokenizer::{ASSISTANT, BOS, END_THINK, EOS, LATEST_REMINDER, THINK, USER};

/// How a prompt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Ending {
    /// An assistant turn is opened for the model to fill.
    #[default]
    Reply,
    /// The last message, if it is the assistant's, is left open for the model to continue: after
    /// its content, or after its reasoning if it has no content. Otherwise as
    /// [`Reply`](Self::Reply).
    Continue,
    /// After the last message; nothing is opened. What a cache holds after a reply.
    Closed,
}

/// Messages and what the reply to them should be like.
///
/// ```
/// use candle_ds4::prompt::{Conversation, Message, Thinking};
///
/// let conversation = Conversation {
///     messages: vec![Message::system("You are helpful."), Message::user("Hi")],
///     thinking: Thinking::Off,
///     ..Conversation::default()
/// };
/// assert_eq!(
///     conversation.render().text(),
///     "<｜begin▁of▁sentence｜>You are helpful.<｜User｜>Hi<｜Assistant｜></think>"
/// );
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Conversation {
    /// In order.
    pub messages: Vec<Message>,
    /// What the model may call. With none, reasoning before the last user turn is dropped.
    pub tools: Vec<Tool>,
    /// How hard to think.
    pub thinking: Thinking,
    /// A JSON Schema that the reply must follow; the prompt states it, sampling must enforce it.
    pub response_schema: Option<Value>,
    /// How the prompt ends.
    pub ending: Ending,
}

/// The ids that a model chose for a message of the conversation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recorded {
    /// What it thought, without the token that ends reasoning; `None` to render the message's own
    /// reasoning.
    pub reasoning: Option<Arc<[u32]>>,
    /// What came after, the token that ends the turn apart; `None` to render the message's own
    /// content and calls.
    pub rest: Option<Arc<[u32]>>,
}

/// Knows what a model chose for earlier turns.
pub trait Recall {
    /// The ids of `message`, an assistant's, in a conversation that begins with `before`.
    fn recall(&mut self, before: Fingerprint, message: &Message) -> Option<Recorded>;
}

/// Remembers nothing.
struct Amnesia;

impl Recall for Amnesia {
    fn recall(&mut self, _: Fingerprint, _: &Message) -> Option<Recorded> {
        None
    }
}

/// A prompt, and what the reply to it will be recalled by.
#[derive(Debug, Clone)]
pub struct Replayed {
    /// The prompt.
    pub prompt: Rendered,
    /// What will come before the reply when the conversation goes on; `None` if the reply
    /// completes a message that the client began.
    pub before: Option<Fingerprint>,
}

/// Consecutive messages that make one turn.
enum Turn<'m> {
    System(&'m str),
    Developer(&'m str),
    User(Vec<&'m Message>),
    Assistant(&'m Message),
    Reminder(&'m str),
}

impl Turn<'_> {
    /// Whether the assistant's turn comes next.
    fn awaits_reply(&self) -> bool {
        matches!(self, Self::User(_) | Self::Developer(_))
    }
}

impl Conversation {
    /// The prompt, by the rules of the model card's reference encoder:
    ///
    /// * BOS; the effort prefix; then the turns. System text has no marker and stays where it is,
    ///   followed, if it is the first message, by tools and response schema. If the first message
    ///   is another, an empty system message carries them.
    /// * Consecutive user messages and tool results are one user turn, joined by blank lines.
    ///   Results come in the order of the calls they answer.
    /// * `<｜Assistant｜>` and `<think>` or `</think>` follow a user turn; then reasoning and
    ///   `</think>`, content, calls, EOS. Without tools, turns before the last user turn lose their
    ///   reasoning, and developer messages before it vanish.
    ///
    /// Where the reference has no useful answer, this has one: a reply is also opened after system
    /// messages or reminders that follow a user turn (set off by a blank line, and before the
    /// marker, respectively), and between two assistant messages.
    pub fn render(&self) -> Rendered {
        self.render_with(&mut Amnesia).prompt
    }

    /// The same, in which assistant messages that `recall` knows are the ids that the model chose,
    /// so that a prompt repeats what a cache has seen to the token. Where the template drops the
    /// reasoning of a turn, it stays dropped.
    pub fn render_with(&self, recall: &mut dyn Recall) -> Replayed {
        let turns = self.turns();
        let last_user = turns.iter().rposition(Turn::awaits_reply);
        let keeps_reasoning = !self.tools.is_empty();
        let thinks = |turn: usize| {
            self.thinking.is_on() && (keeps_reasoning || last_user.is_none_or(|last| turn > last))
        };

        let mut prompt = Rendered::new();
        let mut fingerprint = Fingerprinter::default();
        prompt.push_control(BOS);
        prompt.push(self.thinking.prefix());
        if !matches!(turns.first(), Some(Turn::System(_))) {
            self.push_extras(&mut prompt);
        }
        // An assistant message that opens the conversation has no marker, in the reference too.
        let mut started = false;
        let mut after_user = false;
        for (index, turn) in turns.iter().enumerate() {
            match turn {
                Turn::System(text) => {
                    if after_user {
                        prompt.push("\n\n");
                    }
                    prompt.push(text);
                    if index == 0 {
                        self.push_extras(&mut prompt);
                    }
                    after_user = false;
                }
                Turn::Reminder(text) => {
                    prompt.push_control(LATEST_REMINDER);
                    prompt.push(text);
                    after_user = false;
                }
                Turn::Developer(text) => {
                    let forgotten = last_user.is_some_and(|last| index < last);
                    if !(self.thinking.is_on() && !keeps_reasoning && forgotten) {
                        prompt.push_landmark();
                        prompt.push_control(USER);
                        prompt.push(text);
                        (started, after_user) = (true, true);
                    }
                }
                Turn::User(messages) => {
                    prompt.push_landmark();
                    prompt.push_control(USER);
                    push_user(&mut prompt, messages);
                    (started, after_user) = (true, true);
                }
                Turn::Assistant(message) => {
                    let thinks = thinks(index);
                    let last = index + 1 == turns.len();
                    let open = last && self.ending == Ending::Continue;
                    let recorded = if open {
                        Recorded::default()
                    } else {
                        recall.recall(fingerprint.of(&prompt), message).unwrap_or_default()
                    };
                    if started {
                        open_reply(&mut prompt, thinks);
                    }
                    push_assistant(&mut prompt, message, &recorded, thinks, open);
                    if open {
                        return Replayed { prompt, before: None };
                    }
                    (started, after_user) = (true, false);
                }
            }
        }
        let before = fingerprint.of(&prompt);
        if self.ending != Ending::Closed {
            open_reply(&mut prompt, self.thinking.is_on());
        }
        Replayed { prompt, before: Some(before) }
    }

    fn turns(&self) -> Vec<Turn<'_>> {
        let mut turns: Vec<Turn<'_>> = Vec::with_capacity(self.messages.len());
        for message in &self.messages {
            match (message.role, turns.last_mut()) {
                (Role::User | Role::Tool, Some(Turn::User(messages))) => messages.push(message),
                (Role::User | Role::Tool, _) => turns.push(Turn::User(vec![message])),
                (Role::System, _) => turns.push(Turn::System(&message.content)),
                (Role::Developer, _) => turns.push(Turn::Developer(&message.content)),
                (Role::Assistant, _) => turns.push(Turn::Assistant(message)),
                (Role::LatestReminder, _) => turns.push(Turn::Reminder(&message.content)),
            }
        }
        let mut calls: &[ToolCall] = &[];
        for turn in &mut turns {
            match turn {
                Turn::Assistant(message) if !message.tool_calls.is_empty() => {
                    calls = &message.tool_calls;
                }
                Turn::User(messages) => sort_results(messages, calls),
                _ => {}
            }
        }
        turns
    }

    /// Appends what a first system message carries.
    fn push_extras(&self, prompt: &mut Rendered) {
        if !self.tools.is_empty() {
            prompt.push("\n\n");
            push_tools(prompt, &self.tools);
        }
        if let Some(schema) = &self.response_schema {
            prompt.push(
                "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to \
                 reply:\n",
            );
            prompt.push(&json::dumps(schema));
        }
    }
}

/// Puts the results of a turn into the order of the calls they answer, each at the place of a
/// result. A result that answers none of them counts as answering the first.
fn sort_results(messages: &mut [&Message], calls: &[ToolCall]) {
    let order: HashMap<&str, usize> = calls
        .iter()
        .enumerate()
        .filter(|(_, call)| !call.id.is_empty())
        .map(|(index, call)| (call.id.as_str(), index))
        .collect();
    let place = |message: &&Message| {
        message.tool_call_id.as_deref().and_then(|id| order.get(id)).copied().unwrap_or(0)
    };
    let mut results: Vec<&Message> =
        messages.iter().copied().filter(|message| message.role == Role::Tool).collect();
    results.sort_by_key(place);
    let places = messages.iter_mut().filter(|message| message.role == Role::Tool);
    for (slot, result) in places.zip(results) {
        *slot = result;
    }
}

fn push_user(prompt: &mut Rendered, messages: &[&Message]) {
    for (index, message) in messages.iter().enumerate() {
        if index > 0 {
            prompt.push("\n\n");
        }
        if message.role == Role::Tool {
            prompt.push("<tool_result>");
            prompt.push(&message.content);
            prompt.push("</tool_result>");
        } else {
            prompt.push(&message.content);
        }
    }
}

fn open_reply(prompt: &mut Rendered, thinks: bool) {
    prompt.push_landmark();
    prompt.push_control(ASSISTANT);
    prompt.push_control(if thinks { THINK } else { END_THINK });
}

fn push_assistant(
    prompt: &mut Rendered,
    message: &Message,
    recorded: &Recorded,
    thinks: bool,
    open: bool,
) {
    let says_nothing = message.content.is_empty() && message.tool_calls.is_empty();
    if thinks {
        match &recorded.reasoning {
            Some(ids) => prompt.push_ids(Arc::clone(ids)),
            None => prompt.push(message.reasoning.as_deref().unwrap_or_default()),
        }
        if open && says_nothing {
            return;
        }
        prompt.push_control(END_THINK);
    }
    if let Some(ids) = &recorded.rest {
        prompt.push_ids(Arc::clone(ids));
    } else {
        prompt.push(&message.content);
        if !message.tool_calls.is_empty() {
            push_calls(prompt, &message.tool_calls);
        }
    }
    if !open {
        prompt.push_control(EOS);
    }
}

/// Appends a block of tool calls.
fn push_calls(prompt: &mut Rendered, calls: &[ToolCall]) {
    prompt.push("\n\n");
    prompt.push_tag("<", "tool_calls>\n");
    for call in calls {
        prompt.push_tag("<", "invoke name=\"");
        prompt.push(&call.name);
        prompt.push("\">\n");
        for (index, (name, value)) in json::parameters(&call.arguments).iter().enumerate() {
            if index > 0 {
                prompt.push("\n");
            }
            prompt.push_tag("<", "parameter name=\"");
            prompt.push(name);
            match value {
                Value::String(text) => {
                    prompt.push("\" string=\"true\">");
                    prompt.push(text);
                }
                other => {
                    prompt.push("\" string=\"false\">");
                    prompt.push(&json::dumps(other));
                }
            }
            prompt.push_tag("</", "parameter>");
        }
        prompt.push("\n");
        prompt.push_tag("</", "invoke>\n");
    }
    prompt.push_tag("</", "tool_calls>");
}

/// Appends the description of the tools, in the model card's words, which it was trained on.
fn push_tools(prompt: &mut Rendered, tools: &[Tool]) {
    prompt.push(
        "## Tools\n\nYou have access to a set of tools to help answer the user's question. You \
         can invoke tools by writing a \"",
    );
    prompt.push_tag("<", "tool_calls>\" block like the following:\n\n");
    prompt.push_tag("<", "tool_calls>\n");
    prompt.push_tag("<", "invoke name=\"$TOOL_NAME\">\n");
    prompt.push_tag("<", "parameter name=\"$PARAMETER_NAME\" string=\"true|false\">");
    prompt.push("$PARAMETER_VALUE");
    prompt.push_tag("</", "parameter>\n...\n");
    prompt.push_tag("</", "invoke>\n");
    prompt.push_tag("<", "invoke name=\"$TOOL_NAME2\">\n...\n");
    prompt.push_tag("</", "invoke>\n");
    prompt.push_tag("</", "tool_calls>\n\n");
    prompt.push(
        "String parameters should be specified as is and set `string=\"true\"`. For all other \
         types (numbers, booleans, arrays, objects), pass the value in JSON format and set \
         `string=\"false\"`.\n\nIf thinking_mode is enabled (triggered by ",
    );
    prompt.push_control(THINK);
    prompt.push("), you MUST output your complete reasoning inside ");
    prompt.push_control(THINK);
    prompt.push("...");
    prompt.push_control(END_THINK);
    prompt.push(" BEFORE any tool calls or final response.\n\nOtherwise, output directly after ");
    prompt.push_control(END_THINK);
    prompt.push(" with tool calls or final response.\n\n### Available Tool Schemas\n\n");
    for (index, tool) in tools.iter().enumerate() {
        if index > 0 {
            prompt.push("\n");
        }
        prompt.push(&json::dumps(tool.function()));
    }
    prompt.push(
        "\n\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke \
         tool calls.\n",
    );
}
