//! Tensor by tensor, on all cores, into a file that appears whole or not at all.

use std::cell::RefCell;
use std::io::Write;
use std::ops::{ControlFlow, Range};
use std::path::Path;

use rayon::prelude::*;

use super::error::{QuantizeError, Result};
use super::gguf_source::format;
use super::input::Source;
use super::journal::{Fnv, Journal};
use super::plan::{Options, Plan, Planned};
use super::{Imatrix, Input, Role};
use crate::gguf::{self, FillResult, Writer};
use crate::system;

/// Values that a core takes at a time.
const CHUNK: usize = 1 << 20;

/// Where a run is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The tensor in work.
    pub tensor: &'a str,
    /// Its number, from 1.
    pub number: usize,
    /// Tensors in all.
    pub tensors: usize,
    /// Bytes written, those of an earlier run included.
    pub written: u64,
    /// Bytes to write in all.
    pub total: u64,
}

/// Quantises `input` into a GGUF file at `out`, and returns its size in bytes.
///
/// The data goes to `out` with `.part` appended; a file at `out` stays as it was until all is
/// written and on the disk. If a run is interrupted, by a crash, by a full disk, or by `progress`
/// breaking off, the same call goes on after the last finished tensor: `out.part.journal` says which
/// that is, and to which inputs and options it belongs. In memory are a few rows a core.
///
/// # Errors
/// What cannot be read, planned or written.
pub fn quantize(
    input: &Input,
    options: &Options,
    out: &Path,
    progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<u64> {
    let plan = Plan::new(input.metadata(), options)?;
    let source = input.source.as_ref();
    let journal = Journal::new(out, &source.files(), &fingerprint(&plan, options))?;
    let finished = journal.finished();
    let total = plan.tensors.iter().map(|t| t.bytes).sum();
    let written = plan.tensors.iter().take(finished).map(|t| t.bytes).sum();
    check_space(out, total - written)?;
    let state = RefCell::new((progress, written));
    let report = Report { tensors: plan.tensors.len(), total, state };
    let mut writer = Writer::new(plan.metadata.clone());
    for (index, planned) in plan.tensors.iter().enumerate() {
        let (report, imatrix) = (&report, options.imatrix.as_ref());
        let fill = move |out: &mut dyn Write| -> FillResult {
            fill(source, planned, imatrix, index + 1, report, out)
        };
        writer.tensor(&planned.slot.name, &planned.slot.dims, planned.ty, fill)?;
    }
    match writer.save_from(out, finished, &mut |tensors| journal.record(tensors)) {
        Ok(bytes) => {
            journal.remove();
            Ok(bytes)
        }
        Err(error) => Err(unwrapped(error)),
    }
}

/// Refuses to begin what cannot be finished.
fn check_space(out: &Path, needed: u64) -> Result<()> {
    let free = system::free_space(out).map_err(QuantizeError::io(out, "measure the disk of"))?;
    if needed > free {
        return Err(QuantizeError::Space { path: out.to_owned(), needed, free });
    }
    Ok(())
}

/// What was ours before it passed through the writer.
fn unwrapped(error: gguf::Error) -> QuantizeError {
    match error {
        gguf::Error::File { path, error } => match *error {
            gguf::Error::Source { tensor, error } => match error.downcast::<QuantizeError>() {
                Ok(ours) => *ours,
                Err(error) => {
                    let error = Box::new(gguf::Error::Source { tensor, error });
                    gguf::Error::File { path, error }.into()
                }
            },
            other => gguf::Error::File { path, error: Box::new(other) }.into(),
        },
        other => other.into(),
    }
}

/// What tells two runs with the same input apart.
fn fingerprint(plan: &Plan, options: &Options) -> Vec<u8> {
    let mut hash = Fnv::new();
    for t in &plan.tensors {
        hash.add(t.slot.name.as_bytes());
        hash.add(&t.ty.id().to_le_bytes());
    }
    if let Some(imatrix) = &options.imatrix {
        hash.add(&imatrix.to_bytes());
    }
    hash.0.to_le_bytes().to_vec()
}

/// Hears how far a run is, and says whether it is to go on.
type Tell<'p> = dyn FnMut(Progress<'_>) -> ControlFlow<()> + 'p;

