//! Ops of a few launches: embedding, norm, rope, rounding, hyper-connections, router.

use bytes::Bytes;
use candle_core::{Device, Tensor};
use candle_ds4_ops::{
    embed, hadamard_fp4_round_trip, hyper_collapse, hyper_enter, hyper_expand, hyper_head_mix,
    hyper_leave, hyper_mix, kv_round_trip, matmul, rms_norm, rms_norm_over, rope, rope_normed,
    route, Choice, Due, Entrance, Format, Given, Matrix, MixParams, RopeTable, Turn, Workspace,
    Yarn,
};
use rand::Rng;

use crate::{compare, normal, random, refused};

/// A matrix of random values in a format.
pub fn matrix(rng: &mut impl Rng, format: Format, rows: usize, cols: usize) -> Matrix {
    let values: Vec<f32> = (0..rows * cols).map(|_| rng.random_range(-1.0..1.0)).collect();
    let mut bytes = vec![0; rows * format.row_bytes(cols).unwrap()];
    format.encode(&values, None, &mut bytes).unwrap();
    Matrix::from_host(format, 1, rows, cols, Bytes::from(bytes)).unwrap()
}

#[test]
fn embedding() {
    let mut rng = random();
    for format in [Format::F32, Format::F16, Format::BF16, Format::Q8_0] {
        for (vocab, hidden, tokens) in [(37, 96, 5), (19, 320, 1)] {
            let table = matrix(&mut rng, format, vocab, hidden);
            let ids: Vec<u32> = (0..tokens).map(|_| rng.random_range(0..vocab as u32)).collect();
            let ids = Tensor::from_vec(ids, tokens, &Device::Cpu).unwrap();
            compare(&format!("{format}"), 0.0, |place, ws| {
                Ok(vec![embed(&place.tensor(&ids)?, &place.matrix(&table)?, 4, ws)?])
            });
        }
    }
    let table = matrix(&mut rng, Format::Q2K, 3, 256);
    let ids = Tensor::new(&[1u32], &Device::Cpu).unwrap();
    refused("Q2_K", |place, ws| {
        Ok(vec![embed(&place.tensor(&ids)?, &place.matrix(&table)?, 4, ws)?])
    });
}

#[test]
fn norms() {
    let mut rng = random();
    for shape in [vec![1, 4096], vec![3, 7, 512], vec![2, 33], vec![1, 1], vec![0, 64]] {
        let n = shape[shape.len() - 1];
        let (x, weight) = (normal(&mut rng, &shape), normal(&mut rng, &[n]));
        for weighted in [true, false] {
            compare(&format!("{shape:?}"), 1e-6, |place, ws| {
                let weight = place.tensor(&weight)?;
                let weight = weighted.then_some(&weight);
                let x = place.tensor(&x)?;
                let apart = rms_norm(&x, weight, 1e-6, ws)?;
                Ok(vec![apart, rms_norm_over(x, weight, 1e-6, ws)?])
            });
        }
    }
}

#[test]
fn rotation_at_any_position() {
    let mut rng = random();
    let tables = [RopeTable::yarn(160_000.0, 64, &Yarn::default()), RopeTable::plain(10_000.0, 12)];
    for table in &tables {
        for shape in [vec![3, 64, 512], vec![4, 128], vec![1, 11, 70], vec![0, 64]] {
            let x = normal(&mut rng, &shape);
            let positions: Vec<u32> = (0..shape[0])
                .map(|_| rng.random_range(0..1u32 << 20) >> rng.random_range(0..19))
                .collect();
            let positions = Tensor::from_vec(positions, shape[0], &Device::Cpu).unwrap();
            for turn in [Turn::Forward, Turn::Inverse] {
                compare(&format!("{shape:?}"), 1e-6, |place, _| {
                    let x = place.tensor(&x)?;
                    rope(&x, table, &place.tensor(&positions)?, turn)?;
                    Ok(vec![x])
                });
            }
        }
    }
    for table in &tables {
        for shape in [[3, 64, 512], [1, 11, 70], [5, 3, 64]] {
            // Heads of other lengths than one.
            let x = (normal(&mut rng, &shape) * 7.0).unwrap();
            let positions: Vec<u32> =
                (0..shape[0]).map(|_| rng.random_range(0..1u32 << 20)).collect();
            let positions = Tensor::from_vec(positions, shape[0], &Device::Cpu).unwrap();
            compare(&format!("normed {shape:?}"), 1e-6, |place, ws| {
                let (x, positions) = (place.tensor(&x)?, place.tensor(&positions)?);
                let apart = rms_norm(&x, None, 1e-6, ws)?;
                rope(&apart, table, &positions, Turn::Forward)?;
                rope_normed(&x, 1e-6, table, &positions)?;
                Ok(vec![apart, x])
            });
        }
    }
    let (x, positions) = (normal(&mut rng, &[1, 256]), Tensor::new(&[1u32], &Device::Cpu).unwrap());
    refused("130 channels", |place, _| {
        let x = place.tensor(&x)?;
        rope(&x, &RopeTable::plain(1e4, 130), &place.tensor(&positions)?, Turn::Forward)?;
        Ok(vec![])
    });
}

