//! The mixture of experts: few tokens and many, formats together and apart.

use candle_core::{Device, Result, Tensor};
use rand::rngs::StdRng;
use rand::Rng;

use super::{assert_close, floats, matrix, places, rng};
use crate::{experts, Format, Matrix, Mlp, Workspace};

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
