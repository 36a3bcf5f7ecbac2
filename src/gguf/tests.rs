use std::cell::Cell;
use std::io::{self, Write};
use std::rc::Rc;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

/// Written by the `gguf` Python package (tools/golden/container.py), not by this crate.
const GOLDEN: &[u8] = include_bytes!("../../tests/golden/gguf/values.gguf");

fn golden() -> Gguf {
    Gguf::from_bytes(Bytes::from_static(GOLDEN)).unwrap()
}

#[test]
fn golden_scalars() {
    let gguf = golden();
    let m = gguf.metadata();
    assert_eq!(m.str("general.architecture").unwrap(), "golden");
    assert_eq!(m.get("u8"), Some(&Value::U8(255)));
    assert_eq!(m.get("i8"), Some(&Value::I8(-128)));
    assert_eq!(m.get("u16"), Some(&Value::U16(65535)));
    assert_eq!(m.get("i16"), Some(&Value::I16(-32768)));
    assert_eq!(m.get("u32"), Some(&Value::U32(u32::MAX)));
    assert_eq!(m.get("i32"), Some(&Value::I32(i32::MIN)));
    assert_eq!(m.get("f32"), Some(&Value::F32(0.1)));
    assert_eq!(m.get("u64"), Some(&Value::U64(u64::MAX)));
    assert_eq!(m.get("i64"), Some(&Value::I64(i64::MIN)));
    assert_eq!(m.get("f64"), Some(&Value::F64(0.1)));
    assert!(m.bool("yes").unwrap());
    assert!(!m.bool("no").unwrap());
    assert_eq!(m.str("text").unwrap(), "Grüße, 世界");
    let keys: Vec<_> = m.iter().map(|(k, _)| k).take(4).collect();
    assert_eq!(keys, ["general.architecture", "u8", "i8", "u16"]);
}

#[test]
fn golden_arrays() {
    let gguf = golden();
    let m = gguf.metadata();
    assert_eq!(m.i64s("ints").unwrap(), [1, -2, 3]);
    assert_eq!(m.f32s("floats").unwrap(), [0.5, -0.25]);
    assert_eq!(m.get("bools"), Some(&vec![true, false].into()));
    let tokens: Vec<_> = m.strings("tokens").unwrap().iter().collect();
    assert_eq!(tokens, ["a".as_bytes(), "ñ".as_bytes(), b"<s>"]);
    let nested = vec![Array::I32(vec![1, 2]), Array::I32(vec![3])];
    assert_eq!(m.get("nested"), Some(&Array::Array(nested).into()));
}

#[test]
fn golden_tensors() {
    let gguf = golden();
    let shapes: Vec<_> =
        gguf.tensors().iter().map(|t| (t.name.as_str(), t.dims.as_slice(), t.ty)).collect();
    assert_eq!(
        shapes,
        [
            ("vector", [5].as_slice(), TensorType::F32),
            ("matrix", &[3, 2], TensorType::F16),
            ("ids", &[2, 1], TensorType::I32),
            ("blocks", &[32, 2], TensorType::Q8_0),
        ]
    );
    let data = |name| gguf.data(gguf.tensor(name).unwrap()).unwrap();
    let vector: Vec<u8> = [0f32, 1., 2., 3., 4.].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(data("vector"), vector);
    let halves = [0u16, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500];
    let matrix: Vec<u8> = halves.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(data("matrix"), matrix);
    assert_eq!(data("ids"), [7, 0, 0, 0, 0xf8, 0xff, 0xff, 0xff].as_slice());
    assert_eq!(data("blocks"), (0..68).collect::<Vec<u8>>());
}

#[test]
fn writing_what_was_read_gives_the_golden_file_again() {
    let gguf = golden();
    assert_eq!(rewrite(&gguf), GOLDEN);
}

/// Writes the contents of `gguf` with [`Writer`]. Does not look for shared data.
fn rewrite(gguf: &Gguf) -> Vec<u8> {
    let mut w = Writer::new(gguf.metadata().clone());
    for t in gguf.tensors() {
        w.tensor_bytes(&t.name, &t.dims, t.ty, gguf.data(t).unwrap()).unwrap();
    }
    let mut out = Vec::new();
    w.write(&mut out).unwrap();
    out
}

