// Products on the matrix units: weights come out of their blocks straight into the registers of the A
// operand, activations are halves in shared memory, which all warps of a block read.
//
// Lane `4 g + t` holds, of each 32 columns, eight of row g and of row g + 8. Which eight is up to the
// format (HalvesOrder), as long as the activations are laid out in the same way.
#pragma once

#include "decode.cuh"
#include "matmul.h"
#include "memory.cuh"
#include "mma.cuh"

// Where column `c` of 32 lies among halves in this order.
DEVICE uint32_t half_at(uint32_t c, uint32_t order) {
    const bool q8_0 = order == HALVES_FOR_Q8_0 || order == HALVES_OF_Q8_0_FOR_WGMMA;
    const uint32_t at = q8_0 ? c % 16u / 4u * 8u + c / 16u * 4u + c % 4u : c;
    return order >= HALVES_FOR_WGMMA ? at % 8u / 2u * 8u + at / 8u * 2u + at % 2u : at;
}

// Shared memory of the tables with which IQ2_XXS is decoded.
#define IQ2_XXS_TABLE_BYTES (384u * 128u)

// Fills them: the digits of each grid entry, and the signs of each index, spread to nibbles, once for
// each lane, so that every lane reads its own bank. A barrier must follow.
DEVICE void fill_iq2_xxs_tables(uint32_t* tables) {
    for (uint32_t i = threadIdx.x; i < 384u * 8u; i += blockDim.x) {
        const uint32_t entry = i / 8u;
        const uint32_t v = entry < 256u ? spread_digits(iq2_xxs_digits[entry]) : spread_signs(entry - 256u);
        reinterpret_cast<uint4*>(tables)[i] = make_uint4(v, v, v, v);
    }
}

// Integers 0 .. 255 in the bytes of `v`, plus 1024, as halves: bytes 0 and 1, or 2 and 3.
DEVICE uint32_t low_bytes_to_f16x2(uint32_t v) { return byte_perm(v, 0x64646464u, 0x4140u); }
DEVICE uint32_t high_bytes_to_f16x2(uint32_t v) { return byte_perm(v, 0x64646464u, 0x4342u); }

#define F16X2_ONE 0x3c003c00u
#define F16X2_EIGHTH 0x30003000u
#define F16X2_SIXTEENTH 0x2c002c00u
#define F16X2_MINUS_64 0xd400d400u
#define F16X2_MINUS_128 0xd800d800u
#define F16X2_MINUS_1024 0xe400e400u
#define F16X2_MINUS_1152 0xe480e480u

// A half twice: the low one of a word, or the high one.
DEVICE uint32_t low_half_twice(uint32_t v) { return byte_perm(v, v, 0x1010u); }
DEVICE uint32_t high_half_twice(uint32_t v) { return byte_perm(v, v, 0x3232u); }
// A whole number below 1024 plus 1024, twice, as halves.
DEVICE uint32_t count_to_f16x2(uint32_t n) { return n * 0x00010001u + 0x64006400u; }

// Bytes that stand for `byte - 128`, times a scale. The difference is exact; there is one rounding.
DEVICE void scale_bytes(uint32_t bytes, uint32_t scale, uint32_t& low, uint32_t& high) {
    low = mul_f16x2(fma_f16x2(low_bytes_to_f16x2(bytes), F16X2_ONE, F16X2_MINUS_1152), scale);
    high = mul_f16x2(fma_f16x2(high_bytes_to_f16x2(bytes), F16X2_ONE, F16X2_MINUS_1152), scale);
}

// Bytes times a scale, plus a shift.
DEVICE void scale_and_shift_bytes(uint32_t bytes, uint32_t scale, uint32_t shift, uint32_t& low,
                                  uint32_t& high) {
    low = fma_f16x2(fma_f16x2(low_bytes_to_f16x2(bytes), F16X2_ONE, F16X2_MINUS_1024), scale, shift);
    high = fma_f16x2(fma_f16x2(high_bytes_to_f16x2(bytes), F16X2_ONE, F16X2_MINUS_1024), scale, shift);
}

