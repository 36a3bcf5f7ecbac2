//! `ds4 synth`: a file of the real model's shape with random weights.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{ensure, Context};

use super::meter::{Meter, Unit};
use super::quantize::print;
use crate::quantize::{synth, Recipe, Synth};

/// Makes the file at `output`, or with `dry_run` only prints what it would hold on `out`.
///
/// `distinct_layers` bounds how many layers of each kind have data of their own. `terminal` says
/// whether standard error is one.
///
/// # Errors
/// What was typed wrong, and what cannot be written.
pub fn run(
    recipe: &str,
    output: Option<&Path>,
    distinct_layers: Option<usize>,
    dry_run: bool,
    terminal: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let recipe: Recipe = recipe.parse().map_err(anyhow::Error::msg)?;
    ensure!(distinct_layers != Some(0), "--distinct-layers 0: at least one layer of each kind");
    let what = Synth { distinct_layers, ..Synth::flash(recipe)? };
    print(&what.plan()?, out)?;
    if dry_run {
        return Ok(out.flush()?);
    }
    let output = output.context("an output file is needed: ds4 synth --recipe q2 OUT.gguf")?;
    let mut meter = Meter::begin(Unit::Bytes, terminal);
    let bytes = synth(&what, output, &mut |p| {
        meter.set(p.written, p.total, p.tensor);
        ControlFlow::Continue(())
    });
    meter.finish();
    writeln!(out, "{}: {} bytes", output.display(), bytes?)?;
    Ok(out.flush()?)
}
