use super::*;
use crate::server::played::{self, reading, replies, spelled};
use crate::server::sse::{Encode, Frames};
use crate::server::{Event, Kind, Whole};
use proptest::prelude::*;
use serde_json::Value;

fn head(shows_reasoning: bool) -> Head {
    let (id, model) = ("msg_0".to_owned(), "m".to_owned());
    Head { id, model, request_id: "req_0".to_owned(), shows_reasoning }
}

fn streamed(events: &[Event], shows_reasoning: bool) -> Vec<(String, Value)> {
    let mut blocks = Blocks::new(head(shows_reasoning));
    let mut frames = Frames::new();
    for event in events {
        blocks.event(0, event.clone(), &mut frames);
    }
    blocks.close(&mut frames);
    played::frames(&mut frames)
}

/// Reads a stream as Anthropic's clients do, strictly: every event where the grammar has it.
fn message(frames: &[(String, Value)]) -> Value {
    let mut message = Value::Null;
    let mut arguments = String::new();
    let mut open: Option<usize> = None;
    let mut blocks = 0;
    let mut state = "message_start";
    for (name, data) in frames {
        assert_eq!(data["type"], **name);
        match name.as_str() {
            "message_start" => {
                assert_eq!(state, "message_start");
                state = "blocks";
                message = data["message"].clone();
                assert_eq!(message["content"], json!([]));
                assert!(message["stop_reason"].is_null());
                assert_eq!(message["usage"]["input_tokens"], 4);
                assert_eq!(message["usage"]["cache_read_input_tokens"], 3);
            }
            "ping" => assert_eq!(state, "blocks"),
            "content_block_start" => {
                assert!(state == "blocks" && open.is_none() && data["index"] == blocks);
                open = Some(blocks);
                blocks += 1;
                arguments.clear();
                let content = message["content"].as_array_mut().unwrap();
                content.push(data["content_block"].clone());
            }
            "content_block_delta" => {
                assert_eq!(data["index"], open.unwrap());
                let block = &mut message["content"][open.unwrap()];
                let delta = &data["delta"];
                let mut add = |field: &str, kind: &str| {
                    assert_eq!(block["type"], kind);
                    let text = delta[field].as_str().unwrap();
                    assert!(!text.is_empty(), "{delta}");
                    block[field] = (block[field].as_str().unwrap().to_owned() + text).into();
                };
                match delta["type"].as_str().unwrap() {
                    "text_delta" => add("text", "text"),
                    "thinking_delta" => add("thinking", "thinking"),
                    "signature_delta" => add("signature", "thinking"),
                    "input_json_delta" => {
                        assert_eq!(block["type"], "tool_use");
                        arguments.push_str(delta["partial_json"].as_str().unwrap());
                    }
                    other => panic!("{other}"),
                }
            }
            "content_block_stop" => {
                assert_eq!(data["index"], open.unwrap());
                let block = &mut message["content"][open.unwrap()];
                match block["type"].as_str().unwrap() {
                    "tool_use" => block["input"] = serde_json::from_str(&arguments).unwrap(),
                    "thinking" => assert_ne!(block["signature"], ""),
                    _ => {}
                }
                open = None;
            }
            "message_delta" => {
                assert!(state == "blocks" && open.is_none());
                state = "message_stop";
                message["stop_reason"] = data["delta"]["stop_reason"].clone();
                message["stop_sequence"] = data["delta"]["stop_sequence"].clone();
                // The end of a stream has fewer fields: clients take over those that it has.
                let told = data["usage"].as_object().unwrap().clone();
                message["usage"].as_object_mut().unwrap().extend(told);
                assert!(message["stop_reason"].is_string());
            }
            "message_stop" => {
                assert_eq!(state, "message_stop");
                state = "over";
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(state, "over");
    message
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn a_stream_says_what_the_object_says((text, finish) in replies(), thinks: bool, shows: bool) {
        let Ok((events, _)) = played::events(reading(thinks), None, &spelled(&text), finish) else {
            return Ok(());
        };
        let object = whole(&head(shows), &played::whole(&events));
        prop_assert_eq!(message(&streamed(&events, shows)), object);
    }
}

#[test]
fn an_answer_has_its_blocks_and_reasons() {
    let text = "hm]Well\n\n<¤tool_calls>\n<¤invoke name=\"add\">\n</¤invoke>\n</¤tool_calls>";
    let (events, _) =
        played::events(reading(true), None, &spelled(text), crate::engine::Finish::Stop).unwrap();
    let message = message(&streamed(&events, true));
    let kinds: Vec<&str> = message["content"]
        .as_array()
        .unwrap()
        .iter()
        .map(|block| block["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["thinking", "text", "tool_use"]);
    assert_eq!(message["stop_reason"], "tool_use");
    assert_eq!(message["usage"]["input_tokens"], 4);
    assert_eq!(message["usage"]["cache_read_input_tokens"], 3);
    let reason = |text: &str, finish| {
        let (events, _) = played::events(reading(false), None, &spelled(text), finish).unwrap();
        let object = whole(&head(true), &played::whole(&events));
        (object["stop_reason"].clone(), object["stop_sequence"].clone())
    };
    use crate::engine::Finish;
    assert_eq!(reason("a STOP b", Finish::Length), (json!("stop_sequence"), json!("STOP")));
    assert_eq!(reason("a", Finish::Stop), (json!("end_turn"), Value::Null));
    assert_eq!(reason("a", Finish::Length), (json!("max_tokens"), Value::Null));
    let full = (json!("model_context_window_exceeded"), Value::Null);
    assert_eq!(reason("a", Finish::Context), full);
    assert_eq!(whole(&head(true), &Whole::new())["content"], json!([]));
}

#[test]
fn an_error_in_a_stream_has_its_event() {
    let mut blocks = Blocks::new(head(true));
    let mut frames = Frames::new();
    blocks.error(&ApiError::new(Kind::Server, "no"), &mut frames);
    let frames = played::frames(&mut frames);
    let error = json!({ "type": "error", "error": { "type": "api_error", "message": "no" },
        "request_id": "req_0" });
    assert_eq!(frames, [("error".to_owned(), error)]);
}
