// A weight in pieces of 4 KB, as a warp that multiplies a tile of 16 rows with one token takes it: 256
// columns of Q8_0, or 128 of F16. `g` is lane / 4, `t` lane % 4: a lane has rows g and g + 8.
#pragma once

#include "layout.h"
#include "memory.cuh"
#include "numbers.cuh"

// 4 KB of a tile and its scales: a lane's part.
struct Piece {
    uint4 q[8];
    uint4 s[2];
};

// Where a lane's part of a piece is; nowhere, which is zeros, without a bit in `mask`.
struct Source {
    const uint8_t* q;
    const uint8_t* s;
    uint32_t row_step;  // F16: from row g to row g + 8, in bytes; 0 for Q8_0
    uint32_t mask;
};

// Piece `index` of the tile of rows `16 tile ..` of the first matrix.
DEVICE Source aim(const Weight& w, uint32_t tile, uint32_t index) {
    const uint32_t lane = lane_id(), g = lane / 4u, t = lane % 4u, blocks = w.cols / 32u;
    Source from;
    if (w.format == WEIGHT_F16) {
        const uint32_t row = tile * 16u + g, count = min(4u, blocks - index * 4u);
        from.q = w.plane[0] + (static_cast<uint64_t>(row) * w.cols + index * 128u + t * 8u) * 2u;
        from.s = from.q;
        from.row_step = 16u * w.cols;
        from.mask = ((row < w.rows ? 0x55u : 0u) | (row + 8u < w.rows ? 0xaau : 0u)) & ((1u << 2u * count) - 1u);
    } else {
        from.q = w.plane[0] + q8_0_tile(w.cols, tile, index * 8u) + lane * 16u;
        from.s = w.plane[1] + q8_0_scales(w.cols, tile, index * 2u) + g * 16u;
        from.row_step = 0;
        from.mask = (1u << min(8u, blocks - index * 8u)) - 1u;
    }
    return from;
}

DEVICE Source nowhere() { return {nullptr, nullptr, 0, 0}; }

DEVICE uint4 fetch(const Source& from, uint32_t i) {
    const uint32_t offset = from.row_step ? i / 2u * 64u + i % 2u * from.row_step : i * Q8_0_TILE_BYTES;
    return from.mask >> i & 1u ? load_weights16(from.q + offset) : make_uint4(0, 0, 0, 0);
}

DEVICE uint4 fetch_scales(const Source& from, uint32_t i) {
    return from.row_step == 0 && (from.mask >> 4u * i & 1u) ? load_weights16(from.s + i * Q8_0_SCALES_BYTES)
                                                            : make_uint4(0, 0, 0, 0);
}

DEVICE void fetch_all(Piece& piece, const Source& from) {
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) piece.q[i] = fetch(from, i);
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) piece.s[i] = fetch_scales(from, i);
}

DEVICE uint32_t word(const uint4& v, uint32_t i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// One token and a piece of Q8_0: a lane has rows g and g + 8 and an eighth of each block's columns. What has
// been used is replaced by the next piece at once, so that as much is under way at any time as registers hold.
//
// `fetch_next(i)` is part i of the next piece; `quants` and `scales` are of the piece's first block, and
// `there` how many blocks of x there are from it on: one past the end has zero weights.
template <class Fetch, uint32_t N>
DEVICE void multiply_1(Piece& piece, Fetch fetch_next, const Source& next, const uint32_t* quants, const float* scales,
                       uint32_t there, float (&sum)[N]) {
    const uint32_t t = lane_id() % 4u;
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) {
        const uint32_t block = min(i, there - 1u);
        const uint32_t x0 = quants[block * 8u + t], x1 = quants[block * 8u + 4u + t];
        const float scale = scales[block];
        const uint4 q = piece.q[i];
        piece.q[i] = fetch_next(i);
        const float2 w = unpack_f16x2(word(piece.s[i / 4u], i % 4u));
        const int32_t s0 = dp4a(q.z, x1, dp4a(q.x, x0, 0)), s1 = dp4a(q.w, x1, dp4a(q.y, x0, 0));
        sum[0] = fmaf(static_cast<float>(s0), w.x * scale, sum[0]);
        sum[1] = fmaf(static_cast<float>(s1), w.y * scale, sum[1]);
        if (i % 4u == 3u) piece.s[i / 4u] = fetch_scales(next, i / 4u);
    }
}

