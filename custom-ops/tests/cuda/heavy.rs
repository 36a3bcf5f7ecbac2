//! The ops that take the time: products, experts, attention, the indexer.

use bytes::Bytes;
use candle_core::{Device, Result, Tensor};
use candle_ds4_ops::{
    append_rows, experts, grouped_matmul, kv_round_trip, matmul, matmuls, routed_experts,
    select_rows, select_rows_raw, sink_attention, turned_attention, write_rings, Choice,
    Compressed, Format, Matrix, Mlp, Ragged, Ring, RopeTable, Rounding, RowFormat, Rows, Selection,
    Yarn, NO_ROW,
};
use rand::rngs::StdRng;
use rand::Rng;

use crate::{compare, everywhere, normal, random, refused, Place};

/// Activations as signed bytes with a scale for 32: half a percent of a product of random numbers, and
/// of a thousand products the worst.
const BYTES: f64 = 0.05;
/// Activations and weights as halves.
const HALVES: f64 = 4e-3;
/// Another order of the sums.
const ORDER: f64 = 3e-5;

/// Random blocks of a format, scales of the size that weights have.
fn stack(rng: &mut StdRng, format: Format, n: usize, rows: usize, cols: usize) -> Matrix {
    let len = n * rows * cols / format.block_len() * format.block_bytes();
    let mut bytes = vec![0u8; len];
    match format {
        Format::F32 | Format::F16 | Format::BF16 | Format::Q8_0 => {
            let values: Vec<f32> =
                (0..n * rows * cols).map(|_| rng.random_range(-0.05..0.05)).collect();
            format.encode(&values, None, &mut bytes).unwrap();
        }
        _ => {
            rng.fill(&mut bytes[..]);
            let half = |x: f32| half::f16::from_f32(x).to_le_bytes();
            let places: &[(usize, f32)] = match format {
                Format::Q2K => &[(80, 0.002), (82, 0.003)],
                Format::Q4K => &[(0, 1e-4), (2, 7e-4)],
                _ => &[(0, 4e-4)],
            };
            for block in bytes.chunks_exact_mut(format.block_bytes()) {
                for &(at, d) in places {
                    block[at..at + 2].copy_from_slice(&half(d * rng.random_range(0.5..1.5)));
                }
            }
        }
    }
    Matrix::from_host(format, n, rows, cols, Bytes::from(bytes)).unwrap()
}

#[test]
fn products_of_any_format_shape_and_number_of_tokens() {
    let mut rng = random();
    // The demo model's shapes, the full model's cut in rows, and ragged ones.
    let shapes = [(64, 256), (130, 64), (48, 4096), (37, 96), (24, 16_384), (20, 1024)];
    for format in [Format::Q8_0, Format::F16] {
        for (rows, cols) in shapes {
            let w = stack(&mut rng, format, 1, rows, cols);
            for tokens in [0, 1, 2, 9, 30, 33, 64, 65, 200] {
                if cols > 4096 && tokens > 9 || cols > 256 && tokens > 65 {
                    continue;
                }
                let x = normal(&mut rng, &[tokens, cols]);
                let tolerance = match (format, tokens) {
                    (_, 33..) => HALVES,
                    (Format::Q8_0, _) => BYTES,
                    _ => ORDER,
                };
                let case = format!("{format} [{rows}, {cols}], {tokens} tokens");
                compare(&case, tolerance, |place, ws| {
                    Ok(vec![matmul(&place.tensor(&x)?, &place.matrix(&w)?, ws)?])
                });
            }
        }
    }
    for format in Format::ALL {
        let w = stack(&mut rng, format, 1, 19, 512);
        let x = normal(&mut rng, &[5, 512]);
        let tolerance = if format == Format::Q8_0 { BYTES } else { ORDER };
        compare(&format!("{format}"), tolerance, |place, ws| {
            Ok(vec![matmul(&place.tensor(&x)?, &place.matrix(&w)?, ws)?])
        });
    }
}