// Where a lane's part of 16 rows of a weight is, how 64 columns (a chunk) get to it, and how they are decoded
// to the A operands of 32 (a block). Rows past the last are read as the last.
//
// A chunk is fetched into registers; or the warp copies SPAN chunks of its rows to shared memory in the
// background (`copy`, STAGED bytes), from where, once they have come and all lanes know, each lane takes what it
// decodes. There, sixteen-byte pieces of rows change places so that lanes that read together read all banks.
template <uint32_t FORMAT> struct Rows16;

template <> struct Rows16<WEIGHT_Q8_0> {
    const uint8_t* quants;
    const uint8_t* scales;

    struct Chunk {
        uint4 q[2];
        uint2 s;
    };

    DEVICE_MEMBER void aim(const Weight& w, uint32_t matrix, uint32_t tile) {
        const uint32_t lane = lane_id();
        quants = w.plane[0] + matrix * w.stride[0] + q8_0_tile(w.cols, tile, 0) + lane * 16u;
        scales = w.plane[1] + matrix * w.stride[1] + q8_0_scales(w.cols, tile, 0) + lane / 4u * 16u;
    }
    DEVICE_MEMBER void fetch(Chunk& c, uint32_t index) const {
        c.q[0] = load_weights16(quants + index * (2u * Q8_0_TILE_BYTES));
        c.q[1] = load_weights16(quants + index * (2u * Q8_0_TILE_BYTES) + Q8_0_TILE_BYTES);
        c.s = load_weights8(scales + index / 2u * Q8_0_SCALES_BYTES + index % 2u * 8u);
    }
    static constexpr uint32_t SPAN = 1, STAGED = 1024u + 64u;
    DEVICE_MEMBER void copy(unsigned char* stage, uint32_t index) const {
        const uint32_t lane = lane_id();
        const uint8_t* from = quants + index * (2u * Q8_0_TILE_BYTES);
        copy16_async(stage + lane * 16u, from);
        copy16_async(stage + 512u + lane * 16u, from + Q8_0_TILE_BYTES);
        if (lane % 4u == 0) {
            copy8_async(stage + 1024u + lane * 2u, scales + index / 2u * Q8_0_SCALES_BYTES + index % 2u * 8u);
        }
    }
    DEVICE_MEMBER void take(Chunk& c, const unsigned char* stage, uint32_t) const {
        const uint32_t lane = lane_id();
        c.q[0] = *reinterpret_cast<const uint4*>(stage + lane * 16u);
        c.q[1] = *reinterpret_cast<const uint4*>(stage + 512u + lane * 16u);
        c.s = *reinterpret_cast<const uint2*>(stage + 1024u + lane / 4u * 8u);
    }
    DEVICE_MEMBER void decode(const Chunk& c, uint32_t, uint32_t block, const uint32_t*,
                              uint32_t (&a)[2][4]) const {
        const uint4 q = c.q[block];
        const uint32_t s = block == 0 ? c.s.x : c.s.y;
        const uint32_t s0 = (s & 0xffffu) * 0x10001u, s1 = (s >> 16) * 0x10001u;
        scale_bytes(q.x ^ 0x80808080u, s0, a[0][0], a[0][2]);
        scale_bytes(q.y ^ 0x80808080u, s1, a[0][1], a[0][3]);
        scale_bytes(q.z ^ 0x80808080u, s0, a[1][0], a[1][2]);
        scale_bytes(q.w ^ 0x80808080u, s1, a[1][1], a[1][3]);
    }
};

// What the formats with whole rows share: a lane's rows. Offsets in a matrix of blocks are 32 bits.
struct TwoRows {
    uint32_t row[2];

    DEVICE_MEMBER void aim_rows(const Weight& w, uint32_t tile) {
        const uint32_t g = lane_id() / 4u;
        row[0] = min(tile * 16u + g, w.rows - 1u);
        row[1] = min(tile * 16u + g + 8u, w.rows - 1u);
    }
};

