use super::*;
use crate::{Ragged, RowFormat, NO_ROW};
use candle_core::Device;

const HEADS: usize = 3;
const DIM: usize = 24;
const WINDOW: usize = 5;
const RATIO: usize = 4;
const TOKENS: usize = 23;

struct Case {
    q: Tensor,
    kv: Tensor,
    rows: Tensor,
    sinks: Tensor,
}

fn case() -> Result<Case> {
    let device = Device::Cpu;
    Ok(Case {
        q: Tensor::randn(0f32, 1.5, (TOKENS, HEADS, DIM), &device)?,
        kv: Tensor::randn(0f32, 1.0, (TOKENS, DIM), &device)?,
        rows: Tensor::randn(0f32, 1.0, (TOKENS / RATIO, DIM), &device)?,
        sinks: Tensor::randn(0f32, 1.0, HEADS, &device)?,
    })
}

/// By the definition, in f64.
fn naive(case: &Case, token: usize, rows: &[usize]) -> Result<Vec<f64>> {
    let get = |t: &Tensor| -> Result<Vec<Vec<f64>>> {
        let rows = t.reshape(((), DIM))?.to_vec2::<f32>()?;
        Ok(rows.iter().map(|r| r.iter().map(|&v| f64::from(v)).collect()).collect())
    };
    let (q, kv, compressed) = (get(&case.q)?, get(&case.kv)?, get(&case.rows)?);
    let sinks = case.sinks.to_vec1::<f32>()?;
    let window = (token + 1).saturating_sub(WINDOW)..=token;
    let attended: Vec<&Vec<f64>> =
        window.map(|p| &kv[p]).chain(rows.iter().map(|&r| &compressed[r])).collect();
    let mut out = Vec::new();
    for head in 0..HEADS {
        let q = &q[token * HEADS + head];
        let score = |row: &Vec<f64>| q.iter().zip(row).map(|(a, b)| a * b).sum::<f64>() * 0.3;
        let weights: Vec<f64> = attended.iter().map(|row| score(row).exp()).collect();
        let sum = f64::from(sinks[head]).exp() + weights.iter().sum::<f64>();
        for channel in 0..DIM {
            let dot: f64 = weights.iter().zip(&attended).map(|(w, row)| w * row[channel]).sum();
            out.push(dot / sum);
        }
    }
    Ok(out)
}

/// Runs the case cut into chunks, as a sequence would see them.
fn run(case: &Case, cuts: &[usize], chosen: Option<&Tensor>) -> Result<Vec<f32>> {
    run_with(case, cuts, chosen, Rows::new(RATIO, DIM, &Device::Cpu))
}

fn run_with(
    case: &Case,
    cuts: &[usize],
    chosen: Option<&Tensor>,
    mut rows: Rows,
) -> Result<Vec<f32>> {
    let device = Device::Cpu;
    let ring = Ring::new(WINDOW + 1, DIM, &device)?;
    let mut got = Vec::new();
    let mut start = 0;
    for &len in cuts {
        let ws = Workspace::new(&device);
        let batch = Ragged::new(&[(start, len)], &device)?;
        let windows = batch.spans()[0].windows(RATIO);
        rows.append(&case.rows, windows.start, windows.len())?;
        let ids = chosen.map(|ids| ids.narrow(0, start, len)).transpose()?;
        let selection = match &ids {
            Some(ids) => Selection::Chosen(ids),
            None => Selection::Visible { ratio: RATIO },
        };
        let (q, kv) = (case.q.narrow(0, start, len)?, case.kv.narrow(0, start, len)?);
        let compressed = Compressed { rows: &[&rows], selection };
        let attention = Attention {
            q: &q,
            kv: &kv,
            windows: &[&ring],
            window: WINDOW,
            compressed: Some(compressed),
            sinks: &case.sinks,
            scale: 0.3,
            batch: &batch,
        };
        let out = sink_attention(attention, &ws)?;
        got.extend(out.flatten_all()?.to_vec1::<f32>()?);
        ring.write(&kv, &batch.spans()[0])?;
        start += len;
    }
    Ok(got)
}

fn assert_near(got: &[f32], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*got) - want).abs() < 2e-6, "{what}, value {i}: {got} is not {want}");
    }
}

