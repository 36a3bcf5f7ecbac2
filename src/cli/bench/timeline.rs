//! Where a recorded step's time goes, from the GPU's own record of its blocks.

use std::collections::HashMap;
use std::fmt::Write;

use crate::ops::device::Block;

/// One launch, as its blocks saw it; nanoseconds.
struct Launch {
    kernel: &'static str,
    blocks: u32,
    /// The first block's begin.
    begin: u64,
    /// The last block's wait was over.
    ready: u64,
    /// Ends of its first and its last block.
    first_end: u64,
    end: u64,
}

/// What launches of one kernel at one place of a layer have in common, summed.
#[derive(Default)]
struct Place {
    launches: usize,
    adds: u64,
    begins_before: u64,
    until_ready: u64,
    works: u64,
    apart: u64,
}

/// Launches in the order of their ends. A kernel's launches do not overlap with each other.
fn launches(mut records: Vec<Block>) -> Vec<Launch> {
    records.sort_by_key(|block| block.begin);
    let mut by_kernel: HashMap<&str, Vec<Block>> = HashMap::new();
    for block in records {
        by_kernel.entry(block.kernel).or_default().push(block);
    }
    let mut all = Vec::new();
    for blocks in by_kernel.values() {
        let mut rest = blocks.as_slice();
        while let Some(first) = rest.first() {
            let (launch, later) = rest.split_at((first.blocks as usize).clamp(1, rest.len()));
            rest = later;
            let most = |of: fn(&Block) -> u64| launch.iter().map(of).max().unwrap_or(0);
            all.push(Launch {
                kernel: first.kernel,
                blocks: first.blocks,
                begin: first.begin,
                ready: most(|block| block.ready),
                first_end: launch.iter().map(|block| block.end).min().unwrap_or(0),
                end: most(|block| block.end),
            });
        }
    }
    all.sort_by_key(|launch| launch.end);
    all
}

/// A table of all places, in µs, the most expensive first: what a launch adds to the step (from the end
/// of the launch before to its own), how long before that end it began, from that end until the last
/// block knew of it, from then on to its end, and how far its blocks' ends lie apart.
pub fn table(records: Vec<Block>, steps: usize) -> String {
    let launches = launches(records);
    let mut places: HashMap<String, Place> = HashMap::new();
    for (index, pair) in launches.windows(2).enumerate() {
        let [before, launch] = pair else { continue };
        // Products of different weights are told apart by what came before them.
        let mut name = format!("{} ({})", launch.kernel, launch.blocks);
        for earlier in launches[..=index].iter().rev() {
            let _ = write!(name, " < {}", earlier.kernel);
            if earlier.kernel != launch.kernel {
                break;
            }
        }
        let place = places.entry(name).or_default();
        place.launches += 1;
        place.adds += launch.end.saturating_sub(before.end);
        place.begins_before += before.end.saturating_sub(launch.begin);
        place.until_ready += launch.ready.saturating_sub(before.end);
        place.works += launch.end.saturating_sub(launch.ready);
        place.apart += launch.end.saturating_sub(launch.first_end);
    }
    let mut places: Vec<_> = places.into_iter().collect();
    places.sort_by(|a, b| b.1.adds.cmp(&a.1.adds).then_with(|| a.0.cmp(&b.0)));
    let width = places.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(5);
    let mut table = format!(
        "{:width$}  {:>6}  {:>8}  {:>6}  {:>6}  {:>6}  {:>6}  {:>6}\n",
        "place", "calls", "µs/step", "adds", "early", "known", "works", "apart"
    );
    let mut all = 0;
    for (name, place) in &places {
        let each = |sum: u64| sum as f64 / 1000.0 / place.launches as f64;
        all += place.adds;
        let _ = writeln!(
            table,
            "{name:width$}  {:>6.1}  {:>8.1}  {:>6.2}  {:>6.2}  {:>6.2}  {:>6.2}  {:>6.2}",
            place.launches as f64 / steps.max(1) as f64,
            place.adds as f64 / 1000.0 / steps.max(1) as f64,
            each(place.adds),
            each(place.begins_before),
            each(place.until_ready),
            each(place.works),
            each(place.apart),
        );
    }
    let _ = write!(
        table,
        "{:width$}  {:>6}  {:>8.1}",
        "all",
        "",
        all as f64 / 1000.0 / steps.max(1) as f64
    );
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_that_overlap_add_what_comes_after_the_end_before() {
        let block = |kernel, block, begin, ready, end| Block {
            kernel,
            blocks: 2,
            block,
            processor: block,
            begin,
            ready,
            end,
        };
        let records = vec![
            block("b", 0, 6_000, 10_500, 13_000),
            block("a", 0, 0, 1_000, 8_000),
            block("b", 1, 9_000, 11_000, 15_000),
            block("a", 1, 500, 1_500, 10_000),
        ];
        let table = table(records, 1);
        let of_b = table.lines().find(|line| line.starts_with("b (2) < a")).unwrap();
        let figures: Vec<&str> = of_b.split_whitespace().skip(4).collect();
        // Calls and µs of a step; then adds, early, known, works, apart.
        assert_eq!(figures, ["1.0", "5.0", "5.00", "4.00", "1.00", "4.00", "2.00"], "{table}");
    }
}
