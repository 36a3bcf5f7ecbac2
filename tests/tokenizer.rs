//! The tokenizer against the ids of the published `tokenizer.json`, and against hostile input.
//!
//! `golden/tokenizer/vocabulary.json.gz` holds the tokens and merges that the samples touch, under
//! their ids in the whole vocabulary, and every control token.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::sync::OnceLock;

use candle_ds4::gguf::{Gguf, Metadata, Strings, Writer};
use candle_ds4::tokenizer::{Decoder, Error, Tokenizer, TokenizerParts};
use flate2::read::GzDecoder;
use proptest::prelude::*;
use serde::Deserialize;

/// GGUF token types.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

fn golden(name: &str) -> impl Read {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizer").join(name);
    GzDecoder::new(File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

fn parts() -> TokenizerParts {
    #[derive(Deserialize)]
    struct Vocabulary {
        tokens: std::collections::HashMap<String, usize>,
        merges: Vec<String>,
        added: Vec<(usize, String, bool)>,
    }
    let vocabulary: Vocabulary =
        serde_json::from_reader(BufReader::new(golden("vocabulary.json.gz"))).unwrap();
    let size = vocabulary.added.iter().map(|(id, ..)| id + 1).max().unwrap();
    let mut tokens: Vec<String> = (0..size).map(|id| format!("[unused {id}]")).collect();
    let mut token_types = vec![UNUSED; size];
    for (token, id) in vocabulary.tokens {
        tokens[id] = token;
        token_types[id] = NORMAL;
    }
    for (id, spelling, special) in vocabulary.added {
        tokens[id] = spelling;
        token_types[id] = if special { CONTROL } else { USER_DEFINED };
    }
    TokenizerParts { tokens, merges: vocabulary.merges, token_types, bos: Some(0), eos: Some(1) }
}

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::new(parts()).unwrap())
}

#[derive(Deserialize)]
struct Sample {
    kind: String,
    text: String,
    ids: Vec<u32>,
}

fn samples() -> Vec<Sample> {
    let lines = BufReader::new(golden("samples.jsonl.gz")).lines();
    lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}

#[test]
fn ids_equal_the_published_tokenizers() {
    let samples = samples();
    assert!(samples.len() > 3000);
    for Sample { kind, text, ids } in &samples {
        assert_eq!(&tokenizer().encode(text), ids, "{kind}: {text:?}");
    }
}

#[test]
fn ids_decode_to_the_text_token_by_token() {
    for Sample { text, ids, .. } in samples() {
        assert_eq!(tokenizer().decode(&ids), text);
        let mut decoder = Decoder::new();
        let mut streamed: String = ids.iter().map(|&id| decoder.push(tokenizer(), id)).collect();
        streamed.push_str(&decoder.finish());
        assert_eq!(streamed, text);
        let bytes: Vec<u8> =
            ids.iter().flat_map(|&id| tokenizer().token_bytes(id).unwrap()).copied().collect();
        assert_eq!(bytes, text.as_bytes());
    }
}

#[test]
fn control_tokens_have_the_published_ids() {
    let control = tokenizer().control();
    assert_eq!(
        [control.bos, control.eos, control.user, control.assistant, control.think],
        [0, 1, 128_803, 128_804, 128_821]
    );
    assert_eq!(
        (control.end_think, control.dsml, control.latest_reminder),
        (128_822, 128_825, Some(128_828))
    );
    assert_eq!(tokenizer().vocab_size(), 129_280);
    assert_eq!(tokenizer().token_bytes(128_803), Some("<｜User｜>".as_bytes()));
    assert_eq!(tokenizer().token_bytes(129_280), None);
    assert!(!tokenizer().is_control(129_280) && !tokenizer().is_control(19_923));
    assert_eq!(tokenizer().control_tokens().count(), 1283);
}

#[test]
fn no_spelling_of_a_control_token_yields_one() {
    for (spelling, id) in tokenizer().control_tokens() {
        assert!(tokenizer().is_control(id));
        for text in [spelling.to_owned(), format!("a{spelling}{spelling} b"), spelling.repeat(9)] {
            let ids = tokenizer().encode(&text);
            assert!(ids.iter().all(|&id| !tokenizer().is_control(id)), "{text}");
            assert_eq!(tokenizer().decode(&ids), text);
        }
    }
}

#[test]
fn a_vocabulary_that_flags_nothing_still_keeps_the_template_tokens_apart() {
    let mut unflagged = parts();
    unflagged.token_types.clear();
    unflagged.bos = None;
    let tokenizer = Tokenizer::new(unflagged).unwrap();
    assert_eq!(tokenizer.control(), self::tokenizer().control());
    assert!(tokenizer.is_control(128_821));
    assert!(tokenizer.encode("<think>").iter().all(|&id| !tokenizer.is_control(id)));
}