/// Elements and bytes of a block by the table in the `gguf` Python package 0.19.0, except Q8_1:
/// the package says 40, but ggml's structure is two halves and 32 bytes.
#[test]
fn block_sizes_are_ggmls() {
    let table = [
        (0, "F32", 1, 4),
        (1, "F16", 1, 2),
        (2, "Q4_0", 32, 18),
        (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34),
        (9, "Q8_1", 32, 36),
        (10, "Q2_K", 256, 84),
        (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210),
        (15, "Q8_K", 256, 292),
        (16, "IQ2_XXS", 256, 66),
        (17, "IQ2_XS", 256, 74),
        (18, "IQ3_XXS", 256, 98),
        (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18),
        (21, "IQ3_S", 256, 110),
        (22, "IQ2_S", 256, 82),
        (23, "IQ4_XS", 256, 136),
        (24, "I8", 1, 1),
        (25, "I16", 1, 2),
        (26, "I32", 1, 4),
        (27, "I64", 1, 8),
        (28, "F64", 1, 8),
        (29, "IQ1_M", 256, 56),
        (30, "BF16", 1, 2),
        (34, "TQ1_0", 256, 54),
        (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17),
        (40, "NVFP4", 64, 36),
        (41, "Q1_0", 128, 18),
    ];
    let ours: Vec<_> = TensorType::ALL
        .iter()
        .map(|ty| (ty.id(), ty.name().unwrap(), ty.block().unwrap()))
        .map(|(id, name, block)| (id, name, block.elements, block.bytes))
        .collect();
    assert_eq!(ours, table);
    for id in 0..64 {
        let ty = TensorType::from_id(id);
        assert_eq!(ty.id(), id);
        assert_eq!(ty.block().is_some(), table.iter().any(|row| row.0 == id), "{ty}");
    }
}

#[test]
fn typed_lookups_say_key_wanted_and_found() {
    let gguf = golden();
    let m = gguf.metadata();
    assert_eq!(m.u32("u8").unwrap(), 255);
    assert_eq!(m.usize("u16").unwrap(), 65535);
    assert_eq!(m.i64("i8").unwrap(), -128);
    assert_eq!(m.f32("f64").unwrap(), 0.1);
    assert_eq!(m.f64("f32").unwrap(), f64::from(0.1f32));
    assert_eq!(m.bytes("text").unwrap(), "Grüße, 世界".as_bytes());
    let says = |result: Result<(), Error>, message: &str| {
        assert_eq!(result.unwrap_err().to_string(), message);
    };
    says(m.u32("absent").map(drop), "metadata `absent` is missing");
    says(m.u32("text").map(drop), "metadata `text`: expected u32, found string");
    says(m.u32("i8").map(drop), "metadata `i8`: -128 does not fit into u32");
    says(m.u32("u64").map(drop), "metadata `u64`: 18446744073709551615 does not fit into u32");
    says(m.f32("u32").map(drop), "metadata `u32`: expected f32, found u32");
    says(m.str("ints").map(drop), "metadata `ints`: expected string, found array of i32");
    says(m.u32s("ints").map(drop), "metadata `ints`: -2 does not fit into array of u32");
    says(m.u32s("u32").map(drop), "metadata `u32`: expected array of u32, found u32");
    says(m.f32s("ints").map(drop), "metadata `ints`: expected array of f32, found array of i32");
    says(
        m.strings("bools").map(drop),
        "metadata `bools`: expected array of string, found array of bool",
    );
    says(gguf.tensor("absent").map(drop), "tensor `absent` is missing");

    let mut m = Metadata::new();
    m.insert("raw", Value::String(Bytes::from_static(b"\xff"))).unwrap();
    says(m.str("raw").map(drop), "metadata `raw`: expected string, found string that is not UTF-8");
    assert_eq!(m.bytes("raw").unwrap(), b"\xff");
}

#[test]
fn optional_forgives_only_a_missing_key() {
    let gguf = golden();
    let m = gguf.metadata();
    assert_eq!(m.u32("absent").optional().unwrap(), None);
    assert_eq!(m.u32("u8").optional().unwrap(), Some(255));
    assert!(m.u32("text").optional().is_err());
    assert!(m.u32("i8").optional().is_err());
}

