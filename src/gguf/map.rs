//! A file's bytes without reading them: the memory map behind [`super::Gguf::open`].

use std::fs::{self, File};
use std::path::Path;

use bytes::Bytes;
use memmap2::Mmap;

use super::Error;

/// Maps the regular file at `path`, read-only; pages come in as they are touched.
///
/// # Errors
/// The path cannot be opened, is no regular file, or cannot be mapped.
pub(crate) fn map(path: &Path) -> Result<Bytes, Error> {
    let io = |action| move |error| Error::Io { action, error };
    // Asked before opening: to open a pipe would wait for its writer.
    if !fs::metadata(path).map_err(io("open"))?.is_file() {
        return Err(Error::NotAFile);
    }
    let file = File::open(path).map_err(io("open"))?;
    if file.metadata().map_err(io("open"))?.len() == 0 {
        return Ok(Bytes::new());
    }
    Ok(Bytes::from_owner(map_file(&file).map_err(io("map into memory"))?))
}

#[allow(unsafe_code)]
fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only and private to this program, which never writes a weights file
    // in place (`Writer::save` replaces it by rename). Another program that changes or shortens the
    // file meanwhile would change bytes under us or raise SIGBUS: documented at `Gguf::open`; the
    // parser checks what it reads each time and keeps no assumption across reads.
    unsafe { Mmap::map(file) }
}
