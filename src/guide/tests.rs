mod random;

use std::collections::HashSet;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{json, Map};

use super::*;
use crate::demo::demo_model;
use crate::gguf::Gguf;
use crate::prompt::{Event, Reader, Thinking};

fn tokenizer() -> Arc<Tokenizer> {
    let gguf = Gguf::from_bytes(demo_model()).unwrap();
    Arc::new(Tokenizer::from_gguf(&gguf).unwrap())
}

/// Asked for a few tokens a guide says of them what it says if it looks at all.
fn near_the_best_nothing_is_different(guide: &mut dyn engine::Guide, logits: &[f32], reach: f32) {
    let (mut near, mut all) = (logits.to_vec(), logits.to_vec());
    guide.restrict(&mut near, Some(reach)).unwrap();
    guide.restrict(&mut all, None).unwrap();
    let best = all.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for (id, (near, all)) in near.iter().zip(&all).enumerate() {
        let same = near == all || *near == f32::NEG_INFINITY && *all < best - reach;
        assert!(same, "token {id}: {near} and {all}, the best is {best}, reach {reach}");
    }
}

/// A reply that a model without any sense would write, but one that likes to end things.
fn babble(guide: &mut dyn engine::Guide, tokenizer: &Tokenizer, random: &mut StdRng) -> Vec<u32> {
    let control = tokenizer.control();
    let closes = |id: u32| {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        let quote = bytes.ends_with(b"\"") || bytes.ends_with(b"\",") || bytes.ends_with(b"</");
        quote || bytes.iter().all(|byte| b"]}>".contains(byte))
    };
    let bias: Vec<f32> = (0..tokenizer.vocab_size() as u32)
        .map(|id| match id {
            id if id == control.eos || id == control.dsml || id == control.end_think => 14.0,
            id if tokenizer.is_control(id) => -30.0,
            id if closes(id) => 8.0,
            _ => 0.0,
        })
        .collect();
    let mut reply = Vec::new();
    for _ in 0..3000 {
        let mut logits: Vec<f32> =
            bias.iter().map(|b| b + random.random_range(0.0..10.0)).collect();
        // Few or many tokens near the best one.
        let scale = [1.0, 4.0, 30.0][random.random_range(0..3)];
        let scaled: Vec<f32> = logits.iter().map(|logit| scale * logit).collect();
        near_the_best_nothing_is_different(guide, &scaled, random.random_range(0.0..6.0));
        guide.restrict(&mut logits, None).unwrap();
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        assert!(logits[best].is_finite(), "nothing may follow {:?}", tokenizer.decode(&reply));
        guide.accept(best as u32).unwrap();
        if best as u32 == control.eos {
            return reply;
        }
        reply.push(best as u32);
    }
    panic!("no end: {:?}", tokenizer.decode(&reply));
}

/// Text and calls of a reply.
fn read(
    reply: &[u32],
    tokenizer: &Tokenizer,
    thinking: Thinking,
) -> (String, Vec<(String, Value)>) {
    let mut reader = Reader::new(tokenizer, thinking);
    let mut events: Vec<Event> = reply.iter().flat_map(|&id| reader.push(tokenizer, id)).collect();
    events.extend(reader.finish());
    let (mut text, mut calls) = (String::new(), Vec::<(String, String)>::new());
    for event in events {
        match event {
            Event::Text(more) => text.push_str(&more),
            Event::ToolCallBegin { name, .. } => calls.push((name, String::new())),
            Event::ToolArguments { fragment, .. } => {
                calls.last_mut().unwrap().1.push_str(&fragment)
            }
            Event::Malformed { raw, fault, .. } => {
                panic!("{fault}: {raw:?} in {:?}", tokenizer.decode(reply))
            }
            _ => {}
        }
    }
    let calls = calls.into_iter().map(|(name, text)| (name, serde_json::from_str(&text).unwrap()));
    (text, calls.collect())
}

fn random_tools(random: &mut StdRng) -> Vec<Tool> {
    let tools = random::tools(random).into_iter();
    tools.map(|(name, parameters)| Tool::new(name, "", parameters)).collect()
}

fn is_valid(schema: &Value, value: &Value) -> bool {
    jsonschema::is_valid(schema, value)
}

