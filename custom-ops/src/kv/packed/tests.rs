use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use candle_core::{Device, Tensor};

use super::*;
use crate::{hadamard_fp4_round_trip, kv_round_trip};

const FLASH_ROW: RowFormat = RowFormat::Fp8 { nope: 448, rope: 64 };
const FLASH_KEY: RowFormat = RowFormat::Fp4 { width: 128 };

fn formats() -> Vec<RowFormat> {
    let rows = [(448, 64), (64, 32), (128, 32), (96, 32), (24, 8), (7, 2), (0, 4), (3, 0)];
    let rows = rows.map(|(nope, rope)| RowFormat::Fp8 { nope, rope });
    let keys = [1, 2, 16, 32, 64, 128, 256].map(|width| RowFormat::Fp4 { width });
    rows.into_iter().chain(keys).collect()
}

fn rounded(format: RowFormat, row: Vec<f32>) -> Vec<f32> {
    let x = Tensor::from_vec(row, (1, format.width()), &Device::Cpu).unwrap();
    match format {
        RowFormat::Fp8 { nope, .. } => kv_round_trip(&x, nope).unwrap(),
        RowFormat::Fp4 { .. } => hadamard_fp4_round_trip(&x).unwrap(),
        RowFormat::F32 { .. } => {}
    }
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn packed(format: RowFormat, row: &[f32]) -> Vec<u8> {
    // What was there before must not show.
    let mut bytes = vec![0xa5; format.row_bytes()];
    format.pack(row, &mut bytes).unwrap();
    bytes
}

fn assert_same_bits(format: RowFormat, row: &[f32]) {
    let bytes = packed(format, row);
    format.check(&bytes).unwrap();
    let mut back = vec![f32::NAN; row.len()];
    format.unpack(&bytes, &mut back);
    for (channel, (a, b)) in row.iter().zip(&back).enumerate() {
        assert_eq!(a.to_bits(), b.to_bits(), "{format:?}, channel {channel}: {a:e} became {b:e}");
    }
    assert_eq!(packed(format, &back), bytes, "one byte form");
}

/// Rows as they come: Gaussian-like of every magnitude, sparse, with spikes, zeros of both signs,
/// the grid's own points and the middles between them.
fn row(rng: &mut StdRng, width: usize) -> Vec<f32> {
    let kind = rng.random_range(0..6);
    let magnitude = 2f32.powi(rng.random_range(-140..110));
    (0..width)
        .map(|_| {
            let x: f32 = (0..4).map(|_| rng.random_range(-1.0..1.0f32)).sum();
            match kind {
                0 => x,
                1 => x * magnitude,
                2 if rng.random_range(0..8) > 0 => 0f32.copysign(x),
                3 => x * 2f32.powi(rng.random_range(-30..10)),
                4 => f32::from(rng.random_range(-16..=16i8)) * magnitude,
                5 if rng.random_range(0..16) == 0 => x * 1e30,
                _ => x * 1e-3,
            }
        })
        .collect()
}

#[test]
fn every_rounded_row_comes_back_to_the_bit() {
    let mut rng = StdRng::seed_from_u64(584);
    for format in formats() {
        for _ in 0..1500 {
            let row = row(&mut rng, format.width());
            assert_same_bits(format, &rounded(format, row));
        }
    }
}

#[test]
fn zeros_extremes_and_every_code_come_back_to_the_bit() {
    for format in formats() {
        let width = format.width();
        for value in [0.0, -0.0, 1e-38, -1e-45, 1e-4, 9.9e-5, 447.9, -448.0, 1e30, -1e35] {
            assert_same_bits(format, &rounded(format, vec![value; width]));
        }
    }
    // A row of its own for each scale that the rounding can give, with all codes in it.
    for exponent in -22..=119 {
        let codes = (0..=255u8).filter(|&code| !is_nan_code(code)).map(e4m3);
        let row: Vec<f32> = codes.chain([0.0, 0.0]).map(|x| x * 2f32.powi(exponent)).collect();
        let format = RowFormat::Fp8 { nope: 256, rope: 0 };
        // The largest code in each block fixes its scale.
        let row: Vec<f32> = row
            .chunks(63)
            .flat_map(|codes| codes.iter().copied().chain([448.0 * 2f32.powi(exponent)]))
            .collect();
        assert_same_bits(format, &row[..256]);
    }
    let grid = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let grid: Vec<f32> = grid.iter().flat_map(|&x| [x, -x]).collect();
    for exponent in -126..=124 {
        let row: Vec<f32> = grid.iter().map(|x| x * 2f32.powi(exponent)).collect();
        assert_same_bits(RowFormat::Fp4 { width: 16 }, &row);
    }
}

#[test]
fn every_bf16_comes_back_to_the_bit() {
    let format = RowFormat::Fp8 { nope: 0, rope: 2 };
    for bits in 0..=u16::MAX {
        let x = f32::from_bits(u32::from(bits) << 16);
        if x.is_finite() {
            assert_same_bits(format, &[x, -x]);
        }
    }
}

#[test]
fn a_row_that_was_not_rounded_is_refused_by_its_channel() {
    let mut rng = StdRng::seed_from_u64(68);
    for format in formats() {
        let width = format.width();
        let mut bytes = vec![0; format.row_bytes()];
        for _ in 0..200 {
            let mut row = rounded(format, (0..width).map(|i| 1.0 + i as f32).collect());
            let channel = rng.random_range(0..width);
            let value = f32::from_bits(row[channel].to_bits() ^ 1 << rng.random_range(0..12));
            row[channel] = value;
            let refused = format.pack(&row, &mut bytes).unwrap_err();
            assert_eq!((refused.channel, refused.value), (channel, value), "{format:?}");
        }
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut row = vec![0.0; width];
            row[width - 1] = value;
            assert!(format.pack(&row, &mut bytes).is_err(), "{value} in {format:?}");
        }
    }
    let f32s = RowFormat::F32 { width: 2 };
    assert!(f32s.pack(&[1.0, f32::NAN], &mut [0; 8]).is_err());
}

