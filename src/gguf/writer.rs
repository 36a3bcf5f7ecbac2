//! Writes GGUF version 3 as a stream: header first, then one tensor after another.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::header::{align_up, alignment};
use super::tensor_info::data_len;
use super::{
    in_file, Array, Error, Metadata, TensorType, Value, ValueType, MAX_DEPTH, MAX_HEADER_BYTES,
    MAX_NAME_BYTES,
};

/// What a tensor's source returns: nothing, or whatever kept it from producing the data.
pub type FillResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

type Fill<'a> = Box<dyn FnOnce(&mut dyn Write) -> FillResult + 'a>;

/// A GGUF file in the making.
///
/// Sources are asked for their data one after another while the file is written, so a model of
/// any size needs only one tensor's memory. The same input gives the same bytes.
pub struct Writer<'a> {
    metadata: Metadata,
    tensors: Vec<Planned<'a>>,
    by_name: BTreeMap<String, usize>,
}

struct Planned<'a> {
    name: String,
    dims: Vec<u64>,
    ty: TensorType,
    len: u64,
    source: Source<'a>,
}

enum Source<'a> {
    Fill(Fill<'a>),
    /// The data of the tensor at this position.
    Alias(usize),
}

impl<'a> Writer<'a> {
    /// A file with this metadata and no tensor yet. `general.alignment`, if present, is obeyed.
    pub fn new(metadata: Metadata) -> Self {
        Self { metadata, tensors: Vec::new(), by_name: BTreeMap::new() }
    }

