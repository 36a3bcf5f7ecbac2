//! `ds4 rm`: remove a file from the cache.

use std::io::Write;

use crate::hub::{Cache, Entry, Name, Settings, Variant, Which};
use crate::size::Size;

/// Removes what `name` means, whole or unfinished, and says on `out` how much that gave back.
///
/// A short name means every file of its kind, old ones too.
///
/// # Errors
/// Nothing of that name is in the cache; a download of it is at work; the file system refuses.
pub fn run(name: &str, out: &mut dyn Write) -> anyhow::Result<()> {
    let cache = Cache::at(Settings::from_env()?.cache);
    let name: Name = name.parse()?;
    let mut files: Vec<String> = cache
        .entries()?
        .into_iter()
        .filter(|entry| entry.repo == name.repo && means(&name.which, entry))
        .map(|entry| entry.file)
        .collect();
    files.sort();
    files.dedup();
    let place = cache.root().display();
    match files.len() {
        0 => anyhow::bail!("{name} is not in {place}; `ds4 list` shows what is"),
        1 => {}
        count => anyhow::ensure!(
            name.which != Which::Only,
            "{name}: {count} files are in {place}; name one with ORG/REPO:FILE:\n  {}",
            files.join("\n  ")
        ),
    }
    for file in files {
        let removed = cache.remove(&name.repo, &file)?;
        writeln!(out, "removed {}: {} free now", removed.files.join(", "), Size(removed.freed))?;
    }
    Ok(out.flush()?)
}

fn means(which: &Which, entry: &Entry) -> bool {
    match which {
        Which::Variant(variant) => Variant::of(&entry.file) == Some(*variant),
        Which::Path(path) => entry.file == *path,
        Which::Only => true,
    }
}