/// The rounding must be the reference's to the bit; Hadamard's butterflies too.
#[test]
fn rounding_is_exact() {
    let mut rng = random();
    for (rows, dim, channels) in [(3, 512, 448), (1, 512, 512), (5, 80, 48), (2, 20, 3), (1, 8, 0)]
    {
        let magnitudes = normal(&mut rng, &[rows, dim]).exp().unwrap();
        let x = (normal(&mut rng, &[rows, dim]) * magnitudes).unwrap();
        compare(&format!("{channels} of {dim}"), 0.0, |place, _| {
            let x = place.tensor(&x)?;
            kv_round_trip(&x, channels)?;
            Ok(vec![x])
        });
    }
    for (rows, dim) in [(5, 128), (1, 64), (3, 16), (2, 1), (2, 1024)] {
        let x = normal(&mut rng, &[rows, dim]);
        compare(&format!("{dim}"), 0.0, |place, _| {
            let x = place.tensor(&x)?;
            hadamard_fp4_round_trip(&x)?;
            Ok(vec![x])
        });
    }
}

#[test]
fn hyper_connections() {
    let mut rng = random();
    let params = MixParams { streams: 4, sinkhorn_iterations: 20, eps: 1e-6, norm_eps: 1e-6 };
    for (tokens, hidden) in [(1, 4096), (3, 256), (2, 77), (0, 64)] {
        let state = normal(&mut rng, &[tokens, 4, hidden]);
        let (raw, base) = (normal(&mut rng, &[tokens, 24]), normal(&mut rng, &[24]));
        let scale = normal(&mut rng, &[3]);
        let y = normal(&mut rng, &[tokens, hidden]);
        compare(&format!("{tokens} of {hidden}"), 3e-6, |place, ws| {
            let state = place.tensor(&state)?;
            let (raw, base) = (place.tensor(&raw)?, place.tensor(&base)?);
            let scale = place.tensor(&scale)?;
            let mix = hyper_mix(&state, &raw, &scale, &base, params, ws)?;
            let x = hyper_collapse(&state, &mix, ws)?;
            hyper_expand(&state, &place.tensor(&y)?, &mix)?;
            let of_head = raw.narrow(1, 0, 4)?.contiguous()?;
            let (scale, base) = (scale.narrow(0, 0, 1)?, base.narrow(0, 0, 4)?);
            let head = hyper_head_mix(&state, &of_head, &scale, &base, params, ws)?;
            Ok(vec![mix, x, state, head])
        });
    }
    let state = normal(&mut rng, &[1, 2, 8]);
    refused("2 streams", |place, ws| {
        let state = place.tensor(&state)?;
        Ok(vec![hyper_collapse(&state, &state.narrow(1, 0, 1)?.reshape((1, 8))?, ws)?])
    });
}

