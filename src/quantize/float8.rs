//! The small floats of the original checkpoint.

#![forbid(unsafe_code)]

/// E4M3 without infinities: sign, four exponent bits (bias 7), three of mantissa; all ones is NaN.
pub(super) fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (byte >> 3 & 15, f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (8.0 + mantissa) * power_of_two(i32::from(exponent) - 10),
    };
    if byte & 0x80 != 0 {
        -magnitude
    } else {
        magnitude
    }
}

/// E8M0: a power of two from 2^-127; all ones is NaN.
pub(super) fn e8m0(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(1 << 22),
        0xff => f32::NAN,
        _ => f32::from_bits(u32::from(byte) << 23),
    }
}

/// E2M1, the lowest four bits: sign, two exponent bits, one of mantissa.
pub(super) fn e2m1(code: u8) -> f32 {
    const VALUES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let magnitude = VALUES[usize::from(code & 7)];
    if code & 8 != 0 {
        -magnitude
    } else {
        magnitude
    }
}

/// 2 to a power that a normal f32 has.
fn power_of_two(power: i32) -> f32 {
    f32::from_bits(((power + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_floats_have_their_published_values() {
        let e4m3s = [(0x00, 0.0), (0x01, 0.001953125), (0x07, 0.013671875), (0x08, 0.015625)];
        for (byte, value) in e4m3s.into_iter().chain([(0x38, 1.0), (0x7e, 448.0), (0xc0, -2.0)]) {
            assert_eq!(e4m3(byte), value, "{byte:#x}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan() && e8m0(0xff).is_nan());
        assert_eq!(
            [e8m0(127), e8m0(0), e8m0(1), e8m0(254)].map(f32::log2),
            [0.0, -127.0, -126.0, 127.0]
        );
        assert_eq!([2, 7, 9, 15].map(e2m1), [1.0, 6.0, -0.5, -6.0]);
        // Rising through all positive codes.
        assert!((0..0x7e).all(|b| e4m3(b) < e4m3(b + 1)));
    }
}
