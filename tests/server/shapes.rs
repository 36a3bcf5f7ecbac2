//! Every object has the shape that OpenAI publishes, streamed or not.

use serde_json::{json, Value};

use crate::client::{get, post};

fn object(required: &[&str], properties: Value) -> Value {
    json!({ "type": "object", "required": required, "properties": properties })
}

fn finish() -> Value {
    json!({ "enum": ["stop", "length", "tool_calls", "content_filter", "function_call"] })
}

fn token() -> Value {
    let bytes =
        json!({ "type": ["array", "null"], "items": { "type": "integer", "maximum": 255 } });
    json!({ "token": { "type": "string" }, "logprob": { "type": "number", "maximum": 0 },
        "bytes": bytes })
}

fn logprobs() -> Value {
    let mut properties = token();
    let top = object(&["token", "logprob", "bytes"], token());
    properties["top_logprobs"] = json!({ "type": "array", "items": top });
    let content = object(&["token", "logprob", "bytes", "top_logprobs"], properties);
    json!({ "type": ["object", "null"], "required": ["content", "refusal"], "properties": {
        "content": { "type": ["array", "null"], "items": content },
        "refusal": { "type": "null" },
    } })
}

fn usage() -> Value {
    let count = json!({ "type": "integer", "minimum": 0 });
    object(
        &["prompt_tokens", "completion_tokens", "total_tokens"],
        json!({
            "prompt_tokens": count, "completion_tokens": count, "total_tokens": count,
            "prompt_tokens_details": object(&["cached_tokens"], json!({ "cached_tokens": count })),
            "completion_tokens_details":
                object(&["reasoning_tokens"], json!({ "reasoning_tokens": count })),
        }),
    )
}

fn head(kind: &str, choices: Value) -> Value {
    object(
        &["id", "object", "created", "model", "choices"],
        json!({
            "id": { "type": "string", "minLength": 1 },
            "object": { "const": kind },
            "created": { "type": "integer" },
            "model": { "type": "string" },
            "system_fingerprint": { "type": "string" },
            "choices": choices,
        }),
    )
}

fn chat() -> Value {
    let call = object(
        &["id", "type", "function"],
        json!({
            "id": { "type": "string", "pattern": "^call_[0-9a-f]{32}$" },
            "type": { "const": "function" },
            "function": object(&["name", "arguments"], json!({
                "name": { "type": "string" }, "arguments": { "type": "string" },
            })),
        }),
    );
    let message = object(
        &["role", "content", "refusal"],
        json!({
            "role": { "const": "assistant" },
            "content": { "type": ["string", "null"] },
            "refusal": { "type": ["string", "null"] },
            "reasoning_content": { "type": "string" },
            "tool_calls": { "type": "array", "minItems": 1, "items": call },
        }),
    );
    let choice = object(
        &["index", "message", "finish_reason", "logprobs"],
        json!({
            "index": { "type": "integer" }, "message": message, "finish_reason": finish(),
            "logprobs": logprobs(),
        }),
    );
    let mut schema = head("chat.completion", json!({ "type": "array", "items": choice }));
    schema["properties"]["usage"] = usage();
    schema["required"].as_array_mut().unwrap().push("usage".into());
    schema
}

fn chunk() -> Value {
    let call = json!({
        "type": "object",
        "required": ["index", "function"],
        "properties": {
            "index": { "type": "integer" },
            "id": { "type": "string", "minLength": 1 },
            "type": { "const": "function" },
            "function": { "type": "object", "required": ["arguments"], "properties": {
                "name": { "type": "string", "minLength": 1 }, "arguments": { "type": "string" },
            } },
        },
    });
    let delta = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "role": { "const": "assistant" },
            "content": { "type": "string" },
            "reasoning_content": { "type": "string" },
            "tool_calls": { "type": "array", "items": call },
        },
    });
    let choice = object(
        &["index", "delta", "finish_reason"],
        json!({
            "index": { "type": "integer" }, "delta": delta, "logprobs": logprobs(),
            "finish_reason": { "anyOf": [finish(), { "type": "null" }] },
        }),
    );
    let mut schema = head("chat.completion.chunk", json!({ "type": "array", "items": choice }));
    schema["properties"]["usage"] = json!({ "anyOf": [usage(), { "type": "null" }] });
    schema
}

