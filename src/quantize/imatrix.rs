//! Importance matrices: the mean square of what each column of a weight is multiplied with.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Tensor};
use candle_ds4_ops::{self as ops, Matrix, Mlp, Workspace};

use super::error::{QuantizeError, Result};
use super::Slot;
use crate::gguf::Metadata;
use crate::model::Observer;

/// Mean squares by tensor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    /// The tensors.
    pub entries: Vec<ImatrixEntry>,
    /// Pieces of text that it was collected from.
    pub chunks: u32,
    /// The name of that text.
    pub dataset: String,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct ImatrixEntry {
    /// Its GGUF name.
    pub name: String,
    /// How many times it was used.
    pub calls: u32,
    /// Mean squares, a row of columns for each expert; zeros where there was nothing to see.
    pub means: Vec<f32>,
}

impl Imatrix {
    /// Reads a file in llama.cpp's legacy format: `i32` entries, each a name with its length, `i32`
    /// calls, `i32` values, and the means times calls; then, if at all, `i32` chunks and a text's
    /// name.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged; the message says at which byte.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(QuantizeError::io(path, "read"))?;
        Self::from_bytes(&bytes).map_err(|problem| QuantizeError::file(path, problem))
    }

    /// Reads the bytes of such a file.
    ///
    /// # Errors
    /// What is damaged, and at which byte.
    pub fn from_bytes(bytes: &[u8]) -> std::result::Result<Self, String> {
        let mut rest = Rest { bytes, at: 0 };
        let count = rest.count("number of entries")?;
        if count == 0 {
            return Err("an importance matrix without entries".to_owned());
        }
        let mut entries = Vec::new();
        for _ in 0..count {
            let len = rest.count("length of a name")?;
            let name = String::from_utf8_lossy(rest.take(len, "name")?).into_owned();
            let calls = rest.count("number of calls")? as u32;
            let values = rest.count("number of values")?;
            let bytes = values.checked_mul(4).ok_or("too many values")?;
            let values = rest.take(bytes, "values")?.as_chunks::<4>().0;
            let calls_or_one = calls.max(1) as f32;
            let means: Vec<f32> =
                values.iter().map(|b| f32::from_le_bytes(*b) / calls_or_one).collect();
            if let Some(at) = means.iter().position(|mean| !mean.is_finite() || *mean < 0.0) {
                return Err(format!("{name}: value {at} is {}, no mean of squares", means[at]));
            }
            entries.push(ImatrixEntry { name, calls, means });
        }
        let mut matrix = Self { entries, chunks: 0, dataset: String::new() };
        if rest.at < bytes.len() {
            matrix.chunks = rest.count("number of chunks")? as u32;
            let len = rest.count("length of the text's name")?;
            matrix.dataset = String::from_utf8_lossy(rest.take(len, "text's name")?).into_owned();
        }
        Ok(matrix)
    }

    /// The bytes of a file in the same format.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let count = |out: &mut Vec<u8>, n: usize| out.extend((n as i32).to_le_bytes());
        count(&mut out, self.entries.len());
        for entry in &self.entries {
            count(&mut out, entry.name.len());
            out.extend_from_slice(entry.name.as_bytes());
            count(&mut out, entry.calls as usize);
            count(&mut out, entry.means.len());
            let calls = entry.calls.max(1) as f32;
            out.extend(entry.means.iter().flat_map(|mean| (mean * calls).to_le_bytes()));
        }
        count(&mut out, self.chunks as usize);
        count(&mut out, self.dataset.len());
        out.extend_from_slice(self.dataset.as_bytes());
        out
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// The system's.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let written = std::fs::write(&part, self.to_bytes())
            .and_then(|()| std::fs::File::open(&part)?.sync_all())
            .and_then(|()| std::fs::rename(&part, path));
        written.map_err(|error| {
            // The first error is the one to report.
            let _ = std::fs::remove_file(&part);
            QuantizeError::io(path, "write")(error)
        })
    }

    /// The weights of a matrix's columns, if they are known.
    pub(super) fn columns(&self, tensor: &str, slice: usize, cols: usize) -> Option<&[f32]> {
        let entry = self.entries.iter().find(|entry| entry.name == tensor)?;
        entry.means.get(slice * cols..(slice + 1) * cols)
    }

    /// Refuses a matrix of another model.
    pub(super) fn check(&self, slots: &[Slot]) -> Result<()> {
        let mut known = 0;
        for entry in &self.entries {
            let Some(slot) = slots.iter().find(|slot| slot.name == entry.name) else {
                continue;
            };
            let (found, wanted) = (entry.means.len(), slot.cols() * slot.slices());
            if found != wanted {
                return Err(QuantizeError::Imatrix(format!(
                    "{} has {found} values, the model's tensor {wanted}; it is another model's",
                    entry.name
                )));
            }
            known += 1;
        }
        match known {
            0 => Err(QuantizeError::Imatrix(
                "none of its entries is a tensor of this model; it is another model's".to_owned(),
            )),
            _ => Ok(()),
        }
    }

    /// What a file that was made with it says about it.
    pub(super) fn describe(&self, out: &mut Metadata) -> Result<()> {
        out.insert("quantize.imatrix.dataset", self.dataset.as_str())?;
        out.insert("quantize.imatrix.entries_count", self.entries.len() as u32)?;
        out.insert("quantize.imatrix.chunks_count", self.chunks)?;
        Ok(())
    }
}

