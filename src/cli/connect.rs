//! `ds4 connect`: the settings that make a coding agent talk to `ds4-server`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use clap::ValueEnum;
use serde_json::{json, Map, Value};

/// A program that can use the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Client {
    /// Claude Code
    Claude,
    /// Codex CLI
    Codex,
    /// OpenCode
    Opencode,
    /// pi
    Pi,
    /// Zed's agent panel
    Zed,
}

/// What to connect to, and whether to write it down.
#[derive(Clone, Debug)]
pub struct Connect {
    /// The program.
    pub client: Client,
    /// The server's address, without `/v1`.
    pub url: String,
    /// Tokens of context that the server was given.
    pub context: usize,
    /// Write the program's own settings file instead of printing what belongs there.
    pub write: bool,
}

/// The name that clients know the model by.
const MODEL: &str = "deepseek-v4-flash";
/// What clients send for a key where the server wants none.
const NO_KEY: &str = "ds4";
/// More tokens than any model has.
const MOST_CONTEXT: usize = 1 << 24;
/// Most tokens of an answer, as clients are told.
const OUTPUT: usize = 32_768;

/// What belongs into a settings file.
enum Settings {
    /// Keys to be merged into a JSON object.
    Json(Value),
    /// Sections to be appended to a TOML file, and the line that shows that they are there.
    Toml { text: String, mark: &'static str },
}

/// Prints or writes a program's settings.
///
/// # Errors
/// An address that is none; a settings file that cannot be read, merged or written, which is then
/// as before.
pub fn run(connect: &Connect, out: &mut dyn Write) -> Result<()> {
    let url = connect.url.trim_end_matches('/').trim_end_matches("/v1");
    let host = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    if !host.is_some_and(|host| host.chars().next().is_some_and(char::is_alphanumeric)) {
        bail!("--url {}: not an address such as http://127.0.0.1:8000", connect.url);
    }
    if !(2..=MOST_CONTEXT).contains(&connect.context) {
        bail!(
            "--ctx is {}: give what the server was given, from 2 to {MOST_CONTEXT} tokens",
            connect.context
        );
    }
    let settings = settings(connect.client, url, connect.context);
    let home = std::env::home_dir().context("the home folder is not known: set HOME")?;
    let path = file(connect.client, &home);
    if connect.write {
        let kept = write(&path, &settings)?;
        writeln!(out, "{} now points at {url}.", path.display())?;
        if let Some(kept) = kept {
            writeln!(out, "What it was before is in {}.", kept.display())?;
        }
    } else {
        print(connect.client, &path, &settings, url, out)?;
    }
    writeln!(out, "{}", next(connect.client))?;
    Ok(())
}

fn settings(client: Client, url: &str, context: usize) -> Settings {
    let output = OUTPUT.min(context / 2).max(1);
    match client {
        Client::Claude => Settings::Json(json!({"env": environment(url)})),
        Client::Codex => Settings::Toml {
            text: format!(
                "\n[model_providers.ds4]\nname = \"ds4\"\nbase_url = \"{url}/v1\"\nwire_api = \
                 \"responses\"\nenv_key = \"DS4_API_KEY\"\nstream_idle_timeout_ms = 600000\n\n\
                 [profiles.ds4]\nmodel = \"{MODEL}\"\nmodel_provider = \"ds4\"\n\
                 model_context_window = {context}\nmodel_max_output_tokens = {output}\n"
            ),
            mark: "[model_providers.ds4]",
        },
        Client::Opencode => Settings::Json(json!({
            "$schema": "https://opencode.ai/config.json",
            "provider": {"ds4": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "ds4",
                "options": {"baseURL": format!("{url}/v1"), "apiKey": "{env:DS4_API_KEY}"},
                "models": {MODEL: {
                    "name": "DeepSeek V4 Flash",
                    "reasoning": true,
                    "tool_call": true,
                    "limit": {"context": context, "output": output},
                }},
            }},
        })),
        Client::Pi => Settings::Json(json!({
            "providers": {"ds4": {
                "baseUrl": format!("{url}/v1"),
                "api": "openai-completions",
                "apiKey": NO_KEY,
                "models": [{
                    "id": MODEL,
                    "name": "DeepSeek V4 Flash",
                    "reasoning": true,
                    "input": ["text"],
                    "contextWindow": context,
                    "maxTokens": output,
                    "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
                }],
            }},
        })),
        Client::Zed => Settings::Json(json!({
            "language_models": {"openai_compatible": {"ds4": {
                "api_url": format!("{url}/v1"),
                "available_models": [{
                    "name": MODEL,
                    "display_name": "DeepSeek V4 Flash",
                    "max_tokens": context,
                    "max_output_tokens": output,
                    "capabilities": {
                        "tools": true,
                        "images": false,
                        "parallel_tool_calls": true,
                        "prompt_cache_key": false,
                    },
                }],
            }}},
        })),
    }
}

