//! On NVIDIA GPUs: a batch's rows into rings and pages in one launch each; kernel.cu.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{bail, DType, Device, Result, Tensor};

use super::{Ring, RowFormat, Rows};
use crate::device::cuda::{Address, Batch, Gpu, Input, Kernel, Launch, Rings, MAX_SEQUENCES};
use crate::device::upload;
use crate::ragged::Ragged;

/// Kinds of rings that one launch writes.
const MAX_RINGS: usize = 4;

#[repr(C)]
#[derive(Clone, Copy)]
struct WriteRings {
    rows: [Address; MAX_RINGS],
    rings: [Rings; MAX_RINGS],
    batch: Batch,
}

/// Each pair is a kind of ring, one for each sequence, and the batch's rows for it.
pub(super) fn write_rings(
    gpu: &Gpu,
    pairs: &[(Vec<&Ring>, &Tensor)],
    batch: &Ragged,
) -> Result<()> {
    let name = "write_rings";
    for pairs in pairs.chunks(MAX_RINGS) {
        let (of_batch, _table) = Batch::new(name, gpu, batch)?;
        let mut held = Vec::new();
        let mut params = WriteRings {
            rows: [Address::NULL; MAX_RINGS],
            rings: [Rings::NONE; MAX_RINGS],
            batch: of_batch,
        };
        let mut width = 0;
        for (i, (rings, rows)) in pairs.iter().enumerate() {
            let (of_kind, rings) = Rings::new(name, gpu, rings.iter().copied())?;
            let rows_input = gpu.f32(name, rows)?;
            (params.rows[i], params.rings[i]) = (rows_input.address(), of_kind);
            width = width.max(rows.dim(1)?);
            held.push((rings, rows_input));
        }
        let launch =
            Launch::new(batch.tokens(), 256).grid_y(width.div_ceil(256)).grid_z(pairs.len());
        // SAFETY: `WriteRingsParams`; widths were compared by the caller. Rings are written through
        // addresses while their storage is only borrowed: the borrow guards the host's struct, and
        // nothing else runs on this device's stream meanwhile.
        unsafe { gpu.launch(Kernel("write_rings"), launch, &params)? };
    }
    Ok(())
}

#[repr(C)]
#[derive(Clone, Copy)]
struct AppendRows {
    source: Address,
    rows: RowsParam,
    batch: Batch,
    ratio: u32,
    per_sequence: u32,
}

/// Mirrors `Rows` of batch.h.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RowsParam {
    pages: [Address; MAX_SEQUENCES],
    page_rows: u32,
    row_bytes: u32,
    width: u32,
    format: u32,
    nope: u32,
    block: u32,
}

impl RowsParam {
    /// The lists of a batch's sequences, all of one form, with what keeps their page tables alive.
    ///
    /// # Errors
    /// If they differ in form, there are too many, or one is on another device.
    pub(crate) fn new(op: &'static str, gpu: &Gpu, lists: &[&Rows]) -> Result<(Self, Vec<Table>)> {
        if lists.len() > MAX_SEQUENCES {
            bail!("{op}: {} sequences in a batch, at most {MAX_SEQUENCES} on a GPU", lists.len());
        }
        let mut param = Self {
            pages: [Address::NULL; MAX_SEQUENCES],
            page_rows: 0,
            row_bytes: 0,
            width: 0,
            format: 0,
            nope: 0,
            block: 0,
        };
        let mut tables = Vec::with_capacity(lists.len());
        for (i, rows) in lists.iter().enumerate() {
            let same = |first: &&&Rows| {
                (first.page_rows(), first.format()) == (rows.page_rows(), rows.format())
            };
            if lists.first().is_none_or(|first| !same(&first)) {
                bail!("{op}: lists of rows of different forms in one batch");
            }
            let format = rows.format();
            param.page_rows = rows.page_rows() as u32;
            param.width = format.width() as u32;
            param.row_bytes = format.row_bytes() as u32;
            param.block = format.block() as u32;
            (param.format, param.nope) = match format {
                RowFormat::F32 { .. } => (0, 0),
                RowFormat::Fp8 { nope, .. } => (1, nope as u32),
                RowFormat::Fp4 { .. } => (2, 0),
            };
            let table = rows.page_table(op, gpu)?;
            param.pages[i] = table.address;
            tables.push(table);
        }
        Ok((param, tables))
    }
}

