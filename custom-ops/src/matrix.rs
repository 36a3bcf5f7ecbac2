//! A weight: a matrix, or a stack of equal ones, in a block format.

use bytes::Bytes;
use candle_core::{bail, DType, Device, Result, Tensor};

use crate::blocks::Format;
#[cfg(cuda_kernels)]
use crate::device::cuda::{Gpu, Packed, Planes, Weight};
use crate::device::host;

/// What addresses of weights are multiples of, for kernels that load four floats at once.
#[cfg(metal_kernels)]
pub(crate) const METAL_ALIGN: usize = 16;

/// A weight `[rows, cols]`, or `[stack, rows, cols]`, in one block format.
///
/// On the CPU the blocks stay where they are, in a memory-mapped file for instance: cloning copies
/// no weights, and no alignment is asked for. On a GPU they are taken apart and laid out anew when they
/// are uploaded.
#[derive(Clone)]
pub struct Matrix {
    format: Format,
    stack: usize,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    data: Data,
    /// The same for emulated kernels, once one has asked for it.
    #[cfg(feature = "cuda-emulator")]
    emulated: std::sync::Arc<std::sync::OnceLock<Packed>>,
}

#[derive(Clone)]
enum Data {
    Host(Bytes),
    #[cfg(feature = "metal")]
    Metal(crate::device::metal::MetalWeights),
    #[cfg(feature = "cuda")]
    Cuda(std::sync::Arc<Packed>),
}

/// All rows of a weight in host memory, matrix after matrix.
#[derive(Clone, Copy)]
pub(crate) struct HostMatrix<'a> {
    format: Format,
    row_bytes: usize,
    bytes: &'a [u8],
}

impl std::fmt::Debug for Matrix {
    /// Shape and format; never the weights.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [n, rows, cols] = [self.stack, self.rows, self.cols];
        write!(f, "Matrix[{n}, {rows}, {cols}; {}]", self.format.name())
    }
}

impl Matrix {
    /// A weight whose blocks are `bytes`: rows one after the other, matrix after matrix.
    ///
    /// # Errors
    /// If a row is not a whole number of blocks, or `bytes` is not exactly as long as the shape
    /// says.
    pub fn from_host(
        format: Format,
        stack: usize,
        rows: usize,
        cols: usize,
        bytes: Bytes,
    ) -> Result<Self> {
        let row_bytes = format.row_bytes(cols)?;
        let wanted = stack.checked_mul(rows).and_then(|n| n.checked_mul(row_bytes));
        if wanted != Some(bytes.len()) {
            let wanted = wanted.map_or("more than fits memory".to_string(), |n| n.to_string());
            let len = bytes.len();
            bail!("a {format} weight [{stack}, {rows}, {cols}] takes {wanted} bytes, got {len}");
        }
        Ok(Self {
            format,
            stack,
            rows,
            cols,
            row_bytes,
            data: Data::Host(bytes),
            #[cfg(feature = "cuda-emulator")]
            emulated: std::sync::Arc::default(),
        })
    }

    /// The same weight on the GPU of `loader`, which must be told to finish before a kernel reads it.
    /// A weight that is not in host memory stays where it is.
    ///
    /// # Errors
    /// If the GPU has no memory left, or fails.
    #[cfg(feature = "cuda")]
    pub fn to_cuda(&self, loader: &mut crate::device::cuda::Loader) -> Result<Self> {
        let Data::Host(bytes) = &self.data else { return Ok(self.clone()) };
        let packed = loader.upload(self.planes()?, bytes)?;
        Ok(Self { data: Data::Cuda(std::sync::Arc::new(packed)), ..self.clone() })
    }

    /// Bytes that this weight takes in the memory of a CUDA device.
    ///
    /// # Errors
    /// If its shape is too large for kernels.
    #[cfg(feature = "cuda")]
    pub fn cuda_bytes(&self) -> Result<usize> {
        Ok(self.planes()?.bytes)
    }

    #[cfg(cuda_kernels)]
    fn planes(&self) -> Result<Planes> {
        Planes::new(self.format, self.stack, self.rows, self.cols)
    }

