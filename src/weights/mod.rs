//! A file's tensors as what the model computes with, by name, with shape and type checked.

use std::cell::{Cell, RefCell};

use candle_core::{Device, Tensor};
use candle_ds4_ops::{Format, Matrix};

use crate::gguf::{self, Gguf, TensorInfo, TensorType};

/// What is wrong with a tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// It is missing, or its bytes are.
    #[error("{0}: the file is damaged or of another model, download it again or convert it again")]
    Gguf(#[from] gguf::Error),
    /// It has another shape than the metadata asks for.
    #[error(
        "tensor {name}: shape {found:?}, the metadata asks for {wanted:?} (innermost first): the \
         file contradicts itself, download it again or convert it again"
    )]
    Shape {
        /// The tensor.
        name: String,
        /// The file's, innermost dimension first.
        found: Vec<u64>,
        /// What the metadata asks for.
        wanted: Vec<u64>,
    },
    /// It has a type that is not supported there.
    #[error(
        "tensor {name}: type {found} is not supported for {role} (have {have}); quantise the \
         model again to one of these"
    )]
    Type {
        /// The tensor.
        name: String,
        /// Its type.
        found: String,
        /// What it is used for.
        role: &'static str,
        /// Types that would do.
        have: &'static str,
    },
    /// A value that cannot be.
    #[error(
        "tensor {name}: {problem}: the file is damaged, download it again or convert it again"
    )]
    Value {
        /// The tensor.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// They do not fit.
    #[error(
        "the weights take {needed:.1} GiB and {reserve:.0} GiB more to work with, the GPU has \
         {free:.1} GiB free of {total:.1}: free some of it, use a smaller quantisation, or --device cpu"
    )]
    Memory {
        /// GiB of weights.
        needed: f64,
        /// GiB for caches and intermediate values, at least.
        reserve: f64,
        /// GiB that are free.
        free: f64,
        /// GiB in all.
        total: f64,
    },
    /// The device refused.
    #[error("tensor {name}: {error}")]
    Device {
        /// The tensor.
        name: String,
        /// Its answer.
        error: candle_core::Error,
    },
}

/// The outcome of loading tensors.
pub type Result<T> = std::result::Result<T, WeightsError>;

/// Loads tensors of one file onto one device.
pub struct Weights<'a> {
    gguf: &'a Gguf,
    device: Device,
    /// Bytes of matrices read, and of all that will be.
    done: Cell<u64>,
    all: u64,
    progress: RefCell<&'a mut dyn FnMut(u64, u64)>,
    #[cfg(feature = "cuda")]
    loader: Option<RefCell<candle_ds4_ops::device::cuda::Loader>>,
}

/// GiB of a GPU that weights must leave free for caches and intermediate values.
#[cfg(feature = "cuda")]
const RESERVE_GIB: f64 = 2.0;

impl<'a> Weights<'a> {
    /// Nothing is read until asked for; then `progress` hears the bytes read so far and of all. Say
    /// [`Weights::finish`] when all is loaded.
    ///
    /// # Errors
    /// If the weights do not fit into the device's memory.
    pub fn with_progress(
        gguf: &'a Gguf,
        device: &Device,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        // Draft heads stay in the file.
        let loaded = gguf.tensors().iter().filter(|info| !info.name.starts_with("mtp."));
        let all = loaded.filter_map(|info| info.len).sum();
        #[cfg(feature = "cuda")]
        let loader = match device.is_cuda() {
            true => Some(RefCell::new(cuda_loader(device, all)?)),
            false => None,
        };
        Ok(Self {
            gguf,
            device: device.clone(),
            done: Cell::new(0),
            all,
            progress: RefCell::new(progress),
            #[cfg(feature = "cuda")]
            loader,
        })
    }

    /// Waits until all that was asked for is there.
    ///
    /// # Errors
    /// If the device failed meanwhile.
    pub fn finish(self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(loader) = self.loader {
            let failed = |error| WeightsError::Device { name: "the last of all".to_owned(), error };
            let mut loader = loader.into_inner();
            loader.finish().map_err(failed)?;
            // Its staging buffers are nobody's now.
            drop(loader);
            candle_ds4_ops::device::trim(&self.device).map_err(failed)?;
        }
        (self.progress.borrow_mut())(self.all, self.all);
        Ok(())
    }

    /// Whether the file has this tensor.
    pub fn has(&self, name: &str) -> bool {
        self.gguf.get(name).is_some()
    }