/// Claude Code's variables.
fn environment(url: &str) -> Map<String, Value> {
    let mut variables = Map::new();
    let mut set = |name: &str, value: &str| variables.insert(name.to_owned(), value.into());
    set("ANTHROPIC_BASE_URL", url);
    set("ANTHROPIC_AUTH_TOKEN", NO_KEY);
    for name in ["ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL", "CLAUDE_CODE_SUBAGENT_MODEL"] {
        set(name, MODEL);
    }
    for kind in ["OPUS", "SONNET", "HAIKU"] {
        set(&format!("ANTHROPIC_DEFAULT_{kind}_MODEL"), MODEL);
    }
    set("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1");
    // A first prompt of 60,000 tokens takes longer to read than the usual patience.
    set("CLAUDE_STREAM_IDLE_TIMEOUT_MS", "600000");
    set("API_TIMEOUT_MS", "3000000");
    variables
}

/// The settings file of a program.
fn file(client: Client, home: &Path) -> PathBuf {
    let config = || match std::env::var_os("XDG_CONFIG_HOME") {
        Some(folder) if !folder.is_empty() => PathBuf::from(folder),
        _ => home.join(".config"),
    };
    match client {
        Client::Claude => home.join(".claude/settings.json"),
        Client::Codex => home.join(".codex/config.toml"),
        Client::Opencode => config().join("opencode/opencode.json"),
        Client::Pi => home.join(".pi/agent/models.json"),
        Client::Zed => config().join("zed/settings.json"),
    }
}

/// What is left to do by hand.
fn next(client: Client) -> &'static str {
    match client {
        Client::Claude => {
            "Then run `claude`. If the server has keys, put yours where ANTHROPIC_AUTH_TOKEN is."
        }
        Client::Codex => {
            "Then run `DS4_API_KEY=ds4 codex --profile ds4`, with your key if the server has keys."
        }
        Client::Opencode => {
            "Then run `DS4_API_KEY=ds4 opencode -m ds4/deepseek-v4-flash`, with your key if the \
             server has keys."
        }
        Client::Pi => {
            "Then run `pi --provider ds4 --model deepseek-v4-flash`. If the server has keys, put \
             yours where apiKey is."
        }
        Client::Zed => {
            "Then choose the model ds4 in the agent panel; Zed asks for the key: any text will do \
             if the server has none."
        }
    }
}

fn print(
    client: Client,
    path: &Path,
    settings: &Settings,
    url: &str,
    out: &mut dyn Write,
) -> io::Result<()> {
    if client == Client::Claude {
        writeln!(out, "For one run, in the shell:\n")?;
        for (name, value) in environment(url) {
            writeln!(out, "    export {name}={}", value.as_str().unwrap_or_default())?;
        }
        writeln!(out, "\nFor good, in {}:\n", path.display())?;
    } else {
        writeln!(out, "In {}:\n", path.display())?;
    }
    let text = match settings {
        Settings::Json(value) => format!("{value:#}"),
        Settings::Toml { text, .. } => text.trim().to_owned(),
    };
    for line in text.lines() {
        writeln!(out, "{}", format!("    {line}").trim_end())?;
    }
    writeln!(out, "\nThe same command with --write puts it there.")
}

