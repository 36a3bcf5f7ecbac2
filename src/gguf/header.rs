//! Everything in front of the data: version, metadata, tensor list.

#![forbid(unsafe_code)]

use std::fmt;

use bytes::Bytes;

use super::error::quote;
use super::metadata::sorted_by_name;
use super::tensor_info::data_len;
use super::{
    Array, Error, Metadata, Strings, TensorInfo, TensorType, Value, ValueType, DEFAULT_ALIGNMENT,
    MAX_DEPTH, MAX_DIMS, MAX_HEADER_BYTES, MAX_NAME_BYTES,
};

/// Bytes of the smallest metadata entry: empty key, type, one-byte value.
const LEAST_ENTRY: u64 = 8 + 4 + 1;

/// Bytes of the smallest tensor entry: empty name, no dimensions, type, offset.
const LEAST_TENSOR: u64 = 8 + 4 + 4 + 8;

/// Entries to reserve room for before the first one has been read.
const RESERVE: usize = 1024;

/// A parsed header: what the file says about itself, whether or not all of its data is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    version: u32,
    alignment: u64,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    /// Positions in `tensors`, sorted by name.
    by_name: Vec<usize>,
    data_start: u64,
}

impl Header {
    /// Parses the header at the beginning of `file`.
    ///
    /// `file` may end anywhere after the header: see [`Header::check_complete`].
    ///
    /// # Errors
    /// Whatever rule of the format the header breaks; the error names the field and the byte.
    pub fn parse(file: &Bytes) -> Result<Self, Error> {
        let mut cursor = Cursor::new(file);
        let magic: [u8; 4] = cursor.array(Place::Magic).map_err(|_| not_gguf(file))?;
        if &magic != b"GGUF" {
            return Err(not_gguf(file));
        }
        let version = cursor.u32(Place::Version)?;
        match version {
            2 | 3 => {}
            swapped if (1..=0xff).contains(&swapped.swap_bytes()) => {
                return Err(Error::BigEndian { version })
            }
            _ => return Err(Error::Version { version }),
        }
        let tensor_count = cursor.u64(Place::TensorCount)?;
        let entry_count = cursor.u64(Place::EntryCount)?;

        cursor.check_count(entry_count, LEAST_ENTRY, Place::EntryCount)?;
        let mut entries = Vec::with_capacity(reserve(entry_count));
        for i in 0..entry_count {
            entries.push(entry(&mut cursor, i, entry_count)?);
        }
        let metadata = Metadata::from_entries(entries)?;
        let alignment = alignment(&metadata)?;

        cursor.check_count(tensor_count, LEAST_TENSOR, Place::TensorCount)?;
        let mut tensors = Vec::with_capacity(reserve(tensor_count));
        for i in 0..tensor_count {
            tensors.push(tensor(&mut cursor, i, tensor_count, alignment)?);
        }
        let by_name = sorted_by_name(&tensors, |t: &TensorInfo| &t.name)
            .map_err(|tensor| Error::DuplicateTensor { tensor })?;

        // The header ends below MAX_HEADER_BYTES and the alignment below 2^32.
        let data_start = align_up(cursor.position(), alignment);
        for t in &mut tensors {
            let end = data_start
                .checked_add(t.offset)
                .and_then(|at| at.checked_add(t.len.unwrap_or(0)))
                .filter(|end| *end <= i64::MAX as u64);
            if end.is_none() {
                return Err(Error::OffsetOverflow { tensor: t.name.clone(), offset: t.offset });
            }
            t.offset = t.offset.saturating_add(data_start);
        }
        Ok(Self { version, alignment, metadata, tensors, by_name, data_start })
    }

