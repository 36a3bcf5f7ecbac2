//! IQ2_XXS, 66 bytes for 256 values: `f16 d`, then 8 groups of 32 values, each `u32 a`, `u32 b`.
//!
//! Group scale `d·(0.5 + (b >> 28))/4`. Its values lie in four runs of eight: run `l` takes the
//! magnitudes `GRID[byte l of a]` and the signs of the 7-bit number `t = (b >> 7l) & 127`: bit `j`
//! negates value `j`, and the last value is negated where that makes the negations an even number.
//! `x = scale·magnitude`, with the sign.

use super::half_at;

/// Values in a block.
pub(super) const LEN: usize = 256;
/// Bytes of a block.
pub(super) const BYTES: usize = 66;

pub(super) const GROUPS: usize = 2;

/// Decodes whole blocks.
pub(super) fn decode(bytes: &[u8], out: &mut [f32]) {
    let (blocks, out) = (bytes.as_chunks().0, out.as_chunks_mut().0);
    #[cfg(target_arch = "x86_64")]
    if crate::dot::avx2::available() {
        // SAFETY: the features were just found to be there.
        return unsafe { avx2::decode(blocks, out) };
    }
    portable(blocks, out)
}

pub(super) fn portable(blocks: &[[u8; BYTES]], out: &mut [[f32; LEN]]) {
    for (block, out) in blocks.iter().zip(out) {
        let d = half_at(block, 0);
        for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (runs, b) = group_at(block, group);
            let scale = d * (0.5 + (b >> 28) as f32) * 0.25;
            for (l, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let magnitudes = GRID[usize::from(runs[l])].to_le_bytes();
                let signs = SIGNS[(b >> (7 * l)) as usize & 127];
                for (j, (out, magnitude)) in out.iter_mut().zip(magnitudes).enumerate() {
                    let x = scale * f32::from(magnitude);
                    *out = if signs >> j & 1 == 1 { -x } else { x };
                }
            }
        }
    }
}

/// `a` as bytes, and `b`, of a group.
#[inline(always)]
fn group_at(block: &[u8; BYTES], group: usize) -> ([u8; 4], u32) {
    let at = GROUPS + 8 * group;
    let four = |at: usize| [block[at], block[at + 1], block[at + 2], block[at + 3]];
    (four(at), u32::from_le_bytes(four(at + 4)))
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        _mm256_and_si256, _mm256_castsi256_ps, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32,
        _mm256_mul_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32, _mm256_sllv_epi32,
        _mm256_xor_ps, _mm_cvtsi64_si128,
    };

    use super::super::avx2::{half_at, store};
    use super::{group_at, BYTES, GRID, LEN, SIGNS};

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn decode(blocks: &[[u8; BYTES]], out: &mut [[f32; LEN]]) {
        // Moves bit `j` of lane `j` to where an f32 has its sign.
        let to_sign = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
        let sign = _mm256_set1_epi32(i32::MIN);
        for (block, out) in blocks.iter().zip(out) {
            let d = half_at(block, 0);
            for group in 0..8 {
                let (runs, b) = group_at(block, group);
                let scale = _mm256_set1_ps(d * (0.5 + (b >> 28) as f32) * 0.25);
                for (l, run) in runs.into_iter().enumerate() {
                    let grid = _mm_cvtsi64_si128(GRID[usize::from(run)] as i64);
                    let x = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(grid));
                    let signs = i32::from(SIGNS[(b >> (7 * l)) as usize & 127]);
                    let signs = _mm256_sllv_epi32(_mm256_set1_epi32(signs), to_sign);
                    let signs = _mm256_castsi256_ps(_mm256_and_si256(signs, sign));
                    let x = _mm256_xor_ps(_mm256_mul_ps(scale, x), signs);
                    store(out, 32 * group + 8 * l, x);
                }
            }
        }
    }
}

/// The signs of a run, bit `j` for value `j`: seven given ones, and an even number in all.
pub(super) static SIGNS: [u8; 128] = {
    let mut signs = [0; 128];
    let mut t = 0;
    while t < 128 {
        signs[t] = t as u8 | ((t as u8).count_ones() as u8 & 1) << 7;
        t += 1;
    }
    signs
};

/// The magnitudes of a run, byte `j` (of the little-endian number) for value `j`.
pub(super) static GRID: [u64; 256] = {
    let mut grid = [0; 256];
    let mut g = 0;
    while g < 256 {
        let mut j = 0;
        while j < 8 {
            grid[g] |= LEVELS[(CODES[g] >> (2 * j)) as usize & 3] << (8 * j);
            j += 1;
        }
        g += 1;
    }
    grid
};

