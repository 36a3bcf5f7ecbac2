//! `ds4 logits`: the model's scores of every token at every position, as a NumPy file.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context};

use crate::model::{Input, Logits, Model};
use crate::ops::Workspace;

/// Tokens a pass when no cut is given: the scores of one pass are held in memory.
const CHUNK_TOKENS: usize = 128;

/// Runs the ids in the file `tokens` (whitespace between them) and writes `output`, an `.npy`
/// file of f32 `[ids, vocabulary]`: row `t` scores the token after id `t`.
///
/// The ids go through the model in passes of `chunks` tokens each, the last of these repeated; an
/// empty list leaves the cut to the program. Any cut gives the same file. The file is written whole
/// or not at all, and holds no more than one pass's scores in memory.
///
/// # Errors
/// An id that is none or outside the vocabulary (names file, line and word), more ids than the
/// model's context, a chunk of no tokens, or a file that cannot be read or written.
pub fn run(model: &Model, tokens: &Path, chunks: &[usize], output: &Path) -> anyhow::Result<()> {
    let config = model.config();
    let ids = read_ids(tokens, config.vocab_size)?;
    let (found, most) = (ids.len(), config.context_length);
    ensure!(
        found <= most,
        "{}: {found} ids, the model's context has {most}: shorten the file",
        tokens.display()
    );
    ensure!(!chunks.contains(&0), "--chunks: a chunk of 0 tokens: every chunk needs at least 1");

    let mut part = Part::create(output)?;
    let failed = || format!("{}: cannot write", output.display());
    part.out.write_all(&npy_header(found, config.vocab_size)).with_context(failed)?;
    let ws = Workspace::new(model.device());
    let mut cache = model.new_cache()?;
    let mut lengths = chunks.iter().copied();
    let mut length = CHUNK_TOKENS;
    while cache.len() < found {
        length = lengths.next().unwrap_or(length);
        let from = cache.len();
        let tokens = &ids[from..found.min(from.saturating_add(length))];
        let input = Input { tokens, cache: &mut cache };
        let scores = model.forward(&mut [input], Logits::All, &ws)?;
        for score in scores.flatten_all()?.to_vec1::<f32>()? {
            part.out.write_all(&score.to_le_bytes()).with_context(failed)?;
        }
    }
    part.finish().with_context(failed)
}

/// The ids in a file of whitespace-separated decimal numbers below `vocab_size`.
///
/// # Errors
/// As [`run`]; a file without ids is one of them.
pub fn read_ids(path: &Path, vocab_size: usize) -> anyhow::Result<Vec<u32>> {
    let name = path.display();
    let bytes = fs::read(path).with_context(|| format!("{name}: cannot read the token ids"))?;
    let mut ids = Vec::new();
    for (line, words) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let words = String::from_utf8_lossy(words);
        for (word, text) in words.split_whitespace().enumerate() {
            let id = text.parse().ok().filter(|&id| (id as usize) < vocab_size);
            let Some(id) = id else {
                let shown: String = text.chars().take(40).collect();
                bail!(
                    "{name}: line {}, word {}: {shown:?} is no token id: write whole numbers \
                     below {vocab_size} with whitespace between them",
                    line + 1,
                    word + 1
                );
            };
            ids.push(id);
        }
    }
    ensure!(!ids.is_empty(), "{name}: no token ids in it: write at least one");
    Ok(ids)
}

/// The start of an `.npy` file, format 1.0: f32, little-endian, row-major.
fn npy_header(rows: usize, cols: usize) -> Vec<u8> {
    const PREFIX: usize = 10;
    let mut text =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {cols}), }}");
    // The data starts at a multiple of 64, after a line feed.
    let padded = (PREFIX + text.len() + 1).next_multiple_of(64) - PREFIX;
    text.extend(std::iter::repeat_n(' ', padded - text.len() - 1));
    text.push('\n');
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend_from_slice(&(padded as u16).to_le_bytes()); // two numbers: far below 64 KiB
    header.extend_from_slice(text.as_bytes());
    header
}

/// A file in the making, beside the one that it is to become; gone unless finished.
struct Part {
    out: BufWriter<File>,
    path: PathBuf,
    target: PathBuf,
    finished: bool,
}

