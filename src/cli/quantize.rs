//! `ds4 quantize`: a checkpoint, or another GGUF file, to a GGUF file in the types of a recipe.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{ensure, Context};

use super::meter::{Meter, Unit};
use crate::quantize::{quantize, Imatrix, Input, Options, Plan, Recipe};

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Quantize<'a> {
    /// A checkpoint's folder, or a GGUF file.
    pub input: &'a Path,
    /// The file to write; a dry run needs none.
    pub output: Option<&'a Path>,
    /// `q2`, `q4`, `q8` or `f16`.
    pub recipe: &'a str,
    /// Other types for some layers' routed experts: `37-42=q4_k`; later ones win.
    pub layer_types: &'a [String],
    /// An importance matrix.
    pub imatrix: Option<&'a Path>,
    /// Only say what would be written.
    pub dry_run: bool,
    /// Whether standard error is a terminal.
    pub terminal: bool,
}

/// Does it, and prints what the file holds on `out`.
///
/// # Errors
/// What was typed wrong, and what cannot be read or written.
pub fn run(what: &Quantize<'_>, out: &mut dyn Write) -> anyhow::Result<()> {
    let recipe: Recipe = what.recipe.parse().map_err(anyhow::Error::msg)?;
    let mut options = Options::new(recipe);
    for layer_type in what.layer_types {
        options.overrides.push(layer_type.parse().map_err(anyhow::Error::msg)?);
    }
    options.imatrix = what.imatrix.map(Imatrix::open).transpose()?;
    let input = Input::open(what.input)?;
    let plan = Plan::new(input.metadata(), &options)?;
    print(&plan, out)?;
    if input.ignored() > 0 {
        writeln!(out, "{} tensors of the draft head are left out", input.ignored())?;
    }
    if what.dry_run {
        return Ok(out.flush()?);
    }
    let output = what.output.context("an output file is needed: ds4 quantize IN OUT.gguf")?;
    ensure!(!output.is_dir(), "{}: is a folder; name a file in it", output.display());
    let mut meter = Meter::begin(Unit::Bytes, what.terminal);
    let bytes = quantize(&input, &options, output, &mut |p| {
        meter.set(p.written, p.total, p.tensor);
        ControlFlow::Continue(())
    });
    meter.finish();
    let bytes = bytes.context(
        "not finished; the same command goes on where it stopped (to give up, remove the .part and \
         .part.journal files beside the output)",
    )?;
    writeln!(out, "{}: {bytes} bytes", output.display())?;
    Ok(out.flush()?)
}

/// Prints a plan: a line for each type, and the sums.
///
/// # Errors
/// Only those of `out`.
pub fn print(plan: &Plan, out: &mut dyn Write) -> std::io::Result<()> {
    for (ty, count, bytes) in plan.by_type() {
        let ty = ty.to_string();
        writeln!(out, "{ty:<8} {count:>5} tensors {bytes:>15} bytes")?;
    }
    let (count, bytes) = (plan.tensor_count(), plan.data_bytes());
    let gib = bytes as f64 / (1u64 << 30) as f64;
    writeln!(out, "{count} tensors, {bytes} bytes of tensor data ({gib:.2} GiB)")
}
