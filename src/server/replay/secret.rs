//! The key that only this server has.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

/// Bytes of a key.
const LENGTH: usize = 32;

/// What seals the notes that go out with reasoning.
#[derive(Clone)]
pub struct Secret([u8; LENGTH]);

/// Why a key cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The file cannot be read or made.
    #[error("{path}: {error}: choose a folder that this program may write to")]
    File {
        /// Which.
        path: String,
        /// What happened.
        error: io::Error,
    },
    /// The file holds something else.
    #[error("{path}: {length} bytes, a key has 32: remove the file and a new one will be made")]
    Length {
        /// Which.
        path: String,
        /// What it holds.
        length: usize,
    },
}

impl Secret {
    /// A new one: what was sealed with others cannot be opened.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// The key in this file. A file that is missing is made, for its owner's eyes only.
    ///
    /// # Errors
    /// The file cannot be read or made, or holds no key.
    pub fn from_file(path: &Path) -> Result<Self, SecretError> {
        let named = |error| SecretError::File { path: path.display().to_string(), error };
        match read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            read => return Self::of(&read.map_err(named)?, path),
        }
        let secret = Self::random();
        match write(path, &secret.0) {
            Ok(()) => Ok(secret),
            // Another server was quicker.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Self::of(&read(path).map_err(named)?, path)
            }
            Err(error) => Err(named(error)),
        }
    }

    fn of(bytes: &[u8], path: &Path) -> Result<Self, SecretError> {
        bytes.try_into().map(Self).map_err(|_| SecretError::Length {
            path: path.display().to_string(),
            length: bytes.len(),
        })
    }

    pub(super) fn bytes(&self) -> &[u8; LENGTH] {
        &self.0
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(LENGTH as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes a new file whole: it has its name only when its bytes are on disk.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let beside = path.with_extension(format!("{:032x}.part", rand::random::<u128>()));
    let written = options.open(&beside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        // Unlike a renaming, a link replaces nothing.
        fs::hard_link(&beside, path)
    });
    // It may not even be there.
    let _ = fs::remove_file(&beside);
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("replay.key");
        let made = Secret::from_file(&path).unwrap();
        assert_eq!(Secret::from_file(&path).unwrap().0, made.0);
        assert_ne!(Secret::random().0, made.0);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("replay.key");
        for bytes in [&[0; 31][..], &[0; 33], &[]] {
            fs::write(&path, bytes).unwrap();
            let error = Secret::from_file(&path).err().unwrap().to_string();
            assert!(error.contains("replay.key") && error.contains("remove"), "{error}");
        }
        let nowhere = folder.path().join("missing/replay.key");
        assert!(matches!(Secret::from_file(&nowhere), Err(SecretError::File { .. })));
    }
}
