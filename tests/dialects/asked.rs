//! Requests that clients send, that make no sense, and that are made to do harm.

use axum::http::StatusCode;
use serde_json::{json, Value};

use crate::server::{salt, Server};
use crate::talk::{parameters, Messages};

#[test]
fn what_clients_probe_with_is_answered() {
    let server = Server::new();
    let probe = json!({ "model": "m", "input": [], "max_output_tokens": 1 });
    let response = server.ask("/responses", &probe);
    assert_eq!(response["status"], "incomplete");
    let counted = server.ask("/v1/responses/input_tokens", &probe);
    let tokens = &response["usage"]["input_tokens"];
    assert_eq!(counted, json!({ "object": "response.input_tokens", "input_tokens": tokens }));
    // All that Codex sends.
    let codex = json!({ "model": "m", "instructions": "Be brief.", "input": [
            { "type": "message", "role": "developer", "content": [
                { "type": "input_text", "text": "<permissions>" }] },
            { "type": "message", "role": "user", "content": [
                { "type": "input_text", "text": "Hi" }] }],
        "tools": [{ "type": "local_shell" }, { "type": "namespace", "name": "n", "tools": [] },
            { "type": "function", "name": "shell", "strict": false, "parameters": parameters() }],
        "tool_choice": "auto", "parallel_tool_calls": false, "store": false,
        "reasoning": { "effort": "medium", "summary": "auto" }, "client_metadata": { "a": "b" },
        "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k",
        "max_output_tokens": 8 });
    let events = server.stream("/v1/responses", &codex);
    let has = |kind: &str| events.iter().any(|event| event["type"] == *kind);
    assert!(has("response.created") && has("response.reasoning_summary_text.delta"));
    // All that pi sends.
    let pi = json!({ "model": "m", "input": [{ "role": "user", "content": "Hi" }], "stream": true,
        "store": false, "include": ["reasoning.encrypted_content"], "max_output_tokens": 8,
        "prompt_cache_key": "k", "reasoning": { "effort": "high", "summary": "auto" } });
    assert!(server.stream("/v1/responses", &pi).len() > 4);
    let stream = server.stream(
        "/v1/messages",
        &json!({ "model": "claude-haiku", "max_tokens": 4,
        "messages": [{ "role": "user", "content": "Hi" }] }),
    );
    assert_eq!(stream.last().unwrap()["type"], "message_stop");
    assert!(stream.iter().all(|frame| frame["delta"]["type"] != "thinking_delta"));
}