#[test]
fn products_in_groups_and_products_together() {
    let mut rng = random();
    for (format, groups, rows, cols) in
        [(Format::Q8_0, 2, 128, 1024), (Format::Q8_0, 8, 256, 512), (Format::F32, 3, 9, 40)]
    {
        let w = stack(&mut rng, format, 1, rows, cols);
        for tokens in [1, 7, 40, 130] {
            let x = normal(&mut rng, &[tokens, groups * cols]);
            let case = format!("{format} [{rows}, {cols}] in {groups} groups, {tokens} tokens");
            compare(&case, BYTES, |place, ws| {
                Ok(vec![grouped_matmul(&place.tensor(&x)?, &place.matrix(&w)?, groups, ws)?])
            });
        }
    }
    let formats = [Format::Q8_0, Format::F16, Format::Q8_0, Format::F32];
    for (count, tokens) in [(3, 1), (3, 5), (4, 2), (3, 50)] {
        let weights: Vec<Matrix> = formats[..count]
            .iter()
            .enumerate()
            .map(|(i, &format)| stack(&mut rng, format, 1, 30 + 17 * i, 512))
            .collect();
        let x = normal(&mut rng, &[tokens, 512]);
        compare(&format!("{count} weights, {tokens} tokens"), BYTES, |place, ws| {
            let weights = weights.iter().map(|w| place.matrix(w)).collect::<Result<Vec<_>>>()?;
            matmuls(&place.tensor(&x)?, &weights.iter().collect::<Vec<_>>(), ws)
        });
    }
}

/// gate, up and down.
fn network(
    rng: &mut StdRng,
    formats: [Format; 2],
    n: usize,
    hidden: usize,
    inter: usize,
) -> [Matrix; 3] {
    let [gate, down] = formats;
    [
        stack(rng, gate, n, inter, hidden),
        stack(rng, gate, n, inter, hidden),
        stack(rng, down, n, hidden, inter),
    ]
}

fn mlp(weights: &[Matrix]) -> Mlp<'_> {
    Mlp { gate: &weights[0], up: &weights[1], down: &weights[2] }
}

struct Mixture {
    routed: [Matrix; 3],
    shared: Option<[Matrix; 3]>,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
}

impl Mixture {
    fn new(
        rng: &mut StdRng,
        routed: [Matrix; 3],
        shared: Option<[Matrix; 3]>,
        tokens: usize,
        k: usize,
    ) -> Self {
        let (n, hidden) = (routed[0].stack() as u32, routed[0].cols());
        let ids: Vec<u32> = (0..tokens * k).map(|_| rng.random_range(0..n)).collect();
        let weights: Vec<f32> = (0..tokens * k).map(|_| rng.random_range(0.2..1.0)).collect();
        Self {
            routed,
            shared,
            x: normal(rng, &[tokens, hidden]),
            ids: Tensor::from_vec(ids, (tokens, k), &Device::Cpu).unwrap(),
            weights: Tensor::from_vec(weights, (tokens, k), &Device::Cpu).unwrap(),
        }
    }

    /// The first expert gets one pair, the second all the others but every eighth, which go to the last.
    fn uneven(mut self) -> Self {
        let (tokens, k) = self.ids.dims2().unwrap();
        let last = self.routed[0].stack() as u32 - 1;
        let mut ids: Vec<u32> =
            (0..tokens * k).map(|i| if i % 8 == 0 { last } else { 1 }).collect();
        ids[tokens * k / 2] = 0;
        self.ids = Tensor::from_vec(ids, (tokens, k), &Device::Cpu).unwrap();
        self
    }

    fn run(&self, place: &Place, ws: &candle_ds4_ops::Workspace) -> Result<Vec<Tensor>> {
        let on = |weights: &[Matrix; 3]| {
            weights.iter().map(|w| place.matrix(w)).collect::<Result<Vec<_>>>()
        };
        let (routed, shared) = (on(&self.routed)?, self.shared.as_ref().map(on).transpose()?);
        let (x, ids) = (place.tensor(&self.x)?, place.tensor(&self.ids)?);
        let weights = place.tensor(&self.weights)?;
        let shared = shared.as_deref().map(mlp);
        Ok(vec![experts(&x, mlp(&routed), &ids, &weights, shared, 1.5, ws)?])
    }
}

