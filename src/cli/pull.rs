//! `ds4 pull`: fetch a model file, or show what there is.

use std::io::{IsTerminal, Write};
use std::path::Path;

use anyhow::Context;
use serde_json::json;

use super::transfer::Display;
use crate::hub::{
    Cancel, Error, Hub, Machine, Name, RemoteFile, Repository, Selection, Settings, Variant,
};
use crate::size::Size;

/// The name that every command takes when no model is given.
pub const LINK: &str = "ds4flash.gguf";

/// Files from this size on are checked against the machine's memory.
const BIG: u64 = 1 << 30;

/// What to do besides fetching.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Point `./ds4flash.gguf` at the file.
    pub link: bool,
    /// Events as JSON, one a line, on the output.
    pub json: bool,
}

/// Fetches what `name` means and writes its path on `out`; progress goes to standard error.
///
/// Returns the status to exit with: 0, or 130 after Ctrl-C, which leaves a state that the same
/// command goes on from.
///
/// # Errors
/// See [`Error`]; with [`Options::link`], also a file that is in the way.
pub fn run(name: &str, options: Options, out: &mut dyn Write) -> anyhow::Result<u8> {
    let settings = Settings::from_env()?;
    let name: Name = name.parse()?;
    if options.link {
        check_link(&name, Path::new(LINK))?;
    }
    let result = fetch(settings, &name, options, out);
    if let (Err(error), true) = (&result, options.json) {
        let error = format!("{error:#}");
        writeln!(out, "{}", json!({"event": "error", "message": error}))?;
    }
    match result {
        Err(error) if error.downcast_ref().is_some_and(Error::is_cancelled) => {
            eprintln!("{error:#}");
            Ok(130)
        }
        result => result.map(|()| 0),
    }
}

fn fetch(
    settings: Settings,
    name: &Name,
    options: Options,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    if settings.offline {
        let cached = crate::hub::Cache::at(settings.cache.clone()).find(name)?;
        let cache = settings.cache;
        let path = cached.ok_or_else(|| Error::Offline { what: name.to_string(), cache })?;
        return finish(&path, true, options, out);
    }
    let hub = Hub::new(settings)?;
    let cancel = Cancel::default();
    hub.cancel_on_interrupt(&cancel);
    let terminal = std::io::stderr().is_terminal();
    let mut display = Display::new(options.json, terminal, out);
    let selection = hub.select(name, &cancel, &mut |event| display.event(event))?;
    display.selected(&selection)?;
    if !options.json {
        explain(&hub, name, &selection);
    }
    let fetched = hub.fetch(&selection, &cancel, &mut |event| display.event(event))?;
    display.finish()?;
    finish(&fetched.path, fetched.was_cached, options, out)
}

/// Which file it is and whether it suits this machine, on standard error.
fn explain(hub: &Hub, name: &Name, selection: &Selection) {
    let Selection { repo, file, older, .. } = selection;
    let size = file.size.map_or(String::new(), |size| format!(", {}", Size(size)));
    eprintln!("{name} is {} of {repo}{size}", file.path);
    if !older.is_empty() {
        eprintln!("  the newest of {}; older: {}", older.len() + 1, older.join(", "));
    }
    let Some(size) = file.size.filter(|size| *size >= BIG) else { return };
    let machine = Machine::look(hub.cache());
    match machine.warning(size) {
        None => eprintln!("  {}", machine.fit(size).reason),
        Some(warning) => {
            eprintln!("  warning: it {warning}");
            match machine.recommended() {
                Some((variant, fit)) => eprintln!("  {variant} {}", fit.reason),
                None => eprintln!("  no published variant fits; `ds4 doctor` tells more"),
            }
        }
    }
}

fn finish(path: &Path, cached: bool, options: Options, out: &mut dyn Write) -> anyhow::Result<()> {
    if options.link {
        link(path, Path::new(LINK))?;
    }
    if options.json {
        let linked = options.link.then_some(LINK);
        let event = json!({"event": "done", "path": path, "was_cached": cached, "link": linked});
        writeln!(out, "{event}")?;
    } else {
        if options.link {
            eprintln!("./{LINK} points at it now");
        }
        writeln!(out, "{}", path.display())?;
    }
    Ok(out.flush()?)
}