/// Adds the settings to a file, whole or not at all; returns where the old one is kept.
fn write(path: &Path, settings: &Settings) -> Result<Option<PathBuf>> {
    // A link to somewhere (dotfiles under version control) stays one.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = path.display();
    let old = match fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("{name}: cannot be read")),
    };
    let text = old.as_deref().unwrap_or_default();
    let new = match settings {
        Settings::Json(settings) => {
            let mut whole: Value = if text.trim().is_empty() {
                json!({})
            } else {
                serde_json::from_str(text).with_context(|| {
                    format!(
                        "{name}: not plain JSON (comments?), so nothing is written; run the \
                         command without --write and add the lines by hand"
                    )
                })?
            };
            if !merge(&mut whole, settings) {
                bail!("{name}: a key that should hold an object holds something else");
            }
            format!("{whole:#}\n")
        }
        Settings::Toml { text: more, mark } => {
            if text.lines().any(|line| line.trim() == *mark) {
                bail!("{name}: has {mark} already; change it by hand, or remove it first");
            }
            format!("{text}{more}")
        }
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
    let beside = |end: &str| {
        let mut beside = path.as_os_str().to_owned();
        beside.push(end);
        PathBuf::from(beside)
    };
    let kept = old.as_ref().map(|_| beside(".before-ds4"));
    if let Some(kept) = &kept {
        fs::copy(path, kept).with_context(|| format!("{}: cannot be written", kept.display()))?;
    }
    let next = beside(".ds4-new");
    let put = || -> io::Result<()> {
        let mut file = fs::File::create(&next)?;
        if let Ok(old) = fs::metadata(path) {
            file.set_permissions(old.permissions())?;
        }
        file.write_all(new.as_bytes())?;
        file.sync_all()?;
        fs::rename(&next, path)
    };
    if let Err(error) = put() {
        let _ = fs::remove_file(&next);
        return Err(error).with_context(|| format!("{name}: cannot be written"));
    }
    Ok(kept)
}

/// Puts `more` into `whole`, object by object; false if an object would replace something else.
fn merge(whole: &mut Value, more: &Value) -> bool {
    match (whole, more) {
        (Value::Object(whole), Value::Object(more)) => {
            more.iter().all(|(key, value)| match whole.get_mut(key) {
                Some(old) => merge(old, value),
                None => {
                    whole.insert(key.clone(), value.clone());
                    true
                }
            })
        }
        (_, Value::Object(_)) => false,
        (whole, more) => {
            *whole = more.clone();
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_merged_and_what_was_there_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/settings.json");
        let claude = settings(Client::Claude, "http://127.0.0.1:8000", 32_768);
        assert_eq!(write(&path, &claude).unwrap(), None);
        let old = "{\"b\": 1, \"env\": {\"X\": \"y\", \"ANTHROPIC_MODEL\": \"other\"}}";
        fs::write(&path, old).unwrap();
        let kept = write(&path, &claude).unwrap().unwrap();
        assert_eq!(fs::read_to_string(kept).unwrap(), old);
        let now: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!((&now["b"], &now["env"]["X"]), (&json!(1), &json!("y")));
        assert_eq!(now["env"]["ANTHROPIC_MODEL"], MODEL);
        assert_eq!(now["env"]["ANTHROPIC_BASE_URL"], "http://127.0.0.1:8000");

        for refused in ["// a comment\n{}", "{\"env\": 3}", "[]"] {
            fs::write(&path, refused).unwrap();
            assert!(write(&path, &claude).is_err(), "{refused}");
            assert_eq!(fs::read_to_string(&path).unwrap(), refused);
        }
    }

    #[test]
    fn sections_are_appended_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        fs::write(&path, "model = \"x\"\n").unwrap();
        let codex = settings(Client::Codex, "http://[::1]:9", 1000);
        write(&path, &codex).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("model = \"x\"\n\n[model_providers.ds4]\n"), "{text}");
        assert!(text.contains("base_url = \"http://[::1]:9/v1\""), "{text}");
        assert!(write(&path, &codex).unwrap_err().to_string().contains("already"));
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn every_client_is_told_the_address_and_what_to_run() {
        for client in Client::value_variants() {
            let connect = |url: &str| Connect {
                client: *client,
                url: url.to_owned(),
                context: 65_536,
                write: false,
            };
            let mut out = Vec::new();
            run(&connect("http://localhost:8001/v1/"), &mut out).unwrap();
            let text = String::from_utf8(out).unwrap();
            assert!(text.contains("http://localhost:8001") && text.contains("--write"), "{text}");
            assert!(!text.contains("/v1/v1"), "{text}");
            assert!(run(&connect("localhost"), &mut Vec::new()).is_err());
        }
    }
}
