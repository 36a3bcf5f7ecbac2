use super::*;
use crate::blocks::random;
use crate::{matmul, Format};
use candle_core::Device;
use rand::{rngs::StdRng, Rng, SeedableRng};

const CLAMP: f32 = 10.0;

struct Weights([Matrix; 3]);

impl Weights {
    fn random(
        rng: &mut StdRng,
        formats: [Format; 2],
        n: usize,
        inter: usize,
        hidden: usize,
    ) -> Self {
        let mut one = |format, rows, cols| random::matrix(format, [n, rows, cols], rng);
        let [wide, down] = formats;
        Self([one(wide, inter, hidden), one(wide, inter, hidden), one(down, hidden, inter)])
    }

    fn mlp(&self) -> Mlp<'_> {
        let Self([gate, up, down]) = self;
        Mlp { gate, up, down }
    }

    /// `F(expert, x, weight)` in single steps: every product by `matmul` on decoded weights, which
    /// has its own tests.
    fn alone(&self, expert: usize, x: &[f32], weight: f32, clamp: f32) -> Vec<f32> {
        let ws = Workspace::new(&Device::Cpu);
        let times = |w: &Matrix, x: &[f32]| {
            let all = w.dequantize().unwrap();
            let all = all.reshape((w.stack(), w.rows(), w.cols())).unwrap();
            let w = Matrix::from_tensor(&all.get(expert).unwrap()).unwrap();
            let x = Tensor::from_slice(x, (1, x.len()), &Device::Cpu).unwrap();
            matmul(&x, &w, &ws).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let (gate, up) = (times(&self.0[0], x), times(&self.0[1], x));
        let inner: Vec<f32> = gate
            .iter()
            .zip(up)
            .map(|(&g, u)| {
                let g = g.min(clamp);
                g / (1.0 + (-g).exp()) * u.max(-clamp).min(clamp) * weight
            })
            .collect();
        times(&self.0[2], &inner)
    }
}

struct Case {
    hidden: usize,
    k: usize,
    x: Vec<f32>,
    ids: Vec<u32>,
    weights: Vec<f32>,
}

impl Case {
    fn random(rng: &mut StdRng, tokens: usize, hidden: usize, n: usize, k: usize) -> Self {
        // Some inner values pass the clamp, most do not.
        let x = (0..tokens * hidden).map(|_| rng.random_range(-0.3f32..0.3)).collect();
        let ids = (0..tokens * k).map(|_| rng.random_range(0..n as u32)).collect();
        let weights = (0..tokens * k).map(|_| rng.random_range(0f32..1.5)).collect();
        Self { hidden, k, x, ids, weights }
    }

    /// The tokens of a range.
    fn run(
        &self,
        range: std::ops::Range<usize>,
        routed: &Weights,
        shared: Option<&Weights>,
        clamp: f32,
    ) -> Result<Vec<Vec<f32>>> {
        let (cpu, n) = (Device::Cpu, range.len());
        let part = |width: usize| range.start * width..range.end * width;
        let x = Tensor::from_slice(&self.x[part(self.hidden)], (n, self.hidden), &cpu)?;
        let ids = Tensor::from_slice(&self.ids[part(self.k)], (n, self.k), &cpu)?;
        let weights = Tensor::from_slice(&self.weights[part(self.k)], (n, self.k), &cpu)?;
        let ws = Workspace::new(&cpu);
        let shared = shared.map(Weights::mlp);
        experts(&x, routed.mlp(), &ids, &weights, shared, clamp, &ws)?.to_vec2()
    }

    fn alone(
        &self,
        token: usize,
        routed: &Weights,
        shared: Option<&Weights>,
        clamp: f32,
    ) -> Vec<f32> {
        let x = &self.x[token * self.hidden..][..self.hidden];
        let mut out = vec![0.0; self.hidden];
        let mut add = |term: Vec<f32>| {
            out.iter_mut().zip(term).for_each(|(out, term)| *out += term);
        };
        for pair in token * self.k..(token + 1) * self.k {
            add(routed.alone(self.ids[pair] as usize, x, self.weights[pair], clamp));
        }
        if let Some(shared) = shared {
            add(shared.alone(0, x, 1.0, clamp));
        }
        out
    }
}

