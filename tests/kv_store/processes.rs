//! Several processes in one folder, and processes that are killed.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use candle_ds4::cache::store::{Settings, Store};

use super::support::*;

const CHILD: &str = "DS4_TEST_KV_CHILD";

/// This program again, in the role of [`saver`].
fn spawn(path: &Path, seed: u64, saves: u64, budget: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::saver", "--ignored", "--nocapture"])
        .env(CHILD, format!("{seed} {saves} {budget} {}", path.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The sequences that children save: prefixes of a few conversations.
fn sequence(numbers: &mut Numbers) -> Vec<u32> {
    let conversation = 90 + numbers.below(4);
    ids(conversation, 64 * (1 + numbers.below(60)) as usize)
}

#[test]
#[ignore = "the part of a child process"]
fn saver() {
    let Ok(told) = std::env::var(CHILD) else { return };
    let mut told = told.splitn(4, ' ');
    let mut number = || told.next().unwrap().parse::<u64>().unwrap();
    let (seed, saves, budget) = (number(), number(), number());
    let path = told.next().unwrap();
    let store = Store::open(path.as_ref(), Settings { budget, ..settings() }).unwrap();
    let mut numbers = Numbers::new(seed);
    for _ in 0..saves {
        save(&store, &sequence(&mut numbers)).unwrap();
    }
}

/// Kills a process that saves, again and again, and looks at what it leaves.
fn kill(times: u64) {
    let folder = tempfile::tempdir().unwrap();
    let mut numbers = Numbers::new(91);
    let mut most_files = 0;
    for round in 0..times {
        let mut child = spawn(folder.path(), round, u64::MAX, 300_000);
        std::thread::sleep(Duration::from_micros(5_000 + numbers.below(25_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(folder.path(), Settings { budget: 300_000, ..settings() }).unwrap();
        let files = names(folder.path());
        assert!(files.iter().all(|name| !name.ends_with(".tmp")), "{files:?}");
        most_files = most_files.max(files.len());
        assert!(disk_bytes(folder.path()) <= 300_000);
        for conversation in 90..94 {
            known(&store, &ids(conversation, 64 * 60));
        }
        assert!(store.list().unwrap().iter().all(|entry| entry.usable));
        assert_eq!(store.stats().quarantined, 0, "round {round}: half a file was visible");
        if round % 16 == 0 {
            let verified = store.verify().unwrap();
            assert_eq!((verified.damaged, verified.incomplete), (vec![], vec![]));
        }
    }
    assert!(most_files > 10, "nothing was saved: {most_files}");
}

#[test]
fn a_killed_process_leaves_no_half_file() {
    kill(40);
}

#[test]
#[ignore = "a minute"]
fn a_thousand_killed_processes_leave_no_half_file() {
    kill(1000);
}

#[test]
fn processes_that_save_at_once_lose_nothing_and_write_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let mut children: Vec<Child> =
        (0..2).map(|seed| spawn(folder.path(), seed, 60, 1 << 30)).collect();
    let store = open(folder.path());
    while children.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
        // Reads while they write.
        for conversation in 90..94 {
            known(&store, &ids(conversation, 64 * 60));
        }
    }
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(store.stats().quarantined, 0);
    let mut lengths = std::collections::BTreeMap::new();
    for seed in 0..2 {
        let mut numbers = Numbers::new(seed);
        for _ in 0..60 {
            let all = sequence(&mut numbers);
            assert_eq!(known(&store, &all), all.len());
            let pages = lengths.entry(all[0]).or_insert(0);
            *pages = (all.len() / 128).max(*pages);
        }
    }
    // Each conversation's pages, once.
    assert_eq!(store.stats().pages, lengths.values().sum::<usize>() as u64);
    let in_files: u64 = names(folder.path())
        .iter()
        .filter(|name| name.ends_with(".pages"))
        .map(|name| {
            let bytes = std::fs::read(folder.path().join(name)).unwrap();
            u64::from(u32::from_le_bytes(bytes[12..16].try_into().unwrap()))
        })
        .sum();
    assert_eq!(in_files, store.stats().pages);
}
