//! Compiles the CUDA kernels, `src/<op>/kernel*.cu`, if a feature asks for them, and the Metal kernels for
//! their emulator (build/metal_emulator.rs).
//!
//! `cuda`: each file by nvcc to a fatbin, which the crate embeds. `cuda-emulator`: all of them by a C++
//! compiler to functions that run on the CPU. Environment, all optional:
//!
//! * `NVCC`, or else `CUDA_HOME/bin/nvcc`, or else `nvcc` on `PATH`: the compiler;
//! * `DS4_CUDA_ARCHS`: architectures, such as `80,90a`; by default all of 80, 90a, 100 and 120 that the
//!   compiler knows;
//! * `DS4_CUDA_TIMELINE=1`: kernels leave a record of when each of their blocks ran, which
//!   `ds4 bench --profile` shows; a little slower;
//! * `CXX`: the emulator's compiler, else clang++ if there is one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

use stamp::Stamp;

#[cfg(feature = "metal-emulator")]
#[path = "build/metal_emulator.rs"]
mod metal_emulator;
#[path = "build/stamp.rs"]
mod stamp;

type Failure = Box<dyn std::error::Error>;

/// One `kernel*.cu`.
struct Source {
    path: PathBuf,
    /// `src/rms_norm/kernel.cu` is `rms_norm`, `src/matmul/kernel_decode.cu` is `matmul_decode`.
    module: String,
    /// What it defines with `KERNEL(name, …)`.
    kernels: Vec<String>,
}

