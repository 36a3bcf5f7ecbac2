//! Every op on CUDA against its CPU reference, on fresh random inputs, ragged sizes and poisoned outputs.
//!
//! With the feature `cuda-emulator` the kernels run on the CPU, with the launch code of the real ones;
//! with `cuda` they run on GPU 0. The test binary needs no Rust where it runs:
//!
//!     cargo test --release -p candle-ds4-ops --features cuda --test cuda --no-run
//!
//! `DS4_TEST_SEED` repeats a run.
#![cfg(any(feature = "cuda", feature = "cuda-emulator"))]

mod heavy;
mod kv;
mod small;

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Result, Tensor};
use candle_ds4_ops::{Matrix, Workspace};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Where a computation is done.
pub enum Place {
    Cpu,
    #[cfg(feature = "cuda-emulator")]
    Emulated(u64),
    #[cfg(feature = "cuda")]
    Gpu(Device),
}

impl Place {
    pub fn device(&self) -> Device {
        match self {
            #[cfg(feature = "cuda")]
            Self::Gpu(device) => device.clone(),
            _ => Device::Cpu,
        }
    }

    /// A copy of a CPU tensor, so that ops in place leave the original alone.
    pub fn tensor(&self, tensor: &Tensor) -> Result<Tensor> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Gpu(device) => tensor.to_device(device),
            _ => tensor.copy(),
        }
    }

    pub fn matrix(&self, matrix: &Matrix) -> Result<Matrix> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Gpu(device) => {
                let mut loader = candle_ds4_ops::device::cuda::Loader::new(device)?;
                let matrix = matrix.to_cuda(&mut loader)?;
                loader.finish()?;
                Ok(matrix)
            }
            _ => Ok(matrix.clone()),
        }
    }
}

/// GPU tests take turns: one thread owns the device.
pub fn turn() -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    cfg!(feature = "cuda").then(|| TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The places where kernels run.
fn places() -> Vec<Place> {
    vec![
        #[cfg(feature = "cuda-emulator")]
        Place::Emulated(1),
        #[cfg(feature = "cuda-emulator")]
        Place::Emulated(0x5eed),
        #[cfg(feature = "cuda")]
        Place::Gpu(gpu()),
    ]
}

#[cfg(feature = "cuda")]
fn gpu() -> Device {
    static GPU: std::sync::OnceLock<Device> = std::sync::OnceLock::new();
    GPU.get_or_init(|| candle_ds4_ops::device::cuda::open(0).unwrap()).clone()
}

/// Runs `f` on the CPU and wherever kernels run. Values may differ by `tolerance` times their own
/// magnitude and the tensor's root mean square; indices not at all. A GPU gives the same bits twice, and
/// so do emulated threads in another order.
pub fn compare(case: &str, tolerance: f64, f: impl Fn(&Place, &Workspace) -> Result<Vec<Tensor>>) {
    let _turn = turn();
    let want = run(&Place::Cpu, &f).unwrap_or_else(|error| panic!("{case}: {error}"));
    let mut emulated: Option<Vec<Tensor>> = None;
    for (index, place) in places().into_iter().enumerate() {
        let got = run(&place, &f).unwrap_or_else(|error| panic!("{case}, place {index}: {error}"));
        assert_eq!(got.len(), want.len());
        for (output, (got, want)) in got.iter().zip(&want).enumerate() {
            let case = format!("{case}, place {index}, output {output}");
            check(&case, tolerance, got, want).unwrap_or_else(|difference| panic!("{difference}"));
        }
        let again = match &place {
            #[cfg(feature = "cuda")]
            Place::Gpu(_) => run(&place, &f).unwrap(),
            _ => emulated.get_or_insert_with(|| got.clone()).clone(),
        };
        for (output, (a, b)) in got.iter().zip(&again).enumerate() {
            let difference = check("", 0.0, a, b);
            assert!(difference.is_ok(), "{case}, place {index}, output {output}: runs differ");
        }
    }
}

/// What comes out wherever kernels run.
pub fn everywhere(f: impl Fn(&Place, &Workspace) -> Result<Vec<Tensor>>) -> Vec<Vec<Tensor>> {
    let _turn = turn();
    places().iter().map(|place| run(place, &f).unwrap()).collect()
}

fn run(
    place: &Place,
    f: &impl Fn(&Place, &Workspace) -> Result<Vec<Tensor>>,
) -> Result<Vec<Tensor>> {
    let ws = Workspace::poisoned(&place.device());
    let body = || f(place, &ws)?.iter().map(|t| t.to_device(&Device::Cpu)?.copy()).collect();
    match place {
        #[cfg(feature = "cuda-emulator")]
        Place::Emulated(seed) => candle_ds4_ops::device::cuda::emulate(*seed, body),
        _ => body(),
    }
}

fn check(
    case: &str,
    tolerance: f64,
    got: &Tensor,
    want: &Tensor,
) -> std::result::Result<(), String> {
    if got.dims() != want.dims() {
        return Err(format!("{case}: {:?} instead of {:?}", got.dims(), want.dims()));
    }
    if want.dtype() != DType::F32 {
        let flat = |t: &Tensor| t.flatten_all()?.to_vec1::<u32>();
        let (got, want) = (flat(got).unwrap(), flat(want).unwrap());
        return match got.iter().zip(&want).position(|(a, b)| a != b) {
            Some(at) => Err(format!("{case}: value {at} is {}, not {}", got[at], want[at])),
            None => Ok(()),
        };
    }
    let flat = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
    let (got, want) = (flat(got).unwrap(), flat(want).unwrap());
    let squares: f64 = want.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    let scale = (squares / want.len().max(1) as f64).sqrt();
    for (at, (&got, &want)) in got.iter().zip(&want).enumerate() {
        let allowed = tolerance * (f64::from(want).abs() + scale);
        let same = got.to_bits() == want.to_bits();
        let difference = (f64::from(got) - f64::from(want)).abs();
        // What is no number is no small difference.
        if !same && (difference.is_nan() || difference > allowed) {
            return Err(format!("{case}: value {at} is {got:e}, not {want:e} (± {allowed:e})"));
        }
    }
    Ok(())
}

/// Random numbers; another seed each run.
pub fn random() -> StdRng {
    let seed = std::env::var("DS4_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().random());
    println!("DS4_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// About normally distributed values.
pub fn normal(rng: &mut StdRng, shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|_| (0..6).map(|_| rng.random_range(-1.0f32..1.0)).sum::<f32>() * 0.7)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A refusal that names `what`, in every place where kernels run.
pub fn refused(what: &str, f: impl Fn(&Place, &Workspace) -> Result<Vec<Tensor>>) {
    let _turn = turn();
    for place in places() {
        let error = run(&place, &f).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(what), "{what} is not in: {error}");
    }
}
