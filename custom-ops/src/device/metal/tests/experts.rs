//! The mixture of experts: few tokens and many, formats together and apart.

use candle_core::{Device, Result, Tensor};
use rand::rngs::StdRng;
use rand::Rng;

use super::{assert_close, floats, matrix, places, rng};
use crate::device::metal::record;
use crate::{experts, routed_experts, Choice, Format, Matrix, Mlp, Workspace};

struct Net([Matrix; 3]);

impl Net {
    fn new(
        formats: [Format; 2],
        stack: usize,
        width: usize,
        hidden: usize,
        rng: &mut StdRng,
    ) -> Self {
        let [inner, down] = formats;
        Self([
            matrix(inner, [stack, width, hidden], rng),
            matrix(inner, [stack, width, hidden], rng),
            matrix(down, [stack, hidden, width], rng),
        ])
    }

    fn mlp(&self) -> Mlp<'_> {
        Mlp { gate: &self.0[0], up: &self.0[1], down: &self.0[2] }
    }
}

fn check(routed: [Format; 2], shared: Option<[Format; 2]>, tokens: usize) -> Result<()> {
    let mut rng = rng();
    let (hidden, width, n, k) = (256, 256, 7, 3);
    let routed_net = Net::new(routed, n, width, hidden, &mut rng);
    let shared_net = shared.map(|formats| Net::new(formats, 1, width, hidden, &mut rng));
    let x = floats((tokens, hidden), 0.05, &mut rng);
    let ids: Vec<u32> = (0..tokens * k).map(|_| rng.random_range(0..n as u32)).collect();
    let ids = Tensor::from_vec(ids, (tokens, k), &Device::Cpu)?;
    let weights = floats((tokens, k), 1.0, &mut rng);
    let ws = Workspace::new(&Device::Cpu);
    let mlp = shared_net.as_ref().map(Net::mlp);
    let want = experts(&x, routed_net.mlp(), &ids, &weights, mlp, 10.0, &ws)?;
    for place in places() {
        let on = |net: &Net| Net(std::array::from_fn(|i| place.matrix(&net.0[i])));
        let (routed_net, shared_net) = (on(&routed_net), shared_net.as_ref().map(on));
        let (x, ids, weights) = (place.tensor(&x), place.tensor(&ids), place.tensor(&weights));
        let mlp = shared_net.as_ref().map(Net::mlp);
        let got = place.run(|ws| experts(&x, routed_net.mlp(), &ids, &weights, mlp, 10.0, ws));
        let case = format!("{routed:?} and {shared:?}, {tokens} tokens, {place}");
        assert_close(&case, &got, &want, 5e-5);
    }
    Ok(())
}

#[test]
fn one_token_in_every_format() -> Result<()> {
    for format in Format::ALL {
        check([format; 2], Some([format; 2]), 1)?;
    }
    check([Format::Q8_0; 2], None, 2)
}

#[test]
fn formats_of_published_files() -> Result<()> {
    use Format::{Iq2Xxs, Q2K, Q4K, Q8_0};
    for tokens in [2, 9] {
        check([Iq2Xxs, Q2K], Some([Q8_0; 2]), tokens)?;
        check([Q4K; 2], Some([Q8_0; 2]), tokens)?;
    }
    Ok(())
}

#[test]
fn formats_that_no_kernel_has_together() -> Result<()> {
    for tokens in [1, 9] {
        check([Format::Q2K, Format::F16], Some([Format::F16, Format::Q4K]), tokens)?;
    }
    Ok(())
}

#[test]
fn many_tokens_in_every_format() -> Result<()> {
    for format in Format::ALL {
        check([format; 2], None, 9)?;
    }
    // More pairs of one expert than a tile has room for.
    check([Format::Q8_0; 2], Some([Format::Q8_0; 2]), 130)
}

#[test]
fn gate_and_up_in_two_formats_are_refused_by_name() {
    let mut rng = rng();
    let mut net = Net::new([Format::Q8_0; 2], 2, 32, 32, &mut rng);
    net.0[1] = matrix(Format::F16, [2, 32, 32], &mut rng);
    let x = floats((1, 32), 1.0, &mut rng);
    let ids = Tensor::new(&[[1u32]], &Device::Cpu).unwrap();
    for place in places() {
        let net = Net(std::array::from_fn(|i| place.matrix(&net.0[i])));
        let (x, ids) = (place.tensor(&x), place.tensor(&ids));
        let weights = place.tensor(&Tensor::new(&[[1f32]], &Device::Cpu).unwrap());
        let refused =
            |ws: &Workspace| experts(&x, net.mlp(), &ids, &weights, None, 10.0, ws).unwrap_err();
        let error = place.run(|ws| Ok(refused(ws).to_string()));
        assert!(error.contains("Q8_0 and F16"), "{error}");
    }
}

