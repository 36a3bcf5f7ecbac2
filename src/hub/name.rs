//! What a user types to mean a file: a short name, or a repository with file and revision.

use std::fmt;
use std::str::FromStr;

use super::error::Error;

/// The repository that the short names look in.
pub const DEFAULT_REPO: &str = "antirez/deepseek-v4-gguf";

/// The revision meant when none is given.
pub const DEFAULT_REVISION: &str = "main";

/// A kind of DeepSeek V4 Flash file, recognised by its name's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Routed experts in 2 bits, quantised with an importance matrix.
    Q2Imatrix,
    /// Routed experts in 4 bits, quantised with an importance matrix.
    Q4Imatrix,
    /// Experts of the last layers in 4 bits, the others in 2, with an importance matrix.
    Q2Q4Imatrix,
    /// Routed experts in 2 bits, without an importance matrix.
    Q2,
    /// Routed experts in 4 bits, without an importance matrix.
    Q4,
    /// The draft block that predicts one token further.
    Mtp,
}

impl Variant {
    /// Every variant, the recommended first.
    pub const ALL: [Variant; 6] = [
        Variant::Q2Imatrix,
        Variant::Q4Imatrix,
        Variant::Q2Q4Imatrix,
        Variant::Q2,
        Variant::Q4,
        Variant::Mtp,
    ];

    /// What a user types.
    pub fn name(self) -> &'static str {
        match self {
            Variant::Q2Imatrix => "q2-imatrix",
            Variant::Q4Imatrix => "q4-imatrix",
            Variant::Q2Q4Imatrix => "q2-q4-imatrix",
            Variant::Q2 => "q2",
            Variant::Q4 => "q4",
            Variant::Mtp => "mtp",
        }
    }

    /// One line about it.
    pub fn about(self) -> &'static str {
        match self {
            Variant::Q2Imatrix => "2-bit experts, the best that fits in 96 or 128 GB",
            Variant::Q4Imatrix => "4-bit experts, close to the original; for 192 GB and more",
            Variant::Q2Q4Imatrix => "2-bit experts, the last layers in 4 bits; for 128 GB",
            Variant::Q2 => "2-bit experts, quantised without an importance matrix",
            Variant::Q4 => "4-bit experts, quantised without an importance matrix",
            Variant::Mtp => "draft block for speculative decoding, used beside one of the others",
        }
    }

    /// Bytes of the published file, to judge a machine without asking the network. A repository's
    /// own listing has the exact number.
    pub fn usual_bytes(self) -> u64 {
        match self {
            Variant::Q2Imatrix | Variant::Q2 => 86_720_111_488,
            Variant::Q4Imatrix | Variant::Q4 => 164_633_502_592,
            Variant::Q2Q4Imatrix => 98 << 30,
            Variant::Mtp => 3_807_602_400,
        }
    }

    /// Whether it is a whole model, not a part used beside one.
    pub fn is_model(self) -> bool {
        self != Variant::Mtp
    }

    /// The variant that a repository path is, if any.
    pub fn of(path: &str) -> Option<Self> {
        let file = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
        let rest = file.strip_suffix(".gguf")?.strip_prefix("deepseek-v4-flash-")?;
        let parts: Vec<&str> = rest.split('-').collect();
        let parts = match parts.split_first() {
            Some((first, others)) if first.bytes().all(|b| b.is_ascii_digit()) => others,
            _ => parts.as_slice(),
        };
        let imatrix = parts.contains(&"imatrix");
        match (*parts.first()?, imatrix) {
            ("iq2xxs", true) => Some(Variant::Q2Imatrix),
            ("iq2xxs", false) => Some(Variant::Q2),
            ("q4kexperts", true) => Some(Variant::Q4Imatrix),
            ("q4kexperts", false) => Some(Variant::Q4),
            ("mtp", _) => Some(Variant::Mtp),
            (first, true)
                if first.starts_with("layers")
                    && rest.contains("q4kexperts")
                    && rest.contains("iq2xxs") =>
            {
                Some(Variant::Q2Q4Imatrix)
            }
            _ => None,
        }
    }

    pub(super) fn all_names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// `ORG/REPO`, checked to be safe in an address and as a folder name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RepoId(String);

