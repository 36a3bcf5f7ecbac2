// Eight consecutive values of a row, out of any format: for kernels that need no speed.
#pragma once

#include "layout.h"
#include "memory.cuh"
#include "numbers.cuh"

// The grid of IQ2_XXS.
#ifdef CUDA_EMULATOR
static const uint16_t iq2_xxs_digits[256] = {
#else
static __device__ const uint16_t iq2_xxs_digits[256] = {
#endif
#include "iq2_xxs_digits.h"
};

// Spreads eight two-bit digits to nibbles.
DEVICE uint32_t spread_digits(uint32_t digits) {
    uint32_t x = digits & 0xffffu;
    x = (x | x << 8) & 0x00ff00ffu;
    x = (x | x << 4) & 0x0f0f0f0fu;
    return (x | x << 2) & 0x33333333u;
}

// Bit 2 of nibble j is set where value j is negative: seven given signs, and an even number in all.
DEVICE uint32_t spread_signs(uint32_t seven) {
    const uint32_t all = seven | (bit_count(seven) & 1u) << 7;
    uint32_t x = (all | all << 12) & 0x000f000fu;
    x = (x | x << 6) & 0x03030303u;
    return ((x | x << 3) & 0x11111111u) << 2;
}

// Magnitudes, and their negatives, as bytes that digits and sign bits select.
#define IQ2_XXS_POSITIVE 0x002b1908u
#define IQ2_XXS_NEGATIVE 0x00d5e7f8u

// The 6-bit scale and minimum of group `j` of 32, of Q4_K's twelve bytes (three words).
DEVICE uint2 q4_k_scale(uint32_t s0, uint32_t s1, uint32_t s2, uint32_t j) {
    const uint32_t shift = 8u * (j % 4u), a = s0 >> shift, b = s1 >> shift, c = s2 >> shift;
    // Chosen, not branched to: a branch would keep products of the matrix units from overlapping.
    const bool low = j < 4u;
    return make_uint2(low ? a & 63u : (c & 15u) | (a & 0xc0u) >> 2, low ? b & 63u : (c >> 4 & 15u) | (b & 0xc0u) >> 2);
}

// Values `8 i ..+8` of row `row` of matrix `matrix`; of a plain format's last ones, zeros past the end.
DEVICE void decode8(const Weight& w, uint32_t matrix, uint32_t row, uint32_t i, float (&out)[8]) {
    const uint8_t* planes[3] = {w.plane[0] + matrix * w.stride[0], w.plane[1] + matrix * w.stride[1],
                                w.plane[2] + matrix * w.stride[2]};
    const uint32_t k = 8u * i;
    const uint64_t value = static_cast<uint64_t>(row) * w.cols + k;
    switch (w.format) {
        case WEIGHT_F32:
            for (uint32_t j = 0; j < 8; j++) {
                out[j] = k + j < w.cols ? f32_from_bits(load_weights4(planes[0] + 4u * (value + j))) : 0.0f;
            }
            break;
        case WEIGHT_F16:
        case WEIGHT_BF16:
            for (uint32_t j = 0; j < 8; j++) {
                const uint16_t bits = k + j < w.cols ? load_weights2(planes[0] + 2u * (value + j)) : uint16_t(0);
                out[j] = w.format == WEIGHT_F16 ? f16_to_f32(bits) : bf16_to_f32(bits);
            }
            break;
        case WEIGHT_Q8_0: {
            const uint32_t block = k / 32u, in_tile = row % 16u;
            const uint8_t* tile = planes[0] + q8_0_tile(w.cols, row / 16u, block);
            const uint32_t low = load_weights4(tile + q8_0_in_tile(in_tile, k % 32u));
            const uint32_t high = load_weights4(tile + q8_0_in_tile(in_tile, k % 32u + 4u));
            const uint8_t* scales = planes[1] + q8_0_scales(w.cols, row / 16u, block / 4u);
            const float d = f16_to_f32(load_weights2(scales + q8_0_in_scales(in_tile, block % 4u)));
            for (uint32_t j = 0; j < 8; j++) {
                const uint32_t bits = (j < 4 ? low : high) >> (8u * (j % 4u));
                out[j] = d * static_cast<float>(static_cast<int8_t>(bits & 255u));
            }
            break;
        }
        case WEIGHT_Q2_K: {
            const uint64_t block = value / 256u;
            const uint32_t in = k % 256u, h = in / 128u, j = in / 32u % 4u, sixteen = in / 16u % 2u;
            const uint2 q = load_weights8(planes[0] + block * 64u + h * 32u + sixteen * 16u + in % 16u);
            const uint32_t s = planes[1][block * 16u + 4u * (2u * h + sixteen) + j];
            const float2 d = unpack_f16x2(load_weights4(planes[2] + block * 4u));
            const float scale = d.x * static_cast<float>(s & 15u), minimum = d.y * static_cast<float>(s >> 4);
            for (uint32_t v = 0; v < 8; v++) {
                const uint32_t bits = (v < 4 ? q.x : q.y) >> (8u * (v % 4u) + 2u * j);
                out[v] = fmaf(scale, static_cast<float>(bits & 3u), -minimum);
            }
            break;
        }
        case WEIGHT_Q4_K: {
            const uint64_t block = value / 256u;
            const uint32_t in = k % 256u, j = in / 32u;
            const uint2 q = load_weights8(planes[0] + block * 128u + j / 2u * 32u + in % 32u);
            const uint4 head = load_weights16(planes[1] + block * 16u);
            const float2 d = unpack_f16x2(head.x);
            const uint2 s = q4_k_scale(head.y, head.z, head.w, j);
            const float scale = d.x * static_cast<float>(s.x), minimum = d.y * static_cast<float>(s.y);
            for (uint32_t v = 0; v < 8; v++) {
                const uint32_t bits = (v < 4 ? q.x : q.y) >> (8u * (v % 4u) + 4u * (j % 2u));
                out[v] = fmaf(scale, static_cast<float>(bits & 15u), -minimum);
            }
            break;
        }
        default: {
            const uint32_t blocks = w.cols / 256u, block = k / 256u, group = k / 32u % 8u, run = i % 4u;
            const uint2 code =
                load_weights8(planes[0] + (static_cast<uint64_t>(row) * blocks + block) * 64u + group * 8u);
            const uint64_t d_at =
                static_cast<uint64_t>(row) * iq2_xxs_d_row(w.cols) + iq2_xxs_d_at(blocks, block);
            const float d = f16_to_f32(load_weights2(planes[1] + d_at * 2u));
            const float scale = d * (0.5f + static_cast<float>(code.y >> 28)) * 0.25f;
            const uint32_t digits = iq2_xxs_digits[code.x >> (8u * run) & 255u];
            const uint32_t select = spread_digits(digits) | spread_signs(code.y >> (7u * run) & 127u);
            const uint32_t low = byte_perm(IQ2_XXS_POSITIVE, IQ2_XXS_NEGATIVE, select & 0x7777u);
            const uint32_t high = byte_perm(IQ2_XXS_POSITIVE, IQ2_XXS_NEGATIVE, select >> 16);
            for (uint32_t j = 0; j < 8; j++) {
                const uint32_t bits = (j < 4 ? low : high) >> (8u * (j % 4u));
                out[j] = scale * static_cast<float>(static_cast<int8_t>(bits & 255u));
            }
        }
    }
}