template <> struct Rows16<WEIGHT_F16> : TwoRows {
    const uint8_t* plane;
    uint32_t cols;

    struct Chunk {
        uint4 q[2][2];
    };

    DEVICE_MEMBER void aim(const Weight& w, uint32_t matrix, uint32_t tile) {
        aim_rows(w, tile);
        plane = w.plane[0] + matrix * w.stride[0] + lane_id() % 4u * 16u;
        cols = w.cols;
    }
    DEVICE_MEMBER void fetch(Chunk& c, uint32_t index) const {
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            const uint8_t* from = plane + (static_cast<uint64_t>(row[r]) * cols + index * 64u) * 2u;
            c.q[r][0] = load_weights16(from);
            c.q[r][1] = load_weights16(from + 64);
        }
    }
    static constexpr uint32_t SPAN = 1, STAGED = 2048u;
    DEVICE_MEMBER void copy(unsigned char* stage, uint32_t index) const {
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            const uint8_t* from = plane + (static_cast<uint64_t>(row[r]) * cols + index * 64u) * 2u;
            copy16_async(stage + r * 1024u + lane_id() * 16u, from);
            copy16_async(stage + r * 1024u + 512u + lane_id() * 16u, from + 64);
        }
    }
    DEVICE_MEMBER void take(Chunk& c, const unsigned char* stage, uint32_t) const {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            c.q[i / 2u][i % 2u] = *reinterpret_cast<const uint4*>(stage + i * 512u + lane_id() * 16u);
        }
    }
    DEVICE_MEMBER void decode(const Chunk& c, uint32_t, uint32_t block, const uint32_t*,
                              uint32_t (&a)[2][4]) const {
        const uint32_t zero = cols >> 31;
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            // In registers of their own, as a compiler believes that may be another value: those of a chunk change
            // while products in the background read.
            const uint4 q = c.q[r][block];
            a[0][r] = q.x + zero;
            a[0][2 + r] = q.y + zero;
            a[1][r] = q.z + zero;
            a[1][2 + r] = q.w + zero;
        }
    }
};

template <> struct Rows16<WEIGHT_IQ2_XXS> : TwoRows {
    const uint8_t* codes;
    const uint8_t* scales;
    uint32_t blocks;
    uint32_t levels;

    struct Chunk {
        uint4 q[2];
        uint32_t d[2];  // the low half
    };

    DEVICE_MEMBER void aim(const Weight& w, uint32_t matrix, uint32_t tile) {
        aim_rows(w, tile);
        codes = w.plane[0] + matrix * w.stride[0];
        scales = w.plane[1] + matrix * w.stride[1];
        blocks = w.cols / 256u;
        // The magnitudes plus 128, as something that a compiler believes to differ from lane to lane: it would
        // move a constant before every use.
        levels = 0x00ab9988u + (row[0] >> 31);
    }
    // Of the d of chunk `index` in its row.
    DEVICE_MEMBER uint32_t d_of(uint32_t index) const { return iq2_xxs_d_at(blocks, index / 4u); }
    DEVICE_MEMBER uint32_t d_row() const { return (blocks + 1u) / 2u * 2u; }

    DEVICE_MEMBER void fetch(Chunk& c, uint32_t index) const {
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            c.q[r] = load_weights16(codes + (row[r] * (blocks * 64u) + index * 16u));
            c.d[r] = load_weights2(scales + (row[r] * d_row() + d_of(index)) * 2u);
        }
    }
    static constexpr uint32_t SPAN = 4, STAGED = 1024u + 64u;
    DEVICE_MEMBER void copy(unsigned char* stage, uint32_t index) const {
        const uint32_t g = lane_id() / 4u, t = lane_id() % 4u;
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            const uint32_t of_tile = g + 8u * r;
            copy16_async(stage + of_tile * 64u + (t ^ g / 2u) * 16u, codes + (row[r] * (blocks * 64u) + index * 16u + t * 16u));
            // The word that has it.
            if (t == 0) copy4_async(stage + 1024u + of_tile * 4u, scales + (row[r] * d_row() + (d_of(index) & ~1u)) * 2u);
        }
    }
    DEVICE_MEMBER void take(Chunk& c, const unsigned char* stage, uint32_t index) const {
        const uint32_t g = lane_id() / 4u, shift = d_of(index) % 2u * 16u;
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            const uint32_t of_tile = g + 8u * r;
            c.q[r] = *reinterpret_cast<const uint4*>(stage + of_tile * 64u + (index % 4u ^ g / 2u) * 16u);
            c.d[r] = *reinterpret_cast<const uint32_t*>(stage + 1024u + of_tile * 4u) >> shift;
        }
    }
    DEVICE_MEMBER void decode(const Chunk& c, uint32_t, uint32_t block, const uint32_t* tables,
                              uint32_t (&a)[2][4]) const {
        const uint32_t lane = lane_id(), t = lane % 4u, at = shared_address(tables + lane);
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            const uint32_t runs = block == 0 ? c.q[r].x : c.q[r].z, signs = block == 0 ? c.q[r].y : c.q[r].w;
            const uint32_t select = load_shared4<0>(at + byte_perm(runs, 0u, 0x4440u | t) * 128u) |
                                    load_shared4<32768>(at + (signs >> 7u * t & 127u) * 128u);
            // The magnitudes and their negatives, plus 128.
            const uint32_t low = byte_perm(levels, 0x00556778u, select);
            const uint32_t high = byte_perm(levels, 0x00556778u, select >> 16);
            // d (2s + 1) / 8, rounded once.
            const uint32_t odd = (signs >> 28) * 0x00020002u + 0x64016401u;
            const uint32_t eighths = fma_f16x2(odd, F16X2_EIGHTH, F16X2_MINUS_128);
            const uint32_t scale = mul_f16x2(eighths, low_half_twice(c.d[r]));
            scale_bytes(low, scale, a[0][r], a[0][2 + r]);
            scale_bytes(high, scale, a[1][r], a[1][2 + r]);
        }
    }
};

