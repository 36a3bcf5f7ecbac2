//! Several processes in one folder, and processes that are killed.

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use candle_ds4::cache::store::{Settings, Store};

use super::support::*;

const CHILD: &str = "DS4_TEST_KV_CHILD";

/// What a child says when it has opened the store, and when it has saved once.
const OPEN: &str = "the store is open";
const SAVED: &str = "a sequence is saved";

/// This program again, in the role of [`saver`].
fn spawn(path: &Path, seed: u64, saves: u64, budget: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::saver", "--ignored", "--nocapture"])
        .env(CHILD, format!("{seed} {saves} {budget} {}", path.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Waits until a child has said these words, or has ended. The harness may have begun the line.
fn hear(lines: &mut Lines<BufReader<ChildStdout>>, words: &str) {
    while lines.next().is_some_and(|line| !line.unwrap().ends_with(words)) {}
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
    println!("{OPEN}");
    let mut numbers = Numbers::new(seed);
    for number in 0..saves {
        save(&store, &sequence(&mut numbers)).unwrap();
        if number == 0 {
            println!("{SAVED}");
        }
    }
}

/// Kills a process that saves, again and again, and looks at what it leaves.
fn kill(times: u64) {
    let folder = tempfile::tempdir().unwrap();
    let mut numbers = Numbers::new(91);
    let mut most_files = 0;
    for round in 0..times {
        let mut child = spawn(folder.path(), round, u64::MAX, 300_000);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Every fourth has saved something, however slow the disk is.
        let saved = round % 4 == 0;
        hear(&mut lines, if saved { SAVED } else { OPEN });
        std::thread::sleep(Duration::from_micros(numbers.below(25_000)));
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().code(), None, "it ended before the kill");
        let store = Store::open(folder.path(), Settings { budget: 300_000, ..settings() }).unwrap();
        let files = names(folder.path());
        assert!(files.iter().all(|name| !name.ends_with(".tmp")), "{files:?}");
        most_files = most_files.max(files.len());
        assert!(!saved || !store.list().unwrap().is_empty(), "round {round}: a save is lost");
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
    println!("{times} kills, {most_files} files at most");
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
