//! Who may read the files, and what a planted name can do.

use std::fs;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::Path;

use candle_ds4::cache::store::{OpenError, Store};

use super::support::*;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn files_are_for_their_user_alone() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("a/b/kv");
    let store = open(&path);
    let all = ids(80, 300);
    save(&store, &all).unwrap();
    assert_eq!(known(&store, &all), 300);
    assert_eq!(mode(&path), 0o700);
    assert_eq!(names(&path).len(), 3);
    for name in names(&path) {
        assert_eq!(mode(&path.join(name)), 0o600);
    }
    // Closed again if it was opened; the server keeps a key there too.
    fs::write(path.join("replay.key"), "secret").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(known(&open(&path), &all), 300);
    assert_eq!(mode(&path), 0o700);
    store.clear().unwrap();
    assert_eq!(names(&path), ["replay.key"]);
}

#[test]
fn a_folder_that_is_not_the_stores_own_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("thesis.txt"), "mine").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let error = Store::open(folder.path(), settings()).unwrap_err();
    assert!(matches!(error, OpenError::Shared { .. }));
    assert!(error.to_string().contains("chmod 700"), "{error}");
    assert_eq!(mode(folder.path()), 0o755);
    let file = folder.path().join("thesis.txt");
    assert!(Store::open(&file, settings()).unwrap_err().to_string().contains("--kv-disk-dir"));

    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let store = open(folder.path());
    save(&store, &ids(81, 200)).unwrap();
    store.gc().unwrap();
    store.clear().unwrap();
    assert_eq!(fs::read(file).unwrap(), b"mine", "only files of the store's own are removed");
}

/// Plants something under every name that a save and a read use.
fn plant(make: impl Fn(&Path)) {
    let names_of_a_save = {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        save(&store, &ids(82, 300)).unwrap();
        known(&store, &ids(82, 300));
        names(folder.path())
    };
    assert_eq!(names_of_a_save.len(), 3);
    let all = ids(82, 300);
    for name in &names_of_a_save {
        let stem = name.split('.').next().unwrap();
        let temporary = format!("{stem}.tmp");
        for planted in [name.clone(), temporary, "quarantine".to_owned()] {
            if planted == "uses.tmp" {
                continue;
            }
            let folder = tempfile::tempdir().unwrap();
            make(&folder.path().join(&planted));
            let store = open(folder.path());
            assert_eq!(known(&store, &all), 0);
            let saved = save(&store, &all).is_ok();
            assert_eq!(known(&store, &all), if saved { 300 } else { 0 }, "{planted}");
            let _ = store.gc();
            let _ = store.clear();
        }
    }
}

#[test]
fn links_are_not_followed() {
    let target = tempfile::tempdir().unwrap();
    let file = target.path().join("file");
    fs::write(&file, "precious").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    plant(|path| symlink(&file, path).unwrap());
    plant(|path| symlink(target.path(), path).unwrap());
    plant(|path| symlink(target.path().join("new"), path).unwrap());
    plant(|path| fs::hard_link(&file, path).unwrap());
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    assert_eq!(names(target.path()), ["file"]);
}

#[test]
fn pipes_and_folders_in_the_way_do_not_stop_anything() {
    plant(|path| fs::create_dir(path).unwrap());
    plant(|path| {
        let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
        assert!(made.success());
    });
}

#[test]
fn a_link_to_a_folder_may_be_the_folder() {
    let parent = tempfile::tempdir().unwrap();
    let (real, link) = (parent.path().join("real"), parent.path().join("link"));
    fs::create_dir(&real).unwrap();
    symlink(&real, &link).unwrap();
    let all = ids(83, 200);
    save(&open(&link), &all).unwrap();
    assert_eq!(known(&open(&real), &all), 200);
}

/// Somebody swaps names for links while files are written, read, moved and removed.
fn race(rounds: u64) {
    let (folder, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = target.path().join("file");
    fs::write(&file, "precious").unwrap();
    let all: Vec<Vec<u32>> = (84..88).map(|seed| ids(seed, 300)).collect();
    let store = open(folder.path());
    for all in &all {
        save(&store, all).unwrap();
    }
    known(&store, &all[0]);
    let mut planted = names(folder.path());
    let stems: Vec<String> = planted
        .iter()
        .filter_map(|name| Some(format!("{}.tmp", name.split_once('.')?.0)))
        .collect();
    planted.extend(stems);
    planted.push("quarantine".to_owned());

    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut numbers = Numbers::new(89);
            let aside = target.path().join("link");
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let name = &planted[numbers.below(planted.len() as u64) as usize];
                let to = if numbers.below(2) == 0 { &file } else { target.path() };
                symlink(to, &aside).unwrap();
                // Refused where a folder is in the way.
                if fs::rename(&aside, folder.path().join(name)).is_err() {
                    fs::remove_file(&aside).unwrap();
                }
                std::thread::yield_now();
            }
        });
        let mut found = 0;
        for round in 0..rounds {
            let all = &all[(round % 4) as usize];
            let _ = save(&store, all);
            found += u64::from(known(&store, all) == 300);
            match round % 50 {
                0 => drop(store.gc()),
                25 => drop(store.clear()),
                _ => {}
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(found > 0);
    });
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    let left = names(target.path());
    assert!(left.iter().all(|name| matches!(name.as_str(), "file" | "link")), "{left:?}");
}

#[test]
fn names_that_become_links_at_any_moment_lead_nowhere() {
    race(300);
}

#[test]
#[ignore = "a hundred thousand rounds: minutes"]
fn names_that_become_links_at_any_moment_lead_nowhere_for_long() {
    race(100_000);
}