#[test]
fn experts_of_every_format_alone_and_grouped() {
    let mut rng = random();
    let q8 = [Format::Q8_0; 2];
    for (formats, shared) in [
        ([Format::Iq2Xxs, Format::Q2K], true),
        ([Format::Q4K; 2], false),
        ([Format::Q2K, Format::Iq2Xxs], false),
        (q8, true),
        ([Format::F16; 2], false),
    ] {
        let routed = network(&mut rng, formats, 5, 256, 256);
        let shared = shared.then(|| network(&mut rng, q8, 1, 256, 128));
        for tokens in [0, 1, 6, 33, 64, 65, 75, 200] {
            let mixture = Mixture::new(&mut rng, routed.clone(), shared.clone(), tokens, 3);
            let case = format!("{formats:?}, {tokens} tokens");
            compare(&case, 4.0 * HALVES, |place, ws| mixture.run(place, ws));
            if tokens > 64 {
                let uneven = mixture.uneven();
                let case = format!("{case}, uneven");
                compare(&case, 4.0 * HALVES, |place, ws| uneven.run(place, ws));
            }
        }
    }
    let routed = network(&mut rng, [Format::F32; 2], 2, 256, 256);
    let mixture = Mixture::new(&mut rng, routed, None, 2, 1);
    refused("F32", |place, ws| mixture.run(place, ws));
}

#[test]
fn one_token_of_the_two_bit_model() {
    let mut rng = random();
    let routed = network(&mut rng, [Format::Iq2Xxs, Format::Q2K], 2, 4096, 2048);
    let shared = network(&mut rng, [Format::Q8_0; 2], 1, 4096, 512);
    let mixture = Mixture::new(&mut rng, routed, Some(shared), 1, 3);
    compare("one token", 2.0 * BYTES, |place, ws| mixture.run(place, ws));
    // The router's choice in the same launches: by score, and by token.
    let router = stack(&mut rng, Format::F16, 1, 2, 4096);
    let bias = normal(&mut rng, &[2]);
    let table = Tensor::new(&[[0u32, 0, 1], [1, 0, 1]], &Device::Cpu).unwrap();
    let token = Tensor::new(&[1u32], &Device::Cpu).unwrap();
    for hash in [false, true] {
        compare(&format!("routed, by token {hash}"), 2.0 * BYTES, |place, ws| {
            let on = |weights: &[Matrix; 3]| {
                weights.iter().map(|w| place.matrix(w)).collect::<Result<Vec<_>>>()
            };
            let routed = on(&mixture.routed)?;
            let shared = mixture.shared.as_ref().map(on).transpose()?;
            let (router, x) = (place.matrix(&router)?, place.tensor(&mixture.x)?);
            let [bias, table, token] = [&bias, &table, &token].map(|t| place.tensor(t));
            let (bias, table, tokens) = (bias?, table?, token?);
            let choice = match hash {
                true => Choice::Hash { table: &table, tokens: &tokens },
                false => Choice::TopK { k: 2, bias: Some(&bias) },
            };
            let (routed, shared) = (mlp(&routed), shared.as_deref().map(mlp));
            let given = routed_experts(&x, &router, choice, 1.5, routed, shared, 1.5, ws)?;
            Ok(vec![given.compute(ws)?])
        });
    }
}

/// Items of one pair, of two and of four, tokens for one, two and four products of eight.
#[test]
fn few_tokens_of_the_two_bit_model() {
    let mut rng = random();
    let routed = network(&mut rng, [Format::Iq2Xxs, Format::Q2K], 5, 4096, 2048);
    let shared = network(&mut rng, [Format::Q8_0; 2], 1, 4096, 256);
    for (tokens, k, with_shared) in
        [(2, 2, true), (5, 1, false), (8, 1, true), (17, 1, true), (32, 1, true)]
    {
        let shared = with_shared.then(|| shared.clone());
        let mut mixture = Mixture::new(&mut rng, routed.clone(), shared, tokens, k);
        if tokens == 32 {
            // All of them want the same one.
            mixture.ids = (mixture.ids.zeros_like().unwrap() + 3.0).unwrap();
        }
        compare(&format!("{tokens} tokens"), 2.0 * BYTES, |place, ws| mixture.run(place, ws));
    }
}