fn completion() -> Value {
    let choice = object(
        &["index", "text", "logprobs", "finish_reason"],
        json!({
            "index": { "type": "integer" },
            "text": { "type": "string" },
            "finish_reason": { "enum": ["stop", "length", "content_filter", null] },
            "logprobs": { "type": ["object", "null"], "required":
                ["tokens", "token_logprobs", "top_logprobs", "text_offset"], "properties": {
                "tokens": { "type": "array", "items": { "type": "string" } },
                "token_logprobs": { "type": "array", "items": { "type": "number" } },
                "top_logprobs": { "type": "array", "items": { "type": "object",
                    "additionalProperties": { "type": "number" } } },
                "text_offset": { "type": "array", "items": { "type": "integer" } },
            } },
        }),
    );
    head("text_completion", json!({ "type": "array", "items": choice }))
}

pub fn error() -> Value {
    let text = json!({ "type": ["string", "null"] });
    let inner = object(
        &["message", "type", "param", "code"],
        json!({ "message": { "type": "string", "minLength": 1 }, "type": { "type": "string" },
            "param": text, "code": text }),
    );
    object(&["error"], json!({ "error": inner }))
}

/// Says where an object is not as its schema wants it.
pub fn check(schema: &Value, value: &Value) {
    let validator = jsonschema::validator_for(schema).unwrap();
    let errors: Vec<String> =
        validator.iter_errors(value).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{}\n{value:#}", errors.join("\n"));
}

fn ask(question: &str) -> Value {
    json!({ "messages": [{ "role": "user", "content": question }], "temperature": 0 })
}

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn weather() -> Value {
    json!({
        "messages": [{ "role": "user", "content": "What is the weather in Paris?" }],
        "temperature": 0, "reasoning_effort": "none",
        "tools": [{ "type": "function", "function": {
            "name": "get_weather", "description": "Get the weather in a city",
            "parameters": { "type": "object", "required": ["city"], "properties": {
                "city": { "type": "string", "description": "Name of the city" } } },
        } }],
    })
}

const CHAT: &str = "/v1/chat/completions";

#[test]
fn a_chat_completion_is_one() {
    let value = post(CHAT, &ask("What is 12 + 30?")).ok();
    check(&chat(), &value);
    let message = &value["choices"][0]["message"];
    assert!(message["content"].as_str().unwrap().contains("42"), "{value}");
    assert!(!message["reasoning_content"].as_str().unwrap().is_empty());
    assert_eq!(value["choices"][0]["finish_reason"], "stop");
    let usage = &value["usage"];
    let count = |name: &str| usage[name].as_u64().unwrap();
    assert_eq!(count("total_tokens"), count("prompt_tokens") + count("completion_tokens"));
    let reasoning = usage["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
    assert!(reasoning > 0 && reasoning < count("completion_tokens"), "{usage}");
}

#[test]
fn thinking_is_turned_off_in_every_spelling() {
    let spellings = [
        json!({ "reasoning_effort": "none" }),
        json!({ "thinking": { "type": "disabled" } }),
        json!({ "thinking": false }),
        json!({ "think": false }),
        json!({ "enable_thinking": false }),
        json!({ "reasoning": { "effort": "none" } }),
        json!({ "reasoning": { "enabled": false } }),
        json!({ "chat_template_kwargs": { "thinking": false } }),
        json!({ "chat_template_kwargs": { "enable_thinking": false } }),
        json!({ "chat_template_kwargs": { "reasoning_effort": "none" } }),
        json!({ "model": "deepseek-chat" }),
    ];
    for spelling in spellings {
        let value = post(CHAT, &with(ask("What is 12 + 30?"), spelling.clone())).ok();
        let message = &value["choices"][0]["message"];
        assert_eq!(message.get("reasoning_content"), None, "{spelling}: {value}");
        assert_eq!(value["usage"]["completion_tokens_details"]["reasoning_tokens"], 0);
    }
    for spelling in [
        json!({ "model": "deepseek-chat", "thinking": { "type": "enabled" } }),
        json!({ "model": "deepseek-reasoner" }),
        json!({ "reasoning_effort": "minimal" }),
        json!({ "reasoning_effort": "max" }),
        json!({ "reasoning_effort": null }),
    ] {
        let value = post(CHAT, &with(ask("What is 12 + 30?"), spelling.clone())).ok();
        assert!(value["choices"][0]["message"]["reasoning_content"].is_string(), "{spelling}");
    }
}

#[test]
fn a_tool_call_is_one_and_its_result_is_read() {
    let mut body = weather();
    let value = post(CHAT, &body).ok();
    check(&chat(), &value);
    let choice = &value["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], Value::Null);
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"]["name"], "get_weather");
    let arguments: Value =
        serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments, json!({ "city": "Paris" }));

    let messages = body["messages"].as_array_mut().unwrap();
    messages.push(choice["message"].clone());
    messages.push(json!({ "role": "tool", "tool_call_id": call["id"],
        "content": "condition: snowy, temperature: 3" }));
    let value = post(CHAT, &body).ok();
    let text = value["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.contains("snowy") || text.contains('3'), "{text}");
    assert!(value["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() > Some(0));
}

#[test]
fn what_must_be_called_is_called_and_what_must_not_is_not() {
    let call = |choice: Value| {
        let body = with(weather(), json!({ "tool_choice": choice, "max_tokens": 400 }));
        let value = post(CHAT, &body).ok();
        check(&chat(), &value);
        assert!(!value.to_string().contains("DSML"), "{value}");
        value["choices"][0]["message"]["tool_calls"].clone()
    };
    assert_eq!(call(json!("none")), Value::Null);
    let named = json!({ "type": "function", "function": { "name": "get_weather" } });
    let allowed = json!({ "type": "allowed_tools", "allowed_tools": { "mode": "required",
        "tools": [{ "type": "function", "function": { "name": "get_weather" } }] } });
    for choice in [json!("required"), named, allowed] {
        assert_eq!(call(choice.clone())[0]["function"]["name"], "get_weather", "{choice}");
    }
    let hello = json!({ "messages": [{ "role": "user", "content": "What is 1 + 1?" }],
        "tool_choice": "required", "max_tokens": 400 });
    let value = post(CHAT, &with(weather(), hello)).ok();
    assert_eq!(value["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "get_weather");
    // The prompt is the one without tools.
    let tokens = |body: &Value| post(CHAT, body).ok()["usage"]["prompt_tokens"].clone();
    let bare = with(ask("What is the weather in Paris?"), json!({ "reasoning_effort": "none" }));
    assert_eq!(tokens(&with(weather(), json!({ "tool_choice": "none" }))), tokens(&bare));
}

#[test]
fn json_is_json() {
    let format = json!({ "type": "json_schema", "json_schema": { "name": "sum", "schema": {
        "type": "object", "required": ["total"], "additionalProperties": false,
        "properties": { "total": { "type": "integer" } } } } });
    for format in [json!({ "type": "json_object" }), format] {
        let more = json!({ "response_format": format, "max_tokens": 600 });
        let value = post(CHAT, &with(ask("What is 12 + 30? Answer in JSON."), more)).ok();
        let choice = &value["choices"][0];
        if choice["finish_reason"] == "stop" {
            let text = choice["message"]["content"].as_str().unwrap();
            let object: Value = serde_json::from_str(text).unwrap();
            assert!(object.is_object(), "{text}");
            assert!(format["type"] == "json_object" || object["total"].is_i64(), "{text}");
        }
    }
}

#[test]
fn several_answers_with_probabilities_are_several() {
    let more = json!({ "n": 3, "logprobs": true, "top_logprobs": 2, "temperature": 1, "seed": 7,
        "reasoning_effort": "none" });
    let body = with(ask("What is the capital of France?"), more);
    let value = post(CHAT, &body).ok();
    check(&chat(), &value);
    let choices = value["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        let tokens = choice["logprobs"]["content"].as_array().unwrap();
        let text: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
        assert_eq!(text, choice["message"]["content"].as_str().unwrap());
        assert!(tokens.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2));
    }
    let again = post(CHAT, &body).ok();
    assert_eq!(again["choices"], value["choices"], "the same seed gave other answers");
}

#[test]
fn a_stream_has_the_chunks_of_one() {
    let stream = json!({ "stream": true, "stream_options": { "include_usage": true } });
    for body in [ask("What is 12 + 30?"), weather(), with(weather(), json!({ "n": 2 }))] {
        let n = body["n"].as_u64().unwrap_or(1) as usize;
        let response = post(CHAT, &with(body.clone(), stream.clone()));
        let kind = "text/event-stream; charset=utf-8";
        assert_eq!((response.status, response.header("content-type")), (200, Some(kind)));
        assert_eq!(response.header("cache-control"), Some("no-cache"));
        assert_eq!(response.header("x-accel-buffering"), Some("no"));
        let frames = response.frames();
        let (done, frames) = frames.split_last().unwrap();
        assert_eq!(done.data, "[DONE]");
        assert!(frames.iter().all(|frame| frame.event.is_none()));
        let chunks: Vec<Value> =
            frames.iter().map(|frame| serde_json::from_str(&frame.data).unwrap()).collect();
        let (last, chunks) = chunks.split_last().unwrap();
        check(&chunk(), last);
        assert_eq!(last["choices"], json!([]));
        assert!(last["usage"].is_object());
        let schema = chunk();
        for chunk in chunks {
            check(&schema, chunk);
            assert_eq!(chunk["usage"], Value::Null);
            assert_eq!(chunk["choices"].as_array().unwrap().len(), 1);
            for key in ["id", "created", "model"] {
                assert_eq!(chunk[key], last[key]);
            }
        }
        for index in 0..n {
            let own = |c: &&Value| c["choices"][0]["index"] == index;
            let own: Vec<&Value> = chunks.iter().filter(own).collect();
            let delta = |chunk: &Value| chunk["choices"][0]["delta"].clone();
            assert_eq!(delta(own[0]), json!({ "role": "assistant", "content": "" }));
            let ends: Vec<bool> =
                own.iter().map(|chunk| chunk["choices"][0]["finish_reason"].is_string()).collect();
            assert_eq!(ends.iter().filter(|end| **end).count(), 1);
            assert!(ends.last().unwrap());
            assert_eq!(delta(own.last().unwrap()), json!({}));
            let calls = own
                .iter()
                .filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].get(0).cloned());
            let calls: Vec<Value> = calls.collect();
            if let Some((first, rest)) = calls.split_first() {
                assert!(first["id"].is_string() && first["function"]["arguments"] == "");
                assert!(rest.iter().all(|call| call.get("id").is_none()
                    && call.get("type").is_none()
                    && call["function"].get("name").is_none()));
            }
        }
    }
    // Nobody asked for the usage, so nothing without a choice may come.
    let plain = post(CHAT, &with(ask("What is 12 + 30?"), json!({ "stream": true }))).frames();
    let chunks = plain[..plain.len() - 1].iter();
    let chunks: Vec<Value> = chunks.map(|f| serde_json::from_str(&f.data).unwrap()).collect();
    assert!(chunks.iter().all(|chunk| chunk["choices"].as_array().unwrap().len() == 1));
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[test]
fn stops_and_limits_end_an_answer() {
    let off = json!({ "reasoning_effort": "none" });
    let body = with(ask("What is the capital of France?"), off);
    let value = post(CHAT, &with(body.clone(), json!({ "stop": ["Paris"] }))).ok();
    let choice = &value["choices"][0];
    assert!(!choice["message"]["content"].as_str().unwrap().contains("Par"), "{choice}");
    assert_eq!(choice["finish_reason"], "stop");
    let value =
        post(CHAT, &with(body, json!({ "max_completion_tokens": 2, "max_tokens": 50 }))).ok();
    assert_eq!(value["choices"][0]["finish_reason"], "length");
    assert_eq!(value["usage"]["completion_tokens"], 2);
}

#[test]
fn a_completion_goes_on_where_the_prompt_ends() {
    let body = json!({ "prompt": "The capital of France is", "temperature": 0, "max_tokens": 4,
        "logprobs": 2 });
    let value = post("/v1/completions", &body).ok();
    check(&completion(), &value);
    let choice = &value["choices"][0];
    let text = choice["text"].as_str().unwrap();
    assert!(text.contains("Paris"), "{value}");
    let tokens = choice["logprobs"]["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), 4);
    let joined: String = tokens.iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(joined, text);

    let stream = with(body.clone(), json!({ "stream": true, "logprobs": null, "echo": true }));
    let frames = post("/v1/completions", &stream).frames();
    let mut streamed = String::new();
    for frame in &frames[..frames.len() - 1] {
        let chunk: Value = serde_json::from_str(&frame.data).unwrap();
        check(&completion(), &chunk);
        streamed.push_str(chunk["choices"][0]["text"].as_str().unwrap());
    }
    assert_eq!(frames.last().unwrap().data, "[DONE]");
    assert_eq!(streamed, format!("The capital of France is{text}"));

    // As ids, and in a list of one.
    let ids =
        post("/tokenize", &json!({ "prompt": "The capital of France is" })).ok()["tokens"].clone();
    for prompt in [ids.clone(), json!([ids]), json!(["The capital of France is"])] {
        let value = post("/completions", &with(body.clone(), json!({ "prompt": prompt }))).ok();
        assert_eq!(value["choices"][0]["text"], text);
    }
    assert_eq!(
        post("/v1/completions", &with(body, json!({ "max_tokens": 0 }))).ok()["choices"][0]["text"],
        ""
    );
}

#[test]
fn models_are_listed_for_every_client() {
    let list = get("/v1/models").ok();
    let model = object(
        &["id", "object", "created", "owned_by", "type", "display_name", "created_at"],
        json!({ "object": { "const": "model" }, "type": { "const": "model" },
            "created": { "type": "integer" }, "created_at": { "type": "string" } }),
    );
    let schema = object(
        &["object", "data", "has_more", "first_id", "last_id", "models"],
        json!({ "object": { "const": "list" }, "has_more": { "const": false },
            "data": { "type": "array", "minItems": 3, "items": model },
            "models": { "type": "array", "minItems": 1, "items": object(
                &["slug", "display_name", "base_instructions", "truncation_policy",
                  "support_verbosity", "default_verbosity", "apply_patch_tool_type",
                  "supports_parallel_tool_calls", "experimental_supported_tools", "shell_type",
                  "visibility", "supported_in_api", "priority", "supported_reasoning_levels"],
                json!({})) } }),
    );
    check(&schema, &list);
    let names: Vec<&str> =
        list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["deepseek-v4-flash", "deepseek-chat", "deepseek-reasoner"]);
    check(&model, &get("/models/deepseek-chat").ok());
    let missing = get("/v1/models/gpt-5");
    assert_eq!(
        (missing.status, &missing.json()["error"]["code"]),
        (404, &json!("model_not_found"))
    );
    check(&error(), &missing.json());
}

#[test]
fn who_is_lost_is_told_every_path() {
    let message = get("/v1/nothing").json()["error"]["message"].as_str().unwrap().to_owned();
    let told: Vec<&str> = message.split([' ', ',']).filter(|word| word.starts_with('/')).collect();
    for path in get("/openapi.json").ok()["paths"].as_object().unwrap().keys() {
        assert_eq!(told.contains(&path.as_str()), !path.contains('{'), "{path}: {message}");
    }
}

#[test]
fn errors_have_the_shape_of_the_dialect() {
    let cases = [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("POST", "/v1/embeddings", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
    ];
    for (method, path, status, code) in cases {
        let response = crate::client::request(crate::client::server(), method, path, &[], b"{}");
        assert_eq!(response.status, status, "{method} {path}");
        check(&error(), &response.json());
        assert_eq!(response.json()["error"]["code"], code);
        assert_eq!(response.header("x-should-retry"), Some("false"));
        assert!(response.header("x-request-id").is_some());
    }
    let response = post("/v1/messages", &json!({}));
    assert_eq!(response.status, 400);
    let value = response.json();
    assert_eq!(
        (&value["type"], &value["error"]["type"]),
        (&json!("error"), &json!("invalid_request_error"))
    );
    assert_eq!(value["request_id"], response.header("request-id").unwrap());

    let long = "word ".repeat(20_000);
    let response = post(CHAT, &ask(&long));
    assert_eq!(response.status, 400);
    let error = &response.json()["error"];
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("context_length_exceeded"), &json!("messages"))
    );
    assert!(error["n_prompt_tokens"].as_u64() > error["n_ctx"].as_u64(), "{error}");
}

#[test]
fn health_version_and_metrics_answer() {
    assert_eq!(get("/health").ok()["status"], "ok");
    assert_eq!(get("/v1/version").ok()["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(get("/server_info").ok()["context_length"], 16_384);
    post(CHAT, &ask("What is 12 + 30?")).ok();
    let loads = get("/v1/loads").ok();
    let load = &loads["loads"][0];
    assert_eq!(loads["dp_rank_count"], 1);
    assert!(load["num_running_reqs"].is_u64() && load["num_waiting_reqs"].is_u64(), "{loads}");
    assert!((0.0..=1.0).contains(&load["token_usage"].as_f64().unwrap()), "{loads}");
    assert!(load["num_used_tokens"].as_u64() < load["max_total_num_tokens"].as_u64(), "{loads}");
    assert!(load["gen_throughput"].as_f64().unwrap() > 0.0, "{loads}");
    let metrics = get("/metrics");
    assert_eq!(metrics.status, 200);
    let text = metrics.text();
    for name in [
        "vllm:num_requests_running{",
        "vllm:num_requests_waiting{",
        "vllm:kv_cache_usage_perc{",
        "vllm:prefix_cache_queries_total{",
        "vllm:prefix_cache_hits_total{",
        "vllm:time_to_first_token_seconds_bucket{",
        "vllm:inter_token_latency_seconds_count{",
        "vllm:e2e_request_latency_seconds_sum{",
        "vllm:prompt_tokens_total{",
        "vllm:generation_tokens_total{",
        "vllm:request_success_total{",
        "ds4_http_requests_total{",
        "ds4_build_info{",
    ] {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name} is not in:\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    let page = get("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
}

#[test]
fn text_becomes_ids_and_text_again() {
    let text = "Grüße <｜User｜> 𝄞";
    let bare = post("/tokenize", &json!({ "content": text })).ok();
    let ids = bare["tokens"].clone();
    assert_eq!(bare["count"], ids.as_array().unwrap().len());
    let back = post("/v1/detokenize", &json!({ "tokens": ids })).ok();
    assert_eq!((&back["content"], &back["prompt"]), (&json!(text), &json!(text)));
    let with_bos = post("/tokenize", &json!({ "prompt": text })).ok();
    assert_eq!(with_bos["count"].as_u64(), bare["count"].as_u64().map(|count| count + 1));
    let pieces = post("/tokenize", &json!({ "content": "ab é", "with_pieces": true })).ok();
    assert!(pieces["tokens"].as_array().unwrap().iter().all(|t| t["id"].is_u64()));
    let chat = post("/tokenize", &ask("hi")).ok();
    let answered = post(CHAT, &with(ask("hi"), json!({ "max_tokens": 1 }))).ok();
    assert_eq!(chat["count"], answered["usage"]["prompt_tokens"]);
    assert_eq!(post("/detokenize", &json!({ "tokens": [4_000_000_000u64] })).status, 400);
}
