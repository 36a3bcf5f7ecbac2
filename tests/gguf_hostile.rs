//! Damaged and hostile GGUF files: the reader must name what is wrong, never panic, and never ask
//! for much more memory than the file is large.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::Bytes;
use candle_ds4::cli::inspect;
use candle_ds4::gguf::{
    Array, Error, Gguf, Header, Metadata, Strings, TensorType, Value, ValueType, Writer, MAX_DEPTH,
    MAX_HEADER_BYTES, MAX_NAME_BYTES,
};

/// Counts the bytes that the current thread holds, and the most it held.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    HELD.set(HELD.get() + change);
    PEAK.set(PEAK.get().max(HELD.get()));
}

// SAFETY: every call goes to the system's allocator unchanged; the counters do not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `f` and returns its result with the most bytes it held at once.
fn peak_of<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = f();
    (result, (PEAK.get() - before) as usize)
}

/// What parsing may hold: room for the first entries before they are read, and then some
/// bookkeeping for each byte of the file.
fn bound(file: &Bytes) -> usize {
    256 * 1024 + 16 * file.len()
}

/// Opens `file`, touches all it offers, and checks the memory bound.
fn open(file: &Bytes) -> Result<Gguf, Error> {
    let (result, peak) = peak_of(|| Gguf::from_bytes(file.clone()));
    assert!(peak <= bound(file), "{peak} bytes held for a file of {}", file.len());
    match &result {
        Ok(gguf) => {
            for t in gguf.tensors() {
                match gguf.data(t) {
                    Ok(data) => assert_eq!(Some(data.len() as u64), t.len, "{}", t.name),
                    Err(Error::UnknownTensorType { id, .. }) => assert_eq!(id, t.ty.id()),
                    Err(other) => panic!("{other}"),
                }
                assert_eq!(gguf.get(&t.name), Some(t));
            }
            let mut out = Vec::new();
            for json in [false, true] {
                inspect::list("x", gguf.header(), file.len() as u64, json, &mut out).unwrap();
            }
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.chars().all(|c| !c.is_control()), "{message:?}");
            assert!(message.len() < 2000, "{message}");
        }
    }
    result
}

/// A small file with every kind of value and tensor.
fn sample() -> Bytes {
    let mut metadata = Metadata::new();
    let nested = Array::Array(vec![
        Array::U8(vec![1, 2]),
        Array::Array(vec![Array::String(Strings::from_iter(["x"])), Array::Bool(vec![true])]),
    ]);
    let entries: [(&str, Value); 20] = [
        ("general.architecture", "deepseek4".into()),
        ("general.alignment", 64u32.into()),
        ("k.u8", 1u8.into()),
        ("k.i8", (-1i8).into()),
        ("k.u16", 2u16.into()),
        ("k.i16", (-2i16).into()),
        ("k.u32", 3u32.into()),
        ("k.i32", (-3i32).into()),
        ("k.f32", 0.5f32.into()),
        ("k.u64", 4u64.into()),
        ("k.i64", (-4i64).into()),
        ("k.f64", 0.25f64.into()),
        ("k.bool", true.into()),
        ("a.u16", vec![1u16, 2, 3].into()),
        ("a.f64", vec![1f64, 2.0].into()),
        ("a.bool", vec![true, false].into()),
        ("a.empty", Vec::<u64>::new().into()),
        ("a.tokens", Strings::from_iter([b"a".as_slice(), b"", b"\xff\xfe"]).into()),
        ("a.nested", nested.into()),
        ("deepseek4.attention.compress_ratios", vec![0u32, 4, 128].into()),
    ];
    for (key, value) in entries {
        metadata.insert(key, value).unwrap();
    }
    let mut w = Writer::new(metadata);
    w.tensor_bytes("first.weight", &[3, 2], TensorType::F32, [7u8; 24]).unwrap();
    w.tensor_bytes("second.weight", &[256], TensorType::IQ2_XXS, [8u8; 66]).unwrap();
    w.alias("third.weight", "first.weight").unwrap();
    w.tensor_bytes("none", &[0, 5], TensorType::I8, []).unwrap();
    w.tensor_bytes("scalar", &[], TensorType::I64, [9u8; 8]).unwrap();
    let mut out = Vec::new();
    w.write(&mut out).unwrap();
    out.into()
}