/// What is no number, and what comes of an expert that is not there, stays so, and in its token.
#[test]
fn a_few_tokens_that_are_no_numbers() {
    let mut rng = random();
    let routed = network(&mut rng, [Format::Iq2Xxs, Format::Q2K], 2, 4096, 2048);
    let shared = network(&mut rng, [Format::Q8_0; 2], 1, 4096, 256);
    let good = Mixture::new(&mut rng, routed, Some(shared), 4, 2);
    let mut ids = good.ids.flatten_all().unwrap().to_vec1::<u32>().unwrap();
    let mut x = good.x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    ids[2] = 2;
    x[3 * 4096 + 77] = f32::NAN;
    let odd = Mixture {
        ids: Tensor::from_vec(ids, (4, 2), &Device::Cpu).unwrap(),
        x: Tensor::from_vec(x, (4, 4096), &Device::Cpu).unwrap(),
        routed: good.routed.clone(),
        shared: good.shared.clone(),
        weights: good.weights.clone(),
    };
    let rows = |outputs: &[Tensor]| outputs[0].to_vec2::<f32>().unwrap();
    for (good, odd) in everywhere(|place, ws| good.run(place, ws))
        .iter()
        .zip(&everywhere(|place, ws| odd.run(place, ws)))
    {
        let (good, odd) = (rows(good), rows(odd));
        assert!(odd[1].iter().chain(&odd[3]).all(|v| v.is_nan()));
        assert_eq!((&odd[0], &odd[2]), (&good[0], &good[2]));
    }
}

const DIM: usize = 512;

/// Sequences, heads, window, ratio, format of rows, and how many of them are chosen.
type Case<'a> = (&'a [(usize, usize)], usize, usize, Option<usize>, RowFormat, Option<usize>);

/// Sequences as `(tokens before, tokens in the batch)`.
struct Attention {
    of: Vec<(usize, usize)>,
    window: usize,
    ratio: Option<usize>,
    format: RowFormat,
    chosen: Option<Tensor>,
    q: Tensor,
    /// Window rows of every position of every sequence, rounded as the model does.
    kv: Vec<Tensor>,
    rows: Vec<Tensor>,
    sinks: Tensor,
}

impl Attention {
    fn new(
        rng: &mut StdRng,
        of: &[(usize, usize)],
        heads: usize,
        window: usize,
        ratio: Option<usize>,
        format: RowFormat,
        top_k: Option<usize>,
    ) -> Self {
        let rounded = |rng: &mut StdRng, rows: usize| {
            let rows = normal(rng, &[rows, DIM]);
            kv_round_trip(&rows, 448).unwrap();
            rows
        };
        let tokens: usize = of.iter().map(|(_, len)| len).sum();
        let chosen = top_k.zip(ratio).map(|(k, ratio)| {
            let mut ids = Vec::new();
            for position in of.iter().flat_map(|&(start, len)| start..start + len) {
                let mut list: Vec<u32> = (0..((position + 1) / ratio) as u32)
                    .filter(|_| rng.random_range(0..2) == 0)
                    .take(k)
                    .collect();
                list.resize(k, NO_ROW);
                ids.extend(list);
            }
            Tensor::from_vec(ids, (tokens, k), &Device::Cpu).unwrap()
        });
        Self {
            of: of.to_vec(),
            window,
            ratio,
            format,
            chosen,
            q: normal(rng, &[tokens, heads, DIM]),
            kv: of.iter().map(|&(start, len)| rounded(rng, start + len)).collect(),
            rows: of
                .iter()
                .map(|&(start, len)| rounded(rng, (start + len) / ratio.unwrap_or(usize::MAX)))
                .collect(),
            sinks: normal(rng, &[heads]),
        }
    }

