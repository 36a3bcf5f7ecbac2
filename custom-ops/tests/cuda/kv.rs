//! Rings, pages and the compressor, for batches of any cut.

use candle_core::{Result, Tensor};
use candle_ds4_ops::{
    append_rows, pool, settle_and_project, write_rings, Compression, Finish, Format, PoolState,
    Pooling, Ragged, Ring, RopeTable, Rounding, Rows, Settle, Workspace, Yarn,
};

use crate::small::matrix;
use crate::{compare, normal, random, Place};

/// Sequences of a batch as `(tokens before, tokens in it)`, and how they go on.
const BATCHES: [&[(usize, usize)]; 4] =
    [&[(0, 9), (3, 1), (5, 30)], &[(0, 1)], &[(127, 1), (128, 129), (7, 8), (0, 4)], &[(250, 7)]];

struct Sequences {
    rings: Vec<Ring>,
    states: Vec<PoolState>,
    rows: Vec<Rows>,
}

/// Sequences with a past of the right lengths, all random but equal in every place.
fn sequences(
    place: &Place,
    past: &Tensor,
    ratio: usize,
    dim: usize,
    width: usize,
    of: &[(usize, usize)],
) -> Result<Sequences> {
    let device = place.device();
    let mut all = Sequences { rings: Vec::new(), states: Vec::new(), rows: Vec::new() };
    for (index, &(before, _)) in of.iter().enumerate() {
        let ring = |slots: usize, width: usize| -> Result<Ring> {
            let ring = Ring::new(slots, width, &device)?;
            let source = past.narrow(0, index, before)?.narrow(1, 0, width)?.contiguous()?;
            let batch = Ragged::new(&[(0, before)], &device)?;
            write_rings(&[(vec![&ring], &source)], &batch)?;
            Ok(ring)
        };
        all.rings.push(ring(13, dim)?);
        all.states.push(PoolState {
            values: ring(2 * ratio + 8, width)?,
            gates: ring(2 * ratio + 8, width)?,
        });
        let mut rows = Rows::new(ratio, dim, &device);
        let batch = Ragged::new(&[(0, before)], &device)?;
        let source = past.narrow(0, 0, before / ratio)?.narrow(1, 0, dim)?.contiguous()?;
        append_rows(vec![&mut rows], &source, &batch, ratio)?;
        all.rows.push(rows);
    }
    Ok(all)
}

fn contents(all: &Sequences) -> Result<Vec<Tensor>> {
    let mut contents = Vec::new();
    for ring in &all.rings {
        contents.push(ring.data().clone());
    }
    for rows in &all.rows {
        for (index, page) in rows.pages().iter().enumerate() {
            let used = (rows.len() - index * rows.page_rows()).min(rows.page_rows());
            contents.push(page.narrow(0, 0, used)?.contiguous()?);
        }
    }
    Ok(contents)
}

#[test]
fn windows_are_pooled_and_kept_like_on_the_cpu() {
    let mut rng = random();
    for (ratio, overlap, dim) in [(4, true, 24), (128, false, 160), (3, true, 130)] {
        let pooling = Pooling { ratio, overlap };
        let width = pooling.width(dim);
        for of in BATCHES {
            let tokens: usize = of.iter().map(|(_, len)| len).sum();
            let past = normal(&mut rng, &[300, width.max(dim)]);
            let bias = normal(&mut rng, &[ratio, width]);
            let (values, gates) =
                (normal(&mut rng, &[tokens, width]), normal(&mut rng, &[tokens, width]));
            compare(&format!("ratio {ratio}, {of:?}"), 2e-6, |place, ws| {
                let past = place.tensor(&past)?;
                let mut all = sequences(place, &past, ratio, dim, width, of)?;
                let batch = Ragged::new(of, &place.device())?;
                step(place, ws, &mut all, &batch, pooling, [&values, &gates, &bias])
            });
        }
    }
}