    /// A matrix `[rows, cols]` in its own format; on the CPU a slice of the mapped file.
    ///
    /// # Errors
    /// The tensor is missing, cut, of another shape, or of a type without a matrix kernel.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
        self.stack_of(name, &[cols as u64, rows as u64], 1, "a matrix")
    }

    /// A stack of `n` matrices `[rows, cols]`.
    ///
    /// # Errors
    /// As [`Weights::matrix`].
    pub fn stack(&self, name: &str, n: usize, rows: usize, cols: usize) -> Result<Matrix> {
        self.stack_of(name, &[cols as u64, rows as u64, n as u64], n, "routed experts")
    }

    /// A vector of `len` floats, as f32.
    ///
    /// # Errors
    /// The tensor is missing, cut, of another length or type, or not finite.
    pub fn vector(&self, name: &str, len: usize) -> Result<Tensor> {
        self.floats(name, &[len as u64], &[len])
    }

    /// A small table `[rows, cols]` of floats, as f32.
    ///
    /// # Errors
    /// As [`Weights::vector`].
    pub fn table(&self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        self.floats(name, &[cols as u64, rows as u64], &[rows, cols])
    }

    /// A table `[rows, cols]` of indices below `limit`, as u32.
    ///
    /// # Errors
    /// The tensor is missing, cut, of another shape or type, or holds another index.
    pub fn indices(&self, name: &str, rows: usize, cols: usize, limit: usize) -> Result<Tensor> {
        let info = self.info(name, &[cols as u64, rows as u64])?;
        if info.ty != TensorType::I32 {
            return Err(wrong_type(info, "a table of indices", "I32"));
        }
        let bytes = self.gguf.data(info)?;
        let indices: Vec<u32> =
            bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        if let Some(at) = indices.iter().position(|&index| index as usize >= limit) {
            let problem = format!(
                "entry {} of row {} is {}, must be below {limit}",
                at % cols,
                at / cols,
                indices[at] as i32
            );
            return Err(WeightsError::Value { name: name.to_owned(), problem });
        }
        self.upload(name, indices, &[rows, cols])
    }

    fn stack_of(&self, name: &str, dims: &[u64], n: usize, role: &'static str) -> Result<Matrix> {
        let info = self.info(name, dims)?;
        let format = match info.ty {
            TensorType::F32 => Format::F32,
            TensorType::F16 => Format::F16,
            TensorType::BF16 => Format::BF16,
            TensorType::Q8_0 => Format::Q8_0,
            TensorType::Q2_K => Format::Q2K,
            TensorType::Q4_K => Format::Q4K,
            TensorType::IQ2_XXS => Format::Iq2Xxs,
            _ => return Err(wrong_type(info, role, "IQ2_XXS, Q2_K, Q4_K, Q8_0, F16, BF16, F32")),
        };
        let (rows, cols) = (dims[1] as usize, dims[0] as usize);
        let bytes = self.gguf.data(info)?;
        let len = bytes.len() as u64;
        let matrix = Matrix::from_host(format, n, rows, cols, bytes).and_then(|m| self.place(m));
        let matrix =
            matrix.map_err(|error| WeightsError::Device { name: name.to_owned(), error })?;
        self.done.set(self.done.get() + len);
        (self.progress.borrow_mut())(self.done.get(), self.all);
        Ok(matrix)
    }

    /// The matrix where it is computed with.
    fn place(&self, matrix: Matrix) -> candle_core::Result<Matrix> {
        #[cfg(feature = "cuda")]
        if let Some(loader) = &self.loader {
            return matrix.to_cuda(&mut loader.borrow_mut());
        }
        #[cfg(feature = "metal")]
        if let Device::Metal(device) = &self.device {
            return matrix.to_metal(device, self.gguf.is_mapped());
        }
        Ok(matrix)
    }

    fn floats(&self, name: &str, dims: &[u64], shape: &[usize]) -> Result<Tensor> {
        let info = self.info(name, dims)?;
        let bytes = self.gguf.data(info)?;
        let values: Vec<f32> = match info.ty {
            TensorType::F32 => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            TensorType::F16 => bytes
                .chunks_exact(2)
                .map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            TensorType::BF16 => bytes
                .chunks_exact(2)
                .map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            _ => return Err(wrong_type(info, "a vector", "F32, F16, BF16")),
        };
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let problem = format!("value {at} is {}", values[at]);
            return Err(WeightsError::Value { name: name.to_owned(), problem });
        }
        self.upload(name, values, shape)
    }

    fn upload<T: candle_core::WithDType>(
        &self,
        name: &str,
        values: Vec<T>,
        shape: &[usize],
    ) -> Result<Tensor> {
        Tensor::from_vec(values, shape, &self.device)
            .map_err(|error| WeightsError::Device { name: name.to_owned(), error })
    }

    fn info(&self, name: &str, dims: &[u64]) -> Result<&'a TensorInfo> {
        let info = self.gguf.tensor(name)?;
        if info.dims != dims {
            return Err(WeightsError::Shape {
                name: name.to_owned(),
                found: info.dims.clone(),
                wanted: dims.to_vec(),
            });
        }
        Ok(info)
    }
}

/// Refuses what will not fit, before gigabytes are on their way.
#[cfg(feature = "cuda")]
fn cuda_loader(device: &Device, all: u64) -> Result<candle_ds4_ops::device::cuda::Loader> {
    use candle_ds4_ops::device::cuda::{Loader, Memory};
    let refused = |error| WeightsError::Device { name: "the first".to_owned(), error };
    let memory = Memory::of(device).map_err(refused)?;
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    let (needed, free) = (gib(all), gib(memory.free as u64));
    if needed + RESERVE_GIB > free {
        let total = gib(memory.total as u64);
        return Err(WeightsError::Memory { needed, reserve: RESERVE_GIB, free, total });
    }
    Loader::new(device).map_err(refused)
}

fn wrong_type(info: &TensorInfo, role: &'static str, have: &'static str) -> WeightsError {
    let found = match info.ty.name() {
        Some(name) => name.to_owned(),
        None => format!("number {}", info.ty.id()),
    };
    WeightsError::Type { name: info.name.clone(), found, role, have }
}