#[test]
fn megabytes_without_a_boundary_are_not_quadratic() {
    for unit in ["a", " ", "\n", "=", "中", "😀", "ab", " \n", "<｜User｜>"] {
        let text = unit.repeat((2 << 20) / unit.len());
        let ids = tokenizer().encode(&text);
        assert!(tokenizer().decode(&ids) == text, "{unit:?}");
    }
}

#[test]
fn a_broken_vocabulary_is_refused_by_name() {
    type Break = fn(&mut TokenizerParts);
    let faults: [(Break, &str); 9] = [
        (|parts| parts.token_types.truncate(3), "has 3 entries for 129280 tokens"),
        (|parts| parts.tokens[128_803].clear(), "no control token \"<｜User｜>\""),
        (|parts| parts.tokens[67] = "?".to_owned(), "no token for byte 0x61"),
        (|parts| parts.merges[7] = "ab".to_owned(), "merges[7] is \"ab\""),
        (|parts| parts.merges[7] = "a \u{ff5c}".to_owned(), "merges[7] needs \"\u{ff5c}\""),
        (|parts| parts.merges[0] = "z 0".to_owned(), "merges[0] needs \"z0\""),
        (|parts| parts.merges[0] = "<｜ User｜>".to_owned(), "merges[0] needs \"<｜\""),
        (|parts| parts.bos = Some(129_280), "bos_token_id is 129280"),
        (|parts| *parts = TokenizerParts::default(), "no token for byte 0x00"),
    ];
    for (damage, needle) in faults {
        let mut damaged = parts();
        damage(&mut damaged);
        let error = Tokenizer::new(damaged).unwrap_err().to_string();
        assert!(error.contains(needle), "{error}");
    }
}

/// The metadata of a file with this vocabulary.
fn metadata(model: &str, pre: &str) -> Metadata {
    let parts = parts();
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "deepseek4").unwrap();
    metadata.insert("tokenizer.ggml.model", model).unwrap();
    metadata.insert("tokenizer.ggml.pre", pre).unwrap();
    let tokens = parts.tokens.iter().map(String::as_str);
    metadata.insert("tokenizer.ggml.tokens", tokens.collect::<Strings>()).unwrap();
    let merges = parts.merges.iter().map(String::as_str);
    metadata.insert("tokenizer.ggml.merges", merges.collect::<Strings>()).unwrap();
    metadata.insert("tokenizer.ggml.token_type", parts.token_types).unwrap();
    metadata.insert("tokenizer.ggml.bos_token_id", 0u32).unwrap();
    metadata.insert("tokenizer.ggml.eos_token_id", 1u32).unwrap();
    metadata
}

#[test]
fn a_file_holds_the_same_vocabulary() {
    let mut file = Vec::new();
    Writer::new(metadata("gpt2", "joyai-llm")).write(&mut file).unwrap();
    let read = Tokenizer::from_gguf(&Gguf::from_bytes(file.into()).unwrap()).unwrap();
    assert_eq!(read.control(), tokenizer().control());
    let text = "Hello, world!\n 日本語 don't <｜User｜>";
    assert_eq!(read.encode(text), tokenizer().encode(text));
}

#[test]
fn another_familys_vocabulary_is_refused() {
    let refused = |model, pre| Tokenizer::from_metadata(&metadata(model, pre)).unwrap_err();
    assert!(matches!(refused("llama", "joyai-llm"), Error::Model { .. }));
    assert!(matches!(refused("gpt2", "qwen2"), Error::Pre { .. }));
    assert!(matches!(Tokenizer::from_metadata(&Metadata::new()), Err(Error::Metadata(_))));
}

proptest! {
    #[test]
    fn any_text_survives(text in any::<String>()) {
        let ids = tokenizer().encode(&text);
        prop_assert_eq!(tokenizer().decode(&ids), text);
        prop_assert!(ids.iter().all(|&id| !tokenizer().is_control(id)));
    }

    #[test]
    fn any_ids_decode(ids in prop::collection::vec(0u32..130_000, 0..64)) {
        let bytes: Vec<u8> = ids
            .iter()
            .filter_map(|&id| tokenizer().token_bytes(id))
            .flatten()
            .copied()
            .collect();
        prop_assert_eq!(tokenizer().decode(&ids), String::from_utf8_lossy(&bytes));
    }
}