template <> struct Rows16<WEIGHT_Q2_K> : TwoRows {
    const uint8_t* quants;
    const uint8_t* scales;
    const uint8_t* ds;
    uint32_t blocks;

    struct Chunk {
        uint2 q[2];
        uint32_t s[2];
        uint32_t d[2];
    };

    DEVICE_MEMBER void aim(const Weight& w, uint32_t matrix, uint32_t tile) {
        aim_rows(w, tile);
        quants = w.plane[0] + matrix * w.stride[0];
        scales = w.plane[1] + matrix * w.stride[1];
        ds = w.plane[2] + matrix * w.stride[2];
        blocks = w.cols / 256u;
    }
    DEVICE_MEMBER void fetch(Chunk& c, uint32_t index) const {
        const uint32_t half = index / 2u % 2u, t = lane_id() % 4u;
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            const uint32_t block = row[r] * blocks + index / 4u;
            c.q[r] = load_weights8(quants + (block * 64u + half * 32u + t * 8u));
            c.s[r] = load_weights4(scales + (block * 16u + half * 8u + t / 2u * 4u));
            c.d[r] = load_weights4(ds + block * 4u);
        }
    }
    static constexpr uint32_t SPAN = 4, STAGED = 1024u + 256u + 64u;
    DEVICE_MEMBER void copy(unsigned char* stage, uint32_t index) const {
        const uint32_t g = lane_id() / 4u, t = lane_id() % 4u;
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            const uint32_t of_tile = g + 8u * r, block = row[r] * blocks + index / 4u;
            copy16_async(stage + of_tile * 64u + (t ^ g / 2u % 2u * 2u) * 16u, quants + (block * 64u + t * 16u));
            if (t == 0) copy16_async(stage + 1024u + of_tile * 16u, scales + block * 16u);
            if (t == 1) copy4_async(stage + 1280u + of_tile * 4u, ds + block * 4u);
        }
    }
    DEVICE_MEMBER void take(Chunk& c, const unsigned char* stage, uint32_t index) const {
        const uint32_t half = index / 2u % 2u, g = lane_id() / 4u, t = lane_id() % 4u;
        const uint32_t piece = (half * 2u + t / 2u) ^ g / 2u % 2u * 2u;
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            const uint32_t of_tile = g + 8u * r;
            c.q[r] = *reinterpret_cast<const uint2*>(stage + of_tile * 64u + piece * 16u + t % 2u * 8u);
            c.s[r] = *reinterpret_cast<const uint32_t*>(stage + 1024u + of_tile * 16u + half * 8u + t / 2u * 4u);
            c.d[r] = *reinterpret_cast<const uint32_t*>(stage + 1280u + of_tile * 4u);
        }
    }
    DEVICE_MEMBER void decode(const Chunk& c, uint32_t index, uint32_t block, const uint32_t*,
                              uint32_t (&a)[2][4]) const {
        const uint32_t j = index % 2u * 2u + block, pick = 0x4040u + j * 0x0101u;
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            // Scale and minimum are the nibbles of byte j, rounded once when d has been multiplied in.
            const uint32_t both = byte_perm(c.s[r], 0x64646464u, pick);
            const uint32_t scales = fma_f16x2(both & 0xff0fff0fu, F16X2_ONE, F16X2_MINUS_1024);
            const uint32_t minima = fma_f16x2(both & 0xfff0fff0u, F16X2_SIXTEENTH, F16X2_MINUS_64);
            const uint32_t scale = mul_f16x2(scales, low_half_twice(c.d[r]));
            const uint32_t shift = mul_f16x2(minima, high_half_twice(c.d[r]) ^ 0x80008000u);
            scale_and_shift_bytes(c.q[r].x >> 2u * j & 0x03030303u, scale, shift, a[0][r], a[0][2 + r]);
            scale_and_shift_bytes(c.q[r].y >> 2u * j & 0x03030303u, scale, shift, a[1][r], a[1][2 + r]);
        }
    }
};