#[test]
fn each_token_gets_the_sum_of_its_experts_to_the_bit() -> Result<()> {
    let mut rng = StdRng::seed_from_u64(9);
    let recipes = [
        ([Format::F32, Format::F16], 24, 40),
        ([Format::Iq2Xxs, Format::Q2K], 256, 256),
        ([Format::Q4K, Format::Q4K], 256, 512),
        ([Format::Q8_0, Format::Q8_0], 64, 96),
    ];
    for (formats, inter, hidden) in recipes {
        let routed = Weights::random(&mut rng, formats, 7, inter, hidden);
        // A shared expert of another width and format.
        let shared =
            Weights::random(&mut rng, [Format::Q8_0, Format::F32], 1, 32, hidden - hidden % 32);
        let shared = (hidden % 32 == 0).then_some(&shared);
        for (tokens, k, clamp) in [(1, 2, CLAMP), (5, 3, f32::INFINITY), (17, 2, 0.5), (2, 0, 1.0)]
        {
            let case = Case::random(&mut rng, tokens, hidden, 7, k);
            let got = case.run(0..tokens, &routed, shared, clamp)?;
            for (token, got) in got.iter().enumerate() {
                let wanted = case.alone(token, &routed, shared, clamp);
                assert_eq!(got, &wanted, "{formats:?} k {k} clamp {clamp} token {token}");
            }
        }
    }
    Ok(())
}

#[test]
fn the_sum_is_the_formula_in_f64() -> Result<()> {
    let mut rng = StdRng::seed_from_u64(10);
    let (hidden, inter, n, k) = (48, 32, 5, 3);
    let routed = Weights::random(&mut rng, [Format::F32; 2], n, inter, hidden);
    let case = Case::random(&mut rng, 4, hidden, n, k);
    let clamp = 0.25;
    let got = case.run(0..4, &routed, None, clamp)?;
    let [gate, up, down] = [0, 1, 2].map(|i| routed.0[i].dequantize().unwrap());
    let product = |w: &Tensor, e: u32, x: &[f64]| -> Vec<f64> {
        let rows = w.get(e as usize).unwrap().to_vec2::<f32>().unwrap();
        rows.iter().map(|r| r.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum()).collect()
    };
    let (mut clamped, mut free) = (0, 0);
    for (t, got) in got.iter().enumerate() {
        let x: Vec<f64> = case.x[t * hidden..][..hidden].iter().map(|&v| v.into()).collect();
        let mut wanted = vec![0.0; hidden];
        for pair in t * k..(t + 1) * k {
            let (e, weight) = (case.ids[pair], f64::from(case.weights[pair]));
            let (g, u) = (product(&gate, e, &x), product(&up, e, &x));
            let h: Vec<f64> = g
                .iter()
                .zip(u)
                .map(|(g, u)| {
                    let limit = f64::from(clamp);
                    if *g > limit || u.abs() > limit {
                        clamped += 1
                    } else {
                        free += 1
                    }
                    let g = g.min(limit);
                    g / (1.0 + (-g).exp()) * u.clamp(-limit, limit) * weight
                })
                .collect();
            wanted.iter_mut().zip(product(&down, e, &h)).for_each(|(w, y)| *w += y);
        }
        for (got, wanted) in got.iter().zip(&wanted) {
            assert!((f64::from(*got) - wanted).abs() < 1e-5, "token {t}: {got}, in f64 {wanted}");
        }
    }
    assert!(clamped > 20 && free > 20, "both sides of the clamp are met: {clamped}, {free}");
    Ok(())
}

