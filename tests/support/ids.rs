//! Prompts without words.

/// Ids that are text of a kind, the same every time.
pub fn ids(from: u32, count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| 300 + (from + i * 37) % 1500).collect()
}
