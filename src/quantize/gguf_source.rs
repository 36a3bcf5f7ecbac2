//! Another GGUF file as input.

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use candle_ds4_ops::Format;

use super::error::{QuantizeError, Result};
use super::input::Source;
use super::{Layout, Role, Slot};
use crate::config::Config;
use crate::gguf::{Gguf, Metadata, TensorInfo, TensorType};

pub(super) struct GgufSource {
    gguf: Gguf,
    path: PathBuf,
}

impl GgufSource {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let source = Self { gguf: Gguf::open(path)?, path: path.to_owned() };
        let layout = Layout::of(&Config::from_metadata(source.gguf.metadata())?);
        for slot in layout.slots() {
            let info = source.info(slot)?;
            if info.dims != slot.dims {
                let problem = format!(
                    "shape {:?}, the metadata asks for {:?} (innermost first)",
                    info.dims, slot.dims
                );
                return Err(source.wrong(&slot.name, problem));
            }
            let known = match slot.role {
                Role::Indices => info.ty == TensorType::I32,
                _ => format(info.ty).is_some(),
            };
            if !known {
                return Err(source.wrong(&slot.name, format!("type {} cannot be read", info.ty)));
            }
        }
        let names: HashSet<&str> = layout.slots().iter().map(|slot| slot.name.as_str()).collect();
        match source.gguf.tensors().iter().find(|t| !names.contains(t.name.as_str())) {
            Some(unknown) => Err(source.wrong(
                &unknown.name,
                "no model of this configuration has it; is this another model's file?".to_owned(),
            )),
            None => Ok(source),
        }
    }

    fn info(&self, slot: &Slot) -> Result<&TensorInfo> {
        let missing = |_| self.wrong(&slot.name, "missing".to_owned());
        self.gguf.tensor(&slot.name).map_err(missing)
    }

    fn wrong(&self, tensor: &str, problem: String) -> QuantizeError {
        QuantizeError::tensor(&self.path, tensor, problem)
    }
}

impl Source for GgufSource {
    fn metadata(&self) -> &Metadata {
        self.gguf.metadata()
    }

    fn rows(&self, slot: &Slot, slice: usize, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let info = self.info(slot)?;
        let data = self.gguf.data(info)?;
        let decoded = format(info.ty).and_then(|format| {
            let bytes = format.row_bytes(slot.cols()).ok()?;
            let first = slice * slot.rows();
            let blocks = data.get((first + rows.start) * bytes..(first + rows.end) * bytes)?;
            format.decode(blocks, out).ok()
        });
        decoded.ok_or_else(|| self.wrong(&slot.name, "its data is cut".to_owned()))
    }

    fn indices(&self, slot: &Slot) -> Result<Vec<i32>> {
        let data = self.gguf.data(self.info(slot)?)?;
        Ok(data.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect())
    }

    fn unchanged(&self, slot: &Slot, ty: TensorType) -> Option<Bytes> {
        let info = self.gguf.get(&slot.name).filter(|info| info.ty == ty)?;
        self.gguf.data(info).ok()
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    fn ignored(&self) -> usize {
        0
    }
}

/// The format that decodes, or encodes, a type.
pub(super) fn format(ty: TensorType) -> Option<Format> {
    Some(match ty {
        TensorType::F32 => Format::F32,
        TensorType::F16 => Format::F16,
        TensorType::BF16 => Format::BF16,
        TensorType::Q8_0 => Format::Q8_0,
        TensorType::Q2_K => Format::Q2K,
        TensorType::Q4_K => Format::Q4K,
        TensorType::IQ2_XXS => Format::Iq2Xxs,
        _ => return None,
    })
}