/// Bytes that are still to be read.
struct Rest<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize, what: &str) -> std::result::Result<&'a [u8], String> {
        let end = self.at.checked_add(len);
        let found = end.and_then(|end| self.bytes.get(self.at..end));
        let found = found.ok_or_else(|| format!("cut short at byte {}, in the {what}", self.at))?;
        self.at += len;
        Ok(found)
    }

    fn count(&mut self, what: &str) -> std::result::Result<usize, String> {
        let at = self.at;
        let bytes = self.take(4, what)?;
        let count = bytes.first_chunk::<4>().map(|b| i32::from_le_bytes(*b)).unwrap_or(-1);
        usize::try_from(count).map_err(|_| format!("{count} as {what} at byte {at}"))
    }
}

/// Collects mean squares while a model runs over text: give it to
/// [`Model::forward_observed`](crate::model::Model::forward_observed).
///
/// Gate and up projections of an expert see the normed input of the tokens that chose it, the down
/// projection sees the gated row times the token's weight. What the model's own op keeps inside is
/// computed again here, expert by expert, so that collecting costs nothing where nobody collects.
#[derive(Default)]
pub struct Collector {
    layers: Mutex<BTreeMap<usize, Layer>>,
}

/// Sums of squares of one layer, a row for each expert.
struct Layer {
    tokens: Vec<u64>,
    inputs: Vec<f64>,
    gated: Vec<f64>,
    calls: u32,
}

impl Collector {
    /// Nothing seen.
    pub fn new() -> Self {
        Self::default()
    }

    /// Experts that no token has chosen, and all experts, over the layers seen.
    pub fn unseen(&self) -> (usize, usize) {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = || layers.values().flat_map(|layer| &layer.tokens);
        (tokens().filter(|n| **n == 0).count(), tokens().count())
    }

    /// The means of what was seen.
    pub fn finish(self, chunks: u32, dataset: &str) -> Imatrix {
        let layers = self.layers.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut entries = Vec::new();
        for (number, layer) in layers {
            let means = |sums: &[f64]| -> Vec<f32> {
                let cols = sums.len() / layer.tokens.len().max(1);
                let rows = sums.chunks(cols.max(1)).zip(&layer.tokens);
                rows.flat_map(|(row, n)| row.iter().map(|s| (s / (*n).max(1) as f64) as f32))
                    .collect()
            };
            for (part, sums) in
                [("gate", &layer.inputs), ("up", &layer.inputs), ("down", &layer.gated)]
            {
                let name = format!("blk.{number}.ffn_{part}_exps.weight");
                entries.push(ImatrixEntry { name, calls: layer.calls, means: means(sums) });
            }
        }
        Imatrix { entries, chunks, dataset: dataset.to_owned() }
    }
}