fn main() -> Result<(), Failure> {
    println!("cargo::rustc-check-cfg=cfg(gpu_kernels, metal_kernels, cuda_kernels)");
    println!("cargo::rustc-check-cfg=cfg(cuda_warpgroups, cuda_timeline)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    #[cfg(feature = "metal-emulator")]
    metal_emulator::build()?;
    let (cuda, emulator) = (feature("CUDA"), feature("CUDA_EMULATOR"));
    let metal = feature("METAL") || feature("METAL_EMULATOR");
    if metal {
        println!("cargo::rustc-cfg=metal_kernels");
    }
    if metal || cuda || emulator {
        println!("cargo::rustc-cfg=gpu_kernels");
    }
    if !cuda && !emulator {
        return Ok(());
    }
    println!("cargo::rustc-cfg=cuda_kernels");
    for variable in ["NVCC", "CUDA_HOME", "DS4_CUDA_ARCHS", "DS4_CUDA_TIMELINE", "CXX"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    for folder in ["src", "include", "emulator"] {
        println!("cargo::rerun-if-changed={folder}");
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let sources = sources(Path::new("src"))?;
    let modules: Vec<Vec<u8>> = match cuda {
        true => fatbins(&sources, &out)?,
        false => sources.iter().map(|_| Vec::new()).collect(),
    };
    write_table(&sources, &modules, &out)?;
    // Without code of their own, GPUs of compute capability 9.0 have no products of warpgroups.
    if !cuda || architectures(&nvcc())?.iter().any(|arch| arch.ends_with("code=sm_90a")) {
        println!("cargo::rustc-cfg=cuda_warpgroups");
    }
    if cuda && timeline() {
        println!("cargo::rustc-cfg=cuda_timeline");
    }
    if emulator {
        compile_for_emulator(&sources, &out)?;
    }
    Ok(())
}

fn feature(name: &str) -> bool {
    env::var_os(format!("CARGO_FEATURE_{name}")).is_some()
}

fn timeline() -> bool {
    env::var_os("DS4_CUDA_TIMELINE").is_some_and(|set| set == "1")
}

fn sources(src: &Path) -> Result<Vec<Source>, Failure> {
    let mut found = Vec::new();
    for folder in fs::read_dir(src)? {
        let folder = folder?.path();
        if !folder.is_dir() {
            continue;
        }
        for file in fs::read_dir(&folder)? {
            let path = file?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(part) = name.strip_prefix("kernel").and_then(|n| n.strip_suffix(".cu")) else {
                continue;
            };
            let op = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let kernels = kernels_in(&fs::read_to_string(&path)?);
            found.push(Source { module: format!("{op}{part}"), kernels, path });
        }
    }
    found.sort_by(|a, b| a.module.cmp(&b.module));
    Ok(found)
}

/// The names in lines that begin with `KERNEL(name,`.
fn kernels_in(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| line.strip_prefix("KERNEL(")?.split(',').next());
    names.map(|name| name.trim().to_owned()).collect()
}

/// `kernels.rs`: every kernel with its module, and every module's code.
fn write_table(sources: &[Source], modules: &[Vec<u8>], out: &Path) -> io::Result<()> {
    let mut text =
        String::from("#[allow(dead_code)]\npub(super) static MODULES: &[(&str, &[u8])] = &[\n");
    for (source, code) in sources.iter().zip(modules) {
        let file = out.join(format!("{}.fatbin", source.module));
        fs::write(&file, code)?;
        text += &format!("    ({:?}, include_bytes!({:?})),\n", source.module, file);
    }
    text += "];\n\n#[allow(dead_code)]\npub(super) static KERNELS: &[(&str, usize)] = &[\n";
    for (index, source) in sources.iter().enumerate() {
        for kernel in &source.kernels {
            text += &format!("    ({kernel:?}, {index}),\n");
        }
    }
    text += "];\n";
    fs::write(out.join("kernels.rs"), text)
}

/// All sources by nvcc, as many at once as there are cores.
fn fatbins(sources: &[Source], out: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    let nvcc = nvcc();
    let version = Command::new(&nvcc).arg("--version").output();
    let version = version.map_err(|error| no_compiler(&nvcc, &error))?.stdout;
    let mut arguments = ["-O3", "-std=c++17", "--fatbin", "-Iinclude"].map(str::to_owned).to_vec();
    arguments.extend(architectures(&nvcc)?);
    if timeline() {
        arguments.push("-DDS4_TIMELINE".to_owned());
    }
    let headers = stamp::files(Path::new("include"), &[".h", ".cuh"])?;
    let target = |source: &Source| out.join(format!("{}.nvcc.fatbin", source.module));
    let mut wanted = Vec::new();
    for source in sources {
        let mut words = arguments.clone();
        words.push(String::from_utf8_lossy(&version).into_owned());
        let files = [std::slice::from_ref(&source.path), &headers].concat();
        let stamp = Stamp::new(out.join(format!("{}.stamp", source.module)), &files, words)?;
        if !stamp.holds() || !target(source).is_file() {
            wanted.push((source, stamp));
        }
    }
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
    for batch in wanted.chunks(jobs.max(1)) {
        let mut running = Vec::new();
        for (source, stamp) in batch {
            let mut command = Command::new(&nvcc);
            command.args(&arguments).arg("-o").arg(target(source)).arg(&source.path);
            stamp.clear()?;
            let child = command.spawn().map_err(|error| no_compiler(&nvcc, &error))?;
            running.push((child, source, stamp));
        }
        for (mut child, source, stamp) in running {
            if !child.wait()?.success() {
                return Err(format!("nvcc cannot compile {}", source.path.display()).into());
            }
            stamp.set()?;
        }
    }
    Ok(sources.iter().map(|source| fs::read(target(source))).collect::<io::Result<_>>()?)
}

fn nvcc() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    match env::var_os("CUDA_HOME") {
        Some(home) => Path::new(&home).join("bin/nvcc"),
        None => "nvcc".into(),
    }
}

fn no_compiler(nvcc: &Path, error: &io::Error) -> String {
    format!(
        "cannot run {}: {error}; the feature `cuda` needs the CUDA toolkit (set CUDA_HOME to where \
         it is, or run tools/cuda-toolkit.sh)",
        nvcc.display()
    )
}

/// `-gencode` arguments: machine code for each architecture, and PTX for those to come. It is never older
/// than 90: what is launched there, launches beside the kernel before, and older code has no wait for it.
fn architectures(nvcc: &Path) -> Result<Vec<String>, Failure> {
    let wanted = match env::var("DS4_CUDA_ARCHS") {
        Ok(list) => list.split([',', ' ']).filter(|a| !a.is_empty()).map(str::to_owned).collect(),
        Err(_) => known_architectures(nvcc)?,
    };
    if wanted.is_empty() {
        return Err("DS4_CUDA_ARCHS names no architecture; set it to 80,90a for example".into());
    }
    let code = |arch| format!("-gencode=arch=compute_{arch},code=sm_{arch}");
    let mut arguments: Vec<String> = wanted.iter().map(code).collect();
    arguments.push("-gencode=arch=compute_90,code=compute_90".to_owned());
    Ok(arguments)
}

/// Those of 80, 90a, 100 and 120 that the compiler knows.
fn known_architectures(nvcc: &Path) -> Result<Vec<String>, Failure> {
    let output = Command::new(nvcc).arg("--list-gpu-arch").output();
    let output = output.map_err(|error| no_compiler(nvcc, &error))?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    let knows = |number: &str| listed.split_whitespace().any(|l| l == format!("compute_{number}"));
    let mut archs = vec!["80".to_owned(), "90a".to_owned()];
    archs.extend(["100", "120"].into_iter().filter(|n| knows(n)).map(str::to_owned));
    Ok(archs)
}

#[cfg(not(feature = "cuda-emulator"))]
fn compile_for_emulator(_: &[Source], _: &Path) -> Result<(), Failure> {
    Ok(())
}

/// One static library of all kernels, with a function that finds one by name.
#[cfg(feature = "cuda-emulator")]
fn compile_for_emulator(sources: &[Source], out: &Path) -> Result<(), Failure> {
    const LIBRARY: &str = "candle_ds4_cuda_emulated";
    let mut files: Vec<PathBuf> = sources.iter().map(|source| source.path.clone()).collect();
    for folder in ["include", "emulator"] {
        files.extend(stamp::files(Path::new(folder), &[".h", ".cuh"])?);
    }
    files.push("build.rs".into());
    let words = [env::var("CXX").unwrap_or_default(), env::current_dir()?.display().to_string()];
    let stamp = Stamp::new(out.join("cuda_emulator.stamp"), &files, words)?;
    stamp::link(LIBRARY, out);
    if stamp.holds() {
        return Ok(());
    }
    stamp.clear()?;
    let mut build = cc::Build::new();
    build.cargo_metadata(false);
    build.cpp(true).std("c++17").define("CUDA_EMULATOR", None).include("include");
    // A kernel's arithmetic must not depend on what a compiler would like to fuse.
    build.flag("-ffp-contract=off").warnings(false).opt_level(2);
    if env::var_os("CXX").is_none() && Command::new("clang++").arg("--version").output().is_ok() {
        build.compiler("clang++");
    }
    let here = env::current_dir()?;
    let mut table = String::from("#include <cstring>\nstruct EmulatedLaunch;\n");
    let mut rows = String::new();
    for source in sources {
        let file = out.join(format!("{}.cpp", source.module));
        fs::write(&file, format!("#include {:?}\n", here.join(&source.path)))?;
        build.file(file);
        for kernel in &source.kernels {
            table += &format!(
                "extern \"C\" const char* emulate_{kernel}(const EmulatedLaunch*, const void*);\n"
            );
            rows += &format!("    {{\"{kernel}\", emulate_{kernel}}},\n");
        }
    }
    table += "using Emulated = const char* (*)(const EmulatedLaunch*, const void*);\n";
    table += &format!(
        "static const struct {{ const char* name; Emulated run; }} TABLE[] = {{\n{rows}}};\n"
    );
    table += "extern \"C\" Emulated cuda_emulator_find(const char* name) {\n\
              \x20   for (const auto& row : TABLE) if (!strcmp(row.name, name)) return row.run;\n\
              \x20   return nullptr;\n}\n";
    let file = out.join("table.cpp");
    fs::write(&file, table)?;
    build.file(file);
    build.compile(LIBRARY);
    Ok(stamp.set()?)
}
