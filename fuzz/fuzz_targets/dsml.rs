//! The tool call parser on any sequence of markup, control tokens and text, cut anywhere.
//!
//! `mkdir -p fuzz/corpus/dsml && cargo +nightly fuzz run dsml`
#![no_main]

use candle_ds4::prompt::{Event, Parser, Piece};
use libfuzzer_sys::fuzz_target;

const MARKER: &str = "｜DSML｜";

/// What a byte of input writes; `¤` is a marker token. No text spells the marker, so that finding
/// it in text means that a token leaked.
const FRAGMENTS: [&str; 40] = [
    "<",
    "</",
    "\n",
    "\n\n<",
    "\n\n<¤tool_calls>\n",
    "<¤tool_calls>",
    "</¤tool_calls>",
    "tool_calls>",
    "tool_",
    "calls>",
    "<¤invoke name=\"f\">\n",
    "</¤invoke>\n",
    "invoke name=\"",
    "invoke>",
    "\">",
    "<¤parameter name=\"a\" string=\"true\">",
    "<¤parameter name=\"b\" string=\"false\">",
    "<¤parameter name=\"c\" string=\"true\">v</¤parameter>\n",
    "<¤parameter name=\"d\" string=\"false\">[1, {}]</¤parameter>\n",
    "</¤parameter>",
    "parameter>",
    "parameter name=\"",
    "\" string=\"true\">",
    "\" string=\"false\">",
    "1",
    "{\"x\": ",
    "}",
    "\"",
    "\\",
    " ",
    "\t\u{1}",
    "é😀",
    "True",
    "<think>",
    "</think>",
    "DSML",
    "|",
    "<|",
    ">",
    "=",
];

#[derive(Clone)]
enum Token {
    Text(String),
    Think,
    EndThink,
    Marker,
}

/// Reads input bytes as a stream. Free text carries a character that occurs nowhere else, so that
/// it can be found again.
fn stream(data: &[u8]) -> (Vec<Token>, Vec<char>) {
    let (mut tokens, mut planted) = (Vec::new(), Vec::new());
    let mut bytes = data.iter().copied();
    while let Some(byte) = bytes.next() {
        match usize::from(byte) {
            index if index < FRAGMENTS.len() => {
                for (part, text) in FRAGMENTS[index].split('¤').enumerate() {
                    if part > 0 {
                        tokens.push(Token::Marker);
                    }
                    tokens.push(Token::Text(text.to_owned()));
                }
            }
            40..=79 => tokens.push(Token::Marker),
            80..=89 => tokens.push(Token::Think),
            90..=99 => tokens.push(Token::EndThink),
            length => {
                let free: Vec<u8> = bytes.by_ref().take(length % 8).collect();
                let mark = char::from_u32(0xf_0000 + planted.len() as u32);
                let mut text = String::from_utf8_lossy(&free).into_owned();
                if let Some(mark) = mark.filter(|_| !text.contains('｜')) {
                    text.push(mark);
                    planted.push(mark);
                    tokens.push(Token::Text(text));
                }
            }
        }
    }
    (tokens, planted)
}

/// The events of a stream, each text cut into `step` characters, neighbours of one kind joined.
fn parse(tokens: &[Token], reasoning: bool, step: usize) -> Vec<Event> {
    let mut parser = Parser::new(reasoning);
    let mut events = Vec::new();
    for token in tokens {
        match token {
            Token::Text(text) => {
                let characters: Vec<char> = text.chars().collect();
                for piece in characters.chunks(step) {
                    parser.push(Piece::Text(&String::from_iter(piece)), &mut events);
                }
            }
            Token::Think => parser.push(Piece::Think, &mut events),
            Token::EndThink => parser.push(Piece::EndThink, &mut events),
            Token::Marker => parser.push(Piece::Marker, &mut events),
        }
    }
    parser.finish(&mut events);
    let mut joined: Vec<Event> = Vec::new();
    for event in events {
        match (joined.last_mut(), event) {
            (Some(Event::Text(all)), Event::Text(text))
            | (Some(Event::Reasoning(all)), Event::Reasoning(text)) => all.push_str(&text),
            (
                Some(Event::ToolArguments { fragment: all, .. }),
                Event::ToolArguments { fragment, .. },
            ) => all.push_str(&fragment),
            (_, event) => joined.push(event),
        }
    }
    joined
}

fuzz_target!(|data: &[u8]| {
    let (tokens, planted) = stream(data);
    for reasoning in [false, true] {
        let events = parse(&tokens, reasoning, usize::MAX);
        assert_eq!(events, parse(&tokens, reasoning, 1));
        assert_eq!(events, parse(&tokens, reasoning, 3));

        let mut said = String::new();
        let (mut open, mut calls) = (None, 0);
        for event in &events {
            match event {
                Event::Reasoning(text) => said.push_str(text),
                Event::Text(text) => {
                    assert!(open.is_none() && !text.contains(MARKER));
                    said.push_str(text);
                }
                Event::ToolCallBegin { index, name } => {
                    assert!(open.is_none() && !name.contains(MARKER));
                    assert_eq!(*index, calls);
                    open = Some(*index);
                    calls += 1;
                    said.push_str(name);
                }
                Event::ToolArguments { index, fragment } => {
                    assert_eq!(open, Some(*index));
                    assert!(!fragment.contains(MARKER));
                    let object = serde_json::from_str::<serde_json::Map<_, _>>(fragment);
                    assert!(object.is_ok(), "{fragment}");
                    said.push_str(fragment);
                }
                Event::ToolCallEnd { index } => assert_eq!(open.take(), Some(*index)),
                Event::ToolCallsEnd => assert!(open.is_none() && calls > 0),
                Event::Malformed { call, raw, .. } => {
                    assert_eq!(open.take(), *call);
                    said.push_str(raw);
                }
            }
        }
        assert!(open.is_none());
        for mark in &planted {
            assert!(said.contains(*mark), "lost {mark:?}");
        }
    }
});