impl RepoId {
    /// The text `ORG/REPO`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for RepoId {
    fn default() -> Self {
        Self(DEFAULT_REPO.to_string())
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for RepoId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong =
            |problem: &str| Error::Name { given: text.to_string(), problem: problem.to_string() };
        let parts: Vec<&str> = text.split('/').collect();
        let [org, repo] = parts.as_slice() else {
            return Err(wrong("a repository is written ORG/REPO"));
        };
        let good = |part: &str| {
            !part.is_empty()
                && part.len() <= 96
                && !part.starts_with(['.', '-'])
                && !part.contains("--")
                && !part.contains("..")
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if good(org) && good(repo) {
            Ok(Self(text.to_string()))
        } else {
            Err(wrong("ORG and REPO consist of letters, digits and single . _ -"))
        }
    }
}

/// Which file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The newest one of a kind.
    Variant(Variant),
    /// Exactly this path.
    Path(String),
    /// The only GGUF file there is.
    Only,
}

/// A parsed name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The repository.
    pub repo: RepoId,
    /// Branch, tag, or commit.
    pub revision: String,
    /// The file.
    pub which: Which,
}

impl From<Variant> for Name {
    fn from(variant: Variant) -> Self {
        Self {
            repo: RepoId::default(),
            revision: DEFAULT_REVISION.to_string(),
            which: Which::Variant(variant),
        }
    }
}

impl FromStr for Name {
    type Err = Error;

    /// Reads a short name, `ORG/REPO`, `ORG/REPO:FILE`, `ORG/REPO@REV`, or `ORG/REPO:FILE@REV`;
    /// FILE may be a short name too.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong =
            |problem: &str| Error::Name { given: text.to_string(), problem: problem.to_string() };
        if let Some(variant) = variant(text) {
            return Ok(variant.into());
        }
        let cut = text.find([':', '@']).unwrap_or(text.len());
        let (repo, rest) = text.split_at(cut);
        if !repo.contains('/') {
            return Err(wrong("not a name that is known"));
        }
        let (file, revision) = match (rest.strip_prefix(':'), rest.strip_prefix('@')) {
            (Some(rest), _) => match rest.rsplit_once('@') {
                Some((file, revision)) => (Some(file), Some(revision)),
                None => (Some(rest), None),
            },
            (None, Some(revision)) => (None, Some(revision)),
            (None, None) => (None, None),
        };
        let which = match file {
            None => Which::Only,
            Some(file) => match variant(file) {
                Some(variant) => Which::Variant(variant),
                None if is_safe_path(file) => Which::Path(file.to_string()),
                None => return Err(wrong("FILE is no relative path inside a repository")),
            },
        };
        let revision = revision.unwrap_or(DEFAULT_REVISION);
        if !is_safe_path(revision) || revision.contains(':') {
            return Err(wrong("REV is a branch, a tag or a commit"));
        }
        Ok(Self { repo: repo.parse()?, revision: revision.to_string(), which })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Which::Variant(variant) = &self.which {
            if *self == Name::from(*variant) {
                return f.write_str(variant.name());
            }
        }
        write!(f, "{}", self.repo)?;
        match &self.which {
            Which::Variant(variant) => write!(f, ":{variant}")?,
            Which::Path(path) => write!(f, ":{path}")?,
            Which::Only => {}
        }
        if self.revision == DEFAULT_REVISION {
            Ok(())
        } else {
            write!(f, "@{}", self.revision)
        }
    }
}

fn variant(text: &str) -> Option<Variant> {
    Variant::ALL.into_iter().find(|v| v.name().eq_ignore_ascii_case(text))
}

/// Whether a path from the network or the command line stays inside the folder it is joined to.
pub(super) fn is_safe_path(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 1024
        && !path.bytes().any(|b| b < 0x20 || b == 0x7f || b == b'\\')
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// A file that a name could mean.
#[derive(Clone, Debug)]
pub(super) struct Candidate<'a> {
    /// Path in the repository.
    pub path: &'a str,
    /// When it was uploaded, ISO 8601, if known.
    pub uploaded: Option<&'a str>,
}

