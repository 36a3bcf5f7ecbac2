//! Wrong bytes: the same data comes back, or none.

use std::fs;
use std::path::Path;

use candle_ds4::cache::store::Store;

use super::support::*;

/// A small store: three pages in two files, three frontiers.
fn sample(path: &Path) -> Vec<u32> {
    let store = open(path);
    let all = ids(20, 390);
    for len in [100, 270, 390] {
        save(&store, &all[..len]).unwrap();
    }
    all
}

/// Opens the folder after `damage` was done to it, and says how much is known; then everything
/// must be as good as new once it is saved again.
fn survives(path: &Path, all: &[u32]) -> usize {
    let store = open(path);
    let found = known(&store, all);
    assert!([0, 100, 270, 390].contains(&found));
    for len in [100, 270, 390] {
        save(&store, &all[..len]).unwrap();
    }
    assert_eq!(known(&store, all), 390);
    found
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(to).unwrap() {
        let path = entry.unwrap().path();
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        removed.unwrap();
    }
    for name in names(from) {
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

/// Damages each byte of each file, every `step`-th from a start that differs between files.
fn flip_bytes(step: usize) {
    let (folder, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let all = sample(folder.path());
    let mut found_less = 0;
    for (i, name) in names(folder.path()).into_iter().enumerate() {
        let bytes = fs::read(folder.path().join(&name)).unwrap();
        for at in (i % step..bytes.len()).step_by(step) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            copy(folder.path(), work.path());
            fs::write(work.path().join(&name), damaged).unwrap();
            found_less += usize::from(survives(work.path(), &all) < 390);
        }
    }
    assert!(found_less > 0);
}

#[test]
fn no_changed_byte_is_believed() {
    flip_bytes(7);
}

#[test]
#[ignore = "every byte: half a minute"]
fn no_changed_byte_is_believed_anywhere() {
    flip_bytes(1);
}

fn truncate(step: usize) {
    let (folder, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let all = sample(folder.path());
    for (i, name) in names(folder.path()).into_iter().enumerate() {
        let bytes = fs::read(folder.path().join(&name)).unwrap();
        for len in (i % step..bytes.len()).step_by(step) {
            copy(folder.path(), work.path());
            fs::write(work.path().join(&name), &bytes[..len]).unwrap();
            survives(work.path(), &all);
        }
        copy(folder.path(), work.path());
        let mut longer = bytes;
        longer.push(0);
        fs::write(work.path().join(&name), longer).unwrap();
        survives(work.path(), &all);
    }
}

#[test]
fn no_shortened_file_is_believed() {
    truncate(11);
}

#[test]
#[ignore = "every length: half a minute"]
fn no_shortened_file_is_believed_at_any_length() {
    truncate(1);
}

#[test]
fn damage_under_an_open_store_is_found_when_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let all = sample(folder.path());
    let store = open(folder.path());
    assert_eq!(known(&store, &all), 390);
    // The last byte of a file is a row or an attachment: headers were read before.
    for name in names(folder.path()).iter().filter(|name| *name != "uses") {
        let path = folder.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        let before = store.stats().quarantined;
        let found = [100, 270, 390].map(|len| known(&store, &all[..len]));
        if store.stats().quarantined > before {
            assert_ne!(found, [100, 270, 390]);
            assert!(folder.path().join("quarantine").join(name).exists());
            assert!(!path.exists());
        }
        for len in [100, 270, 390] {
            save(&store, &all[..len]).unwrap();
        }
        assert_eq!(known(&store, &all), 390);
    }
    assert!(store.stats().quarantined >= 3);
    assert_eq!(store.verify().unwrap().damaged, []);
}

#[test]
fn swapped_files_are_not_believed() {
    let (folder, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let all = sample(folder.path());
    let files = names(folder.path());
    for (i, one) in files.iter().enumerate() {
        for other in &files[..i] {
            copy(folder.path(), work.path());
            fs::copy(folder.path().join(one), work.path().join(other)).unwrap();
            fs::copy(folder.path().join(other), work.path().join(one)).unwrap();
            survives(work.path(), &all);
        }
    }
}

#[test]
fn verify_names_what_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let all = sample(folder.path());
    let store = open(folder.path());
    let whole = store.verify().unwrap();
    assert_eq!((whole.files, whole.damaged.len(), whole.incomplete.len()), (5, 0, 0));
    assert_eq!(whole.bytes, disk_bytes(folder.path()));
    let pages: Vec<String> =
        names(folder.path()).into_iter().filter(|name| name.ends_with(".pages")).collect();
    let path = folder.path().join(&pages[0]);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let damaged = store.verify().unwrap();
    assert_eq!(damaged.damaged.len(), 1);
    assert_eq!(damaged.damaged[0].0, pages[0]);
    assert!(damaged.damaged[0].1.contains("checksum"), "{}", damaged.damaged[0].1);
    assert!(!damaged.incomplete.is_empty());
    let freed = store.gc().unwrap();
    assert!(freed.bytes > 0);
    assert_eq!(names(&folder.path().join("quarantine")), [""; 0]);
    for len in [270, 390] {
        save(&store, &all[..len]).unwrap();
    }
    assert_eq!(store.verify().unwrap().incomplete, [""; 0]);
}

#[test]
fn files_that_lie_about_their_size_cost_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let all = sample(folder.path());
    for name in names(folder.path()) {
        // A hole of 16 TB costs nothing on the disk.
        let file = fs::OpenOptions::new().write(true).open(folder.path().join(name)).unwrap();
        if file.set_len(1 << 44).is_err() {
            file.set_len(1 << 40).unwrap();
        }
    }
    let store: Store = open(folder.path());
    assert_eq!(known(&store, &all), 0);
    assert_eq!(store.stats().quarantined, 5);
}
