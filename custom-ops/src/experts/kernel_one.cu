// The experts of one token: two launches, each bound by reading the chosen experts once.
//
// A launch that overlaps with its predecessor may read before its wait what was there when that one had
// waited, if that one lets it begin only then: of x the router's launch has seen to it.
#include "../../include/cuda/experts.h"
#include "../../include/cuda/gated_unit.cuh"
#include "../../include/cuda/gemm.cuh"
#include "../../include/cuda/pieces.cuh"
#include "../../include/cuda/reduce.cuh"
#include "../../include/cuda/spread.cuh"

namespace {

// Columns of the routed matrices: 16 blocks of IQ2_XXS, and 8 of Q2_K, so that a lane has whole ones. The
// first ones have as many rows as the last one has columns.
constexpr uint32_t HIDDEN = 4096;
constexpr uint32_t INTER = 2048;
constexpr uint32_t ONE_WARPS = 16;

// A row of gate and of up: a lane has groups `2 lane, + 1` of 32 values of each half of the row.
struct RowPair {
    uint4 q[2][2];
    uint32_t d[2];
};

DEVICE void fetch_pair(RowPair& pair, const Weight& gate, const Weight& up, uint32_t expert, uint32_t row) {
    const uint32_t lane = lane_id();
#pragma unroll
    for (uint32_t m = 0; m < 2; m++) {
        const Weight& w = m == 0 ? gate : up;
        const uint8_t* codes = w.plane[0] + expert * w.stride[0] + static_cast<uint64_t>(row) * (HIDDEN / 4u);
        pair.q[m][0] = load_weights16(codes + lane * 16u);
        pair.q[m][1] = load_weights16(codes + 512u + lane * 16u);
        // The scales of blocks lane / 4 and 8 + lane / 4 are neighbours.
        pair.d[m] = load_weights4(w.plane[1] + expert * w.stride[1] + static_cast<uint64_t>(row) * 32u + lane / 4u * 4u);
    }
}

// 32 values of a row times 32 bytes of x.
DEVICE int32_t dot_group(uint32_t runs, uint32_t signs, const uint32_t* x, const uint32_t* tables,
                         uint32_t positive, uint32_t negative) {
    const uint32_t lane = lane_id();
    int32_t sum = 0;
#pragma unroll
    for (uint32_t l = 0; l < 4; l++) {
        const uint32_t select = tables[(runs >> 8u * l & 255u) * 32u + lane] |
                                tables[8192u + (signs >> 7u * l & 127u) * 32u + lane];
        sum = dp4a(byte_perm(positive, negative, select), x[2 * l], sum);
        sum = dp4a(byte_perm(positive, negative, select >> 16), x[2 * l + 1], sum);
    }
    return sum;
}

// Experts and weights of the token's slots, by a warp, into shared memory. An expert that is not there
// stands for another, with a weight that is no number.
DEVICE void slots_of(const ExpertsRoute& route, const uint32_t* keys, uint32_t k, uint32_t stack, uint32_t* ids, float* weights) {
    const uint32_t lane = lane_id();
    Chosen slot = {0, 0.0f};
    if (route.ids == nullptr) {
        slot = route_ranked(route.routing, 0, keys);
    } else if (lane < k) {
        slot = {route.ids[lane], route.weights[lane]};
    }
    if (lane < k) {
        ids[lane] = min(slot.id, stack - 1u);
        weights[lane] = slot.id < stack ? slot.weight : f32_from_bits(0x7fc00000u);
    }
}

}  // namespace

