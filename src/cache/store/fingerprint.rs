//! Which model computed a state, and how: states of others are of no use.

use std::fmt;

use crate::gguf;

/// Bytes of a tensor that are hashed at its beginning, in its middle and at its end.
const SAMPLE_BYTES: usize = 4096;

/// The identity of a model and of everything else that its KV rows depend on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of a weights file.
    ///
    /// A hash over the file's size, its whole header (metadata, vocabulary, names, types, shapes
    /// and places of all tensors) and 3 × 4 KiB of every tensor: beginning, middle and end. Another
    /// quantisation, another imatrix or another training differ in nearly every block, so that a
    /// sample of each tensor tells them apart without reading the 80 GB. A file of which single
    /// weights were changed by hand elsewhere is not noticed.
    ///
    /// # Errors
    /// A tensor whose data cannot be had.
    pub fn of(model: &gguf::Gguf) -> Result<Self, gguf::Error> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"ds4-kv model\n");
        let file = model.file();
        hasher.update(&(file.len() as u64).to_le_bytes());
        let header = usize::try_from(model.header().data_start()).unwrap_or(usize::MAX);
        hasher.update(&file[..header.min(file.len())]);
        for tensor in model.tensors() {
            let data = model.data(tensor)?;
            let last = data.len().saturating_sub(SAMPLE_BYTES);
            for start in [0, last / 2, last] {
                hasher.update(&data[start..(start + SAMPLE_BYTES).min(data.len())]);
            }
        }
        Ok(Self(hasher.finalize().into()))
    }

    /// A fingerprint that also depends on `what`: the device's arithmetic, the layout of the state.
    #[must_use]
    pub fn with(&self, what: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"ds4-kv with\n").update(&self.0).update(what.as_bytes());
        Self(hasher.finalize().into())
    }

    /// One that was made before.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Gguf, Metadata, TensorType, Writer};

    fn model(name: &str, weights: &[u8]) -> Gguf {
        let mut metadata = Metadata::new();
        metadata.insert("general.name", name).unwrap();
        let mut writer = Writer::new(metadata);
        let dims = [weights.len() as u64 / 4];
        writer.tensor_bytes("w", &dims, TensorType::F32, weights).unwrap();
        let mut file = Vec::new();
        writer.write(&mut file).unwrap();
        Gguf::from_bytes(file.into()).unwrap()
    }

    #[test]
    fn models_that_differ_in_metadata_size_or_sampled_weights_have_other_fingerprints() {
        let mut weights = vec![0u8; 1 << 16];
        let print = |m: &Gguf| Fingerprint::of(m).unwrap();
        let first = print(&model("a", &weights));
        assert_eq!(first, print(&model("a", &weights)));
        assert_ne!(first, print(&model("b", &weights)));
        assert_ne!(first, print(&model("a", &weights[4..])));
        for at in [0, 4095, (1 << 15), (1 << 16) - 1] {
            weights[at] ^= 1;
            assert_ne!(first, print(&model("a", &weights)), "byte {at}");
            weights[at] ^= 1;
        }
        assert_ne!(first, first.with("cpu"));
        assert_ne!(first.with("cuda"), first.with("cpu"));
    }
}