#[test]
fn cut_at_every_byte() {
    let file = sample();
    let header = Header::parse(&file).unwrap();
    let whole = header.expected_len();
    for len in 0..file.len() {
        let result = open(&file.slice(..len));
        let len = len as u64;
        if len >= whole {
            result.unwrap_or_else(|e| panic!("only padding is missing at {len}: {e}"));
            continue;
        }
        let error = result.expect_err("data is missing");
        let message = error.to_string();
        match &error {
            Error::Magic { .. } => assert!(len < 4),
            Error::Short { .. } | Error::Count { .. } => {
                assert!(len < header.data_start());
                assert!(message.contains("ds4 pull"), "{message}");
            }
            Error::Truncated { tensor, end, found, expected } => {
                let culprit = header.tensors().iter().find(|t| t.end() > len).unwrap();
                assert_eq!(tensor, &culprit.name);
                assert_eq!((*end, *found, *expected), (culprit.end(), len, whole));
            }
            other => panic!("cut at {len}: {other}"),
        }
    }
}

#[test]
fn every_bit_flipped() {
    let file = sample();
    let header_len = Header::parse(&file).unwrap().data_start() as usize;
    let mut refused = 0;
    for bit in 0..header_len * 8 {
        let mut damaged = file.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        refused += usize::from(open(&damaged.into()).is_err());
    }
    // Most bits are text and numbers that may be anything; structure is the rest.
    assert!(refused > header_len, "{refused} of {} flips refused", header_len * 8);
}

#[test]
fn every_position_overwritten_with_extremes() {
    let file = sample();
    let header_len = Header::parse(&file).unwrap().data_start() as usize;
    let extremes: [&[u8]; 9] = [
        &[0; 4],
        &[0xff; 4],
        &[0xff, 0xff, 0xff, 0x7f],
        &[0; 8],
        &[0xff; 8],
        &i64::MAX.to_le_bytes(),
        &i64::MIN.to_le_bytes(),
        &(1u64 << 40).to_le_bytes(),
        &(u64::MAX / 8).to_le_bytes(),
    ];
    for at in 0..header_len {
        for extreme in extremes {
            let mut damaged = file.to_vec();
            let end = (at + extreme.len()).min(damaged.len());
            damaged[at..end].copy_from_slice(&extreme[..end - at]);
            let _ = open(&damaged.into());
        }
    }
}

/// Builds files that a writer would refuse to write.
struct Raw(Vec<u8>);

impl Raw {
    fn new(version: u32, tensors: u64, entries: u64) -> Self {
        let mut raw = Raw(b"GGUF".to_vec());
        raw.put(version.to_le_bytes()).put(tensors.to_le_bytes()).put(entries.to_le_bytes());
        raw
    }

    fn put(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.0.extend_from_slice(bytes.as_ref());
        self
    }

    fn string(&mut self, s: impl AsRef<[u8]>) -> &mut Self {
        self.put((s.as_ref().len() as u64).to_le_bytes()).put(s)
    }

    fn entry(&mut self, key: impl AsRef<[u8]>, ty: ValueType) -> &mut Self {
        self.string(key).put(ty.id().to_le_bytes())
    }

    fn tensor(&mut self, name: impl AsRef<[u8]>, dims: &[u64], ty: u32, offset: u64) -> &mut Self {
        self.string(name).put((dims.len() as u32).to_le_bytes());
        for d in dims {
            self.put(d.to_le_bytes());
        }
        self.put(ty.to_le_bytes()).put(offset.to_le_bytes())
    }