    /// The format version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The alignment of tensor data in bytes, a power of two.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// The metadata in file order.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`, if there is one.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        let info = |i: &usize| self.tensors.get(*i);
        let at = self
            .by_name
            .binary_search_by(|i| info(i).map(|t| t.name.as_str()).cmp(&Some(name)))
            .ok()?;
        self.by_name.get(at).and_then(info)
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// There is none; the error names it.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo, Error> {
        self.get(name).ok_or_else(|| Error::MissingTensor { tensor: name.to_owned() })
    }

    /// Where the data section begins, in bytes from the start of the file.
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// The smallest file size that holds every tensor of a known type.
    pub fn expected_len(&self) -> u64 {
        self.tensors.iter().map(TensorInfo::end).max().unwrap_or(0)
    }

    /// Checks that a file of `file_len` bytes holds every tensor.
    ///
    /// # Errors
    /// The first tensor, in file order, that is not all there.
    pub fn check_complete(&self, file_len: u64) -> Result<(), Error> {
        match self.tensors.iter().find(|t| t.end() > file_len) {
            None => Ok(()),
            Some(t) => Err(Error::Truncated {
                tensor: t.name.clone(),
                end: t.end(),
                found: file_len,
                expected: self.expected_len(),
            }),
        }
    }
}

/// The alignment that `metadata` asks for, [`DEFAULT_ALIGNMENT`] if it is silent.
pub(super) fn alignment(metadata: &Metadata) -> Result<u64, Error> {
    const KEY: &str = "general.alignment";
    if metadata.get(KEY).is_none() {
        return Ok(DEFAULT_ALIGNMENT);
    }
    let value = metadata.u64(KEY)?;
    if value.is_power_of_two() && value <= u64::from(u32::MAX) {
        Ok(value)
    } else {
        Err(Error::Alignment { value })
    }
}

/// The next multiple of `alignment` (a power of two below 2^32) at or after `n`.
pub(super) fn align_up(n: u64, alignment: u64) -> u64 {
    n.saturating_add(alignment - 1) & !(alignment - 1)
}

fn reserve(count: u64) -> usize {
    usize::try_from(count).map_or(RESERVE, |n| n.min(RESERVE))
}

/// Says what a file is that does not begin with `GGUF`.
fn not_gguf(file: &[u8]) -> Error {
    let starts = |prefix: &[u8]| {
        file.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix))
    };
    let found = if file.is_empty() {
        "the file is empty; download it again".to_owned()
    } else if starts(b"version https://git-lfs") {
        "it is a Git LFS pointer; fetch the file itself (`git lfs pull`, or `ds4 pull`)".to_owned()
    } else if starts(b"<!doctype") || starts(b"<html") {
        "it is a web page; download the file itself, not the page about it".to_owned()
    } else if file.get(8..10) == Some(b"{\"".as_slice()) {
        "it looks like safetensors; convert it with `ds4 quantize`".to_owned()
    } else {
        let head: Vec<u8> = file.iter().take(4).copied().collect();
        format!("it begins with \"{}\"", head.escape_ascii())
    };
    Error::Magic { found }
}