    /// The weight as a parameter of a kernel on `gpu`.
    ///
    /// # Errors
    /// If it is not there.
    #[cfg(cuda_kernels)]
    pub(crate) fn cuda(&self, op: &'static str, gpu: &Gpu) -> Result<Weight> {
        match (&self.data, gpu) {
            #[cfg(feature = "cuda-emulator")]
            (Data::Host(bytes), Gpu::Emulated) => {
                if let Some(packed) = self.emulated.get() {
                    return packed.weight(op, gpu);
                }
                let packed = Packed::on_host(self.planes()?, bytes)?;
                self.emulated.get_or_init(|| packed).weight(op, gpu)
            }
            #[cfg(feature = "cuda")]
            (Data::Cuda(packed), _) => packed.weight(op, gpu),
            #[cfg(feature = "cuda")]
            _ => bail!("{op}: the weight is in host memory, the activations are on a GPU"),
        }
    }

    /// An F32 weight with the values of a CPU tensor `[rows, cols]` or `[stack, rows, cols]`, f32.
    ///
    /// # Errors
    /// If the tensor has another rank or type, or is on another device.
    pub fn from_tensor(tensor: &Tensor) -> Result<Self> {
        let (stack, rows, cols) = match *tensor.dims() {
            [rows, cols] => (1, rows, cols),
            [stack, rows, cols] => (stack, rows, cols),
            ref dims => bail!("a weight is [rows, cols] or [stack, rows, cols], got {dims:?}"),
        };
        if tensor.dtype() != DType::F32 {
            bail!("a weight from a tensor needs F32, got {:?}", tensor.dtype());
        }
        let tensor = tensor.contiguous()?;
        let bytes: Bytes =
            host::<f32>("weight", &tensor)?.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::from_host(Format::F32, stack, rows, cols, bytes)
    }

    /// The block format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows of one matrix: values that a product with it gives.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: values that a product with it takes.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How many matrices are stacked; 1 for a plain one.
    pub fn stack(&self) -> usize {
        self.stack
    }

    /// Bytes of all blocks, wherever they are.
    pub fn byte_len(&self) -> usize {
        match &self.data {
            Data::Host(bytes) => bytes.len(),
            #[cfg(feature = "metal")]
            Data::Metal(weights) => weights.len(),
            #[cfg(feature = "cuda")]
            Data::Cuda(packed) => packed.planes().bytes,
        }
    }

    /// The blocks, if they are in host memory.
    pub fn bytes(&self) -> Option<&Bytes> {
        match &self.data {
            Data::Host(bytes) => Some(bytes),
            #[cfg(feature = "metal")]
            Data::Metal(_) => None,
            #[cfg(feature = "cuda")]
            Data::Cuda(_) => None,
        }
    }

    /// The same weight where an Apple GPU reads it. Blocks that are part of a memory `mapped` file
    /// are not copied: the GPU reads the map, and only pages that it touches come into memory.
    ///
    /// # Errors
    /// If the blocks are not in host memory, do not begin at a multiple of 16, or the device refuses.
    #[cfg(feature = "metal")]
    pub fn to_metal(&self, device: &candle_core::MetalDevice, mapped: bool) -> Result<Self> {
        let Some(bytes) = self.bytes() else {
            bail!("a weight is on the GPU already");
        };
        let weights = crate::device::metal::MetalWeights::new(bytes, mapped, device)?;
        Ok(Self { data: Data::Metal(weights), ..self.clone() })
    }

    /// All values as an f32 CPU tensor: `[rows, cols]`, or `[stack, rows, cols]` of a stack other
    /// than 1.
    ///
    /// # Errors
    /// If the blocks are not in host memory.
    pub fn dequantize(&self) -> Result<Tensor> {
        let bytes = self.blocks("dequantize")?;
        let mut values = vec![0.0; self.stack * self.rows * self.cols];
        self.format.decode(bytes, &mut values)?;
        match self.stack {
            1 => Tensor::from_vec(values, (self.rows, self.cols), &Device::Cpu),
            stack => Tensor::from_vec(values, (stack, self.rows, self.cols), &Device::Cpu),
        }
    }

