use super::*;
use crate::blocks::random;
use crate::{dot, Format};
use candle_core::Device;
use rand::{rngs::StdRng, Rng, SeedableRng};

fn activations(rng: &mut StdRng, tokens: usize, width: usize) -> Vec<f32> {
    (0..tokens * width).map(|_| rng.random_range(-1f32..1.0)).collect()
}

fn tensor(values: &[f32], tokens: usize) -> Tensor {
    Tensor::from_slice(values, (tokens, values.len() / tokens), &Device::Cpu).unwrap()
}

fn bits(out: &Tensor) -> Vec<u32> {
    out.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect()
}

/// Runs it on a pool of its own.
fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

/// One shape in every format: near the f64 product, and to the bit what the rule of `dot` gives for
/// the decoded rows, one pair at a time.
fn check(rng: &mut StdRng, format: Format, groups: usize, rank: usize, cols: usize, tokens: usize) {
    let w = random::matrix(format, [1, groups * rank, cols], rng);
    let x = activations(rng, tokens, groups * cols);
    let ws = Workspace::new(&Device::Cpu);
    let got = grouped_matmul(&tensor(&x, tokens), &w, groups, &ws).unwrap();
    let got = got.to_vec2::<f32>().unwrap();
    let rows = w.dequantize().unwrap().to_vec2::<f32>().unwrap();
    for (t, got) in got.iter().enumerate() {
        assert_eq!(got.len(), rows.len());
        for (r, (&got, row)) in got.iter().zip(&rows).enumerate() {
            let x = &x[(t * groups + r / rank) * cols..][..cols];
            let place = format!("{format} {groups}x[{rank}, {cols}], token {t}, row {r}");
            assert_eq!(got.to_bits(), dot::dot(row, x).to_bits(), "{place}");
            let terms = || row.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
            let (sum, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
            let error = (f64::from(got) - sum).abs();
            assert!(error <= 1e-6 * size, "{place}: {got}, in f64 {sum}, of {size}");
        }
    }
}

#[test]
fn every_format_gives_the_product_of_its_decoded_rows() {
    let mut rng = StdRng::seed_from_u64(5);
    for format in Format::ALL {
        for tokens in [1, 2, 3, 5, 8, 17] {
            for (groups, rank) in [(1, 1), (1, 19), (1, 32), (3, 7), (2, 16)] {
                let cols = format.block_len() * rng.random_range(1..4);
                check(&mut rng, format, groups, rank, cols, tokens);
            }
        }
    }
    // Widths that are no multiple of eight, and more columns or tokens than are held at once.
    for (rank, cols, tokens) in [(5, 3, 2), (17, 300, 4), (33, 517, 3), (9, 64, 400), (3, 0, 2)] {
        check(&mut rng, Format::F16, 1, rank, cols, tokens);
        check(&mut rng, Format::F32, 2, rank, cols, tokens);
    }
}

#[test]
fn a_token_does_not_depend_on_its_batch_or_on_threads() {
    let mut rng = StdRng::seed_from_u64(6);
    // Too small to share out; strips of rows; blocks of tokens.
    for (rows, cols, tokens) in [(40, 256, 7), (600, 512, 13), (1000, 1024, 1), (24, 2048, 64)] {
        for format in Format::ALL {
            let w = random::matrix(format, [1, rows, cols], &mut rng);
            let x = activations(&mut rng, tokens, cols);
            let run = |x: &[f32], tokens: usize| {
                let ws = Workspace::new(&Device::Cpu);
                bits(&matmul(&tensor(x, tokens), &w, &ws).unwrap())
            };
            let whole = on_threads(1, || run(&x, tokens));
            for threads in [2, 3] {
                let case = format!("{format} [{rows}, {cols}] on {threads} threads");
                assert_eq!(on_threads(threads, || run(&x, tokens)), whole, "{case}");
            }
            let cut = tokens / 3;
            let mut pieces = vec![];
            for piece in [&x[..cols], &x[cols..][..cut * cols], &x[(cut + 1) * cols..]] {
                if let (false, n) = (piece.is_empty(), piece.len() / cols) {
                    pieces.extend(on_threads(2, || run(piece, n)));
                }
                if tokens == 1 {
                    break;
                }
            }
            assert_eq!(pieces, whole, "{format} [{rows}, {cols}] in pieces");
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let ws = Workspace::new(&Device::Cpu);
    let mut rng = StdRng::seed_from_u64(7);
    let x = tensor(&[0.5; 2 * 64], 2);
    let w = random::matrix(Format::Q8_0, [1, 6, 32], &mut rng);
    let fails = |w: &Matrix, groups: usize, parts: &[&str]| {
        let error = grouped_matmul(&x, w, groups, &ws).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{part} missing: {error}");
        }
    };
    fails(&w, 1, &["[2, 64]", "[6, 32]"]);
    fails(&w, 3, &["[2, 64]", "[6, 32]", "3 group"]);
    fails(&w, 4, &["[6, 32]", "4 groups"]);
    fails(&w, 0, &["[6, 32]", "0 groups"]);
    fails(&random::matrix(Format::Q8_0, [2, 6, 64], &mut rng), 1, &["[2, 6, 64]"]);
    let wrong_type = x.to_dtype(candle_core::DType::F16).unwrap();
    assert!(grouped_matmul(&wrong_type, &w, 2, &ws).is_err());
    assert_eq!(grouped_matmul(&x, &w, 2, &ws).unwrap().dims(), [2, 6]);
    let none = x.narrow(0, 0, 0).unwrap();
    assert_eq!(grouped_matmul(&none, &w, 2, &ws).unwrap().dims(), [0, 6]);
}

/// Rates on one thread and on all: `cargo test --release -- --ignored --nocapture speed`.
#[test]
#[ignore = "takes a quiet machine"]
fn speed() {
    let mut rng = StdRng::seed_from_u64(8);
    for threads in [1, rayon::current_num_threads()] {
        for format in Format::ALL {
            for (rows, cols) in [(1024, 256), (4096, 4096)] {
                let w = random::matrix(format, [1, rows, cols], &mut rng);
                for tokens in [1, 2, 8, 64, 192] {
                    let x = tensor(&activations(&mut rng, tokens, cols), tokens);
                    let seconds = on_threads(threads, || {
                        let ws = Workspace::new(&Device::Cpu);
                        let once = || {
                            let _frame = ws.frame();
                            let start = std::time::Instant::now();
                            matmul(&x, &w, &ws).unwrap();
                            start.elapsed().as_secs_f64()
                        };
                        let budget = std::time::Instant::now();
                        let mut best = once();
                        while budget.elapsed().as_millis() < 60 {
                            best = best.min(once());
                        }
                        best
                    });
                    let weights = (rows * cols) as f64 / seconds / 1e9;
                    println!(
                        "{threads} thread(s) {format:8} [{rows}, {cols}] x {tokens:3}: {:9.1} us  \
                         {weights:6.2} Gweights/s  {:6.2} GB/s  {:6.1} GFLOP/s",
                        1e6 * seconds,
                        w.byte_len() as f64 / seconds / 1e9,
                        2.0 * weights * tokens as f64,
                    );
                }
            }
        }
    }
}
