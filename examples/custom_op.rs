//! A 2-bit matrix times candle tensors, with the ops crate alone.
//!
//!     cargo run --release --example custom_op
//!
//! The blocks are made by hand here; those of a GGUF file come from `candle_ds4::weights`.

use candle_ds4::candle::{Device, Result, Tensor};
use candle_ds4::ops::{matmul, Format, Matrix, Workspace};
use half::f16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const ROWS: usize = 2048;
const COLS: usize = 4096;
const TOKENS: usize = 8;

fn main() -> Result<()> {
    // A Q2_K block is 256 values in 84 bytes: 16 scales and minima of 4 bits each, 256 values of
    // 2 bits, and an f16 factor for all scales (at byte 80) and one for all minima (at byte 82).
    let format = Format::Q2K;
    let mut rng = StdRng::seed_from_u64(7);
    let mut blocks = vec![0u8; ROWS * format.row_bytes(COLS)?];
    rng.fill(&mut blocks[..]);
    for block in blocks.chunks_exact_mut(format.block_bytes()) {
        block[80..82].copy_from_slice(&f16::from_f32(0.001).to_le_bytes());
        block[82..84].copy_from_slice(&f16::from_f32(0.0015).to_le_bytes());
    }
    let weight = Matrix::from_host(format, 1, ROWS, COLS, blocks.into())?;

    // y = x · Wᵀ: the blocks are decoded inside the product, never as a whole.
    let x = Tensor::randn(0f32, 1.0, (TOKENS, COLS), &Device::Cpu)?;
    let workspace = Workspace::new(&Device::Cpu);
    let y = matmul(&x, &weight, &workspace)?;

    // candle's own product with the decoded matrix.
    let decoded = weight.dequantize()?;
    let expected = x.matmul(&decoded.t()?)?;
    let largest = (&y - &expected)?.abs()?.max_all()?.to_scalar::<f32>()?;
    let size = expected.sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>()?;
    println!(
        "{weight:?}: {:.1} MB instead of {:.1} MB in f32",
        weight.byte_len() as f64 / 1e6,
        (decoded.elem_count() * 4) as f64 / 1e6
    );
    println!("values of size {size:.3}; largest difference from candle's product {largest:.1e}");
    Ok(())
}
