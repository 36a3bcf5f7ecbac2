// The rounding that V4 was trained with, exact to the bit: FP8 (E4M3) and FP4 (E2M1) with scales that
// are powers of two.
#pragma once

#include "numbers.cuh"

// 2^⌈log2 x⌉ of a positive normal number, from its bits: no logarithm to be off by one.
DEVICE float power_of_two_at_least(float x) {
    const uint32_t bits = f32_bits(x);
    return f32_from_bits(((bits >> 23) + uint32_t((bits & 0x7fffff) != 0)) << 23);
}

// The scale of a block whose largest magnitude is `most`.
DEVICE float fp8_scale(float most) { return power_of_two_at_least(fmaxf(most, 1e-4f) / 448.0f); }
DEVICE float fp4_scale(float most) {
    // The smallest amplitude keeps the scale a normal number.
    return power_of_two_at_least(fmaxf(most, 6.0f * 1.17549435e-38f) / 6.0f);
}

// Nearest E4M3 number, ties to even; `x` within ±448.
DEVICE float round_e4m3(float x) {
    if (fabsf(x) < 1.0f / 64.0f) return rintf(x * 512.0f) / 512.0f;
    const uint32_t bits = f32_bits(x);
    return f32_from_bits((bits + 0x7ffff + ((bits >> 20) & 1)) & ~0xfffffu);
}

// Nearest of ±{0, ½, 1, 1½, 2, 3, 4, 6}, ties to the even code.
DEVICE float round_e2m1(float x) {
    const float a = fabsf(x);
    const float rounded = a < 2.0f ? rintf(a * 2.0f) / 2.0f : a < 4.0f ? rintf(a) : a <= 5.0f ? 4.0f : 6.0f;
    return f32_from_bits(f32_bits(rounded) | (f32_bits(x) & 0x80000000u));
}

// Nearest BF16 number, ties to even.
DEVICE float round_bf16(float x) {
    const uint32_t bits = f32_bits(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return f32_from_bits((bits | 0x400000) & 0xffff0000);
    return f32_from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000);
}

// The code of a number that is one already.
DEVICE uint8_t e4m3_code(float x) {
    const uint32_t sign = f32_bits(x) >> 24 & 0x80;
    const float a = fabsf(x);
    const uint32_t magnitude = a < 1.0f / 64.0f ? uint32_t(a * 512.0f) : (f32_bits(a) - (120u << 23)) >> 20;
    return uint8_t(sign | min(magnitude, 0x7fu));
}
DEVICE uint8_t e2m1_code(float x) {
    const uint32_t sign = f32_bits(x) >> 28 & 8;
    const float a = fabsf(x);
    const uint32_t magnitude = a < 2.0f ? uint32_t(a * 2.0f) : a < 4.0f ? uint32_t(a + 2.0f) : a < 6.0f ? 6 : 7;
    return uint8_t(sign | magnitude);
}
