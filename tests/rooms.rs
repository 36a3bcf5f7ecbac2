//! The rooms of `docs/architecture.md` and what each imports, held against the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A row of the table.
struct Room {
    name: String,
    /// `None` for all rooms above.
    imports: Option<BTreeSet<String>>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The name that a path begins with in Rust: `custom-ops` is imported as `ops`.
fn name(path: &str) -> String {
    let path = path.trim_matches(['`', ' ']).trim_end_matches('/').trim_end_matches(".rs");
    path.trim_start_matches("src/").trim_start_matches("custom-").to_owned()
}

/// The table, top down.
fn table() -> Vec<Room> {
    let text = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let rows = text.lines().skip_while(|line| !line.starts_with("| room |")).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [path, _, imports] = cells[..] else { panic!("three columns: {row}") };
        let imports = match imports {
            "–" => Some(BTreeSet::new()),
            "all above" => None,
            list => Some(list.split(", ").map(str::to_owned).collect()),
        };
        Room { name: name(path), imports }
    })
    .collect()
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Rooms that a source names, without its tests: those may look where they like.
fn named(source: &str) -> BTreeSet<String> {
    let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut rooms = BTreeSet::new();
    for line in lines {
        assert!(!line.contains("crate::{"), "one room a line, so that it can be found: {line}");
        // candle has no room: it is a dependency under the library's name for it.
        let of_crate = line.split("crate::").skip(1).map(|rest| {
            rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default()
        });
        rooms.extend(of_crate.filter(|name| *name != "candle").map(str::to_owned));
        if line.contains("candle_ds4_ops") {
            rooms.insert("ops".to_owned());
        }
    }
    rooms
}

/// What the rooms of `src/` import of each other, and where.
fn imports() -> BTreeMap<String, BTreeMap<String, PathBuf>> {
    let src = root().join("src");
    let mut found = Vec::new();
    files(&src, &mut found);
    let mut imports: BTreeMap<String, BTreeMap<String, PathBuf>> = BTreeMap::new();
    for path in found {
        let inside = path.strip_prefix(&src).unwrap();
        let room = name(inside.iter().next().unwrap().to_str().unwrap());
        // A list of the rooms, and two programs of a line each.
        if room == "lib" || room == "bin" {
            continue;
        }
        let of_room = imports.entry(room.clone()).or_default();
        let text = fs::read_to_string(&path).unwrap();
        let is_test = |part: &std::ffi::OsStr| part == "tests" || part == "tests.rs";
        // Declared under `cfg(test)`, too.
        if inside.iter().any(is_test) || inside == Path::new("server/played.rs") {
            continue;
        }
        let others = named(&text).into_iter().filter(|other| *other != room);
        of_room.extend(others.map(|other| (other, inside.to_owned())));
    }
    imports
}

#[test]
fn every_room_imports_what_the_table_says_and_only_from_above() {
    let (table, used) = (table(), imports());
    let mut above = BTreeSet::new();
    for Room { name, imports } in &table {
        let imports = imports.as_ref().unwrap_or(&above);
        for import in imports {
            assert!(above.contains(import), "{name} is to import {import}, which is not above it");
        }
        for (import, file) in used.get(name).into_iter().flatten() {
            assert!(imports.contains(import), "{}: {name} imports {import}", file.display());
        }
        above.insert(name.clone());
    }
    for name in used.keys() {
        assert!(above.contains(name), "src/{name} has no row");
    }
}

#[test]
fn the_table_says_nothing_that_is_not_so() {
    let used = imports();
    for Room { name, imports } in table() {
        assert!(name == "ops" || used.contains_key(&name), "{name} is no room");
        for import in imports.into_iter().flatten() {
            let uses = used.get(&name).is_some_and(|used| used.contains_key(&import));
            assert!(uses, "{name} does not import {import}");
        }
    }
}