#[test]
fn ways_into_sub_layers() {
    let mut rng = random();
    let params = MixParams { streams: 4, sinkhorn_iterations: 20, eps: 1e-6, norm_eps: 1e-6 };
    for (tokens, hidden) in [(1, 4096), (3, 1024), (19, 512), (70, 512), (2, 96)] {
        let state = normal(&mut rng, &[tokens, 4, hidden]);
        let [layer, head] = [24, 4].map(|rows| matrix(&mut rng, Format::F16, rows, 4 * hidden));
        let base = normal(&mut rng, &[24]);
        // Gates of large negative logits would be small, and their error as large as they are.
        let (flat, ws) = (state.flatten_from(1).unwrap(), Workspace::new(&Device::Cpu));
        let raw = matmul(&flat, &layer, &ws).unwrap().flatten_all().unwrap();
        let most = raw.abs().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        let scale = (normal(&mut rng, &[3]) / f64::from(most)).unwrap();
        let (norm, y) = (normal(&mut rng, &[hidden]), normal(&mut rng, &[tokens, hidden]));
        let due = normal(&mut rng, &[tokens, 24]);
        let narrow = normal(&mut rng, &[tokens, 128]);
        let output = matrix(&mut rng, Format::F16, hidden, 128);
        // A projection of that many random products, in another order; of many tokens by halves.
        let tolerance = if tokens < 33 || hidden == 96 { 2e-5 } else { 8e-3 };
        compare(&format!("{tokens} of {hidden}"), tolerance, |place, ws| {
            let state = place.tensor(&state)?;
            let (layer, head) = (place.matrix(&layer)?, place.matrix(&head)?);
            let [base, scale, norm, y, mix] =
                [&base, &scale, &norm, &y, &due].map(|t| place.tensor(t));
            let (base, scale, norm) = (base?, scale?, norm?);
            let due = Due { given: y?.into(), mix: mix? };
            let entrance = Entrance {
                projection: &layer,
                scale: &scale,
                base: &base,
                norm: &norm,
                norm_eps: 1e-6,
                params,
            };
            let (first, mix) = hyper_enter(&state, None, entrance, ws)?;
            let (second, second_mix) = hyper_enter(&state, Some(&due), entrance, ws)?;
            let of_head = Entrance {
                projection: &head,
                scale: &scale.narrow(0, 0, 1)?,
                base: &base.narrow(0, 0, 4)?,
                ..entrance
            };
            let given = Given::Product { x: place.tensor(&narrow)?, w: place.matrix(&output)? };
            let after = Due { given, mix: second_mix.clone() };
            let (third, third_mix) = hyper_enter(&state, Some(&after), entrance, ws)?;
            let after = Due { given: after.given, mix: third_mix.clone() };
            let last = hyper_leave(&state, Some(&after), of_head, ws)?;
            Ok(vec![first, mix, second, second_mix, third, third_mix, last, state])
        });
    }
}

#[test]
fn routes() {
    let mut rng = random();
    for (tokens, experts, k) in [(5, 256, 6), (1, 4, 2), (9, 70, 8), (3, 1, 1), (2, 33, 32)] {
        let logits = (normal(&mut rng, &[tokens, experts]) * 3.0).unwrap();
        let bias = normal(&mut rng, &[experts]);
        for biased in [true, false] {
            compare(&format!("{k} of {experts}"), 2e-6, |place, ws| {
                let bias = place.tensor(&bias)?;
                let choice = Choice::TopK { k, bias: biased.then_some(&bias) };
                let (ids, weights) = route(&place.tensor(&logits)?, choice, 1.5, ws)?;
                Ok(vec![ids, weights])
            });
        }
        let table: Vec<u32> = (0..11 * k).map(|_| rng.random_range(0..experts as u32)).collect();
        let table = Tensor::from_vec(table, (11, k), &Device::Cpu).unwrap();
        let ids: Vec<u32> = (0..tokens).map(|_| rng.random_range(0..11)).collect();
        let ids = Tensor::from_vec(ids, tokens, &Device::Cpu).unwrap();
        compare(&format!("hash, {k} of {experts}"), 2e-6, |place, ws| {
            let (table, tokens) = (place.tensor(&table)?, place.tensor(&ids)?);
            let choice = Choice::Hash { table: &table, tokens: &tokens };
            let (ids, weights) = route(&place.tensor(&logits)?, choice, 1.5, ws)?;
            Ok(vec![ids, weights])
        });
    }
}

/// Equal scores in every lane and across lanes: the lower expert first.
#[test]
fn ties_go_to_the_lower_expert() {
    let logits: Vec<f32> = (0..200).map(|i| (i % 3) as f32).collect();
    let logits = Tensor::from_vec(logits, (1, 200), &Device::Cpu).unwrap();
    compare("ties", 2e-6, |place, ws| {
        let choice = Choice::TopK { k: 30, bias: None };
        let (ids, weights) = route(&place.tensor(&logits)?, choice, 1.0, ws)?;
        Ok(vec![ids, weights])
    });
}