    fn pad(&mut self, extra: usize) -> &mut Self {
        let len = self.0.len().next_multiple_of(32) + extra;
        self.0.resize(len, 0);
        self
    }

    fn open(&self) -> Result<Gguf, Error> {
        open(&Bytes::copy_from_slice(&self.0))
    }

    /// The error's message.
    fn refused(&self) -> String {
        self.open().expect_err("must be refused").to_string()
    }
}

fn assert_has(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} does not mention {part:?}");
    }
}

#[test]
fn other_files_are_recognised() {
    let refused = |bytes: &[u8]| open(&Bytes::copy_from_slice(bytes)).unwrap_err().to_string();
    assert_has(&refused(b""), &["empty"]);
    assert_has(&refused(b"GG"), &["begins with \"GG\""]);
    assert_has(&refused(b"ggml\0\0\0\0"), &["not a GGUF file", "\"ggml\""]);
    assert_has(&refused(b"\x1b[2J\0\0\0\0"), &["\\x1b[2J"]);
    assert_has(&refused(b"version https://git-lfs.github.com/spec/v1\n"), &["Git LFS"]);
    assert_has(&refused(b"<!DOCTYPE html><html>"), &["web page"]);
    assert_has(&refused(b"\x10\0\0\0\0\0\0\0{\"a\":{}}"), &["safetensors", "ds4 quantize"]);
}

#[test]
fn versions_two_and_three_only() {
    for version in [2, 3] {
        assert_eq!(Raw::new(version, 0, 0).open().unwrap().header().version(), version);
    }
    for version in [0, 1, 4, u32::MAX] {
        let message = Raw::new(version, 0, 0).refused();
        assert_has(&message, &["version", &version.to_string()]);
    }
    assert_has(&Raw::new(3u32.swap_bytes(), 0, 0).refused(), &["big-endian"]);
}

#[test]
fn counts_beyond_the_file_are_refused_before_room_is_made() {
    for n in [u64::MAX, 1 << 40, 3] {
        assert_has(&Raw::new(3, n, 0).refused(), &["tensor count", &n.to_string()]);
        assert_has(&Raw::new(3, 0, n).refused(), &["metadata count", &n.to_string()]);
        for ty in 0..=12 {
            let mut raw = Raw::new(3, 0, 1);
            raw.entry("big.array", ValueType::Array).put(u32::to_le_bytes(ty));
            let message = raw.put(n.to_le_bytes()).refused();
            assert_has(&message, &["`big.array`", &n.to_string()]);
        }
        let mut raw = Raw::new(3, 0, 1);
        let message = raw.entry("big.string", ValueType::String).put(n.to_le_bytes()).refused();
        assert_has(&message, &["`big.string`", &n.to_string()]);
        let message = Raw::new(3, 0, 1).put(n.to_le_bytes()).put([0; 2]).refused();
        assert_has(&message, &["metadata count"]);
        let message = Raw::new(3, 0, 1).put(n.max(33).to_le_bytes()).put([b'k'; 32]).refused();
        assert_has(&message, &["key of metadata entry 1 of 1", &n.max(33).to_string()]);
        let message = Raw::new(3, 1, 0).put(n.max(33).to_le_bytes()).put([b't'; 32]).refused();
        assert_has(&message, &["name of tensor 1 of 1", &n.max(33).to_string()]);
    }
}

#[test]
fn counts_that_fit_the_file_by_a_hair_stay_in_bounds() {
    // Each file is all zeros after the count: the longest lists that its size allows.
    for size in [1 << 10, 1 << 16, 1 << 20] {
        for shift in 0..8 {
            let n = (size as u64) >> shift;
            let _ = Raw::new(3, n, 0).pad(size).open();
            let _ = Raw::new(3, 0, n).pad(size).open();
            for ty in [ValueType::Array, ValueType::String, ValueType::U8, ValueType::U64] {
                let mut raw = Raw::new(3, 0, 1);
                raw.entry("a", ValueType::Array).put(ty.id().to_le_bytes()).put(n.to_le_bytes());
                let _ = raw.pad(size).open();
            }
        }
    }
}

