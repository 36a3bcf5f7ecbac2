//! What works on rows: norm, rotation, roundings, hyper-connections, the compressor, rings.

use candle_core::{Device, Result, Tensor};
use rand::Rng;

use super::{assert_close, floats, matrix, places, rng};
use crate::device::metal::record;
use crate::{
    hadamard_fp4_round_trip, hyper_collapse, hyper_enter, hyper_expand, hyper_head_mix,
    hyper_leave, hyper_mix, kv_round_trip, matmul, pool, rms_norm, rope, Due, Entrance, Format,
    Given, Matrix, MixParams, PoolState, Pooling, Ragged, Ring, RopeTable, RowFormat, Rows, Turn,
    Workspace, Yarn,
};

#[test]
fn norms_have_their_weight_or_none() -> Result<()> {
    let mut rng = rng();
    let ws = Workspace::new(&Device::Cpu);
    for n in [1, 33, 512, 1000] {
        let x = floats((3, n), 4.0, &mut rng);
        let weight = floats(n, 2.0, &mut rng);
        for weight in [None, Some(&weight)] {
            let want = rms_norm(&x, weight, 1e-6, &ws)?;
            for place in places() {
                let (x, weight) = (place.tensor(&x), weight.map(|w| place.tensor(w)));
                let got = place.run(|ws| rms_norm(&x, weight.as_ref(), 1e-6, ws));
                assert_close(&format!("{n} values, {place}"), &got, &want, 2e-6);
            }
        }
    }
    Ok(())
}