    /// Adds a tensor whose data `fill` writes when its turn comes. `dims` innermost first.
    ///
    /// # Errors
    /// A name used before or too long, an unknown type, or a shape that the type cannot have.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        dims: &[u64],
        ty: TensorType,
        fill: impl FnOnce(&mut dyn Write) -> FillResult + 'a,
    ) -> Result<(), Error> {
        self.add(name.into(), dims, ty, Source::Fill(Box::new(fill)))
    }

    /// Adds a tensor whose data is at hand. `dims` innermost first.
    ///
    /// # Errors
    /// As [`Writer::tensor`]; or `bytes` has another length than shape and type ask for.
    pub fn tensor_bytes(
        &mut self,
        name: impl Into<String>,
        dims: &[u64],
        ty: TensorType,
        bytes: impl AsRef<[u8]> + 'a,
    ) -> Result<(), Error> {
        let name = name.into();
        let found = bytes.as_ref().len() as u64;
        match data_len(&name, dims, ty)? {
            Some(wanted) if wanted != found => {
                Err(Error::SourceLength { tensor: name, wanted, found })
            }
            _ => self.tensor(name, dims, ty, move |out| Ok(out.write_all(bytes.as_ref())?)),
        }
    }

    /// Adds a tensor with shape, type and data of the earlier tensor `of`, stored once.
    ///
    /// llama.cpp's reader wants every tensor to have its own data; this crate's does not.
    ///
    /// # Errors
    /// A name used before or too long; no tensor `of`.
    pub fn alias(&mut self, name: impl Into<String>, of: &str) -> Result<(), Error> {
        let missing = || Error::MissingTensor { tensor: of.to_owned() };
        let at = *self.by_name.get(of).ok_or_else(missing)?;
        let original = self.tensors.get(at).ok_or_else(missing)?;
        let (dims, ty) = (original.dims.clone(), original.ty);
        self.add(name.into(), &dims, ty, Source::Alias(at))
    }

    fn add(
        &mut self,
        name: String,
        dims: &[u64],
        ty: TensorType,
        source: Source<'a>,
    ) -> Result<(), Error> {
        if self.by_name.contains_key(&name) {
            return Err(Error::DuplicateTensor { tensor: name });
        }
        if name.len() > MAX_NAME_BYTES {
            return Err(Error::NameTooLong {
                place: "tensor name".into(),
                offset: 0,
                len: name.len() as u64,
            });
        }
        let Some(len) = data_len(&name, dims, ty)? else {
            return Err(Error::UnknownTensorType { tensor: name, id: ty.id() });
        };
        self.by_name.insert(name.clone(), self.tensors.len());
        self.tensors.push(Planned { name, dims: dims.to_vec(), ty, len, source });
        Ok(())
    }

    /// Writes the file to `out` and returns its size in bytes.
    ///
    /// # Errors
    /// Metadata that a reader would refuse (alignment, nesting, size), a source that fails or gives
    /// another number of bytes than its tensor has, or `out` failing. What was written until
    /// then is no file.
    pub fn write(self, out: &mut dyn Write) -> Result<u64, Error> {
        let alignment = alignment(&self.metadata)?;
        let header = self.header(alignment)?;
        let mut out = Counted { out, written: 0 };
        out.all(&header)?;
        out.pad(alignment)?;
        self.write_tensors(&mut out, alignment, 0, &mut |_, _| Ok(()))?;
        Ok(out.written)
    }

    /// Writes the data of all tensors but the first `finished`; `after` hears of each.
    fn write_tensors(
        self,
        out: &mut Counted<'_>,
        alignment: u64,
        finished: usize,
        after: &mut dyn FnMut(&mut dyn Write, usize) -> io::Result<()>,
    ) -> Result<(), Error> {
        for (index, t) in self.tensors.into_iter().enumerate().skip(finished) {
            let Source::Fill(fill) = t.source else {
                continue;
            };
            let mut sink = Exact { out: &mut *out, left: t.len, over: false, failed: None };
            let result = fill(&mut sink);
            let (left, over) = (sink.left, sink.over);
            // The output's failure is not the source's, whatever the source made of it.
            if let Some(error) = sink.failed {
                return Err(write_failed(error));
            }
            let found = if over { t.len.saturating_add(1) } else { t.len - left };
            match result {
                Err(error) if !over => return Err(Error::Source { tensor: t.name, error }),
                _ if found != t.len => {
                    return Err(Error::SourceLength { tensor: t.name, wanted: t.len, found })
                }
                _ => out.pad(alignment)?,
            }
            after(out, index + 1).map_err(write_failed)?;
        }
        out.flush().map_err(write_failed)
    }

    /// As [`Writer::save`], but a failure leaves the part where it is, to be gone on with: `finished`
    /// tensors are in it from an earlier call with the same metadata and tensors. `after` is told
    /// the number of tensors that have reached the disk, each time that it rises.
    ///
    /// A part with another header, or with less data than `finished` asks for, is begun anew.
    ///
    /// # Errors
    /// As [`Writer::save`]; or `after` fails.
    pub fn save_from(
        self,
        path: impl AsRef<Path>,
        finished: usize,
        after: &mut dyn FnMut(usize) -> io::Result<()>,
    ) -> Result<u64, Error> {
        let path = path.as_ref();
        let part = part_of(path);
        in_file(path, || {
            let alignment = alignment(&self.metadata)?;
            let mut header = self.header(alignment)?;
            header.resize(align_up(header.len() as u64, alignment) as usize, 0);
            let mut options = File::options();
            let options = options.read(true).write(true).create(true).truncate(false);
            let mut file = options.open(&part).map_err(io_error("create"))?;
            let (finished, written) = self.standing(&mut file, &header, alignment, finished);
            file.set_len(written).map_err(io_error("shorten"))?;
            file.seek(SeekFrom::Start(written)).map_err(io_error("seek in"))?;
            let disk = file.try_clone().map_err(io_error("open"))?;

            let mut buffer = BufWriter::with_capacity(1 << 20, file);
            let mut out = Counted { out: &mut buffer, written };
            if written == 0 {
                out.all(&header)?;
            }
            self.write_tensors(&mut out, alignment, finished, &mut |out, tensors| {
                out.flush()?;
                disk.sync_data()?;
                after(tensors)
            })?;
            let written = out.written;
            drop(buffer);
            disk.sync_all().map_err(io_error("sync"))?;
            fs::rename(&part, path).map_err(io_error("rename"))?;
            sync_folder(path).map_err(io_error("sync"))?;
            Ok(written)
        })
    }

    /// How many tensors of a part can stay, and where the next one goes.
    fn standing(
        &self,
        file: &mut File,
        header: &[u8],
        alignment: u64,
        finished: usize,
    ) -> (usize, u64) {
        let mut found = Vec::new();
        let read = (&*file).take(header.len() as u64).read_to_end(&mut found);
        let own = |t: &&Planned<'_>| matches!(t.source, Source::Fill(_));
        let data = self.tensors.iter().take(finished).filter(own);
        let end = data.fold(header.len() as u64, |end, t| align_up(end + t.len, alignment));
        let whole = file.metadata().is_ok_and(|info| info.len() >= end);
        if finished > 0
            && finished <= self.tensors.len()
            && read.is_ok()
            && found == header
            && whole
        {
            (finished, end)
        } else {
            (0, 0)
        }
    }

    /// Writes the file at `path`, whole or not at all, and returns its size in bytes.
    ///
    /// The data goes to `path` with `.part` appended, reaches the disk, and is then renamed; a file
    /// at `path` stays as it was until that moment. On failure the part is removed.
    ///
    /// # Errors
    /// As [`Writer::write`], in an [`Error::File`].
    pub fn save(self, path: impl AsRef<Path>) -> Result<u64, Error> {
        let path = path.as_ref();
        let part = &part_of(path);
        in_file(path, || {
            let written = self.save_part(part).and_then(|written| {
                fs::rename(part, path).map_err(io_error("rename"))?;
                sync_folder(path).map_err(io_error("sync"))?;
                Ok(written)
            });
            if written.is_err() {
                // The first error is the one to report.
                let _ = fs::remove_file(part);
            }
            written
        })
    }

    fn save_part(self, part: &Path) -> Result<u64, Error> {
        let file = File::create(part).map_err(io_error("create"))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        let written = self.write(&mut out)?;
        let file = out.into_inner().map_err(|e| write_failed(e.into_error()))?;
        file.sync_all().map_err(io_error("sync"))?;
        Ok(written)
    }

    /// The header's bytes, with every tensor's offset worked out.
    fn header(&self, alignment: u64) -> Result<Vec<u8>, Error> {
        let mut out = b"GGUF".to_vec();
        out.extend_from_slice(&3u32.to_le_bytes());
        out.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        out.extend_from_slice(&(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in self.metadata.iter() {
            put_bytes(&mut out, key.as_bytes());
            put_type(&mut out, value.value_type());
            put_value(&mut out, key, value)?;
        }
        let mut offsets: Vec<u64> = Vec::with_capacity(self.tensors.len());
        let mut next = 0u64;
        for t in &self.tensors {
            let offset = match t.source {
                Source::Alias(of) => offsets.get(of).copied().unwrap_or_default(),
                Source::Fill(_) => {
                    let offset = next;
                    next = offset
                        .checked_add(t.len)
                        .filter(|end| *end <= i64::MAX as u64)
                        .map(|end| align_up(end, alignment))
                        .ok_or_else(|| Error::OffsetOverflow { tensor: t.name.clone(), offset })?;
                    offset
                }
            };
            offsets.push(offset);
            put_bytes(&mut out, t.name.as_bytes());
            out.extend_from_slice(&(t.dims.len() as u32).to_le_bytes()); // at most MAX_DIMS
            for d in &t.dims {
                out.extend_from_slice(&d.to_le_bytes());
            }
            out.extend_from_slice(&t.ty.id().to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
        }
        if out.len() > MAX_HEADER_BYTES {
            return Err(Error::HeaderTooLong { place: "writing".into() });
        }
        Ok(out)
    }
}

fn put_type(out: &mut Vec<u8>, ty: ValueType) {
    out.extend_from_slice(&ty.id().to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_value(out: &mut Vec<u8>, key: &str, value: &Value) -> Result<(), Error> {
    match value {
        Value::U8(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I8(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(v) => put_bytes(out, v),
        Value::Array(v) if v.depth() > MAX_DEPTH => {
            return Err(Error::Depth { key: key.to_owned(), offset: 0 })
        }
        Value::Array(v) => put_array(out, v),
    }
    Ok(())
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    fn put<const N: usize, T: Copy>(out: &mut Vec<u8>, items: &[T], encode: fn(T) -> [u8; N]) {
        out.extend(items.iter().flat_map(|v| encode(*v)));
    }
    put_type(out, array.item_type());
    out.extend_from_slice(&(array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend_from_slice(v),
        Array::I8(v) => put(out, v, i8::to_le_bytes),
        Array::U16(v) => put(out, v, u16::to_le_bytes),
        Array::I16(v) => put(out, v, i16::to_le_bytes),
        Array::U32(v) => put(out, v, u32::to_le_bytes),
        Array::I32(v) => put(out, v, i32::to_le_bytes),
        Array::F32(v) => put(out, v, f32::to_le_bytes),
        Array::U64(v) => put(out, v, u64::to_le_bytes),
        Array::I64(v) => put(out, v, i64::to_le_bytes),
        Array::F64(v) => put(out, v, f64::to_le_bytes),
        Array::Bool(v) => out.extend(v.iter().map(|v| u8::from(*v))),
        Array::String(v) => out.extend_from_slice(v.raw()),
        Array::Array(v) => v.iter().for_each(|array| put_array(out, array)),
    }
}

/// Where a file is until it is whole.
fn part_of(path: &Path) -> PathBuf {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    part.into()
}

fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::Io { action, error }
}

fn write_failed(error: io::Error) -> Error {
    Error::Io { action: "write", error }
}

/// Makes the rename itself durable; only Unix can open a folder for that.
fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

/// Counts what has been written, to know where padding must go.
struct Counted<'w> {
    out: &'w mut dyn Write,
    written: u64,
}

impl Counted<'_> {
    fn all(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.write_all(bytes).map_err(write_failed)
    }

    fn pad(&mut self, alignment: u64) -> Result<(), Error> {
        let mut left = align_up(self.written, alignment) - self.written;
        let zeros = [0u8; 512];
        while left > 0 {
            let n = left.min(zeros.len() as u64);
            self.all(zeros.get(..n as usize).unwrap_or_default())?;
            left -= n;
        }
        Ok(())
    }
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Lets one tensor's bytes through and no more.
struct Exact<'c, 'w> {
    out: &'c mut Counted<'w>,
    left: u64,
    /// The source tried to write more than its tensor has.
    over: bool,
    /// What the output said when it failed.
    failed: Option<io::Error>,
}

impl Write for Exact<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            self.over = true;
            return Err(io::Error::other("more data than the tensor has"));
        }
        match self.out.write(bytes) {
            Ok(n) => {
                self.left -= n as u64;
                Ok(n)
            }
            // An interrupted write is tried again by its caller.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let copy = io::Error::new(error.kind(), error.to_string());
                self.failed = Some(error);
                Err(copy)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
