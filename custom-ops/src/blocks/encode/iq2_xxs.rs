//! IQ2_XXS: for every run of eight values, the best grid entry at *every* scale.
//!
//! With magnitudes `a = |x|`, a grid entry `G` at scale `s` costs
//! `Σ w·(a − s·G)² = Σ w·a² + s·(s·N − 2·C)`, where `N = Σ w·G²` and `C = Σ w·a·G`. Signs are free
//! but for their number, which must be even; where it is odd, negating the wrong value `j` adds
//! `4·s·w_j·a_j·G_j`, so `C` loses twice the least `w·a·G`. Neither `N` nor `C` depends on the
//! scale: the best entry for any `s > 0` is the lowest of 256 straight lines `s·N − 2·C`, and the
//! lower envelope of these lines, a few segments, answers for all scales at once.

use super::super::iq2_xxs::{BYTES, CODES, GROUPS, LEN};
use super::{half, Encode};

/// Segments kept of an envelope; what lies behind them is answered by the last.
const SEGMENTS: usize = 24;

/// `Σ w·(…)²` less its constant part, for one grid entry: `s·(s·n − 2·c)`.
#[derive(Clone, Copy, Default)]
struct Line {
    n: f32,
    c: f32,
    /// The grid entry.
    entry: u8,
    /// The scale from which on it is the lowest.
    from: f32,
}

/// The lowest lines by rising scale.
#[derive(Clone, Copy)]
struct Envelope {
    lines: [Line; SEGMENTS],
    len: usize,
}

impl Envelope {
    #[inline(always)]
    fn at(&self, scale: f32) -> Line {
        let mut line = self.lines[0];
        for next in &self.lines[1..self.len] {
            if next.from > scale {
                break;
            }
            line = *next;
        }
        line
    }
}

/// Squared magnitudes and magnitudes by value, then by entry.
static MAGNITUDES: [[f32; 256]; 8] = {
    let mut table = [[0.0; 256]; 8];
    let mut g = 0;
    while g < 256 {
        let mut j = 0;
        while j < 8 {
            table[j][g] = [8.0, 25.0, 43.0, 0.0][(CODES[g] >> (2 * j)) as usize & 3];
            j += 1;
        }
        g += 1;
    }
    table
};

pub(super) struct Iq2Xxs;

impl Encode<BYTES> for Iq2Xxs {
    #[inline(always)]
    fn encode(x: &[f32; LEN], w: &[f32; LEN], out: &mut [u8; BYTES]) {
        out.fill(0);
        let mut envelopes = [[Envelope { lines: [Line::default(); SEGMENTS], len: 1 }; 4]; 8];
        let mut best = [0f32; 8];
        for (g, (runs, best)) in envelopes.iter_mut().zip(&mut best).enumerate() {
            let at = 32 * g;
            let largest = x[at..at + 32].iter().fold(0f32, |most, x| most.max(x.abs()));
            if largest == 0.0 {
                continue;
            }
            // All of a group's values in the smallest magnitude at one end, the largest cut at the
            // other: no better scale lies beyond.
            let range = (largest / 64.0, largest / 8.0);
            for (l, run) in runs.iter_mut().enumerate() {
                let at = at + 8 * l;
                let (x, w) = (&x[at..at + 8], &w[at..at + 8]);
                let (x, w) = (std::array::from_fn(|j| x[j]), std::array::from_fn(|j| w[j]));
                envelope(&x, &w, range, run);
            }
            *best = best_scale(runs, range);
        }
        let top = best.iter().fold(0f32, |most, s| most.max(*s));
        if top == 0.0 {
            return;
        }

        let mut found = Choice { cost: f64::INFINITY, d: half(0.0), steps: [0; 8], refit: 0.0 };
        for step in 11..16 {
            for nudge in [0.97, 1.0, 1.03] {
                let d = half(top * nudge * 4.0 / (0.5 + step as f32));
                let choice = choose(&envelopes, &best, d);
                if choice.cost < found.cost {
                    found = choice;
                }
            }
        }
        for _ in 0..3 {
            let choice = choose(&envelopes, &best, half(found.refit));
            if choice.cost >= found.cost {
                break;
            }
            found = choice;
        }

        out[..2].copy_from_slice(&found.d.0);
        for (g, step) in found.steps.into_iter().enumerate() {
            let scale = found.d.1 * (0.5 + step as f32) * 0.25;
            let mut b = (step as u32) << 28;
            let place = GROUPS + 8 * g;
            for l in 0..4 {
                let at = 32 * g + 8 * l;
                let entry = usize::from(envelopes[g][l].at(scale).entry);
                out[place + l] = entry as u8;
                b |= signs(&x[at..at + 8], &w[at..at + 8], entry) << (7 * l);
            }
            out[place + 4..place + 8].copy_from_slice(&b.to_le_bytes());
        }
    }
}