impl Part {
    fn create(target: &Path) -> anyhow::Result<Self> {
        let mut path = target.as_os_str().to_owned();
        path.push(".part");
        let path = PathBuf::from(path);
        let file = File::create(&path)
            .with_context(|| format!("{}: cannot create, choose another -o", path.display()))?;
        let out = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { out, path, target: target.to_owned(), finished: false })
    }

    fn finish(mut self) -> std::io::Result<()> {
        self.out.flush()?;
        self.out.get_ref().sync_all()?;
        fs::rename(&self.path, &self.target)?;
        self.finished = true;
        #[cfg(unix)]
        {
            let folder = self.target.parent().filter(|folder| !folder.as_os_str().is_empty());
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        }
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.finished {
            // The first error is the one to report.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::candle::{Device, Tensor};
    use crate::gguf::Gguf;

    fn golden(extension: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden/model/mixed")
            .with_extension(extension)
    }

    fn model() -> Model {
        Model::load(&Gguf::open(golden("gguf")).unwrap(), &Device::Cpu).unwrap()
    }

    #[test]
    fn every_cut_writes_the_same_file_and_numpy_reads_it() {
        let (model, folder) = (model(), tempfile::tempdir().unwrap());
        let mut files = Vec::new();
        for (index, chunks) in [&[][..], &[1], &[3, 1, 7], &[1000]].into_iter().enumerate() {
            let output = folder.path().join(format!("{index}.npy"));
            run(&model, &golden("tokens.txt"), chunks, &output).unwrap();
            files.push(fs::read(&output).unwrap());
        }
        assert!(files.iter().all(|file| *file == files[0]));
        let data = files[0].iter().position(|&byte| byte == b'\n').unwrap() + 1;
        assert_eq!(data % 64, 0, "the format asks for aligned data");

        let read = |path: PathBuf| Tensor::read_npy(path).unwrap().to_vec2::<f32>().unwrap();
        let (got, want) = (read(folder.path().join("0.npy")), read(golden("logits.npy")));
        assert_eq!((got.len(), got[0].len()), (want.len(), want[0].len()));
        for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
            assert!((got - want).abs() <= 2e-4, "{got} is not {want}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4, "no part is left behind");
    }

    #[test]
    fn a_word_that_is_no_id_is_named_and_nothing_is_written() {
        let (model, folder) = (model(), tempfile::tempdir().unwrap());
        let vocab = model.config().vocab_size;
        let (input, output) = (folder.path().join("ids"), folder.path().join("out.npy"));
        fs::write(&output, "before").unwrap();
        let cases: [(&[u8], &str); 7] = [
            (b"1 2\n3 x4 5", "line 2, word 2: \"x4\""),
            (b"1\n\n -1", "line 3, word 1: \"-1\""),
            (b"1 2.0", "line 1, word 2: \"2.0\""),
            (b"99999999999999999999", "word 1"),
            (b"1 \xff", "line 1, word 2"),
            (format!("0 {vocab}").leak().as_bytes(), "word 2"),
            (b" \n ", "no token ids"),
        ];
        for (text, wanted) in cases {
            fs::write(&input, text).unwrap();
            let error = run(&model, &input, &[], &output).unwrap_err().to_string();
            assert!(error.contains(wanted) && error.contains("ids:"), "{error}");
        }
        fs::write(&input, "0 ".repeat(model.config().context_length + 1)).unwrap();
        let error = run(&model, &input, &[], &output).unwrap_err().to_string();
        assert!(error.contains("the model's context has"), "{error}");
        fs::write(&input, "0 1").unwrap();
        let error = run(&model, &input, &[4, 0], &output).unwrap_err().to_string();
        assert!(error.contains("--chunks"), "{error}");
        let error = run(&model, &folder.path().join("none"), &[], &output).unwrap_err();
        assert!(format!("{error:#}").contains("none"), "{error:#}");
        let nowhere = folder.path().join("no/such/folder.npy");
        let error = run(&model, &input, &[], &nowhere).unwrap_err();
        assert!(format!("{error:#}").contains("no/such"), "{error:#}");
        assert_eq!(fs::read(&output).unwrap(), b"before");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
