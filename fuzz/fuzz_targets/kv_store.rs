//! Any bytes as a file of the KV store: it is read or it is refused, nothing is allocated that the
//! file has no bytes for, and what is refused is out of the way.
//!
//! The first byte chooses the kind of file, the rest is its content.
//! `mkdir -p fuzz/corpus/kv_store && cargo +nightly fuzz run kv_store fuzz/corpus/kv_store`
#![no_main]

use std::sync::Arc;

use candle_ds4::cache::store::{Fingerprint, Save, Settings, Store, System};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    let folder = tempfile::tempdir().expect("the machine has a folder for temporary files");
    let settings = Settings {
        page_tokens: 4,
        reserve: Some(0),
        ..Settings::new(Fingerprint::from_bytes([0x11; 32]), 8)
    };
    let open = || {
        Store::open_with(folder.path(), settings.clone(), Arc::new(System)).expect("it is ours")
    };
    let ids = [10, 11, 12, 13, 14, 15];
    let save = Save { namespace: [0x22; 16], ids: &ids, state: b"STATE", ..Save::default() };
    let mut rows = |_: usize, rows: &mut [u8]| {
        rows.copy_from_slice(b"PAGEROWS");
        Ok(())
    };
    // The names that these ids have, so that a good file is found.
    let name = match kind % 3 {
        0 => "58503ef3df6e82d289790701d8d75f15.pages",
        1 => "8a1aeb5bc3ed11489854d180d37ea46d.frontier",
        _ => "uses",
    };
    if kind % 2 == 0 {
        open().save(&save, &mut rows).expect("an empty folder takes a save");
    }
    std::fs::write(folder.path().join(name), bytes).expect("the folder can be written to");

    let store = open();
    for entry in store.list().expect("the folder can be listed") {
        store.show(&entry.id).expect("what is listed can be shown");
    }
    for _ in 0..4 {
        let Some(hit) = store.lookup(&save.namespace, &[&ids[..], &[16]].concat()) else { break };
        let read = hit.frontier().and_then(|_| hit.read_pages(0..hit.pages(), |_, _| Ok(())));
        if read.is_ok() {
            break;
        }
    }
    store.verify().expect("the folder can be read");
    store.save(&save, &mut rows).expect("what is damaged is replaced");
    let again = store.verify().expect("the folder can be read");
    assert!(again.damaged.is_empty(), "{again:?}");
});