/// One token of each sequence, in a batch that keeps its shape while positions move on.
#[test]
fn a_fixed_batch_does_what_plain_ones_do() {
    let mut rng = random();
    let of = [(125, 1), (3, 1), (0, 1)];
    for (ratio, overlap, dim) in [(4, true, 24), (128, false, 32)] {
        let pooling = Pooling { ratio, overlap };
        let width = pooling.width(dim);
        let past = normal(&mut rng, &[300, width]);
        let bias = normal(&mut rng, &[ratio, width]);
        let steps: Vec<[Tensor; 2]> = (0..9)
            .map(|_| [normal(&mut rng, &[3, width]), normal(&mut rng, &[3, width])])
            .collect();
        // On the CPU the batches are plain: what the fixed one is compared with.
        compare(&format!("ratio {ratio}"), 2e-6, |place, ws| {
            let past = place.tensor(&past)?;
            let mut all = sequences(place, &past, ratio, dim, width, &of)?;
            let mut fixed = Ragged::fixed(3, 512, &place.device())?;
            for (at, [values, gates]) in steps.iter().enumerate() {
                let starts = of.map(|(before, _)| before + at);
                let tensors = [values, gates, &bias];
                if matches!(place, Place::Cpu) {
                    let plain = Ragged::new(&starts.map(|s| (s, 1)), &place.device())?;
                    step(place, ws, &mut all, &plain, pooling, tensors)?;
                } else {
                    fixed.set_starts(&starts)?;
                    step(place, ws, &mut all, &fixed, pooling, tensors)?;
                }
            }
            contents(&all)
        });
    }
}

/// What a compressor does with a batch; pooled rows and all state.
fn step(
    place: &Place,
    ws: &Workspace,
    all: &mut Sequences,
    batch: &Ragged,
    pooling: Pooling,
    [values, gates, bias]: [&Tensor; 3],
) -> Result<Vec<Tensor>> {
    let _frame = ws.frame();
    let (values, gates) = (place.tensor(values)?, place.tensor(gates)?);
    let states: Vec<&PoolState> = all.states.iter().collect();
    let pooled = pool(&values, &gates, &place.tensor(bias)?, &states, batch, pooling, ws)?;
    write_rings(
        &[
            (states.iter().map(|s| &s.values).collect(), &values),
            (states.iter().map(|s| &s.gates).collect(), &gates),
        ],
        batch,
    )?;
    let dim = all.rings[0].data().dim(1)?;
    let of_ring = values.narrow(1, 0, dim)?.contiguous()?;
    write_rings(&[(all.rings.iter().collect(), &of_ring)], batch)?;
    append_rows(all.rows.iter_mut().collect(), &pooled, batch, pooling.ratio)?;
    let mut outputs = contents(all)?;
    outputs.push(pooled);
    Ok(outputs)
}

/// A page shared with a snapshot is copied before kernels write to it, and they find the copy.
#[test]
fn a_snapshot_keeps_its_rows() {
    let mut rng = random();
    let source = normal(&mut rng, &[40, 6]);
    compare("snapshot", 0.0, |place, _| {
        let source = place.tensor(&source)?;
        let mut rows = Rows::new(64, 6, &place.device());
        let append = |rows: &mut Rows, from: usize, count: usize| -> Result<()> {
            let batch = Ragged::new(&[(64 * rows.len(), 64 * count)], &place.device())?;
            append_rows(vec![rows], &source.narrow(0, from, count)?.contiguous()?, &batch, 64)
        };
        append(&mut rows, 0, 20)?;
        let snapshot = rows.clone();
        rows.truncate(17);
        append(&mut rows, 20, 20)?;
        let pages =
            |rows: &Rows| rows.pages().iter().map(|page| (**page).clone()).collect::<Vec<_>>();
        let mut all: Vec<Tensor> = pages(&snapshot)[..1].to_vec();
        all.extend(pages(&rows).into_iter().take(2));
        Ok(all)
    });
}

/// What one new token of each sequence leaves: a compressor's rows and an indexer's keys beside its own. The
/// products of a single one's latent are made meanwhile.
#[test]
fn tokens_settle_in_one_launch_as_in_many() {
    settles(&[(127, 1), (3, 1), (6, 1), (0, 1), (255, 1)]);
    settles(&[(127, 1)]);
    settles(&[(6, 1)]);
}

