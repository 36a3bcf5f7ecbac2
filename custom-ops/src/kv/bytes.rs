//! Rows and rings to and from bytes, for whoever keeps them longer than the process lives.
#![forbid(unsafe_code)]

use std::ops::Range;

use candle_core::{bail, CpuStorage, DType, Device, InplaceOp1, Layout, Result, Tensor};

use super::{NotARow, NotPackable, Ring, RowFormat, Rows};
use crate::device::{host, host_mut};

/// Why bytes did not become rows, or rows bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BytesError {
    /// The bytes are not whole rows.
    #[error("{bytes} bytes are no whole rows of {row_bytes}")]
    Length {
        /// How many there are.
        bytes: usize,
        /// Bytes of a row.
        row_bytes: usize,
    },
    /// A row that is none.
    #[error("row {row}: {error}")]
    Row {
        /// Which of those given.
        row: usize,
        /// What is wrong with it.
        error: NotARow,
    },
    /// A row that its format cannot hold.
    #[error("row {row}: {error}")]
    Value {
        /// Which of those asked for.
        row: usize,
        /// What is wrong with it.
        error: NotPackable,
    },
    /// More rows than there are, or than fit.
    #[error("rows {from} to {to} of {have}")]
    Range {
        /// The first one.
        from: usize,
        /// One past the last.
        to: usize,
        /// How many there are.
        have: usize,
    },
    /// The device refused.
    #[error(transparent)]
    Device(#[from] candle_core::Error),
}

impl RowFormat {
    /// Whether bytes from outside are rows; returns how many.
    ///
    /// # Errors
    /// If they are no whole number of rows, or one is none.
    pub fn check_rows(self, bytes: &[u8]) -> std::result::Result<usize, BytesError> {
        let row_bytes = self.row_bytes();
        if row_bytes == 0 || !bytes.len().is_multiple_of(row_bytes) {
            return Err(BytesError::Length { bytes: bytes.len(), row_bytes });
        }
        for (row, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
            self.check(bytes).map_err(|error| BytesError::Row { row, error })?;
        }
        Ok(bytes.len() / row_bytes)
    }
}

impl Rows {
    /// Writes the byte forms of the rows from `from` on over `out`, as many as fit.
    ///
    /// # Errors
    /// If `out` is no whole number of rows, the rows are not there, or one is not finite.
    pub fn read(&self, from: usize, out: &mut [u8]) -> std::result::Result<(), BytesError> {
        let format = self.format();
        let row_bytes = format.row_bytes();
        if row_bytes == 0 || !out.len().is_multiple_of(row_bytes) {
            return Err(BytesError::Length { bytes: out.len(), row_bytes });
        }
        let to = from + out.len() / row_bytes;
        if to > self.len() {
            return Err(BytesError::Range { from, to, have: self.len() });
        }
        let mut at = from;
        let mut rest = out;
        while at < to {
            let (page, first) = (at / self.page_rows(), at % self.page_rows());
            let run = (self.page_rows() - first).min(to - at);
            let (of_page, after) = rest.split_at_mut(run * row_bytes);
            let page = on_host(&self.pages()[page].narrow(0, first, run)?)?;
            match format {
                RowFormat::F32 { .. } => {
                    pack_rows(format, &host::<f32>("kv_read", &page)?, at - from, of_page)?;
                }
                _ => of_page.copy_from_slice(&host::<u8>("kv_read", &page)?),
            }
            rest = after;
            at += run;
        }
        Ok(())
    }

    /// Appends rows from their byte forms.
    ///
    /// # Errors
    /// If the bytes are no rows, or the device has no memory left.
    pub fn extend_bytes(&mut self, bytes: &[u8]) -> std::result::Result<(), BytesError> {
        let count = self.format().check_rows(bytes)?;
        let row_bytes = self.format().row_bytes();
        self.extend(count, |page, done, run| {
            put(page, &bytes[done * row_bytes..(done + run) * row_bytes])
        })?;
        Ok(())
    }
}

