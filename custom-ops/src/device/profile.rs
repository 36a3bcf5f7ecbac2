//! Where a step's time goes: one line for each class of launch.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use candle_core::{Device, Result, Tensor};

/// Calls of one op on weights of one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    /// The op, and the weight that it reads if it reads one.
    pub name: String,
    /// How often.
    pub calls: usize,
    /// In all.
    pub time: Duration,
    /// Bytes of weights and rows that had to be read, in all.
    pub bytes: u64,
}

/// One call: when it began and ended.
struct Call {
    name: String,
    bytes: u64,
    begin: Mark,
    end: Mark,
}

/// A point in the time of the device that computes.
enum Mark {
    Host(Instant),
    #[cfg(feature = "cuda")]
    Cuda(candle_core::cuda_backend::cudarc::driver::CudaEvent),
}

thread_local! {
    static CALLS: RefCell<Option<Vec<Call>>> = const { RefCell::new(None) };
}

/// Runs `f` and says where the time of the ops that this thread called in it went, longest first.
///
/// On a GPU times are between events around each op, launched one by one: what a captured step hides
/// shows here. Calls inside others count once, for the outer one.
///
/// # Errors
/// As `f`, or the device's.
pub fn profile<R>(f: impl FnOnce() -> Result<R>) -> Result<(R, Vec<Class>)> {
    CALLS.set(Some(Vec::new()));
    let result = f();
    let calls = CALLS.take().unwrap_or_default();
    let result = result?;
    let mut classes: HashMap<String, Class> = HashMap::new();
    for call in calls {
        let name = call.name;
        let class = classes.entry(name.clone()).or_insert_with(|| Class {
            name,
            calls: 0,
            time: Duration::ZERO,
            bytes: 0,
        });
        class.calls += 1;
        class.time += call.begin.until(&call.end)?;
        class.bytes += call.bytes;
    }
    let mut classes: Vec<Class> = classes.into_values().collect();
    classes.sort_by(|a, b| b.time.cmp(&a.time).then_with(|| a.name.cmp(&b.name)));
    Ok((result, classes))
}

/// Whether [`profile`] is listening on this thread.
pub fn profiling() -> bool {
    CALLS.with_borrow(Option::is_some)
}

/// Runs an op that writes `out`; if [`profile`] is listening, `what` is asked for the class of the call
/// and the bytes that it read.
pub(crate) fn timed<R>(
    out: &Tensor,
    what: impl FnOnce() -> Result<(String, usize)>,
    f: impl FnOnce() -> Result<R>,
) -> Result<R> {
    // Taken out, so that ops inside this one are its own.
    let Some(mut calls) = CALLS.take() else { return f() };
    let begin = Mark::now(out.device());
    let result = f();
    let end = Mark::now(out.device());
    if result.is_ok() {
        match (what(), begin, end) {
            (Ok((name, bytes)), Ok(begin), Ok(end)) => {
                calls.push(Call { name, bytes: bytes as u64, begin, end });
            }
            (what, begin, end) => {
                CALLS.set(Some(calls));
                what?;
                begin?;
                end?;
                return result;
            }
        }
    }
    CALLS.set(Some(calls));
    result
}

impl Mark {
    fn now(device: &Device) -> Result<Self> {
        match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => super::cuda::mark(cuda).map(Self::Cuda),
            _ => Ok(Self::Host(Instant::now())),
        }
    }

    fn until(&self, end: &Self) -> Result<Duration> {
        match (self, end) {
            (Self::Host(begin), Self::Host(end)) => Ok(end.duration_since(*begin)),
            #[cfg(feature = "cuda")]
            (Self::Cuda(begin), Self::Cuda(end)) => super::cuda::between(begin, end),
            #[cfg(feature = "cuda")]
            _ => candle_core::bail!("profile: one op on two devices"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{rms_norm, Matrix, Workspace};

    #[test]
    fn calls_are_summed_by_op_and_weight_with_the_bytes_that_they_read() -> Result<()> {
        let device = Device::Cpu;
        let ws = Workspace::new(&device);
        let x = Tensor::ones((3, 8), candle_core::DType::F32, &device)?;
        let weights = [4, 4, 6].map(|rows| {
            Matrix::from_tensor(&Tensor::ones((rows, 8), candle_core::DType::F32, &device).unwrap())
        });
        let ((), classes) = profile(|| {
            for weight in &weights {
                crate::matmul(&x, weight.as_ref().unwrap(), &ws)?;
            }
            rms_norm(&x, None, 1e-6, &ws)?;
            Ok(())
        })?;
        let of = |name: &str| classes.iter().find(|c| c.name == name).cloned().unwrap();
        assert_eq!(classes.len(), 3, "{classes:?}");
        let four = of("matmul F32 [4, 8]");
        assert_eq!((four.calls, four.bytes), (2, 2 * 4 * 8 * 4));
        assert_eq!(of("matmul F32 [6, 8]").calls, 1);
        assert_eq!(of("rms_norm").calls, 1);
        assert!(profile(|| Ok(()))?.1.is_empty(), "nothing is left of the last time");
        rms_norm(&x, None, 1e-6, &ws)?;
        assert!(profile(|| Ok(()))?.1.is_empty(), "nobody listened");
        Ok(())
    }

    #[test]
    fn a_failure_ends_the_listening() {
        let failed = profile(|| -> Result<()> { candle_core::bail!("no") });
        assert!(failed.is_err());
        assert!(CALLS.with_borrow(Option::is_none));
    }
}
