//! Which of its tools a request lets the model call.

use axum::http::StatusCode;
use serde_json::{json, Value};

use crate::server::{salt, Server};
use crate::talk::{parameters, question};

const PATHS: [&str; 2] = ["/v1/chat/completions", "/v1/responses"];

/// A question that wants the weather, with two tools, in the dialect of `path`.
fn request(path: &str, mode: &str, allowed: &[&str]) -> Value {
    let chat = path.ends_with("completions");
    let tool = |name: &str| {
        let function = json!({ "name": name, "description": "Get something in a city",
            "parameters": parameters() });
        if chat {
            json!({ "type": "function", "function": function })
        } else {
            let mut tool = function;
            tool["type"] = "function".into();
            tool
        }
    };
    let named = |name: &&str| {
        if chat {
            json!({ "type": "function", "function": { "name": name } })
        } else {
            json!({ "type": "function", "name": name })
        }
    };
    let choice = json!({ "mode": mode, "tools": allowed.iter().map(named).collect::<Vec<_>>() });
    let mut body = json!({ "temperature": 0, "reasoning_effort": "none", "max_tokens": 200,
        "reasoning": { "effort": "none" }, "max_output_tokens": 200, "cache_salt": salt(path),
        "tools": [tool("get_weather"), tool("get_time")] });
    if chat {
        body["messages"] = json!([{ "role": "user", "content": question("Paris") }]);
        body["tool_choice"] = json!({ "type": "allowed_tools", "allowed_tools": choice });
    } else {
        body["input"] = question("Paris").into();
        body["tool_choice"] = choice;
        body["tool_choice"]["type"] = "allowed_tools".into();
    }
    body
}

/// What was called, and how many tokens the prompt had and were known.
fn called(server: &Server, path: &str, request: &Value) -> (Vec<String>, u64, u64) {
    let answer = server.ask(path, request);
    let name = |name: &Value| name.as_str().unwrap().to_owned();
    let number = |at: &str| answer.pointer(at).and_then(Value::as_u64).unwrap();
    if path.ends_with("completions") {
        let calls = answer["choices"][0]["message"]["tool_calls"].as_array().cloned();
        let names =
            calls.unwrap_or_default().iter().map(|c| name(&c["function"]["name"])).collect();
        let cached = number("/usage/prompt_tokens_details/cached_tokens");
        (names, number("/usage/prompt_tokens"), cached)
    } else {
        assert_eq!(answer["tool_choice"], request["tool_choice"]);
        let items = answer["output"].as_array().unwrap().iter();
        let calls = items.filter(|item| item["type"] == "function_call");
        let names = calls.map(|call| name(&call["name"])).collect();
        let cached = number("/usage/input_tokens_details/cached_tokens");
        (names, number("/usage/input_tokens"), cached)
    }
}

#[test]
fn allowed_tools_are_called_and_the_others_stay_in_the_prompt() {
    let server = Server::new();
    for path in PATHS {
        let (free, prompt, _) = called(&server, path, &request(path, "auto", &["get_weather"]));
        assert_eq!(free, ["get_weather"]);
        // The prompt is the same, so all of it is known.
        for (mode, allowed, wanted) in [
            ("required", &["get_time"][..], Some("get_time")),
            ("required", &["get_time", "get_weather"], Some("get_weather")),
            ("auto", &["get_time"], None),
            ("auto", &[], None),
        ] {
            let (names, again, cached) = called(&server, path, &request(path, mode, allowed));
            assert_eq!((again, cached), (prompt, prompt - 1), "{path} {mode} {allowed:?}");
            match wanted {
                Some(name) => assert_eq!(names, [name], "{path} {mode} {allowed:?}"),
                None => assert!(!names.contains(&"get_weather".to_owned()), "{path} {allowed:?}"),
            }
        }
    }
}

#[test]
fn what_is_allowed_must_be_there() {
    let server = Server::new();
    for (path, mode, allowed, field) in [
        (PATHS[0], "auto", &["no"][..], "tool_choice.allowed_tools.tools[0].function.name"),
        (PATHS[1], "auto", &["get_time", "no"], "tool_choice.tools[1].name"),
        (PATHS[0], "required", &[], "tool_choice.allowed_tools.tools"),
        (PATHS[1], "required", &[], "tool_choice.tools"),
        (PATHS[0], "often", &["get_time"], "tool_choice.allowed_tools.mode"),
        (PATHS[1], "none", &["get_time"], "tool_choice.mode"),
    ] {
        let reply = server.post(path, &request(path, mode, allowed));
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{path} {mode} {allowed:?}");
        assert_eq!(reply.body["error"]["param"], field, "{}", reply.body);
    }
}
