use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::prompt::{Conversation, Ending, Message, Rendered, Thinking, ToolCall};
use crate::tokenizer::{ASSISTANT, EOS};

/// A stream: pieces as in [`Piece`], owned.
#[derive(Debug, Clone, PartialEq)]
enum Token {
    Text(String),
    Think,
    EndThink,
    Marker,
}

impl Token {
    fn piece(&self) -> Piece<'_> {
        match self {
            Self::Text(text) => Piece::Text(text),
            Self::Think => Piece::Think,
            Self::EndThink => Piece::EndThink,
            Self::Marker => Piece::Marker,
        }
    }
}

/// Reads `¤` as the marker and `‹think›`, `‹/think›` as those tokens; all else is text.
fn stream(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let names = [("¤", Token::Marker), ("‹think›", Token::Think), ("‹/think›", Token::EndThink)];
    while !rest.is_empty() {
        let next = names.iter().filter_map(|(name, token)| Some((rest.find(name)?, name, token)));
        let Some((at, name, token)) = next.min_by_key(|(at, ..)| *at) else {
            tokens.push(Token::Text(rest.to_owned()));
            break;
        };
        tokens.push(Token::Text(rest[..at].to_owned()));
        tokens.push(token.clone());
        rest = &rest[at + name.len()..];
    }
    tokens
}

/// The tokens of a rendered reply.
fn rendered_stream(rendered: &Rendered, from: usize) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut end = from;
    for range in rendered.control().iter().filter(|range| range.start >= from) {
        tokens.push(Token::Text(rendered.text()[end..range.start].to_owned()));
        tokens.push(match &rendered.text()[range.clone()] {
            THINK => Token::Think,
            END_THINK => Token::EndThink,
            DSML => Token::Marker,
            other => Token::Text(other.to_owned()),
        });
        end = range.end;
    }
    tokens.push(Token::Text(rendered.text()[end..].to_owned()));
    tokens
}

/// Joins neighbours of one kind.
fn join(events: Vec<Event>) -> Vec<Event> {
    let mut joined: Vec<Event> = Vec::new();
    for event in events {
        match (joined.last_mut(), event) {
            (Some(Event::Text(before)), Event::Text(text))
            | (Some(Event::Reasoning(before)), Event::Reasoning(text)) => before.push_str(&text),
            (
                Some(Event::ToolArguments { index: before, fragment: all }),
                Event::ToolArguments { index, fragment },
            ) if *before == index => all.push_str(&fragment),
            (_, event) => joined.push(event),
        }
    }
    joined
}

fn parse(reasoning: bool, tokens: &[Token]) -> Vec<Event> {
    let mut parser = Parser::new(reasoning);
    let mut events = Vec::new();
    for token in tokens {
        parser.push(token.piece(), &mut events);
    }
    parser.finish(&mut events);
    join(events)
}

/// The same stream with every text cut into characters.
fn characters(tokens: &[Token]) -> Vec<Token> {
    let cut = |token: &Token| match token {
        Token::Text(text) => text.chars().map(|c| Token::Text(c.to_string())).collect(),
        other => vec![other.clone()],
    };
    tokens.iter().flat_map(cut).collect()
}

fn text(text: &str) -> Event {
    Event::Text(text.to_owned())
}

fn reasoning(text: &str) -> Event {
    Event::Reasoning(text.to_owned())
}

fn call(index: usize, name: &str, arguments: &str) -> [Event; 3] {
    [
        Event::ToolCallBegin { index, name: name.to_owned() },
        Event::ToolArguments { index, fragment: arguments.to_owned() },
        Event::ToolCallEnd { index },
    ]
}

fn malformed(call: Option<usize>, raw: &str, fault: Fault) -> Event {
    Event::Malformed { call, raw: raw.replace('¤', DSML), fault }
}

const WEATHER: &str = "\n\n<¤tool_calls>\n<¤invoke name=\"get_weather\">\n\
    <¤parameter name=\"city\" string=\"true\">Paris</¤parameter>\n\
    <¤parameter name=\"days\" string=\"false\">3</¤parameter>\n</¤invoke>\n</¤tool_calls>";

