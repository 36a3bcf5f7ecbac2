//! The budget is kept, and what goes is what is worth least.

use candle_ds4::cache::store::{SaveError, Settings, Store};

use super::support::*;

fn with_budget(path: &std::path::Path, budget: u64) -> Store {
    Store::open(path, Settings { budget, ..settings() }).unwrap()
}

#[test]
fn the_budget_is_kept_after_every_save() {
    let folder = tempfile::tempdir().unwrap();
    let budget = 40_000;
    let store = with_budget(folder.path(), budget);
    let mut numbers = Numbers::new(50);
    for _ in 0..150 {
        let all = ids(numbers.below(6), 100 + 2 * numbers.below(1500) as usize);
        save(&store, &all).unwrap();
        assert!(disk_bytes(folder.path()) <= budget);
        assert_eq!(known(&store, &all), all.len(), "the newest save is there");
    }
    assert!(store.stats().evicted > 0);
    // No chain was broken on the way.
    assert_eq!(store.verify().unwrap().incomplete, [""; 0]);
    for entry in store.list().unwrap() {
        assert!(entry.usable);
    }
}

#[test]
fn what_is_used_stays_and_what_is_old_goes() {
    let folder = tempfile::tempdir().unwrap();
    let io = Faulty::new(Fault::default());
    let settings = Settings { budget: 31_000, ..settings() };
    let store = Store::open_with(folder.path(), settings, io.clone()).unwrap();
    let conversations: Vec<_> = (0..5).map(|seed| ids(60 + seed, 500)).collect();
    for (hour, conversation) in conversations.iter().enumerate() {
        io.set(Fault { later: 3600 * hour as u64, ..Fault::default() });
        save(&store, conversation).unwrap();
    }
    io.set(Fault { later: 5 * 3600, ..Fault::default() });
    for _ in 0..3 {
        assert_eq!(known(&store, &conversations[0]), 500);
    }
    // Room for two of them.
    let large = ids(70, 3000);
    save(&store, &large).unwrap();
    assert_eq!(known(&store, &large), 3000);
    assert_eq!(known(&store, &conversations[0]), 500, "used three times");
    assert_eq!(known(&store, &conversations[1]), 0, "the oldest, never used");
    assert_eq!(known(&store, &conversations[4]), 500, "the newest");
}

#[test]
fn points_in_the_middle_of_a_conversation_go_before_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let store = with_budget(folder.path(), 1 << 20);
    let all = ids(51, 2000);
    for len in (200..=2000).step_by(200) {
        save(&store, &all[..len]).unwrap();
    }
    // Room for half of the ten frontiers of about 1300 bytes.
    let tight = with_budget(folder.path(), disk_bytes(folder.path()) - 6000);
    let freed = tight.gc().unwrap();
    assert!((4..=6).contains(&freed.frontiers), "{freed:?}");
    assert_eq!(known(&tight, &all), 2000);
    let list = tight.list().unwrap();
    assert!(list.iter().all(|entry| entry.usable));
    let mut left: Vec<usize> = list.iter().map(|entry| entry.tokens).collect();
    left.sort_unstable();
    let widest = left.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(widest <= 800, "they are spread: {left:?}");
}

#[test]
fn what_is_being_read_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = with_budget(folder.path(), 8_000);
    let (one, two) = (ids(52, 1000), ids(53, 1000));
    save(&store, &one).unwrap();
    let hit = store.lookup(&MINE, &one).unwrap();
    assert!(matches!(save(&store, &two), Err(SaveError::Budget { .. })));
    read(&hit, &one).unwrap();
    drop(hit);
    save(&store, &two).unwrap();
    assert_eq!((known(&store, &one), known(&store, &two)), (0, 1000));
}

#[test]
fn a_sequence_that_is_larger_than_the_budget_removes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = with_budget(folder.path(), 10_000);
    let small = ids(54, 300);
    save(&store, &small).unwrap();
    assert!(matches!(save(&store, &ids(55, 10_000)), Err(SaveError::Budget { .. })));
    assert_eq!(known(&store, &small), 300);
}

#[test]
fn the_newest_is_kept_even_beyond_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let io = Faulty::new(Fault::default());
    let store = open_with(folder.path(), &io);
    let (old, new) = (ids(56, 500), ids(57, 3000));
    save(&store, &old).unwrap();
    io.set(Fault { later: 10, ..Fault::default() });
    save(&store, &new).unwrap();
    let freed = with_budget(folder.path(), 1000).gc().unwrap();
    assert_eq!(freed.frontiers, 1);
    assert_eq!((known(&store, &old), known(&store, &new)), (0, 3000));
}

#[test]
fn pages_of_a_save_that_failed_are_cleaned_up() {
    let folder = tempfile::tempdir().unwrap();
    let io = Faulty::new(Fault::default());
    let store = open_with(folder.path(), &io);
    let all = ids(58, 500);
    // Create, write 3 pages and a header, sync, rename; then the frontier's creation fails.
    io.set(Fault { at: Some(7), errno: 28, for_ever: true, ..Fault::default() });
    save(&store, &all).unwrap_err();
    io.set(Fault::default());
    assert_eq!(store.stats().pages, 3);
    let saved = save(&open(folder.path()), &all[..499]).unwrap();
    assert_eq!((saved.pages_new, saved.pages_shared), (0, 3), "they are used by the next save");
    let id = store.list().unwrap()[0].id.clone();
    store.remove(&id).unwrap();
    assert_eq!(disk_bytes(folder.path()), 0);
}
