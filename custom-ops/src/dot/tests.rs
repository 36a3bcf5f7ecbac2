use super::kernel::{self, Portable};
use super::*;
use rand::{rngs::StdRng, Rng, SeedableRng};

fn random(rng: &mut StdRng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-1f32..1.0)).collect()
}

/// The rule of the module's doc, one term at a time.
fn by_the_rule(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = ZERO;
    for k in 0..a.len().next_multiple_of(8) {
        let term = |v: &[f32]| v.get(k).copied().unwrap_or(0.0);
        lanes[k % 8] = term(a).mul_add(term(b), lanes[k % 8]);
    }
    sum(&lanes)
}

#[test]
fn every_pair_of_a_tile_follows_the_rule_to_the_bit() {
    let mut rng = StdRng::seed_from_u64(1);
    for round in 0..200 {
        let (rows, vectors) = (rng.random_range(1..40), rng.random_range(1..20));
        let len = rng.random_range(0..70) * if round % 2 == 0 { 1 } else { 8 };
        let (w_gap, x_gap) = (rng.random_range(0..3), rng.random_range(0..3));
        let w = random(&mut rng, rows * (len + w_gap));
        let x = random(&mut rng, 30 * (len + x_gap));
        let picked: Vec<u32> = (0..vectors).map(|_| rng.random_range(0..30)).collect();
        let ws = Rows::new(&w, rows, len + w_gap, len);
        let xs = Rows::new(&x, 30, len + x_gap, len).pick(&picked);
        let stride = rows + 2;
        let mut out = vec![f32::NAN; vectors * stride];
        dot_tile(ws, xs, &mut out, stride);
        let mut portable = vec![ZERO; rows * vectors];
        kernel::accumulate::<Portable>(ws, xs, &mut portable);
        for i in 0..vectors {
            for r in 0..rows {
                let wanted = by_the_rule(ws.row(r), xs.row(i)).to_bits();
                assert_eq!(out[i * stride + r].to_bits(), wanted, "tile {r},{i} len {len}");
                assert_eq!(sum(&portable[i * rows + r]).to_bits(), wanted, "portable {r},{i}");
                assert_eq!(dot(ws.row(r), xs.row(i)).to_bits(), wanted, "single {r},{i}");
            }
            let gap = &out[i * stride + rows..(i + 1) * stride];
            assert!(gap.iter().all(|v| v.is_nan()), "wrote past its rows");
        }
    }
}

#[test]
fn a_sum_in_pieces_is_the_sum_in_one() {
    let mut rng = StdRng::seed_from_u64(2);
    let len = 8 * 37 + 5;
    let (w, x) = (random(&mut rng, 6 * len), random(&mut rng, 5 * len));
    let (ws, xs) = (Rows::new(&w, 6, len, len), Rows::new(&x, 5, len, len));
    let (mut whole, mut pieces) = (vec![ZERO; 30], vec![ZERO; 30]);
    accumulate(ws, xs, &mut whole);
    for start in (0..len).step_by(64) {
        let n = 64.min(len - start);
        accumulate(ws.columns(start, n), xs.columns(start, n), &mut pieces);
    }
    assert_eq!(whole, pieces);
}

#[test]
fn a_weighted_sum_is_its_rows_added_in_turn() {
    let mut rng = StdRng::seed_from_u64(3);
    for _ in 0..100 {
        let (rows, len) = (rng.random_range(0..9), rng.random_range(1..200));
        let (data, weights) = (random(&mut rng, rows * len), random(&mut rng, rows));
        let start = random(&mut rng, len);
        let rows = Rows::new(&data, rows, len, len);
        let mut wanted = start.clone();
        for (r, &weight) in weights.iter().enumerate() {
            for (out, &x) in wanted.iter_mut().zip(rows.row(r)) {
                *out = weight.mul_add(x, *out);
            }
        }
        let (mut one, mut portable, mut each) = (start.clone(), start.clone(), start);
        weighted_sum(&mut one, &weights, rows);
        kernel::weighted_sum::<Portable>(&mut portable, &weights, rows);
        for (r, &weight) in weights.iter().enumerate() {
            weighted_sum(&mut each, &[weight], rows.range(r, 1));
        }
        assert_eq!(wanted, one);
        assert_eq!(wanted, portable);
        assert_eq!(wanted, each);
    }
}
