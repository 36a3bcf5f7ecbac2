//! Kernels on an NVIDIA GPU, through candle's cudarc.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use candle_core::cuda_backend::cudarc::driver::sys::{
    self, CUdevice_attribute_enum as Attribute, CUfunction_attribute_enum as FunctionAttribute,
};
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaModule, CudaStream, DevicePtr, DriverError,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::DeviceId;
use candle_core::{bail, CudaDevice, Device, Result};

use super::timeline::Timeline;
use super::{Kernel, Launch, KERNELS, MODULES};

/// Opens GPU `ordinal` the way our ops want it: with a stream of its own that nothing else waits for,
/// and memory that stays with the process.
///
/// # Errors
/// No driver, no such GPU, or one that refuses: says which, and what to do.
pub fn open(ordinal: usize) -> Result<Device> {
    let count = match CudaContext::device_count() {
        Ok(count) => usize::try_from(count).unwrap_or(0),
        Err(error) => bail!(
            "CUDA is not usable: {error}; install an NVIDIA driver (nvidia-smi must list the GPU), or \
             run on the CPU with --device cpu"
        ),
    };
    if ordinal >= count {
        bail!(
            "there is no GPU {ordinal}: the driver sees {count} (CUDA_VISIBLE_DEVICES may hide some); \
             run on the CPU with --device cpu"
        );
    }
    let device = Device::new_cuda_with_stream(ordinal).map_err(|error| {
        error.context(format!(
            "GPU {ordinal} cannot be opened; nvidia-smi shows what else is in its memory; choose another \
             with --device cuda:N, or run on the CPU with --device cpu"
        ))
    })?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: all work on this device goes through its one stream; the loader's copy stream is joined
    // with it by events.
    unsafe { cuda.disable_event_tracking() };
    keep_freed_memory(cuda)?;
    executor(cuda)?;
    Ok(device)
}

/// What a GPU has, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Not taken by anyone, or by this process for what is to come.
    pub free: usize,
    /// In all.
    pub total: usize,
}