#[test]
fn what_makes_no_sense_is_named() {
    let server = Server::new();
    let user = json!([{ "role": "user", "content": "Hi" }]);
    let image = json!([{ "role": "user", "content": [{ "type": "image", "source": {} }] }]);
    let messages = |more: Value| {
        let mut body = json!({ "model": "m", "max_tokens": 4, "messages": user });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let cases = [
        ("/v1/messages", json!({ "messages": user }), "max_tokens"),
        ("/v1/messages", messages(json!({ "messages": image })), "messages[0].content[0].type"),
        ("/v1/messages", messages(json!({ "messages": [] })), "messages"),
        (
            "/v1/messages",
            messages(json!({ "messages": [{ "role": "x", "content": "" }] })),
            "messages[0].role",
        ),
        ("/v1/messages", messages(json!({ "thinking": { "type": "often" } })), "thinking.type"),
        ("/v1/messages", messages(json!({ "temperature": -1 })), "temperature"),
        ("/v1/messages", messages(json!({ "system": [{ "type": "image" }] })), "system[0].type"),
        ("/v1/messages", messages(json!({ "tool_choice": { "type": "any" } })), "tool_choice"),
        ("/v1/messages", messages(json!({ "stop_sequences": [3] })), "stop_sequences"),
        ("/v1/responses", json!({ "input": 3 }), "input"),
        (
            "/v1/responses",
            json!({ "input": "Hi", "previous_response_id": "resp_1" }),
            "previous_response_id",
        ),
        (
            "/v1/responses",
            json!({ "input": [{ "type": "item_reference", "id": "msg_1" }] }),
            "input[0].id",
        ),
        ("/v1/responses", json!({ "input": "Hi", "background": true }), "background"),
        ("/v1/responses", json!({ "input": "Hi", "max_output_tokens": "1" }), "max_output_tokens"),
        (
            "/v1/responses",
            json!({ "input": "Hi", "text": { "format": { "type": "json_schema" } } }),
            "text.format.schema",
        ),
    ];
    for (path, body, field) in cases {
        let reply = server.post(path, &body);
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{body}");
        let error = &reply.body["error"];
        assert!(error["message"].as_str().unwrap().contains(field), "{error}");
        if path == "/v1/responses" {
            assert_eq!(error["param"], field, "{error}");
        } else {
            assert_eq!(reply.body["type"], "error");
            assert_eq!(error["type"], "invalid_request_error");
        }
    }
    let unknown = server.post("/v1/responses", &json!({ "previous_response_id": "resp_1" }));
    assert_eq!(unknown.body["error"]["code"], "previous_response_not_found");
}

/// Any value in any numeric field: an answer, or an error that names it.
#[test]
fn numbers_out_of_range_are_refused_by_name() {
    let server = Server::new();
    let numbers = ["-1", "9223372036854775808", "1e308", "\"1\"", "null", "[]", "{}", "0", "1"];
    let fields = [
        ("/v1/messages", "max_tokens"),
        ("/v1/messages", "temperature"),
        ("/v1/messages", "top_p"),
        ("/v1/messages", "top_k"),
        ("/v1/responses", "max_output_tokens"),
        ("/v1/responses", "temperature"),
        ("/v1/responses", "top_p"),
        ("/v1/responses", "top_logprobs"),
    ];
    for (path, field) in fields {
        for number in numbers {
            let number: Value = serde_json::from_str(number).unwrap();
            let mut body = json!({ "messages": [{ "role": "user", "content": "Hi" }],
                "max_tokens": 1, "input": "Hi", "max_output_tokens": 1 });
            body[field] = number;
            // A count of tokens may be large; it is only counted here, not used up.
            let counting = matches!(field, "max_tokens" | "max_output_tokens");
            let path = match path {
                "/v1/messages" if counting => "/v1/messages/count_tokens",
                "/v1/responses" if counting => "/v1/responses/input_tokens",
                path => path,
            };
            let reply = server.post(path, &body);
            if reply.status != StatusCode::OK {
                assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{body}");
                let message = reply.body["error"]["message"].as_str().unwrap();
                assert!(message.contains(field), "{message}");
            }
        }
    }
}

/// Every place in a value, as a path of keys.
fn places(value: &Value, at: &str, places: &mut Vec<String>) {
    if !at.is_empty() {
        places.push(at.to_owned());
    }
    match value {
        Value::Object(members) => {
            members
                .iter()
                .for_each(|(key, value)| self::places(value, &format!("{at}/{key}"), places));
        }
        Value::Array(values) => {
            let values = values.iter().enumerate();
            values.for_each(|(key, value)| self::places(value, &format!("{at}/{key}"), places));
        }
        _ => {}
    }
}

/// Any JSON in any place of a request: a count, or an error that says where, never a mistake of
/// the server's.
#[test]
fn any_value_in_any_place_is_read_or_refused() {
    let server = Server::new();
    let mut messages = Messages::new(salt("places"));
    messages.messages = vec![
        json!({ "role": "user", "content": [{ "type": "text", "text": "Hi" }] }),
        json!({ "role": "system", "content": "Be brief." }),
        json!({ "role": "assistant", "content": [
            { "type": "thinking", "thinking": "hm", "signature": "s" },
            { "type": "text", "text": "Hello" },
            { "type": "tool_use", "id": "a", "name": "get_weather", "input": { "city": "Rome" } }] }),
        json!({ "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "a",
            "is_error": true, "content": [{ "type": "text", "text": "none" }] },
            { "type": "document", "title": "t", "source": { "type": "text", "data": "d" } }] }),
    ];
    let mut request = messages.request();
    let more = json!({ "tool_choice": { "type": "tool", "name": "get_weather" },
        "stop_sequences": ["x"], "output_config": { "effort": "high" }, "stream": true });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let response = json!({
        "model": "m", "instructions": "Be brief.", "max_output_tokens": 1, "stream": true,
        "store": true, "include": ["reasoning.encrypted_content"], "metadata": { "a": "b" },
        "reasoning": { "effort": "low", "summary": "auto" }, "parallel_tool_calls": true,
        "text": { "format": { "type": "json_schema", "name": "n", "schema": parameters() } },
        "tools": [{ "type": "function", "name": "f", "strict": true, "parameters": parameters() }],
        "tool_choice": { "type": "function", "name": "f" }, "temperature": 1, "top_p": 1,
        "input": [
            { "type": "message", "role": "user", "content": [
                { "type": "input_text", "text": "Hi" }] },
            { "type": "reasoning", "summary": [{ "type": "summary_text", "text": "hm" }],
              "encrypted_content": "x" },
            { "type": "function_call", "call_id": "a", "name": "f", "arguments": "{}" },
            { "type": "function_call_output", "call_id": "a", "output": "done" },
            { "type": "message", "role": "assistant", "content": [
                { "type": "output_text", "text": "Hello" }] },
        ],
    });
    let values = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(9223372036854775808u64),
        json!(1e308),
        json!(""),
        json!("\u{0}<｜DSML｜\"é"),
        json!([]),
        json!([null]),
        json!([[{}]]),
        json!({}),
        json!({ "type": {} }),
    ];
    let mut refused = 0;
    for (path, request) in
        [("/v1/messages/count_tokens", request), ("/v1/responses/input_tokens", response)]
    {
        server.ask(path, &request);
        let mut all = Vec::new();
        places(&request, "", &mut all);
        assert!(all.len() > 50);
        for place in all {
            for value in &values {
                let mut request = request.clone();
                *request.pointer_mut(&place).unwrap() = value.clone();
                let reply = server.post(path, &request);
                if reply.status == StatusCode::OK {
                    continue;
                }
                assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{place} {value} {reply:?}");
                let message = reply.body["error"]["message"].as_str().unwrap();
                let field = place.split('/').nth(1).unwrap();
                // A tool that is gone is missed where it is chosen.
                let missed = field == "tools" && message.contains("tool_choice");
                assert!(message.contains(field) || missed, "{place} {value}: {message}");
                refused += 1;
            }
        }
    }
    assert!(refused > 500, "{refused}");
}
