//! What a quantised file will hold, before a value is read.

use super::error::{QuantizeError, Result};
use super::layout::{Layout, Slot};
use super::{Imatrix, LayerType, Recipe};
use crate::config::Config;
use crate::gguf::{Metadata, TensorType, DEFAULT_ALIGNMENT};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The types.
    pub recipe: Recipe,
    /// Other types for some layers' routed experts; later ones win.
    pub overrides: Vec<LayerType>,
    /// How much errors of each column count.
    pub imatrix: Option<Imatrix>,
}

impl Options {
    /// A recipe as it is.
    pub fn new(recipe: Recipe) -> Self {
        Self { recipe, overrides: Vec::new(), imatrix: None }
    }
}

/// The tensors of a file with their types.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<Planned>,
}

/// One tensor.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub(super) slot: Slot,
    pub(super) ty: TensorType,
    pub(super) bytes: u64,
}

impl Plan {
    /// The plan for a model with this metadata.
    ///
    /// # Errors
    /// A row that is no whole number of blocks of its type, an override of layers that are not
    /// there, or an importance matrix of other widths.
    pub fn new(metadata: &Metadata, options: &Options) -> Result<Self> {
        let config = Config::from_metadata(metadata)?;
        for over in &options.overrides {
            if *over.layers.end() >= config.layers.len() {
                let (last, layers) = (over.layers.end(), config.layers.len());
                return Err(QuantizeError::Recipe(format!(
                    "layer type for layer {last}: the model has layers 0 to {}",
                    layers - 1
                )));
            }
        }
        let slots = Layout::of(&config).slots().to_vec();
        if let Some(imatrix) = &options.imatrix {
            imatrix.check(&slots)?;
        }
        let planned = |slot: Slot| {
            let ty = options.recipe.type_of_slot(&slot, &options.overrides);
            let bytes = bytes_of(&slot, ty)?;
            Ok(Planned { slot, ty, bytes })
        };
        let tensors = slots.into_iter().map(planned).collect::<Result<Vec<_>>>()?;
        Ok(Self { metadata: describe(metadata, options)?, tensors })
    }

    /// How many tensors there are.
    pub fn tensor_count(&self) -> usize {
        self.tensors.len()
    }

    /// Bytes of the data section, each tensor's end padded to the alignment.
    pub fn data_bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes.next_multiple_of(DEFAULT_ALIGNMENT)).sum()
    }

    /// By type, in ggml's numbering: tensors and bytes.
    pub fn by_type(&self) -> Vec<(TensorType, usize, u64)> {
        let of = |ty: &TensorType| {
            let of_type = || self.tensors.iter().filter(move |t| t.ty == *ty);
            let count = of_type().count();
            (count > 0).then(|| (*ty, count, of_type().map(|t| t.bytes).sum()))
        };
        TensorType::ALL.iter().filter_map(of).collect()
    }
}

/// Bytes that a tensor takes in a type.
pub(super) fn bytes_of(slot: &Slot, ty: TensorType) -> Result<u64> {
    let (cols, name) = (slot.cols() as u64, &slot.name);
    let Some(block) = ty.block().filter(|block| cols.is_multiple_of(block.elements)) else {
        return Err(QuantizeError::Recipe(format!(
            "tensor {name}: rows of {cols} values are no whole blocks of {ty}; choose a recipe or a \
             layer type with smaller blocks (q8: 32 values, f16: 1)"
        )));
    };
    let rows = (slot.rows() as u64).checked_mul(slot.slices() as u64);
    let bytes = rows.and_then(|rows| rows.checked_mul(cols / block.elements * block.bytes));
    bytes.ok_or_else(|| QuantizeError::Recipe(format!("tensor {name}: more than 2^64 bytes")))
}

/// The metadata of the new file: the old, less what was said about the old types.
fn describe(metadata: &Metadata, options: &Options) -> Result<Metadata> {
    let mut out = Metadata::new();
    let stale = |key: &str| {
        let of_types = ["general.file_type", "general.quantization_version", "general.alignment"];
        of_types.contains(&key) || key.starts_with("quantize.imatrix.")
    };
    for (key, value) in metadata.iter().filter(|(key, _)| !stale(key)) {
        out.insert(key, value.clone())?;
    }
    out.insert("general.file_type", options.recipe.file_type())?;
    out.insert("general.quantization_version", 2u32)?;
    if let Some(imatrix) = &options.imatrix {
        imatrix.describe(&mut out)?;
    }
    Ok(out)
}