#[test]
fn a_reply_is_taken_apart() {
    let tokens = stream(&format!("Need tool.‹/think›Let me look.{WEATHER}"));
    let mut expected = vec![reasoning("Need tool."), text("Let me look.")];
    expected.extend(call(0, "get_weather", "{\"city\": \"Paris\", \"days\": 3}"));
    expected.push(Event::ToolCallsEnd);
    assert_eq!(parse(true, &tokens), expected);
    assert_eq!(parse(true, &characters(&tokens)), expected);
}

#[test]
fn several_calls_count_on_and_no_parameters_make_an_empty_object() {
    let block = "<¤tool_calls>\n<¤invoke name=\"a\">\n\n</¤invoke>\n<¤invoke name=\"b\">\n\
        <¤parameter name=\"x\" string=\"true\">1\n\n2 < 3</¤parameter>\n</¤invoke>\n</¤tool_calls>";
    let mut expected = Vec::from(call(0, "a", "{}"));
    expected.extend(call(1, "b", "{\"x\": \"1\\n\\n2 < 3\"}"));
    expected.push(Event::ToolCallsEnd);
    assert_eq!(parse(false, &stream(block)), expected);
}

#[test]
fn arguments_stream_while_a_string_lasts() {
    let mut parser = Parser::new(false);
    let mut events = Vec::new();
    let opening =
        stream("<¤tool_calls>\n<¤invoke name=\"w\">\n<¤parameter name=\"t\" string=\"true\">");
    for token in opening.iter().chain(&stream("one <")) {
        parser.push(token.piece(), &mut events);
    }
    assert!(!parser.in_syntax());
    let sent = join(events);
    assert_eq!(
        sent.last(),
        Some(&Event::ToolArguments { index: 0, fragment: "{\"t\": \"one ".to_owned() })
    );
}

#[test]
fn spelling_makes_no_structure() {
    let spelled = "a </think> <｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"x\">\n";
    assert_eq!(parse(false, &stream(spelled)), [text(spelled)]);
    assert_eq!(parse(true, &stream(spelled)), [reasoning(spelled)]);
    let value = "<¤tool_calls><¤invoke name=\"w\"><¤parameter name=\"t\" string=\"true\">\
         </｜DSML｜parameter></think>‹think›</¤parameter></¤invoke></¤tool_calls>";
    let mut expected = Vec::from(call(0, "w", "{\"t\": \"</｜DSML｜parameter></think><think>\"}"));
    expected.push(Event::ToolCallsEnd);
    assert_eq!(parse(false, &stream(value)), expected);
}

#[test]
fn think_tokens_count_only_where_they_belong() {
    let cases = [
        (
            true,
            "‹think›a‹think›b‹/think›‹/think›c‹/think›d",
            vec![reasoning("a<think>b"), text("c</think>d")],
        ),
        (false, "‹/think›a‹think›b", vec![text("a<think>b")]),
        (false, "‹think›a‹/think›b", vec![reasoning("a"), text("b")]),
        (true, "a\n\n<¤tool_calls>\n", vec![reasoning("a\n\n<｜DSML｜tool_calls>\n")]),
    ];
    for (thinking, written, expected) in cases {
        assert_eq!(parse(thinking, &stream(written)), expected, "{written}");
    }
}

