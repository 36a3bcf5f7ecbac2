//! Every kernel against its op's CPU reference, on fresh random inputs: emulated, under several
//! orders of threads, and on an Apple GPU where there is one.

mod attention;
mod experts;
mod matmul;
mod rows;
mod sampling;
mod selection;
mod settle;

use std::sync::LazyLock;

use candle_core::{DType, Device, Result, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::blocks::random;
use crate::{Format, Matrix, Workspace};

/// Who runs an op, here or there.
type Go<'a, T> = &'a dyn Fn(&dyn Fn(&Workspace) -> Result<T>) -> T;

/// Where kernels run.
enum Place {
    #[cfg(feature = "metal-emulator")]
    Emulated(u64),
    #[cfg(feature = "metal")]
    Device(Device),
}

/// All places that this build and this machine have: at least one.
fn places() -> Vec<Place> {
    Vec::from([
        #[cfg(feature = "metal-emulator")]
        Place::Emulated(0),
        #[cfg(feature = "metal-emulator")]
        // 0 is the ascending order of threads.
        Place::Emulated(seed().max(1)),
        #[cfg(feature = "metal")]
        Place::Device(Device::new_metal(0).unwrap()),
    ])
}

impl Place {
    fn device(&self) -> Device {
        match self {
            #[cfg(feature = "metal-emulator")]
            Self::Emulated(_) => Device::Cpu,
            #[cfg(feature = "metal")]
            Self::Device(device) => device.clone(),
        }
    }

    fn tensor(&self, tensor: &Tensor) -> Tensor {
        tensor.to_device(&self.device()).unwrap()
    }

    fn matrix(&self, matrix: &Matrix) -> Matrix {
        match self {
            #[cfg(feature = "metal-emulator")]
            Self::Emulated(_) => matrix.clone(),
            #[cfg(feature = "metal")]
            Self::Device(device) => {
                matrix.to_metal(device.as_metal_device().unwrap(), false).unwrap()
            }
        }
    }

    /// Runs an op's launches; inputs are made outside, for emulation changes what they do.
    fn run<R>(&self, f: impl FnOnce(&Workspace) -> Result<R>) -> R {
        let ws = Workspace::new(&self.device());
        let result = match self {
            #[cfg(feature = "metal-emulator")]
            Self::Emulated(seed) => super::emulate(*seed, || f(&ws)),
            #[cfg(feature = "metal")]
            Self::Device(_) => f(&ws),
        };
        result.unwrap_or_else(|error| panic!("{self}: {error}"))
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            #[cfg(feature = "metal-emulator")]
            Self::Emulated(seed) => write!(f, "emulated, seed {seed}"),
            #[cfg(feature = "metal")]
            Self::Device(_) => write!(f, "on the GPU"),
        }
    }
}

fn rng() -> StdRng {
    // Printed if the test fails.
    println!("DS4_TEST_SEED={}", seed());
    StdRng::seed_from_u64(seed())
}

/// Of this run's random numbers and orders of threads.
fn seed() -> u64 {
    static SEED: LazyLock<u64> = LazyLock::new(|| {
        let seed = std::env::var("DS4_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        seed.unwrap_or_else(|| rand::rng().random())
    });
    *SEED
}

fn floats(shape: impl Into<candle_core::Shape>, size: f32, rng: &mut StdRng) -> Tensor {
    let shape = shape.into();
    let values: Vec<f32> = (0..shape.elem_count()).map(|_| rng.random_range(-size..size)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Random blocks at an address that kernels read at.
fn matrix(format: Format, [stack, rows, cols]: [usize; 3], rng: &mut StdRng) -> Matrix {
    let bytes = random::blocks(format, stack * rows * cols, rng);
    let mut room = vec![0; bytes.len() + 16];
    let from = room.as_ptr().align_offset(16);
    room[from..from + bytes.len()].copy_from_slice(&bytes);
    let bytes = bytes::Bytes::from(room).slice(from..from + bytes.len());
    Matrix::from_host(format, stack, rows, cols, bytes).unwrap()
}

/// Each value within `tolerance` of the largest of its row.
fn assert_close(case: &str, got: &Tensor, want: &Tensor, tolerance: f32) {
    assert_eq!(got.dims(), want.dims(), "{case}");
    let width = want.dims().last().copied().unwrap_or(1).max(1);
    let values = |t: &Tensor| -> Vec<f32> {
        let t = t.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
        t.flatten_all().unwrap().to_vec1().unwrap()
    };
    let (got, want) = (values(got), values(want));
    for (row, (got, want)) in got.chunks(width).zip(want.chunks(width)).enumerate() {
        let most = want.iter().fold(1e-6f32, |most, v| most.max(v.abs()));
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let off = (got - want).abs() / most;
            assert!(off <= tolerance, "{case}: row {row}, value {i}: {got} is not {want}");
        }
    }
}

/// The kernels' own table of IQ2_XXS is the one that the CPU decodes by.
#[test]
fn the_grid_of_the_kernels_is_the_grid_of_the_cpu() {
    let text = include_str!("../../../../include/metal/iq2_xxs.metal");
    let digits = text.split("0x").skip(1).map(|t| u16::from_str_radix(&t[..4], 16).unwrap());
    assert!(digits.eq(crate::blocks::iq2_xxs_codes().iter().copied()));
}

/// A kernel that no launch names is untested; a launch that names no kernel fails on a device only.
#[cfg(feature = "metal-emulator")]
#[test]
fn every_kernel_has_one_name() {
    let mut names = super::kernels();
    assert!(names.len() > 80, "{} kernels", names.len());
    names.sort();
    for pair in names.windows(2) {
        assert_ne!(pair[0], pair[1]);
    }
}

#[cfg(feature = "metal-emulator")]
#[test]
fn a_launch_that_does_not_fit_its_kernel_is_refused() {
    use super::{Binding, Gpu, Launch, Library};

    super::parameters! {
        struct Params {
            count: u32,
        }
    }
    static NONE: Library = Library::new(&[]);
    let values = [0u8; 64];
    let run = |kernel: &str, buffers: usize| {
        let mut launch = Launch::new("test", &NONE, kernel, &Params { count: 1 });
        for _ in 0..buffers {
            launch = launch.bind(Binding::bytes(&values));
        }
        launch.run(&Gpu::Emulated, [1, 1, 1], 32).unwrap_err().to_string()
    };
    assert!(run("no_such_kernel", 0).contains("no_such_kernel: is not there"));
    assert!(run("kv_copy", 1).contains("takes 2 buffers, got 1"));
    assert!(run("rms_norm", 3).contains("takes 8 bytes of parameters, got 4"));
}