#[test]
fn inserting_a_key_twice_is_refused() {
    let mut m = Metadata::new();
    for key in ["b", "c", "a"] {
        m.insert(key, 1u32).unwrap();
    }
    let error = m.insert("c", 2u32).unwrap_err();
    assert!(matches!(error, Error::DuplicateKey { key } if key == "c"));
    assert_eq!(m.iter().map(|(k, _)| k).collect::<Vec<_>>(), ["b", "c", "a"]);
    assert_eq!(m.u32("c").unwrap(), 1);
    assert!(m.insert("k".repeat(MAX_NAME_BYTES + 1), 1u32).is_err());
}

#[test]
fn strings_are_indexed_by_position() {
    let s = Strings::from_iter(["ab", "", "ñ"]);
    assert_eq!(
        (s.len(), s.get(0), s.get(1), s.get(3)),
        (3, Some(b"ab".as_slice()), Some(b"".as_slice()), None)
    );
    assert_eq!(s.get_str(2), Some("ñ"));
    assert_eq!(Strings::from_iter([b"\xff"]).get_str(0), None);
    assert!(Strings::default().is_empty());
}

#[test]
fn data_is_a_slice_of_the_file() {
    let file = Bytes::from_static(GOLDEN);
    let gguf = Gguf::from_bytes(file.clone()).unwrap();
    let info = gguf.tensor("blocks").unwrap();
    let data = gguf.data(info).unwrap();
    assert_eq!(data.as_ptr(), file[info.offset as usize..].as_ptr());
    assert_eq!(info.offset % gguf.header().alignment(), 0);
}

#[test]
fn data_outlives_the_file_handle() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, GOLDEN).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.file(), GOLDEN);
    let data = gguf.data(gguf.tensor("blocks").unwrap()).unwrap();
    drop(gguf);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(data, (0..68).collect::<Vec<u8>>());
}

#[test]
fn the_header_of_a_cut_file_can_still_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, &GOLDEN[..900]).unwrap();
    let (header, len) = open_header(&path).unwrap();
    assert_eq!((header.tensors().len(), len), (4, 900));
    let error = Gguf::open(&path).unwrap_err();
    let Error::Truncated { tensor, end, found, expected } = error.rule() else {
        panic!("{error}");
    };
    assert_eq!((tensor.as_str(), *end, *found, *expected), ("blocks", 932, 900, 932));
    assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
}

fn written(w: Writer) -> Vec<u8> {
    let mut out = Vec::new();
    let len = w.write(&mut out).unwrap();
    assert_eq!(len, out.len() as u64);
    out
}

#[test]
fn sources_run_once_in_order_and_an_alias_shares_their_data() {
    let log = Rc::new(Cell::new(0u32));
    let mut w = Writer::new(Metadata::new());
    for i in 1..=3u8 {
        let log = Rc::clone(&log);
        w.tensor(format!("t{i}"), &[3], TensorType::I8, move |out| {
            log.set(log.get() * 10 + u32::from(i));
            for _ in 0..3 {
                out.write_all(&[i])?;
            }
            Ok(())
        })
        .unwrap();
        w.alias(format!("a{i}"), "t1").unwrap();
    }
    assert_eq!(log.get(), 0, "nothing is asked for before writing");
    let file = written(w);
    assert_eq!(log.get(), 123);
    let gguf = Gguf::from_bytes(file.into()).unwrap();
    let all: Vec<u8> = gguf.tensors().iter().map(|t| gguf.data(t).unwrap()[2]).collect();
    assert_eq!(all, [1, 1, 2, 1, 3, 1]);
    let names: Vec<&str> = gguf.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["t1", "a1", "t2", "a2", "t3", "a3"]);
    assert_eq!(gguf.get("a3").unwrap().offset, gguf.get("t1").unwrap().offset);
}

#[test]
fn a_source_of_the_wrong_length_is_named() {
    for given in [0usize, 7, 9, 100] {
        let mut w = Writer::new(Metadata::new());
        // Byte by byte, and not looking at errors: the writer must still see them.
        w.tensor("wrong", &[2], TensorType::F32, move |out| {
            (0..given).for_each(|_| drop(out.write_all(&[1])));
            Ok(())
        })
        .unwrap();
        let error = w.write(&mut Vec::new()).unwrap_err();
        let Error::SourceLength { tensor, wanted: 8, found } = &error else { panic!("{error}") };
        assert_eq!((tensor.as_str(), *found), ("wrong", given.min(9) as u64));
    }
    let mut w = Writer::new(Metadata::new());
    let error = w.tensor_bytes("wrong", &[2], TensorType::F32, [0; 7]).unwrap_err();
    assert_eq!(error.to_string(), "tensor `wrong`: needs 8 bytes of data, its source gave 7");
}

