//! A checkpoint's folder: configuration, vocabulary, and safetensors files with an index.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use candle_ds4_ops::Format;
use serde_json::Value as Json;

use super::error::{QuantizeError, Result};
use super::float8::{e2m1, e4m3, e8m0};
use super::input::Source;
use super::safetensors::{Dtype, Entry, Shard};
use super::{hf_config, hf_tokenizer, Layout, Role, Slot};
use crate::config::Config;
use crate::gguf::{Metadata, TensorType};

/// Rows and columns that share a scale of an FP8 matrix.
const FP8_BLOCK: usize = 128;
/// Columns that share a scale of an FP4 matrix.
const FP4_BLOCK: usize = 32;

pub(super) struct Checkpoint {
    folder: PathBuf,
    metadata: Metadata,
    shards: Vec<Shard>,
    /// By GGUF name: a matrix for each slice.
    places: HashMap<String, Vec<Place>>,
    ignored: usize,
}

/// Where one matrix lies.
struct Place {
    shard: usize,
    entry: Entry,
    /// Its first row, counting all rows of the tensor as one tall matrix.
    first_row: usize,
    packing: Packing,
}

/// How its values are stored.
enum Packing {
    Plain(Format),
    Fp8 { shard: usize, scales: Entry },
    Fp4 { shard: usize, scales: Entry },
    Indices,
}

impl Checkpoint {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let config = json(&folder.join("config.json"))?;
        let mut metadata = hf_config::metadata(&folder.join("config.json"), &config)?;
        hf_tokenizer::describe(folder, &config, &mut metadata)?;
        let layout = Layout::of(&Config::from_metadata(&metadata)?);
        let shards = shards(folder)?;
        let names = Names::new(folder, &shards)?;
        let mut seen = BTreeSet::new();
        let mut places = HashMap::new();
        for slot in layout.slots() {
            let of_slot = (0..slot.slices())
                .map(|slice| names.place(slot, slice, &mut seen))
                .collect::<Result<_>>()?;
            places.insert(slot.name.clone(), of_slot);
        }
        let mut ignored = 0;
        for (name, (shard, _)) in &names.tensors {
            if name.starts_with("mtp.") {
                ignored += 1;
            } else if !seen.contains(name) {
                return Err(QuantizeError::tensor(
                    &shards[*shard].path,
                    name,
                    "no model of this configuration has it; does config.json belong to these files?",
                ));
            }
        }
        Ok(Self { folder: folder.to_owned(), metadata, shards, places, ignored })
    }

    fn place(&self, slot: &Slot, slice: usize) -> Result<(&Place, &[u8])> {
        let place = self.places.get(&slot.name).and_then(|places| places.get(slice));
        let place =
            place.ok_or_else(|| QuantizeError::tensor(&self.folder, &slot.name, "missing"))?;
        Ok((place, self.bytes(place.shard, &place.entry)))
    }

    fn bytes(&self, shard: usize, entry: &Entry) -> &[u8] {
        self.shards.get(shard).map_or(&[], |shard| shard.data(entry))
    }
}