/// Refuses before the download what [`link`] would refuse after it.
fn check_link(name: &Name, link: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(
        *name != Name::from(Variant::Mtp),
        "mtp is no model of its own: pull it without --link and keep it for the time when the draft block is used"
    );
    match std::fs::symlink_metadata(link) {
        Ok(there) if !there.is_symlink() => anyhow::bail!(
            "{}: is a file, not a link, and is left alone; move it away, or pull without --link",
            link.display()
        ),
        _ => Ok(()),
    }
}

/// Points the link at `target`; replaces nothing but a link.
fn link(target: &Path, link: &Path) -> anyhow::Result<()> {
    let target = std::path::absolute(target)?;
    let fresh = link.with_extension(format!("{}.link", std::process::id()));
    let place = || {
        std::os::unix::fs::symlink(&target, &fresh)?;
        if std::fs::symlink_metadata(link).is_ok_and(|there| !there.is_symlink()) {
            return Err(std::io::ErrorKind::AlreadyExists.into());
        }
        std::fs::rename(&fresh, link)
    };
    let placed = place();
    if placed.is_err() {
        // What matters is why it was not placed.
        let _ = std::fs::remove_file(&fresh);
    }
    placed.with_context(|| format!("cannot make the link {}", link.display()))
}

/// Lists the GGUF files of the default repository, or of the one named, on `out`.
///
/// # Errors
/// See [`Error`]; those of `out`.
pub fn list(name: Option<&str>, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let name: Name = name.unwrap_or(Variant::Q2Imatrix.name()).parse()?;
    let hub = Hub::new(Settings::from_env()?)?;
    let terminal = std::io::stderr().is_terminal();
    let mut display = Display::new(false, terminal, out);
    let repository =
        hub.list(&name.repo, &name.revision, &Cancel::default(), &mut |e| display.event(e))?;
    show(&repository, &hub, json, out)?;
    Ok(out.flush()?)
}

fn show(repository: &Repository, hub: &Hub, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let is_here = |file: &RemoteFile| {
        hub.cache().file_at(&repository.id, &repository.commit, &file.path).is_some()
    };
    let files: Vec<&RemoteFile> = repository
        .files
        .iter()
        .filter(|file| file.path.to_ascii_lowercase().ends_with(".gguf"))
        .collect();
    if json {
        let files: Vec<_> = files
            .iter()
            .map(|file| {
                json!({
                    "name": Variant::of(&file.path).map(Variant::name),
                    "file": file.path,
                    "size": file.size,
                    "sha256": file.sha256,
                    "cached": is_here(file),
                })
            })
            .collect();
        let listing = json!({
            "repo": repository.id.as_str(),
            "revision": repository.revision,
            "commit": repository.commit,
            "files": files,
        });
        return Ok(writeln!(out, "{listing:#}")?);
    }
    writeln!(out, "{}@{}", repository.id, repository.revision)?;
    for file in &files {
        let name = Variant::of(&file.path).map_or("-", Variant::name);
        let size = file.size.map_or("?".to_string(), |size| Size(size).to_string());
        let here = if is_here(file) { "here" } else { "" };
        writeln!(out, "  {name:<14} {size:>10}  {here:<4}  {}", file.path)?;
    }
    if files.is_empty() {
        writeln!(out, "  no GGUF file")?;
    }
    let mut about = Vec::new();
    for variant in Variant::ALL {
        if files.iter().any(|file| Variant::of(&file.path) == Some(variant)) {
            about.push(variant);
        }
    }
    if !about.is_empty() {
        writeln!(out, "\nOf several files with one name, the newest is pulled:")?;
    }
    for variant in about {
        writeln!(out, "  {variant:<14} {}", variant.about())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_replaces_a_link_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (path, target) = (folder.path().join(LINK), folder.path().join("model"));
        std::fs::write(&target, "weights").unwrap();
        let name: Name = "q2-imatrix".parse().unwrap();
        for _ in 0..2 {
            check_link(&name, &path).unwrap();
            link(&target, &path).unwrap();
            assert_eq!(std::fs::read_link(&path).unwrap(), target);
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        let error = check_link(&name, &path).unwrap_err().to_string();
        assert!(error.contains("left alone"), "{error}");
        link(&target, &path).unwrap_err();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            2,
            "a temporary link is left"
        );
    }
}
