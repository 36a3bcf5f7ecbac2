//! Who gets how much of the next forward pass.

/// What one running sequence could take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    /// Tokens that it knows and has not run.
    pub remaining: usize,
    /// Of these, the ones before the next point that is to be kept, where a pass must end.
    pub until_stop: usize,
}

/// Tokens of each sequence in the next pass; `wishes` in order of arrival.
///
/// Whoever lacks one token gets it: so all answers grow by one token a pass. Prompts share `chunk`
/// tokens. One half goes to the shortest first, so that a short prompt beside a long one is read
/// in a pass or two; the rest goes to the oldest first, so that the longest is never starved.
pub(super) fn share(wishes: &[Wish], chunk: usize) -> Vec<usize> {
    let mut shares: Vec<usize> =
        wishes.iter().map(|wish| usize::from(wish.remaining == 1)).collect();
    let mut left = chunk.max(1);
    let mut prompts: Vec<usize> =
        (0..wishes.len()).filter(|&index| wishes[index].remaining > 1).collect();
    let give = |index: usize, most: usize, shares: &mut [usize], left: &mut usize| {
        let given = (wishes[index].until_stop - shares[index]).min(most).min(*left);
        shares[index] += given;
        *left -= given;
        given
    };
    let oldest_first = prompts.clone();
    prompts.sort_by_key(|&index| wishes[index].remaining);
    let mut half = left.div_ceil(2);
    for index in prompts {
        half -= give(index, half, &mut shares, &mut left);
    }
    for index in oldest_first {
        give(index, usize::MAX, &mut shares, &mut left);
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(remaining: usize) -> Wish {
        Wish { remaining, until_stop: remaining }
    }

    #[test]
    fn answers_grow_and_a_lone_prompt_has_the_chunk() {
        assert!(share(&[], 8).is_empty());
        assert_eq!(share(&[wish(1), wish(1)], 8), [1, 1]);
        assert_eq!(share(&[wish(1), wish(100), wish(0)], 8), [1, 8, 0]);
        assert_eq!(share(&[wish(5)], 8), [5]);
        assert_eq!(share(&[Wish { remaining: 100, until_stop: 3 }], 8), [3]);
    }

    #[test]
    fn a_short_prompt_passes_a_long_one_without_starving_it() {
        assert_eq!(share(&[wish(1000), wish(3)], 8), [5, 3]);
        assert_eq!(share(&[wish(1000), wish(6)], 8), [4, 4]);
        assert_eq!(share(&[wish(1000), wish(900), wish(5)], 8), [4, 0, 4]);
    }

    #[test]
    fn however_many_short_ones_come_the_oldest_is_done_in_time() {
        let (mut long, mut passes) = (1000, 0);
        while long > 1 {
            let mut wishes = vec![wish(long)];
            wishes.extend([wish(7); 20]);
            let shares = share(&wishes, 64);
            assert!(shares.iter().sum::<usize>() <= 64);
            assert!(shares.iter().zip(&wishes).all(|(share, wish)| *share <= wish.until_stop));
            long -= shares[0];
            passes += 1;
        }
        assert!(passes <= 1000 / 32 + 1, "{passes}");
    }
}
