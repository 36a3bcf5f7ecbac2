//! Conversations as clients of each dialect have them, and how much of them must be found again.

use serde_json::{json, Value};

use crate::server::Server;

/// Tokens of one request: prompt, cached, answer.
#[derive(Clone, Copy, Debug)]
pub struct Tokens {
    pub prompt: u64,
    pub cached: u64,
    pub answer: u64,
}

/// How many tokens of the next prompt may be new if all that was known is found again: the last
/// id of an answer is not computed before the next is wanted.
pub fn assert_found_again(turns: &[Tokens]) {
    for (turn, pair) in turns.windows(2).enumerate() {
        let shared = pair[0].prompt + pair[0].answer;
        let share = pair[1].cached as f64 / shared as f64;
        assert!(share >= 0.99, "turn {}: {share} of {pair:?}", turn + 2);
        assert!(pair[1].prompt > shared, "turn {}: {pair:?}", turn + 2);
    }
}

pub const CITIES: [&str; 3] = ["Paris", "Rome", "Lima"];
const RESULT: &str = "condition: snowy, temperature: 3";

pub fn parameters() -> Value {
    json!({ "type": "object", "required": ["city"], "properties": {
        "city": { "type": "string", "description": "Name of the city" } } })
}

pub fn question(city: &str) -> String {
    format!("What is the weather in {city}?")
}

/// JSON as another program writes it.
fn rewritten(arguments: &Value) -> Value {
    let arguments: Value = serde_json::from_str(arguments.as_str().unwrap()).unwrap();
    arguments.to_string().into()
}

/// A conversation in one of the dialects: asks a question that needs a call, and then what the
/// result says.
pub trait Talk {
    /// The tokens of both turns.
    fn ask_about(&mut self, server: &Server, city: &str) -> [Tokens; 2];
}

/// As clients of the chat dialect have it: they drop reasoning, and write JSON their own way.
pub struct Chat {
    messages: Vec<Value>,
    salt: Value,
}

impl Chat {
    pub fn new(salt: Value) -> Self {
        Self { messages: vec![json!({ "role": "system", "content": "You are helpful." })], salt }
    }

    fn turn(&mut self, server: &Server) -> (Value, Tokens) {
        let body = json!({
            "model": "m", "messages": self.messages, "temperature": 0, "max_tokens": 200,
            "cache_salt": self.salt,
            "tools": [{ "type": "function", "function": {
                "name": "get_weather", "description": "Get the weather in a city",
                "parameters": parameters() } }],
        });
        let answer = server.ask("/v1/chat/completions", &body);
        let usage = &answer["usage"];
        let tokens = Tokens {
            prompt: usage["prompt_tokens"].as_u64().unwrap(),
            cached: usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap(),
            answer: usage["completion_tokens"].as_u64().unwrap(),
        };
        let mut message = answer["choices"][0]["message"].clone();
        assert_ne!(message["reasoning_content"], Value::Null);
        message.as_object_mut().unwrap().remove("reasoning_content");
        let told = message.clone();
        if message["tool_calls"].is_array() {
            let function = &mut message["tool_calls"][0]["function"];
            function["arguments"] = rewritten(&function["arguments"]);
        }
        self.messages.push(message);
        (told, tokens)
    }
}

impl Talk for Chat {
    fn ask_about(&mut self, server: &Server, city: &str) -> [Tokens; 2] {
        self.messages.push(json!({ "role": "user", "content": question(city) }));
        let (calling, first) = self.turn(server);
        let call = &calling["tool_calls"][0];
        assert!(call["function"]["arguments"].as_str().unwrap().contains(city), "{calling}");
        self.messages
            .push(json!({ "role": "tool", "tool_call_id": call["id"], "content": RESULT }));
        let (said, second) = self.turn(server);
        assert!(said["content"].as_str().unwrap().contains("snowy"), "{said}");
        [first, second]
    }
}

/// As clients of the Responses dialect have it: encrypted reasoning goes back and forth, or items
/// are referred to.
pub struct Responses {
    input: Vec<Value>,
    refers: bool,
    turns: usize,
    salt: Value,
}

impl Responses {
    pub fn new(refers: bool, salt: Value) -> Self {
        Self { input: Vec::new(), refers, turns: 0, salt }
    }

    fn turn(&mut self, server: &Server) -> (Vec<Value>, Tokens) {
        let body = json!({
            "model": "m", "input": self.input, "temperature": 0, "max_output_tokens": 200,
            "instructions": "You are helpful.", "store": self.refers,
            "include": ["reasoning.encrypted_content"], "cache_salt": self.salt,
            "tools": [
                { "type": "web_search" },
                { "type": "function", "name": "get_weather", "strict": false,
                  "description": "Get the weather in a city", "parameters": parameters() },
                { "type": "custom", "name": "apply_patch", "format": { "type": "grammar" } },
            ],
        });
        self.turns += 1;
        let response = if self.turns % 2 == 1 {
            server.ask("/v1/responses", &body)
        } else {
            server.stream("/v1/responses", &body).pop().unwrap()["response"].clone()
        };
        assert_eq!(response["status"], "completed", "{response}");
        let usage = &response["usage"];
        let tokens = Tokens {
            prompt: usage["input_tokens"].as_u64().unwrap(),
            cached: usage["input_tokens_details"]["cached_tokens"].as_u64().unwrap(),
            answer: usage["output_tokens"].as_u64().unwrap(),
        };
        let output = response["output"].as_array().unwrap().clone();
        assert_eq!(output[0]["type"], "reasoning");
        for item in &output {
            let mut item = item.clone();
            if self.refers {
                item = json!({ "type": "item_reference", "id": item["id"] });
            } else if item["type"] == "reasoning" {
                // Codex drops the text of reasoning.
                item["content"] = Value::Null;
            }
            self.input.push(item);
        }
        (output, tokens)
    }
}

