//! Answers whose shape was asked for, by the demo model itself: whatever it would rather say.

#[path = "../../src/guide/tests/random.rs"]
mod random;

use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{json, Value};

use crate::server::Server;

/// More than most answers here have when they are let go on to their end.
const MOST_TOKENS: usize = 600;
/// Characters of a text whose schema sets no limit: the demo model would go on and on.
const LONGEST_TEXT: u64 = 60;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Dialect {
    Chat,
    Responses,
    Messages,
}

/// What a request wants of its answer.
#[derive(Debug)]
enum Wanted {
    Schema(Value),
    /// Tools, and the names of those of which one must be called, if any must be.
    Tools(Vec<(&'static str, Value)>, Option<Vec<&'static str>>),
}

/// What came back.
#[derive(Debug, Default)]
struct Said {
    text: String,
    calls: Vec<(String, Value)>,
    /// It ended for lack of tokens.
    cut: bool,
    tokens: u64,
}

impl Dialect {
    fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Responses => "/v1/responses",
            Self::Messages => "/v1/messages",
        }
    }

    fn tool(self, name: &str, parameters: &Value) -> Value {
        match self {
            Self::Chat => json!({ "type": "function",
                "function": { "name": name, "parameters": parameters } }),
            Self::Responses => json!({ "type": "function", "name": name, "strict": true,
                "parameters": parameters }),
            Self::Messages => json!({ "name": name, "input_schema": parameters }),
        }
    }

    /// The choice of tools that leaves these, all or one of several.
    fn choice(self, names: &[&str], of: usize) -> Value {
        match (self, names) {
            (Self::Messages, [name]) => json!({ "type": "tool", "name": name }),
            (Self::Messages, _) => json!({ "type": "any" }),
            (_, names) if names.len() == of => "required".into(),
            (Self::Chat, [name]) => json!({ "type": "function", "function": { "name": name } }),
            (Self::Chat, names) => {
                let function = |name| json!({ "type": "function", "function": { "name": name } });
                let tools: Vec<Value> = names.iter().map(function).collect();
                json!({ "type": "allowed_tools",
                    "allowed_tools": { "mode": "required", "tools": tools } })
            }
            (Self::Responses, [name]) => json!({ "type": "function", "name": name }),
            (Self::Responses, names) => {
                let function = |name| json!({ "type": "function", "name": name });
                let tools: Vec<Value> = names.iter().map(function).collect();
                json!({ "type": "allowed_tools", "mode": "required", "tools": tools })
            }
        }
    }

    fn request(self, question: &str, thinks: bool, seed: u64, wanted: &Wanted) -> Value {
        let messages = json!([{ "role": "user", "content": question }]);
        let mut body = match self {
            Self::Chat => json!({ "messages": messages, "max_tokens": MOST_TOKENS,
                "reasoning_effort": if thinks { "high" } else { "none" } }),
            Self::Responses => json!({ "input": messages, "max_output_tokens": MOST_TOKENS,
                "reasoning": { "effort": if thinks { "high" } else { "none" } } }),
            Self::Messages => json!({ "messages": messages, "max_tokens": MOST_TOKENS,
                "thinking": { "type": if thinks { "adaptive" } else { "disabled" } } }),
        };
        body["seed"] = seed.into();
        match wanted {
            Wanted::Schema(schema) => {
                let format = json!({ "type": "json_schema", "name": "n", "schema": schema });
                match self {
                    Self::Chat => {
                        body["response_format"] = json!({ "type": "json_schema",
                            "json_schema": { "name": "n", "strict": true, "schema": schema } });
                    }
                    Self::Responses => body["text"] = json!({ "format": format }),
                    Self::Messages => body["output_config"] = json!({ "format": format }),
                }
            }
            Wanted::Tools(tools, names) => {
                let declared: Vec<Value> =
                    tools.iter().map(|(name, schema)| self.tool(name, schema)).collect();
                if let Some(names) = names {
                    body["tool_choice"] = self.choice(names, tools.len());
                }
                body["tools"] = declared.into();
            }
        }
        body
    }

    fn read(self, answer: &Value) -> Said {
        let mut said = Said::default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let json = |value: &Value| serde_json::from_str(value.as_str().unwrap()).unwrap();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        match self {
            Self::Chat => {
                let choice = &answer["choices"][0];
                said.cut = choice["finish_reason"] == "length";
                said.text = text(&choice["message"]["content"]);
                for call in list(&choice["message"]["tool_calls"]) {
                    let function = &call["function"];
                    said.calls.push((text(&function["name"]), json(&function["arguments"])));
                }
                said.tokens = answer["usage"]["completion_tokens"].as_u64().unwrap();
            }
            Self::Responses => {
                said.cut = answer["status"] == "incomplete";
                for item in list(&answer["output"]) {
                    match item["type"].as_str() {
                        Some("message") => said.text.push_str(&text(&item["content"][0]["text"])),
                        Some("function_call") => {
                            said.calls.push((text(&item["name"]), json(&item["arguments"])));
                        }
                        _ => {}
                    }
                }
                said.tokens = answer["usage"]["output_tokens"].as_u64().unwrap();
            }
            Self::Messages => {
                said.cut = answer["stop_reason"] == "max_tokens";
                for block in list(&answer["content"]) {
                    match block["type"].as_str() {
                        Some("text") => said.text.push_str(&text(&block["text"])),
                        Some("tool_use") => {
                            said.calls.push((text(&block["name"]), block["input"].clone()));
                        }
                        _ => {}
                    }
                }
                said.tokens = answer["usage"]["output_tokens"].as_u64().unwrap();
            }
        }
        said
    }
}

