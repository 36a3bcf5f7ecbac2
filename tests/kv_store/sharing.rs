//! What is found, what is shared, and what that costs.

use candle_ds4::cache::store::{Save, Settings, Store, PAGE_TOKENS};

use super::support::*;

#[test]
fn the_longest_known_prefix_comes_back_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let all = ids(1, 1000);
    assert!(store.lookup(&MINE, &all).is_none());
    for len in [5, 127, 128, 129, 300, 640] {
        save(&store, &all[..len]).unwrap();
    }
    // Odd lengths have no logits: they count only if a token is left to run.
    for (len, longest) in [
        (4, 0),
        (5, 0),
        (6, 5),
        (127, 5),
        (128, 128),
        (129, 128),
        (130, 129),
        (299, 129),
        (300, 300),
        (639, 300),
        (640, 640),
        (1000, 640),
    ] {
        assert_eq!(known(&store, &all[..len]), longest, "of {len}");
        assert_eq!(known(&open(folder.path()), &all[..len]), longest, "of {len}, opened anew");
    }
    let mut other = all.clone();
    for (changed, longest) in [(700, 640), (639, 300), (299, 129), (128, 128), (127, 127), (4, 0)] {
        other[changed] ^= 1;
        assert_eq!(known(&store, &other), longest, "changed at {changed}");
        other[changed] ^= 1;
    }
}

#[test]
fn a_page_is_written_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let all = ids(2, 2000);
    let first = save(&store, &all[..1000]).unwrap();
    assert_eq!((first.pages_new, first.pages_shared, first.frontier_new), (7, 0, true));
    let again = save(&store, &all[..1000]).unwrap();
    assert_eq!((again.bytes_written, again.pages_shared), (0, 7));
    let longer = save(&store, &all).unwrap();
    assert_eq!((longer.pages_new, longer.pages_shared), (8, 7));
    // Another branch shares what is before the branch, from another process too.
    let mut branch = all.clone();
    branch[900] ^= 1;
    let branch = save(&open(folder.path()), &branch).unwrap();
    assert_eq!((branch.pages_new, branch.pages_shared), (8, 7));
    let shorter = save(&store, &all[..500]).unwrap();
    assert_eq!((shorter.pages_new, shorter.pages_shared, shorter.frontier_new), (0, 3, true));

    let pages = 7 + 8 + 8;
    let stats = open(folder.path()).stats();
    assert_eq!((stats.pages, stats.frontiers), (pages, 4));
    assert_eq!(stats.bytes, disk_bytes(folder.path()));
}

#[test]
fn a_token_costs_its_rows_and_less_than_six_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Settings { page_bytes: 450_000, ..settings() }).unwrap();
    let all = ids(3, 40 * PAGE_TOKENS);
    let mut before = 0;
    for turn in 1..=8 {
        let ids = &all[..turn * 5 * PAGE_TOKENS];
        let state = vec![7; 1 << 20];
        let save = Save { namespace: MINE, ids, state: &state, ..Save::default() };
        let saved = store
            .save(&save, &mut |page, rows| {
                rows.fill(page as u8);
                Ok(())
            })
            .unwrap();
        let rows = saved.bytes_written - state.len() as u64;
        let tokens = (ids.len() - before) as u64;
        assert!(
            rows <= tokens * (450_000 / PAGE_TOKENS as u64 + 6),
            "{rows} bytes, {tokens} tokens"
        );
        before = ids.len();
    }
}

#[test]
fn other_models_and_other_users_share_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let all = ids(4, 400);
    save(&store, &all).unwrap();
    assert_eq!(known(&store, &all), 400);
    assert!(store.lookup(&[2; 16], &all).is_none());
    let other_model = Settings { fingerprint: model(2), ..settings() };
    let other_shape = Settings { page_bytes: PAGE_BYTES + 1, ..settings() };
    let other_pages = Settings { page_tokens: 64, ..settings() };
    for settings in [other_model, other_shape, other_pages] {
        let pages = all.len() / settings.page_tokens;
        let other = Store::open(folder.path(), settings).unwrap();
        assert!(other.lookup(&MINE, &all).is_none());
        let saved = save(&other, &all).unwrap();
        assert_eq!((saved.pages_new, saved.pages_shared), (pages, 0));
    }
    assert_eq!(save_as(&store, [2; 16], &all).unwrap().pages_new, 3);
    assert_eq!(known(&store, &all), 400);
}