/// What the digits 0, 1 and 2 stand for; 3 does not occur.
const LEVELS: [u64; 4] = [8, 25, 43, 0];

/// The grid of ggml (MIT licence) in eight two-bit digits an entry, lowest digit first.
pub(super) const CODES: [u16; 256] = [
    0x0000, 0x0002, 0x0005, 0x0008, 0x000a, 0x0011, 0x0014, 0x0020, 0x0022, 0x0028, 0x002a, 0x0041,
    0x0044, 0x0050, 0x0058, 0x0061, 0x0064, 0x0080, 0x0082, 0x008a, 0x00a2, 0x0101, 0x0104, 0x0110,
    0x0115, 0x0140, 0x0184, 0x0198, 0x0200, 0x0202, 0x0222, 0x0282, 0x0401, 0x0404, 0x0410, 0x0421,
    0x0424, 0x0440, 0x0442, 0x0448, 0x0460, 0x0481, 0x0484, 0x0490, 0x04a4, 0x0500, 0x0502, 0x0508,
    0x0520, 0x0546, 0x0569, 0x0580, 0x0591, 0x0609, 0x0610, 0x0640, 0x0684, 0x06a4, 0x0800, 0x0805,
    0x0808, 0x0814, 0x0828, 0x0841, 0x0844, 0x0850, 0x0852, 0x0888, 0x0904, 0x0940, 0x0a02, 0x0a14,
    0x1001, 0x1004, 0x1010, 0x1021, 0x1040, 0x1060, 0x1084, 0x1090, 0x1095, 0x1100, 0x1108, 0x1120,
    0x1150, 0x115a, 0x1180, 0x1224, 0x1245, 0x1400, 0x1408, 0x1420, 0x1425, 0x1449, 0x1480, 0x1518,
    0x1562, 0x1600, 0x1616, 0x1801, 0x1804, 0x1810, 0x1840, 0x1881, 0x1900, 0x1905, 0x19a0, 0x1a51,
    0x2000, 0x2002, 0x200a, 0x2044, 0x2061, 0x2080, 0x2082, 0x2129, 0x2148, 0x2200, 0x2202, 0x2401,
    0x2404, 0x2410, 0x2440, 0x2456, 0x2500, 0x2541, 0x2564, 0x2690, 0x2808, 0x2820, 0x2894, 0x2a44,
    0x4001, 0x4004, 0x4010, 0x4018, 0x4021, 0x4024, 0x4040, 0x4048, 0x4056, 0x4060, 0x4081, 0x4084,
    0x4090, 0x4100, 0x4120, 0x4161, 0x4180, 0x4185, 0x4201, 0x4210, 0x4248, 0x4256, 0x4268, 0x4400,
    0x4408, 0x4420, 0x4480, 0x4499, 0x4512, 0x4524, 0x4600, 0x4801, 0x4804, 0x4810, 0x4840, 0x4845,
    0x4900, 0x4958, 0x4961, 0x4982, 0x4a45, 0x4a90, 0x5000, 0x5008, 0x5011, 0x5019, 0x5020, 0x5080,
    0x5088, 0x5104, 0x5142, 0x51a4, 0x5291, 0x5490, 0x5492, 0x550a, 0x5601, 0x5654, 0x5800, 0x5811,
    0x5819, 0x5864, 0x5940, 0x5a08, 0x6004, 0x6010, 0x6040, 0x6068, 0x6100, 0x6155, 0x6218, 0x6260,
    0x6400, 0x6405, 0x6510, 0x6512, 0x6584, 0x6842, 0x8000, 0x8002, 0x800a, 0x8041, 0x8082, 0x8104,
    0x8118, 0x8140, 0x8211, 0x8401, 0x8404, 0x8410, 0x8415, 0x8440, 0x8460, 0x8500, 0x8546, 0x8594,
    0x8609, 0x8640, 0x8660, 0x8802, 0x8904, 0x8a11, 0x9004, 0x9010, 0x9024, 0x9040, 0x90a1, 0x9116,
    0x9180, 0x9245, 0x9400, 0x9422, 0x9444, 0x9551, 0x9881, 0x9920, 0xa002, 0xa050, 0xa085, 0xa109,
    0xa200, 0xa418, 0xa850, 0xa904,
];
