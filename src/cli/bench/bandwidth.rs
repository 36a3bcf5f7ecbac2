//! How fast this machine's memory is, measured beside what is compared with it.

use std::time::{Duration, Instant};

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::ops::device::trim;

/// Bytes of a copy in host memory: more than caches hold.
const HOST_BYTES: usize = 192 << 20;
/// On a GPU, whose caches are larger and whose copies are faster.
const DEVICE_BYTES: usize = 1 << 30;
/// What one thread copies at a time.
const PIECE: usize = 1 << 20;
/// Copies, of which the fastest counts.
const COPIES: usize = 5;

/// Bytes read and written each second by a large copy within the device's memory.
///
/// # Errors
/// If the device has no memory left for it.
pub fn copy_rate(device: &Device) -> Result<f64> {
    let (bytes, time) = match device.is_cpu() {
        true => (HOST_BYTES, host_copy()),
        false => (DEVICE_BYTES, device_copy(device)?),
    };
    Ok(2.0 * bytes as f64 / time.as_secs_f64().max(1e-9))
}

/// On all cores.
fn host_copy() -> Duration {
    let source = vec![1u8; HOST_BYTES];
    let mut target = vec![2u8; HOST_BYTES];
    let copies = (0..COPIES).map(|_| {
        let began = Instant::now();
        target.par_chunks_mut(PIECE).zip(source.par_chunks(PIECE)).for_each(|(to, from)| {
            to.copy_from_slice(from);
        });
        std::hint::black_box(&mut target);
        began.elapsed()
    });
    copies.min().unwrap_or(Duration::MAX)
}

fn device_copy(device: &Device) -> Result<Duration> {
    let source = Tensor::zeros(DEVICE_BYTES / 4, DType::F32, device)?;
    let mut best = Duration::MAX;
    // The first one allocates.
    for _ in 0..=COPIES {
        device.synchronize()?;
        let began = Instant::now();
        let copy = source.copy()?;
        device.synchronize()?;
        best = best.min(began.elapsed());
        drop(copy);
    }
    drop(source);
    // What is measured next must not have this in its memory.
    trim(device)?;
    Ok(best)
}