impl Memory {
    /// Of a CUDA device.
    ///
    /// # Errors
    /// If it is another device, or the driver fails.
    pub fn of(device: &Device) -> Result<Self> {
        let cuda = device.as_cuda_device()?;
        let stream = cuda.cuda_stream();
        let (free, total) = stream.context().mem_get_info().map_err(failed("memory"))?;
        let mut kept = 0;
        if let Some(pool) = pool(cuda)? {
            use sys::CUmemPool_attribute as Pool;
            let of = |attribute| {
                let mut bytes = 0u64;
                // SAFETY: the pool is the device's; the driver writes one u64 for these attributes.
                let result = unsafe {
                    let to = std::ptr::from_mut(&mut bytes).cast();
                    sys::cuMemPoolGetAttribute(pool, attribute, to)
                };
                result.result().map_err(failed("memory pool")).map(|()| bytes)
            };
            let held = of(Pool::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
            kept = held.saturating_sub(of(Pool::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?);
        }
        Ok(Self { free: free + usize::try_from(kept).unwrap_or(0), total })
    }
}

/// What one device needs once: its stream and our kernels.
pub(crate) struct Executor {
    id: DeviceId,
    stream: Arc<CudaStream>,
    capability: (u32, u32),
    multiprocessors: usize,
    shared_bytes: usize,
    modules: Mutex<Vec<Option<Arc<CudaModule>>>>,
    functions: RwLock<HashMap<Kernel, CudaFunction>>,
    /// Where kernels that were built to keep a record leave it.
    timeline: Option<Mutex<Timeline>>,
}

/// The executor of a device; the same one each time.
pub(super) fn executor(device: &CudaDevice) -> Result<Arc<Executor>> {
    static EXECUTORS: RwLock<Vec<Arc<Executor>>> = RwLock::new(Vec::new());
    let find = |all: &[Arc<Executor>]| all.iter().find(|e| e.is_of(device)).cloned();
    if let Some(found) = find(&EXECUTORS.read().unwrap_or_else(PoisonError::into_inner)) {
        return Ok(found);
    }
    let mut all = EXECUTORS.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = find(&all) {
        return Ok(found);
    }
    let fresh = Arc::new(Executor::new(device)?);
    all.push(fresh.clone());
    Ok(fresh)
}

impl Executor {
    fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        let attribute = |which| -> Result<usize> {
            let value = context.attribute(which).map_err(failed("attributes"))?;
            Ok(usize::try_from(value).unwrap_or(0))
        };
        let (major, minor) = context.compute_capability().map_err(failed("attributes"))?;
        if major < 8 {
            let name = context.name().unwrap_or_default();
            bail!(
                "{name} has compute capability {major}.{minor}, 8.0 (Ampere) or newer is needed: run on \
                 the CPU with --device cpu"
            );
        }
        Ok(Self {
            id: device.id(),
            capability: (major.unsigned_abs(), minor.unsigned_abs()),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            modules: Mutex::new(vec![None; MODULES.len()]),
            functions: RwLock::new(HashMap::new()),
            timeline: match cfg!(cuda_timeline) {
                true => Some(Mutex::new(Timeline::new(&stream)?)),
                false => None,
            },
            stream,
        })
    }

    pub(super) fn is_of(&self, device: &CudaDevice) -> bool {
        self.id == device.id()
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    pub(super) fn capability(&self) -> (u32, u32) {
        self.capability
    }

    pub(super) fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    pub(super) fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    /// # Safety
    /// As [`super::Gpu::launch`].
    pub(super) unsafe fn launch<P: Copy>(
        &self,
        kernel: Kernel,
        launch: Launch,
        p: &P,
    ) -> Result<()> {
        // SAFETY: as promised by the caller.
        unsafe { self.launch_on(&self.stream, kernel, launch, p) }
    }

    /// The same on another stream of this device.
    ///
    /// # Safety
    /// As [`super::Gpu::launch`].
    pub(super) unsafe fn launch_on<P: Copy>(
        &self,
        stream: &CudaStream,
        kernel: Kernel,
        launch: Launch,
        params: &P,
    ) -> Result<()> {
        let Kernel(name) = kernel;
        let function = self.function(kernel)?;
        let hopper = self.capability >= (9, 0);
        if launch.cluster > 1 && !hopper {
            let (major, minor) = self.capability;
            bail!(
                "{name}: needs clusters of blocks, which compute capability {major}.{minor} lacks"
            );
        }
        // SAFETY: all-zero attributes are valid ones, to be filled in below.
        let mut attributes: [sys::CUlaunchAttribute; 2] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        if hopper {
            use sys::CUlaunchAttributeID as Id;
            attributes[0].id = Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attributes[0].value.programmaticStreamSerializationAllowed = 1;
            count = 1;
            if launch.cluster > 1 {
                attributes[1].id = Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
                // SAFETY: the member of the union that the id names.
                let cluster = unsafe { &mut attributes[1].value.clusterDim };
                (cluster.x, cluster.y, cluster.z) = (launch.cluster, 1, 1);
                count = 2;
            }
        }
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            hStream: stream.cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: count,
        };
        stream.context().bind_to_thread().map_err(failed(name))?;
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        // SAFETY: the driver copies the one parameter, which is the struct that the kernel declares.
        let result = unsafe {
            let arguments = arguments.as_mut_ptr();
            sys::cuLaunchKernelEx(&config, function.cu_function(), arguments, std::ptr::null_mut())
        };
        result.result().map_err(failed(name))
    }

    fn function(&self, kernel: Kernel) -> Result<CudaFunction> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(&kernel) {
            return Ok(function.clone());
        }
        drop(functions);
        let function = self.load(kernel)?;
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        functions.insert(kernel, function.clone());
        Ok(function)
    }

    /// Loads a kernel and lets it have all that it may ask for.
    fn load(&self, kernel: Kernel) -> Result<CudaFunction> {
        let Kernel(name) = kernel;
        let Some(&(_, index)) = KERNELS.iter().find(|(known, _)| *known == name) else {
            bail!("{name}: no such kernel");
        };
        let (module, code) = MODULES[index];
        if code.is_empty() {
            bail!(
                "{name}: this program was built without code for {module} (its CUDA compiler was a \
                 stand-in); build it again with nvcc"
            );
        }
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let module = match &modules[index] {
            Some(module) => module.clone(),
            None => {
                let image = Ptx::from_binary(code.to_vec());
                let loaded = self.stream.context().load_module(image).map_err(|error| {
                    let (major, minor) = self.capability;
                    failed(name)(error).context(format!(
                        "the kernels of {module} were not built for compute capability \
                         {major}.{minor} (DS4_CUDA_ARCHS at build time), or need a newer driver"
                    ))
                })?;
                if let Some(timeline) = &self.timeline {
                    let timeline = timeline.lock().unwrap_or_else(PoisonError::into_inner);
                    timeline.listen(&loaded, &self.stream)?;
                }
                modules[index] = Some(loaded.clone());
                loaded
            }
        };
        let function = module.load_function(name).map_err(failed(name))?;
        let fixed = function.shared_size_bytes().map_err(failed(name))?;
        let most = i32::try_from(self.shared_bytes).unwrap_or(i32::MAX) - fixed;
        let shared = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(shared, most).map_err(failed(name))?;
        if self.capability >= (9, 0) {
            let large = FunctionAttribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
            function.set_attribute(large, 1).map_err(failed(name))?;
        }
        Ok(function)
    }
}