/// A scale for the block and a step for each group.
struct Choice {
    cost: f64,
    d: ([u8; 2], f32),
    steps: [usize; 8],
    /// The best `d` for these steps and their grid entries.
    refit: f32,
}

/// The best step of every group around its own best scale.
#[inline(always)]
fn choose(envelopes: &[[Envelope; 4]; 8], best: &[f32; 8], d: ([u8; 2], f32)) -> Choice {
    let mut choice = Choice { cost: 0.0, d, steps: [0; 8], refit: 0.0 };
    let (mut cn, mut cc) = (0f64, 0f64);
    for g in 0..8 {
        let middle = if d.1 > 0.0 { (best[g] * 4.0 / d.1) as usize } else { 0 };
        let mut least = (f32::INFINITY, 0, 0.0, 0.0);
        for step in middle.saturating_sub(1).min(14)..=(middle + 1).min(15) {
            let factor = (0.5 + step as f32) * 0.25;
            let scale = d.1 * factor;
            let (n, c) = sums(&envelopes[g], scale);
            let cost = scale * (scale * n - 2.0 * c);
            if cost < least.0 {
                least = (cost, step, factor * factor * n, factor * c);
            }
        }
        choice.cost += f64::from(least.0);
        choice.steps[g] = least.1;
        cn += f64::from(least.2);
        cc += f64::from(least.3);
    }
    choice.refit = if cn > 0.0 { (cc / cn) as f32 } else { 0.0 };
    choice
}

/// `N` and `C` of a group at a scale.
#[inline(always)]
fn sums(runs: &[Envelope; 4], scale: f32) -> (f32, f32) {
    let mut sums = (0.0, 0.0);
    for run in runs {
        let line = run.at(scale);
        sums.0 += line.n;
        sums.1 += line.c;
    }
    sums
}

/// The scale at which a group costs least.
#[inline(always)]
fn best_scale(runs: &[Envelope; 4], (low, high): (f32, f32)) -> f32 {
    let mut best = (0f32, low);
    let mut scale = low;
    while scale < high {
        let (n, c) = sums(runs, scale);
        // The parabola's own lowest point; where that is on other segments, it is only better.
        let here = if n > 0.0 { (c / n).clamp(low, high) } else { scale };
        let (n, c) = sums(runs, here);
        let cost = here * (here * n - 2.0 * c);
        if cost < best.0 {
            best = (cost, here);
        }
        scale *= 1.12;
    }
    best.1
}

/// The lower envelope of a run's 256 lines, between two scales.
#[inline(always)]
fn envelope(x: &[f32; 8], w: &[f32; 8], (low, high): (f32, f32), out: &mut Envelope) {
    let (mut n, mut c, mut least) = ([0f32; 256], [0f32; 256], [f32::INFINITY; 256]);
    let odd = x.iter().filter(|x| **x < 0.0).count() % 2 == 1;
    for j in 0..8 {
        let (w, wa) = (w[j], w[j] * x[j].abs());
        let magnitudes = &MAGNITUDES[j];
        for g in 0..256 {
            let m = magnitudes[g];
            let part = wa * m;
            n[g] += w * m * m;
            c[g] += part;
            least[g] = if part < least[g] { part } else { least[g] };
        }
    }
    if odd {
        for g in 0..256 {
            c[g] -= 2.0 * least[g];
        }
    }

    let mut at = lowest(|g| low * n[g] - 2.0 * c[g]);
    let mut from = 0.0;
    out.len = 0;
    loop {
        out.lines[out.len] = Line { n: n[at], c: c[at], entry: at as u8, from };
        out.len += 1;
        if out.len == SEGMENTS {
            return;
        }
        // The line that crosses this one next: of those that rise less, the nearest.
        let (n0, c0) = (n[at], c[at]);
        let crossing = |g: usize| {
            let slower = n0 - n[g];
            let crossing = 2.0 * (c0 - c[g]) / slower;
            if slower > 0.0 {
                crossing
            } else {
                f32::INFINITY
            }
        };
        at = lowest(crossing);
        from = crossing(at);
        if from > high {
            return;
        }
    }
}