#[test]
fn a_file_of_another_version_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let all = ids(5, 300);
    save(&open(folder.path()), &all).unwrap();
    let files = names(folder.path());
    for name in &files {
        let mut bytes = std::fs::read(folder.path().join(name)).unwrap();
        bytes[8] = 2;
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let store = open(folder.path());
    assert!(store.lookup(&MINE, &all).is_none());
    assert_eq!(store.stats().quarantined, 0);
    assert_eq!(names(folder.path()), files);
    assert_eq!(store.bytes().unwrap(), disk_bytes(folder.path()));
    // They are the first to go.
    let tight = Settings { budget: 2500, ..settings() };
    let tight = Store::open(folder.path(), tight).unwrap();
    save(&tight, &all[..128]).unwrap();
    assert!(disk_bytes(folder.path()) <= 2500);
    assert_eq!(known(&tight, &all), 128);
}

#[test]
fn what_another_process_saves_is_found_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (open(folder.path()), open(folder.path()));
    let all = ids(6, 1000);
    for len in (100..1000).step_by(100) {
        save(&one, &all[..len]).unwrap();
        assert_eq!(known(&two, &all), len);
    }
    one.clear().unwrap();
    assert_eq!(known(&two, &all), 0);
    assert_eq!(known(&one, &all), 0);
}

#[test]
fn attachments_come_back_without_ids() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    save(&store, &ids(7, 200)).unwrap();
    save_as(&store, [2; 16], &ids(7, 200)).unwrap();
    let other = Settings { fingerprint: model(2), ..settings() };
    save(&Store::open(folder.path(), other).unwrap(), &ids(7, 200)).unwrap();
    let mut found = Vec::new();
    open(folder.path()).attachments(|namespace, bytes| found.push((*namespace, bytes)));
    found.sort();
    assert_eq!(found, [(MINE, b"attached".to_vec()), ([2; 16], b"attached".to_vec())]);
}

#[test]
fn entries_are_listed_shown_and_removed_with_what_only_they_need() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let all = ids(8, 600);
    save(&store, &all[..300]).unwrap();
    save(&store, &all).unwrap();
    assert_eq!(known(&store, &all), 600);
    assert_eq!(known(&store, &all), 600);

    let viewer = Store::open(folder.path(), Settings::viewer()).unwrap();
    let list = viewer.list().unwrap();
    let summary: Vec<_> =
        list.iter().map(|e| (e.tokens, e.hits, e.label.as_str(), e.usable, e.page_bytes)).collect();
    assert!(summary.contains(&(600, 2, "600 tokens", true, 4 * 300)), "{summary:?}");
    assert!(summary.contains(&(300, 0, "300 tokens", true, 2 * 300)), "{summary:?}");
    let long = list.iter().find(|e| e.tokens == 600).unwrap();
    let short = list.iter().find(|e| e.tokens == 300).unwrap();
    let details = viewer.show(&long.id[..12]).unwrap();
    assert_eq!(details.ids, all);
    assert_eq!(details.continues.as_ref(), Some(&short.id));
    assert_eq!(details.files.iter().map(|(_, pages)| pages).sum::<usize>(), 4);
    assert!(viewer.show("").is_err() && viewer.show("xyz").is_err());

    // The shorter one's pages are needed by the longer one.
    viewer.remove(&short.id).unwrap();
    assert_eq!(known(&store, &all), 600);
    assert_eq!(known(&store, &all[..599]), 0);
    let freed = viewer.remove(&long.id).unwrap();
    assert!(freed.bytes > 0);
    assert_eq!(store.list().unwrap(), []);
    assert_eq!(store.stats().pages, 0);
    assert_eq!(names(folder.path()), ["uses"]);
}

#[test]
fn opening_reads_headers_only_and_each_once() {
    let folder = tempfile::tempdir().unwrap();
    let big = Settings { page_bytes: 20_000, ..settings() };
    let store = Store::open(folder.path(), big.clone()).unwrap();
    let all = ids(9, 500 * PAGE_TOKENS);
    save(&store, &all).unwrap();
    let io = Faulty::new(Fault::default());
    let store = Store::open_with(folder.path(), big, io.clone()).unwrap();
    let files = names(folder.path()).len() as u64;
    assert_eq!(files, 8 + 1);
    let (opened, bytes) = io.reading();
    assert_eq!(opened, files);
    assert!(bytes < 500 * 600, "{bytes} bytes to find 500 pages of 20000");
    assert_eq!(store.stats().pages, 500);
    // And none again while nothing changes.
    std::thread::sleep(std::time::Duration::from_millis(150));
    store.lookup(&MINE, &all).unwrap();
    io.set(Fault::default());
    store.lookup(&MINE, &all).unwrap();
    assert_eq!(io.reading(), (0, 0));
}