/// As many as CI has time for; `DS4_GUIDE_CASES` of them otherwise.
fn cases() -> u64 {
    std::env::var("DS4_GUIDE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(200)
}

#[test]
fn whatever_a_model_babbles_is_a_valid_call_of_a_declared_tool() {
    let tokenizer = tokenizer();
    let guides = Guides::new(tokenizer.clone()).unwrap();
    let mut several = false;
    for seed in 0..cases() {
        let random = &mut StdRng::seed_from_u64(seed);
        let tools = random_tools(random);
        let parallel = random.random();
        let reasoning = random.random();
        let named = tools[random.random_range(0..tools.len())].name();
        let calls = if random.random() { Calls::Required } else { Calls::Named(named) };
        let wanted = Wanted { reasoning, tools: &tools, calls, parallel, text: Text::Free };
        let mut guide = guides.guide(&wanted).unwrap();
        let reply = babble(guide.as_mut(), &tokenizer, random);
        let thinking = if reasoning { Thinking::On } else { Thinking::Off };
        let (text, called) = read(&reply, &tokenizer, thinking);
        assert_eq!(text, "", "seed {seed}");
        assert!(!called.is_empty() && (parallel || called.len() == 1), "seed {seed}");
        several |= called.len() > 1;
        for (name, arguments) in called {
            if let Calls::Named(named) = calls {
                assert_eq!(name, named, "seed {seed}");
            }
            let tool = tools.iter().find(|tool| tool.name() == name).unwrap();
            let schema = &tool.function()["parameters"];
            assert!(is_valid(schema, &arguments), "seed {seed}: {arguments} by {schema}");
        }
    }
    assert!(several, "no reply has called twice");
}

#[test]
fn whatever_a_model_babbles_follows_the_response_schema() {
    let tokenizer = tokenizer();
    let guides = Guides::new(tokenizer.clone()).unwrap();
    for seed in 0..cases() {
        let random = &mut StdRng::seed_from_u64(seed);
        let schema = random::object(random, 3);
        let wanted = Wanted { text: Text::Schema(&schema), ..Wanted::default() };
        let mut guide = guides.guide(&wanted).unwrap();
        let reply = babble(guide.as_mut(), &tokenizer, random);
        let (text, calls) = read(&reply, &tokenizer, Thinking::Off);
        assert!(calls.is_empty());
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(is_valid(&schema, &value), "seed {seed}: {text} by {schema}");
    }
    let wanted = Wanted { text: Text::Object, ..Wanted::default() };
    let random = &mut StdRng::seed_from_u64(1);
    let reply = babble(guides.guide(&wanted).unwrap().as_mut(), &tokenizer, random);
    let (text, _) = read(&reply, &tokenizer, Thinking::Off);
    assert!(serde_json::from_str::<Value>(&text).unwrap().is_object(), "{text}");
}

#[test]
fn optional_calls_leave_text_free_and_are_whole_once_begun() {
    let tokenizer = tokenizer();
    let guides = Guides::new(tokenizer.clone()).unwrap();
    let random = &mut StdRng::seed_from_u64(3);
    let tools = random_tools(random);
    let wanted = Wanted { tools: &tools, calls: Calls::Optional, ..Wanted::default() };
    let marker = tokenizer.control().dsml as usize;
    let size = tokenizer.vocab_size();
    let mut guide = guides.guide(&wanted).unwrap();
    for (text, may_call) in [("a <b> c", false), ("\n\n<", true), ("x", false), ("\n\n<", true)] {
        for token in tokenizer.encode(text) {
            guide.accept(token).unwrap();
        }
        let mut logits = vec![0.0; size];
        guide.restrict(&mut logits, None).unwrap();
        let forbidden: Vec<usize> = (0..size).filter(|&id| logits[id] != 0.0).collect();
        assert_eq!(forbidden, if may_call { vec![] } else { vec![marker] }, "after {text:?}");
    }
    let mut whole = tokenizer.encode("a <b> c\n\n<x\n\n<");
    guide.accept(marker as u32).unwrap();
    whole.push(marker as u32);
    whole.extend(babble(guide.as_mut(), &tokenizer, random));
    let (text, calls) = read(&whole, &tokenizer, Thinking::Off);
    assert_eq!(text, "a <b> c\n\n<x");
    assert!(!calls.is_empty());

    let mut guide = guides.guide(&Wanted::default()).unwrap();
    guide.accept(*tokenizer.encode("<").last().unwrap()).unwrap();
    let mut logits = vec![0.0; size];
    guide.restrict(&mut logits, None).unwrap();
    assert_eq!(logits[marker], f32::NEG_INFINITY, "no tools, no marker");
    assert!(guide.accept(marker as u32).is_err());
}

#[test]
fn json_or_calls_are_both_open_where_both_are_wanted() {
    let tokenizer = tokenizer();
    let guides = Guides::new(tokenizer.clone()).unwrap();
    let random = &mut StdRng::seed_from_u64(4);
    let tools = random_tools(random);
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}},
        "required": ["a"], "additionalProperties": false});
    let text = Text::Schema(&schema);
    let wanted = Wanted { tools: &tools, calls: Calls::Optional, text, ..Wanted::default() };
    let mut seen = HashSet::new();
    for seed in 0..20 {
        let random = &mut StdRng::seed_from_u64(seed);
        let reply = babble(guides.guide(&wanted).unwrap().as_mut(), &tokenizer, random);
        let (text, calls) = read(&reply, &tokenizer, Thinking::Off);
        if calls.is_empty() {
            assert!(is_valid(&schema, &serde_json::from_str(&text).unwrap()), "{text}");
        } else {
            assert_eq!(text, "");
        }
        seen.insert(calls.is_empty());
    }
    assert_eq!(seen.len(), 2, "both happen");
}

