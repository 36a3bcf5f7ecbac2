//! The reference.

use std::cmp::Ordering;

use candle_core::{bail, Result};

/// `sqrt(softplus(logit))`; softplus is the identity above 20, as in the reference code.
pub(super) fn score(logit: f32) -> f32 {
    let softplus = if logit > 20.0 { logit } else { logit.exp().ln_1p() };
    softplus.sqrt()
}

/// The `k` best experts of each row of `logits`, best first.
pub(super) fn top_k(
    logits: &[f32],
    bias: Option<&[f32]>,
    experts: usize,
    k: usize,
    out: &mut [u32],
) {
    if k == 0 {
        return;
    }
    let mut ranked: Vec<(f32, u32)> = Vec::with_capacity(experts);
    for (logits, out) in logits.chunks_exact(experts).zip(out.chunks_exact_mut(k)) {
        ranked.clear();
        ranked.extend(logits.iter().enumerate().map(|(expert, &logit)| {
            let bias = bias.map_or(0.0, |bias| bias[expert]);
            (score(logit) + bias, expert as u32)
        }));
        if k < experts {
            ranked.select_nth_unstable_by(k, by_falling_score);
        }
        ranked[..k].sort_unstable_by(by_falling_score);
        for (out, &(_, expert)) in out.iter_mut().zip(&ranked) {
            *out = expert;
        }
    }
}

fn by_falling_score(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The experts that `table` names for each token.
pub(super) fn look_up(
    table: &[u32],
    tokens: &[u32],
    k: usize,
    experts: usize,
    out: &mut [u32],
) -> Result<()> {
    for (row, (&token, out)) in tokens.iter().zip(out.chunks_exact_mut(k.max(1))).enumerate() {
        let at = token as usize * k;
        let Some(chosen) = table.get(at..at + k) else {
            bail!("route: row {row} has token {token}, the table {} rows", table.len() / k.max(1));
        };
        if let Some(expert) = chosen.iter().find(|&&e| e as usize >= experts) {
            bail!("route: the table sends token {token} to expert {expert} of {experts}");
        }
        out.copy_from_slice(chosen);
    }
    Ok(())
}

/// Weights of the chosen experts.
pub(super) fn weigh(
    logits: &[f32],
    ids: &[u32],
    experts: usize,
    k: usize,
    scale: f32,
    out: &mut [f32],
) {
    let rows = logits.chunks_exact(experts.max(1));
    let chosen = ids.chunks_exact(k.max(1)).zip(out.chunks_exact_mut(k.max(1)));
    for (logits, (ids, out)) in rows.zip(chosen) {
        for (out, &id) in out.iter_mut().zip(ids) {
            *out = score(logits[id as usize]);
        }
        // The guard only matters when all scores underflow.
        let sum = out.iter().sum::<f32>().max(f32::MIN_POSITIVE);
        out.iter_mut().for_each(|w| *w = *w / sum * scale);
    }
}