template <> struct Rows16<WEIGHT_Q4_K> : TwoRows {
    const uint8_t* quants;
    const uint8_t* heads;
    uint32_t blocks;

    struct Chunk {
        uint2 q[2];
        uint4 head[2];
    };

    DEVICE_MEMBER void aim(const Weight& w, uint32_t matrix, uint32_t tile) {
        aim_rows(w, tile);
        quants = w.plane[0] + matrix * w.stride[0];
        heads = w.plane[1] + matrix * w.stride[1];
        blocks = w.cols / 256u;
    }
    DEVICE_MEMBER void fetch(Chunk& c, uint32_t index) const {
        const uint32_t t = lane_id() % 4u;
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            const uint32_t block = row[r] * blocks + index / 4u;
            c.q[r] = load_weights8(quants + (block * 128u + index % 4u * 32u + t * 8u));
            c.head[r] = load_weights16(heads + block * 16u);
        }
    }
    static constexpr uint32_t SPAN = 4, STAGED = 2048u + 256u;
    DEVICE_MEMBER void copy(unsigned char* stage, uint32_t index) const {
        const uint32_t g = lane_id() / 4u, t = lane_id() % 4u;
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            const uint32_t of_tile = g + 8u * r, block = row[r] * blocks + index / 4u;
            copy16_async(stage + of_tile * 128u + (t ^ g % 4u * 2u) * 16u, quants + (block * 128u + t * 16u));
            copy16_async(stage + of_tile * 128u + ((t + 4u) ^ g % 4u * 2u) * 16u, quants + (block * 128u + 64u + t * 16u));
            if (t == 0) copy16_async(stage + 2048u + of_tile * 16u, heads + block * 16u);
        }
    }
    DEVICE_MEMBER void take(Chunk& c, const unsigned char* stage, uint32_t index) const {
        const uint32_t g = lane_id() / 4u, t = lane_id() % 4u;
        const uint32_t piece = (index % 4u * 2u + t / 2u) ^ g % 4u * 2u;
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            c.q[r] = *reinterpret_cast<const uint2*>(stage + (g + 8u * r) * 128u + piece * 16u + t % 2u * 8u);
            c.head[r] = *reinterpret_cast<const uint4*>(stage + 2048u + (g + 8u * r) * 16u);
        }
    }
    DEVICE_MEMBER void decode(const Chunk& c, uint32_t index, uint32_t block, const uint32_t*,
                              uint32_t (&a)[2][4]) const {
        const uint32_t j = index % 4u * 2u + block;
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            const uint4 head = c.head[r];
            const uint2 s = q4_k_scale(head.y, head.z, head.w, j);
            const uint32_t of_scale = fma_f16x2(count_to_f16x2(s.x), F16X2_ONE, F16X2_MINUS_1024);
            const uint32_t of_shift = fma_f16x2(count_to_f16x2(s.y), F16X2_ONE, F16X2_MINUS_1024);
            const uint32_t scale = mul_f16x2(of_scale, low_half_twice(head.x));
            const uint32_t shift = mul_f16x2(of_shift, high_half_twice(head.x) ^ 0x80008000u);
            scale_and_shift_bytes(c.q[r].x >> 4u * block & 0x0f0f0f0fu, scale, shift, a[0][r], a[0][2 + r]);
            scale_and_shift_bytes(c.q[r].y >> 4u * block & 0x0f0f0f0fu, scale, shift, a[1][r], a[1][2 + r]);
        }
    }
};