#[test]
fn a_long_list_of_tensors_stays_in_bounds() {
    let n = 20_000u64;
    let mut raw = Raw::new(3, n, 0);
    for i in 0..n {
        raw.tensor(i.to_le_bytes().map(|b| b & 0x7f), &[], 99, 0);
    }
    let error = raw.pad(0).refused();
    assert_has(&error, &["more than once"]);
    let mut raw = Raw::new(3, n, 0);
    for i in 0..n {
        raw.tensor(format!("{i:x}"), &[], 99, 0);
    }
    assert_eq!(raw.pad(0).open().unwrap().tensors().len() as u64, n);
}

#[test]
fn a_header_larger_than_the_limit() {
    // Sparse on disk: the size is what counts.
    let mut raw = Raw::new(3, 0, 1);
    raw.entry("huge", ValueType::Array).put(ValueType::U8.id().to_le_bytes());
    raw.put((MAX_HEADER_BYTES as u64).to_le_bytes());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &raw.0).unwrap();
    file.as_file().set_len(2 * MAX_HEADER_BYTES as u64).unwrap();
    let (result, peak) = peak_of(|| Gguf::open(file.path()));
    let error = result.unwrap_err();
    assert!(matches!(error.rule(), Error::HeaderTooLong { .. }), "{error}");
    assert_has(&error.to_string(), &["huge", &file.path().display().to_string()]);
    assert!(peak < 1 << 20, "{peak} bytes held");
}

#[test]
fn a_large_file_of_zeros_after_a_hostile_count() {
    let count = 1 << 20;
    let mut raw = Raw::new(3, 0, count);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &raw.pad(0).0).unwrap();
    file.as_file().set_len(1 << 32).unwrap();
    let (result, peak) = peak_of(|| Gguf::open(file.path()));
    assert_has(&result.unwrap_err().to_string(), &["more than once"]);
    // An entry of zeros takes 13 bytes: what has been read bounds the cost, not the file's 4 GiB.
    assert!(peak <= 16 * 13 * count as usize, "{peak} bytes held");
}

#[test]
fn a_large_file_may_promise_much_but_is_believed_entry_by_entry() {
    for (tensors, entries) in [(1 << 21, 0), (0, 1 << 22)] {
        let mut raw = Raw::new(3, tensors, entries);
        let file = tempfile::NamedTempFile::new().unwrap();
        // The first name is too long, so nothing after the counts is of use.
        let name = (MAX_NAME_BYTES + 1) as u64;
        std::fs::write(file.path(), &raw.put(name.to_le_bytes()).0).unwrap();
        file.as_file().set_len(1 << 32).unwrap();
        let (result, peak) = peak_of(|| Gguf::open(file.path()));
        assert_has(&result.unwrap_err().to_string(), &["65536 bytes long"]);
        assert!(peak < 1 << 20, "{peak} bytes held");
    }
}

#[test]
fn arrays_nested_too_deep() {
    let nested = |levels: usize| {
        let mut raw = Raw::new(3, 0, 1);
        raw.entry("deep", ValueType::Array);
        for _ in 1..levels {
            raw.put(ValueType::Array.id().to_le_bytes()).put(1u64.to_le_bytes());
        }
        raw.put(ValueType::U8.id().to_le_bytes()).put(0u64.to_le_bytes());
        raw
    };
    nested(MAX_DEPTH).open().unwrap();
    for levels in [MAX_DEPTH + 1, 100_000] {
        assert_has(&nested(levels).refused(), &["`deep`", "nested deeper than 4"]);
    }
}

