//! Where a model runs: what was typed, and the device that it means.

use std::str::FromStr;

use candle_core::Device;

use super::args::{BackendName, DeviceArgs};
use super::failure::Failure;

/// A device by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The best that is built in and there.
    Auto,
    /// Processor cores.
    Cpu,
    /// An NVIDIA GPU, by the driver's number.
    Cuda(usize),
    /// The Apple GPU.
    Metal,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(number)) => Ok(Self::Cuda(number)),
                _ => Err("expected auto, cpu, cuda, cuda:N (the N-th GPU from 0) or metal".into()),
            },
        }
    }
}

impl Place {
    /// What the flags mean together.
    pub fn of(typed: &DeviceArgs) -> Self {
        match (typed.device, typed.backend, typed.cpu, typed.cuda, typed.metal) {
            (Some(place), ..) => place,
            (_, Some(BackendName::Cpu), ..) | (_, _, true, ..) => Self::Cpu,
            (_, Some(BackendName::Cuda), ..) | (_, _, _, true, _) => Self::Cuda(0),
            (_, Some(BackendName::Metal), ..) | (.., true) => Self::Metal,
            _ => Self::Auto,
        }
    }

    /// Opens it.
    ///
    /// # Errors
    /// It is not built in, or not there: says what to do.
    pub fn open(self) -> Result<Device, Failure> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto => Ok(best()),
            Self::Cuda(number) => cuda(number),
            Self::Metal => Err(Failure::Input(
                "--device metal: this program was built without Metal and computes on the CPU only; \
                 use --device cpu, or leave the flag out"
                    .to_owned(),
            )),
        }
    }
}

/// The first GPU if there is one, else the CPU.
fn best() -> Device {
    #[cfg(feature = "cuda")]
    match candle_ds4_ops::device::cuda::open(0) {
        Ok(device) => return device,
        Err(error) => super::terminal::tell(&format!("computing on the CPU: {error}")),
    }
    Device::Cpu
}

#[cfg(feature = "cuda")]
fn cuda(number: usize) -> Result<Device, Failure> {
    candle_ds4_ops::device::cuda::open(number).map_err(|error| Failure::Input(error.to_string()))
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: usize) -> Result<Device, Failure> {
    Err(Failure::Input(
        "--device cuda: this program was built without CUDA and computes on the CPU only; build it with \
         `cargo build --release --features cuda`, or use --device cpu"
            .to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        let read = |text: &str| text.parse::<Place>();
        assert_eq!(read("auto"), Ok(Place::Auto));
        assert_eq!(read("cpu"), Ok(Place::Cpu));
        assert_eq!(read("cuda"), Ok(Place::Cuda(0)));
        assert_eq!(read("cuda:3"), Ok(Place::Cuda(3)));
        for wrong in ["gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", ""] {
            assert!(read(wrong).unwrap_err().contains("cuda:N"), "{wrong}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn what_is_not_built_in_is_refused_with_what_to_do() {
        for (place, name) in [(Place::Cuda(0), "cuda"), (Place::Metal, "metal")] {
            let error = place.open().unwrap_err();
            assert_eq!(error.code(), 2);
            assert!(error.to_string().contains(name) && error.to_string().contains("--device cpu"));
        }
    }
}