fn entry(cursor: &mut Cursor, index: u64, count: u64) -> Result<(String, Value), Error> {
    let key = cursor.name(Place::Key { index, count })?;
    let value = {
        let place = Place::Value(&key);
        match cursor.value_type(&key)? {
            ValueType::U8 => Value::U8(cursor.u8(place)?),
            ValueType::I8 => Value::I8(i8::from_le_bytes(cursor.array(place)?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(cursor.array(place)?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(cursor.array(place)?)),
            ValueType::U32 => Value::U32(cursor.u32(place)?),
            ValueType::I32 => Value::I32(i32::from_le_bytes(cursor.array(place)?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(cursor.array(place)?)),
            ValueType::U64 => Value::U64(cursor.u64(place)?),
            ValueType::I64 => Value::I64(i64::from_le_bytes(cursor.array(place)?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(cursor.array(place)?)),
            ValueType::Bool => {
                let offset = cursor.position();
                Value::Bool(boolean(cursor.u8(place)?, &key, offset)?)
            }
            ValueType::String => {
                let len = cursor.u64(place)?;
                let range = cursor.skip(len, place)?;
                Value::String(cursor.file.slice(range))
            }
            ValueType::Array => Value::Array(array(cursor, &key, 1)?),
        }
    };
    Ok((key, value))
}

/// An array's type, count and items. `level` is 1 for an array that is a value itself.
fn array(cursor: &mut Cursor, key: &str, level: usize) -> Result<Array, Error> {
    let place = Place::Value(key);
    if level > MAX_DEPTH {
        return Err(Error::Depth { key: key.to_owned(), offset: cursor.position() });
    }
    let ty = cursor.value_type(key)?;
    let count = cursor.u64(place)?;
    cursor.check_count(count, ty.least_bytes(), place)?;
    Ok(match ty {
        ValueType::U8 => Array::U8(cursor.items(count, place, u8::from_le_bytes)?),
        ValueType::I8 => Array::I8(cursor.items(count, place, i8::from_le_bytes)?),
        ValueType::U16 => Array::U16(cursor.items(count, place, u16::from_le_bytes)?),
        ValueType::I16 => Array::I16(cursor.items(count, place, i16::from_le_bytes)?),
        ValueType::U32 => Array::U32(cursor.items(count, place, u32::from_le_bytes)?),
        ValueType::I32 => Array::I32(cursor.items(count, place, i32::from_le_bytes)?),
        ValueType::F32 => Array::F32(cursor.items(count, place, f32::from_le_bytes)?),
        ValueType::U64 => Array::U64(cursor.items(count, place, u64::from_le_bytes)?),
        ValueType::I64 => Array::I64(cursor.items(count, place, i64::from_le_bytes)?),
        ValueType::F64 => Array::F64(cursor.items(count, place, f64::from_le_bytes)?),
        ValueType::Bool => {
            let start = cursor.position();
            let raw = cursor.items(count, place, u8::from_le_bytes)?;
            let bools = raw.iter().zip(start..).map(|(v, at)| boolean(*v, key, at));
            Array::Bool(bools.collect::<Result<_, _>>()?)
        }
        ValueType::String => {
            let start = cursor.at;
            // Fits: check_count has seen 8 bytes of file for each.
            let mut ends = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
            for _ in 0..count {
                let len = cursor.u64(place)?;
                let range = cursor.skip(len, place)?;
                ends.push(range.end - start);
            }
            Array::String(Strings::from_parts(cursor.file.slice(start..cursor.at), ends))
        }
        ValueType::Array => {
            let mut arrays = Vec::new();
            for _ in 0..count {
                arrays.push(array(cursor, key, level + 1)?);
            }
            Array::Array(arrays)
        }
    })
}

fn boolean(value: u8, key: &str, offset: u64) -> Result<bool, Error> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::Boolean { key: key.to_owned(), value, offset }),
    }
}

/// A line of the tensor list; its offset still counts from the start of the data section.
fn tensor(
    cursor: &mut Cursor,
    index: u64,
    count: u64,
    alignment: u64,
) -> Result<TensorInfo, Error> {
    let name = cursor.name(Place::TensorName { index, count })?;
    let field = |field| Place::Tensor { name: &name, field };
    let n_dims = cursor.u32(field("number of dimensions"))?;
    if n_dims as usize > MAX_DIMS {
        return Err(Error::Dimensions { tensor: name, count: n_dims.into() });
    }
    let mut dims = Vec::with_capacity(n_dims as usize);
    for _ in 0..n_dims {
        dims.push(cursor.u64(field("dimensions"))?);
    }
    let ty = TensorType::from_id(cursor.u32(field("type"))?);
    let offset = cursor.u64(field("offset"))?;
    let len = data_len(&name, &dims, ty)?;
    if offset % alignment != 0 {
        return Err(Error::Misaligned { tensor: name, offset, alignment });
    }
    Ok(TensorInfo { name, dims, ty, offset, len })
}

/// The field being read; turned into words only when something is wrong with it.
#[derive(Clone, Copy)]
enum Place<'a> {
    Magic,
    Version,
    TensorCount,
    EntryCount,
    Key { index: u64, count: u64 },
    Value(&'a str),
    TensorName { index: u64, count: u64 },
    Tensor { name: &'a str, field: &'a str },
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Magic => f.write_str("magic"),
            Place::Version => f.write_str("version"),
            Place::TensorCount => f.write_str("tensor count"),
            Place::EntryCount => f.write_str("metadata count"),
            Place::Key { index, count } => {
                write!(f, "key of metadata entry {} of {count}", index + 1)
            }
            Place::Value(key) => write!(f, "metadata {}", quote(key)),
            Place::TensorName { index, count } => {
                write!(f, "name of tensor {} of {count}", index + 1)
            }
            Place::Tensor { name, field } => write!(f, "tensor {}: {field}", quote(name)),
        }
    }
}