#[test]
fn metadata_rules() {
    let mut raw = Raw::new(3, 0, 2);
    raw.entry("same.key", ValueType::U8).put([1]).entry("same.key", ValueType::U8).put([2]);
    assert_has(&raw.refused(), &["`same.key`", "more than once"]);

    let mut raw = Raw::new(3, 0, 1);
    raw.entry("odd.bool", ValueType::Bool).put([2]);
    assert_has(&raw.refused(), &["`odd.bool`", "found 2", "byte 44"]);

    let mut raw = Raw::new(3, 0, 1);
    raw.entry("odd.bools", ValueType::Array).put(ValueType::Bool.id().to_le_bytes());
    raw.put(3u64.to_le_bytes()).put([1, 0, 7]);
    assert_has(&raw.refused(), &["`odd.bools`", "found 7", "byte 59"]);

    for id in [13, u32::MAX] {
        let mut raw = Raw::new(3, 0, 1);
        raw.string("odd.type").put(id.to_le_bytes());
        assert_has(&raw.refused(), &["`odd.type`", &id.to_string(), "byte 40"]);
    }

    let mut raw = Raw::new(3, 0, 1);
    raw.entry([b'k', 0xff], ValueType::U8).put([1]);
    assert_has(&raw.refused(), &["entry 1 of 1", "UTF-8", "byte 32"]);

    let mut raw = Raw::new(3, 0, 1);
    raw.entry("k".repeat(MAX_NAME_BYTES + 1), ValueType::U8).put([1]);
    assert_has(&raw.refused(), &["entry 1 of 1", "65536 bytes long"]);
}

#[test]
fn alignment_must_be_a_power_of_two() {
    let aligned = |value: u64| {
        let mut raw = Raw::new(3, 1, 1);
        raw.entry("general.alignment", ValueType::U64).put(value.to_le_bytes());
        raw.tensor("t", &[1], 24, 0).pad(1);
        raw
    };
    for value in [0, 3, 33, 1 << 40, u64::MAX] {
        assert_has(&aligned(value).refused(), &["`general.alignment`", &value.to_string()]);
    }
    for value in [1, 8, 32] {
        assert_eq!(aligned(value).open().unwrap().header().alignment(), value);
    }
    // Legal, but this file ends long before the first multiple.
    assert_has(&aligned(1 << 31).refused(), &["`t`", "2147483649"]);

    let mut raw = Raw::new(3, 0, 1);
    raw.entry("general.alignment", ValueType::String).string("32");
    assert_has(&raw.refused(), &["`general.alignment`", "found string"]);
}

#[test]
fn tensor_rules() {
    let one = |name: &str, dims: &[u64], ty: u32, offset: u64| {
        let mut raw = Raw::new(3, 1, 0);
        raw.tensor(name, dims, ty, offset).pad(256);
        raw
    };
    let refused = |dims: &[u64], ty, offset| one("blk.7.w", dims, ty, offset).refused();

    assert_has(&refused(&[1; 5], 0, 0), &["`blk.7.w`", "5 dimensions"]);
    assert_has(&refused(&[1 << 32, 1 << 32], 0, 0), &["`blk.7.w`", "4294967296", "overflow"]);
    assert_has(&refused(&[1 << 62], 0, 0), &["`blk.7.w`", "overflow"]);
    assert_has(&refused(&[u64::MAX], 24, 0), &["`blk.7.w`", "overflow"]);
    assert_has(&refused(&[0, u64::MAX, u64::MAX], 24, 0), &["`blk.7.w`", "overflow"]);
    assert_has(&refused(&[33, 2], 8, 0), &["`blk.7.w`", "row of 33", "Q8_0", "32"]);
    assert_has(&refused(&[], 8, 0), &["`blk.7.w`", "row of 1", "Q8_0"]);
    assert_has(&refused(&[4], 0, 8), &["`blk.7.w`", "offset 8", "alignment 32"]);
    assert_has(&refused(&[4], 0, 256), &["`blk.7.w`", "ends at byte", "ds4 pull"]);
    assert_has(&refused(&[4], 0, 1 << 62), &["`blk.7.w`", "ends at byte"]);
    assert_has(&refused(&[4], 0, u64::MAX - 31), &["`blk.7.w`", "overflows"]);
    assert_has(&refused(&[4], 0, (1 << 63) - 32), &["`blk.7.w`", "overflows"]);
    assert_has(&refused(&[4], 99, 1 << 40), &["`blk.7.w`", "ends at byte"]);

    let mut raw = Raw::new(3, 2, 0);
    raw.tensor("twin", &[1], 0, 0).tensor("twin", &[1], 0, 32).pad(64);
    assert_has(&raw.refused(), &["`twin`", "more than once"]);

    let mut raw = Raw::new(3, 1, 0);
    raw.tensor([0xc3], &[1], 0, 0).pad(64);
    assert_has(&raw.refused(), &["name of tensor 1 of 1", "UTF-8"]);

    assert_has(&one("\x1b[31m", &[1], 0, 512).refused(), &["`\\u{1b}[31m`"]);
    assert_has(&one(&"long".repeat(100), &[1], 0, 512).refused(), &["longlong…longlong"]);
}