fn settles(of: &[(usize, usize)]) {
    let mut rng = random();
    let tokens = of.len();
    let rope = RopeTable::yarn(160_000.0, 64, &Yarn::default());
    let fp8 = Rounding::Fp8 { nope_dim: 448 };
    const EXACT: f64 = 5e-6;
    // A value next to the middle of two codes can go either way.
    for (pooling, rounding, of_rows, keys_rounding, of_keys) in [
        (Pooling { ratio: 4, overlap: true }, Rounding::Off, EXACT, Rounding::Off, EXACT),
        (Pooling { ratio: 128, overlap: false }, Rounding::Off, EXACT, Rounding::Off, EXACT),
        (Pooling { ratio: 4, overlap: true }, fp8, 0.13, Rounding::HadamardFp4, 0.6),
    ] {
        let [width, keys_width] = [512, 128].map(|dim| pooling.width(dim));
        let past = normal(&mut rng, &[300, width]);
        let (bias, keys_bias) = (
            normal(&mut rng, &[pooling.ratio, width]),
            normal(&mut rng, &[pooling.ratio, keys_width]),
        );
        let inputs = [1024, 512, width, width, keys_width, keys_width]
            .map(|width| normal(&mut rng, &[tokens, width]));
        let of_latent = matrix(&mut rng, Format::F16, 96, 1024);
        let norms = [1024, 512, 128].map(|dim| normal(&mut rng, &[dim]));
        let run = |place: &Place, ws: &Workspace| -> Result<[Vec<Tensor>; 4]> {
            let past = place.tensor(&past)?;
            let mut all = sequences(place, &past, pooling.ratio, 512, width, of)?;
            let mut keys = sequences(place, &past, pooling.ratio, 128, keys_width, of)?;
            for sequences in [&all, &keys] {
                for (index, &(before, _)) in of.iter().enumerate() {
                    let state = &sequences.states[index];
                    for ring in [&state.values, &state.gates] {
                        let width = ring.data().dim(1)?;
                        let rows =
                            past.narrow(0, index, before)?.narrow(1, 0, width)?.contiguous()?;
                        let batch = Ragged::new(&[(0, before)], &place.device())?;
                        write_rings(&[(vec![ring], &rows)], &batch)?;
                    }
                }
            }
            let on = |tensors: &[Tensor]| {
                tensors.iter().map(|t| place.tensor(t)).collect::<Result<Vec<_>>>()
            };
            let (inputs, norms) = (on(&inputs)?, on(&norms)?);
            let (bias, keys_bias) = (place.tensor(&bias)?, place.tensor(&keys_bias)?);
            let finish = |norm, rounding| Finish { norm, eps: 1e-6, rope: &rope, rounding };
            let Sequences { states, rows, .. } = &mut all;
            let Sequences { states: key_states, rows: key_rows, .. } = &mut keys;
            let compressions = vec![
                Compression {
                    values: &inputs[2],
                    gates: &inputs[3],
                    bias: &bias,
                    pooling,
                    finish: finish(&norms[1], rounding),
                    states: states.iter().collect(),
                    lists: rows.iter_mut().collect(),
                },
                Compression {
                    values: &inputs[4],
                    gates: &inputs[5],
                    bias: &keys_bias,
                    pooling,
                    finish: finish(&norms[2], keys_rounding),
                    states: key_states.iter().collect(),
                    lists: key_rows.iter_mut().collect(),
                },
            ];
            let batch = Ragged::new(of, &place.device())?;
            let settling = Settle {
                latent: &inputs[0],
                latent_norm: (&norms[0], 1e-6),
                kv: &inputs[1],
                finish: finish(&norms[1], rounding),
                compressions,
            };
            let of_latent = place.matrix(&of_latent)?;
            let (products, kv) =
                settle_and_project(settling, &[&of_latent, &of_latent], &batch, ws)?;
            let mut exact = Vec::new();
            for state in all.states.iter().chain(&keys.states) {
                exact.extend([state.values.data().clone(), state.gates.data().clone()]);
            }
            let mut rows = contents(&all)?;
            rows.push(kv);
            Ok([exact, rows, contents(&keys)?, products])
        };
        let case = format!("{pooling:?}, {rounding:?}");
        compare(&case, EXACT, |place, ws| run(place, ws).map(|[exact, ..]| exact));
        compare(&case, of_rows, |place, ws| run(place, ws).map(|[_, rows, ..]| rows));
        compare(&case, of_keys, |place, ws| run(place, ws).map(|[_, _, keys, _]| keys));
        compare(&case, 1e-4, |place, ws| run(place, ws).map(|[.., products]| products));
    }
}
