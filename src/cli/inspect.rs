//! `ds4 inspect`: what is in a GGUF file, for people and (`--json`) for programs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use serde_json::{json, Map, Value as Json};

use crate::gguf::{open_header, Array, Header, Metadata, TensorInfo, TensorType, Value};

/// Array items shown to people.
const SHOWN_ITEMS: usize = 6;

/// Arrays up to this length are whole in JSON; longer ones show [`SHOWN_ITEMS`].
const JSON_ITEMS: usize = 64;

/// Characters of a string shown to people.
const SHOWN_CHARS: usize = 100;

/// Lists the file at `path` on `out`: as text, or with `json` as one JSON object.
///
/// A file whose header is whole but whose data is cut short is listed too.
///
/// # Errors
/// The header is damaged (nothing is listed), data is missing (everything is listed), or `out`
/// fails.
pub fn run(path: &Path, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let (header, file_len) = open_header(path)?;
    let name = path.display().to_string();
    list(&name, &header, file_len, json, out)?;
    header.check_complete(file_len).context(name)
}

/// Lists a parsed header on `out`. `name` and `file_len` are the file's.
///
/// # Errors
/// Only those of `out`.
pub fn list(
    name: &str,
    header: &Header,
    file_len: u64,
    json: bool,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    if json {
        serde_json::to_writer_pretty(&mut *out, &to_json(header, file_len))?;
        writeln!(out)?;
    } else {
        print(name, header, file_len, out)?;
    }
    out.flush()
}

/// Sums over the tensor list.
#[derive(Default)]
struct Totals {
    /// By type id: tensors, elements, bytes.
    types: BTreeMap<u32, (u64, u64, u64)>,
    elements: u64,
    bytes: u64,
    /// Bytes with data that several tensors share counted once.
    distinct: u64,
}

impl Totals {
    fn of(tensors: &[TensorInfo]) -> Self {
        let mut totals = Self::default();
        let mut places = BTreeSet::new();
        for t in tensors {
            let (elements, bytes) = (t.elements(), t.len.unwrap_or(0));
            let row = totals.types.entry(t.ty.id()).or_default();
            row.0 += 1;
            // A hostile list can sum past 64 bits.
            row.1 = row.1.saturating_add(elements);
            row.2 = row.2.saturating_add(bytes);
            totals.elements = totals.elements.saturating_add(elements);
            totals.bytes = totals.bytes.saturating_add(bytes);
            if places.insert((t.offset, bytes)) {
                totals.distinct = totals.distinct.saturating_add(bytes);
            }
        }
        totals
    }
}

/// Bytes from the first tensor to the padded end of the last.
fn section_len(header: &Header) -> u64 {
    let len = header.expected_len().saturating_sub(header.data_start());
    len.checked_next_multiple_of(header.alignment()).unwrap_or(len)
}