#[test]
fn parameters_come_in_any_order_but_once_and_the_required_ones_at_all() {
    let tokenizer = tokenizer();
    let guides = Guides::new(tokenizer.clone()).unwrap();
    let schema = json!({"type": "object", "properties": {"a": {"type": "string"},
        "b": {"type": "integer"}, "c": {"type": "boolean"}}, "required": ["c", "a"]});
    let tools = [Tool::new("f", "", schema)];
    let wanted = Wanted { tools: &tools, calls: Calls::Required, ..Wanted::default() };
    let marker = tokenizer.control().dsml;
    let accepts = |parameters: &[&str]| {
        let mut guide = guides.guide(&wanted).unwrap();
        let mut text = "\n\n<¤tool_calls>\n<¤invoke name=\"f\">\n".to_owned();
        for parameter in parameters {
            let value = match *parameter {
                "a" => "\"a\" string=\"true\">x</div> & 1 < 2",
                "b" => "\"b\" string=\"false\">-7",
                _ => "\"c\" string=\"false\">true",
            };
            text.push_str(&format!("<¤parameter name={value}</¤parameter>\n"));
        }
        text.push_str("</¤invoke>\n</¤tool_calls>");
        for (index, part) in text.split('¤').enumerate() {
            let marker = (index > 0).then_some(marker);
            for token in marker.into_iter().chain(tokenizer.encode(part)) {
                let mut logits = vec![0.0; tokenizer.vocab_size()];
                guide.restrict(&mut logits, None).unwrap();
                if logits[token as usize] != 0.0 {
                    return false;
                }
                guide.accept(token).unwrap();
            }
        }
        true
    };
    for good in [&["a", "c"][..], &["c", "a"], &["b", "c", "a"], &["c", "b", "a"], &["a", "b", "c"]]
    {
        assert!(accepts(good), "{good:?}");
    }
    for bad in
        [&["a"][..], &[], &["b", "c"], &["a", "c", "a"], &["a", "c", "c"], &["b", "b", "a", "c"]]
    {
        assert!(!accepts(bad), "{bad:?}");
    }
}

#[test]
fn what_cannot_be_enforced_is_refused_if_strict_and_loosened_if_not() {
    let tokenizer = tokenizer();
    let guides = Guides::new(tokenizer.clone()).unwrap();
    let odd = json!({"type": "object", "properties": {"a": {"type": "array", "items":
        {"type": "integer"}, "contains": {"const": 3}, "unevaluatedItems": false}}, "required": ["a"]});
    let loose = Tool::new("f", "", odd.clone());
    let strict: Tool = serde_json::from_value(json!({"type": "function", "function":
        {"name": "f", "strict": true, "parameters": odd.clone()}}))
    .unwrap();
    let guide = |tools: &[Tool], text: Text<'_>, calls: Calls<'_>| {
        guides.guide(&Wanted { tools, calls, text, ..Wanted::default() }).map(|mut guide| {
            read(
                &babble(guide.as_mut(), &tokenizer, &mut StdRng::seed_from_u64(1)),
                &tokenizer,
                Thinking::Off,
            )
        })
    };
    let (_, calls) = guide(std::slice::from_ref(&loose), Text::Free, Calls::Required).unwrap();
    assert!(calls[0].1["a"].is_array(), "{calls:?}");
    let error = guide(&[strict], Text::Free, Calls::Required).unwrap_err();
    assert!(error.to_string().contains("\"a\" of tool \"f\""), "{error}");
    let error = guide(&[], Text::Schema(&odd), Calls::Never).unwrap_err();
    assert!(matches!(error, GuideError::Schema { .. }), "{error}");
    let error = guide(&[loose], Text::Free, Calls::Named("g")).unwrap_err();
    assert_eq!(error, GuideError::UnknownTool("g".to_owned()));
    assert_eq!(guide(&[], Text::Free, Calls::Required).unwrap_err(), GuideError::NoTools);
}

#[test]
fn tools_without_a_plain_schema_take_any_parameters() {
    let tokenizer = tokenizer();
    let guides = Guides::new(tokenizer.clone()).unwrap();
    let odd = [
        json!({}),
        json!({"type": "object"}),
        json!({"anyOf": [{"type": "object", "properties": {"a": {}}}]}),
        json!({"type": "object", "properties": {}}),
        json!(null),
        json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}},
            "$defs": {"b": {"enum": ["x", "y"]}}, "required": ["a", "undeclared"]}),
        json!({"type": "object", "properties": (0..70).map(|i| (format!("p{i}"),
            json!({"type": "boolean"}))).collect::<Map<_, _>>(), "required": ["p69", "p0"]}),
    ];
    for schema in odd {
        let tools = [Tool::new("f", "", schema.clone())];
        let wanted = Wanted { tools: &tools, calls: Calls::Required, ..Wanted::default() };
        for seed in 0..5 {
            let mut guide = guides.guide(&wanted).unwrap();
            let reply = babble(guide.as_mut(), &tokenizer, &mut StdRng::seed_from_u64(seed));
            let (_, calls) = read(&reply, &tokenizer, Thinking::Off);
            if schema.is_object() {
                assert!(is_valid(&schema, &calls[0].1), "{} by {schema}", calls[0].1);
            }
        }
    }
}
