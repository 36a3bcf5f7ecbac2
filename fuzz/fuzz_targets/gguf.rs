//! Any bytes as a GGUF file: it opens or it is refused, and what opens can be listed, read, and
//! written again with the same meaning.
//!
//! `mkdir -p fuzz/corpus/gguf && cargo +nightly fuzz run gguf fuzz/corpus/gguf tests/golden/gguf`
#![no_main]

use bytes::Bytes;
use candle_ds4::cli::inspect;
use candle_ds4::gguf::{Gguf, Header, TensorInfo, Writer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let file = Bytes::copy_from_slice(input);
    let header = match Header::parse(&file) {
        Ok(header) => header,
        Err(error) => {
            assert!(error.to_string().chars().all(|c| !c.is_control()), "{error:?}");
            return;
        }
    };
    let mut out = Vec::new();
    for json in [false, true] {
        let listed = inspect::list("x", &header, file.len() as u64, json, &mut out);
        listed.expect("memory takes any listing");
    }
    let Ok(gguf) = Gguf::from_bytes(file.clone()) else {
        assert!(header.expected_len() > 0, "only missing data is left to refuse");
        return;
    };
    // Debug text, unlike ==, can see that a NaN is the same NaN.
    assert_eq!(format!("{:?}", gguf.header()), format!("{header:?}"));
    rewrite(&gguf);
});

/// Writes what `gguf` holds and compares what comes back.
fn rewrite(gguf: &Gguf) {
    let total: u64 = gguf.tensors().iter().filter_map(|t| t.len).sum();
    // Tensors may share data, alignments may be large: a small input can describe a large output.
    if total > 1 << 20 || gguf.header().alignment() > 1 << 12 {
        return;
    }
    let mut writer = Writer::new(gguf.metadata().clone());
    let known: Vec<&TensorInfo> = gguf.tensors().iter().filter(|t| t.len.is_some()).collect();
    for t in &known {
        let data = gguf.data(t).expect("an open file has its data");
        writer.tensor_bytes(&t.name, &t.dims, t.ty, data).expect("what was read can be written");
    }
    let mut out = Vec::new();
    writer.write(&mut out).expect("memory takes any file");
    let again = Gguf::from_bytes(out.into()).expect("what was written can be read");
    assert_eq!(format!("{:?}", again.metadata()), format!("{:?}", gguf.metadata()));
    assert_eq!(again.tensors().len(), known.len());
    for (new, old) in again.tensors().iter().zip(known) {
        assert_eq!((&new.name, &new.dims, new.ty), (&old.name, &old.dims, old.ty));
        assert_eq!(gguf.data(old).ok(), again.data(new).ok(), "{}", new.name);
    }
}