/// The caller's progress, and the bytes written so far.
struct Report<'p> {
    tensors: usize,
    total: u64,
    state: RefCell<(&'p mut Tell<'p>, u64)>,
}

impl Report<'_> {
    fn wrote(&self, tensor: &str, number: usize, bytes: usize) -> Result<()> {
        let mut state = self.state.borrow_mut();
        state.1 += bytes as u64;
        let (tensors, written, total) = (self.tensors, state.1, self.total);
        match (state.0)(Progress { tensor, number, tensors, written, total }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(QuantizeError::Stopped),
        }
    }
}

/// Writes one tensor.
fn fill(
    source: &dyn Source,
    planned: &Planned,
    imatrix: Option<&Imatrix>,
    number: usize,
    report: &Report<'_>,
    out: &mut dyn Write,
) -> FillResult {
    let Planned { slot, ty, .. } = planned;
    let mut put = |bytes: &[u8]| -> FillResult {
        out.write_all(bytes)?;
        Ok(report.wrote(&slot.name, number, bytes.len())?)
    };
    if slot.role == Role::Indices {
        let bytes: Vec<u8> =
            source.indices(slot)?.into_iter().flat_map(|v| v.to_le_bytes()).collect();
        return put(&bytes);
    }
    if let Some(bytes) = source.unchanged(slot, *ty) {
        return bytes.chunks(CHUNK * 4).try_for_each(put);
    }
    let chunks = chunks(slot.slices(), slot.rows(), slot.cols());
    for batch in chunks.chunks(rayon::current_num_threads()) {
        let encoded: Vec<Vec<u8>> = batch
            .par_iter()
            .map(|(slice, rows)| encode(source, planned, imatrix, *slice, rows.clone()))
            .collect::<Result<_>>()?;
        encoded.iter().try_for_each(|bytes| put(bytes))?;
    }
    Ok(())
}

/// Runs of rows of one matrix each, about [`CHUNK`] values long.
fn chunks(slices: usize, rows: usize, cols: usize) -> Vec<(usize, Range<usize>)> {
    let step = (CHUNK / cols.max(1)).max(1);
    let of = |slice| {
        let starts = (0..rows).step_by(step);
        starts.map(move |start| (slice, start..(start + step).min(rows)))
    };
    (0..slices).flat_map(of).collect()
}

fn encode(
    source: &dyn Source,
    planned: &Planned,
    imatrix: Option<&Imatrix>,
    slice: usize,
    rows: Range<usize>,
) -> Result<Vec<u8>> {
    let Planned { slot, ty, .. } = planned;
    let cols = slot.cols();
    let wrong = |problem: String| QuantizeError::tensor("output", &slot.name, problem);
    let format = format(*ty).ok_or_else(|| wrong(format!("type {ty} cannot be written")))?;
    let mut values = vec![0f32; rows.len() * cols];
    source.rows(slot, slice, rows.clone(), &mut values)?;
    let weights = imatrix.and_then(|imatrix| imatrix.columns(&slot.name, slice, cols));
    let row_bytes = format.row_bytes(cols).map_err(|error| wrong(error.to_string()))?;
    let mut out = vec![0; rows.len() * row_bytes];
    for ((row, values), out) in
        rows.zip(values.chunks_exact(cols)).zip(out.chunks_exact_mut(row_bytes))
    {
        format.encode(values, weights, out).map_err(|error| {
            let place = if slot.slices() > 1 { format!("expert {slice}, ") } else { String::new() };
            wrong(format!("{place}row {row}: {error}"))
        })?;
    }
    Ok(out)
}
