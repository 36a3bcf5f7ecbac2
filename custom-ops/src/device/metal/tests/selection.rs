//! Choices: experts of a token, rows worth attending to.

use candle_core::{Device, Result, Tensor};
use rand::Rng;

use super::{assert_close, floats, places, rng, Go};
use crate::device::metal::record;
use crate::{
    hadamard_fp4_round_trip, route, select_rows, select_rows_raw, Choice, Ragged, RopeTable,
    Rounding, RowFormat, Rows, Workspace, NO_ROW,
};

#[test]
fn experts_are_chosen_and_weighed_as_on_the_cpu() -> Result<()> {
    let mut rng = rng();
    let ws = Workspace::new(&Device::Cpu);
    for (experts, k) in [(256, 6), (4, 2), (33, 8), (1000, 3)] {
        let logits = floats((5, experts), 6.0, &mut rng);
        let bias = floats(experts, 0.5, &mut rng);
        for bias in [None, Some(&bias)] {
            let choice = Choice::TopK { k, bias };
            let (ids, weights) = route(&logits, choice, 1.5, &ws)?;
            for place in places() {
                let (logits, bias) = (place.tensor(&logits), bias.map(|b| place.tensor(b)));
                let choice = Choice::TopK { k, bias: bias.as_ref() };
                let (got, got_weights) = place.run(|ws| route(&logits, choice, 1.5, ws));
                let case = format!("{k} of {experts}, {place}");
                assert_eq!(got.to_vec2::<u32>()?, ids.to_vec2::<u32>()?, "{case}");
                assert_close(&case, &got_weights, &weights, 1e-6);
            }
        }
    }
    Ok(())
}

#[test]
fn equal_scores_go_to_the_lower_expert() -> Result<()> {
    let logits = Tensor::new(&[[1f32, 2.0, 2.0, 1.0, 2.0, -40.0]], &Device::Cpu)?;
    for place in places() {
        let logits = place.tensor(&logits);
        let (ids, _) = place.run(|ws| route(&logits, Choice::TopK { k: 6, bias: None }, 1.0, ws));
        assert_eq!(ids.to_vec2::<u32>()?, [[1, 2, 4, 0, 3, 5]], "{place}");
    }
    Ok(())
}

#[test]
fn hash_routing_looks_up_its_table() -> Result<()> {
    let mut rng = rng();
    let ws = Workspace::new(&Device::Cpu);
    let logits = floats((7, 16), 6.0, &mut rng);
    let table: Vec<u32> = (0..50 * 6).map(|_| rng.random_range(0..16)).collect();
    let table = Tensor::from_vec(table, (50, 6), &Device::Cpu)?;
    let tokens: Vec<u32> = (0..7).map(|_| rng.random_range(0..50)).collect();
    let tokens = Tensor::new(tokens, &Device::Cpu)?;
    let choice = Choice::Hash { table: &table, tokens: &tokens };
    let (ids, weights) = route(&logits, choice, 1.5, &ws)?;
    for place in places() {
        let (logits, table, tokens) =
            (place.tensor(&logits), place.tensor(&table), place.tensor(&tokens));
        let choice = Choice::Hash { table: &table, tokens: &tokens };
        let (got, got_weights) = place.run(|ws| route(&logits, choice, 1.5, ws));
        assert_eq!(got.to_vec2::<u32>()?, ids.to_vec2::<u32>()?, "{place}");
        assert_close(&place.to_string(), &got_weights, &weights, 1e-6);
    }
    Ok(())
}

