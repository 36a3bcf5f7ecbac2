use super::*;
use rand::{rngs::StdRng, Rng, SeedableRng};

type Decoder = fn(&[u8], &mut [f32]);

/// Each format with its portable decoder.
fn portable(format: Format) -> Decoder {
    match format {
        Format::F32 => plain::decode_f32,
        Format::F16 => plain::decode_f16_portable,
        Format::BF16 => plain::decode_bf16,
        Format::Q8_0 => |b, o| q8_0::portable(b.as_chunks().0, o.as_chunks_mut().0),
        Format::Q2K => |b, o| q2_k::portable(b.as_chunks().0, o.as_chunks_mut().0),
        Format::Q4K => |b, o| q4_k::portable(b.as_chunks().0, o.as_chunks_mut().0),
        Format::Iq2Xxs => |b, o| iq2_xxs::portable(b.as_chunks().0, o.as_chunks_mut().0),
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/golden/blocks/{name}.bin", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn decoders_give_the_values_of_the_gguf_package_bit_for_bit() {
    let files = ["f16", "bf16", "q8_0", "q2_k", "q4_k", "iq2_xxs"];
    for (format, file) in Format::ALL[1..].iter().zip(files) {
        let blocks = golden(&format!("{file}.blocks"));
        let wanted = golden(&format!("{file}.f32"));
        let wanted: Vec<u32> =
            wanted.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
        let mut got = vec![0.0; wanted.len()];
        format.decode(&blocks, &mut got).unwrap();
        assert_eq!(bits(&got), wanted, "{format}");
        got.fill(0.0);
        portable(*format)(&blocks, &mut got);
        assert_eq!(bits(&got), wanted, "{format}, portable");
    }
}

#[test]
fn fast_decoders_agree_with_portable_ones_on_random_blocks() {
    let mut rng = StdRng::seed_from_u64(4);
    for format in Format::ALL {
        for blocks in [0, 1, 2, 7, 40] {
            // One byte off, so that no load may count on alignment.
            let mut bytes = vec![0; 1 + blocks * format.block_bytes()];
            rng.fill(&mut bytes[..]);
            let bytes = &bytes[1..];
            let mut fast = vec![f32::NAN; blocks * format.block_len()];
            let mut slow = fast.clone();
            format.decode(bytes, &mut fast).unwrap();
            portable(format)(bytes, &mut slow);
            for (i, (fast, slow)) in fast.iter().zip(&slow).enumerate() {
                let same = fast.to_bits() == slow.to_bits() || (fast.is_nan() && slow.is_nan());
                assert!(same, "{format}: value {i} is {fast}, portable {slow}");
            }
        }
    }
}

fn sum(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v)).sum()
}

/// `n` bytes `37i + 11`.
fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (37 * i + 11) as u8).collect()
}

#[test]
fn iq2_xxs_pattern() {
    let mut x = [0.0; 256];
    Format::Iq2Xxs.decode(&[vec![0, 0x2c], pattern(64)].concat(), &mut x).unwrap();
    let first = [-0.1953125, -0.0625, -0.0625, -0.1953125, -0.0625, 0.0625, 0.0625, -0.0625];
    assert_eq!(x[..8], first);
    assert_eq!(sum(&x), -30.3359375);
}

#[test]
fn q2_k_pattern() {
    let mut x = [0.0; 256];
    Format::Q2K.decode(&[pattern(80), vec![0, 0x2c, 0, 0x28]].concat(), &mut x).unwrap();
    assert_eq!(x[..8], [2.0625, 0.0, 0.6875, 1.375, 2.0625, 0.0, 0.6875, 1.375]);
    assert_eq!(x[16], -0.09375);
    assert_eq!(sum(&x), 128.6875);
}

#[test]
fn q4_k_pattern() {
    let mut x = [0.0; 256];
    Format::Q4K.decode(&[vec![0, 0x2c, 0, 0x28], pattern(140)].concat(), &mut x).unwrap();
    let first = [3.84375, 7.28125, -0.28125, 3.15625, 6.59375, -0.96875, 2.46875, 5.90625];
    assert_eq!(x[..8], first);
    assert_eq!(x[32], 35.875);
    assert_eq!(sum(&x), 2781.5);
}

#[test]
fn the_iq2_xxs_grid_is_ggmls() {
    use sha2::{Digest, Sha256};
    let hex = |bytes: Vec<u8>| {
        Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    assert_eq!(
        hex(iq2_xxs::CODES.iter().flat_map(|c| c.to_le_bytes()).collect()),
        "915952ebc4af8ddba8113583ca1316fc818843f7b825bbf1a25ae1c39bf0e16d"
    );
    assert_eq!(
        hex(iq2_xxs::GRID.iter().flat_map(|g| g.to_le_bytes()).collect()),
        "05826b5d3e472a3a78f196be62ac78acf81df0f909626e12ab9fa2a5d490dd54"
    );
    assert!(iq2_xxs::SIGNS
        .iter()
        .enumerate()
        .all(|(t, s)| { s.count_ones() % 2 == 0 && usize::from(s & 127) == t }));
}

#[test]
fn a_row_must_be_whole_blocks_and_fit_memory() {
    for format in Format::ALL {
        let len = format.block_len();
        assert_eq!(format.row_bytes(3 * len).unwrap(), 3 * format.block_bytes());
        assert_eq!(format.row_bytes(0).unwrap(), 0);
        if len > 1 {
            let error = format.row_bytes(len + 1).unwrap_err().to_string();
            assert!(error.contains(format.name()), "{error}");
            assert!(error.contains(&format!("{}", len + 1)), "{error}");
        }
        let short = format.decode(&vec![0; format.block_bytes()], &mut vec![0.0; 2 * len]);
        let error = short.unwrap_err().to_string();
        assert!(error.contains(format.name()), "{error}");
    }
    assert!(Format::F32.row_bytes(usize::MAX).is_err());
    assert!(Format::F16.row_bytes(usize::MAX / 2 + 1).is_err());
}