#[test]
fn tensors_of_no_elements_and_of_no_dimensions() {
    let mut raw = Raw::new(3, 3, 0);
    raw.tensor("rows", &[0, 7], 0, 0).tensor("cols", &[32, 0], 8, 0).tensor("one", &[], 0, 0);
    let gguf = raw.pad(4).open().unwrap();
    let shapes: Vec<_> = gguf.tensors().iter().map(|t| (t.elements(), t.len)).collect();
    assert_eq!(shapes, [(0, Some(0)), (0, Some(0)), (1, Some(4))]);
}

#[test]
fn an_unknown_tensor_type_is_listed_but_has_no_data() {
    let mut raw = Raw::new(3, 2, 0);
    raw.tensor("new", &[7, 3], 4711, 0).tensor("old", &[2], 24, 32);
    let gguf = raw.pad(34).open().unwrap();
    let new = gguf.tensor("new").unwrap();
    assert_eq!((new.ty, new.len, new.elements()), (TensorType::Unknown(4711), None, 21));
    assert_has(&gguf.data(new).unwrap_err().to_string(), &["`new`", "4711"]);
    assert_eq!(gguf.data(gguf.tensor("old").unwrap()).unwrap(), [0u8; 2].as_slice());
}

#[test]
fn shared_offsets_and_trailing_bytes_are_allowed() {
    let mut raw = Raw::new(3, 2, 0);
    raw.tensor("a", &[4], 24, 32).tensor("b", &[2], 25, 32).pad(32);
    let gguf = raw.put([1, 2, 3, 4]).put([0xee; 100]).open().unwrap();
    for t in gguf.tensors() {
        assert_eq!(gguf.data(t).unwrap(), [1u8, 2, 3, 4].as_slice());
    }
}

#[test]
fn data_of_another_files_tensor_is_refused() {
    let mut raw = Raw::new(3, 1, 0);
    let small = raw.tensor("small", &[1], 24, 0).pad(1).open().unwrap();
    let mut raw = Raw::new(3, 1, 0);
    let large = raw.tensor("large", &[100], 24, 0).pad(100).open().unwrap();
    let error = small.data(large.tensor("large").unwrap()).unwrap_err();
    assert_has(&error.to_string(), &["`large`"]);
}

#[test]
fn paths_that_are_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let error = Gguf::open(folder.path()).unwrap_err().to_string();
    assert_has(&error, &["not a regular file", &folder.path().display().to_string()]);
    let absent = folder.path().join("absent.gguf");
    assert_has(&Gguf::open(&absent).unwrap_err().to_string(), &["absent.gguf", "cannot open"]);
    let empty = folder.path().join("empty.gguf");
    std::fs::write(&empty, b"").unwrap();
    assert_has(&Gguf::open(&empty).unwrap_err().to_string(), &["empty.gguf", "is empty"]);
}