#[test]
fn a_failing_source_is_named_with_its_reason() {
    let mut w = Writer::new(Metadata::new());
    w.tensor("bad", &[2], TensorType::F32, |_| Err("no such shard".into())).unwrap();
    let message = w.write(&mut Vec::new()).unwrap_err().to_string();
    assert_eq!(message, "tensor `bad`: its data could not be produced: no such shard");
}

/// Takes `left` bytes, then is full.
struct Full {
    left: usize,
}

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "disk full"));
        }
        let n = bytes.len().min(self.left);
        self.left -= n;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_not_blamed_on_the_source() {
    let size = GOLDEN.len();
    for left in 0..size {
        let gguf = golden();
        let mut w = Writer::new(gguf.metadata().clone());
        for t in gguf.tensors() {
            w.tensor_bytes(&t.name, &t.dims, t.ty, gguf.data(t).unwrap()).unwrap();
        }
        let error = w.write(&mut Full { left }).unwrap_err();
        let Error::Io { action: "write", error } = &error else { panic!("{left}: {error}") };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{left}");
    }
}

#[test]
fn saving_replaces_a_file_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, "old").unwrap();
    let save = |fill: FillResult| {
        let mut w = Writer::new(Metadata::new());
        w.tensor("t", &[1], TensorType::I8, move |out| {
            fill?;
            Ok(out.write_all(&[1])?)
        })
        .unwrap();
        w.save(&path)
    };
    let error = save(Err("gone".into())).unwrap_err().to_string();
    assert!(error.starts_with(&path.display().to_string()), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no part is left");
    let len = save(Ok(())).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), len);
    assert_eq!(Gguf::open(&path).unwrap().tensors().len(), 1);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no part is left");
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let mut w = Writer::new(Metadata::new());
    w.tensor_bytes("t", &[1], TensorType::I8, [0]).unwrap();
    let mut refused = |name: &str, dims: &[u64], ty| {
        w.tensor(name, dims, ty, |_| Ok(())).unwrap_err().to_string()
    };
    assert!(refused("t", &[1], TensorType::I8).contains("more than once"));
    assert!(refused("u", &[1; 5], TensorType::I8).contains("5 dimensions"));
    assert!(refused("u", &[31], TensorType::Q8_0).contains("row of 31"));
    assert!(refused("u", &[1 << 62, 4], TensorType::I8).contains("overflow"));
    assert!(refused("u", &[1], TensorType::Unknown(99)).contains("type 99"));
    assert!(refused(&"n".repeat(MAX_NAME_BYTES + 1), &[1], TensorType::I8).contains("bytes long"));
    assert!(w.alias("t", "t").unwrap_err().to_string().contains("more than once"));
    assert!(w.alias("u", "v").unwrap_err().to_string().contains("`v` is missing"));

    let with = |key: &str, value: Value| {
        let mut m = Metadata::new();
        m.insert(key, value).unwrap();
        Writer::new(m).write(&mut Vec::new()).map_err(|e| e.to_string())
    };
    assert!(with("general.alignment", 48u32.into()).unwrap_err().contains("48"));
    let mut deep = Array::U8(Vec::new());
    for _ in 1..MAX_DEPTH {
        deep = Array::Array(vec![deep]);
    }
    with("deep", deep.clone().into()).unwrap();
    assert!(with("deep", Array::Array(vec![deep]).into()).unwrap_err().contains("`deep`"));

    let mut w = Writer::new(Metadata::new());
    for name in ["a", "b"] {
        w.tensor(name, &[i64::MAX as u64 - 1], TensorType::I8, |_| Ok(())).unwrap();
    }
    assert!(w.write(&mut Vec::new()).unwrap_err().to_string().contains("`b`"));
}