// Chunks of activations under way in shared memory.
#define GEMM_STAGES 4u
// Bytes of a chunk of one token.
#define GEMM_TOKEN_BYTES 128u

// `acc[m][n]` += (16 rows of weights m) x (8 tokens n), over all columns. `x_of(n)` is the address of
// the columns of token n of the block, or null for zeros; token 0 is there. `stages` is GEMM_STAGES · 8 NT · 128 bytes.
// All warps of the block must come; the block has met at its end.
template <uint32_t FORMAT, uint32_t MT, uint32_t NT, uint32_t WARPS, class X>
DEVICE void multiply_tiles(const Rows16<FORMAT> (&rows)[MT], uint32_t cols, X x_of, unsigned char* stages,
                           const uint32_t* tables, float (&acc)[MT][NT][4]) {
    constexpr uint32_t STAGE = NT * 8u * GEMM_TOKEN_BYTES, PIECES = NT * 64u;
    constexpr uint32_t MINE = (PIECES + WARPS * 32u - 1u) / (WARPS * 32u);
    const uint32_t lane = lane_id(), g = lane / 4u, t = lane % 4u;
    const uint32_t chunks = cols / 64u;

    // Sixteen bytes of a token's 128; odd tokens swap halves, so that eight lanes read all banks. A token
    // that is not there is not read; an address that is stands in for its own.
    const uint16_t* from[MINE];
    bool there[MINE];
    uint32_t to[MINE];
#pragma unroll
    for (uint32_t i = 0; i < MINE; i++) {
        const uint32_t piece = threadIdx.x + i * WARPS * 32u, n = piece / 8u, part = piece % 8u;
        const uint16_t* x = piece < PIECES ? x_of(n) : nullptr;
        there[i] = x != nullptr;
        from[i] = (there[i] ? x : x_of(0)) + part * 8u;
        to[i] = n * GEMM_TOKEN_BYTES + (part ^ (n % 2u * 4u)) * 16u;
    }
    const auto copy = [&](uint32_t chunk) {
        if (chunk < chunks) {
            unsigned char* stage = stages + chunk % GEMM_STAGES * STAGE;
#pragma unroll
            for (uint32_t i = 0; i < MINE; i++) {
                if (threadIdx.x + i * WARPS * 32u < PIECES) {
                    copy16_async_or_zero(stage + to[i], from[i] + chunk * 64u, there[i]);
                }
            }
        }
        copy_commit();
    };

#pragma unroll
    for (uint32_t i = 0; i + 1 < GEMM_STAGES; i++) copy(i);
    typename Rows16<FORMAT>::Chunk now[MT], next[MT];
#pragma unroll
    for (uint32_t m = 0; m < MT; m++) rows[m].fetch(now[m], 0);

    for (uint32_t chunk = 0; chunk < chunks; chunk++) {
        copy_wait<GEMM_STAGES - 2>();
        __syncthreads();
        copy(chunk + GEMM_STAGES - 1u);
#pragma unroll
        for (uint32_t m = 0; m < MT; m++) rows[m].fetch(next[m], min(chunk + 1u, chunks - 1u));
        const unsigned char* stage = stages + chunk % GEMM_STAGES * STAGE + g * GEMM_TOKEN_BYTES;
#pragma unroll
        for (uint32_t block = 0; block < 2; block++) {
            uint32_t a[MT][2][4];
#pragma unroll
            for (uint32_t m = 0; m < MT; m++) rows[m].decode(now[m], chunk, block, tables, a[m]);
            const uint32_t at = ((block * 4u + t) ^ (g % 2u * 4u)) * 16u;
#pragma unroll
            for (uint32_t n = 0; n < NT; n++) {
                const uint4 b = *reinterpret_cast<const uint4*>(stage + n * (8u * GEMM_TOKEN_BYTES) + at);
#pragma unroll
                for (uint32_t m = 0; m < MT; m++) mma_m16n8k16_f16(acc[m][n], a[m][0], b.x, b.y);
#pragma unroll
                for (uint32_t m = 0; m < MT; m++) mma_m16n8k16_f16(acc[m][n], a[m][1], b.z, b.w);
            }
        }
#pragma unroll
        for (uint32_t m = 0; m < MT; m++) now[m] = next[m];
    }
    copy_wait<0>();
    __syncthreads();
}