impl Source for Checkpoint {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn rows(&self, slot: &Slot, slice: usize, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (place, data) = self.place(slot, slice)?;
        let cols = slot.cols();
        let wrong = |problem: &str| QuantizeError::tensor(&self.folder, &slot.name, problem);
        let cut = || wrong("its data is cut");
        for (row, out) in rows.zip(out.chunks_exact_mut(cols)) {
            let row = place.first_row + row;
            match &place.packing {
                Packing::Plain(format) => {
                    let bytes = cols * format.block_bytes();
                    let data = data.get(row * bytes..(row + 1) * bytes).ok_or_else(cut)?;
                    format.decode(data, out).map_err(|error| wrong(&error.to_string()))?;
                }
                Packing::Fp8 { shard, scales } => {
                    let across = cols.div_ceil(FP8_BLOCK);
                    let start = row / FP8_BLOCK * across;
                    let data = data.get(row * cols..(row + 1) * cols).ok_or_else(cut)?;
                    let scales = self.bytes(*shard, scales).get(start..start + across);
                    let blocks = data.chunks(FP8_BLOCK).zip(out.chunks_mut(FP8_BLOCK));
                    for ((data, out), scale) in blocks.zip(scales.ok_or_else(cut)?) {
                        let scale = e8m0(*scale);
                        for (out, byte) in out.iter_mut().zip(data) {
                            *out = e4m3(*byte) * scale;
                        }
                    }
                }
                Packing::Fp4 { shard, scales } => {
                    let (bytes, across) = (cols / 2, cols / FP4_BLOCK);
                    let data = data.get(row * bytes..(row + 1) * bytes).ok_or_else(cut)?;
                    let scales = self.bytes(*shard, scales).get(row * across..(row + 1) * across);
                    let blocks = data.chunks(FP4_BLOCK / 2).zip(out.chunks_mut(FP4_BLOCK));
                    for ((data, out), scale) in blocks.zip(scales.ok_or_else(cut)?) {
                        let scale = e8m0(*scale);
                        for (out, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(data) {
                            *out = [e2m1(*byte) * scale, e2m1(byte >> 4) * scale];
                        }
                    }
                }
                Packing::Indices => return Err(wrong("a table of indices has no values")),
            }
        }
        Ok(())
    }

    fn indices(&self, slot: &Slot) -> Result<Vec<i32>> {
        let (place, data) = self.place(slot, 0)?;
        let wide = |index: i64| {
            i32::try_from(index).map_err(|_| {
                QuantizeError::tensor(&self.folder, &slot.name, format!("index {index}"))
            })
        };
        match place.entry.dtype {
            Dtype::I64 => data.as_chunks().0.iter().map(|b| wide(i64::from_le_bytes(*b))).collect(),
            _ => Ok(data.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect()),
        }
    }

    fn unchanged(&self, _: &Slot, _: TensorType) -> Option<Bytes> {
        None
    }

    fn files(&self) -> Vec<PathBuf> {
        self.shards.iter().map(|shard| shard.path.clone()).collect()
    }

    fn ignored(&self) -> usize {
        self.ignored
    }
}

/// Opens the files of the index; without one, the only file there is.
fn shards(folder: &Path) -> Result<Vec<Shard>> {
    let index_path = folder.join("model.safetensors.index.json");
    if !index_path.exists() {
        let single = folder.join("model.safetensors");
        if !single.exists() {
            let problem = "no model.safetensors.index.json and no model.safetensors in it";
            return Err(QuantizeError::file(folder, problem));
        }
        return Ok(vec![Shard::open(&single)?]);
    }
    let index = json(&index_path)?;
    let wrong = |problem: String| QuantizeError::file(&index_path, problem);
    let map = index.get("weight_map").and_then(Json::as_object);
    let map = map.ok_or_else(|| wrong("there is no weight_map in it".to_owned()))?;
    let mut by_file: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, file) in map {
        let file = file.as_str().filter(|file| !file.contains(['/', '\\']));
        let file = file.ok_or_else(|| wrong(format!("{tensor}: its file has no plain name")))?;
        by_file.entry(file).or_default().push(tensor);
    }
    let mut shards = Vec::new();
    for (file, tensors) in by_file {
        let shard = Shard::open(&folder.join(file))?;
        if let Some(missing) = tensors.iter().find(|name| !shard.tensors.contains_key(**name)) {
            let problem = "missing, though the index says that it is there; fetch the file again";
            return Err(QuantizeError::tensor(&shard.path, *missing, problem));
        }
        shards.push(shard);
    }
    Ok(shards)
}

/// All tensors by name, without a leading `model.`.
struct Names<'a> {
    folder: &'a Path,
    shards: &'a [Shard],
    tensors: BTreeMap<String, (usize, &'a Entry)>,
}