// Grid: one block a multiprocessor. Shared memory: tables, x as bytes and scales, ids and weights:
// IQ2_XXS_TABLE_BYTES + 4096 + 512 + 64 + 4096.
KERNEL(experts_one_gate_up, ExpertsGateUpParams, 512) {
    SHARED(unsigned char, shared);
    uint32_t* tables = reinterpret_cast<uint32_t*>(shared);
    uint32_t* quants = tables + IQ2_XXS_TABLE_BYTES / 4u;
    float* scales = reinterpret_cast<float*>(quants + HIDDEN / 4u);
    uint32_t* ids = reinterpret_cast<uint32_t*>(scales + HIDDEN / 32u);
    float* weights = reinterpret_cast<float*>(ids + 8);
    uint32_t* keys = reinterpret_cast<uint32_t*>(weights + 8);
    const uint32_t warp = warp_id(), lane = lane_id();

    fill_iq2_xxs_tables(tables);
    // The router's launch lies between x and this one.
    const bool old = p.route.ids == nullptr;
    if (!old) pdl_wait();
    quantize_to_shared(p.x, HIDDEN, quants, scales);
    if (old) pdl_wait();
    // Only now: the kernel after reads before its wait what the one before has written.
    pdl_trigger();
    if (old) route_rank(p.route.routing, 0, keys);
    __syncthreads();
    if (warp == 0) slots_of(p.route, keys, p.k, p.gate.stack, ids, weights);
    __syncthreads();
    if (blockIdx.x == 0 && threadIdx.x < p.k) p.ids[threadIdx.x] = ids[threadIdx.x];

    const uint32_t items = p.k * INTER, step = gridDim.x * ONE_WARPS;
    uint32_t item = blockIdx.x * ONE_WARPS + warp;
    RowPair now, next;
    if (item < items) fetch_pair(now, p.gate, p.up, ids[item / INTER], item % INTER);

    // The routed ones: a row of gate and of up a warp.
    uint32_t x[2][16];
    float scale[2][2];
#pragma unroll
    for (uint32_t c = 0; c < 2; c++) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const uint4 four = reinterpret_cast<const uint4*>(quants)[(c * 64u + lane * 2u) * 2u + i];
            x[c][4 * i] = four.x;
            x[c][4 * i + 1] = four.y;
            x[c][4 * i + 2] = four.z;
            x[c][4 * i + 3] = four.w;
        }
        scale[c][0] = scales[c * 64u + lane * 2u] * 0.125f;
        scale[c][1] = scales[c * 64u + lane * 2u + 1u] * 0.125f;
    }
    // Constants would be moved to a register before each permute: a word that is always zero hides one.
    const uint32_t positive = IQ2_XXS_POSITIVE | tables[8192u + lane], negative = IQ2_XXS_NEGATIVE;
    for (; item < items; item += step) {
        const uint32_t ahead = item + step;
        if (ahead < items) fetch_pair(next, p.gate, p.up, ids[ahead / INTER], ahead % INTER);
        float both[2];
#pragma unroll
        for (uint32_t m = 0; m < 2; m++) {
            const float2 d = unpack_f16x2(now.d[m]);
            float sum = 0.0f;
#pragma unroll
            for (uint32_t c = 0; c < 2; c++) {
                const uint4 q = now.q[m][c];
                const float s0 = static_cast<float>(dot_group(q.x, q.y, x[c], tables, positive, negative)) *
                                 (static_cast<float>(2u * (q.y >> 28) + 1u) * scale[c][0]);
                const float s1 = static_cast<float>(dot_group(q.z, q.w, x[c] + 8, tables, positive, negative)) *
                                 (static_cast<float>(2u * (q.w >> 28) + 1u) * scale[c][1]);
                sum = fmaf(s0 + s1, c == 0 ? d.x : d.y, sum);
            }
            both[m] = sum;
        }
        // Lower lanes add up gate, upper ones up.
        const bool upper = lane & 16u;
        float s = (upper ? both[1] : both[0]) + shuffle_xor(upper ? both[0] : both[1], 16u);
        s += shuffle_xor(s, 8u);
        s += shuffle_xor(s, 4u);
        s += shuffle_xor(s, 2u);
        s += shuffle_xor(s, 1u);
        const float up = shuffle_xor(s, 16u);
        if (lane == 0) p.h[item] = clamped_swiglu(s, up, p.clamp) * weights[item / INTER];
        now = next;
    }
}

