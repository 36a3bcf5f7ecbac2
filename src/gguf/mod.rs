//! GGUF, the container of the weights: a reader that trusts no byte, and a writer.
//!
//! A GGUF file is a magic and a version, metadata (typed values by key), a list of tensors (name,
//! dimensions, type, offset), padding, and the tensors' data:
//!
//! ```text
//! "GGUF" u32 version  u64 tensors  u64 entries
//! entries × { key  u32 type  value }            strings: u64 length, bytes
//! tensors × { name  u32 dims  u64 × dims  u32 type  u64 offset from the data section }
//! padding to general.alignment (32)  data …
//! ```
//!
//! Reading follows these rules. Versions 2 and 3, little-endian. Every length is checked against
//! the bytes that are left before any room is made for it, so a small hostile file cannot ask for
//! a large allocation. Names are unique. Offsets are aligned and in the file; two tensors may
//! share data; bytes after the last tensor are ignored. An unknown tensor type is kept (its
//! size is unknown, so its data cannot be had), an unknown metadata type is an error (what follows
//! it cannot be found). Parsing copies the header's values, never the weights: [`Gguf::data`] is a
//! slice of the file's memory map.
//!
//! ```
//! use candle_ds4::gguf::{Gguf, Metadata, TensorType, Writer};
//!
//! # fn main() -> Result<(), candle_ds4::gguf::Error> {
//! let mut metadata = Metadata::new();
//! metadata.insert("general.architecture", "deepseek4")?;
//! let mut writer = Writer::new(metadata);
//! writer.tensor_bytes("ones", &[2], TensorType::F32, [0, 0, 128, 63, 0, 0, 128, 63])?;
//! let mut file = Vec::new();
//! writer.write(&mut file)?;
//!
//! let gguf = Gguf::from_bytes(file.into())?;
//! assert_eq!(gguf.metadata().str("general.architecture")?, "deepseek4");
//! assert_eq!(gguf.data(gguf.tensor("ones")?)?[..4], 1f32.to_le_bytes());
//! # Ok(())
//! # }
//! ```

use std::path::Path;

use bytes::Bytes;

mod error;
mod header;
mod map;
mod metadata;
mod strings;
mod tensor_info;
mod tensor_type;
mod value;
mod writer;

#[cfg(test)]
mod tests;

pub use error::Error;
pub use header::Header;
pub(crate) use map::map;
pub use metadata::{Metadata, Optional};
pub use strings::Strings;
pub use tensor_info::TensorInfo;
pub use tensor_type::{Block, TensorType};
pub use value::{Array, Value, ValueType};
pub use writer::{FillResult, Writer};

/// The alignment of tensor data in files that do not say otherwise.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// The most dimensions a tensor has in ggml.
pub const MAX_DIMS: usize = 4;

/// The longest key or tensor name, in bytes.
pub const MAX_NAME_BYTES: usize = 65_535;

/// The deepest nesting of metadata arrays (the format sets no limit; one level is in use).
pub const MAX_DEPTH: usize = 4;

/// The largest header that is read, in bytes: more than ten times DeepSeek V4 Flash's.
pub const MAX_HEADER_BYTES: usize = 64 << 20;

/// A whole GGUF file: header parsed, data in place.
#[derive(Debug, Clone)]
pub struct Gguf {
    header: Header,
    file: Bytes,
    mapped: bool,
}

impl Gguf {
    /// Maps the file at `path` and parses its header; the data is read when it is touched.
    ///
    /// The file must not be changed while the result, or any data from it, is in use: what was
    /// mapped would change too, and pages past a shortened file's end kill the process.
    /// Replacing the file by rename is fine.
    ///
    /// # Errors
    /// [`Error::File`] around what is wrong: no such file, a broken rule of the format, or data
    /// missing at the end.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        in_file(path, || Ok(Self { mapped: true, ..Self::from_bytes(map::map(path)?)? }))
    }

    /// Parses a file that is in memory already.
    ///
    /// # Errors
    /// As [`Gguf::open`], without the path.
    pub fn from_bytes(file: Bytes) -> Result<Self, Error> {
        let header = Header::parse(&file)?;
        header.check_complete(file.len() as u64)?;
        Ok(Self { header, file, mapped: false })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The metadata in file order.
    pub fn metadata(&self) -> &Metadata {
        self.header.metadata()
    }

    /// The tensors in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        self.header.tensors()
    }

    /// The tensor called `name`, if there is one.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.header.get(name)
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// There is none; the error names it.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo, Error> {
        self.header.tensor(name)
    }

    /// The bytes of a tensor, without a copy; they keep the map alive.
    ///
    /// # Errors
    /// The tensor's type is unknown, or `info` is from another file and does not fit this one.
    pub fn data(&self, info: &TensorInfo) -> Result<Bytes, Error> {
        if info.len.is_none() {
            return Err(Error::UnknownTensorType { tensor: info.name.clone(), id: info.ty.id() });
        }
        let range = usize::try_from(info.offset)
            .ok()
            .zip(usize::try_from(info.end()).ok())
            .filter(|(start, end)| start <= end && *end <= self.file.len());
        match range {
            Some((start, end)) => Ok(self.file.slice(start..end)),
            None => Err(Error::Truncated {
                tensor: info.name.clone(),
                end: info.end(),
                found: self.file.len() as u64,
                expected: info.end(),
            }),
        }
    }

    /// Whether the file is mapped into memory: its pages are whole, and a device may read them in place.
    pub fn is_mapped(&self) -> bool {
        self.mapped
    }

    /// The whole file, for callers that hand the map to a device in one piece.
    pub fn file(&self) -> &Bytes {
        &self.file
    }
}

/// Maps the file at `path` and parses its header, whether or not the data behind it is complete;
/// returns the header and the file's size in bytes.
///
/// # Errors
/// As [`Gguf::open`], without the check of the data.
pub fn open_header(path: impl AsRef<Path>) -> Result<(Header, u64), Error> {
    let path = path.as_ref();
    in_file(path, || {
        let file = map::map(path)?;
        Ok((Header::parse(&file)?, file.len() as u64))
    })
}

/// Runs `f`, and puts the file's name on its error.
fn in_file<T>(path: &Path, f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    f().map_err(|error| Error::File { path: path.to_owned(), error: Box::new(error) })
}