fn print(name: &str, header: &Header, file_len: u64, out: &mut dyn Write) -> std::io::Result<()> {
    let (metadata, tensors) = (header.metadata(), header.tensors());
    writeln!(
        out,
        "{name}: GGUF version {}, {} bytes ({}), alignment {}",
        header.version(),
        grouped(file_len),
        size(file_len),
        header.alignment()
    )?;
    for line in summary(header) {
        writeln!(out, "{line}")?;
    }

    writeln!(out, "\nmetadata: {} entries", grouped(metadata.len() as u64))?;
    let keys = metadata.iter().map(|(k, _)| printable(k, usize::MAX));
    let rows = keys.zip(metadata.iter().map(|(_, v)| v));
    let rows: Vec<_> = rows.map(|(k, v)| [k, type_of(v), shown(v)]).collect();
    table(out, &rows, [false, false, false])?;

    writeln!(out, "\ntensors: {}", grouped(tensors.len() as u64))?;
    let mut rows = vec![["name", "type", "ne", "bytes", "offset"].map(String::from)];
    rows.extend(tensors.iter().map(|t| {
        [
            printable(&t.name, usize::MAX),
            t.ty.to_string(),
            shape(&t.dims),
            t.len.map_or_else(|| "?".to_owned(), grouped),
            grouped(t.offset),
        ]
    }));
    table(out, &rows, [false, false, false, true, true])?;

    let totals = Totals::of(tensors);
    writeln!(out, "\ntypes")?;
    let mut rows = vec![["type", "tensors", "parameters", "bytes"].map(String::from)];
    rows.extend(totals.types.iter().map(|(id, (count, elements, bytes))| {
        let ty = TensorType::from_id(*id);
        let bytes = if ty.block().is_some() { grouped(*bytes) } else { "?".to_owned() };
        [ty.to_string(), grouped(*count), grouped(*elements), bytes]
    }));
    table(out, &rows, [false, true, true, true])?;

    writeln!(out, "\nparameters: {}", grouped(totals.elements))?;
    writeln!(out, "tensor data: {} bytes ({})", grouped(totals.bytes), size(totals.bytes))?;
    writeln!(out, "data section: {} bytes with padding", grouped(section_len(header)))?;
    if totals.distinct < totals.bytes {
        writeln!(
            out,
            "stored: {} bytes ({}), because tensors share data",
            grouped(totals.distinct),
            size(totals.distinct)
        )?;
    }
    let foreign: BTreeSet<String> =
        tensors.iter().filter(|t| !t.ty.is_loadable()).map(|t| t.ty.to_string()).collect();
    if !foreign.is_empty() {
        let foreign: Vec<String> = foreign.into_iter().collect();
        writeln!(out, "not supported for inference: {}", foreign.join(", "))?;
    }
    Ok(())
}

/// Two lines about the model, for the architecture that this program runs; none for others.
fn summary(header: &Header) -> Vec<String> {
    let metadata = header.metadata();
    if metadata.str("general.architecture").ok() != Some("deepseek4") {
        return Vec::new();
    }
    let n = |key: &str| {
        let value = metadata.u64(&format!("deepseek4.{key}"));
        value.map_or_else(|_| "?".to_owned(), grouped)
    };
    let ratios = metadata.u32s("deepseek4.attention.compress_ratios").unwrap_or_default();
    let blocks = metadata.usize("deepseek4.block_count").unwrap_or(0);
    let mut kinds = BTreeMap::new();
    // The array may have one more entry, for the draft block.
    for ratio in ratios.iter().take(blocks) {
        *kinds.entry(*ratio).or_insert(0u32) += 1;
    }
    let kinds: Vec<String> = kinds
        .iter()
        .map(|(ratio, count)| match ratio {
            0 => format!("{count} window"),
            r => format!("{count} of ratio {r}"),
        })
        .collect();
    let kinds = if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) };
    vec![
        format!(
            "DeepSeek V4: {} layers{kinds}, hidden {}, {} heads of {}, vocabulary {}, context {}",
            n("block_count"),
            n("embedding_length"),
            n("attention.head_count"),
            n("attention.key_length"),
            n("vocab_size"),
            n("context_length"),
        ),
        format!(
            "{} experts a layer, {} + {} shared a token; gate/up {}, down {}, attention {}, output {}",
            n("expert_count"),
            n("expert_used_count"),
            n("expert_shared_count"),
            types_of(header, "ffn_gate_exps.weight"),
            types_of(header, "ffn_down_exps.weight"),
            types_of(header, "attn_q_b.weight"),
            types_of(header, "output.weight"),
        ),
    ]
}

/// The types of all tensors with this name, in any block: a file may mix them by layer.
fn types_of(header: &Header, leaf: &str) -> String {
    let named = |t: &&TensorInfo| {
        let rest = t.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        rest.map_or(t.name.as_str(), |(_, leaf)| leaf) == leaf
    };
    let types = header.tensors().iter().filter(named).map(|t| t.ty.to_string());
    let types: BTreeSet<String> = types.collect();
    if types.is_empty() {
        return "?".to_owned();
    }
    types.into_iter().collect::<Vec<_>>().join("/")
}