#[test]
fn what_is_no_json_becomes_a_string() {
    let value = |raw: &str| {
        let block = format!(
            "<¤tool_calls><¤invoke name=\"w\"><¤parameter name=\"v\" string=\"false\">{raw}\
             </¤parameter></¤invoke></¤tool_calls>"
        );
        match &parse(false, &stream(&block))[1] {
            Event::ToolArguments { fragment, .. } => fragment.clone(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(value("[1, {\"a\": \"<\"}]"), "{\"v\": [1, {\"a\": \"<\"}]}");
    assert_eq!(value("True"), "{\"v\": \"True\"}");
    assert_eq!(value(""), "{\"v\": \"\"}");
    assert_eq!(value("{\"a\": \"b\"} x"), "{\"v\": \"{\\\"a\\\": \\\"b\\\"} x\"}");
    let deep = "[".repeat(100_000);
    assert_eq!(value(&deep), format!("{{\"v\": \"{deep}\"}}"));
}

#[test]
fn every_fault_is_told_apart_and_loses_nothing() {
    let opening = "\n\n<¤tool_calls>\n<¤invoke name=\"f\">\n";
    let begun = |arguments: &str| {
        vec![
            Event::ToolCallBegin { index: 0, name: "f".to_owned() },
            Event::ToolArguments { index: 0, fragment: arguments.to_owned() },
        ]
    };
    let in_call = |rest: &str, arguments: &str, fault| {
        let raw = format!("{opening}{rest}");
        let mut expected = begun(arguments);
        expected.push(malformed(Some(0), &raw, fault));
        (raw, expected)
    };
    let open = "<¤parameter name=\"a\" string=\"true\">";
    let cases = [
        ("a ¤ b".to_owned(), vec![text("a "), malformed(None, "¤", Fault::Stray), text(" b")]),
        (
            "a\n</¤tool_calls>b".to_owned(),
            vec![text("a"), malformed(None, "\n</¤tool_calls>", Fault::Stray), text("b")],
        ),
        ("a¤".to_owned(), vec![text("a"), malformed(None, "¤", Fault::Stray)]),
        (
            "a\n\n<¤tool_calls>\n</¤tool_calls>b".to_owned(),
            vec![
                text("a"),
                malformed(None, "\n\n<¤tool_calls>\n</¤tool_calls>", Fault::Empty),
                text("b"),
            ],
        ),
        (
            "<¤invoke name=\"f\">x</¤invoke>\n</¤tool_calls>b".to_owned(),
            vec![
                malformed(None, "<¤invoke name=\"f\">x</¤invoke>\n</¤tool_calls>", Fault::Tag),
                text("b"),
            ],
        ),
        ("<¤tool_calls>hm".to_owned(), vec![malformed(None, "<¤tool_calls>hm", Fault::Text)]),
        in_call("", "{}", Fault::Unterminated),
        in_call("junk", "{}", Fault::Text),
        in_call(&format!("{open}x"), "{\"a\": \"x\"}", Fault::Unterminated),
        in_call(&format!("{open}x<"), "{\"a\": \"x\"}", Fault::Unterminated),
        in_call(&format!("{open}x</¤param"), "{\"a\": \"x\"}", Fault::Unterminated),
        in_call(&format!("{open}x</¤invoke>\n"), "{\"a\": \"x\"}", Fault::Tag),
        in_call(&format!("{open}x<¤y"), "{\"a\": \"x\"}", Fault::Tag),
        in_call(&format!("{open}x<¤parameter>"), "{\"a\": \"x\"}", Fault::Tag),
        in_call(&format!("{open}x¤y"), "{\"a\": \"x\"}", Fault::Tag),
        in_call(&format!("{open}x</¤parameter>\n{open}"), "{\"a\": \"x\"}", Fault::Duplicate),
        in_call("<¤parameter name=\"a\" string=\"false\">[1", "{}", Fault::Unterminated),
        in_call(
            &format!("{open}x</¤parameter><¤parameter name=\"b\" string=\"false\">[1"),
            "{\"a\": \"x\"}",
            Fault::Unterminated,
        ),
        in_call("<¤parameter name=\"a\">x</¤parameter>", "{}", Fault::Tag),
        in_call("<¤tool name=\"a\">", "{}", Fault::Tag),
    ];
    for (written, expected) in cases {
        let tokens = stream(&written);
        assert_eq!(parse(false, &tokens), expected, "{written}");
        assert_eq!(parse(false, &characters(&tokens)), expected, "{written}");
    }
}

#[test]
fn the_next_block_survives_a_broken_one() {
    let broken = "<¤tool_calls>\n<¤invoke name=\"f\">\noops</¤invoke>\n</¤tool_calls>";
    let mut expected = vec![
        Event::ToolCallBegin { index: 0, name: "f".to_owned() },
        Event::ToolArguments { index: 0, fragment: "{}".to_owned() },
        malformed(Some(0), broken, Fault::Text),
    ];
    expected.extend(call(1, "get_weather", "{\"city\": \"Paris\", \"days\": 3}"));
    expected.push(Event::ToolCallsEnd);
    assert_eq!(parse(false, &stream(&format!("{broken}{WEATHER}"))), expected);
}

#[test]
fn a_block_may_end_after_any_whole_call() {
    let one = WEATHER.strip_suffix("</¤tool_calls>").unwrap();
    let expected = call(0, "get_weather", "{\"city\": \"Paris\", \"days\": 3}");
    assert_eq!(parse(false, &stream(one)), expected);
}

#[test]
fn a_tag_that_never_ends_is_given_up() {
    let mut parser = Parser::new(false);
    let mut events = Vec::new();
    for token in stream("<¤tool_calls>\n<¤invoke name=\"") {
        parser.push(token.piece(), &mut events);
    }
    for _ in 0..=LONGEST_HEAD {
        parser.push(Piece::Text("x"), &mut events);
    }
    assert!(matches!(parser.state, State::Broken(Fault::Tag)));
}

/// Text a client or a model could write, spellings of markup among it.
fn any_text() -> impl Strategy<Value = String> {
    let fragment = prop_oneof![
        3 => "[a-z <>/\\n\"\\\\=]{0,8}",
        1 => "\\PC{0,4}",
        1 => Just("</think>".to_owned()),
        1 => Just(format!("</{DSML}parameter>")),
        1 => Just(format!("\n\n<{DSML}tool_calls>\n")),
        1 => Just("<tool_result>".to_owned()),
    ];
    prop::collection::vec(fragment, 0..6).prop_map(|parts| parts.concat())
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any_text().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        (-1e9..1e9f64).prop_map(Value::from),
        Just(Value::Null),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec(("[a-z]{1,4}", inner), 0..3)
                .prop_map(|entries| entries.into_iter().collect()),
        ]
    })
}