// Quantises what eight neighbouring lanes hold of 32 values: the bytes of these four, and the scale.
// A NaN or an infinity must not vanish in the rounding: the scale carries it.
DEVICE uint32_t quantize_shared_scale(float4 v, float& scale) {
    float most = max_abs4(v);
    most = fmaxf(most, shuffle_xor(most, 1u));
    most = fmaxf(most, shuffle_xor(most, 2u));
    most = fmaxf(most, shuffle_xor(most, 4u));
    float odd = v.x + v.y + v.z + v.w;
    odd = odd - odd;
    odd += shuffle_xor(odd, 1u);
    odd += shuffle_xor(odd, 2u);
    odd += shuffle_xor(odd, 4u);
    scale = most * (1.0f / 127.0f) + odd;
    return quantize4(v, most > 0.0f ? 127.0f / most : 0.0f);
}

// `count` floats (a multiple of 32) as bytes in order and a scale for each 32, by `threads` threads of which
// this is number `thread`: whole warps. `four(i)` is values 4 i ..+4; `AT_ONCE` of them are under way.
template <uint32_t AT_ONCE, class Four>
DEVICE void quantize_to_shared(Four four, uint32_t count, uint32_t* quants, float* scales, uint32_t thread, uint32_t threads) {
    for (uint32_t from = 0; from < count / 4u; from += AT_ONCE * threads) {
        float4 v[AT_ONCE];
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) {
            const uint32_t i = from + j * threads + thread;
            v[j] = i < count / 4u ? four(i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) {
            if (from + j * threads >= count / 4u) break;
            const uint32_t i = from + j * threads + thread;
            float scale;
            const uint32_t bytes = quantize_shared_scale(v[j], scale);
            if (i < count / 4u) {
                quants[i] = bytes;
                if (i % 8u == 0u) scales[i / 8u] = scale;
            }
        }
    }
}

// The same of four neighbouring lanes with eight values each. A NaN or an infinity has the largest bits.
DEVICE uint2 quantize8_shared_scale(float4 a, float4 b, float& scale) {
    uint32_t bits = max(max(f32_bits(a.x) << 1, f32_bits(a.y) << 1), max(f32_bits(a.z) << 1, f32_bits(a.w) << 1));
    bits = max(bits, max(max(f32_bits(b.x) << 1, f32_bits(b.y) << 1), max(f32_bits(b.z) << 1, f32_bits(b.w) << 1)));
    bits = max(bits, shuffle_xor(bits, 1u));
    bits = max(bits, shuffle_xor(bits, 2u));
    const bool finite = bits < 0xff000000u;
    const float most = f32_from_bits(bits >> 1), inverse = finite && bits != 0 ? 127.0f / most : 0.0f;
    scale = finite ? most * (1.0f / 127.0f) : f32_from_bits(0x7fc00000u);
    return make_uint2(quantize4(a, inverse), quantize4(b, inverse));
}

// Floats as they are in memory, by the whole block.
DEVICE void quantize_to_shared(const float* x, uint32_t count, uint32_t* quants, float* scales) {
    constexpr uint32_t AT_ONCE = 2;
    for (uint32_t from = 0; from < count / 8u; from += AT_ONCE * blockDim.x) {
        float4 v[AT_ONCE][2];
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) {
            const uint32_t i = from + j * blockDim.x + threadIdx.x;
#pragma unroll
            for (uint32_t k = 0; k < 2; k++) {
                v[j][k] = i < count / 8u ? load_written16(x + 8u * i + 4u * k) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            }
        }
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) {
            if (from + j * blockDim.x >= count / 8u) break;
            const uint32_t i = from + j * blockDim.x + threadIdx.x;
            float scale;
            const uint2 bytes = quantize8_shared_scale(v[j][0], v[j][1], scale);
            if (i < count / 8u) reinterpret_cast<uint2*>(quants)[i] = bytes;
            if (i < count / 8u && i % 4u == 0u) scales[i / 4u] = scale;
        }
    }
}
