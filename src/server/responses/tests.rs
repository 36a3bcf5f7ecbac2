use super::*;
use crate::engine::Namespace;
use crate::server::played::{self, reading, replies, spelled, tokenizer};
use crate::server::sse::{Encode, Frames};
use crate::server::{Event, Kind};
use proptest::prelude::*;
use serde_json::Value;

const OWNER: Namespace = Namespace([1; 16]);

fn items(summary: bool, kept: &Arc<Kept>) -> Items {
    let echo = request::Echo {
        body: serde_json::Map::new(),
        model: "m".to_owned(),
        temperature: 1.0,
        top_p: 1.0,
        parallel_tool_calls: true,
        store: true,
        summary,
        encrypted: false,
    };
    let kept = Some((Arc::clone(kept), OWNER));
    Items::new(Resource { id: "resp_0".to_owned(), created: 1, tokenizer: tokenizer(), kept, echo })
}

fn streamed(events: &[Event], summary: bool, kept: &Arc<Kept>) -> Vec<(String, Value)> {
    let mut items = items(summary, kept);
    let mut frames = Frames::new();
    for event in events {
        items.event(0, event.clone(), &mut frames);
    }
    items.close(&mut frames);
    played::frames(&mut frames)
}

/// Reads a stream strictly and puts the response together from its deltas, which must say what the
/// last event says.
fn response(frames: &[(String, Value)]) -> Value {
    let mut output: Vec<Value> = Vec::new();
    let mut open = false;
    for (at, (name, data)) in frames.iter().enumerate() {
        assert_eq!(data["type"], **name);
        assert_eq!(data["sequence_number"], at);
        let name = name.strip_prefix("response.").unwrap();
        let last = at + 1 == frames.len();
        assert_eq!(name == "created", at == 0);
        assert_eq!(name == "in_progress", at == 1);
        assert_eq!(matches!(name, "completed" | "incomplete" | "failed"), last, "{name}");
        if at < 2 || last {
            assert!(last || data["response"]["status"] == "in_progress");
            continue;
        }
        if name == "output_item.added" {
            assert!(!open && data["output_index"] == output.len());
            assert_eq!(data["item"]["status"], "in_progress");
            output.push(data["item"].clone());
            open = true;
            continue;
        }
        assert!(open && data["output_index"] == output.len() - 1, "{name}");
        let item = output.last_mut().unwrap();
        if name == "output_item.done" {
            // Status and note are known at the end only.
            item["status"] = data["item"]["status"].clone();
            item["encrypted_content"] = data["item"]["encrypted_content"].clone();
            if item["type"] != "reasoning" {
                item.as_object_mut().unwrap().remove("encrypted_content");
            }
            assert_eq!(*item, data["item"]);
            open = false;
            continue;
        }
        assert_eq!(data["item_id"], item["id"]);
        let append = |text: &mut Value, delta: &Value| {
            let delta = delta.as_str().unwrap();
            assert!(!delta.is_empty());
            *text = (text.as_str().unwrap().to_owned() + delta).into();
        };
        match name {
            "content_part.added" => {
                assert_eq!(data["content_index"], item["content"].as_array().unwrap().len());
                item["content"].as_array_mut().unwrap().push(data["part"].clone());
            }
            "reasoning_summary_part.added" => {
                assert_eq!(data["summary_index"], item["summary"].as_array().unwrap().len());
                item["summary"].as_array_mut().unwrap().push(data["part"].clone());
            }
            "output_text.delta" | "reasoning_text.delta" => {
                append(&mut item["content"][0]["text"], &data["delta"]);
            }
            "reasoning_summary_text.delta" => {
                append(&mut item["summary"][0]["text"], &data["delta"]);
            }
            "function_call_arguments.delta" => append(&mut item["arguments"], &data["delta"]),
            "output_text.done" | "reasoning_text.done" => {
                assert_eq!(data["text"], item["content"][0]["text"]);
            }
            "content_part.done" => assert_eq!(data["part"], item["content"][0]),
            "reasoning_summary_text.done" => assert_eq!(data["text"], item["summary"][0]["text"]),
            "reasoning_summary_part.done" => assert_eq!(data["part"], item["summary"][0]),
            "function_call_arguments.done" => {
                assert_eq!(data["arguments"], item["arguments"]);
                let arguments = item["arguments"].as_str().unwrap();
                assert!(serde_json::from_str::<serde_json::Map<_, _>>(arguments).is_ok());
            }
            other => panic!("{other}"),
        }
    }
    assert!(!open);
    let (name, last) = frames.last().unwrap();
    let response = last["response"].clone();
    assert_eq!(*name, format!("response.{}", response["status"].as_str().unwrap()));
    assert_eq!(response["output"], Value::from(output));
    response
}

