//! `ds4 list`: what is in the cache, whole or not.

use std::io::Write;

use serde_json::json;

use crate::hub::{Cache, Entry, Settings, Variant, Which};
use crate::size::Size;

/// Lists GGUF files in the cache on `out`, of every repository.
///
/// # Errors
/// The cache cannot be read; those of `out`.
pub fn run(json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let cache = Cache::at(Settings::from_env()?.cache);
    let mut entries = cache.entries()?;
    entries.retain(|entry| entry.file.to_ascii_lowercase().ends_with(".gguf"));
    if json {
        let files: Vec<_> = entries
            .iter()
            .map(|entry| {
                json!({
                    "name": typed(entry),
                    "repo": entry.repo.as_str(),
                    "file": entry.file,
                    "path": entry.path,
                    "size": entry.size,
                    "present": entry.present,
                    "revisions": entry.revisions,
                })
            })
            .collect();
        writeln!(out, "{:#}", json!({"cache": cache.root(), "files": files}))?;
    } else {
        print(&cache, &entries, out)?;
    }
    Ok(out.flush()?)
}

fn print(cache: &Cache, entries: &[Entry], out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "{}", cache.root().display())?;
    for entry in entries {
        let state = if entry.is_whole() {
            String::new()
        } else {
            format!("  {} here; go on with: ds4 pull {}", Size(entry.present), typed(entry))
        };
        let name = entry.variant().map_or("-", Variant::name);
        let size = Size(entry.size).to_string();
        writeln!(out, "  {name:<14} {size:>10}  {}:{}{state}", entry.repo, entry.file)?;
    }
    if entries.is_empty() {
        writeln!(out, "  nothing; `ds4 pull --list` shows what there is")?;
    }
    Ok(())
}

/// What to type to mean exactly this file.
pub(super) fn typed(entry: &Entry) -> String {
    let name = crate::hub::Name {
        repo: entry.repo.clone(),
        revision: entry
            .revisions
            .first()
            .cloned()
            .unwrap_or_else(|| crate::hub::DEFAULT_REVISION.to_string()),
        which: Which::Path(entry.file.clone()),
    };
    name.to_string()
}
