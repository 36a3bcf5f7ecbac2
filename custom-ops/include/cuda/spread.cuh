// A sub-layer's result written back to the residual streams where it is computed, and what the next way in
// needs of that: a block's share of the projection, and the streams' products with each other.
//
// With those no launch has to read all streams before it knows the gates and the norm: `|x|²` of a weighted
// sum of streams is a sum of their products.
#pragma once

#include "memory.cuh"
#include "numbers.cuh"
#include "reduce.cuh"
#include "spread.h"

// A block's `rows` rows (a multiple of 16) in shared memory; Rust's twin of the size is `Spread::bytes`.
struct SpreadRoom {
    uint16_t* projection;  // [24, 4, rows]
    float* state;          // [4, rows]
    float* due;            // [24]
    float* parts;          // [16, 8]
    float* y;              // [rows]
};

DEVICE SpreadRoom spread_room(void* shared, uint32_t rows) {
    SpreadRoom room;
    room.projection = static_cast<uint16_t*>(shared);
    room.state = reinterpret_cast<float*>(room.projection + 4u * SPREAD_ROWS * rows);
    room.due = room.state + 4u * rows;
    room.parts = room.due + SPREAD_ROWS;
    room.y = room.parts + 128u;
    return room;
}

// Asks for what is needed at the end, after the wait.
DEVICE void spread_begin(const Spread& s, const SpreadRoom& room, uint32_t first, uint32_t rows) {
    const uint32_t of_row = rows / 8u, of_stream = rows / 4u;
    for (uint32_t i = threadIdx.x; i < 4u * SPREAD_ROWS * of_row; i += blockDim.x) {
        const uint64_t from = static_cast<uint64_t>(i / of_row) * s.hidden + first + i % of_row * 8u;
        copy16_async(room.projection + 8u * i, s.projection + from);
    }
    for (uint32_t i = threadIdx.x; i < 4u * of_stream; i += blockDim.x) {
        copy16_async(room.state + 4u * i, s.state + static_cast<uint64_t>(i / of_stream) * s.hidden + first + i % of_stream * 4u);
    }
    if (threadIdx.x < SPREAD_ROWS / 4u) copy16_async(room.due + 4u * threadIdx.x, s.due + 4u * threadIdx.x);
    copy_commit();
}

// The rows' results are in `room.y`, and the block's 16 warps have met since `copy_wait<0>`. A warp has a
// stream and a quarter of the projection's rows. In a fixed order.
DEVICE void spread_end(const Spread& s, const SpreadRoom& room, uint32_t first, uint32_t rows) {
    constexpr uint32_t MINE = SPREAD_ROWS / 4u;
    const uint32_t warp = warp_id(), lane = lane_id(), stream = warp / 4u, quarter = warp % 4u;
    // The warp's pair of streams: 0 0, 0 1, 0 2, 0 3, 1 1, 1 2, 1 3, 2 2, 2 3, 3 3.
    const uint32_t low = warp < 4u ? 0u : warp < 7u ? 1u : warp < 9u ? 2u : 3u;
    const uint32_t high = warp < 4u ? warp : warp < 7u ? warp - 3u : warp < 9u ? warp - 5u : 3u;
    float sums[8] = {};
    for (uint32_t r = lane; r < rows; r += 32u) {
        const float y = room.y[r];
        float old[4], now[4];
#pragma unroll
        for (uint32_t from = 0; from < 4; from++) old[from] = room.state[from * rows + r];
        float own = 0.0f, a = 0.0f, b = 0.0f;
#pragma unroll
        for (uint32_t to = 0; to < 4; to++) {
            now[to] = room.due[4u + to] * y;
#pragma unroll
            for (uint32_t from = 0; from < 4; from++) now[to] = fmaf(room.due[8u + 4u * from + to], old[from], now[to]);
            own = stream == to ? now[to] : own;
            a = low == to ? now[to] : a;
            b = high == to ? now[to] : b;
        }
#pragma unroll
        for (uint32_t i = 0; i < MINE; i++) {
            const uint32_t row = quarter * MINE + i;
            sums[i] = fmaf(f16_to_f32(room.projection[(row * 4u + stream) * rows + r]), own, sums[i]);
        }
        sums[MINE] = fmaf(a, b, sums[MINE]);
        if (quarter == 0) s.state[static_cast<uint64_t>(stream) * s.hidden + first + r] = own;
    }
    const float total = warp_totals8(sums);
    if (lane % 4u == 0) room.parts[warp * 8u + lane / 4u] = total;
    __syncthreads();
    if (threadIdx.x < SPREAD_ROWS) {
        const float* of = room.parts + threadIdx.x / MINE * 8u + threadIdx.x % MINE;
        s.sums[threadIdx.x * s.blocks + blockIdx.x] = (of[0] + of[32]) + (of[64] + of[96]);
    } else if (threadIdx.x < SPREAD_SUMS) {
        s.sums[threadIdx.x * s.blocks + blockIdx.x] = room.parts[(threadIdx.x - SPREAD_ROWS) * 8u + MINE];
    }
}