/// A point in what is queued on a device.
pub(crate) fn mark(device: &CudaDevice) -> Result<CudaEvent> {
    let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
    device.cuda_stream().record_event(Some(flags)).map_err(failed("event"))
}

/// The time that the device spent between two points; waits for the second.
pub(crate) fn between(begin: &CudaEvent, end: &CudaEvent) -> Result<std::time::Duration> {
    end.synchronize().map_err(failed("event"))?;
    let milliseconds = begin.elapsed_ms(end).map_err(failed("event"))?;
    Ok(std::time::Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1000.0))
}

/// [`crate::device::timeline`].
pub(crate) fn timeline(device: &CudaDevice) -> Result<Option<Vec<crate::device::Block>>> {
    let executor = executor(device)?;
    let Some(timeline) = &executor.timeline else { return Ok(None) };
    let mut timeline = timeline.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Some(timeline.take(&executor.stream)?))
}

/// Fills a contiguous view of four-byte values with ones: not a number, or the largest index.
pub(crate) fn poison(
    storage: &mut candle_core::CudaStorage,
    layout: &candle_core::Layout,
) -> Result<()> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("poison: needs a contiguous tensor, got {:?}", layout.shape());
    };
    let stream = storage.device.cuda_stream();
    let base = match &storage.slice {
        candle_core::cuda_backend::CudaStorageSlice::F32(slice) => slice.device_ptr(&stream).0,
        candle_core::cuda_backend::CudaStorageSlice::U32(slice) => slice.device_ptr(&stream).0,
        _ => bail!("poison: a tensor of another type than f32 or u32"),
    };
    if start == end {
        return Ok(());
    }
    // SAFETY: the view lies within the slice, whose values are four bytes wide.
    let result = unsafe {
        sys::cuMemsetD8Async(base + 4 * start as u64, 0xff, 4 * (end - start), stream.cu_stream())
    };
    result.result().map_err(failed("poison"))
}

/// Freed memory stays in the pool: giving it back to the driver at each wait costs more than a step.
fn keep_freed_memory(device: &CudaDevice) -> Result<()> {
    let Some(pool) = pool(device)? else { return Ok(()) };
    let mut all = u64::MAX;
    let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device is open; the driver reads one u64 for this attribute.
    let result =
        unsafe { sys::cuMemPoolSetAttribute(pool, threshold, std::ptr::from_mut(&mut all).cast()) };
    result.result().map_err(failed("memory pool"))
}

/// Gives back to the driver what the pool holds and nobody uses.
pub(crate) fn trim(device: &CudaDevice) -> Result<()> {
    let Some(pool) = pool(device)? else { return Ok(()) };
    // What was freed is in use until the work queued before it is done, on whichever stream.
    device.cuda_stream().context().synchronize().map_err(failed("wait"))?;
    // SAFETY: the device is open, and the pool is its own.
    unsafe { sys::cuMemPoolTrimTo(pool, 0) }.result().map_err(failed("memory pool"))
}

/// Whether the driver has so many bytes for itself, if need be after the pool has given up what nobody uses.
pub(crate) fn has_room(device: &CudaDevice, bytes: usize) -> Result<bool> {
    let stream = device.cuda_stream();
    let free = || stream.context().mem_get_info().map(|(free, _)| free).map_err(failed("memory"));
    if free()? < bytes {
        trim(device)?;
    }
    Ok(free()? >= bytes)
}

/// The pool that the device allocates from, if it has one.
fn pool(device: &CudaDevice) -> Result<Option<sys::CUmemoryPool>> {
    let context = device.cuda_stream().context().clone();
    if !context.has_async_alloc() {
        return Ok(None);
    }
    context.bind_to_thread().map_err(failed("memory pool"))?;
    let mut pool = std::ptr::null_mut();
    // SAFETY: the device is open; the driver writes one handle.
    let result = unsafe { sys::cuDeviceGetDefaultMemPool(&mut pool, context.cu_device()) };
    result.result().map_err(failed("memory pool"))?;
    Ok(Some(pool))
}

/// A driver's refusal with the name of what it refused.
pub(super) fn failed(what: &'static str) -> impl Fn(DriverError) -> candle_core::Error {
    move |error| candle_core::Error::msg(format!("CUDA: {what}: {error}"))
}