/// The lists that must come out, by the definition in f64; rows whose score is as good as another's
/// within rounding are let pass.
#[test]
fn the_best_rows_are_selected_exactly() -> Result<()> {
    let mut rng = rng();
    let (heads, dim, ratio) = (16, 128, 4);
    // The first sequence sees fewer rows than it may attend to, the second more than a page.
    let (plain, packed) = (RowFormat::F32 { width: dim }, RowFormat::Fp4 { width: dim });
    for (format, k, spans) in
        [(packed, 20, [(40, 3), (2000, 5)]), (plain, 512, [(2041, 2), (2600, 1)])]
    {
        let tokens = spans[0].1 + spans[1].1;
        let q = floats((tokens, heads, dim), 1.0, &mut rng);
        let weights = floats((tokens, heads), 1.0, &mut rng);
        let keys: Vec<Tensor> =
            spans.iter().map(|s| floats(((s.0 + s.1) / ratio, dim), 1.0, &mut rng)).collect();
        if format == packed {
            keys.iter().try_for_each(hadamard_fp4_round_trip)?;
        }
        let scores = |token: usize, sequence: usize, visible: usize| -> Result<Vec<f64>> {
            let of = |t: &Tensor| t.to_dtype(candle_core::DType::F64);
            let dots =
                of(&q.get(token)?)?.matmul(&of(&keys[sequence].narrow(0, 0, visible)?)?.t()?)?;
            let w = of(&weights.get(token)?)?.reshape((heads, 1))?;
            dots.relu()?.broadcast_mul(&w)?.sum(0)?.to_vec1()
        };
        for place in places() {
            let device = place.device();
            let mut lists = Vec::new();
            for keys in &keys {
                let mut rows = Rows::with_format(ratio, format, &device);
                rows.append(&place.tensor(keys), 0, keys.dim(0)?)?;
                lists.push(rows);
            }
            let lists: Vec<_> = lists.iter().collect();
            let batch = Ragged::new(&spans, &device)?;
            let (on_q, on_weights) = (place.tensor(&q), place.tensor(&weights));
            let got = place.run(|ws| select_rows(&on_q, &on_weights, &lists, ratio, k, &batch, ws));
            let got = got.to_vec2::<u32>()?;
            for (sequence, span) in batch.spans().iter().enumerate() {
                for i in 0..span.len {
                    let (list, visible) = (&got[span.row + i], (span.start + i + 1) / ratio);
                    let case = format!("token {i} of sequence {sequence}, {place}");
                    let there: Vec<u32> =
                        list.iter().copied().take_while(|&r| r != NO_ROW).collect();
                    assert_eq!(there.len(), k.min(visible), "{case}");
                    assert!(list[there.len()..].iter().all(|&r| r == NO_ROW), "{case}");
                    assert!(there.windows(2).all(|w| w[0] < w[1]), "{case}: {there:?}");
                    let scores = scores(span.row + i, sequence, visible)?;
                    let worst =
                        there.iter().map(|&r| scores[r as usize]).fold(f64::INFINITY, f64::min);
                    for (row, score) in scores.iter().enumerate() {
                        let left_out = !there.contains(&(row as u32));
                        assert!(!left_out || *score <= worst + 1e-4, "{case}: row {row}");
                    }
                }
            }
        }
    }
    Ok(())
}

/// Keys that are all the same, and huge ones: ties and the far ends of the order of floats.
#[test]
fn ties_go_to_the_lower_row() -> Result<()> {
    for (value, spikes) in [(0f32, vec![]), (1.0, vec![3usize, 77, 120]), (-1.0, vec![])] {
        let mut keys = vec![vec![value; 128]; 140];
        spikes.iter().for_each(|&row: &usize| keys[row] = vec![1e18; 128]);
        let keys = Tensor::new(keys, &Device::Cpu)?;
        let q = Tensor::ones((1, 8, 128), candle_core::DType::F32, &Device::Cpu)?;
        let weights = Tensor::ones((1, 8), candle_core::DType::F32, &Device::Cpu)?;
        let mut want: Vec<u32> = spikes.iter().map(|&row| row as u32).collect();
        want.extend((0..).filter(|row| !spikes.contains(&(*row as usize))).take(9 - spikes.len()));
        want.sort_unstable();
        for place in places() {
            let mut rows = Rows::new(4, 128, &place.device());
            rows.append(&place.tensor(&keys), 0, 140)?;
            let batch = Ragged::new(&[(4 * 140 - 1, 1)], &place.device())?;
            let (q, weights) = (place.tensor(&q), place.tensor(&weights));
            let got = place.run(|ws| select_rows(&q, &weights, &[&rows], 4, 9, &batch, ws));
            assert_eq!(got.to_vec2::<u32>()?, [want.clone()], "{value}, {place}");
        }
    }
    Ok(())
}