    /// Plain, or with queries and values turned by a table.
    fn run(
        &self,
        place: &Place,
        ws: &candle_ds4_ops::Workspace,
        turned: Option<&RopeTable>,
    ) -> Result<Vec<Tensor>> {
        let device = place.device();
        let mut rings = Vec::new();
        let mut lists = Vec::new();
        let mut own = Vec::new();
        for (i, &(start, len)) in self.of.iter().enumerate() {
            let ring = Ring::new(self.window + 3, DIM, &device)?;
            if start > 0 {
                let before = place.tensor(&self.kv[i].narrow(0, 0, start)?.contiguous()?)?;
                write_rings(&[(vec![&ring], &before)], &Ragged::new(&[(0, start)], &device)?)?;
            }
            rings.push(ring);
            own.push(self.kv[i].narrow(0, start, len)?);
            if let Some(ratio) = self.ratio {
                let mut list = Rows::with_format(ratio, self.format, &device);
                let rows = place.tensor(&self.rows[i])?;
                let all = Ragged::new(&[(0, start + len)], &device)?;
                append_rows(vec![&mut list], &rows, &all, ratio)?;
                lists.push(list);
            }
        }
        let kv = place.tensor(&Tensor::cat(&own, 0)?)?;
        let chosen = self.chosen.as_ref().map(|ids| place.tensor(ids)).transpose()?;
        let rows: Vec<&Rows> = lists.iter().collect();
        let compressed = self.ratio.map(|ratio| Compressed {
            rows: &rows,
            selection: match &chosen {
                Some(ids) => Selection::Chosen(ids),
                None => Selection::Visible { ratio },
            },
        });
        let (q, sinks) = (place.tensor(&self.q)?, place.tensor(&self.sinks)?);
        let rings: Vec<&Ring> = rings.iter().collect();
        let batch = Ragged::new(&self.of, &device)?;
        let scale = (DIM as f32).powf(-0.5);
        let of = candle_ds4_ops::Attention {
            q: &q,
            kv: &kv,
            windows: &rings,
            window: self.window,
            compressed,
            sinks: &sinks,
            scale,
            batch: &batch,
        };
        let Some(table) = turned else { return Ok(vec![sink_attention(of, ws)?]) };
        let out = turned_attention(of, table, 1e-6, ws)?;
        // The rings have the batch's rows now.
        Ok([out].into_iter().chain(rings.iter().map(|ring| ring.data().clone())).collect())
    }
}

#[test]
fn attention_over_rings_pages_and_choices() {
    let mut rng = random();
    let (plain, packed) = (RowFormat::F32 { width: DIM }, RowFormat::Fp8 { nope: 448, rope: 64 });
    let cases: [Case<'_>; 9] = [
        (&[(0, 1)], 4, 128, None, plain, None),
        (&[(200, 1), (3, 2)], 12, 128, None, plain, None),
        (&[(300, 1)], 4, 128, Some(4), packed, None),
        (&[(261, 3), (0, 5)], 8, 20, Some(4), packed, Some(30)),
        (&[(90, 1)], 64, 16, Some(2), plain, None),
        (&[(40, 9), (0, 8)], 64, 16, Some(4), packed, None),
        (&[(120, 17)], 64, 24, Some(4), packed, Some(16)),
        // More than two chunks of rows, and of tokens than there are blocks at a time.
        (&[(260, 15), (0, 2)], 64, 128, Some(2), packed, None),
        (&[(390, 16)], 128, 100, Some(2), packed, Some(150)),
    ];
    for (of, heads, window, ratio, format, top_k) in cases {
        let attention = Attention::new(&mut rng, of, heads, window, ratio, format, top_k);
        let case = format!("{of:?}, {heads} heads, ratio {ratio:?}, {top_k:?} chosen");
        compare(&case, HALVES, |place, ws| attention.run(place, ws, None));
        compare(&format!("{case}, turned"), HALVES, |place, ws| {
            attention.run(place, ws, Some(&RopeTable::yarn(160_000.0, 64, &Yarn::default())))
        });
    }
    let (q, kv) = (normal(&mut rng, &[1, 2, 96]), normal(&mut rng, &[1, 96]));
    let sinks = normal(&mut rng, &[2]);
    refused("rows of 96", |place, ws| {
        let ring = Ring::new(8, 96, &place.device())?;
        let batch = Ragged::new(&[(0, 1)], &place.device())?;
        let [q, kv, sinks] = [&q, &kv, &sinks].map(|t| place.tensor(t));
        let (q, kv, sinks) = (q?, kv?, sinks?);
        let of = candle_ds4_ops::Attention {
            q: &q,
            kv: &kv,
            windows: &[&ring],
            window: 8,
            compressed: None,
            sinks: &sinks,
            scale: 0.1,
            batch: &batch,
        };
        Ok(vec![sink_attention(of, ws)?])
    });
}

