//! Disks that are full, broken or read-only: a save is skipped, and nothing else happens.

use candle_ds4::cache::store::{SaveError, Settings, Store};

use super::support::*;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

/// How many changes a save of `all[..len]` makes in a store that has `all[..first]`.
fn changes_of_a_save(all: &[u32]) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let io = Faulty::new(Fault::default());
    let store = open_with(folder.path(), &io);
    save(&store, &all[..200]).unwrap();
    io.set(Fault::default());
    save(&store, all).unwrap();
    io.changes()
}

#[test]
fn an_error_at_any_call_of_a_save_loses_nothing_else() {
    let all = ids(30, 700);
    let changes = changes_of_a_save(&all);
    assert!(changes >= 10, "{changes}");
    for errno in [ENOSPC, EIO, EROFS] {
        for for_ever in [false, true] {
            for at in 0..changes {
                let folder = tempfile::tempdir().unwrap();
                let io = Faulty::new(Fault::default());
                let store = open_with(folder.path(), &io);
                save(&store, &all[..200]).unwrap();
                io.set(Fault { at: Some(at), errno, for_ever, ..Fault::default() });
                let what = format!("error {errno} at {at}, for ever: {for_ever}");
                match save(&store, &all) {
                    Err(error @ SaveError::Io(_)) => {
                        let told = error.to_string();
                        assert!(told.contains(&format!("(os error {errno}); ")), "{what}: {told}");
                        assert_eq!(told.contains("--kv-disk-dir"), errno != EIO, "{told}");
                    }
                    other => panic!("{what}: {other:?}"),
                }
                assert_eq!(store.stats().saves_skipped, 1);
                assert!([200, 700].contains(&known(&store, &all)), "{what}");
                // The disk is well again: the same store saves, and everybody finds it.
                io.set(Fault::default());
                save(&store, &all).unwrap();
                assert_eq!(known(&store, &all), 700, "{what}");
                assert_eq!(known(&open(folder.path()), &all[..699]), 200, "{what}");
                assert!(names(folder.path()).iter().all(|name| !name.ends_with("tmp")), "{what}");
            }
        }
    }
}

#[test]
fn writes_and_reads_that_do_less_than_asked_are_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let all = ids(31, 500);
    let io = Faulty::new(Fault { most_bytes: Some(13), ..Fault::default() });
    let store = open_with(folder.path(), &io);
    save(&store, &all).unwrap();
    assert_eq!(known(&store, &all), 500);
    assert_eq!(known(&open(folder.path()), &all), 500);
}

#[test]
fn a_read_error_is_a_miss_and_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let all = ids(32, 500);
    save(&open(folder.path()), &all[..200]).unwrap();
    save(&open(folder.path()), &all).unwrap();
    for at in 0..12 {
        let io = Faulty::new(Fault::default());
        let store = open_with(folder.path(), &io);
        io.set(Fault { read_at: Some(at), errno: EIO, ..Fault::default() });
        assert!([0, 200, 500].contains(&known(&store, &all)));
        let stats = store.stats();
        assert_eq!(stats.quarantined, 0);
        // Later the disk answers again.
        io.set(Fault { later: 100, ..Fault::default() });
        assert_eq!(known(&store, &all), 500, "at {at}: {stats:?}");
    }
}

#[test]
fn rows_that_cannot_be_had_skip_the_save() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let all = ids(33, 500);
    let state = state(&all);
    let sequence = candle_ds4::cache::store::Save {
        namespace: MINE,
        ids: &all,
        state: &state,
        ..Default::default()
    };
    let error = store.save(&sequence, &mut |_, _| Err("the device is gone".into())).unwrap_err();
    assert!(error.to_string().contains("the device is gone"), "{error}");
    assert_eq!(names(folder.path()), [""; 0]);
    assert_eq!(known(&store, &all), 0);
}

#[test]
fn a_part_of_the_disk_stays_free() {
    let folder = tempfile::tempdir().unwrap();
    let io = Faulty::new(Fault { free: Some(104_000), ..Fault::default() });
    let settings = Settings { reserve: Some(100_000), ..settings() };
    let store = Store::open_with(folder.path(), settings.clone(), io.clone()).unwrap();
    let all = ids(34, 2000);
    save(&store, &all[..300]).unwrap();
    assert!(matches!(save(&store, &all), Err(SaveError::Reserve { .. })));
    assert_eq!(known(&store, &all), 300);
    io.set(Fault { free: Some(200_000), ..Fault::default() });
    save(&store, &all).unwrap();
    // A disk that others fill: an old entry goes for a new one, the rest stays.
    io.set(Fault { free: Some(99_000), ..Fault::default() });
    let before = disk_bytes(folder.path());
    let other = ids(35, 150);
    save(&store, &other).unwrap();
    assert_eq!(known(&store, &other), 150);
    assert!(disk_bytes(folder.path()) <= before);

    // By default: 5 % of the disk, at least 2 GiB.
    let usual = Settings { reserve: None, ..settings };
    let store = Store::open_with(folder.path(), usual, io.clone()).unwrap();
    io.set(Fault { free: Some(2 << 30), ..Fault::default() });
    match save(&store, &ids(36, 20_000)) {
        Err(SaveError::Reserve { reserve, .. }) => assert!(reserve >= 2 << 30),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_folder_that_another_process_keeps_locked_skips_the_save() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(
        folder.path(),
        Settings { patience: std::time::Duration::from_millis(20), ..settings() },
    )
    .unwrap();
    let all = ids(37, 200);
    let other = std::fs::File::open(folder.path()).unwrap();
    other.lock().unwrap();
    assert!(matches!(save(&store, &all), Err(SaveError::Busy)));
    assert_eq!(known(&store, &all), 0);
    other.unlock().unwrap();
    save(&store, &all).unwrap();
    assert_eq!(known(&store, &all), 200);
}