/// Picks the file of `files` that `which` means: its index, and those of older ones.
///
/// # Errors
/// In words, with the candidates: none, or several that cannot be told apart.
pub(super) fn choose(
    which: &Which,
    files: &[Candidate<'_>],
) -> Result<(usize, Vec<usize>), String> {
    let list = |indices: &[usize]| -> String {
        indices.iter().filter_map(|i| files.get(*i)).map(|f| format!("\n  {}", f.path)).collect()
    };
    let ggufs: Vec<usize> = indices(files, |f| f.path.to_ascii_lowercase().ends_with(".gguf"));
    match which {
        Which::Path(path) => match files.iter().position(|f| f.path == path) {
            Some(index) => Ok((index, Vec::new())),
            None if ggufs.is_empty() => Err("no such file, and no GGUF file at all".to_string()),
            None => Err(format!("no such file; the GGUF files are:{}", list(&ggufs))),
        },
        Which::Only => match ggufs.as_slice() {
            [] => Err("it has no GGUF file".to_string()),
            [index] => Ok((*index, Vec::new())),
            _ => Err(format!("name one of its files with ORG/REPO:FILE:{}", list(&ggufs))),
        },
        Which::Variant(variant) => {
            let mut found = indices(files, |f| Variant::of(f.path) == Some(*variant));
            let age = |index: &usize| {
                files.get(*index).map(|f| (f.uploaded.unwrap_or_default(), Stamp::of(f.path)))
            };
            found.sort_by_key(|index| std::cmp::Reverse(age(index)));
            match found.as_slice() {
                [] => {
                    let known: Vec<&str> = Variant::ALL
                        .into_iter()
                        .filter(|v| files.iter().any(|f| Variant::of(f.path) == Some(*v)))
                        .map(Variant::name)
                        .collect();
                    Err(match known.as_slice() {
                        [] => "no file of that kind, nor of any other short name".to_string(),
                        known => format!("no file of that kind; there is: {}", known.join(", ")),
                    })
                }
                [first, second, ..] if age(first) == age(second) => {
                    let tied: Vec<usize> =
                        found.iter().copied().filter(|i| age(i) == age(first)).collect();
                    Err(format!(
                        "several files, equally new by upload time and by the version and date in \
                         their names; name one with ORG/REPO:FILE:{}",
                        list(&tied)
                    ))
                }
                [first, older @ ..] => Ok((*first, older.to_vec())),
            }
        }
    }
}

fn indices(files: &[Candidate<'_>], keep: impl Fn(&Candidate<'_>) -> bool) -> Vec<usize> {
    files.iter().enumerate().filter(|(_, f)| keep(f)).map(|(i, _)| i).collect()
}

/// What a file's name says of its age, oldest first: version, date, whether it is a correction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stamp {
    /// `v2` is 2.
    version: u32,
    /// `0731` is 731; `20260731` is 20260731, newer than any date without a year.
    date: u32,
    /// `fixed`.
    fixed: bool,
}

impl Stamp {
    fn of(path: &str) -> Self {
        let mut stamp = Stamp { version: 0, date: 0, fixed: false };
        let file = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
        for part in file.trim_end_matches(".gguf").split(['-', '_', '.']) {
            if part == "fixed" {
                stamp.fixed = true;
            } else if let Some(version) = part.strip_prefix('v').and_then(number) {
                // The V4 of the model's own name is in every one of them.
                stamp.version = stamp.version.max(if version == 4 { 0 } else { version });
            } else if let Some(date) = number(part).filter(|d| is_date(*d, part.len())) {
                stamp.date = stamp.date.max(date);
            }
        }
        stamp
    }
}

fn number(digits: &str) -> Option<u32> {
    if digits.bytes().all(|b| b.is_ascii_digit()) {
        digits.parse().ok()
    } else {
        None
    }
}

