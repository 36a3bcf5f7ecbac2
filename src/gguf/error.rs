//! What can be wrong with a GGUF file: one variant a broken rule, each naming the key, tensor or byte.

#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

use super::{TensorType, MAX_DEPTH, MAX_DIMS, MAX_HEADER_BYTES, MAX_NAME_BYTES};

/// Advice for a file that ends before what its header promises.
const CUT_SHORT: &str =
    "the file is cut short or damaged: download it again (`ds4 pull` resumes and verifies)";

/// A rule of the GGUF format that a file, a typed look-up or a writer's caller broke.
///
/// Byte positions count from the start of the file. The message is complete in itself: a wrapped
/// cause is part of it, not hidden behind [`std::error::Error::source`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Any other error, with the file it happened in.
    #[error("{path}: {error}")]
    File {
        /// The file as the caller named it.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<Error>,
    },

    /// The operating system refused an operation on the file.
    #[error("cannot {action}: {error}")]
    Io {
        /// What was tried, as a verb: "open", "map into memory", "write".
        action: &'static str,
        /// The system's answer.
        error: io::Error,
    },

    /// The path is a folder, a pipe or a device.
    #[error("not a regular file: give the path of a .gguf file")]
    NotAFile,

    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file: {found}")]
    Magic {
        /// What the file looks like instead.
        found: String,
    },

    /// A version other than 2 and 3.
    #[error(
        "GGUF version {version} is not supported (only 2 and 3): convert the model again with a \
         current converter"
    )]
    Version {
        /// The version field, bytes 4 to 7.
        version: u32,
    },

    /// The version field only makes sense in the other byte order.
    #[error("the file is big-endian (version field {version:#010x}): get the little-endian file")]
    BigEndian {
        /// The version field as read in little-endian order.
        version: u32,
    },

    /// A field runs past the end of the file.
    #[error(
        "{place}: needs {needed} bytes at byte {offset}, but the file has only {remaining} there; \
         {CUT_SHORT}"
    )]
    Short {
        /// The field.
        place: String,
        /// Where the field's bytes begin.
        offset: u64,
        /// How many bytes it needs.
        needed: u64,
        /// How many bytes follow `offset`.
        remaining: u64,
    },

    /// A count promises more items than the rest of the file could hold.
    #[error(
        "{place}: {count} items of at least {item_bytes} bytes each do not fit into the \
         {remaining} bytes after byte {offset}; {CUT_SHORT}"
    )]
    Count {
        /// The field that the count belongs to.
        place: String,
        /// Where the first item would begin.
        offset: u64,
        /// The promised number of items.
        count: u64,
        /// The fewest bytes that one item can take.
        item_bytes: u64,
        /// How many bytes follow `offset`.
        remaining: u64,
    },

    /// The header is larger than any real one by far.
    #[error(
        "{place}: the header (metadata and tensor list) runs past {MAX_HEADER_BYTES} bytes; \
         such a file is refused"
    )]
    HeaderTooLong {
        /// The field that crossed the limit.
        place: String,
    },

    /// A key or tensor name is not UTF-8.
    #[error("{place}: not valid UTF-8 at byte {offset}")]
    NotUtf8 {
        /// The field.
        place: String,
        /// Where its text begins.
        offset: u64,
    },

    /// A key or tensor name is too long.
    #[error("{place}: {len} bytes long at byte {offset}; the format allows {MAX_NAME_BYTES}")]
    NameTooLong {
        /// The field.
        place: String,
        /// Where its text begins.
        offset: u64,
        /// Its length in bytes.
        len: u64,
    },

    /// Two metadata entries have one key.
    #[error("metadata key {} occurs more than once", quote(.key))]
    DuplicateKey {
        /// The key.
        key: String,
    },

    /// Two tensors have one name.
    #[error("tensor {} occurs more than once", quote(.tensor))]
    DuplicateTensor {
        /// The name.
        tensor: String,
    },

    /// A metadata value type outside 0 to 12.
    #[error("metadata {}: unknown value type {id} at byte {offset}", quote(.key))]
    ValueType {
        /// The key.
        key: String,
        /// The type id found.
        id: u32,
        /// Where it stands.
        offset: u64,
    },

    /// A boolean that is neither 0 nor 1.
    #[error("metadata {}: a boolean is 0 or 1, found {value} at byte {offset}", quote(.key))]
    Boolean {
        /// The key.
        key: String,
        /// The byte found.
        value: u8,
        /// Where it stands.
        offset: u64,
    },

    /// Arrays nested too deep.
    #[error(
        "metadata {}: arrays nested deeper than {MAX_DEPTH} levels at byte {offset}", quote(.key)
    )]
    Depth {
        /// The key.
        key: String,
        /// Where the level too many begins (0 when writing).
        offset: u64,
    },

    /// `general.alignment` is no alignment.
    #[error("metadata `general.alignment`: {value} is not a power of two below 2^32")]
    Alignment {
        /// The value found.
        value: u64,
    },

    /// More dimensions than ggml has.
    #[error("tensor {}: {count} dimensions, the format allows {MAX_DIMS}", quote(.tensor))]
    Dimensions {
        /// The tensor.
        tensor: String,
        /// The number of dimensions found.
        count: u64,
    },

    /// The dimensions multiply to more bytes than 63 bits can count.
    #[error("tensor {}: dimensions {dims:?} of {ty} overflow", quote(.tensor))]
    Overflow {
        /// The tensor.
        tensor: String,
        /// The dimensions, innermost first.
        dims: Vec<u64>,
        /// The element type.
        ty: TensorType,
    },

    /// A row does not consist of whole blocks.
    #[error(
        "tensor {}: a row of {row} elements is not a whole number of {ty} blocks of {block}",
        quote(.tensor)
    )]
    Blocks {
        /// The tensor.
        tensor: String,
        /// Its innermost dimension.
        row: u64,
        /// The element type.
        ty: TensorType,
        /// Elements in one block of that type.
        block: u64,
    },

    /// The data does not begin at a multiple of the alignment.
    #[error(
        "tensor {}: offset {offset} is not a multiple of the file's alignment {alignment}",
        quote(.tensor)
    )]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// Its offset as stored: from the start of the data section.
        offset: u64,
        /// The alignment.
        alignment: u64,
    },

    /// Offset plus length is more than 63 bits can count.
    #[error("tensor {}: offset {offset} plus its size overflows", quote(.tensor))]
    OffsetOverflow {
        /// The tensor.
        tensor: String,
        /// Its offset as stored: from the start of the data section.
        offset: u64,
    },

    /// The data section ends before a tensor does.
    #[error(
        "tensor {}: its data ends at byte {end}, but the file has {found} bytes of at least \
         {expected}; {CUT_SHORT}",
        quote(.tensor)
    )]
    Truncated {
        /// The first tensor, in file order, that is not all there.
        tensor: String,
        /// Where its data ends.
        end: u64,
        /// The file's size in bytes.
        found: u64,
        /// The smallest size that holds every tensor.
        expected: u64,
    },

    /// A required metadata key is absent.
    #[error("metadata {} is missing", quote(.key))]
    MissingKey {
        /// The key.
        key: String,
    },

    /// A metadata value has another type than the caller can use.
    #[error("metadata {}: expected {wanted}, found {found}", quote(.key))]
    WrongType {
        /// The key.
        key: String,
        /// What was asked for.
        wanted: &'static str,
        /// What the file has.
        found: String,
    },

    /// A metadata number does not fit the type that the caller asked for.
    #[error("metadata {}: {value} does not fit into {wanted}", quote(.key))]
    OutOfRange {
        /// The key.
        key: String,
        /// The number found.
        value: i128,
        /// What was asked for.
        wanted: &'static str,
    },

    /// No tensor of that name.
    #[error("tensor {} is missing", quote(.tensor))]
    MissingTensor {
        /// The name asked for.
        tensor: String,
    },

    /// A ggml type this program does not know, so that the tensor's size is unknown too.
    #[error("tensor {}: unknown ggml type {id}; a newer ds4 may know it", quote(.tensor))]
    UnknownTensorType {
        /// The tensor.
        tensor: String,
        /// The type id.
        id: u32,
    },

    /// While writing: the data of a tensor could not be produced.
    #[error("tensor {}: its data could not be produced: {error}", quote(.tensor))]
    Source {
        /// The tensor.
        tensor: String,
        /// The source's error.
        error: Box<dyn std::error::Error + Send + Sync>,
    },

    /// While writing: a source gave another number of bytes than shape and type ask for.
    #[error("tensor {}: needs {wanted} bytes of data, its source gave {found}", quote(.tensor))]
    SourceLength {
        /// The tensor.
        tensor: String,
        /// Bytes by shape and type.
        wanted: u64,
        /// Bytes given (at least, when more than wanted).
        found: u64,
    },
}

impl Error {
    /// The broken rule itself, without the file around it.
    pub fn rule(&self) -> &Error {
        match self {
            Error::File { error, .. } => error.rule(),
            other => other,
        }
    }
}

/// `name` in back quotes, safe for a terminal: what is not printable is escaped, the middle of a
/// very long name left out.
pub(super) fn quote(name: &str) -> String {
    const SHOWN: usize = 120;
    let mut out = String::from("`");
    let count = name.chars().count();
    for (i, c) in name.chars().enumerate() {
        if count > SHOWN && i == SHOWN / 2 {
            out.push('…');
        }
        if count > SHOWN && (SHOWN / 2..count - SHOWN / 2).contains(&i) {
            continue;
        }
        if c == '\'' {
            out.push(c);
        } else {
            out.extend(c.escape_debug());
        }
    }
    out.push('`');
    out
}
