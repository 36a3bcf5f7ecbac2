//! The reference, exact to the bit.

/// One scale per `block` values.
pub(super) fn fp8_round_trip(x: &mut [f32], block: usize) {
    for block in x.chunks_exact_mut(block) {
        let scale = fp8_scale(block);
        for x in block {
            *x = e4m3((*x / scale).clamp(-448.0, 448.0)) * scale;
        }
    }
}

/// To the nearest BF16 number, ties to even.
pub(super) fn bf16_round_trip(x: &mut [f32]) {
    for x in x {
        *x = half::bf16::from_f32(*x).to_f32();
    }
}

/// The scale of a block of E4M3 codes.
pub(crate) fn fp8_scale(block: &[f32]) -> f32 {
    power_of_two_at_least(abs_max(block).max(1e-4) / 448.0)
}

/// The scale of a block of E2M1 codes.
pub(crate) fn fp4_scale(block: &[f32]) -> f32 {
    // The smallest amplitude keeps the scale a normal number.
    power_of_two_at_least(abs_max(block).max(6.0 * f32::MIN_POSITIVE) / 6.0)
}

/// One scale per `block` values.
pub(super) fn fp4_round_trip(x: &mut [f32], block: usize) {
    for block in x.chunks_exact_mut(block) {
        let scale = fp4_scale(block);
        for x in block {
            *x = e2m1(*x / scale) * scale;
        }
    }
}

/// Butterflies of stride 1, 2, 4 …, then the factor that keeps lengths.
pub(super) fn hadamard(x: &mut [f32]) {
    let mut stride = 1;
    while stride < x.len() {
        for pair in x.chunks_exact_mut(2 * stride) {
            let (low, high) = pair.split_at_mut(stride);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        stride *= 2;
    }
    let scale = (x.len() as f32).powf(-0.5);
    x.iter_mut().for_each(|x| *x *= scale);
}

fn abs_max(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |max, x| max.max(x.abs()))
}

/// `2^⌈log2 x⌉` of a positive normal number, from its bits: no logarithm to be off by one.
fn power_of_two_at_least(x: f32) -> f32 {
    let bits = x.to_bits();
    let exponent = (bits >> 23) + u32::from(bits & 0x7f_ffff != 0);
    f32::from_bits(exponent << 23)
}

/// Nearest E4M3 number, ties to even; `x` within ±448.
fn e4m3(x: f32) -> f32 {
    if x.abs() < 1.0 / 64.0 {
        // Subnormal there: multiples of 2^-9.
        return (x * 512.0).round_ties_even() / 512.0;
    }
    // Keep 3 of 23 mantissa bits.
    let bits = x.to_bits();
    let half = 0x7_ffff + ((bits >> 20) & 1);
    f32::from_bits(bits.wrapping_add(half) & !0xf_ffff)
}

/// Nearest of ±{0, ½, 1, 1½, 2, 3, 4, 6}, ties to the even code.
fn e2m1(x: f32) -> f32 {
    let a = x.abs();
    let rounded = match a {
        _ if a < 2.0 => (a * 2.0).round_ties_even() / 2.0,
        _ if a < 4.0 => a.round_ties_even(),
        _ if a <= 5.0 => 4.0,
        _ if a > 5.0 => 6.0,
        _ => a,
    };
    rounded.copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fp8_vector() {
        let mut x: Vec<f32> = (0..64).map(|i| (3.0 * (0.37 * f64::from(i)).sin()) as f32).collect();
        assert_eq!(power_of_two_at_least(abs_max(&x) / 448.0), 2f32.powi(-7));
        fp8_round_trip(&mut x, 64);
        assert_eq!(x[..8], [0.0, 1.125, 2.0, 2.75, 3.0, 3.0, 2.5, 1.625]);
        assert_eq!(x.iter().sum::<f32>(), 7.527_343_8);
    }

    #[test]
    fn the_hadamard_and_fp4_vectors() {
        let mut x: Vec<f32> =
            (0..128).map(|i| ((0.11 * f64::from(i)).cos() + 0.01 * f64::from(i)) as f32).collect();
        hadamard(&mut x);
        let want = [8.027_283, -0.017_328_6, -0.034_418_59, -0.005_126_464];
        for (got, want) in x.iter().zip(want) {
            assert!((got - want).abs() < 2e-6, "{got} is not {want}");
        }
        let scales: Vec<f32> =
            x.chunks(32).map(|b| power_of_two_at_least(abs_max(b) / 6.0)).collect();
        assert_eq!(scales, [2.0, 1.0, 1.0, 0.5]);
    }

    /// All 256 codes by their definition: no value may round to anything but a nearest one, and a
    /// tie goes to the even code.
    #[test]
    fn every_rounding_is_to_a_nearest_code() {
        let e4m3_grid: Vec<f32> = (0..127u32)
            .map(|code| match (code >> 3, code & 7) {
                (0, m) => m as f32 * 2f32.powi(-9),
                (e, m) => (1.0 + m as f32 / 8.0) * 2f32.powi(e as i32 - 7),
            })
            .collect();
        assert_eq!(e4m3_grid.last(), Some(&448.0));
        check(&e4m3_grid, e4m3);
        check(&[0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], e2m1);

        fn check(grid: &[f32], round: fn(f32) -> f32) {
            for (code, pair) in grid.windows(2).enumerate() {
                let (low, high) = (pair[0], pair[1]);
                let middle = (low + high) / 2.0;
                let even = if code % 2 == 0 { low } else { high };
                let below = f32::from_bits(middle.to_bits() - 1);
                let above = f32::from_bits(middle.to_bits() + 1);
                for (x, want) in
                    [(low, low), (below, low), (middle, even), (above, high), (high, high)]
                {
                    assert_eq!(round(x), want, "of {x}");
                    assert_eq!(round(-x), -want, "of -{x}");
                }
            }
        }
    }

    #[test]
    fn scales_are_exact_at_powers_of_two() {
        for exponent in -20..20 {
            let x = 2f32.powi(exponent);
            assert_eq!(power_of_two_at_least(x), x);
            assert_eq!(power_of_two_at_least(f32::from_bits(x.to_bits() + 1)), 2.0 * x);
        }
    }
}