#[test]
fn rotations_are_right_a_million_tokens_in() -> Result<()> {
    let mut rng = rng();
    for table in [RopeTable::plain(10_000.0, 64), RopeTable::yarn(160_000.0, 64, &Yarn::default())]
    {
        for heads in [1, 11] {
            let x = floats((3, heads, 512), 1.0, &mut rng);
            let positions = Tensor::new(&[0u32, 4097, 1_048_575], &Device::Cpu)?;
            for turn in [Turn::Forward, Turn::Inverse] {
                let want = x.copy()?;
                rope(&want, &table, &positions, turn)?;
                for place in places() {
                    let (got, positions) = (place.tensor(&x.copy()?), place.tensor(&positions));
                    place.run(|_| rope(&got, &table, &positions, turn));
                    assert_close(&format!("{heads} heads, {place}"), &got, &want, 1e-6);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn fp8_and_bf16_round_to_the_same_bits() -> Result<()> {
    let mut rng = rng();
    for (dim, channels) in [(512, 448), (64, 48), (8, 8), (20, 20)] {
        // Rows of very different sizes, one of them zeros.
        let sizes = floats((6, 1), 1.0, &mut rng).powf(9.0)?;
        let x = floats((6, dim), 1.0, &mut rng).broadcast_mul(&sizes)?;
        let x = Tensor::cat(&[&x, &x.narrow(0, 0, 1)?.zeros_like()?], 0)?;
        let want = x.copy()?;
        kv_round_trip(&want, channels)?;
        for place in places() {
            let got = place.tensor(&x.copy()?);
            place.run(|_| kv_round_trip(&got, channels));
            assert_close(&format!("{channels} of {dim}, {place}"), &got, &want, 0.0);
        }
    }
    Ok(())
}

#[test]
fn hadamard_and_fp4_round_to_the_same_bits() -> Result<()> {
    let mut rng = rng();
    for dim in [16, 32, 128] {
        let x = floats((5, dim), 3.0, &mut rng);
        let want = x.copy()?;
        hadamard_fp4_round_trip(&want)?;
        for place in places() {
            let got = place.tensor(&x.copy()?);
            place.run(|_| hadamard_fp4_round_trip(&got));
            assert_close(&format!("{dim}, {place}"), &got, &want, 0.0);
        }
    }
    Ok(())
}

#[test]
fn hyper_connections_mix_collapse_and_expand() -> Result<()> {
    let mut rng = rng();
    let ws = Workspace::new(&Device::Cpu);
    for streams in [1, 2, 4] {
        let params = MixParams { streams, sinkhorn_iterations: 20, eps: 1e-6, norm_eps: 1e-6 };
        let width = params.width();
        let state = floats((3, streams, 300), 2.0, &mut rng);
        let raw = floats((3, width), 9.0, &mut rng);
        let (scale, base) = (floats(3, 1.0, &mut rng), floats(width, 1.0, &mut rng));
        let y = floats((3, 300), 1.0, &mut rng);
        let gates = raw.narrow(1, 0, streams)?.contiguous()?;
        let (one, few) = (scale.narrow(0, 1, 1)?, base.narrow(0, 0, streams)?);

        let mix = hyper_mix(&state, &raw, &scale, &base, params, &ws)?;
        let head = hyper_head_mix(&state, &gates, &one, &few, params, &ws)?;
        let xs = hyper_collapse(&state, &mix, &ws)?;
        let expanded = state.copy()?;
        hyper_expand(&expanded, &y, &mix)?;
        for place in places() {
            let case = format!("{streams} streams, {place}");
            let on = |t: &Tensor| place.tensor(t);
            let (s, r, sc, b) = (on(&state), on(&raw), on(&scale), on(&base));
            let got = place.run(|ws| hyper_mix(&s, &r, &sc, &b, params, ws));
            assert_close(&case, &got, &mix, 2e-5);
            let (g, o, f) = (on(&gates), on(&one), on(&few));
            let got = place.run(|ws| hyper_head_mix(&s, &g, &o, &f, params, ws));
            assert_close(&case, &got, &head, 5e-6);
            let (m, y) = (on(&mix), on(&y));
            let got = place.run(|ws| hyper_collapse(&s, &m, ws));
            assert_close(&case, &got, &xs, 2e-6);
            let got = on(&state.copy()?);
            place.run(|_| hyper_expand(&got, &y, &m));
            assert_close(&case, &got, &expanded, 2e-6);
        }
    }
    Ok(())
}

/// The streams after it, what the sub-layer reads, and the mix.
#[test]
fn few_tokens_enter_a_sub_layer_in_two_launches() -> Result<()> {
    let mut rng = rng();
    let ws = Workspace::new(&Device::Cpu);
    // The projection's format, and that of a last product.
    for (streams, hidden, tokens, format, output) in [
        (4, 4096, 1, Format::F16, Format::Q8_0),
        (4, 520, 3, Format::Q8_0, Format::F16),
        (3, 96, 8, Format::F32, Format::BF16),
        (1, 264, 2, Format::BF16, Format::F32),
        (2, 200, 1, Format::F16, Format::Q2K),
        (4, 96, 9, Format::F16, Format::Q8_0),
    ] {
        let params = MixParams { streams, sinkhorn_iterations: 20, eps: 1e-6, norm_eps: 1e-6 };
        for (width, scales) in [(params.width(), 3), (streams, 1)] {
            let projection = matrix(format, [1, width, streams * hidden], &mut rng);
            let state = floats((tokens, streams, hidden), 2.0, &mut rng);
            let base = floats(width, 0.5, &mut rng);
            // Gates of large negative logits would be small, and their error as large as they are.
            let raw = matmul(&state.flatten_from(1)?, &projection, &ws)?.flatten_all()?;
            let most = raw.abs()?.max(0)?.to_scalar::<f32>()?;
            let scale = floats(scales, 3.0 / most, &mut rng);
            let norm = floats(hidden, 1.0, &mut rng);
            let y = floats((tokens, hidden), 1.0, &mut rng);
            let mix = floats((tokens, params.width()), 1.0, &mut rng);
            let x = floats((tokens, 256), 1.0, &mut rng);
            let output = matrix(output, [1, hidden, 256], &mut rng);
            for given in [None, Some(Given::Value(y)), Some(Given::Product { x, w: output })] {
                let enter = |on: &dyn Fn(&Tensor) -> Tensor,
                             of: &dyn Fn(&Matrix) -> Matrix,
                             ws: &Workspace|
                 -> Result<[Tensor; 3]> {
                    let state = on(&state.copy()?);
                    let given = given.as_ref().map(|given| match given {
                        Given::Value(y) => Given::Value(on(y)),
                        Given::Product { x, w } => Given::Product { x: on(x), w: of(w) },
                        #[cfg(cuda_kernels)]
                        Given::Experts(_) => unreachable!("not of this test"),
                    });
                    let due = given.map(|given| Due { given, mix: on(&mix) });
                    let projection = &of(&projection);
                    let [scale, base, norm] = [&scale, &base, &norm].map(on);
                    let (scale, base, norm) = (&scale, &base, &norm);
                    let entrance =
                        Entrance { projection, scale, base, norm, norm_eps: 1e-5, params };
                    let (xs, mix) = match width == streams {
                        true => {
                            let xs = hyper_leave(&state, due.as_ref(), entrance, ws)?;
                            (xs.copy()?, xs)
                        }
                        false => hyper_enter(&state, due.as_ref(), entrance, ws)?,
                    };
                    Ok([state, xs, mix])
                };
                let want = enter(&Tensor::clone, &Matrix::clone, &ws)?;
                for place in places() {
                    let case = format!(
                        "{tokens} tokens of {streams} x {hidden}, {width}, due: {given:?}, {place}"
                    );
                    let (got, log) = record(|| {
                        place.run(|ws| enter(&|t| place.tensor(t), &|w| place.matrix(w), ws))
                    });
                    // No kernel decodes a format of super-blocks on the way.
                    let first = match &given {
                        Some(Given::Product { w, .. }) if w.format() == Format::Q2K => 2,
                        _ => 1,
                    };
                    assert!(tokens > 8 || log.len() == first + 1, "{case}: {log:?}");
                    for (got, want) in got.iter().zip(&want) {
                        let last = |t: &Tensor| t.flatten_from(1);
                        assert_close(&case, &last(got)?, &last(want)?, 4e-5);
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn windows_are_pooled_out_of_the_batch_and_the_ring() -> Result<()> {
    let mut rng = rng();
    let ws = Workspace::new(&Device::Cpu);
    for (ratio, overlap) in [(4, true), (4, false), (16, false)] {
        let pooling = Pooling { ratio, overlap };
        let dim = 40;
        let width = pooling.width(dim);
        let ape = floats((ratio, width), 2.0, &mut rng);
        // One sequence from its beginning, one in the middle, one whose window does not end.
        let spans = [(0, 9 + ratio), (3 * ratio + 2, 2 * ratio), (2 * ratio, 1)];
        let tokens = spans.iter().map(|s| s.1).sum::<usize>();
        let values = floats((tokens, width), 2.0, &mut rng);
        let gates = floats((tokens, width), 5.0, &mut rng);
        let past: Vec<_> = (0..6).map(|_| floats((50, width), 3.0, &mut rng)).collect();
        let state = |device: &Device, i: usize| -> Result<PoolState> {
            let ring = |past: &Tensor| -> Result<Ring> {
                let ring = Ring::new(pooling.reach() + 8, width, device)?;
                let span = Ragged::new(&[(0, spans[i].0)], &Device::Cpu)?.spans()[0];
                ring.write(&past.to_device(device)?, &span)?;
                Ok(ring)
            };
            Ok(PoolState { values: ring(&past[2 * i])?, gates: ring(&past[2 * i + 1])? })
        };
        let states = |device: &Device| (0..3).map(|i| state(device, i)).collect::<Result<Vec<_>>>();
        let here = states(&Device::Cpu)?;
        let here: Vec<_> = here.iter().collect();
        let batch = Ragged::new(&spans, &Device::Cpu)?;
        let want = pool(&values, &gates, &ape, &here, &batch, pooling, &ws)?;
        for place in places() {
            let there = states(&place.device())?;
            let there: Vec<_> = there.iter().collect();
            let batch = Ragged::new(&spans, &place.device())?;
            let (v, g, a) = (place.tensor(&values), place.tensor(&gates), place.tensor(&ape));
            let got = place.run(|ws| pool(&v, &g, &a, &there, &batch, pooling, ws));
            assert_close(&format!("{pooling:?}, {place}"), &got, &want, 5e-6);
        }
    }
    Ok(())
}

#[test]
fn rings_and_pages_get_their_rows() -> Result<()> {
    let mut rng = rng();
    let batch = floats((23, 6), 1.0, &mut rng);
    let start = rng.random_range(0..40);
    let span = Ragged::new(&[(0, 2), (start, 21)], &Device::Cpu)?.spans()[1];
    let ring = Ring::new(9, 6, &Device::Cpu)?;
    ring.write(&batch, &span)?;
    for place in places() {
        let got = Ring::new(9, 6, &place.device())?;
        let on = place.tensor(&batch);
        place.run(|_| got.write(&on, &span));
        assert_close(&format!("ring, {place}"), got.data(), ring.data(), 0.0);
        // Four rows a page.
        let mut rows = Rows::new(256, 6, &place.device());
        place.run(|_| rows.append(&on, 3, 11));
        assert_eq!((rows.len(), rows.pages().len()), (11, 3));
        let pages: Vec<_> = rows.pages().iter().map(|page| &**page).collect();
        let got = Tensor::cat(&pages, 0)?.narrow(0, 0, 11)?;
        assert_close(&format!("pages, {place}"), &got, &batch.narrow(0, 3, 11)?, 0.0);
    }
    Ok(())
}

#[test]
fn packed_rows_are_the_bytes_of_the_cpu() -> Result<()> {
    let mut rng = rng();
    let fp8 = [(448, 64), (48, 16)].map(|(nope, rope)| RowFormat::Fp8 { nope, rope });
    let fp4 = [128, 16].map(|width| RowFormat::Fp4 { width });
    for format in fp8.into_iter().chain(fp4) {
        let sizes = floats((11, 1), 1.0, &mut rng).powf(7.0)?;
        let x = floats((11, format.width()), 1.0, &mut rng).broadcast_mul(&sizes)?;
        let x = Tensor::cat(&[&x, &x.narrow(0, 0, 1)?.zeros_like()?], 0)?;
        match format {
            RowFormat::Fp8 { nope, .. } => kv_round_trip(&x, nope)?,
            _ => hadamard_fp4_round_trip(&x)?,
        }
        let bytes = |rows: &Rows| -> Result<Vec<u8>> {
            let pages: Vec<_> = rows.pages().iter().map(|page| &**page).collect();
            Tensor::cat(&pages, 0)?.narrow(0, 0, 12)?.flatten_all()?.to_vec1()
        };
        let mut want = Rows::with_format(256, format, &Device::Cpu);
        want.append(&x, 0, 12)?;
        let want = bytes(&want)?;
        for place in places() {
            let x = place.tensor(&x);
            let mut rows = Rows::with_format(256, format, &place.device());
            place.run(|_| rows.append(&x, 0, 12));
            assert_eq!(bytes(&rows)?, want, "{format:?}, {place}");
        }
    }
    Ok(())
}