fn assert_valid(schema: &Value, value: &Value, of: &str) {
    assert!(jsonschema::is_valid(schema, value), "{of}: {value} by {schema}");
}

/// Limits texts that have no limit.
fn limit_texts(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            let is_text = members.get("type").is_some_and(|kind| kind == "string");
            if let Some(pattern) = members.get_mut("pattern") {
                *pattern = pattern.as_str().unwrap().replace("[0-9]+", "[0-9]{1,4}").into();
            } else if is_text && !members.contains_key("maxLength") {
                members.insert("maxLength".to_owned(), LONGEST_TEXT.into());
            }
            members.values_mut().for_each(limit_texts);
        }
        Value::Array(values) => values.iter_mut().for_each(limit_texts),
        _ => {}
    }
}

/// One random request; what came of it has been checked unless it was cut.
fn one(server: &Server, seed: u64) -> Said {
    let random = &mut StdRng::seed_from_u64(seed);
    let dialects = [Dialect::Chat, Dialect::Responses, Dialect::Messages];
    let dialect = dialects[random.random_range(0..3)];
    let questions = ["What is the weather in Paris?", "What is 17 + 25?", "Tell me something."];
    let question = questions[random.random_range(0..3)];
    let thinks = random.random();
    let wanted = if seed.is_multiple_of(2) {
        let mut schema = random::object(random, 3);
        limit_texts(&mut schema);
        Wanted::Schema(schema)
    } else {
        let mut tools = random::tools(random);
        tools.iter_mut().for_each(|(_, schema)| limit_texts(schema));
        let mut names: Vec<&str> = tools.iter().map(|(name, _)| *name).collect();
        if dialect == Dialect::Messages && random.random() {
            names = vec![names[random.random_range(0..names.len())]];
        } else if dialect != Dialect::Messages {
            names.truncate(random.random_range(1..=names.len()));
        }
        let must = random.random_bool(0.8);
        Wanted::Tools(tools, must.then_some(names))
    };
    let request = dialect.request(question, thinks, seed, &wanted);
    let said = dialect.read(&server.ask(dialect.path(), &request));
    let of = format!("seed {seed}, {dialect:?}, {wanted:?}, {said:?}");
    match &wanted {
        _ if said.cut => println!("cut: {of}"),
        Wanted::Schema(schema) => {
            assert!(said.calls.is_empty(), "{of}");
            let value = serde_json::from_str(&said.text);
            assert_valid(schema, &value.unwrap_or_else(|error| panic!("{error}: {of}")), &of);
        }
        Wanted::Tools(tools, must) => {
            if let Some(names) = must {
                assert!(!said.calls.is_empty() && said.text.is_empty(), "{of}");
                let is_allowed = |(name, _): &(String, Value)| names.contains(&name.as_str());
                assert!(said.calls.iter().all(is_allowed), "{of}");
            }
            for (name, arguments) in &said.calls {
                let tool = tools.iter().find(|(declared, _)| declared == name);
                let (_, schema) = tool.unwrap_or_else(|| panic!("{of}"));
                assert_valid(schema, arguments, &of);
            }
        }
    }
    said
}

/// Many of them, some at a time.
fn many(count: u64) {
    let next = AtomicU64::new(0);
    let (called, cut, tokens) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let server = Server::new();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count {
                        return;
                    }
                    let said = one(&server, seed);
                    called.fetch_add(u64::from(!said.calls.is_empty()), Ordering::Relaxed);
                    cut.fetch_add(u64::from(said.cut), Ordering::Relaxed);
                    tokens.fetch_add(said.tokens, Ordering::Relaxed);
                }
            });
        }
    });
    println!("{count} answers of {tokens:?} tokens, {called:?} with calls, {cut:?} cut");
    // What is cut can be checked by nobody. Numbers may have digits without end, and some have.
    assert!(cut.into_inner() * 50 <= count, "too many were cut");
}

#[test]
fn answers_have_the_shape_that_was_asked_for() {
    many(40);
}

/// Run with `cargo test --release --test dialects -- --ignored --nocapture thousand_answers`.
#[test]
#[ignore = "takes minutes"]
fn a_thousand_answers_have_the_shape_that_was_asked_for() {
    many(1000);
}
