//! The Metal kernels as a static library of C++, for the feature `metal-emulator`.
//!
//! `CXX` names the compiler, which must be clang; by default clang++. With
//! `DS4_EMULATOR_SANITIZE=1` kernels are compiled with AddressSanitizer and
//! UndefinedBehaviorSanitizer, and whatever links them must be run with the sanitizer's library
//! preloaded: `.ci/emulators --sanitize` does.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use super::stamp::{self, Stamp};

const LIBRARY: &str = "ds4_metal_emulator";
/// Parts that every kernel begins with, in their order.
const PARTS: [&str; 9] =
    ["prelude", "reduce", "rounding", "iq2_xxs", "blocks", "vec", "tiles", "rows", "route"];

pub fn build() -> Result<(), Box<dyn std::error::Error>> {
    for variable in ["CXX", "DS4_EMULATOR_SANITIZE"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    for folder in ["src", "include/metal", "emulator", "build"] {
        println!("cargo::rerun-if-changed={folder}");
    }
    let out = PathBuf::from(env::var("OUT_DIR")?).join("metal");
    fs::create_dir_all(&out)?;
    let here = env::current_dir()?;
    let mut ops = Vec::new();
    for entry in fs::read_dir("src")? {
        let folder = entry?.path();
        if let (true, Some(op)) = (folder.join("kernel.metal").is_file(), folder.file_name()) {
            ops.push(op.to_string_lossy().into_owned());
        }
    }
    ops.sort();
    let each: String = ops.iter().map(|op| format!("EACH({op})\n")).collect();
    fs::write(out.join("metal_ops.inc"), each)?;

    let compiler = env::var("CXX").unwrap_or_else(|_| "clang++".to_owned());
    let sanitize = env::var("DS4_EMULATOR_SANITIZE").as_deref() == Ok("1");
    let mut files = vec![PathBuf::from("build/metal_emulator.rs")];
    for folder in ["src", "include/metal", "emulator"] {
        files.extend(stamp::files(Path::new(folder), &[".metal", ".h", ".cpp"])?);
    }
    let words = [compiler.clone(), sanitize.to_string(), here.display().to_string()];
    let stamp = Stamp::new(out.join("stamp"), &files, words)?;
    if sanitize {
        link_sanitizer(&compiler)?;
    }
    stamp::link(LIBRARY, &out);
    if stamp.holds() {
        return Ok(());
    }
    stamp.clear()?;
    let mut build = cc::Build::new();
    build
        .cargo_metadata(false)
        .out_dir(&out)
        .cpp(true)
        .std("c++17")
        .compiler(&compiler)
        .include("emulator/metal")
        .include("include/metal")
        .include("emulator")
        .include(&out)
        .opt_level(2)
        .flag("-Wall")
        .flag("-Wextra")
        // Metal's attributes, and parameters that not every kernel needs.
        .flag("-Wno-unknown-attributes")
        .flag("-Wno-unused-parameter")
        .flag("-Wno-unused-function")
        .flag("-Wno-unused-const-variable")
        // Kernels compute in f32: Metal has nothing wider.
        .flag("-Werror=double-promotion")
        .flag("-ffp-contract=off")
        .flag("-Xclang")
        .flag("-fallow-half-arguments-and-returns");
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        build.flag("-mf16c");
    }
    if sanitize {
        build
            .flag("-fsanitize=address,undefined")
            .flag("-fno-sanitize=vptr,function")
            .flag("-fno-sanitize-recover=undefined")
            .flag("-fsanitize-address-use-after-return=never")
            .flag("-fno-omit-frame-pointer")
            .flag("-shared-libasan");
    }
    build.file("emulator/metal.cpp");
    for op in &ops {
        let file = out.join(format!("{op}.cpp"));
        fs::write(&file, source(&here, op))?;
        build.file(file);
    }
    build.try_compile(LIBRARY).map_err(|error| {
        format!("the feature metal-emulator needs clang++ (Debian: apt-get install clang): {error}")
    })?;
    Ok(stamp.set()?)
}

/// The parts and the kernels of an op, each with its own name in messages.
fn source(here: &Path, op: &str) -> String {
    let mut text: String =
        PARTS.iter().map(|part| format!("#include \"{part}.metal\"\n")).collect();
    let kernel = here.join("src").join(op).join("kernel.metal");
    text += &format!("#include {kernel:?}\nextern \"C\" void ds4_metal_keep_{op}() {{}}\n");
    text
}

fn link_sanitizer(compiler: &str) -> Result<(), Box<dyn std::error::Error>> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let name = format!("clang_rt.asan-{arch}");
    let output = Command::new(compiler).arg(format!("-print-file-name=lib{name}.so")).output()?;
    let library = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let Some(folder) = library.parent().filter(|_| library.is_file()) else {
        return Err(format!("{compiler} has no lib{name}.so").into());
    };
    println!("cargo::rustc-link-search=native={}", folder.display());
    println!("cargo::rustc-link-lib=dylib={name}");
    Ok(())
}
