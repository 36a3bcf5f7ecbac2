// Numbers smaller than a float, one or several in a register.
#pragma once

#include "warp.cuh"

#ifndef CUDA_EMULATOR

DEVICE float f16_to_f32(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
DEVICE uint16_t f32_to_f16(float value) { return __half_as_ushort(__float2half_rn(value)); }

// Two halves in a word, the first one low.
DEVICE uint32_t pack_f16x2(float low, float high) {
    const __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
}
DEVICE float2 unpack_f16x2(uint32_t bits) {
    return __half22float2(*reinterpret_cast<const __half2*>(&bits));
}
DEVICE uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
    const __half2 r = __hfma2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b),
                              *reinterpret_cast<const __half2*>(&c));
    return *reinterpret_cast<const uint32_t*>(&r);
}
DEVICE uint32_t mul_f16x2(uint32_t a, uint32_t b) {
    const __half2 r =
        __hmul2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
    return *reinterpret_cast<const uint32_t*>(&r);
}

DEVICE uint32_t f32_bits(float value) { return __float_as_uint(value); }
DEVICE float f32_from_bits(uint32_t bits) { return __uint_as_float(bits); }

// Round half to even.
DEVICE int32_t round_to_int(float value) { return __float2int_rn(value); }

// `c` + the sum of the products of four signed bytes.
DEVICE int32_t dp4a(uint32_t a, uint32_t b, int32_t c) {
    return __dp4a(static_cast<int32_t>(a), static_cast<int32_t>(b), c);
}
// The same with unsigned bytes in `a`.
DEVICE int32_t dp4a_unsigned(uint32_t a, uint32_t b, int32_t c) {
    int32_t d;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// Byte i of the result is byte `selector >> 4i & 7` of {low, high}. Bit 3 of a selector must be clear:
// the instruction alone is used because the library's function masks the selector first.
DEVICE uint32_t byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
    uint32_t r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(low), "r"(high), "r"(selector));
    return r;
}

// Hides from the compiler that a value is constant: a constant operand of a byte permute lives in a
// uniform register and is moved before every use.
DEVICE uint32_t opaque(uint32_t value) {
    asm volatile("" : "+r"(value));
    return value;
}

DEVICE float fast_exp(float value) { return __expf(value); }

// Within two units in the last place.
DEVICE float fast_reciprocal(float value) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(value));
    return r;
}

#endif

DEVICE float bf16_to_f32(uint16_t bits) { return f32_from_bits(static_cast<uint32_t>(bits) << 16); }

// A power of two from its e8m0 code.
DEVICE float e8m0_to_f32(uint8_t code) {
    return f32_from_bits(code == 0 ? 0x00400000u : static_cast<uint32_t>(code) << 23);
}

// Two e4m3 codes (in the low bytes of `codes`'s halves' upper bytes, see caller) as halves, times
// 2^-8: shifting exponent and mantissa into place leaves the difference of the biases, and f16's
// subnormals hold e4m3's.
DEVICE uint32_t e4m3_high_bytes_to_f16x2(uint32_t codes) {
    return (codes & 0x80008000u) | ((codes & 0x7f007f00u) >> 1);
}

// Four signed bytes: the nearest integers to `v` times `inverse`.
DEVICE uint32_t quantize4(float4 v, float inverse) {
    const uint32_t a = static_cast<uint32_t>(round_to_int(v.x * inverse)) & 255u;
    const uint32_t b = static_cast<uint32_t>(round_to_int(v.y * inverse)) & 255u;
    const uint32_t c = static_cast<uint32_t>(round_to_int(v.z * inverse)) & 255u;
    const uint32_t d = static_cast<uint32_t>(round_to_int(v.w * inverse)) & 255u;
    return a | b << 8 | c << 16 | d << 24;
}

DEVICE float max_abs4(float4 v) {
    return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
}
