//! The last rows of a sequence.

use candle_core::{bail, DType, Device, Result, Tensor};

use super::Copy;
use crate::device::timed;
use crate::ragged::{Ragged, Span};

/// A ring of f32 rows: the row of position `p` is in slot `p mod slots`.
#[derive(Debug)]
pub struct Ring {
    data: Tensor,
    slots: usize,
}

impl Ring {
    /// A ring of `slots` rows of `width` values.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn new(slots: usize, width: usize, device: &Device) -> Result<Self> {
        Ok(Self { data: Tensor::zeros((slots, width), DType::F32, device)?, slots })
    }

    /// The rows, `[slots, width]`.
    pub fn data(&self) -> &Tensor {
        &self.data
    }

    /// How many positions it remembers.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.elem_count() * 4
    }

    /// Writes all slots.
    ///
    /// # Errors
    /// If `rows` is not as the data.
    pub fn overwrite(&self, rows: &Tensor) -> Result<()> {
        if rows.dims() != self.data.dims() {
            bail!("ring: {:?} into {:?}", rows.dims(), self.data.dims());
        }
        self.data.slice_set(rows, 0, 0)
    }

    /// A copy that shares nothing.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn duplicate(&self) -> Result<Self> {
        Ok(Self { data: self.data.copy()?, slots: self.slots })
    }

    /// Writes the rows of `span` out of a batch's rows `[tokens, width]`; of a span longer than
    /// the ring, the last ones.
    ///
    /// # Errors
    /// If widths differ.
    pub fn write(&self, batch: &Tensor, span: &Span) -> Result<()> {
        let mut position = span.start + span.len.saturating_sub(self.slots);
        while position < span.end() {
            let slot = position % self.slots;
            let run = (self.slots - slot).min(span.end() - position);
            let source = batch.narrow(0, span.row + (position - span.start), run)?;
            self.data.narrow(0, slot, run)?.inplace_op1(&Copy { source: &source })?;
            position += run;
        }
        Ok(())
    }
}

/// Writes a batch's rows into rings: each pair is a kind of ring, one for each sequence, and the rows
/// `[tokens, width]` for it. See [`Ring::write`].
///
/// # Errors
/// If widths differ, or a kind has not one ring for each sequence.
pub fn write_rings(pairs: &[(Vec<&Ring>, &Tensor)], batch: &Ragged) -> Result<()> {
    for (rings, rows) in pairs {
        if rings.len() != batch.spans().len() {
            bail!("write_rings: {} rings for {} sequences", rings.len(), batch.spans().len());
        }
        let (tokens, width) = rows.dims2()?;
        if let Some(ring) = rings.iter().find(|ring| ring.data.dims() != [ring.slots, width]) {
            bail!("write_rings: rows of {width} into a ring {:?}", ring.data.dims());
        }
        if tokens != batch.tokens() {
            bail!("write_rings: {tokens} rows of a batch of {}", batch.tokens());
        }
    }
    timed(
        batch.positions(),
        || Ok(("write_rings".to_owned(), 0)),
        || {
            #[cfg(cuda_kernels)]
            if let Some(gpu) = crate::device::cuda::Gpu::of(batch.positions().device())? {
                return super::cuda::write_rings(&gpu, pairs, batch);
            }
            for (rings, rows) in pairs {
                for (ring, span) in rings.iter().zip(batch.spans()) {
                    ring.write(rows, span)?;
                }
            }
            Ok(())
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ragged::Ragged;

    const WIDTH: usize = 3;

    /// Rows that say where they belong: `[position, position + ½, -position]`.
    fn rows(positions: impl Iterator<Item = usize>) -> Result<Tensor> {
        let values: Vec<f32> = positions.map(|p| p as f32).flat_map(|p| [p, p + 0.5, -p]).collect();
        Tensor::from_slice(&values, (values.len() / WIDTH, WIDTH), &Device::Cpu)
    }

    /// What a ring holds once positions `0..len` are written, in whatever pieces.
    fn expected(slots: usize, len: usize) -> Result<Vec<Vec<f32>>> {
        let mut wanted = vec![vec![0.0; WIDTH]; slots];
        for position in 0..len {
            wanted[position % slots] = rows(position..position + 1)?.to_vec2()?.remove(0);
        }
        Ok(wanted)
    }

    #[test]
    fn the_last_positions_are_in_their_slots_however_they_were_written() -> Result<()> {
        for slots in [1, 4, 7] {
            // Shorter than the ring, its length, and several times round it.
            for first in 0..=3 * slots {
                for second in [0, 1, slots - 1, slots, slots + 1, 5 * slots + 2] {
                    let ring = Ring::new(slots, WIDTH, &Device::Cpu)?;
                    for span in [(0, first), (first, second)] {
                        let batch = rows(span.0..span.0 + span.1)?;
                        let span = Ragged::new(&[span], &Device::Cpu)?.spans()[0];
                        ring.write(&batch, &span)?;
                    }
                    let wanted = expected(slots, first + second)?;
                    let case = format!("{slots} slots, {first} and {second} rows");
                    assert_eq!(ring.data().to_vec2::<f32>()?, wanted, "{case}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_sequence_takes_its_own_rows_of_a_batch_and_a_copy_shares_nothing() -> Result<()> {
        let rings = [Ring::new(4, WIDTH, &Device::Cpu)?, Ring::new(4, WIDTH, &Device::Cpu)?];
        let batch = rows((0..6).chain(0..3))?;
        let ragged = Ragged::new(&[(0, 6), (0, 3)], &Device::Cpu)?;
        for (ring, span) in rings.iter().zip(ragged.spans()) {
            ring.write(&batch, span)?;
        }
        assert_eq!(rings[0].data().to_vec2::<f32>()?, expected(4, 6)?);
        assert_eq!(rings[1].data().to_vec2::<f32>()?, expected(4, 3)?);

        let copy = rings[0].duplicate()?;
        rings[0].write(&rows(6..8)?, &Ragged::new(&[(6, 2)], &Device::Cpu)?.spans()[0])?;
        assert_eq!(copy.data().to_vec2::<f32>()?, expected(4, 6)?);
        assert_eq!(rings[0].data().to_vec2::<f32>()?, expected(4, 8)?);
        assert_eq!((copy.slots(), copy.bytes()), (4, 4 * WIDTH * 4));

        let narrow = Tensor::zeros((2, WIDTH - 1), DType::F32, &Device::Cpu)?;
        let span = Ragged::new(&[(8, 2)], &Device::Cpu)?.spans()[0];
        assert!(rings[0].write(&narrow, &span).is_err(), "another width");
        Ok(())
    }
}