    /// The blocks as a kernel's buffer.
    ///
    /// # Errors
    /// If they are on another device, or begin at an address that no kernel reads at.
    #[cfg(metal_kernels)]
    pub(crate) fn metal(&self, op: &'static str) -> Result<crate::device::metal::Binding<'_>> {
        match &self.data {
            #[cfg(feature = "metal-emulator")]
            Data::Host(bytes) if crate::device::metal::emulating() => {
                let address = bytes.as_ptr() as usize;
                if !address.is_multiple_of(METAL_ALIGN) {
                    bail!("{op}: a weight at {address:#x}, kernels read at multiples of {METAL_ALIGN}");
                }
                Ok(crate::device::metal::Binding::bytes(bytes))
            }
            #[cfg(feature = "metal")]
            Data::Metal(weights) => Ok(weights.binding()),
            #[allow(unreachable_patterns, reason = "which are left depends on the features")]
            _ => bail!("{op}: a weight is in host memory, the activations on the device"),
        }
    }

    /// Refuses rows that kernels do not read: they take eight values at a time.
    ///
    /// # Errors
    /// If the columns are no multiple of 8.
    #[cfg(metal_kernels)]
    pub(crate) fn check_metal_columns(&self, op: &'static str) -> Result<()> {
        match self.cols % 8 {
            0 => Ok(()),
            _ => {
                bail!("{op}: Metal kernels have rows of multiples of 8 columns, not {}", self.cols)
            }
        }
    }

    /// Bytes of one row.
    #[cfg(metal_kernels)]
    pub(crate) fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The blocks as one matrix `[stack · rows, cols]`, for an op's CPU implementation.
    ///
    /// # Errors
    /// If the blocks are not in host memory.
    pub(crate) fn host(&self, op: &'static str) -> Result<HostMatrix<'_>> {
        let bytes = self.blocks(op)?;
        Ok(HostMatrix { format: self.format, row_bytes: self.row_bytes, bytes })
    }

    fn blocks(&self, op: &'static str) -> Result<&Bytes> {
        match self.bytes() {
            Some(bytes) => Ok(bytes),
            None => bail!("{op}: the weight is on a GPU, host memory is needed"),
        }
    }
}

impl HostMatrix<'_> {
    /// Decodes `out.len()` values of a row, from column `start` on; both are whole blocks.
    #[inline]
    pub(crate) fn decode(&self, row: usize, start: usize, out: &mut [f32]) {
        let (len, bytes) = (self.format.block_len(), self.format.block_bytes());
        let from = row * self.row_bytes + start / len * bytes;
        self.format.decode_blocks(&self.bytes[from..from + out.len() / len * bytes], out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_must_be_as_long_as_its_shape_says() {
        let bytes = |n| Bytes::from(vec![0; n]);
        let build = |stack, rows, cols, n| {
            Matrix::from_host(Format::Q8_0, stack, rows, cols, bytes(n)).map(|m| m.byte_len())
        };
        assert_eq!(build(2, 3, 64, 2 * 3 * 68).unwrap(), 408);
        let error = build(2, 3, 64, 407).unwrap_err().to_string();
        for part in ["Q8_0", "[2, 3, 64]", "408", "407"] {
            assert!(error.contains(part), "{part} missing: {error}");
        }
        assert!(build(1, 3, 48, 102).unwrap_err().to_string().contains("48"));
        assert!(build(usize::MAX, 3, 64, 0).is_err(), "the product overflows");
        assert!(build(1, usize::MAX / 2, 64, 0).is_err(), "the product overflows");
    }

    #[test]
    fn a_tensor_comes_back_from_its_weight() -> Result<()> {
        let values: Vec<f32> = (0..24).map(|v| v as f32 - 7.5).collect();
        for shape in [vec![4, 6], vec![2, 3, 4]] {
            let tensor = Tensor::from_vec(values.clone(), shape.clone(), &Device::Cpu)?;
            let weight = Matrix::from_tensor(&tensor)?;
            assert_eq!(weight.cols(), shape[shape.len() - 1]);
            assert_eq!(weight.dequantize()?.dims(), shape);
            assert_eq!(weight.dequantize()?.flatten_all()?.to_vec1::<f32>()?, values);
        }
        // A transposed view: the values move, not only the shape.
        let tensor = Tensor::from_vec(values, (4, 6), &Device::Cpu)?.t()?;
        let back = Matrix::from_tensor(&tensor)?.dequantize()?;
        assert_eq!(back.to_vec2::<f32>()?, tensor.to_vec2::<f32>()?);
        assert!(Matrix::from_tensor(&Tensor::zeros(3, DType::F32, &Device::Cpu)?).is_err());
        assert!(Matrix::from_tensor(&Tensor::zeros((3, 2), DType::U32, &Device::Cpu)?).is_err());
        Ok(())
    }

    #[test]
    fn a_stack_is_one_tall_matrix() -> Result<()> {
        let tensor = Tensor::arange(0f32, 24.0, &Device::Cpu)?.reshape((2, 3, 4))?;
        let weight = Matrix::from_tensor(&tensor)?;
        let mut two = [0.0; 2];
        weight.host("test")?.decode(3 + 2, 1, &mut two);
        assert_eq!(two, [21.0, 22.0]);
        Ok(())
    }
}
