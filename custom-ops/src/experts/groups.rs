//! Tokens grouped by expert, so that an expert's weights are read once.

use std::ops::Range;

/// The pairs (token, slot) in the order of their experts.
#[derive(Default)]
pub(super) struct Groups {
    /// Where the group of each expert starts, and where the last one ends.
    starts: Vec<usize>,
    /// `token · k + slot`, group after group; within a group in ascending order.
    pairs: Vec<u32>,
    /// The tokens of these pairs.
    tokens: Vec<u32>,
}

impl Groups {
    /// Groups `[tokens, k]` ids, all below `n`.
    pub(super) fn sort(&mut self, ids: &[u32], k: usize, n: usize) {
        self.starts.clear();
        self.starts.resize(n + 1, 0);
        for &id in ids {
            self.starts[id as usize + 1] += 1;
        }
        for expert in 0..n {
            self.starts[expert + 1] += self.starts[expert];
        }
        self.pairs.clear();
        self.pairs.resize(ids.len(), 0);
        for (pair, &id) in ids.iter().enumerate() {
            let at = &mut self.starts[id as usize];
            self.pairs[*at] = pair as u32;
            *at += 1;
        }
        // Each start has moved on to its group's end, which is the next one's start.
        self.starts.rotate_right(1);
        self.starts[0] = 0;
        self.tokens.clear();
        self.tokens.extend(self.pairs.iter().map(|&pair| pair / k.max(1) as u32));
    }

    /// One group of all tokens, for a network that every token takes.
    pub(super) fn all(&mut self, tokens: usize) {
        self.starts.clear();
        self.starts.extend([0, tokens]);
        self.pairs.clear();
        self.pairs.extend(0..tokens as u32);
        self.tokens.clone_from(&self.pairs);
    }

    /// Experts that are chosen at all, with their part of [`Groups::pairs`].
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let ranges = self.starts.windows(2).map(|s| s[0]..s[1]).enumerate();
        ranges.filter(|(_, range)| !range.is_empty())
    }

    /// `token · k + slot` of each pair, group after group.
    pub(super) fn pairs(&self) -> &[u32] {
        &self.pairs
    }

    /// The token of each pair, group after group.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_in_the_group_of_its_expert() {
        let mut groups = Groups::default();
        for _ in 0..2 {
            groups.sort(&[3, 0, 5, 3, 3, 0], 2, 7);
            assert_eq!(groups.iter().collect::<Vec<_>>(), [(0, 0..2), (3, 2..5), (5, 5..6)]);
            assert_eq!(groups.pairs(), [1, 5, 0, 3, 4, 2]);
            assert_eq!(groups.tokens(), [0, 2, 0, 1, 2, 1]);
        }
        groups.all(3);
        assert_eq!(groups.iter().collect::<Vec<_>>(), [(0, 0..3)]);
        assert_eq!((groups.pairs(), groups.tokens()), (&[0, 1, 2][..], &[0, 1, 2][..]));
        groups.sort(&[], 0, 2);
        assert_eq!(groups.iter().count(), 0);
    }
}