#[test]
fn window_rows_visible_rows_and_the_sink_share_the_weight() -> Result<()> {
    let case = case()?;
    let got = run(&case, &[TOKENS], None)?;
    for token in 0..TOKENS {
        let rows: Vec<usize> = (0..(token + 1) / RATIO).collect();
        let want = naive(&case, token, &rows)?;
        assert_near(&got[token * HEADS * DIM..][..HEADS * DIM], &want, &format!("token {token}"));
    }
    Ok(())
}

#[test]
fn every_cut_gives_the_same_bits() -> Result<()> {
    let case = case()?;
    let whole = run(&case, &[TOKENS], None)?;
    for cuts in [vec![1; TOKENS], vec![7, 1, 9, 6], vec![4, 19], vec![22, 1], vec![3, 12, 8]] {
        assert_eq!(run(&case, &cuts, None)?, whole, "{cuts:?}");
    }
    Ok(())
}

#[test]
fn only_chosen_rows_count_and_a_list_may_end_early() -> Result<()> {
    let case = case()?;
    let choices: Vec<Vec<usize>> = (0..TOKENS)
        .map(|t| (0..(t + 1) / RATIO).filter(|r| (r + t) % 2 == 0).take(3).collect())
        .collect();
    let ids: Vec<u32> = choices
        .iter()
        .flat_map(|c| {
            c.iter().map(|&r| r as u32).chain(std::iter::repeat(NO_ROW)).take(3).collect::<Vec<_>>()
        })
        .collect();
    let ids = Tensor::from_vec(ids, (TOKENS, 3), &Device::Cpu)?;
    let got = run(&case, &[10, 13], Some(&ids))?;
    for (token, rows) in choices.iter().enumerate() {
        let want = naive(&case, token, rows)?;
        assert_near(&got[token * HEADS * DIM..][..HEADS * DIM], &want, &format!("token {token}"));
    }
    Ok(())
}

#[test]
fn packed_rows_give_the_bits_of_plain_ones_whatever_the_page() -> Result<()> {
    let case = case()?;
    crate::kv_round_trip(&case.rows, 16)?;
    let packed = RowFormat::Fp8 { nope: 16, rope: 8 };
    let choices = |k: usize| -> Result<Tensor> {
        let ids = (0..TOKENS as u32).flat_map(|t| {
            let rows = (0..(t + 1) / RATIO as u32).filter(move |r| (r + t) % 3 != 0);
            rows.chain(std::iter::repeat(NO_ROW)).take(k)
        });
        Tensor::from_vec(ids.collect::<Vec<u32>>(), (TOKENS, k), &Device::Cpu)
    };
    // With the last, so many values may be chosen that each token is unpacked on its own.
    let choices = [None, Some(choices(4)?), Some(choices(1 << 17)?)];
    for chosen in &choices {
        let plain = run(&case, &[TOKENS], chosen.as_ref())?;
        for page_rows in [1, 2, 256] {
            for cuts in [vec![TOKENS], vec![1; TOKENS], vec![9, 1, 13]] {
                let page = crate::PAGE_TOKENS / page_rows;
                let rows = Rows::with_format(page, packed, &Device::Cpu);
                let got = run_with(&case, &cuts, chosen.as_ref(), rows)?;
                assert_eq!(got, plain, "pages of {page_rows}, {cuts:?}, {chosen:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_choice_past_the_rows_is_named() -> Result<()> {
    let case = case()?;
    let ids = Tensor::full(99u32, (TOKENS, 2), &Device::Cpu)?;
    let error = run(&case, &[TOKENS], Some(&ids)).unwrap_err().to_string();
    assert!(error.contains("token 0 chose row 99 of 5"), "{error}");
    Ok(())
}

#[test]
fn windows_of_no_tokens_are_refused() -> Result<()> {
    let (case, device) = (case()?, Device::Cpu);
    let (rows, ring) = (Rows::new(RATIO, DIM, &device), Ring::new(WINDOW + 1, DIM, &device)?);
    let selection = Selection::Visible { ratio: 0 };
    let attention = Attention {
        q: &case.q,
        kv: &case.kv,
        windows: &[&ring],
        window: WINDOW,
        compressed: Some(Compressed { rows: &[&rows], selection }),
        sinks: &case.sinks,
        scale: 0.3,
        batch: &Ragged::new(&[(0, TOKENS)], &device)?,
    };
    let error = sink_attention(attention, &Workspace::new(&device)).unwrap_err().to_string();
    assert!(error.starts_with("attention: ratio 0"), "{error}");
    Ok(())
}
