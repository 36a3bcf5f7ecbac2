//! What was made of the same inputs before is not made again: cargo runs the build script whenever a file of
//! `src` changes, and most of those are Rust.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// What something was made of, beside it in a file.
pub struct Stamp {
    file: PathBuf,
    inputs: String,
}

impl Stamp {
    /// Of what is in `files`, and of all else that matters: `words`.
    pub fn new(
        file: PathBuf,
        files: &[PathBuf],
        words: impl IntoIterator<Item = String>,
    ) -> io::Result<Self> {
        let mut hasher = DefaultHasher::new();
        for path in files {
            path.hash(&mut hasher);
            fs::read(path)?.hash(&mut hasher);
        }
        words.into_iter().for_each(|word| word.hash(&mut hasher));
        Ok(Self { file, inputs: format!("{:016x}\n", hasher.finish()) })
    }

    /// Whether it was made of these.
    pub fn holds(&self) -> bool {
        fs::read_to_string(&self.file).is_ok_and(|inputs| inputs == self.inputs)
    }

    /// It is about to be made: what is cut off half way is of no inputs.
    pub fn clear(&self) -> io::Result<()> {
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// It has been made.
    pub fn set(&self) -> io::Result<()> {
        fs::write(&self.file, &self.inputs)
    }
}

/// All files in a folder and below, in order, whose name ends in one of these.
pub fn files(folder: &Path, endings: &[&str]) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.to_string_lossy();
        if path.is_dir() {
            found.extend(files(&path, endings)?);
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Has a C++ library of `out` linked, made by this run or by one before.
#[cfg(any(feature = "cuda-emulator", feature = "metal-emulator"))]
pub fn link(library: &str, out: &Path) {
    let apple = std::env::var("CARGO_CFG_TARGET_VENDOR").is_ok_and(|vendor| vendor == "apple");
    println!("cargo::rustc-link-search=native={}", out.display());
    println!("cargo::rustc-link-lib=static={library}");
    println!("cargo::rustc-link-lib={}", if apple { "c++" } else { "stdc++" });
}
