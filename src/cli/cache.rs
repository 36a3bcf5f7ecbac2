//! `ds4 cache`: what the KV store on the disk holds, whether it is whole, and what may go.

use std::io::Write;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use serde_json::{json, Value};

use crate::cache::store::{default_folder, Entry, Settings, Store};
use crate::size::Size;

/// Digits of an identifier that are shown in lists.
const SHORT_ID: usize = 12;
/// Ids of a prompt that are shown.
const SHOWN_IDS: usize = 16;

/// What to do with which store.
#[derive(Debug, clap::Args)]
pub struct CacheArgs {
    /// What to do
    #[command(subcommand)]
    pub what: What,
    /// The store's folder [default: ds4/kv in the user's folder for caches]
    #[arg(long, value_name = "DIR", global = true)]
    pub kv_disk_dir: Option<PathBuf>,
}

/// What to do with a store.
#[derive(Debug, Subcommand)]
pub enum What {
    /// List what is stored, the last used first
    Ls {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show all about one entry
    Show {
        /// Its identifier, or the beginning of it
        id: String,
        /// As one JSON object, with all token ids
        #[arg(long)]
        json: bool,
    },
    /// Read every byte, and put damaged files into quarantine
    Verify,
    /// Remove entries, and the pages that only they need
    Rm {
        /// Identifiers, or the beginnings of them
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<String>,
        /// Remove everything
        #[arg(long)]
        all: bool,
    },
    /// Remove what is of no use, and what is worth least beyond the budget
    Gc {
        /// Megabytes that may stay
        #[arg(long, value_name = "N", default_value_t = 4096)]
        kv_disk_space_mb: u64,
    },
}

/// Does it, and says on `out` what came of it; returns whether everything was whole.
///
/// # Errors
/// No folder is known, it cannot be read or written to, an identifier is not clear; those of
/// `out`.
pub fn run(args: &CacheArgs, out: &mut dyn Write) -> anyhow::Result<bool> {
    let folder = match &args.kv_disk_dir {
        Some(folder) => folder.clone(),
        None => default_folder().ok_or_else(|| {
            anyhow::anyhow!(
                "there is no folder for caches (HOME is not set): use --kv-disk-dir DIR"
            )
        })?,
    };
    let json = matches!(args.what, What::Ls { json: true } | What::Show { json: true, .. });
    if !folder.exists() {
        if json {
            let nothing = json!({"folder": folder, "bytes": 0, "entries": []});
            writeln!(out, "{nothing:#}")?;
        } else {
            writeln!(out, "{}: nothing is stored", folder.display())?;
        }
        out.flush()?;
        return Ok(true);
    }
    let mut settings = Settings::viewer();
    if let What::Gc { kv_disk_space_mb } = args.what {
        settings.budget = kv_disk_space_mb.saturating_mul(1 << 20);
    }
    let store = Store::open(&folder, settings)?;
    let mut whole = true;
    match &args.what {
        What::Ls { json } => list(&store, *json, out)?,
        What::Show { id, json } => show(&store, id, *json, out)?,
        What::Verify => whole = verify(&store, out)?,
        What::Rm { all: true, .. } => {
            let freed = store.clear()?;
            writeln!(
                out,
                "removed all {} entries: {} free now",
                freed.frontiers,
                Size(freed.bytes)
            )?;
        }
        What::Rm { ids, .. } => {
            for id in ids {
                let freed = store.remove(id)?;
                writeln!(out, "removed {id}: {} free now", Size(freed.bytes))?;
            }
        }
        What::Gc { .. } => {
            let freed = store.gc()?;
            let left = Size(store.bytes()?);
            writeln!(
                out,
                "removed {} entries and what was of no use: {} free now, {left} left",
                freed.frontiers,
                Size(freed.bytes)
            )?;
        }
    }
    out.flush()?;
    Ok(whole)
}

fn list(store: &Store, as_json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let entries = store.list()?;
    let bytes = store.bytes()?;
    if as_json {
        let entries: Vec<Value> = entries.iter().map(entry_json).collect();
        let all = json!({"folder": store.path(), "bytes": bytes, "entries": entries});
        return Ok(writeln!(out, "{all:#}")?);
    }
    writeln!(out, "{}: {} in all", store.path().display(), Size(bytes))?;
    if entries.is_empty() {
        return Ok(writeln!(out, "  nothing; a server stores what it is asked")?);
    }
    let now = now();
    writeln!(
        out,
        "  {:<SHORT_ID$}  {:>8}  {:>10}  {:>10}  {:>5}  {:>7}  begins with",
        "id", "tokens", "its own", "pages", "hits", "used"
    )?;
    for entry in &entries {
        let state = if entry.usable { "" } else { "(pages are missing) " };
        writeln!(
            out,
            "  {:<SHORT_ID$}  {:>8}  {:>10}  {:>10}  {:>5}  {:>7}  {state}{}",
            short(&entry.id),
            entry.tokens,
            Size(entry.bytes).to_string(),
            Size(entry.page_bytes).to_string(),
            entry.hits,
            age(now.saturating_sub(entry.last_used)),
            cut(&entry.label, 40),
        )?;
    }
    Ok(())
}

fn show(store: &Store, id: &str, as_json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let details = store.show(id)?;
    let entry = &details.entry;
    let [state, logits, attachment] = details.parts;
    if as_json {
        let mut all = entry_json(entry);
        let files: Vec<Value> = details
            .files
            .iter()
            .map(|(file, pages)| json!({"file": file, "pages": pages}))
            .collect();
        all["files"] = files.into();
        all["state_bytes"] = state.into();
        all["logits"] = logits.into();
        all["attachment_bytes"] = attachment.into();
        all["continues"] = json!(details.continues);
        all["ids"] = json!(details.ids);
        return Ok(writeln!(out, "{all:#}")?);
    }
    let now = now();
    writeln!(out, "{}", entry.id)?;
    writeln!(out, "  begins with  {}", entry.label)?;
    writeln!(out, "  tokens       {}", entry.tokens)?;
    let ids: Vec<String> = details.ids.iter().take(SHOWN_IDS).map(u32::to_string).collect();
    let more = if details.ids.len() > SHOWN_IDS { " …" } else { "" };
    writeln!(out, "  ids          {}{more}", ids.join(" "))?;
    writeln!(out, "  model        {}", entry.fingerprint)?;
    writeln!(out, "  saved        {} ago", age(now.saturating_sub(entry.created)))?;
    writeln!(
        out,
        "  used         {} times, last {} ago",
        entry.hits,
        age(now.saturating_sub(entry.last_used))
    )?;
    writeln!(
        out,
        "  its own      {} (state {}, {logits} logits, attachment {})",
        Size(entry.bytes),
        Size(state),
        Size(attachment)
    )?;
    let missing = if entry.usable { "" } else { "; some are missing, it cannot be used" };
    writeln!(out, "  pages        {}{missing}", Size(entry.page_bytes))?;
    for (file, pages) in &details.files {
        writeln!(out, "    {file}: {pages}")?;
    }
    if let Some(shorter) = &details.continues {
        writeln!(out, "  continues    {}", short(shorter))?;
    }
    Ok(())
}

fn verify(store: &Store, out: &mut dyn Write) -> anyhow::Result<bool> {
    let verified = store.verify()?;
    writeln!(
        out,
        "{}: read {} files, {}",
        store.path().display(),
        verified.files,
        Size(verified.bytes)
    )?;
    for (file, what) in &verified.damaged {
        writeln!(out, "  {file}: damaged, now in quarantine: {what}")?;
    }
    for id in &verified.incomplete {
        writeln!(out, "  {}: cannot be used, pages are missing", short(id))?;
    }
    let whole = verified.damaged.is_empty() && verified.incomplete.is_empty();
    if whole {
        writeln!(out, "  all whole")?;
    } else {
        writeln!(
            out,
            "  what is missing is computed and saved again when it is needed; `ds4 cache gc` \
             removes the damaged files"
        )?;
    }
    Ok(whole)
}

fn entry_json(entry: &Entry) -> Value {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    json!({
        "id": entry.id,
        "label": entry.label,
        "tokens": entry.tokens,
        "bytes": entry.bytes,
        "page_bytes": entry.page_bytes,
        "usable": entry.usable,
        "hits": entry.hits,
        "created": entry.created,
        "last_used": entry.last_used,
        "model": hex(entry.fingerprint.as_bytes()),
        "namespace": hex(&entry.namespace),
    })
}

fn short(id: &str) -> &str {
    id.get(..SHORT_ID).unwrap_or(id)
}

/// The first `most` characters of a text.
fn cut(text: &str, most: usize) -> String {
    let mut cut: String = text.chars().take(most).collect();
    if text.chars().nth(most).is_some() {
        cut.push('…');
    }
    cut
}

/// A time in the largest unit that there is one of.
fn age(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let unit = UNITS.iter().find(|(length, _)| seconds >= *length);
    let (length, name) = unit.copied().unwrap_or((1, "s"));
    format!("{} {name}", seconds / length)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cache::store::{Fingerprint, Save};

    fn is_empty(folder: &Path) -> bool {
        Store::open(folder, Settings::viewer()).unwrap().list().unwrap().is_empty()
    }

    fn cache(folder: &Path, what: What) -> (String, bool) {
        let args = CacheArgs { what, kv_disk_dir: Some(folder.to_owned()) };
        let mut out = Vec::new();
        let whole = run(&args, &mut out).unwrap();
        (String::from_utf8(out).unwrap(), whole)
    }

    fn filled(folder: &Path) -> Store {
        let settings =
            Settings { reserve: Some(0), ..Settings::new(Fingerprint::from_bytes([1; 32]), 10) };
        let store = Store::open(folder, settings).unwrap();
        let ids: Vec<u32> = (0..300).collect();
        for (len, label) in [(200, "You are a helpful"), (300, "You are a helpful assistant")] {
            let save = Save { ids: &ids[..len], state: b"state", label, ..Save::default() };
            store
                .save(&save, &mut |page, rows| {
                    rows.fill(page as u8);
                    Ok(())
                })
                .unwrap();
        }
        store
    }

    #[test]
    fn entries_can_be_listed_shown_checked_and_removed() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("kv");
        assert!(cache(&folder, What::Ls { json: false }).0.contains("nothing is stored"));
        assert!(!folder.exists());
        filled(&folder);
        let (text, _) = cache(&folder, What::Ls { json: false });
        assert!(text.contains("You are a helpful assistant") && text.contains("  300  "), "{text}");
        let (text, _) = cache(&folder, What::Ls { json: true });
        let list: Value = serde_json::from_str(&text).unwrap();
        let entries = list["entries"].as_array().unwrap();
        assert_eq!(entries.len(), 2);
        let id = |tokens: u64| {
            let entry = entries.iter().find(|entry| entry["tokens"] == tokens).unwrap();
            entry["id"].as_str().unwrap().to_owned()
        };
        let (text, _) = cache(&folder, What::Show { id: id(300)[..6].into(), json: true });
        let shown: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(shown["ids"].as_array().unwrap().len(), 300);
        assert_eq!(shown["continues"], id(200));
        let (text, _) = cache(&folder, What::Show { id: id(300), json: false });
        assert!(text.contains("0 1 2 3") && text.contains("state 5 B"), "{text}");
        assert!(cache(&folder, What::Verify).1);

        let freed = cache(&folder, What::Rm { ids: vec![id(300)], all: false }).0;
        assert!(freed.contains("free now"), "{freed}");
        assert!(!is_empty(&folder));
        cache(&folder, What::Rm { ids: vec![], all: true });
        assert!(is_empty(&folder));
    }

    #[test]
    fn damage_is_told_and_cleaned_up() {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path());
        let pages = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|ending| ending == "pages"))
            .unwrap();
        let mut bytes = std::fs::read(&pages).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&pages, bytes).unwrap();
        let (text, whole) = cache(folder.path(), What::Verify);
        assert!(!whole && text.contains("checksum") && text.contains("missing"), "{text}");
        cache(folder.path(), What::Gc { kv_disk_space_mb: 1 });
        assert!(!folder.path().join("quarantine").read_dir().unwrap().any(|_| true));
    }

    #[test]
    fn ages_are_in_the_largest_unit() {
        assert_eq!(age(0), "0 s");
        assert_eq!(age(59), "59 s");
        assert_eq!(age(7200), "2 h");
        assert_eq!(age(86_400 * 40), "40 d");
    }
}
