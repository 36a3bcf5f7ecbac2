//! A conversation in a file: JSON, with messages in the shape of OpenAI's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::failure::Failure;
use crate::prompt::{Message, Thinking};

/// The only version that there is.
const VERSION: u32 = 1;

/// The largest file that is read: more than a context of a million tokens can hold.
const MOST_BYTES: u64 = 64 << 20;

/// A conversation as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transcript {
    /// Of the format.
    version: u32,
    /// The system prompt, if there is one.
    pub system: Option<String>,
    /// `off`, `on` or `max`; a conversation from elsewhere need not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    thinking: Option<String>,
    /// What was said.
    pub messages: Vec<Message>,
}

impl Transcript {
    /// A conversation to be kept.
    pub fn new(system: Option<&str>, thinking: Thinking, messages: &[Message]) -> Self {
        let thinking = match thinking {
            Thinking::Off => "off",
            Thinking::On => "on",
            Thinking::Max | Thinking::Beyond => "max",
        };
        Self {
            version: VERSION,
            system: system.map(str::to_owned),
            thinking: Some(thinking.to_owned()),
            messages: messages.to_vec(),
        }
    }

    /// How hard the model was asked to think.
    pub fn thinking(&self) -> Option<Thinking> {
        match self.thinking.as_deref()? {
            "off" => Some(Thinking::Off),
            "max" => Some(Thinking::Max),
            _ => Some(Thinking::On),
        }
    }

    /// Writes the file whole or not at all; one that is there is replaced.
    ///
    /// # Errors
    /// The folder is missing, full or not writable.
    pub fn save(&self, path: &Path) -> Result<(), Failure> {
        let json = serde_json::to_string_pretty(self).map_err(io::Error::from);
        json.and_then(|json| replace(path, (json + "\n").as_bytes())).map_err(|error| {
            Failure::Input(format!(
                "{}: cannot be written: {error}; choose a folder that exists and that you may \
                 write to",
                path.display()
            ))
        })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It is missing, too large, or no conversation.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let name = path.display();
        let mut json = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut json))
            .map_err(|error| Failure::unreadable(&name.to_string(), &error, "check the path"))?;
        if json.len() as u64 > MOST_BYTES {
            return Err(Failure::Input(format!(
                "{name}: larger than {MOST_BYTES} bytes, so no conversation; choose another file"
            )));
        }
        let transcript: Self = serde_json::from_slice(&json).map_err(|error| {
            Failure::Input(format!(
                "{name}: no conversation: {error}; choose a file that /save has written"
            ))
        })?;
        if transcript.version != VERSION {
            return Err(Failure::Input(format!(
                "{name}: a conversation of version {}, this program reads {VERSION}; a newer ds4 \
                 may read it",
                transcript.version
            )));
        }
        Ok(transcript)
    }
}

/// Writes a file beside the one to be, and moves it there when it is safe on disk.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A link stays one.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().ok_or_else(|| io::Error::other("it names no file"))?;
    if path.is_dir() {
        return Err(io::Error::other("it is a folder"));
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut beside = name.to_owned();
    beside.push(format!(".{}.part", std::process::id()));
    let beside = folder.join(beside);
    let written = write_new(&beside, bytes).and_then(|()| fs::rename(&beside, &path));
    if written.is_err() {
        // It may not even be there.
        let _ = fs::remove_file(&beside);
        return written;
    }
    // The new name is on disk only when the folder is; not every system lets a folder be opened.
    if let Ok(folder) = File::open(&folder) {
        let _ = folder.sync_all();
    }
    Ok(())
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::ToolCall;

    fn conversation() -> Transcript {
        let call =
            ToolCall { id: "call_0".into(), name: "f".into(), arguments: "{\"a\":1}".into() };
        let calling = Message {
            reasoning: Some("well".into()),
            tool_calls: vec![call],
            ..Message::assistant("")
        };
        let messages = [
            Message::user("line\nline \u{1b} 世界 \"x\""),
            calling,
            Message::tool("call_0", "3"),
            Message::assistant("three"),
        ];
        Transcript::new(Some("Be brief"), Thinking::Max, &messages)
    }

    #[test]
    fn what_is_saved_is_what_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("talk.json");
        for transcript in [conversation(), Transcript::new(None, Thinking::Off, &[])] {
            transcript.save(&path).unwrap();
            let loaded = Transcript::load(&path).unwrap();
            assert_eq!(loaded, transcript);
            assert_eq!(loaded.thinking(), transcript.thinking());
        }
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn a_failed_save_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = folder.path().join("missing/talk.json");
        let error = conversation().save(&nowhere).unwrap_err();
        assert!(error.to_string().contains("missing/talk.json"), "{error}");
        assert_eq!(conversation().save(folder.path()).unwrap_err().code(), 2);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_conversation_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("talk.json");
        let whole = serde_json::to_string(&conversation()).unwrap();
        let cut = &whole[..whole.len() / 2];
        for (text, needle) in [
            ("", "EOF"),
            (cut, "EOF"),
            ("[]", "no conversation"),
            ("{\"version\": 1, \"messages\": [{\"role\": \"wizard\"}]}", "wizard"),
            ("{\"version\": 2, \"messages\": []}", "version 2"),
            ("{\"version\": 1}", "messages"),
        ] {
            fs::write(&path, text).unwrap();
            let error = Transcript::load(&path).unwrap_err();
            assert_eq!(error.code(), 2);
            let message = error.to_string();
            assert!(message.contains(needle) && message.contains("talk.json"), "{message}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(Transcript::load(&path).unwrap_err().code(), 2);
    }
}