/// The same with items called by their place, since their ids are new each time.
fn without_ids(mut response: Value) -> Value {
    for (index, item) in response["output"].as_array_mut().unwrap().iter_mut().enumerate() {
        item["id"] = index.into();
    }
    response["completed_at"] = Value::Null;
    response
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn a_stream_says_what_the_object_says((text, finish) in replies(), thinks: bool, shows: bool) {
        let Ok((events, _)) = played::events(reading(thinks), None, &spelled(&text), finish) else {
            return Ok(());
        };
        let kept = Arc::default();
        let object = items(shows, &kept).whole(played::whole(&events));
        let streamed = response(&streamed(&events, shows, &kept));
        prop_assert_eq!(without_ids(streamed), without_ids(object));
    }
}

#[test]
fn items_can_be_referred_to() {
    let text = "hm]Well\n\n<¤tool_calls>\n<¤invoke name=\"add\">\n</¤invoke>\n</¤tool_calls>";
    let (mut events, _) =
        played::events(reading(true), None, &spelled(text), crate::engine::Finish::Stop).unwrap();
    for event in &mut events {
        if let Event::ReasoningEnd { replay } = event {
            *replay = Some("note".to_owned());
        }
    }
    let kept = Arc::default();
    let response = response(&streamed(&events, false, &kept));
    let output = response["output"].as_array().unwrap();
    assert!(output[0]["encrypted_content"].is_null(), "it was not asked for");
    let mut input = vec![json!({ "role": "user", "content": "Hi" })];
    let refer = |item: &Value| json!({ "type": "item_reference", "id": item["id"] });
    input.extend(output.iter().map(refer));
    let mut reader = item::Reader::new(&kept, OWNER);
    reader.items(&input, "input").unwrap();
    let messages = reader.finish();
    assert_eq!(messages.len(), 2);
    let back = &messages[1];
    assert_eq!(back.reasoning.as_deref(), Some("hm"));
    assert_eq!((back.content.as_str(), back.tool_calls.len()), ("Well", 1));
    assert_eq!(back.replay.as_deref(), Some("note"));
    let mut stranger = item::Reader::new(&kept, Namespace::default());
    let error = stranger.items(&input, "input").unwrap_err();
    assert_eq!(error.param.as_deref(), Some("input[1].id"));
}

#[test]
fn a_call_that_was_cut_off_is_incomplete() {
    let text = "hm]\n\n<¤tool_calls>\n<¤invoke name=\"add\">\n<¤parameter name=\"a\" \
        string=\"true\">half";
    let (events, _) =
        played::events(reading(true), None, &spelled(text), crate::engine::Finish::Length).unwrap();
    let response = response(&streamed(&events, false, &Arc::default()));
    assert_eq!(response["status"], "incomplete");
    assert_eq!(response["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(response["output"][1]["status"], "incomplete");
}

#[test]
fn a_failure_is_the_last_event() {
    let mut items = items(false, &Arc::default());
    let mut frames = Frames::new();
    items.error(&ApiError::new(Kind::Server, "no"), &mut frames);
    let response = response(&played::frames(&mut frames));
    assert_eq!(response["error"], json!({ "code": "server_error", "message": "no" }));
}

#[test]
fn items_that_are_not_known_are_passed_over() {
    let kept = Kept::default();
    let mut reader = item::Reader::new(&kept, OWNER);
    let input = json!([
        { "type": "message", "role": "developer", "content": "a" },
        { "role": "user", "content": [{ "type": "input_text", "text": "b" }] },
        { "type": "web_search_call", "id": "ws_1", "status": "completed" },
        { "type": "reasoning", "summary": [], "encrypted_content": "foreign" },
        { "type": "custom_tool_call", "call_id": "c", "name": "patch", "input": "x" },
        { "type": "custom_tool_call_output", "call_id": "c", "output": "done" },
        { "type": "function_call_output", "call_id": "d", "output": [{ "type": "input_image" }] },
    ]);
    reader.items(input.as_array().unwrap(), "input").unwrap();
    let roles: Vec<_> = reader.finish().into_iter().map(|message| message.role).collect();
    use crate::prompt::Role::{Assistant, System, Tool, User};
    assert_eq!(roles, [System, User, Assistant, Tool, Tool]);
    let mut reader = item::Reader::new(&kept, OWNER);
    let image = json!([{ "role": "user", "content": [{ "type": "input_image" }] }]);
    let error = reader.items(image.as_array().unwrap(), "input").unwrap_err();
    assert_eq!(error.param.as_deref(), Some("input[0].content[0].type"));
}