/// The first entry at which `value` is least.
#[inline(always)]
fn lowest(value: impl Fn(usize) -> f32) -> usize {
    let mut values = [0f32; 256];
    for (g, v) in values.iter_mut().enumerate() {
        *v = value(g);
    }
    let mut lanes = [f32::INFINITY; 32];
    for row in values.as_chunks::<32>().0 {
        for (least, v) in lanes.iter_mut().zip(row) {
            *least = if *v < *least { *v } else { *least };
        }
    }
    let least = lanes.iter().fold(f32::INFINITY, |least, v| if *v < least { *v } else { least });
    for (i, row) in values.as_chunks::<16>().0.iter().enumerate() {
        // All sixteen at once: most rows do not have it.
        if row.iter().fold(false, |found, v| found | (*v == least)) {
            return 16 * i + row.iter().position(|v| *v == least).unwrap_or(0);
        }
    }
    0
}

/// The seven sign bits of a run; where the eighth would make the number of negations odd, the value
/// whose wrong sign costs least is turned.
#[inline(always)]
fn signs(x: &[f32], w: &[f32], entry: usize) -> u32 {
    let mut signs = 0u32;
    let mut least = (f32::INFINITY, 0);
    for (j, (x, w)) in x.iter().zip(w).enumerate() {
        signs |= u32::from(*x < 0.0) << j;
        let cost = w * x.abs() * MAGNITUDES[j][entry];
        if cost < least.0 {
            least = (cost, j);
        }
    }
    if signs.count_ones() % 2 == 1 {
        signs ^= 1 << least.1;
    }
    signs & 127
}

#[cfg(test)]
mod tests {
    use super::super::super::iq2_xxs::{GRID, SIGNS};
    use super::*;
    use rand::{rngs::StdRng, Rng, SeedableRng};

    /// The least cost over all grid entries and all sign patterns that the format has.
    fn exhaustive(x: &[f32; 8], w: &[f32; 8], scale: f32) -> f64 {
        let mut least = f64::INFINITY;
        for magnitudes in GRID.map(u64::to_le_bytes) {
            for signs in SIGNS {
                let term = |j: usize| {
                    let y = scale * f32::from(magnitudes[j]);
                    let y = if signs >> j & 1 == 1 { -y } else { y };
                    f64::from(w[j]) * f64::from(x[j] - y).powi(2)
                };
                least = least.min((0..8).map(term).sum());
            }
        }
        least
    }

    #[test]
    fn envelopes_have_the_best_entry_and_signs_of_all() {
        let mut rng = StdRng::seed_from_u64(2);
        for _ in 0..60 {
            let x: [f32; 8] = std::array::from_fn(|_| rng.random_range(-1f32..1.0).powi(3));
            let w = std::array::from_fn(|_| rng.random_range(0f32..2.0).powi(2) + 1e-3);
            let largest = x.iter().fold(0f32, |most, x| most.max(x.abs()));
            let range = (largest / 64.0, largest / 8.0);
            let mut runs = Envelope { lines: [Line::default(); SEGMENTS], len: 1 };
            envelope(&x, &w, range, &mut runs);
            assert!(runs.len < SEGMENTS, "room for every segment");
            for _ in 0..5 {
                let scale = rng.random_range(range.0..range.1);
                let line = runs.at(scale);
                let constant: f64 = x.iter().zip(&w).map(|(x, w)| f64::from(w * x * x)).sum();
                let cost = constant + f64::from(scale * (scale * line.n - 2.0 * line.c));
                let least = exhaustive(&x, &w, scale);
                assert!((cost - least).abs() < 1e-4 * constant, "{cost} is not {least}");
                // And the signs that are written cost what the envelope said.
                let entry = usize::from(line.entry);
                let signs = SIGNS[signs(&x, &w, entry) as usize];
                let term = |j: usize| {
                    let y = scale * MAGNITUDES[j][entry];
                    let y = if signs >> j & 1 == 1 { -y } else { y };
                    f64::from(w[j]) * f64::from(x[j] - y).powi(2)
                };
                let written: f64 = (0..8).map(term).sum();
                assert!((written - least).abs() < 1e-4 * constant, "{written} is not {least}");
            }
        }
    }
}