/// A position in the header's bytes that only moves forward.
struct Cursor<'a> {
    file: &'a Bytes,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn new(file: &'a Bytes) -> Self {
        Self { file, at: 0 }
    }

    fn position(&self) -> u64 {
        self.at as u64
    }

    /// Bytes left in the file, or in the part of it that a header may take.
    fn remaining(&self) -> u64 {
        (self.file.len().min(MAX_HEADER_BYTES) - self.at) as u64
    }

    /// The error for a field that does not fit, by what cut it off.
    fn out_of_bytes(&self, place: Place, short: impl FnOnce(String, u64) -> Error) -> Error {
        if self.file.len() > MAX_HEADER_BYTES {
            Error::HeaderTooLong { place: place.to_string() }
        } else {
            short(place.to_string(), self.remaining())
        }
    }

    /// Refuses a count of items that the rest of the file cannot hold, before room is made.
    fn check_count(&self, count: u64, item_bytes: u64, place: Place) -> Result<(), Error> {
        if count <= self.remaining() / item_bytes {
            return Ok(());
        }
        Err(self.out_of_bytes(place, |place, remaining| Error::Count {
            place,
            offset: self.position(),
            count,
            item_bytes,
            remaining,
        }))
    }

    /// Moves past `len` bytes and returns where they are.
    fn skip(&mut self, len: u64, place: Place) -> Result<std::ops::Range<usize>, Error> {
        if len > self.remaining() {
            return Err(self.out_of_bytes(place, |place, remaining| Error::Short {
                place,
                offset: self.position(),
                needed: len,
                remaining,
            }));
        }
        let start = self.at;
        self.at += len as usize; // not above remaining(), which came from a usize
        Ok(start..self.at)
    }

    fn take(&mut self, len: u64, place: Place) -> Result<&'a [u8], Error> {
        let range = self.skip(len, place)?;
        Ok(self.file.get(range).unwrap_or_default())
    }

    fn array<const N: usize>(&mut self, place: Place) -> Result<[u8; N], Error> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, place)?);
        Ok(out)
    }

    fn u8(&mut self, place: Place) -> Result<u8, Error> {
        Ok(u8::from_le_bytes(self.array(place)?))
    }

    fn u32(&mut self, place: Place) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array(place)?))
    }

    fn u64(&mut self, place: Place) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array(place)?))
    }

    /// `count` fixed-size items; `count` has passed [`Cursor::check_count`].
    fn items<const N: usize, T>(
        &mut self,
        count: u64,
        place: Place,
        decode: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, Error> {
        let raw = self.take(count.saturating_mul(N as u64), place)?;
        Ok(raw
            .chunks_exact(N)
            .map(|chunk| {
                let mut item = [0; N];
                item.copy_from_slice(chunk);
                decode(item)
            })
            .collect())
    }

    /// A key or a tensor name.
    fn name(&mut self, place: Place) -> Result<String, Error> {
        let len = self.u64(place)?;
        let offset = self.position();
        let raw = self.take(len, place)?;
        if raw.len() > MAX_NAME_BYTES {
            return Err(Error::NameTooLong { place: place.to_string(), offset, len });
        }
        match std::str::from_utf8(raw) {
            Ok(name) => Ok(name.to_owned()),
            Err(_) => Err(Error::NotUtf8 { place: place.to_string(), offset }),
        }
    }

    fn value_type(&mut self, key: &str) -> Result<ValueType, Error> {
        let offset = self.position();
        let id = self.u32(Place::Value(key))?;
        ValueType::from_id(id).ok_or_else(|| Error::ValueType { key: key.to_owned(), id, offset })
    }
}