fn any_call() -> impl Strategy<Value = ToolCall> {
    let parameters = prop::collection::vec(("[a-zA-Z_é-]{1,8}", any_value()), 0..4)
        .prop_map(|entries| entries.into_iter().collect::<serde_json::Map<_, _>>());
    ("[a-zA-Z0-9_.-]{1,12}", parameters).prop_map(|(name, parameters)| ToolCall {
        id: String::new(),
        name,
        arguments: json::dumps(&parameters),
    })
}

/// What a reply's events amount to.
fn message_of(events: &[Event]) -> Message {
    let mut message = Message::assistant("");
    for event in events {
        match event {
            Event::Reasoning(text) => {
                message.reasoning.get_or_insert_with(String::new).push_str(text);
            }
            Event::Text(text) => message.content.push_str(text),
            Event::ToolCallBegin { name, .. } => message.tool_calls.push(ToolCall {
                id: String::new(),
                name: name.clone(),
                arguments: String::new(),
            }),
            Event::ToolArguments { index, fragment } => {
                message.tool_calls[*index].arguments.push_str(fragment);
            }
            Event::ToolCallEnd { .. } | Event::ToolCallsEnd => {}
            Event::Malformed { .. } => panic!("{event:?}"),
        }
    }
    message
}

/// Pieces of a stream in which anything may follow anything.
fn any_stream() -> impl Strategy<Value = Vec<Token>> {
    let token = prop_oneof![
        3 => Just(Token::Marker),
        1 => Just(Token::Think),
        1 => Just(Token::EndThink),
        2 => "[a-z<>/\\n ]{0,4}".prop_map(Token::Text),
        6 => prop::sample::select(vec![
            "<", "</", "\n\n<", "\n", "tool_calls>", "invoke>", "parameter>", "invoke name=\"f\">",
            "parameter name=\"a\" string=\"true\">", "parameter name=\"b\" string=\"false\">",
            "parameter name=\"", "tool_", "calls>\n<", "1", "{}", "\">", "x</", ">\n</", "é", "\"",
        ]).prop_map(|text| Token::Text(text.to_owned())),
        2 => prop::sample::select(vec![
            "\n\n<¤tool_calls>\n<¤invoke name=\"f\">\n",
            "<¤parameter name=\"c\" string=\"true\">v</¤parameter>\n",
            "<¤parameter name=\"d\" string=\"false\">[1]</¤parameter>\n",
            "</¤invoke>\n", "</¤tool_calls>",
        ]).prop_map(|text| Token::Text(text.to_owned())),
    ];
    prop::collection::vec(token, 0..24).prop_map(|tokens| {
        tokens
            .iter()
            .flat_map(|token| match token {
                Token::Text(text) => stream(text),
                other => vec![other.clone()],
            })
            .collect()
    })
}

