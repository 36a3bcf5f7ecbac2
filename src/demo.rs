//! The demo model, part of the program: a tiny trained DeepSeek V4, so that everything can be
//! tried on a machine without an 81 GB file.
//!
//! It knows a few facts, adds small numbers, calls tools and remembers code words; its model card
//! is `assets/tiny/README.md`.

use bytes::Bytes;

/// The GGUF file of the demo model; nothing is copied.
///
/// ```
/// use candle_ds4::candle::Device;
/// use candle_ds4::{demo::demo_model, engine::Engine, gguf::Gguf};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let gguf = Gguf::from_bytes(demo_model())?;
/// let engine = Engine::from_gguf(&gguf, "the demo model", &Device::Cpu)?;
/// assert!(engine.context() >= 8192);
/// # Ok(())
/// # }
/// ```
pub fn demo_model() -> Bytes {
    Bytes::from_static(include_bytes!("../assets/tiny/tiny.gguf"))
}