impl<'a> Names<'a> {
    fn new(folder: &'a Path, shards: &'a [Shard]) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (number, shard) in shards.iter().enumerate() {
            for (name, entry) in &shard.tensors {
                let short = name.strip_prefix("model.").unwrap_or(name).to_owned();
                if tensors.insert(short, (number, entry)).is_some() {
                    let problem = "is in two files of the checkpoint";
                    return Err(QuantizeError::tensor(&shard.path, name, problem));
                }
            }
        }
        Ok(Self { folder, shards, tensors })
    }

    /// The matrix of a slot's slice; marks what it takes as seen.
    fn place(&self, slot: &Slot, slice: usize, seen: &mut BTreeSet<String>) -> Result<Place> {
        let names = slot.sources.iter().map(|name| name.replace("{}", &slice.to_string()));
        let Some((name, &(shard, entry))) =
            names.clone().find_map(|name| self.tensors.get_key_value(&name))
        else {
            let wanted = names.take(2).collect::<Vec<_>>().join(" or ");
            return Err(QuantizeError::tensor(self.folder, wanted, "missing from the checkpoint"));
        };
        let path = &self.shards[shard].path;
        let wrong = |problem: String| QuantizeError::tensor(path, name, problem);
        seen.insert(name.clone());

        let (rows, cols) = (slot.rows(), slot.cols());
        let stacked = name.ends_with(".gate_up_proj") || name.ends_with(".experts.down_proj");
        let (shape, first_row) = match (stacked, slot.role) {
            (true, Role::RoutedUp) => {
                let up = slot.name.contains("ffn_up_exps");
                let first = slice * 2 * rows + if up { rows } else { 0 };
                (vec![slot.slices(), 2 * rows, cols], first)
            }
            (true, _) => (vec![slot.slices(), rows, cols], slice * rows),
            (false, Role::Vector) => (vec![cols], 0),
            (false, _) => (vec![rows, cols], 0),
        };
        let packed = matches!(entry.dtype, Dtype::I8 | Dtype::U8);
        let mut stored = shape.clone();
        if let (true, Some(last)) = (packed, stored.last_mut()) {
            if !cols.is_multiple_of(FP4_BLOCK) {
                return Err(wrong(format!("rows of {cols} FP4 values are no whole blocks")));
            }
            *last /= 2;
        }
        if entry.shape != stored {
            let found = &entry.shape;
            return Err(wrong(format!("shape {found:?}, config.json asks for {stored:?}")));
        }
        let tall: usize = shape.iter().rev().skip(1).product();
        let mut scales = |shape: [usize; 2]| {
            let stem = name.strip_suffix(".weight").unwrap_or(name);
            let scales = format!("{stem}.scale");
            let (number, entry) = *self
                .tensors
                .get(&scales)
                .ok_or_else(|| wrong(format!("its scales, {scales}, are missing")))?;
            if entry.dtype != Dtype::F8_E8M0 && entry.dtype != Dtype::U8 || entry.shape != shape {
                let problem = format!(
                    "scales {:?} {:?}, must be F8_E8M0 {shape:?}",
                    entry.dtype, entry.shape
                );
                return Err(wrong(problem));
            }
            seen.insert(scales);
            Ok((number, entry.clone()))
        };
        let packing = match (entry.dtype, slot.role) {
            (Dtype::I64 | Dtype::I32, Role::Indices) => Packing::Indices,
            (Dtype::F32, role) if role != Role::Indices => Packing::Plain(Format::F32),
            (Dtype::F16, role) if role != Role::Indices => Packing::Plain(Format::F16),
            (Dtype::BF16, role) if role != Role::Indices => Packing::Plain(Format::BF16),
            (Dtype::F8_E4M3, role) if !matches!(role, Role::Indices | Role::Vector) => {
                let (shard, scales) = scales([tall.div_ceil(FP8_BLOCK), cols.div_ceil(FP8_BLOCK)])?;
                Packing::Fp8 { shard, scales }
            }
            (Dtype::I8 | Dtype::U8, role) if !matches!(role, Role::Indices | Role::Vector) => {
                let (shard, scales) = scales([tall, cols / FP4_BLOCK])?;
                Packing::Fp4 { shard, scales }
            }
            (dtype, role) => return Err(wrong(format!("type {dtype:?} cannot be {role:?}"))),
        };
        Ok(Place { shard, entry: entry.clone(), first_row, packing })
    }
}

/// Reads a JSON file.
pub(super) fn json(path: &Path) -> Result<Json> {
    let text = fs::read(path).map_err(QuantizeError::io(path, "read"))?;
    serde_json::from_slice(&text).map_err(|error| QuantizeError::file(path, error.to_string()))
}