/// The rows whose windows end in the batch; pages for them are there.
pub(super) fn append_rows(
    gpu: &Gpu,
    lists: &[&Rows],
    source: &Tensor,
    batch: &Ragged,
    ratio: usize,
) -> Result<()> {
    let name = "append_rows";
    let (rows, _tables) = RowsParam::new(name, gpu, lists)?;
    let (of_batch, _table) = Batch::new(name, gpu, batch)?;
    let source = gpu.f32(name, source)?;
    let params = AppendRows {
        source: source.address(),
        rows,
        batch: of_batch,
        ratio: ratio as u32,
        per_sequence: u32::from(batch.is_fixed()),
    };
    let launch = Launch::new(batch.window_rows(ratio), 256);
    // SAFETY: `AppendRowsParams`; every window that ends has its page, owned by its list alone.
    unsafe { gpu.launch(Kernel("append_rows"), launch, &params) }
}

/// Where the pages of one list are, in device memory: kernels find rows by it.
///
/// It belongs to one list. A list that shares its pages with a clone has a table of its own.
#[derive(Debug, Default)]
pub(super) struct PageTable {
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    /// `[capacity]` i64.
    tensor: Option<Tensor>,
    /// What it holds.
    addresses: Vec<i64>,
}

impl Clone for PageTable {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// A page table's address, valid while this lives.
pub(crate) struct Table {
    address: Address,
    _tensor: Tensor,
}

/// Pages of a million tokens: a table is not moved before, so that what was recorded stays true.
const CAPACITY: usize = 1024;

impl PageTable {
    /// Pages are no longer those that it was told of.
    pub(super) fn forget(&self) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).addresses.clear();
    }

    /// Whether it was last brought up to date with so many pages.
    pub(super) fn lists(&self, pages: usize) -> bool {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.tensor.is_some() && entries.addresses.len() == pages
    }

    /// Brings the table up to date, by one small copy if a page is new.
    pub(super) fn of(
        &self,
        op: &'static str,
        gpu: &Gpu,
        pages: &[Arc<Tensor>],
        device: &Device,
    ) -> Result<Table> {
        let addresses = pages
            .iter()
            .map(|page| gpu.input(op, page, page.dtype()).map(|page| page.address().0 as i64))
            .collect::<Result<Vec<_>>>()?;
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let capacity = entries.tensor.as_ref().map_or(0, Tensor::elem_count);
        if capacity == 0 || addresses.len() > capacity {
            let capacity = addresses.len().next_power_of_two().max(CAPACITY);
            entries.tensor = Some(Tensor::zeros(capacity, DType::I64, device)?);
            entries.addresses.clear();
        }
        let Some(tensor) = entries.tensor.clone() else { bail!("{op}: no page table") };
        let same = entries.addresses.iter().zip(&addresses).take_while(|(a, b)| a == b).count();
        if same < addresses.len() {
            let changed = tensor.narrow(0, same, addresses.len() - same)?;
            upload(&changed, &addresses[same..])?;
        }
        // What is past the pages is read by nobody.
        entries.addresses = addresses;
        let address = gpu.input(op, &tensor, DType::I64).map(|table: Input| table.address())?;
        Ok(Table { address, _tensor: tensor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_structs_are_the_headers() {
        use std::mem::{offset_of, size_of};
        assert_eq!((size_of::<RowsParam>(), offset_of!(RowsParam, page_rows)), (280, 256));
        assert_eq!(offset_of!(WriteRings, batch), 4 * 8 + 4 * 264);
    }
}