namespace {

// Eight rows of Q2_K: a lane has 16 bytes of quants, a quarter of block lane / 4.
struct EightRows {
    uint4 q[8];
    uint32_t s[8];
    uint32_t d[8];
};

DEVICE void fetch_row(EightRows& rows, uint32_t i, const Weight& w, uint32_t expert, uint32_t row) {
    const uint32_t lane = lane_id();
    const uint64_t r = row + i;
    rows.q[i] = load_weights16(w.plane[0] + expert * w.stride[0] + r * (INTER / 4u) + lane * 16u);
    rows.s[i] = load_weights4(w.plane[1] + expert * w.stride[1] + r * (INTER / 16u) + lane * 4u);
    rows.d[i] = load_weights4(w.plane[2] + expert * w.stride[2] + r * (INTER / 64u) + lane / 4u * 4u);
}

}  // namespace

// Grid: one block a multiprocessor. Shared memory: h as bytes and scales,
// (k · 2048 + shared cols) · 9 / 8, sums, rounds · 16 · 16 · 4, and room to spread the rows.
KERNEL(experts_one_down, ExpertsDownParams, 512) {
    SHARED(unsigned char, shared);
    const uint32_t shared_cols = p.shared_down.rows == 0 ? 0u : p.shared_down.cols;
    uint32_t* quants = reinterpret_cast<uint32_t*>(shared);
    uint32_t* shared_quants = quants + p.k * (INTER / 4u);
    float* scales = reinterpret_cast<float*>(shared_quants + shared_cols / 4u);
    float* shared_scales = scales + p.k * (INTER / 32u);
    float* sums = shared_scales + shared_cols / 32u;  // [tile, warp, 16]
    const uint32_t warp = warp_id(), lane = lane_id(), g = lane / 4u, t = lane % 4u;
    const uint32_t tiles = p.down.rows / 16u;
    const uint32_t first = tiles * blockIdx.x / gridDim.x, last = tiles * (blockIdx.x + 1u) / gridDim.x;

    pdl_trigger();
    // Two warps for each slot, eight rows each; the others share the columns of the shared expert.
    const bool routed = warp < 2u * p.k;
    const uint32_t slot = warp / 2u, half = warp % 2u * 8u, share = warp - 2u * p.k, shares = ONE_WARPS - 2u * p.k;
    const uint32_t pieces = shared_cols / 256u;
    uint32_t expert = 0;
    EightRows rows;
    Piece piece;
    if (routed) {
        // The launch before wrote them when it began, so that they have come here by now, in all likelihood.
        expert = min(load_now(p.ids + slot), p.down.stack - 1u);
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) fetch_row(rows, i, p.down, expert, first * 16u + half);
    } else {
        fetch_all(piece, first < last && share < pieces ? aim(p.shared_down, first, share) : nowhere());
        const auto gated = [&p](uint32_t i) {
            const float4 g = load_written16(p.shared_gate + 4u * i), u = load_written16(p.shared_up + 4u * i);
            return make_float4(clamped_swiglu(g.x, u.x, p.clamp), clamped_swiglu(g.y, u.y, p.clamp),
                               clamped_swiglu(g.z, u.z, p.clamp), clamped_swiglu(g.w, u.w, p.clamp));
        };
        quantize_to_shared<4>(gated, shared_cols, shared_quants, shared_scales, threadIdx.x - 64u * p.k, shares * 32u);
    }
    pdl_wait();
    const uint32_t count = (last - first) * 16u;
    if (p.spread.state != nullptr) {
        spread_begin(p.spread, spread_room(sums + p.rounds * ONE_WARPS * 16u, count), first * 16u, count);
    }
    const uint32_t taken = routed ? load_now(p.ids + slot) : expert;
    if (taken != expert) {
        expert = taken;
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) fetch_row(rows, i, p.down, expert, first * 16u + half);
    }
    const auto of_h = [&p](uint32_t i) { return reinterpret_cast<const float4*>(p.h)[i]; };
    quantize_to_shared<6>(of_h, p.k * INTER, quants, scales, threadIdx.x, blockDim.x);
    __syncthreads();

    if (routed) {
        uint32_t x[4][4];
        float scale[4];
        int32_t bytes[4];
        const uint32_t block = lane / 4u, h = lane / 2u % 2u, sixteen = lane % 2u;
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            const uint32_t at = slot * INTER + block * 256u + h * 128u + j * 32u + sixteen * 16u;
            const uint4 four = reinterpret_cast<const uint4*>(quants)[at / 16u];
            x[j][0] = four.x;
            x[j][1] = four.y;
            x[j][2] = four.z;
            x[j][3] = four.w;
            scale[j] = scales[at / 32u];
            bytes[j] = 0;
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) bytes[j] = dp4a(x[j][i], 0x01010101u, bytes[j]);
        }
        for (uint32_t tile = first; tile < last; tile++) {
            float sum[8];
#pragma unroll
            for (uint32_t i = 0; i < 8; i++) {
                const uint4 q = rows.q[i];
                const uint32_t s = rows.s[i];
                const float2 d = unpack_f16x2(rows.d[i]);
                if (tile + 1u < last) fetch_row(rows, i, p.down, expert, tile * 16u + 16u + half);
                float product = 0.0f, minimum = 0.0f;
#pragma unroll
                for (uint32_t j = 0; j < 4; j++) {
                    int32_t dot = dp4a(q.x >> 2u * j & 0x03030303u, x[j][0], 0);
                    dot = dp4a(q.y >> 2u * j & 0x03030303u, x[j][1], dot);
                    dot = dp4a(q.z >> 2u * j & 0x03030303u, x[j][2], dot);
                    dot = dp4a(q.w >> 2u * j & 0x03030303u, x[j][3], dot);
                    const int32_t c = static_cast<int32_t>(s >> 8u * j & 15u), m = static_cast<int32_t>(s >> (8u * j + 4u) & 15u);
                    product = fmaf(static_cast<float>(dot * c), scale[j], product);
                    minimum = fmaf(static_cast<float>(bytes[j] * m), scale[j], minimum);
                }
                sum[i] = product * d.x - minimum * d.y;
            }
            const float of_row = warp_totals8(sum);
            if (t == 0) sums[((tile - first) * ONE_WARPS + warp) * 16u + half + g] = of_row;
        }
    } else if (pieces != 0) {
        for (uint32_t tile = first; tile < last; tile++) {
            float sum[2] = {0.0f, 0.0f};
            for (uint32_t i = share; i < pieces; i += shares) {
                const Source source = i + shares < pieces ? aim(p.shared_down, tile, i + shares)
                                      : tile + 1u < last  ? aim(p.shared_down, tile + 1u, share)
                                                          : nowhere();
                const auto fetch_next = [&source](uint32_t j) { return fetch(source, j); };
                multiply_1(piece, fetch_next, source, shared_quants + i * 64u, shared_scales + i * 8u, shared_cols / 32u - i * 8u, sum);
            }
#pragma unroll
            for (uint32_t r = 0; r < 2; r++) {
                float s = sum[r];
                s += shuffle_xor(s, 1u);
                s += shuffle_xor(s, 2u);
                if (t == 0) sums[((tile - first) * ONE_WARPS + warp) * 16u + g + 8u * r] = s;
            }
        }
    }
    __syncthreads();
    const bool spreads = p.spread.state != nullptr;
    const SpreadRoom room = spread_room(sums + p.rounds * ONE_WARPS * 16u, count);
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
        const float* from = sums + i / 16u * (ONE_WARPS * 16u) + i % 16u;
        float s = 0.0f;
        for (uint32_t k = 0; k < p.k; k++) s += from[(2u * k + i % 16u / 8u) * 16u];
        if (pieces != 0) {
            float common = 0.0f;
            for (uint32_t w = 2u * p.k; w < ONE_WARPS && w - 2u * p.k < pieces; w++) common += from[w * 16u];
            s += common;
        }
        (spreads ? room.y : p.out + first * 16u)[i] = s;
    }
    if (!spreads) return;
    copy_wait<0>();
    __syncthreads();
    spread_end(p.spread, room, first * 16u, count);
}