fn is_date(date: u32, digits: usize) -> bool {
    let (month, day) = (date / 100 % 100, date % 100);
    (digits == 4 || digits == 8 && date >= 20_000_101)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q2: &str = "DeepSeek-V4-Flash-IQ2XXS-w2Q2K-AProjQ8-SExpQ8-OutQ8-chat-v2-imatrix.gguf";
    const Q2_0731: &str =
        "DeepSeek-V4-Flash-IQ2XXS-w2Q2K-AProjQ8-SExpQ8-OutQ8-chat-v2-imatrix-0731.gguf";
    const Q2_PLAIN: &str = "DeepSeek-V4-Flash-IQ2XXS-w2Q2K-AProjQ8-SExpQ8-OutQ8-chat-v2.gguf";
    const Q4: &str = "DeepSeek-V4-Flash-Q4KExperts-F16HC-F16Compressor-F16Indexer-Q8Attn-\
                      Q8Shared-Q8Out-chat-v2-imatrix.gguf";
    const MIXED: &str = "DeepSeek-V4-Flash-Layers37-42Q4KExperts-OtherExpertLayersIQ2XXSGateUp-\
                         Q2KDown-AProjQ8-SExpQ8-OutQ8-chat-v2-imatrix-fixed.gguf";
    const MTP: &str = "DeepSeek-V4-Flash-MTP-Q4K-Q8_0-F32.gguf";

    fn pick(which: &Which, paths: &[&str]) -> Result<String, String> {
        let files: Vec<Candidate<'_>> =
            paths.iter().map(|path| Candidate { path, uploaded: None }).collect();
        choose(which, &files).map(|(index, _)| paths[index].to_string())
    }

    #[test]
    fn published_names_are_told_apart() {
        assert_eq!(Variant::of(Q2), Some(Variant::Q2Imatrix));
        assert_eq!(Variant::of(Q2_0731), Some(Variant::Q2Imatrix));
        assert_eq!(Variant::of(Q2_PLAIN), Some(Variant::Q2));
        assert_eq!(Variant::of(Q4), Some(Variant::Q4Imatrix));
        assert_eq!(Variant::of(MIXED), Some(Variant::Q2Q4Imatrix));
        assert_eq!(Variant::of(MTP), Some(Variant::Mtp));
        for other in [
            "DeepSeek-V4-Pro-IQ2XXS-w2Q2K-AProjQ8-SExpQ8-OutQ8-Instruct-imatrix.gguf",
            "DeepSeek-V4.1-Flash-Q4.gguf",
            "DeepSeek-V4-Flash-Vision-Exp-IQ2XXS-w2Q2K-AProjQ8-SExpQ8-OutQ8.gguf",
            "DeepSeek-V4-Flash-MXFP4Experts-F16HC-F16Compressor-chat-v2-mxfp4-0731.gguf",
            "DeepSeek-V4-Flash-IQ2XXS-w2Q2K.gguf.sha256",
            "README.md",
        ] {
            assert_eq!(Variant::of(other), None, "{other}");
        }
    }

    #[test]
    fn the_newest_file_wins_and_an_upload_time_beats_a_name() {
        let q2 = Which::Variant(Variant::Q2Imatrix);
        assert_eq!(pick(&q2, &[Q2, Q2_0731, Q4]).unwrap(), Q2_0731);
        assert_eq!(pick(&q2, &[Q2_0731, Q2, Q4]).unwrap(), Q2_0731);
        let files = [
            Candidate { path: Q2_0731, uploaded: Some("2026-07-31T10:00:00.000Z") },
            Candidate { path: Q2, uploaded: Some("2027-01-02T10:00:00.000Z") },
        ];
        assert_eq!(choose(&q2, &files).unwrap(), (1, vec![0]));
    }

    #[test]
    fn a_year_makes_a_date_newer_than_one_without() {
        assert!(Stamp::of("a-20260115.gguf") > Stamp::of("a-1231.gguf"));
        assert!(Stamp::of("a-v3.gguf") > Stamp::of("a-v2-1231.gguf"));
        assert!(Stamp::of("a-1131-fixed.gguf") > Stamp::of("a-1131.gguf"));
        assert_eq!(Stamp::of("a-9999.gguf").date, 0);
    }

    #[test]
    fn a_tie_is_explained_with_the_names() {
        let other = Q2.replace("chat", "Chat");
        let problem = pick(&Which::Variant(Variant::Q2Imatrix), &[Q2, &other, Q4]).unwrap_err();
        assert!(problem.contains(Q2) && problem.contains(&other), "{problem}");
        assert!(!problem.contains(Q4), "{problem}");
    }

    #[test]
    fn a_missing_kind_says_which_there_are() {
        let problem = pick(&Which::Variant(Variant::Q2), &[Q2, MTP]).unwrap_err();
        assert!(problem.contains("q2-imatrix, mtp"), "{problem}");
    }

    #[test]
    fn names_are_read_and_written_back() {
        for text in [
            "q2-imatrix",
            "mtp",
            "a/b",
            "a/b:dir/f.gguf",
            "a/b@v1",
            "a/b:f@x.gguf@refs/pr/1",
            "a/b:q4",
        ] {
            let name: Name = text.parse().unwrap();
            assert_eq!(name.to_string(), text);
        }
        let name: Name = "a/b:f@x.gguf@refs/pr/1".parse().unwrap();
        assert_eq!(name.which, Which::Path("f@x.gguf".to_string()));
        assert_eq!(name.revision, "refs/pr/1");
    }

    #[test]
    fn names_that_leave_their_folder_are_refused() {
        for text in [
            "",
            "q3",
            "a",
            "a/",
            "/b",
            "a/b/c",
            "../b",
            "a/..",
            "a/b:",
            "a/b:../x",
            "a/b:/etc/x",
            "a/b:x@",
            "a/b@../x",
            "a/b:x\\y",
            "a/b:x@a\nb",
            "a--b/c",
            "a/b:x//y",
        ] {
            assert!(text.parse::<Name>().is_err(), "{text:?} was taken");
        }
    }
}
