//! `GET /v1/models`: one list that OpenAI's, Anthropic's and Codex's clients can all read.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::Json as JsonResponse;
use serde_json::{json, Value};

use super::app::{App, Caller, Route};
use super::common::{no_such_model, THINKING_ALIASES};

/// What Codex tells the model, for which a server's list must answer.
const CODEX_INSTRUCTIONS: &str =
    "You are a coding agent that works in the user's terminal through \
    Codex. Read the code before you change it, use the tools to run commands and to edit files, \
    check what you did, and finish with a short account of it.";

/// Adds the paths.
pub(super) fn routes(route: &mut Route<'_>) {
    route("/models", get(list));
    route("/models/{*id}", get(one));
}

impl App {
    /// Whether the model goes by this name.
    pub(super) fn has_model(&self, name: &str) -> bool {
        self.names().any(|known| known == name)
    }

    /// The names of the model, its own first.
    fn names(&self) -> impl Iterator<Item = &str> {
        let settings = &self.0.settings;
        let own = std::iter::once(settings.model.as_str());
        let aliases = settings.aliases.iter().map(String::as_str);
        own.chain(aliases).chain(THINKING_ALIASES.iter().map(|(alias, _)| *alias))
    }

    fn describe(&self, name: &str) -> Value {
        let context = self.service().context();
        json!({
            "id": name,
            "object": "model",
            "created": self.0.created,
            "owned_by": "candle-ds4",
            "type": "model",
            "display_name": display_name(name),
            "lifecycle": "active",
            "created_at": date(self.0.created),
            "context_length": context,
            "max_model_len": context,
            "max_input_tokens": context,
            "max_tokens": self.0.settings.max_tokens.min(context),
            "supported_parameters": [
                "tools", "tool_choice", "parallel_tool_calls", "max_tokens",
                "max_completion_tokens", "temperature", "top_p", "top_k", "min_p",
                "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias",
                "logprobs", "top_logprobs", "stop", "seed", "n", "stream", "reasoning_effort",
                "response_format",
            ],
        })
    }

    /// The model as Codex describes its own.
    fn describe_for_codex(&self, name: &str, priority: usize) -> Value {
        let context = self.service().context();
        let level = |effort, description| json!({ "effort": effort, "description": description });
        json!({
            "slug": name,
            "display_name": display_name(name),
            "description": "DeepSeek V4 Flash on this machine",
            "default_reasoning_level": "high",
            "supported_reasoning_levels": [
                level("none", "Answers at once"),
                level("high", "Thinks before it answers"),
            ],
            "shell_type": "shell_command",
            "visibility": "list",
            "supported_in_api": true,
            "priority": priority,
            "availability_nux": null,
            "upgrade": null,
            "base_instructions": CODEX_INSTRUCTIONS,
            "model_messages": null,
            "supports_reasoning_summaries": true,
            "default_reasoning_summary": "auto",
            "support_verbosity": false,
            "default_verbosity": null,
            "apply_patch_tool_type": null,
            "web_search_tool_type": "text",
            "truncation_policy": { "mode": "tokens", "limit": 10_000 },
            "supports_parallel_tool_calls": true,
            "supports_image_detail_original": false,
            "supports_search_tool": false,
            "use_responses_lite": false,
            "context_window": context,
            "max_context_window": context,
            "auto_compact_token_limit": null,
            "effective_context_window_percent": 95,
            "experimental_supported_tools": [],
            "input_modalities": ["text"],
        })
    }
}

async fn list(State(app): State<App>) -> Response {
    let data: Vec<Value> = app.names().map(|name| app.describe(name)).collect();
    let models = app.names().enumerate();
    let models: Vec<Value> = models.map(|(at, name)| app.describe_for_codex(name, at)).collect();
    let id = |model: Option<&Value>| model.map(|model| model["id"].clone());
    JsonResponse(json!({
        "object": "list",
        "first_id": id(data.first()),
        "last_id": id(data.last()),
        "has_more": false,
        "data": data,
        "models": models,
    }))
    .into_response()
}

async fn one(State(app): State<App>, Path(id): Path<String>, caller: Caller) -> Response {
    if app.has_model(&id) {
        JsonResponse(app.describe(&id)).into_response()
    } else {
        caller.refuse(&no_such_model(&app.0.settings.model))
    }
}

/// `deepseek-v4-flash` as people write it.
fn display_name(name: &str) -> String {
    let words = name.split('-').map(|word| match word {
        "deepseek" => "DeepSeek".to_owned(),
        word => {
            let mut letters = word.chars();
            let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
            first + letters.as_str()
        }
    });
    words.collect::<Vec<String>>().join(" ")
}

/// A date and time in RFC 3339, from seconds since 1970.
fn date(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Counted from 1 March of year 0, so that a leap day ends its year; eras have 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = 400 * era + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let known = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_767_225_600, "2026-01-01T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, text) in known {
            assert_eq!(date(seconds), text);
        }
    }

    #[test]
    fn names_are_made_readable() {
        assert_eq!(display_name("deepseek-v4-flash"), "DeepSeek V4 Flash");
    }
}
