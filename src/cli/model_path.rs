//! Which model: the one named, the one in the environment, the one in the folder, the demo.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The file that is looked for in the current folder, as ds4 does.
pub const DEFAULT_FILE: &str = "ds4flash.gguf";

/// Where the model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelPath {
    /// A file.
    File(PathBuf),
    /// The model that is part of the program.
    Demo,
}

impl ModelPath {
    /// The first of: what was typed, `DS4_MODEL`, the default file if `folder` has it, the demo.
    ///
    /// A file that was asked for and is missing is not replaced by another: opening it fails.
    pub fn resolve(typed: Option<&Path>, environment: Option<&OsStr>, folder: &Path) -> Self {
        if let Some(path) = typed {
            return Self::File(path.to_owned());
        }
        // An empty variable is how a shell unsets one for a single command.
        if let Some(path) = environment.filter(|path| !path.is_empty()) {
            return Self::File(path.into());
        }
        let default = folder.join(DEFAULT_FILE);
        // A link to nowhere counts as there: better a word about it than another model.
        if default.symlink_metadata().is_ok() {
            return Self::File(default);
        }
        Self::Demo
    }

    /// What messages call it.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Demo => "the bundled demo model".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(typed: Option<&str>, environment: Option<&str>, folder: &Path) -> ModelPath {
        ModelPath::resolve(typed.map(Path::new), environment.map(OsStr::new), folder)
    }

    #[test]
    fn what_is_named_comes_before_what_lies_around() {
        let folder = tempfile::tempdir().unwrap();
        let file = |path: &str| ModelPath::File(path.into());
        assert_eq!(resolve(None, None, folder.path()), ModelPath::Demo);
        assert_eq!(resolve(None, Some(""), folder.path()), ModelPath::Demo);
        let default = folder.path().join(DEFAULT_FILE);
        std::fs::write(&default, "").unwrap();
        assert_eq!(resolve(None, None, folder.path()), ModelPath::File(default));
        assert_eq!(resolve(None, Some("env.gguf"), folder.path()), file("env.gguf"));
        assert_eq!(resolve(Some("m.gguf"), Some("env.gguf"), folder.path()), file("m.gguf"));
    }

    #[cfg(unix)]
    #[test]
    fn a_broken_link_is_not_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join(DEFAULT_FILE);
        std::os::unix::fs::symlink("nowhere.gguf", &link).unwrap();
        assert_eq!(resolve(None, None, folder.path()), ModelPath::File(link));
    }
}
