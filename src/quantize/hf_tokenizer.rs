//! A checkpoint's `tokenizer.json` as GGUF metadata.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use serde_json::Value as Json;

use super::checkpoint::json;
use super::error::{QuantizeError, Result};
use crate::gguf::{Metadata, Strings};

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Adds the vocabulary of the folder's `tokenizer.json` to `out`.
pub(super) fn describe(folder: &Path, config: &Json, out: &mut Metadata) -> Result<()> {
    let path = folder.join("tokenizer.json");
    let file = json(&path)?;
    let wrong = |problem: String| QuantizeError::file(&path, problem);
    let model = file.get("model").filter(|model| model.get("type") == Some(&"BPE".into()));
    let model = model.ok_or_else(|| wrong("it holds no BPE model".to_owned()))?;
    let vocab = model.get("vocab").and_then(Json::as_object);
    let vocab = vocab.ok_or_else(|| wrong("model.vocab is missing".to_owned()))?;
    let added = file.get("added_tokens").and_then(Json::as_array);

    let size = out.usize("deepseek4.vocab_size")?;
    if size > 1 << 24 {
        return Err(wrong(format!("config.json asks for {size} tokens")));
    }
    let mut tokens: Vec<Option<(&str, i32)>> = vec![None; size];
    let mut put = |text: &str, id: Option<u64>, token| {
        let place = id.and_then(|id| tokens.get_mut(usize::try_from(id).ok()?));
        match place {
            Some(place) => {
                *place = Some(token);
                Ok(())
            }
            None => Err(wrong(format!("token {text:?} has no number below {size}"))),
        }
    };
    for (token, id) in vocab {
        put(token, id.as_u64(), (token.as_str(), NORMAL))?;
    }
    for token in added.into_iter().flatten() {
        let text = token.get("content").and_then(Json::as_str);
        let text = text.ok_or_else(|| wrong("an added token has no content".to_owned()))?;
        let special = token.get("special").and_then(Json::as_bool).unwrap_or(false);
        let kind = if special { CONTROL } else { USER_DEFINED };
        put(text, token.get("id").and_then(Json::as_u64), (text, kind))?;
    }
    let merges = model.get("merges").and_then(Json::as_array);
    let merges = merges.ok_or_else(|| wrong("model.merges is missing".to_owned()))?;
    let merge = |(index, merge): (usize, &Json)| {
        let pair = merge.as_array().and_then(|pair| match pair.as_slice() {
            [left, right] => Some(format!("{} {}", left.as_str()?, right.as_str()?)),
            _ => None,
        });
        let merge = pair.or_else(|| merge.as_str().map(str::to_owned));
        merge.ok_or_else(|| wrong(format!("model.merges[{index}] is no pair of tokens")))
    };
    let merges = merges.iter().enumerate().map(merge).collect::<Result<Strings>>()?;

    out.insert("tokenizer.ggml.model", "gpt2")?;
    out.insert("tokenizer.ggml.pre", "joyai-llm")?;
    // Numbers without a token still need distinct texts.
    let text = |(id, token): (usize, &Option<(&str, i32)>)| match token {
        Some((text, _)) => (*text).to_owned(),
        None => format!("[PAD{id}]"),
    };
    let texts: Strings = tokens.iter().enumerate().map(text).collect();
    out.insert("tokenizer.ggml.tokens", texts)?;
    let kinds: Vec<i32> = tokens.iter().map(|token| token.map_or(UNUSED, |t| t.1)).collect();
    out.insert("tokenizer.ggml.token_type", kinds)?;
    out.insert("tokenizer.ggml.merges", merges)?;
    for (key, name) in [
        ("tokenizer.ggml.bos_token_id", "bos_token_id"),
        ("tokenizer.ggml.eos_token_id", "eos_token_id"),
        ("tokenizer.ggml.padding_token_id", "pad_token_id"),
    ] {
        let id = config.get(name).and_then(Json::as_u64).and_then(|id| u32::try_from(id).ok());
        if let Some(id) = id {
            out.insert(key, id)?;
        }
    }
    out.insert("tokenizer.ggml.add_bos_token", false)?;
    out.insert("tokenizer.ggml.add_eos_token", false)?;
    if let Ok(template) = fs::read_to_string(folder.join("chat_template.jinja")) {
        out.insert("tokenizer.chat_template", template)?;
    }
    Ok(())
}
