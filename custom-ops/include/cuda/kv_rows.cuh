// The rows that a token attends to: where they are, and how they become halves in shared memory.
#pragma once

#include "attention.h"
#include "memory.cuh"
#include "numbers.cuh"

// Values between the starts of two rows in shared memory: eight lanes that read 16 bytes each of eight
// rows meet all banks.
#define KV_STRIDE (ATTENTION_DIM + 8u)
// Ends a list of chosen rows early.
#define NO_ROW 0xffffffffu

// A token, and how many rows it has.
struct Attending {
    uint32_t token;
    uint32_t sequence;
    uint32_t start;  // position of the first token of its span
    uint32_t row;    // of that token in the batch
    uint32_t from;   // position of the first row of the window
    uint32_t of_window;
    uint32_t count;
};

DEVICE Attending attending(const AttentionParams& p, uint32_t token) {
    Attending a;
    const uint32_t position = p.batch.positions[token];
    a.token = token;
    a.sequence = p.batch.sequence[token];
    const Span span = p.batch.spans[a.sequence];
    a.row = span.row;
    a.start = p.batch.positions[span.row];
    a.from = position + 1u > p.window ? position + 1u - p.window : 0u;
    a.of_window = position + 1u - a.from;
    const uint32_t compressed =
        p.ratio == 0 ? 0u : p.chosen != nullptr ? p.top_k : (position + 1u) / p.ratio;
    a.count = a.of_window + compressed;
    return a;
}

// Which compressed row is row `i` of the token; of rows of the window, anything.
DEVICE uint32_t row_index(const AttentionParams& p, const Attending& a, uint32_t i) {
    const uint32_t index = i - a.of_window;
    if (p.chosen == nullptr || i < a.of_window || i >= a.count) return index;
    return p.chosen[static_cast<uint64_t>(a.token) * p.top_k + index];
}

// Address of row `i` of the token, with bit 0 set if it is packed; 0 if there is none.
DEVICE uint64_t row_address(const AttentionParams& p, const Attending& a, uint32_t i, uint32_t index) {
    if (i >= a.count) return 0;
    if (i < a.of_window) {
        const uint32_t position = a.from + i;
        const float* row =
            position >= a.start
                ? p.kv + static_cast<uint64_t>(a.row + position - a.start) * ATTENTION_DIM
                : p.rings.data[a.sequence] + static_cast<uint64_t>(position % p.rings.slots) * ATTENTION_DIM;
        return reinterpret_cast<uint64_t>(row);
    }
    if (index == NO_ROW) return 0;
    const uint8_t* page = p.rows.pages[a.sequence][index / p.rows.page_rows];
    const uint64_t row = reinterpret_cast<uint64_t>(page) + index % p.rows.page_rows * static_cast<uint64_t>(p.rows.row_bytes);
    return row | (p.rows.format == ROWS_FP8 ? 1u : 0u);
}
DEVICE uint64_t row_address(const AttentionParams& p, const Attending& a, uint32_t i) {
    return row_address(p, a, i, row_index(p, a, i));
}

// A lane's part of a row on its way: 16 floats (4 from each quarter), or 16 channels of a packed row.
struct RowPart {
    uint4 v[4];
};

DEVICE uint2 load8(const uint8_t* p) { return *reinterpret_cast<const uint2*>(p); }

DEVICE void fetch_part(RowPart& part, uint64_t address) {
    const uint32_t lane = lane_id();
    const uint8_t* row = reinterpret_cast<const uint8_t*>(address & ~1ull);
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) part.v[i] = make_uint4(0, 0, 0, 0);
    if (address == 0) return;
    if ((address & 1u) == 0) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) part.v[i] = reinterpret_cast<const uint4*>(row)[i * 32u + lane];
    } else if (lane < 28u) {
        const uint2 a = load8(row + lane * 16u), b = load8(row + lane * 16u + 8u);
        part.v[0] = make_uint4(a.x, a.y, b.x, b.y);
        part.v[1].x = row[576u + lane / 4u];
    } else {
        const uint8_t* turned = row + 448u + (lane - 28u) * 32u;
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            const uint2 a = load8(turned + i * 16u), b = load8(turned + i * 16u + 8u);
            part.v[i] = make_uint4(a.x, a.y, b.x, b.y);
        }
    }
}

DEVICE uint32_t bf16x2_to_f16x2(uint32_t pair) {
    return pack_f16x2(f32_from_bits(pair << 16), f32_from_bits(pair & 0xffff0000u));
}

// Writes the part as halves; `to` is the row in shared memory.
DEVICE void store_part(const RowPart& part, uint64_t address, uint16_t* to) {
    const uint32_t lane = lane_id();
    if ((address & 1u) == 0) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const uint4 v = part.v[i];
            *reinterpret_cast<uint2*>(to + i * 128u + lane * 4u) =
                make_uint2(pack_f16x2(f32_from_bits(v.x), f32_from_bits(v.y)),
                           pack_f16x2(f32_from_bits(v.z), f32_from_bits(v.w)));
        }
        return;
    }
    uint32_t halves[8];
    if (lane < 28u) {
        // Codes as halves are 2^-8 of what they stand for.
        const float scale = e8m0_to_f32(static_cast<uint8_t>(part.v[1].x)) * 256.0f;
        const uint32_t scales = pack_f16x2(scale, scale);
        const uint32_t codes[4] = {part.v[0].x, part.v[0].y, part.v[0].z, part.v[0].w};
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            halves[2 * i] = mul_f16x2(e4m3_high_bytes_to_f16x2(byte_perm(codes[i], 0u, 0x1404u)), scales);
            halves[2 * i + 1] = mul_f16x2(e4m3_high_bytes_to_f16x2(byte_perm(codes[i], 0u, 0x3424u)), scales);
        }
    } else {
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            halves[4 * i] = bf16x2_to_f16x2(part.v[i].x);
            halves[4 * i + 1] = bf16x2_to_f16x2(part.v[i].y);
            halves[4 * i + 2] = bf16x2_to_f16x2(part.v[i].z);
            halves[4 * i + 3] = bf16x2_to_f16x2(part.v[i].w);
        }
    }
    uint4* out = reinterpret_cast<uint4*>(to + lane * 16u);
    out[0] = make_uint4(halves[0], halves[1], halves[2], halves[3]);
    out[1] = make_uint4(halves[4], halves[5], halves[6], halves[7]);
}

// Fetches `count` rows (their addresses are in shared memory) with all warps of the block, `AT_ONCE` a
// warp under way at a time.
template <uint32_t AT_ONCE>
DEVICE void rows_to_shared(const uint64_t* addresses, uint32_t count, uint16_t* rows) {
    const uint32_t warp = warp_id(), warps = blockDim.x / 32u;
    for (uint32_t first = warp; first < count; first += warps * AT_ONCE) {
        RowPart parts[AT_ONCE];
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++) {
            const uint32_t r = first + i * warps;
            if (r < count) fetch_part(parts[i], addresses[r]);
        }
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++) {
            const uint32_t r = first + i * warps;
            if (r < count) store_part(parts[i], addresses[r], rows + r * KV_STRIDE);
        }
    }
}
