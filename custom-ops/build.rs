//! Compiles kernels for the emulators, if a feature asks for them.

#[cfg(feature = "metal-emulator")]
#[path = "build/metal_emulator.rs"]
mod metal_emulator;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "metal-emulator")]
    metal_emulator::build()?;
    Ok(())
}