#[test]
fn bytes_that_are_no_row_are_refused_and_all_others_are_rows() {
    let mut rng = StdRng::seed_from_u64(7);
    let f32s = RowFormat::F32 { width: 3 };
    for format in formats().into_iter().chain([f32s]) {
        let len = format.row_bytes();
        let mut row = vec![0.0; format.width()];
        for _ in 0..300 {
            let bytes: Vec<u8> = (0..len).map(|_| rng.random()).collect();
            format.unpack(&bytes, &mut row);
            let good = format.check(&bytes).is_ok();
            assert!(!good || row.iter().all(|x| x.is_finite()), "{format:?}: {row:?}");
        }
        assert!(format.check(&vec![1; len + 1]).is_err() && format.check(&[]).is_err());
    }
    let bytes = packed(FLASH_ROW, &vec![1.0; 512]);
    let refused = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        FLASH_ROW.check(&bytes).unwrap_err().to_string()
    };
    assert_eq!(refused(7, 0xff), "byte 7 of a packed row is 0xff, which is no E4M3 number");
    assert_eq!(refused(449, 0x7f), "byte 449 of a packed row is 0x7f, which is no finite number");
    assert_eq!(refused(582, 0), "byte 582 of a packed row is 0x00, which is no scale");
    assert_eq!(refused(583, 1), "byte 583 of a packed row is 0x01, which is no padding");
    let mut key = packed(FLASH_KEY, &[0.0; 128]);
    key[64] = 253;
    assert!(FLASH_KEY.check(&key).is_err());
}

/// By hand, so that the layout cannot drift on both sides at once.
#[test]
fn the_bytes_are_where_the_layout_says() {
    let mut row = vec![0.0; 512];
    (row[0], row[1], row[63], row[64]) = (448.0, -1.0, 2f32.powi(-9), 3.5);
    (row[447], row[448], row[511]) = (-0.0, 1.0, -2.0);
    let bytes = packed(FLASH_ROW, &row);
    assert_eq!((bytes[0], bytes[1], bytes[63]), (0x7e, 0xb8, 0x01));
    // 3.5 / 448 = 2^-7: 448 again.
    assert_eq!((bytes[64], bytes[447]), (0x7e, 0x80));
    assert_eq!((&bytes[448..450], &bytes[574..576]), (&[0x80, 0x3f][..], &[0x00, 0xc0][..]));
    // 2^0, 2^-7, and 1e-4 / 448 rounded up to 2^-22.
    assert_eq!(bytes[576..], [127, 120, 105, 105, 105, 105, 105, 0]);

    let mut key = vec![0.0; 128];
    (key[0], key[1], key[33], key[127]) = (6.0, -0.5, 1.5, -12.0);
    let bytes = packed(FLASH_KEY, &key);
    assert_eq!((bytes[0], bytes[16], bytes[63]), (0x97, 0x70, 0xf0));
    assert_eq!(bytes[64..], [127, 125, 1, 128]);
}

#[test]
fn the_header_for_kernels_says_the_same() {
    let header = include_str!("../../../include/kv.h");
    let defined = |name: &str| -> usize {
        let line = header.lines().find_map(|line| line.strip_prefix(&format!("#define {name} ")));
        line.unwrap_or_else(|| panic!("{name} is not defined")).parse().unwrap()
    };
    let RowFormat::Fp8 { nope, rope } = FLASH_ROW else { unreachable!() };
    assert_eq!((defined("KV_NOPE"), defined("KV_ROPE")), (nope, rope));
    assert_eq!(defined("KV_BLOCK"), FLASH_ROW.block());
    assert_eq!(defined("KV_ROPE_AT"), nope);
    assert_eq!(defined("KV_SCALES_AT"), FLASH_ROW.scales_at());
    assert_eq!(defined("KV_ROW_BYTES"), FLASH_ROW.row_bytes());
    assert_eq!(defined("KEY_WIDTH"), FLASH_KEY.width());
    assert_eq!(defined("KEY_BLOCK"), FLASH_KEY.block());
    assert_eq!(defined("KEY_SCALES_AT"), FLASH_KEY.scales_at());
    assert_eq!(defined("KEY_BYTES"), FLASH_KEY.row_bytes());
    assert_eq!(defined("KV_PAGE_TOKENS"), crate::PAGE_TOKENS);
}
