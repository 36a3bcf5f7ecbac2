//! The pool against its definition in double precision, and against itself under every cut.

use candle_core::{Device, Result, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{pool, PoolState, Pooling};
use crate::device::Workspace;
use crate::kv::Ring;
use crate::ragged::Ragged;

const DIM: usize = 5;

struct Case {
    pooling: Pooling,
    /// Projections of one sequence, row-major.
    values: Vec<f32>,
    gates: Vec<f32>,
    ape: Vec<f32>,
    width: usize,
    tokens: usize,
}

impl Case {
    fn new(pooling: Pooling, tokens: usize, rng: &mut StdRng) -> Self {
        let width = pooling.width(DIM);
        let mut random = |n: usize, size: f32| -> Vec<f32> {
            (0..n).map(|_| rng.random_range(-size..size)).collect()
        };
        let (values, gates) = (random(tokens * width, 2.0), random(tokens * width, 6.0));
        let ape = random(pooling.ratio * width, 3.0);
        Self { pooling, values, gates, ape, width, tokens }
    }

    fn tensor(&self, values: &[f32]) -> Result<Tensor> {
        Tensor::from_slice(values, (values.len() / self.width, self.width), &Device::Cpu)
    }

    fn state(&self, slots: usize) -> Result<PoolState> {
        let ring = || Ring::new(slots, self.width, &Device::Cpu);
        Ok(PoolState { values: ring()?, gates: ring()? })
    }

    /// All rows by the definition, one channel at a time.
    fn by_definition(&self) -> Vec<Vec<f64>> {
        let Pooling { ratio, overlap } = self.pooling;
        let row = |window: usize| {
            let channel = |c: usize| {
                // Which tokens, and at which column of theirs.
                let own = (window * ratio..(window + 1) * ratio)
                    .map(|t| (t, if overlap { DIM + c } else { c }));
                let before = (overlap && window > 0).then(|| {
                    ((window - 1) * ratio..window * ratio).map(|t| (t, c)).collect::<Vec<_>>()
                });
                let slots: Vec<_> = before.into_iter().flatten().chain(own).collect();
                let weight = |&(t, column): &(usize, usize)| {
                    let bias = self.ape[t % ratio * self.width + column];
                    (f64::from(self.gates[t * self.width + column]) + f64::from(bias)).exp()
                };
                let sum: f64 = slots.iter().map(weight).sum();
                let value =
                    |&(t, column): &(usize, usize)| f64::from(self.values[t * self.width + column]);
                slots.iter().map(|slot| weight(slot) * value(slot)).sum::<f64>() / sum
            };
            (0..DIM).map(channel).collect()
        };
        (0..self.tokens / ratio).map(row).collect()
    }

    /// All rows, the sequence run in pieces of these lengths with a memory of `slots` tokens.
    fn in_pieces(&self, cuts: &[usize], slots: usize) -> Result<Vec<Vec<f32>>> {
        let (state, ws) = (self.state(slots)?, Workspace::new(&Device::Cpu));
        let ape = self.tensor(&self.ape)?;
        let (mut rows, mut start) = (Vec::new(), 0);
        for &len in cuts {
            let part = start * self.width..(start + len) * self.width;
            let values = self.tensor(&self.values[part.clone()])?;
            let gates = self.tensor(&self.gates[part])?;
            let batch = Ragged::new(&[(start, len)], &Device::Cpu)?;
            let out = pool(&values, &gates, &ape, &[&state], &batch, self.pooling, &ws)?;
            rows.extend(out.to_vec2::<f32>()?);
            state.values.write(&values, &batch.spans()[0])?;
            state.gates.write(&gates, &batch.spans()[0])?;
            start += len;
        }
        assert_eq!(start, self.tokens);
        Ok(rows)
    }
}

const POOLINGS: [Pooling; 5] = [
    Pooling { ratio: 4, overlap: true },
    Pooling { ratio: 4, overlap: false },
    Pooling { ratio: 1, overlap: true },
    Pooling { ratio: 16, overlap: false },
    Pooling { ratio: 128, overlap: false },
];

#[test]
fn rows_are_weighted_means_of_their_windows() -> Result<()> {
    let mut rng = StdRng::seed_from_u64(1);
    for pooling in POOLINGS {
        let case = Case::new(pooling, 2 * pooling.ratio + pooling.ratio / 2 + 1, &mut rng);
        let got = case.in_pieces(&[case.tokens], pooling.reach())?;
        let want = case.by_definition();
        assert_eq!(got.len(), want.len(), "{pooling:?}");
        for (window, (got, want)) in got.iter().zip(&want).enumerate() {
            for (got, want) in got.iter().zip(want) {
                let off = (f64::from(*got) - want).abs();
                assert!(
                    off < 2e-6 * want.abs().max(1.0),
                    "{pooling:?}, row {window}: {got}, {want}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn the_first_window_has_none_before_it() -> Result<()> {
    let pooling = Pooling { ratio: 4, overlap: true };
    let mut case = Case::new(pooling, 8, &mut StdRng::seed_from_u64(2));
    let rows = case.in_pieces(&[8], pooling.reach())?;
    // The first halves of the first window's tokens serve the second row only.
    for token in 0..4 {
        for c in 0..DIM {
            case.values[token * case.width + c] += 100.0;
            case.gates[token * case.width + c] += 1.0;
        }
    }
    let other = case.in_pieces(&[8], pooling.reach())?;
    assert_eq!(other[0], rows[0]);
    assert!(other[1].iter().zip(&rows[1]).all(|(a, b)| a != b));
    // A state that a longer sequence has left does not leak into a new one.
    let (state, ws) = (case.state(8)?, Workspace::new(&Device::Cpu));
    let (values, gates) = (case.tensor(&case.values)?, case.tensor(&case.gates)?);
    let batch = Ragged::new(&[(0, 8)], &Device::Cpu)?;
    state.values.write(&values, &batch.spans()[0])?;
    state.gates.write(&gates, &batch.spans()[0])?;
    let again = pool(&values, &gates, &case.tensor(&case.ape)?, &[&state], &batch, pooling, &ws)?;
    assert_eq!(again.to_vec2::<f32>()?, other);
    Ok(())
}

#[test]
fn every_cut_gives_the_same_rows() -> Result<()> {
    let mut rng = StdRng::seed_from_u64(3);
    for pooling in POOLINGS {
        let tokens = 3 * pooling.ratio + 2;
        let case = Case::new(pooling, tokens, &mut rng);
        let whole = case.in_pieces(&[tokens], pooling.reach())?;
        for slots in [pooling.reach(), pooling.reach() + 8] {
            assert_eq!(case.in_pieces(&vec![1; tokens], slots)?, whole, "{pooling:?}, one by one");
            for cut in 1..tokens {
                let rows = case.in_pieces(&[cut, tokens - cut], slots)?;
                assert_eq!(rows, whole, "{pooling:?} cut at {cut}, {slots} slots");
            }
        }
    }
    Ok(())
}

#[test]
fn sequences_of_a_batch_do_not_mix() -> Result<()> {
    let pooling = Pooling { ratio: 4, overlap: true };
    let mut rng = StdRng::seed_from_u64(4);
    let ws = Workspace::new(&Device::Cpu);
    let (a, mut b) = (Case::new(pooling, 13, &mut rng), Case::new(pooling, 9, &mut rng));
    b.ape.clone_from(&a.ape);
    let states = [a.state(8)?, b.state(8)?];
    let mut got = [Vec::new(), Vec::new()];
    // (start, length) of each sequence in each step; some end no window.
    for step in [[(0, 6), (0, 1)], [(6, 1), (1, 6)], [(7, 6), (7, 2)]] {
        let batch = Ragged::new(&step, &Device::Cpu)?;
        let joined = |of: fn(&Case) -> &[f32]| {
            let mut all = Vec::new();
            for (case, (start, len)) in [&a, &b].into_iter().zip(step) {
                all.extend_from_slice(&of(case)[start * a.width..(start + len) * a.width]);
            }
            a.tensor(&all)
        };
        let (values, gates) = (joined(|case| &case.values)?, joined(|case| &case.gates)?);
        let refs: Vec<_> = states.iter().collect();
        let out = pool(&values, &gates, &a.tensor(&a.ape)?, &refs, &batch, pooling, &ws)?;
        let mut rows = out.to_vec2::<f32>()?.into_iter();
        for ((span, state), got) in batch.spans().iter().zip(&states).zip(&mut got) {
            got.extend(rows.by_ref().take(span.windows(4).len()));
            state.values.write(&values, span)?;
            state.gates.write(&gates, span)?;
        }
        assert_eq!(rows.next(), None);
    }
    assert_eq!(got, [a.in_pieces(&[13], 8)?, b.in_pieces(&[9], 8)?]);
    Ok(())
}

#[test]
fn shapes_that_do_not_fit_are_refused() -> Result<()> {
    let pooling = Pooling { ratio: 4, overlap: true };
    let case = Case::new(pooling, 8, &mut StdRng::seed_from_u64(5));
    let (values, ape) = (case.tensor(&case.values)?, case.tensor(&case.ape)?);
    let (state, small) = (case.state(8)?, case.state(7)?);
    let ws = Workspace::new(&Device::Cpu);
    let batch = Ragged::new(&[(0, 8)], &Device::Cpu)?;
    let refused = |gates: &Tensor, ape: &Tensor, states: &[&PoolState]| {
        pool(&values, gates, ape, states, &batch, pooling, &ws).unwrap_err().to_string()
    };
    assert!(refused(&values.narrow(0, 0, 7)?, &ape, &[&state]).contains("gates"));
    assert!(refused(&values, &values, &[&state]).contains("bias"));
    assert!(refused(&values, &ape, &[]).contains("0 states"));
    assert!(refused(&values, &ape, &[&small]).contains("7 tokens, 8 needed"));
    let none = Pooling { ratio: 0, overlap: true };
    let error = pool(&values, &values, &ape, &[&state], &batch, none, &ws).unwrap_err();
    assert!(error.to_string().starts_with("pool: ratio 0"), "{error}");
    Ok(())
}