fn array() -> impl Strategy<Value = Array> {
    use proptest::collection::vec;
    let leaf = prop_oneof![
        vec(any::<u8>(), 0..5).prop_map(Array::U8),
        vec(any::<i8>(), 0..5).prop_map(Array::I8),
        vec(any::<u16>(), 0..5).prop_map(Array::U16),
        vec(any::<i16>(), 0..5).prop_map(Array::I16),
        vec(any::<u32>(), 0..5).prop_map(Array::U32),
        vec(any::<i32>(), 0..5).prop_map(Array::I32),
        vec(any::<f32>(), 0..5).prop_map(Array::F32),
        vec(any::<bool>(), 0..5).prop_map(Array::Bool),
        vec(vec(any::<u8>(), 0..9), 0..5).prop_map(|v| Array::String(Strings::from_iter(v))),
        vec(any::<u64>(), 0..5).prop_map(Array::U64),
        vec(any::<i64>(), 0..5).prop_map(Array::I64),
        vec(any::<f64>(), 0..5).prop_map(Array::F64),
    ];
    leaf.prop_recursive(MAX_DEPTH as u32 - 1, 16, 4, |inner| {
        vec(inner, 0..4).prop_map(Array::Array)
    })
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<f32>().prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        proptest::collection::vec(any::<u8>(), 0..20).prop_map(|v| Value::String(v.into())),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f64>().prop_map(Value::F64),
        array().prop_map(Value::Array),
    ]
}

/// Dimensions, type and a seed for the data of one tensor; `None` aliases an earlier one.
type Plan = Option<(Vec<u64>, TensorType, u8)>;

fn plan() -> impl Strategy<Value = Plan> {
    let dims = proptest::collection::vec(0u64..4, 0..=MAX_DIMS);
    let ty = proptest::sample::select(TensorType::ALL);
    let planned = (dims, ty, any::<u8>()).prop_map(|(mut dims, ty, seed)| {
        let block = ty.block().unwrap().elements;
        match dims.first_mut() {
            Some(row) => *row *= block,
            None if block > 1 => dims.push(block),
            None => {}
        }
        (dims, ty, seed)
    });
    prop_oneof![4 => planned.prop_map(Some), 1 => Just(None)]
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        entries in proptest::collection::btree_map("[a-zé.]{0,12}", value(), 0..8),
        shift in proptest::option::of(0u32..10),
        plans in proptest::collection::vec(plan(), 0..8),
    ) {
        let mut metadata = Metadata::new();
        for (key, value) in entries.into_iter().rev() {
            metadata.insert(key, value).unwrap();
        }
        if let Some(shift) = shift {
            metadata.insert("general.alignment", 1u32 << shift).unwrap();
        }
        let alignment = shift.map_or(DEFAULT_ALIGNMENT, |s| 1 << s);
        let mut wanted: Vec<(Vec<u64>, TensorType, Vec<u8>)> = Vec::new();
        for plan in &plans {
            let next = match (plan, wanted.first()) {
                (Some((dims, ty, seed)), _) => {
                    let block = ty.block().unwrap();
                    let elements: u64 = dims.iter().product();
                    let len = elements / block.elements * block.bytes;
                    let data = (0..len).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect();
                    (dims.clone(), *ty, data)
                }
                (None, Some(first)) => first.clone(),
                (None, None) => continue,
            };
            wanted.push(next);
        }
        let write = || {
            let mut w = Writer::new(metadata.clone());
            let plans = plans.iter().skip_while(|p| p.is_none());
            for (i, ((dims, ty, data), plan)) in wanted.iter().zip(plans).enumerate() {
                match plan {
                    Some(_) => w.tensor_bytes(format!("t{i}"), dims, *ty, data).unwrap(),
                    None => w.alias(format!("t{i}"), "t0").unwrap(),
                }
            }
            written(w)
        };
        let file = write();
        prop_assert_eq!(&file, &write(), "the same input gives the same bytes");

        let gguf = Gguf::from_bytes(file.clone().into()).unwrap();
        prop_assert_eq!(gguf.header().alignment(), alignment);
        // Debug text, unlike ==, can see that a NaN came back.
        prop_assert_eq!(format!("{:?}", gguf.metadata()), format!("{metadata:?}"));
        prop_assert_eq!(gguf.tensors().len(), wanted.len());
        for (i, (t, (dims, ty, data))) in gguf.tensors().iter().zip(&wanted).enumerate() {
            prop_assert_eq!(&t.name, &format!("t{i}"));
            prop_assert_eq!((&t.dims, t.ty, t.offset % alignment), (dims, *ty, 0));
            prop_assert_eq!(gguf.data(t).unwrap(), data);
        }
        if plans.iter().all(Option::is_some) {
            prop_assert_eq!(rewrite(&gguf), file);
        }
    }
}
