//! The executor of Apple GPUs: candle's command encoder, pipelines of our own.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{bail, Device, Error, Layout, MetalDevice, MetalStorage, Result};
use candle_metal_kernels::metal::{Buffer, ComputePipeline, ConstantValues, Library, Value};
use objc2_metal::{MTLCompileOptions, MTLSize};

use super::binding::Memory;
use super::launch::{Argument, Launch};
use super::Binding;

/// Bytes that can be handed over with a launch; more need a buffer.
const MOST_INLINE_BYTES: usize = 4096;

/// What candle reads when a device is opened.
const LAUNCHES_PER_COMMIT: &str = "CANDLE_METAL_COMPUTE_PER_BUFFER";

/// What has been compiled for a device.
#[derive(Default)]
struct Compiled {
    /// By the address of our static description of it.
    libraries: HashMap<usize, Library>,
    pipelines: HashMap<(usize, String, Vec<bool>), ComputePipeline>,
}

type DeviceId = candle_core::metal_backend::DeviceId;

static COMPILED: Mutex<Option<HashMap<DeviceId, Compiled>>> = Mutex::new(None);

pub(super) fn run(
    device: &MetalDevice,
    launch: &Launch<'_>,
    groups: [u32; 3],
    threads: usize,
) -> Result<()> {
    let pipeline = pipeline(device, launch)?;
    let most = pipeline.max_total_threads_per_threadgroup();
    if threads > most {
        bail!("{}: {threads} threads, this GPU runs {most} of this kernel", launch.kernel);
    }
    // A table too long to be handed over lives as long as the encoder needs it.
    let mut tables = Vec::new();
    for argument in &launch.arguments {
        if let Argument::Table { addresses, .. } = argument {
            tables.push(match std::mem::size_of_val(&addresses[..]) {
                0..=MOST_INLINE_BYTES => None,
                _ => Some(device.new_buffer_with_data(addresses)?),
            });
        }
    }
    let mut tables = tables.iter();
    let encoder = device.command_encoder()?;
    let encoder = encoder.as_ref();
    encoder.set_compute_pipeline_state(&pipeline);
    encoder.set_bytes_directly(0, launch.params.len(), launch.params.as_ptr().cast());
    for (index, argument) in launch.arguments.iter().enumerate() {
        let index = index + 1;
        match argument {
            Argument::Read(binding) => {
                let buffer = buffer_of(launch, binding)?;
                encoder.set_input_buffer(index, Some(buffer), binding.offset);
            }
            Argument::Write(binding) => {
                let buffer = buffer_of(launch, binding)?;
                encoder.set_output_buffer(index, Some(buffer), binding.offset);
            }
            Argument::Table { addresses, recent } => {
                // The encoder orders launches by the buffers that it is told of: what is only
                // reached through the table is named once, then the place is the table's.
                for page in recent {
                    let buffer = buffer_of(launch, page)?;
                    encoder.set_input_buffer(index, Some(buffer), page.offset);
                }
                match tables.next() {
                    Some(Some(buffer)) => encoder.set_input_buffer(index, Some(buffer), 0),
                    // An empty table is never read, but must be bound.
                    _ if addresses.is_empty() => encoder.set_bytes(index, &0u64),
                    _ => {
                        let bytes = std::mem::size_of_val(&addresses[..]);
                        encoder.set_bytes_directly(index, bytes, addresses.as_ptr().cast());
                    }
                }
            }
        }
    }
    let [x, y, z] = groups.map(|n| n as usize);
    encoder.dispatch_thread_groups(
        MTLSize { width: x, height: y, depth: z },
        MTLSize { width: threads, height: 1, depth: 1 },
    );
    Ok(())
}

#[cfg_attr(not(feature = "metal-emulator"), allow(unused_variables, clippy::unnecessary_wraps))]
fn buffer_of<'a>(launch: &Launch<'_>, binding: &'a Binding<'_>) -> Result<&'a Buffer> {
    match &binding.memory {
        Memory::Device(buffer) => Ok(buffer),
        #[cfg(feature = "metal-emulator")]
        Memory::Host(_) => bail!("{}: an input is in host memory", launch.kernel),
    }
}

/// Opens the `index`-th GPU.
///
/// # Errors
/// If there is none.
pub fn open(index: usize) -> Result<Device> {
    // A step is a few hundred launches: to commit after every fifty, as candle does unless told
    // otherwise, costs more than it gains.
    if std::env::var_os(LAUNCHES_PER_COMMIT).is_none() {
        std::env::set_var(LAUNCHES_PER_COMMIT, "1000");
    }
    Device::new_metal(index)
}

/// Copies host bytes over those of a contiguous tensor, after all that was launched before.
///
/// # Errors
/// If the tensor is not contiguous, or the device has no memory left.
pub(crate) fn put(bytes: &[u8], out: &mut MetalStorage, layout: &Layout) -> Result<()> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("needs a contiguous tensor, got {:?}", layout.shape());
    };
    let size = out.dtype().size_in_bytes();
    if (end - start) * size != bytes.len() {
        bail!("{} bytes into {}", bytes.len(), (end - start) * size);
    }
    let source = out.device().new_buffer_with_data(bytes)?;
    let mut encoder = out.device().blit_command_encoder()?;
    encoder.copy_from_buffer(&source, 0, out.buffer(), start * size, bytes.len());
    Ok(())
}

fn pipeline(device: &MetalDevice, launch: &Launch<'_>) -> Result<ComputePipeline> {
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let compiled = compiled.get_or_insert_with(HashMap::new).entry(device.id()).or_default();
    let library = std::ptr::from_ref(launch.library) as usize;
    let key = (library, launch.kernel.clone(), launch.constants.clone());
    if let Some(pipeline) = compiled.pipelines.get(&key) {
        return Ok(pipeline.clone());
    }
    let what = |error| Error::Msg(format!("Metal kernel {}: {error}", launch.kernel));
    let found = match compiled.libraries.get(&library) {
        Some(found) => found.clone(),
        None => {
            let options = MTLCompileOptions::new();
            // Roundings are exact to the bit, and a maximum over nothing is minus infinity.
            #[allow(deprecated, reason = "the name that every supported system has")]
            options.setFastMathEnabled(false);
            let text = launch.library.parts.concat();
            let made = device.device().new_library_with_source(&text, Some(&options));
            let made = made.map_err(what)?;
            compiled.libraries.insert(library, made.clone());
            made
        }
    };
    let constants = launch.constants.iter().enumerate().map(|(i, &v)| (i, Value::Bool(v)));
    let constants = ConstantValues::new(constants.collect());
    let constants = (!launch.constants.is_empty()).then_some(&constants);
    let function = found.get_function(&launch.kernel, constants).map_err(what)?;
    let made = device.device().new_compute_pipeline_state_with_function(&function).map_err(what)?;
    compiled.pipelines.insert(key, made.clone());
    Ok(made)
}