#[test]
fn the_same_rows_are_chosen_ties_included() {
    let mut rng = random();
    for (of, heads, ratio, k, packed) in [
        (&[(400, 1)][..], 64, 1, 37, true),
        (&[(9, 1)], 16, 4, 8, true),
        (&[(150, 3), (0, 9), (620, 2)], 16, 2, 50, false),
        (&[(300, 20)], 8, 1, 256, true),
        (&[(290, 13), (0, 5), (300, 2)], 64, 1, 40, true),
        (&[(40, 17), (600, 2)], 64, 2, 30, false),
    ] {
        let tokens: usize = of.iter().map(|(_, len)| len).sum();
        // Whole numbers, so that sums are exact and scores repeat.
        let mut whole = |shape: &[usize], range: i32| {
            let values: Vec<f32> = (0..shape.iter().product())
                .map(|_| rng.random_range(-range..=range) as f32)
                .collect();
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        };
        let (q, weights) = (whole(&[tokens, heads, 128], 2), whole(&[tokens, heads], 2));
        let keys: Vec<Tensor> =
            of.iter().map(|&(start, len)| whole(&[(start + len) / ratio, 128], 2)).collect();
        let format = match packed {
            true => RowFormat::Fp4 { width: 128 },
            false => RowFormat::F32 { width: 128 },
        };
        compare(&format!("{of:?}, {heads} heads, {k} wanted"), 0.0, |place, ws| {
            let device = place.device();
            let mut lists = Vec::new();
            for (keys, &(start, len)) in keys.iter().zip(of) {
                let mut list = Rows::with_format(ratio, format, &device);
                let all = Ragged::new(&[(0, start + len)], &device)?;
                append_rows(vec![&mut list], &place.tensor(keys)?, &all, ratio)?;
                lists.push(list);
            }
            let lists: Vec<&Rows> = lists.iter().collect();
            let batch = Ragged::new(of, &device)?;
            let (q, weights) = (place.tensor(&q)?, place.tensor(&weights)?);
            Ok(vec![select_rows(&q, &weights, &lists, ratio, k, &batch, ws)?])
        });
    }
}

#[test]
fn raw_queries_choose_what_turned_and_rounded_ones_do() {
    let mut rng = random();
    let rope = RopeTable::yarn(160_000.0, 64, &Yarn::default());
    let of = [(700, 1), (90, 2)];
    let (q, weights) = (normal(&mut rng, &[3, 64, 128]), normal(&mut rng, &[3, 64]));
    let keys = of.map(|(start, len)| normal(&mut rng, &[start + len, 128]));
    for keys in &keys {
        Rounding::HadamardFp4.apply(keys).unwrap();
    }
    compare("raw queries", 0.0, |place, ws| {
        let device = place.device();
        let mut lists = Vec::new();
        for (keys, &(start, len)) in keys.iter().zip(&of) {
            let mut list = Rows::with_format(1, RowFormat::Fp4 { width: 128 }, &device);
            let all = Ragged::new(&[(0, start + len)], &device)?;
            append_rows(vec![&mut list], &place.tensor(keys)?, &all, 1)?;
            lists.push(list);
        }
        let lists: Vec<&Rows> = lists.iter().collect();
        let batch = Ragged::new(&of, &device)?;
        let (q, weights) = (place.tensor(&q)?, place.tensor(&weights)?);
        let rounding = Rounding::HadamardFp4;
        Ok(vec![select_rows_raw(&q, &rope, rounding, &weights, &lists, 1, 60, &batch, ws)?])
    });
}