fn choice<'a>(rule: usize, k: usize, [bias, table, tokens]: [&'a Tensor; 3]) -> Choice<'a> {
    match rule {
        0 => Choice::Hash { table, tokens },
        1 => Choice::TopK { k, bias: None },
        _ => Choice::TopK { k, bias: Some(bias) },
    }
}

/// The choice and the network, in as few launches as can be.
fn check_routed(
    routed: [Format; 2],
    shared: Option<[Format; 2]>,
    (n, k, tokens): (usize, usize, usize),
    launches: usize,
) -> Result<()> {
    let mut rng = rng();
    // Rows that leave a threadgroup's last block ragged; the shared expert is wider, then narrower.
    let hidden = 256;
    let routed_net = Net::new(routed, n, 256, hidden, &mut rng);
    let shared_width = [512, 64][tokens % 2];
    let shared_net = shared.map(|formats| Net::new(formats, 1, shared_width, hidden, &mut rng));
    let router = matrix(Format::F16, [1, n, hidden], &mut rng);
    let x = floats((tokens, hidden), 0.05, &mut rng);
    let bias = floats(n, 0.3, &mut rng);
    let table: Vec<u32> = (0..20 * k).map(|_| rng.random_range(0..n as u32)).collect();
    let table = Tensor::from_vec(table, (20, k), &Device::Cpu)?;
    let ids: Vec<u32> = (0..tokens).map(|_| rng.random_range(0..20)).collect();
    let ids = Tensor::new(ids, &Device::Cpu)?;
    let ws = Workspace::new(&Device::Cpu);
    for rule in 0..3 {
        let mlp = shared_net.as_ref().map(Net::mlp);
        let by = choice(rule, k, [&bias, &table, &ids]);
        let want = routed_experts(&x, &router, by, 1.5, routed_net.mlp(), mlp, 0.7, &ws)?;
        let want = want.compute(&ws)?;
        for place in places() {
            let on = |net: &Net| Net(std::array::from_fn(|i| place.matrix(&net.0[i])));
            let (routed_net, shared_net) = (on(&routed_net), shared_net.as_ref().map(on));
            let [x, bias, table, ids] = [&x, &bias, &table, &ids].map(|t| place.tensor(t));
            let (router, mlp) = (place.matrix(&router), shared_net.as_ref().map(Net::mlp));
            let by = choice(rule, k, [&bias, &table, &ids]);
            let run = |ws: &Workspace| {
                routed_experts(&x, &router, by, 1.5, routed_net.mlp(), mlp, 0.7, ws)?.compute(ws)
            };
            let (got, log) = record(|| place.run(run));
            let case = format!("{routed:?}, {shared:?}, {tokens} of {k} of {n}, {rule}, {place}");
            assert_close(&case, &got, &want, 1e-4);
            assert_eq!(log.len(), launches, "{case}: {log:?}");
        }
    }
    Ok(())
}

#[test]
fn few_tokens_choose_their_experts_on_the_way() -> Result<()> {
    let q8 = Some([Format::Q8_0; 2]);
    check_routed([Format::Iq2Xxs, Format::Q2K], q8, (37, 6, 1), 3)?;
    check_routed([Format::Q4K; 2], q8, (256, 6, 2), 3)?;
    check_routed([Format::Q8_0; 2], None, (5, 5, 3), 3)?;
    check_routed([Format::F16; 2], Some([Format::F16; 2]), (9, 1, 8), 3)
}

#[test]
fn what_cannot_choose_on_the_way_has_been_chosen_before() -> Result<()> {
    // A shared expert in blocks that are not read among others; more experts than are looked through.
    check_routed([Format::Q2K; 2], Some([Format::Q2K; 2]), (9, 2, 2), 4)?;
    check_routed([Format::Q8_0; 2], Some([Format::Q8_0; 2]), (300, 2, 1), 4)
}
