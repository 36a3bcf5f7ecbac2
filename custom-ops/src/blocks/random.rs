//! Random weights for tests: any bits, but finite scales of a sane size.

use bytes::Bytes;
use half::f16;
use rand::Rng;

use super::Format;
use crate::Matrix;

/// The blocks of `n` values.
pub(crate) fn blocks(format: Format, n: usize, rng: &mut impl Rng) -> Vec<u8> {
    let mut bytes = vec![0; format.row_bytes(n).unwrap()];
    rng.fill(&mut bytes[..]);
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        let value = rng.random_range(-1f32..1.0);
        let scales: &[usize] = match format {
            Format::F32 => {
                block.copy_from_slice(&value.to_le_bytes());
                continue;
            }
            Format::BF16 => {
                block.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
                continue;
            }
            Format::F16 | Format::Q8_0 | Format::Iq2Xxs => &[0],
            Format::Q2K => &[80, 82],
            Format::Q4K => &[0, 2],
        };
        for &at in scales {
            let scale = f16::from_f32(rng.random_range(-1f32..1.0));
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    bytes
}

/// A weight `[stack, rows, cols]` that lies at an odd address.
pub(crate) fn matrix(
    format: Format,
    [stack, rows, cols]: [usize; 3],
    rng: &mut impl Rng,
) -> Matrix {
    let mut bytes = vec![0];
    bytes.extend(blocks(format, stack * rows * cols, rng));
    Matrix::from_host(format, stack, rows, cols, Bytes::from(bytes).slice(1..)).unwrap()
}
