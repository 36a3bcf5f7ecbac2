//! docs/kv-format.md against the files that are written.

use candle_ds4::cache::store::{Fingerprint, Save, Settings, Store};

use super::support::*;

/// The bytes of the document's dump of a file with this ending.
fn documented(ending: &str) -> (String, Vec<u8>) {
    let document = include_str!("../../docs/kv-format.md");
    let dump = document
        .split("```text\n")
        .find(|block| block.lines().next().is_some_and(|line| line.ends_with(ending)))
        .unwrap();
    let mut lines = dump.lines();
    let name = lines.next().unwrap().to_owned();
    let mut bytes = Vec::new();
    for line in lines.take_while(|line| !line.starts_with("```")) {
        let (offset, hex) = line.split_once("  ").unwrap();
        assert_eq!(usize::from_str_radix(offset, 16).unwrap(), bytes.len());
        let hex = hex.split("  |").next().unwrap();
        bytes.extend(hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()));
    }
    (name, bytes)
}

fn dump(bytes: &[u8]) -> String {
    let line = |(i, row): (usize, &[u8])| {
        let hex: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
        let text: String =
            row.iter().map(|b| if b.is_ascii_graphic() { char::from(*b) } else { '.' }).collect();
        format!("{:04x}  {:<47}  |{text}|\n", 16 * i, hex.join(" "))
    };
    bytes.chunks(16).enumerate().map(line).collect()
}

#[test]
fn the_documented_example_is_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let io = Faulty::new(Fault { clock: Some(1_700_000_000), ..Fault::default() });
    let settings = Settings {
        page_tokens: 4,
        reserve: Some(0),
        ..Settings::new(Fingerprint::from_bytes([0x11; 32]), 8)
    };
    let store = Store::open_with(folder.path(), settings, io).unwrap();
    let save = Save {
        namespace: [0x22; 16],
        ids: &[10, 11, 12, 13, 14, 15],
        state: b"STATE",
        logits: Some(&[1.0, -2.0]),
        attachment: b"A",
        label: "Hi there",
    };
    let mut rows = |_: usize, rows: &mut [u8]| {
        rows.copy_from_slice(b"PAGEROWS");
        Ok(())
    };
    store.save(&save, &mut rows).unwrap();
    let hit = store.lookup(&[0x22; 16], save.ids).unwrap();
    hit.frontier().unwrap();
    let files = names(folder.path());
    assert_eq!(files.len(), 3);
    for ending in [".pages", ".frontier", "uses"] {
        let name = files.iter().find(|name| name.ends_with(ending)).unwrap();
        let bytes = std::fs::read(folder.path().join(name)).unwrap();
        let (documented_name, documented) = documented(ending);
        let written = format!("{name}\n{}", dump(&bytes));
        assert_eq!(&documented_name, name, "{written}");
        assert_eq!(documented, bytes, "{written}");
    }
}