#[test]
fn a_token_does_not_depend_on_its_batch_or_on_threads() -> Result<()> {
    let mut rng = StdRng::seed_from_u64(11);
    for (inter, hidden, tokens) in [(256, 256, 9), (512, 1024, 6)] {
        let formats = [Format::Iq2Xxs, Format::Q2K];
        let routed = Weights::random(&mut rng, formats, 4, inter, hidden);
        let shared = Weights::random(&mut rng, [Format::Q8_0; 2], 1, inter, hidden);
        let case = Case::random(&mut rng, tokens, hidden, 4, 3);
        let run = |threads: usize, range: std::ops::Range<usize>| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| case.run(range, &routed, Some(&shared), CLAMP).unwrap())
        };
        let whole = run(1, 0..tokens);
        assert_eq!(run(2, 0..tokens), whole);
        assert_eq!([run(3, 0..4), run(2, 4..tokens)].concat(), whole);
        let single: Vec<_> = (0..tokens).flat_map(|t| run(2, t..t + 1)).collect();
        assert_eq!(single, whole);
    }
    Ok(())
}

#[test]
fn an_expert_that_is_not_there_is_named() {
    let mut rng = StdRng::seed_from_u64(12);
    let routed = Weights::random(&mut rng, [Format::F32; 2], 4, 8, 8);
    let mut case = Case::random(&mut rng, 3, 8, 4, 2);
    case.ids[5] = 4;
    let error = case.run(0..3, &routed, None, CLAMP).unwrap_err().to_string();
    assert!(error.contains("token 2, slot 1 chose expert 4 of 4"), "{error}");
    assert!(case.run(0..2, &routed, None, CLAMP).is_ok());
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let mut rng = StdRng::seed_from_u64(13);
    let good = Weights::random(&mut rng, [Format::F32; 2], 4, 16, 8);
    let case = Case::random(&mut rng, 3, 8, 4, 2);
    for (what, shape) in [(0, [4, 16, 9]), (1, [4, 15, 8]), (2, [3, 8, 16])] {
        let mut bad = Weights(good.0.clone());
        bad.0[what] = random::matrix(Format::F32, shape, &mut rng);
        let error = case.run(0..3, &bad, None, CLAMP).unwrap_err().to_string();
        assert!(error.contains(&format!("{shape:?}")), "{error}");
        assert!(error.contains(["gate", "up", "down"][what]), "{error}");
    }
    let error = case.run(0..3, &good, Some(&good), CLAMP).unwrap_err().to_string();
    assert!(error.contains("shared") && error.contains("[1, 16, 8]"), "{error}");
    for clamp in [0.0, -1.0, f32::NAN] {
        assert!(case.run(0..3, &good, None, clamp).is_err(), "{clamp}");
    }
    let ws = Workspace::new(&Device::Cpu);
    let x = Tensor::zeros((3, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
    let ids = Tensor::zeros((3, 2), candle_core::DType::U32, &Device::Cpu).unwrap();
    let weights = Tensor::zeros((3, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
    let error = experts(&x, good.mlp(), &ids, &weights, None, CLAMP, &ws).unwrap_err().to_string();
    assert!(error.contains("(3, 2)") && error.contains("(3, 1)"), "{error}");
}

/// One token and many: `cargo test --release -- --ignored --nocapture speed`.
#[test]
#[ignore = "takes a quiet machine"]
fn speed() -> Result<()> {
    let mut rng = StdRng::seed_from_u64(14);
    for (hidden, inter, n, k) in [(256, 256, 16, 2), (4096, 2048, 16, 6)] {
        let formats = [Format::Iq2Xxs, Format::Q2K];
        let routed = Weights::random(&mut rng, formats, n, inter, hidden);
        let shared = Weights::random(&mut rng, [Format::Q8_0; 2], 1, inter, hidden);
        for tokens in [1, 4, 64] {
            let case = Case::random(&mut rng, tokens, hidden, n, k);
            let mut best = f64::INFINITY;
            for _ in 0..if hidden > 1000 { 5 } else { 200 } {
                let start = std::time::Instant::now();
                case.run(0..tokens, &routed, Some(&shared), CLAMP)?;
                best = best.min(start.elapsed().as_secs_f64());
            }
            let flops = 6.0 * (tokens * (k + 1) * hidden * inter) as f64;
            println!(
                "experts {hidden}/{inter}, {k} of {n}, {tokens} token(s): {:.1} us, {:.1} GFLOP/s",
                1e6 * best,
                flops / best / 1e9
            );
        }
    }
    Ok(())
}