/// Checks what holds for every reply.
fn check(tokens: &[Token], events: &[Event]) {
    let mut arguments: Vec<String> = Vec::new();
    let mut open = None;
    for event in events {
        match event {
            Event::Text(text) => assert!(!text.contains(DSML)),
            Event::Reasoning(_) | Event::ToolCallsEnd => assert_eq!(open, None),
            Event::ToolCallBegin { index, name } => {
                assert_eq!((open, *index), (None, arguments.len()));
                assert!(!name.contains(DSML));
                open = Some(*index);
                arguments.push(String::new());
            }
            Event::ToolArguments { index, fragment } => {
                assert_eq!(open, Some(*index));
                arguments[*index].push_str(fragment);
            }
            Event::ToolCallEnd { index } => {
                assert_eq!(open, Some(*index));
                open = None;
            }
            Event::Malformed { call, raw, .. } => {
                assert_eq!(open, *call);
                assert!(!raw.is_empty());
                open = None;
            }
        }
    }
    assert_eq!(open, None);
    for arguments in arguments {
        assert!(!arguments.contains(DSML));
        let parsed = serde_json::from_str::<serde_json::Map<_, _>>(&arguments);
        assert!(parsed.is_ok(), "{arguments}");
    }
    // Nothing is lost: white space between tags aside, the stream can be told from the events.
    assert_eq!(without_blanks(&written(events)), without_blanks(&spelled(tokens)));
}

fn spelled(tokens: &[Token]) -> String {
    tokens
        .iter()
        .map(|token| match token {
            Token::Text(text) => text.as_str(),
            // Swallowed in some places: left out everywhere.
            Token::Think | Token::EndThink => "",
            Token::Marker => DSML,
        })
        .collect()
}

/// The stream that whole calls and raw markup stand for.
fn written(events: &[Event]) -> String {
    let mut text = String::new();
    let mut begun = (0, String::new(), String::new());
    let mut block_open = false;
    for event in events {
        match event {
            Event::Text(piece) | Event::Reasoning(piece) => {
                text.push_str(&piece.replace(THINK, "").replace(END_THINK, ""));
            }
            Event::ToolCallBegin { name, .. } => begun = (text.len(), name.clone(), String::new()),
            Event::ToolArguments { fragment, .. } => begun.2.push_str(fragment),
            Event::ToolCallEnd { .. } => {
                if !block_open {
                    text.push_str(&format!("<{DSML}tool_calls>"));
                }
                block_open = true;
                text.push_str(&format!("<{DSML}invoke name=\"{}\">", begun.1));
                for (name, value) in json::parameters(&begun.2) {
                    let (string, value) = match value {
                        Value::String(value) => ("true", value),
                        other => ("false", json::dumps(&other)),
                    };
                    text.push_str(&format!(
                        "<{DSML}parameter name=\"{name}\" string=\"{string}\">{value}\
                         </{DSML}parameter>"
                    ));
                }
                text.push_str(&format!("</{DSML}invoke>"));
            }
            Event::ToolCallsEnd => {
                text.push_str(&format!("</{DSML}tool_calls>"));
                block_open = false;
            }
            Event::Malformed { raw, .. } => {
                text.push_str(&raw.replace(THINK, "").replace(END_THINK, ""));
                block_open = false;
            }
        }
    }
    text
}

/// Without white space, and without the difference between `string="true"` and `"false"`, which a
/// value that is not JSON loses.
fn without_blanks(text: &str) -> String {
    text.split_whitespace().collect::<String>().replace("string=\"false\"", "string=\"true\"")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_rendered_reply_reads_back(
        reasoning in any_text(),
        content in any_text(),
        calls in prop::collection::vec(any_call(), 0..3),
    ) {
        let message = Message {
            reasoning: (!reasoning.is_empty()).then_some(reasoning),
            content,
            tool_calls: calls,
            ..Message::assistant("")
        };
        let conversation = Conversation {
            messages: vec![Message::user("u"), message.clone()],
            thinking: Thinking::On,
            ending: Ending::Closed,
            ..Conversation::default()
        };
        let rendered = conversation.render();
        let reply = rendered.text().find(ASSISTANT).unwrap() + ASSISTANT.len() + THINK.len();
        let mut tokens = rendered_stream(&rendered, reply);
        let end = tokens.iter().rposition(|token| *token == Token::Text(EOS.to_owned())).unwrap();
        tokens.truncate(end);
        let events = parse(true, &tokens);
        prop_assert_eq!(message_of(&events), message);
        prop_assert_eq!(parse(true, &characters(&tokens)), events);
    }

    #[test]
    fn any_stream_is_read_whole(tokens in any_stream(), reasoning in any::<bool>()) {
        let events = parse(reasoning, &tokens);
        check(&tokens, &events);
        prop_assert_eq!(parse(reasoning, &characters(&tokens)), events);
    }
}