/// Rows in columns, each as wide as its widest cell; `right` says which are flush right.
fn table<const N: usize>(
    out: &mut dyn Write,
    rows: &[[String; N]],
    right: [bool; N],
) -> std::io::Result<()> {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in rows {
        let mut line = String::from(" ");
        for ((cell, width), right) in row.iter().zip(widths).zip(right) {
            let cell = if right { format!(" {cell:>width$}") } else { format!(" {cell:<width$}") };
            line.push_str(&cell);
            line.push(' ');
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn type_of(value: &Value) -> String {
    match value {
        Value::Array(array) => {
            format!("{}[{}]", array.item_type().name(), grouped(array.len() as u64))
        }
        other => other.describe(),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::U8(v) => v.to_string(),
        Value::I8(v) => v.to_string(),
        Value::U16(v) => v.to_string(),
        Value::I16(v) => v.to_string(),
        Value::U32(v) => v.to_string(),
        Value::I32(v) => v.to_string(),
        Value::U64(v) => v.to_string(),
        Value::I64(v) => v.to_string(),
        Value::F32(v) => v.to_string(),
        Value::F64(v) => v.to_string(),
        Value::Bool(v) => v.to_string(),
        Value::String(v) => {
            format!("\"{}\"", printable(&String::from_utf8_lossy(v), SHOWN_CHARS))
        }
        Value::Array(array) => {
            let items = (0..array.len()).take(SHOWN_ITEMS).filter_map(|i| array.get(i));
            let mut items: Vec<String> = items.map(|v| shown(&v)).collect();
            if array.len() > SHOWN_ITEMS {
                items.push("…".to_owned());
            }
            format!("[{}]", items.join(", "))
        }
    }
}

/// The text with quotes and everything unprintable escaped (a file must not steer the terminal),
/// cut after `limit` characters.
fn printable(text: &str, limit: usize) -> String {
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == limit {
            out.push('…');
            break;
        }
        if c == '\'' {
            out.push(c);
        } else {
            out.extend(c.escape_debug());
        }
    }
    out
}

fn shape(dims: &[u64]) -> String {
    let dims: Vec<String> = dims.iter().map(u64::to_string).collect();
    format!("[{}]", dims.join(", "))
}

/// `1234567` as `1,234,567`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A size in the largest fitting unit.
fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => format!("{:.2} {unit}", bytes as f64 / (1u64 << shift) as f64),
        None => format!("{bytes} B"),
    }
}

fn to_json(header: &Header, file_len: u64) -> Json {
    let totals = Totals::of(header.tensors());
    let tensors = header.tensors().iter().map(|t| {
        json!({
            "name": t.name,
            "type": t.ty.to_string(),
            "type_id": t.ty.id(),
            "ne": t.dims,
            "bytes": t.len,
            "offset": t.offset,
        })
    });
    let types = totals.types.iter().map(|(id, (count, elements, bytes))| {
        let ty = TensorType::from_id(*id);
        json!({
            "type": ty.to_string(),
            "type_id": id,
            "tensors": count,
            "parameters": elements,
            "bytes": ty.block().map(|_| bytes),
            "supported": ty.is_loadable(),
        })
    });
    let mut object = Map::new();
    object.insert("version".into(), header.version().into());
    object.insert("file_bytes".into(), file_len.into());
    object.insert("alignment".into(), header.alignment().into());
    object.insert("data_start".into(), header.data_start().into());
    object.insert("summary".into(), summary(header).into());
    object.insert("metadata".into(), metadata_json(header.metadata()));
    object.insert("tensor_count".into(), header.tensors().len().into());
    object.insert("tensors".into(), tensors.collect());
    object.insert("types".into(), types.collect());
    object.insert("parameters".into(), totals.elements.into());
    object.insert("data_bytes".into(), totals.bytes.into());
    object.insert("section_bytes".into(), section_len(header).into());
    object.insert("stored_bytes".into(), totals.distinct.into());
    let complete = header.check_complete(file_len);
    object.insert("complete".into(), complete.is_ok().into());
    if let Err(problem) = complete {
        object.insert("problem".into(), problem.to_string().into());
    }
    Json::Object(object)
}