/// By those who score, where they are few; by a launch of its own, which leaves the queries in place.
#[test]
fn raw_queries_are_turned_and_rounded_on_the_way_or_before() -> Result<()> {
    for (spans, kernels) in [
        ([(2600, 1), (40, 3)], &["index_scores", "index_select", "index_select"][..]),
        // A block of rows whose last SIMD-groups have none.
        ([(2083, 2), (40, 1)], &["index_scores", "index_select", "index_select"]),
        (
            [(2600, 8), (16_700, 1)],
            &["index_queries", "index_scores", "index_select", "index_scores", "index_select"],
        ),
    ] {
        check_raw(spans, kernels)?;
    }
    Ok(())
}

fn check_raw(spans: [(usize, usize); 2], kernels: &[&str]) -> Result<()> {
    let mut rng = rng();
    let (heads, dim, ratio, k) = (16, 128, 4, 512);
    let rope = RopeTable::plain(10_000.0, 64);
    let tokens = spans[0].1 + spans[1].1;
    let raw = floats((tokens, heads, dim), 1.0, &mut rng);
    let weights = floats((tokens, heads), 1.0, &mut rng);
    let keys: Vec<Tensor> =
        spans.iter().map(|s| floats(((s.0 + s.1) / ratio, dim), 1.0, &mut rng)).collect();
    keys.iter().try_for_each(hadamard_fp4_round_trip)?;
    let choose = |device: &Device, go: Go<'_, Tensor>| {
        let mut lists = Vec::new();
        for keys in &keys {
            let mut rows = Rows::with_format(ratio, RowFormat::Fp4 { width: dim }, device);
            rows.append(&keys.to_device(device).unwrap(), 0, keys.dim(0).unwrap()).unwrap();
            lists.push(rows);
        }
        let lists: Vec<_> = lists.iter().collect();
        let batch = Ragged::new(&spans, device).unwrap();
        let q = raw.copy().unwrap().to_device(device).unwrap();
        let weights = weights.to_device(device).unwrap();
        let rounding = Rounding::HadamardFp4;
        let ids =
            go(&|ws| select_rows_raw(&q, &rope, rounding, &weights, &lists, ratio, k, &batch, ws));
        let q = q.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (q, ids.to_vec2::<u32>().unwrap())
    };
    let cpu = Device::Cpu;
    let want = choose(&cpu, &|f| f(&Workspace::new(&cpu)).unwrap());
    for place in places() {
        let (got, log) = record(|| choose(&place.device(), &|f| place.run(f)));
        let launched = log.iter().map(|launch| &*launch.kernel);
        let launched: Vec<_> = launched.filter(|kernel| kernel.starts_with("index_")).collect();
        assert_eq!(launched, kernels, "{spans:?}, {place}");
        if kernels.contains(&"index_queries") {
            // But for what lies between two codes.
            let others = got.0.iter().zip(&want.0).filter(|(a, b)| a != b).count();
            assert!(others * 200 <= want.0.len(), "{place}: {others} of {} values", want.0.len());
        }
        for (token, (got, want)) in got.1.iter().zip(&want.1).enumerate() {
            let others = got.iter().filter(|row| !want.contains(row)).count();
            assert!(others <= 3, "{spans:?}, {place}: token {token}, {others} other rows");
        }
    }
    Ok(())
}