impl Observer for Collector {
    fn experts(
        &self,
        layer: usize,
        xs: &Tensor,
        routed: Mlp<'_>,
        ids: &Tensor,
        weights: &Tensor,
        clamp: f32,
    ) -> candle_core::Result<()> {
        let (experts, width, hidden) =
            (routed.gate.stack(), routed.gate.rows(), routed.gate.cols());
        let ids = ids.to_vec2::<u32>()?;
        let weights = weights.to_vec2::<f32>()?;
        let rows = xs.to_vec2::<f32>()?;
        let ws = Workspace::new(&Device::Cpu);
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let sums = layers.entry(layer).or_insert_with(|| Layer {
            tokens: vec![0; experts],
            inputs: vec![0.0; experts * hidden],
            gated: vec![0.0; experts * width],
            calls: 0,
        });
        sums.calls = sums.calls.saturating_add(1);
        for expert in 0..experts {
            let chosen: Vec<(&Vec<f32>, f32)> = (ids.iter().zip(&weights).zip(&rows))
                .flat_map(|((ids, weights), row)| {
                    let of = ids.iter().zip(weights);
                    of.filter(|(id, _)| **id as usize == expert).map(move |(_, w)| (row, *w))
                })
                .collect();
            if chosen.is_empty() {
                continue;
            }
            let x: Vec<f32> = chosen.iter().flat_map(|(row, _)| row.iter().copied()).collect();
            let n = chosen.len();
            add_squares(&mut sums.inputs[expert * hidden..][..hidden], &x);
            let x = Tensor::from_vec(x, (n, hidden), &Device::Cpu)?;
            let _frame = ws.frame();
            let gate = ops::matmul(&x, &slice_of(routed.gate, expert)?, &ws)?.to_vec2::<f32>()?;
            let up = ops::matmul(&x, &slice_of(routed.up, expert)?, &ws)?.to_vec2::<f32>()?;
            for ((gate, up), (_, weight)) in gate.iter().zip(&up).zip(&chosen) {
                let gated: Vec<f32> = gate
                    .iter()
                    .zip(up)
                    .map(|(gate, up)| {
                        let gate = gate.min(clamp);
                        gate / (1.0 + (-gate).exp()) * up.clamp(-clamp, clamp) * weight
                    })
                    .collect();
                add_squares(&mut sums.gated[expert * width..][..width], &gated);
            }
            sums.tokens[expert] += n as u64;
        }
        Ok(())
    }
}

/// Adds the squares of rows to the sums of their columns.
fn add_squares(sums: &mut [f64], rows: &[f32]) {
    for row in rows.chunks_exact(sums.len()) {
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum += f64::from(*x) * f64::from(*x);
        }
    }
}