impl Ring {
    /// Writes the byte forms of the rows of these positions over `out`.
    ///
    /// # Errors
    /// If they are more than the ring has, `out` has another length, or `format` cannot hold one of
    /// them to the bit.
    pub fn read(
        &self,
        positions: Range<usize>,
        format: RowFormat,
        out: &mut [u8],
    ) -> std::result::Result<(), BytesError> {
        self.check_range(&positions, format, out.len())?;
        let data = on_host(self.data())?;
        let data = host::<f32>("kv_read", &data)?;
        let (width, row_bytes) = (format.width(), format.row_bytes());
        for (row, position) in positions.enumerate() {
            let values = &data[position % self.slots() * width..][..width];
            pack_rows(format, values, row, &mut out[row * row_bytes..][..row_bytes])?;
        }
        Ok(())
    }

    /// Puts rows at these positions from their byte forms.
    ///
    /// # Errors
    /// If they are more than the ring has, the bytes are no rows, or the device has no memory left.
    pub fn fill(
        &self,
        positions: Range<usize>,
        format: RowFormat,
        bytes: &[u8],
    ) -> std::result::Result<(), BytesError> {
        self.check_range(&positions, format, bytes.len())?;
        let count = format.check_rows(bytes)?;
        if count == 0 {
            return Ok(());
        }
        let (width, row_bytes) = (format.width(), format.row_bytes());
        let mut values = vec![0f32; count * width];
        for (row, bytes) in values.chunks_exact_mut(width).zip(bytes.chunks_exact(row_bytes)) {
            format.unpack(bytes, row);
        }
        let rows = Tensor::from_vec(values, (count, width), self.data().device())?;
        let span = crate::Span { row: 0, len: count, start: positions.start };
        Ok(self.write(&rows, &span)?)
    }

    fn check_range(
        &self,
        positions: &Range<usize>,
        format: RowFormat,
        bytes: usize,
    ) -> std::result::Result<(), BytesError> {
        let row_bytes = format.row_bytes();
        if format.width() != self.data().dim(1)? || bytes != positions.len() * row_bytes {
            return Err(BytesError::Length { bytes, row_bytes });
        }
        if positions.len() > self.slots() {
            let (from, to) = (positions.start, positions.end);
            return Err(BytesError::Range { from, to, have: self.slots() });
        }
        Ok(())
    }
}

/// Byte forms of consecutive rows, of which the first is called `first`.
fn pack_rows(
    format: RowFormat,
    values: &[f32],
    first: usize,
    out: &mut [u8],
) -> std::result::Result<(), BytesError> {
    let rows = values.chunks_exact(format.width()).zip(out.chunks_exact_mut(format.row_bytes()));
    for (index, (row, bytes)) in rows.enumerate() {
        let row = format.pack(row, bytes).map_err(|error| (first + index, error));
        row.map_err(|(row, error)| BytesError::Value { row, error })?;
    }
    Ok(())
}

/// The same values where the processor reads them.
fn on_host(tensor: &Tensor) -> Result<Tensor> {
    match tensor.device() {
        Device::Cpu => Ok(tensor.clone()),
        // A copy first: what crosses to the host is a tensor's whole storage.
        _ => tensor.copy()?.to_device(&Device::Cpu),
    }
}

/// Puts bytes over a tensor of as many, u8 or f32.
fn put(target: &Tensor, bytes: &[u8]) -> Result<()> {
    let (dims, device) = (target.dims(), target.device());
    match (device, target.dtype()) {
        (Device::Cpu, _) => target.inplace_op1(&Put { bytes }),
        (_, DType::U8) => target.slice_set(&Tensor::from_slice(bytes, dims, device)?, 0, 0),
        _ => {
            let values: Vec<f32> =
                bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            target.slice_set(&Tensor::from_vec(values, dims, device)?, 0, 0)
        }
    }
}

struct Put<'a> {
    bytes: &'a [u8],
}

impl InplaceOp1 for Put<'_> {
    fn name(&self) -> &'static str {
        "kv_put"
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        if let CpuStorage::F32(_) = out {
            let out = host_mut::<f32>(self.name(), out, layout)?;
            for (out, bytes) in out.iter_mut().zip(self.bytes.as_chunks().0) {
                *out = f32::from_le_bytes(*bytes);
            }
            return Ok(());
        }
        let out = host_mut::<u8>(self.name(), out, layout)?;
        if out.len() != self.bytes.len() {
            bail!("kv_put: {} bytes into {}", self.bytes.len(), out.len());
        }
        out.copy_from_slice(self.bytes);
        Ok(())
    }
}