fn metadata_json(metadata: &Metadata) -> Json {
    let entries = metadata.iter().map(|(key, value)| (key.to_owned(), value_json(value)));
    Json::Object(entries.collect())
}

fn value_json(value: &Value) -> Json {
    match value {
        Value::U8(v) => json!(v),
        Value::I8(v) => json!(v),
        Value::U16(v) => json!(v),
        Value::I16(v) => json!(v),
        Value::U32(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::U64(v) => json!(v),
        Value::I64(v) => json!(v),
        // JSON has no NaN or infinity: they become null.
        Value::F32(v) => json!(v),
        Value::F64(v) => json!(v),
        Value::Bool(v) => json!(v),
        Value::String(v) => json!(String::from_utf8_lossy(v)),
        Value::Array(array) => array_json(array),
    }
}

fn array_json(array: &Array) -> Json {
    let whole = array.len() <= JSON_ITEMS;
    let shown = if whole { array.len() } else { SHOWN_ITEMS };
    let items: Vec<Json> =
        (0..shown).filter_map(|i| array.get(i)).map(|v| value_json(&v)).collect();
    if whole {
        items.into()
    } else {
        json!({ "type": array.item_type().name(), "length": array.len(), "first": items })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Strings, Writer};

    fn model() -> Vec<u8> {
        let mut m = Metadata::new();
        m.insert("general.architecture", "deepseek4").unwrap();
        m.insert("deepseek4.block_count", 3u32).unwrap();
        m.insert("deepseek4.vocab_size", 129_280u32).unwrap();
        m.insert("deepseek4.attention.compress_ratios", vec![0i32, 4, 128, 0]).unwrap();
        m.insert("few", vec![1u8; JSON_ITEMS]).unwrap();
        m.insert("many", (0..65).map(f64::from).collect::<Vec<_>>()).unwrap();
        m.insert("tokens", Strings::from_iter(["\x1b[2J", "\"", "é", "4", "5", "6", "7"])).unwrap();
        let mut w = Writer::new(m);
        w.tensor_bytes("blk.0.ffn_gate_exps.weight", &[256], TensorType::IQ2_XXS, [0; 66]).unwrap();
        w.tensor_bytes("blk.1.ffn_gate_exps.weight", &[256], TensorType::Q4_K, [0; 144]).unwrap();
        w.alias("blk.2.ffn_gate_exps.weight", "blk.0.ffn_gate_exps.weight").unwrap();
        w.tensor_bytes("output.weight", &[32, 2], TensorType::Q4_0, [0; 36]).unwrap();
        let mut out = Vec::new();
        w.write(&mut out).unwrap();
        out
    }

    /// What `run` prints for a file of these bytes, and its error.
    fn listing(file: &[u8], json: bool) -> (String, Option<String>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        std::fs::write(&path, file).unwrap();
        let mut out = Vec::new();
        let error = run(&path, json, &mut out).err().map(|e| format!("{e:#}"));
        (String::from_utf8(out).unwrap(), error)
    }

    #[test]
    fn text_has_summary_metadata_tensors_and_sums() {
        let (text, error) = listing(&model(), false);
        assert_eq!(error, None);
        for line in [
            "DeepSeek V4: 3 layers (1 window, 1 of ratio 4, 1 of ratio 128), hidden ?, ? heads of \
             ?, vocabulary 129,280, context ?",
            "? experts a layer, ? + ? shared a token; gate/up IQ2_XXS/Q4_K, down ?, attention ?, \
             output Q4_0",
            "  many                                 f64[65]    [0, 1, 2, 3, 4, 5, …]",
            "  tokens                               string[7]  [\"\\u{1b}[2J\", \"\\\"\", \"é\", \
             \"4\", \"5\", \"6\", …]",
            "  name                        type     ne       bytes  offset",
            "  blk.1.ffn_gate_exps.weight  Q4_K     [256]      144   1,280",
            "  Q4_K           1         256    144",
            "  IQ2_XXS        2         512    132",
            "parameters: 832",
            "tensor data: 312 bytes (312 B)",
            "data section: 320 bytes with padding",
            "stored: 246 bytes (246 B), because tensors share data",
            "not supported for inference: Q4_0",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line:?} in\n{text}");
        }
        assert!(!text.contains('\x1b'), "a file must not steer the terminal");
    }

    #[test]
    fn json_has_the_same_with_long_arrays_abbreviated() {
        let (text, error) = listing(&model(), true);
        assert_eq!(error, None);
        let v: Json = serde_json::from_str(&text).unwrap();
        assert_eq!(v["metadata"]["deepseek4.attention.compress_ratios"], json!([0, 4, 128, 0]));
        assert_eq!(v["metadata"]["few"].as_array().unwrap().len(), JSON_ITEMS);
        let first = [0., 1., 2., 3., 4., 5.];
        assert_eq!(v["metadata"]["many"], json!({"type": "f64", "length": 65, "first": first}));
        assert_eq!(v["tensor_count"], 4);
        assert_eq!(v["tensors"][1]["ne"], json!([256]));
        assert_eq!(v["tensors"][2]["offset"], v["tensors"][0]["offset"]);
        assert_eq!((&v["parameters"], &v["data_bytes"]), (&json!(832), &json!(312)));
        assert_eq!((&v["section_bytes"], &v["stored_bytes"]), (&json!(320), &json!(246)));
        let q4_0 = &v["types"][0];
        assert_eq!((&q4_0["type"], &q4_0["supported"]), (&json!("Q4_0"), &json!(false)));
        assert_eq!(v["complete"], true);
        assert_eq!(v["summary"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_cut_file_is_listed_and_then_reported() {
        let file = model();
        let cut = &file[..file.len() - 64];
        let (text, error) = listing(cut, false);
        assert!(text.contains("parameters: 832"), "{text}");
        let error = error.unwrap();
        assert!(error.contains("m.gguf: tensor `output.weight`: its data ends"), "{error}");
        let (text, error) = listing(cut, true);
        let v: Json = serde_json::from_str(&text).unwrap();
        assert_eq!(v["complete"], false);
        assert!(error.unwrap().ends_with(v["problem"].as_str().unwrap()));
    }

    #[test]
    fn a_damaged_header_is_named_once_with_its_file() {
        let (text, error) = listing(&model()[..100], false);
        assert_eq!(text, "");
        let error = error.unwrap();
        assert_eq!(error.matches("m.gguf").count(), 1, "{error}");
        assert!(error.contains("metadata"), "{error}");
    }

    #[test]
    fn other_architectures_have_no_summary_and_unknown_types_no_size() {
        let mut m = Metadata::new();
        m.insert("general.architecture", "llama").unwrap();
        let mut w = Writer::new(m);
        w.tensor_bytes("t", &[4], TensorType::I32, [0; 16]).unwrap();
        let mut file = Vec::new();
        w.write(&mut file).unwrap();
        // Counts; one entry; the tensor's name and its one dimension; then the type.
        let at = 24 + (8 + 20 + 4 + 8 + 5) + (8 + 1 + 4 + 8);
        assert_eq!(file[at..at + 4], 26u32.to_le_bytes());
        file[at] = 77;
        let (text, error) = listing(&file, false);
        assert_eq!(error, None);
        assert!(!text.contains("experts"), "{text}");
        assert!(text.contains("  t     type 77  [4]      ?     128"), "{text}");
        assert!(text.contains("not supported for inference: type 77"), "{text}");
        let (text, _) = listing(&file, true);
        let v: Json = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&v["tensors"][0]["bytes"], &v["tensors"][0]["type_id"]),
            (&Json::Null, &json!(77))
        );
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let all = [0, 999, 1000, 86_714_777_664].map(grouped);
        assert_eq!(all, ["0", "999", "1,000", "86,714,777,664"]);
        assert_eq!(size(86_714_777_664), "80.76 GiB");
        assert_eq!(size(1023), "1023 B");
    }
}
