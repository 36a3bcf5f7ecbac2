//! Processes that die and computers that lose power, at every call.

use super::support::*;

/// Runs a save that dies at its `at`-th change; false if it came to its end.
fn dies(io: &std::sync::Arc<Faulty>, path: &std::path::Path, all: &[u32], at: u64) -> bool {
    let store = open_with(path, io);
    save(&store, &all[..200]).unwrap();
    assert!(!io.is_unsafe(), "a save that is done could still be lost");
    io.set(Fault { at: Some(at), errno: 5, for_ever: true, ..Fault::default() });
    let died = save(&store, all).is_err();
    assert!(died || !io.is_unsafe(), "a save that is done could still be lost");
    died
}

#[test]
fn a_death_at_any_call_leaves_nothing_half_done() {
    let all = ids(40, 700);
    let mut at = 0;
    loop {
        let folder = tempfile::tempdir().unwrap();
        let io = Faulty::new(Fault::default());
        if !dies(&io, folder.path(), &all, at) {
            break;
        }
        let store = open(folder.path());
        assert!(names(folder.path()).iter().all(|name| !name.ends_with("tmp")), "at {at}");
        assert_eq!(store.stats().quarantined, 0, "at {at}");
        assert!([200, 700].contains(&known(&store, &all)), "at {at}");
        save(&store, &all).unwrap();
        assert_eq!(known(&store, &all), 700, "at {at}");
        at += 1;
    }
    assert!(at >= 10, "{at}");
}

#[test]
fn a_power_cut_at_any_call_loses_only_what_was_not_done() {
    let all = ids(41, 700);
    for lose_names in [false, true] {
        let mut at = 0;
        loop {
            let folder = tempfile::tempdir().unwrap();
            let io = Faulty::new(Fault::default());
            let died = dies(&io, folder.path(), &all, at);
            io.cut_power(folder.path(), lose_names);
            let store = open(folder.path());
            let found = known(&store, &all);
            assert_eq!(store.stats().quarantined, 0, "at {at}: a visible file was damaged");
            if !died {
                assert_eq!(found, 700);
                break;
            }
            assert!([200, 700].contains(&found), "at {at}");
            save(&store, &all).unwrap();
            assert_eq!(known(&store, &all), 700, "at {at}");
            at += 1;
        }
    }
}