impl Talk for Responses {
    fn ask_about(&mut self, server: &Server, city: &str) -> [Tokens; 2] {
        self.input.push(json!({ "role": "user", "content": [
            { "type": "input_text", "text": question(city) }] }));
        let (output, first) = self.turn(server);
        let call = output.last().unwrap();
        assert_eq!(call["type"], "function_call", "{call}");
        assert!(call["arguments"].as_str().unwrap().contains(city));
        self.input.push(json!({ "type": "function_call_output", "call_id": call["call_id"],
            "output": RESULT }));
        let (output, second) = self.turn(server);
        let text = &output.last().unwrap()["content"][0]["text"];
        assert!(text.as_str().unwrap().contains("snowy"), "{text}");
        [first, second]
    }
}

/// As a coding agent has it: a line at the head that is new each time, marks for caching that
/// move, instructions between turns, thinking with signatures.
pub struct Messages {
    pub messages: Vec<Value>,
    turns: usize,
    salt: Value,
}

impl Messages {
    pub fn new(salt: Value) -> Self {
        Self { messages: Vec::new(), turns: 0, salt }
    }

    pub fn request(&self) -> Value {
        let mut messages = self.messages.clone();
        if let Some(last) = messages.last_mut() {
            let block = last["content"].as_array_mut().and_then(|content| content.last_mut());
            block.unwrap()["cache_control"] = json!({ "type": "ephemeral" });
        }
        let nonce = 1000 + self.turns;
        let attribution = format!("x-anthropic-billing-header: n={nonce}; c={nonce:x};");
        json!({
            "model": "claude-opus", "max_tokens": 200, "temperature": 0, "messages": messages,
            "cache_salt": self.salt, "metadata": { "user_id": "u" },
            "system": [
                { "type": "text", "text": attribution },
                { "type": "text", "text": "You are helpful.",
                  "cache_control": { "type": "ephemeral" } },
            ],
            "thinking": { "type": "enabled", "budget_tokens": 1024 },
            "tools": [
                { "name": "get_weather", "description": "Get the weather in a city",
                  "input_schema": parameters() },
                { "type": "web_search_20250305", "name": "web_search", "max_uses": 5 },
            ],
        })
    }

    fn turn(&mut self, server: &Server) -> (Value, Tokens) {
        let request = self.request();
        let counted = server.ask("/v1/messages/count_tokens?beta=true", &request);
        let answer = server.ask("/v1/messages?beta=true", &request);
        let usage = &answer["usage"];
        let cached = usage["cache_read_input_tokens"].as_u64().unwrap();
        let prompt = usage["input_tokens"].as_u64().unwrap() + cached;
        assert_eq!(counted, json!({ "input_tokens": prompt }));
        let tokens = Tokens { prompt, cached, answer: usage["output_tokens"].as_u64().unwrap() };
        let mut content = answer["content"].clone();
        assert_eq!(content[0]["type"], "thinking");
        assert_ne!(content[0]["signature"], "");
        self.turns += 1;
        if self.turns.is_multiple_of(2) {
            // Hidden: only the signature is left of it.
            content[0]["thinking"] = "".into();
        }
        self.messages.push(json!({ "role": "assistant", "content": content }));
        (answer, tokens)
    }
}

impl Talk for Messages {
    fn ask_about(&mut self, server: &Server, city: &str) -> [Tokens; 2] {
        let text = json!([{ "type": "text", "text": question(city) }]);
        self.messages.push(json!({ "role": "user", "content": text }));
        if self.turns == 2 {
            let reminder = json!([{ "type": "text", "text": "Be brief." }]);
            self.messages.push(json!({ "role": "system", "content": reminder }));
        }
        let (answer, first) = self.turn(server);
        assert_eq!(answer["stop_reason"], "tool_use", "{answer}");
        let call = answer["content"].as_array().unwrap().last().unwrap();
        assert_eq!(call["input"], json!({ "city": city }));
        self.messages.push(json!({ "role": "user", "content": [{ "type": "tool_result",
            "tool_use_id": call["id"], "content": [{ "type": "text", "text": RESULT }] }] }));
        let (answer, second) = self.turn(server);
        assert_eq!(answer["stop_reason"], "end_turn");
        let text = answer["content"].as_array().unwrap().last().unwrap();
        assert!(text["text"].as_str().unwrap().contains("snowy"), "{text}");
        [first, second]
    }
}