/// One matrix of a stack.
fn slice_of(stack: &Matrix, slice: usize) -> candle_core::Result<Matrix> {
    let Some(bytes) = stack.bytes() else {
        candle_core::bail!(
            "an importance matrix is collected on the CPU: the weights are elsewhere"
        );
    };
    let len = bytes.len() / stack.stack().max(1);
    let bytes = bytes.slice(slice * len..(slice + 1) * len);
    Matrix::from_host(stack.format(), 1, stack.rows(), stack.cols(), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Imatrix {
        let entry = |name: &str, calls, means: &[f32]| ImatrixEntry {
            name: name.to_owned(),
            calls,
            means: means.to_vec(),
        };
        Imatrix {
            entries: vec![
                entry("blk.0.ffn_up_exps.weight", 4, &[0.5, 0.0, 2.0]),
                entry("blk.0.ffn_down_exps.weight", 1, &[1.5]),
            ],
            chunks: 3,
            dataset: "prose.txt".to_owned(),
        }
    }

    #[test]
    fn legacy_files_come_back_byte_for_byte() {
        let bytes = example().to_bytes();
        // Entries, a name of 24 bytes, calls, values, the first value times calls.
        assert_eq!(bytes[..8], [2, 0, 0, 0, 24, 0, 0, 0]);
        assert_eq!(bytes[32..44], [4, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 64]);
        let back = Imatrix::from_bytes(&bytes).unwrap();
        assert_eq!(back, example());
        assert_eq!(back.columns("blk.0.ffn_up_exps.weight", 1, 1), Some(&[0.0][..]));
        // Older files end behind the entries.
        let short = &bytes[..bytes.len() - 8 - "prose.txt".len()];
        assert_eq!(Imatrix::from_bytes(short).unwrap().entries, example().entries);
    }

    #[test]
    fn damaged_files_are_refused_by_place() {
        let bytes = example().to_bytes();
        let whole = bytes.len() - 8 - "prose.txt".len();
        for len in (0..bytes.len()).filter(|len| *len != whole) {
            assert!(Imatrix::from_bytes(&bytes[..len]).unwrap_err().contains("cut short"), "{len}");
        }
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] = 0xff;
            let _ = Imatrix::from_bytes(&bytes);
        }
        assert!(Imatrix::from_bytes(&[0xff; 64]).unwrap_err().contains("byte 0"));
        let mut negative = example();
        negative.entries[0].means[1] = -1.0;
        let error = Imatrix::from_bytes(&negative.to_bytes()).unwrap_err();
        assert!(error.contains("value 1"), "{error}");
    }

    /// Values that look random, from −1 to 1.
    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn means_are_those_of_the_tokens_that_chose_an_expert() -> candle_core::Result<()> {
        let (tokens, experts, hidden, width, k, clamp) = (7, 5, 6, 4, 2, 0.8f32);
        let cpu = &Device::Cpu;
        let stack = |rows: usize, cols: usize, seed| {
            let values = noise(experts * rows * cols, seed);
            Matrix::from_tensor(&Tensor::from_vec(values, (experts, rows, cols), cpu)?)
        };
        let (gate, up) = (stack(width, hidden, 1)?, stack(width, hidden, 2)?);
        let down = stack(hidden, width, 3)?;
        let xs = noise(tokens * hidden, 4);
        // Expert 3 is never chosen; token 2 chooses expert 4 twice.
        let ids = [0, 1, 1, 2, 4, 4, 2, 0, 0, 2, 1, 4, 0, 4u32];
        let weights: Vec<f32> = noise(tokens * k, 5).iter().map(|w| w + 1.5).collect();

        let collector = Collector::new();
        // In two passes, of which the second has the last two tokens.
        for (first, n) in [(0, 5), (5, 2)] {
            let x = &xs[first * hidden..(first + n) * hidden];
            let x = Tensor::from_slice(x, (n, hidden), cpu)?;
            let of = first * k..(first + n) * k;
            let ids = Tensor::from_slice(&ids[of.clone()], (n, k), cpu)?;
            let weights = Tensor::from_slice(&weights[of], (n, k), cpu)?;
            let routed = Mlp { gate: &gate, up: &up, down: &down };
            collector.experts(9, &x, routed, &ids, &weights, clamp)?;
        }
        assert_eq!(collector.unseen(), (1, 5));
        let found = collector.finish(1, "noise");

        let matrices = [&gate, &up].map(|m| m.dequantize().unwrap().to_vec3::<f32>().unwrap());
        for expert in 0..experts {
            let chosen: Vec<usize> =
                (0..tokens * k).filter(|at| ids[*at] as usize == expert).collect();
            let n = chosen.len().max(1) as f32;
            let mut inputs = vec![0f32; hidden];
            let mut gated = vec![0f32; width];
            for at in chosen {
                let x = &xs[at / k * hidden..][..hidden];
                for (sum, x) in inputs.iter_mut().zip(x) {
                    *sum += x * x / n;
                }
                for (row, sum) in gated.iter_mut().enumerate() {
                    let [gate, up] = [0, 1].map(|m| {
                        let row = &matrices[m][expert][row];
                        row.iter().zip(x).map(|(w, x)| w * x).sum::<f32>()
                    });
                    let gate = gate.min(clamp);
                    let silu = gate / (1.0 + (-gate).exp());
                    *sum += (silu * up.clamp(-clamp, clamp) * weights[at]).powi(2) / n;
                }
            }
            let wanted = [("gate", &inputs), ("up", &inputs), ("down", &gated)];
            for (part, wanted) in wanted {
                let name = format!("blk.9.ffn_{part}_exps.weight");
                let found = found.columns(&name, expert, wanted.len()).unwrap();
                for (found, wanted) in found.iter().zip(wanted) {
                    let off = (found - wanted).abs();
                    assert!(off < 1e-5, "{name}, expert {expert}: {found} is not {wanted}");
                }
            }
        }
        Ok(())
    }
}
