//! One line of a file's tensor list.

#![forbid(unsafe_code)]

use super::{Error, TensorType, MAX_DIMS};

/// Name, shape, type and place of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name, unique in its file.
    pub name: String,
    /// Dimensions in ggml's `ne` order, innermost first: a matrix `[out, in]` has `[in, out]`.
    /// None at all is a scalar.
    pub dims: Vec<u64>,
    /// The element type.
    pub ty: TensorType,
    /// Where the data begins, in bytes from the start of the file.
    pub offset: u64,
    /// Bytes of data; `None` if the type is unknown.
    pub len: Option<u64>,
}

impl TensorInfo {
    /// The number of elements: the product of the dimensions.
    pub fn elements(&self) -> u64 {
        self.dims.iter().fold(1, |n, d| n.saturating_mul(*d))
    }

    /// Where the data ends, in bytes from the start of the file (`offset` for an unknown type).
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len.unwrap_or(0))
    }
}

/// The bytes that `dims` elements of `ty` take, `None` for an unknown type.
///
/// # Errors
/// More than [`MAX_DIMS`] dimensions, a row of broken blocks, or a product past 63 bits, which
/// no file offset can reach. `tensor` only names the culprit.
pub(super) fn data_len(tensor: &str, dims: &[u64], ty: TensorType) -> Result<Option<u64>, Error> {
    if dims.len() > MAX_DIMS {
        return Err(Error::Dimensions { tensor: tensor.to_owned(), count: dims.len() as u64 });
    }
    let overflow = || Error::Overflow { tensor: tensor.to_owned(), dims: dims.to_vec(), ty };
    // A dimension of zero must not hide the overflow of the others: strides are computed from them.
    let fits = |n: u64| (n <= i64::MAX as u64).then_some(n);
    let extent = dims
        .iter()
        .try_fold(1u64, |n, d| n.checked_mul((*d).max(1)).and_then(fits))
        .ok_or_else(overflow)?;
    let Some(block) = ty.block() else {
        return Ok(None);
    };
    let row = dims.first().copied().unwrap_or(1);
    if row % block.elements != 0 {
        return Err(Error::Blocks { tensor: tensor.to_owned(), row, ty, block: block.elements });
    }
    let blocks = extent.div_ceil(block.elements);
    let bytes = blocks.checked_mul(block.bytes).and_then(fits).ok_or_else(overflow)?;
    Ok(Some(if dims.contains(&0) { 0 } else { bytes }))
}
