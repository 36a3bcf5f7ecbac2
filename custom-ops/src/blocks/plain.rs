//! F32, F16 and BF16: one value after the other, little endian, at any address.

use half::f16;

/// Decodes IEEE singles.
pub(super) fn decode_f32(bytes: &[u8], out: &mut [f32]) {
    let (values, _) = bytes.as_chunks::<4>();
    for (out, &value) in out.iter_mut().zip(values) {
        *out = f32::from_le_bytes(value);
    }
}

/// Decodes upper halves of IEEE singles.
pub(super) fn decode_bf16(bytes: &[u8], out: &mut [f32]) {
    let (values, _) = bytes.as_chunks::<2>();
    for (out, &value) in out.iter_mut().zip(values) {
        *out = f32::from_bits(u32::from(u16::from_le_bytes(value)) << 16);
    }
}

/// Decodes IEEE halves.
pub(super) fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    let (values, _) = bytes.as_chunks::<2>();
    #[cfg(target_arch = "x86_64")]
    if crate::dot::avx2::available() {
        // SAFETY: the features were just found to be there.
        return unsafe { avx2::decode_f16(values, out) };
    }
    portable_f16(values, out)
}

fn portable_f16(values: &[[u8; 2]], out: &mut [f32]) {
    for (out, &value) in out.iter_mut().zip(values) {
        *out = f16::from_le_bytes(value).to_f32();
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{_mm256_cvtph_ps, _mm256_storeu_ps, _mm_loadu_si128};

    #[target_feature(enable = "avx2,f16c")]
    pub(super) fn decode_f16(values: &[[u8; 2]], out: &mut [f32]) {
        let (eights, rest) = values.as_chunks::<8>();
        let (out_eights, out_rest) = out.as_chunks_mut::<8>();
        for (value, out) in eights.iter().zip(out_eights) {
            // SAFETY: 16 readable bytes; unaligned loads are allowed.
            let halves = unsafe { _mm_loadu_si128(value.as_ptr().cast()) };
            // SAFETY: eight writable f32; unaligned stores are allowed.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(halves)) };
        }
        super::portable_f16(rest, out_rest);
    }
}

#[cfg(test)]
pub(super) fn decode_f16_portable(bytes: &[u8], out: &mut [f32]) {
    portable_f16(bytes.as_chunks().0, out)
}
