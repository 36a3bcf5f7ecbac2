//! One safetensors file: a length, a JSON header, and the tensors' bytes.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Deserialize;

use super::error::{QuantizeError, Result};
use crate::gguf;

/// The longest header that is read, in bytes; the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// One file, its header parsed.
pub(super) struct Shard {
    pub(super) path: PathBuf,
    pub(super) tensors: BTreeMap<String, Entry>,
    data: Bytes,
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    start: usize,
    end: usize,
}

/// The element types that checkpoints have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[allow(non_camel_case_types)] // the format's own spelling
pub(super) enum Dtype {
    F8_E4M3,
    F8_E8M0,
    I8,
    U8,
    BF16,
    F16,
    F32,
    I32,
    I64,
}

impl Dtype {
    fn bytes(self) -> usize {
        match self {
            Self::F8_E4M3 | Self::F8_E8M0 | Self::I8 | Self::U8 => 1,
            Self::BF16 | Self::F16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::I64 => 8,
        }
    }
}

/// A header's entry as it is written. The type is read later, so that it can be named in an error.
#[derive(Deserialize)]
struct Raw {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl Shard {
    /// Maps a file and checks that each tensor lies inside it and is as long as its shape says.
    pub(super) fn open(path: &Path) -> Result<Self> {
        Self::parse(
            path,
            gguf::map(path).map_err(|error| {
                QuantizeError::file(path, format!("{error}; fetch the checkpoint again"))
            })?,
        )
    }

    fn parse(path: &Path, file: Bytes) -> Result<Self> {
        let wrong = |problem: String| QuantizeError::file(path, problem);
        let cut = || wrong("not a whole safetensors file; fetch it again".to_owned());
        let len = file.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)).ok_or_else(cut)?;
        if len > MAX_HEADER {
            return Err(wrong(format!("a header of {len} bytes: not a safetensors file")));
        }
        let start = 8 + len as usize;
        let header = file.get(8..start).ok_or_else(cut)?;
        let header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header)
            .map_err(|error| wrong(format!("the header is damaged: {error}")))?;
        let data = file.slice(start..);
        let mut tensors = BTreeMap::new();
        for (name, value) in header {
            if name == "__metadata__" {
                continue;
            }
            let of = |problem: String| QuantizeError::tensor(path, &name, problem);
            let raw: Raw = serde_json::from_value(value)
                .map_err(|error| of(format!("its header entry is damaged: {error}")))?;
            let dtype: Dtype = serde_json::from_value(raw.dtype.clone().into())
                .map_err(|_| of(format!("type {} is not known", raw.dtype)))?;
            let [start, end] = raw.data_offsets;
            let values = raw.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
            let wanted = values.and_then(|n| n.checked_mul(dtype.bytes() as u64));
            if start > end || wanted != Some(end - start) {
                let problem =
                    format!("bytes {start} to {end} for shape {:?} of {}", raw.shape, raw.dtype);
                return Err(of(problem));
            }
            if end > data.len() as u64 {
                return Err(of(format!(
                    "ends at byte {end} of {} in the file: cut short, fetch it again",
                    data.len()
                )));
            }
            let shape = raw.shape.iter().map(|d| *d as usize).collect();
            let entry = Entry { dtype, shape, start: start as usize, end: end as usize };
            tensors.insert(name, entry);
        }
        Ok(Self { path: path.to_owned(), tensors, data })
    }

    /// A tensor's bytes; they lie inside the file since that was checked.
    pub(super) fn data(&self, entry: &Entry) -> &[u8] {
        self.data.get(entry.start..entry.end).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Bytes {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.resize(file.len() + data, 7);
        file.into()
    }

    fn problem(file: Bytes) -> String {
        match Shard::parse(Path::new("x.safetensors"), file) {
            Ok(_) => panic!("taken"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn damaged_files_are_refused_by_name() {
        let good = r#"{"__metadata__":{"a":"b"},"t":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}"#;
        let shard = Shard::parse(Path::new("x"), file(good, 12)).unwrap();
        assert_eq!(shard.data(&shard.tensors["t"]), [7; 12]);
        for (header, data, part) in [
            (good, 11, "cut short"),
            (&good.replace("[2,3]", "[2,4]"), 12, "shape [2, 4]"),
            (&good.replace("[0,12]", "[12,0]"), 12, "12 to 0"),
            (&good.replace("[2,3]", "[4294967296,4294967296,3]"), 12, "shape"),
            (&good.replace("BF16", "F6"), 12, "type F6"),
            (&good.replace("\"shape\":[2,3],", ""), 12, "tensor t"),
            (&good[..40], 12, "header is damaged"),
        ] {
            let error = problem(file(header, data));
            assert!(error.contains(part) && error.contains("x.safetensors"), "{part}: {error}");
        }
        for len in [0, 7, 8, 30] {
            assert!(problem(file(good, 12).slice(..len)).contains("whole"), "{len}");
        }
        assert!(problem(u64::MAX.to_le_bytes().to_vec().into()).contains("header of"));
    }

    #[test]
    fn no_change_of_a_byte_is_worth_a_panic() {
        let good = r#"{"t":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}"#;
        let whole = file(good, 12);
        for at in 0..whole.len() {
            for byte in [0, 1, b'9', b'"', b'}', 0xff] {
                let mut bytes = whole.to_vec();
                bytes[at] = byte;
                if let Ok(shard) = Shard::parse(Path::new("x"), bytes.into()) {
                    shard
                        .tensors
                        .values()
                        .for_each(|entry| assert!(shard.data(entry).len() <= bytes.len()));
                }
            }
        }
    }
}
