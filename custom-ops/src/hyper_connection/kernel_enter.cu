// A sub-layer's way in, in one launch: what the sub-layer before left is written back to the streams,
// these are projected, gates made, the streams collapsed and normalised.
//
// A cluster of blocks has a token, each its share of the channels of all streams. The projection's weights
// wait in registers, so that a launch that overlaps with its predecessor has read them before.
#include "cuda/cluster.cuh"
#include "cuda/memory.cuh"
#include "cuda/numbers.cuh"
#include "cuda/reduce.cuh"
#include "cuda/sinkhorn.cuh"
#include "cuda/spread.h"

struct HyperEnterParams {
    float* state;                // [tokens, 4, hidden]
    const float* y;              // [tokens, hidden], due to the streams; or null
    const float* due;            // [tokens, 24]: the mix that it is written back with
    const uint16_t* projection;  // halves [24 or 4, 4 hidden]
    const float* scale;          // [3] or [1]
    const float* base;           // [24] or [4]
    const float* norm;           // [hidden]
    float* mix;                  // [tokens, 24]: gates, and logits of the matrix; not of the head
    float* out;                  // [tokens, hidden]
    uint32_t tokens;
    uint32_t hidden;             // a multiple of 512, at most 4096
    float eps;
    float mix_norm_eps;
    float norm_eps;
};

namespace {

// Channels that there are threads for.
constexpr uint32_t ENTER_WIDTH = 4096;

DEVICE float gate(float x) { return fast_reciprocal(1.0f + expf(-x)); }

// The logits of gates and matrix, value by value of the lanes, of what the blocks of the cluster have sent.
template <uint32_t ROWS, uint32_t BLOCKS>
DEVICE float logit_of(const HyperEnterParams& p, const float* of_blocks, float scale, float base) {
    const uint32_t lane = lane_id();
    float sum = 0.0f;
#pragma unroll
    for (uint32_t b = 0; b < BLOCKS; b++) sum += of_blocks[b * 32u + lane];
    const float mean = shuffle(sum, ROWS) / static_cast<float>(4u * p.hidden);
    return fmaf(sum * (1.0f / sqrtf(mean + p.mix_norm_eps)), scale, base);
}

// Half of the block's threads have the first rows of the projection, half the others.
template <uint32_t ROWS, uint32_t BLOCKS> DEVICE void enter(const HyperEnterParams& p, float* shared) {
    constexpr uint32_t WARPS = ENTER_WIDTH / BLOCKS / 16u, MINE = ROWS / 2u;
    const uint32_t channels = p.hidden / BLOCKS, quads = channels / 4u;
    float* streams = shared;                    // [4, channels]
    float* of_warps = streams + 4u * channels;  // [WARPS, 16]
    float* of_blocks = of_warps + WARPS * 16u;  // [BLOCKS, 32]: written by the others
    float* squares = of_blocks + BLOCKS * 32u;  // [BLOCKS, WARPS]: likewise
    float* gates = squares + BLOCKS * WARPS;    // [4]
    const uint32_t warp = warp_id(), lane = lane_id(), rank = cluster_rank();
    const uint32_t half = warp / (WARPS / 2u), item = threadIdx.x % (WARPS * 16u);
    const uint32_t first = rank * channels, stream = item / quads, quad = item % quads;
    const bool active = item < channels, collapses = threadIdx.x < channels;

    // Four channels of one stream a thread.
    uint2 weights[MINE];
#pragma unroll
    for (uint32_t row = 0; row < MINE; row++) {
        const uint64_t at = static_cast<uint64_t>((half * MINE + row) * 4u + stream) * p.hidden + first + quad * 4u;
        weights[row] = active ? load_weights8(p.projection + at) : make_uint2(0, 0);
    }
    const float base = lane < ROWS ? p.base[lane] : 0.0f;
    const float scale = p.scale[ROWS == 4u || lane < 4u ? 0u : lane < 8u ? 1u : 2u];
    // Nobody writes to a block that has not begun.
    cluster_sync();
    pdl_wait();

    for (uint32_t token = blockIdx.x / BLOCKS; token < p.tokens; token += gridDim.x / BLOCKS) {
        float* state = p.state + static_cast<uint64_t>(token) * 4u * p.hidden + first + quad * 4u;
        float4 s = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (active && p.y != nullptr) {
            const float* due = p.due + token * 24u;
            const float4 y = *reinterpret_cast<const float4*>(p.y + static_cast<uint64_t>(token) * p.hidden + first + quad * 4u);
            const float post = due[4u + stream];
            s = make_float4(post * y.x, post * y.y, post * y.z, post * y.w);
#pragma unroll
            for (uint32_t from = 0; from < 4; from++) {
                const float c = due[8u + 4u * from + stream];
                const float4 old = *reinterpret_cast<const float4*>(state + static_cast<uint64_t>(from) * p.hidden);
                s.x = fmaf(c, old.x, s.x);
                s.y = fmaf(c, old.y, s.y);
                s.z = fmaf(c, old.z, s.z);
                s.w = fmaf(c, old.w, s.w);
            }
        } else if (active) {
            s = *reinterpret_cast<const float4*>(state + static_cast<uint64_t>(stream) * p.hidden);
        }
        if (active && half == 0) reinterpret_cast<float4*>(streams)[stream * quads + quad] = s;

        float sums[16] = {};
#pragma unroll
        for (uint32_t row = 0; row < MINE; row++) {
            const float2 low = unpack_f16x2(weights[row].x), high = unpack_f16x2(weights[row].y);
            sums[row] = fmaf(low.x, s.x, fmaf(low.y, s.y, fmaf(high.x, s.z, high.y * s.w)));
        }
        sums[MINE] = fmaf(s.x, s.x, fmaf(s.y, s.y, fmaf(s.z, s.z, s.w * s.w)));
        const float total = warp_totals(sums);
        if (lane < 16u) of_warps[warp * 16u + lane] = total;
        __syncthreads();
        // What the launch after reads ahead would have been in the way of the state.
        pdl_trigger();
        // All have read the old state.
        if (active && half == 0 && p.y != nullptr) *reinterpret_cast<float4*>(state + static_cast<uint64_t>(stream) * p.hidden) = s;
        for (uint32_t b = warp; b < BLOCKS; b += WARPS) {
            // Lane l has row l; the lane after the last row the squares.
            const uint32_t of_half = lane < ROWS ? lane / MINE : 0u, value = lane < ROWS ? lane % MINE : MINE;
            float sum = 0.0f;
            if (lane <= ROWS) {
                for (uint32_t w = 0; w < WARPS / 2u; w++) sum += of_warps[(of_half * (WARPS / 2u) + w) * 16u + value];
            }
            cluster_shared(of_blocks, b)[rank * 32u + lane] = sum;
        }
        cluster_sync();
        if (warp == 0) {
            const float logit = logit_of<ROWS, BLOCKS>(p, of_blocks, scale, base), open = gate(logit);
            if (lane < 4u) gates[lane] = open + p.eps;
            // Of the matrix only the logits: it takes as long as all of this, and is needed later.
            if (ROWS != 4u && rank == 0 && lane < 24u) {
                p.mix[token * 24u + lane] = lane < 4u ? open + p.eps : lane < 8u ? 2.0f * open : logit;
            }
        }
        __syncthreads();
        float x = 0.0f;
        if (collapses) {
#pragma unroll
            for (uint32_t from = 0; from < 4; from++) x = fmaf(gates[from], streams[from * channels + threadIdx.x], x);
        }
        const float square = warp_sum(x * x);
        if (lane < BLOCKS) cluster_shared(squares, lane)[rank * WARPS + warp] = square;
        cluster_sync();
        float all = 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < BLOCKS * WARPS / 32u; i++) all += squares[i * 32u + lane];
        const float norm = 1.0f / sqrtf(warp_sum(all) / static_cast<float>(p.hidden) + p.norm_eps);
        if (collapses) {
            const uint32_t channel = first + threadIdx.x;
            p.out[static_cast<uint64_t>(token) * p.hidden + channel] = x * norm * p.norm[channel];
        }
    }
}

// |Σ g_i S_i|² by the products of streams with each other: 0 0, 0 1, 0 2, 0 3, 1 1, …
DEVICE float square_of_sum(const float (&g)[4], const float* products) {
    float sum = 0.0f;
    uint32_t at = 0;
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
#pragma unroll
        for (uint32_t j = i; j < 4; j++) sum = fmaf((i == j ? 1.0f : 2.0f) * g[i] * g[j], products[at++], sum);
    }
    return fmaxf(sum, 0.0f);
}

}  // namespace

struct HyperEnteredParams {
    const float* state;  // [4, hidden], written back
    const float* sums;   // [SPREAD_SUMS, blocks]: see include/cuda/spread.h
    const float* scale;  // [3]
    const float* base;   // [24]
    const float* norm;   // [hidden]
    float* mix;          // [24]: gates, and logits of the matrix
    float* out;          // [hidden]
    uint32_t hidden;
    uint32_t blocks;
    float eps;
    float mix_norm_eps;
    float norm_eps;
};

// The rest of one token's way in, after a launch that spread the result before it: any block can make gates
// and norm of the sums. Grid: 256 channels a block.
KERNEL(hyper_entered, HyperEnteredParams, 512) {
    SHARED(float, totals);  // [SPREAD_SUMS]
    constexpr uint32_t WARPS = 16, EACH = (SPREAD_SUMS + WARPS - 1u) / WARPS, AT_ONCE = 5;
    const uint32_t warp = warp_id(), lane = lane_id(), channel = blockIdx.x * 256u + threadIdx.x;
    const bool active = threadIdx.x < 256u && channel < p.hidden;
    const float weight = active ? p.norm[channel] : 0.0f;
    const float base = lane < 24u ? p.base[lane] : 0.0f, scale = p.scale[lane < 4u ? 0u : lane < 8u ? 1u : 2u];
    pdl_wait();
    pdl_trigger();
    float s[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) s[i] = active ? p.state[i * p.hidden + channel] : 0.0f;
    float v[EACH][AT_ONCE];
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++) {
        const uint32_t value = warp + j * WARPS;
#pragma unroll
        for (uint32_t k = 0; k < AT_ONCE; k++) {
            const uint32_t block = k * 32u + lane;
            v[j][k] = value < SPREAD_SUMS && block < p.blocks ? p.sums[value * p.blocks + block] : 0.0f;
        }
    }
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++) {
        const uint32_t value = warp + j * WARPS;
        float sum = 0.0f;
#pragma unroll
        for (uint32_t k = 0; k < AT_ONCE; k++) sum += v[j][k];
        for (uint32_t block = AT_ONCE * 32u + lane; value < SPREAD_SUMS && block < p.blocks; block += 32u) sum += p.sums[value * p.blocks + block];
        sum = warp_sum(sum);
        if (lane == 0 && value < SPREAD_SUMS) totals[value] = sum;
    }
    __syncthreads();
    const float* products = totals + SPREAD_ROWS;
    const float mean = (products[0] + products[4] + products[7] + products[9]) / static_cast<float>(4u * p.hidden);
    const float sum = lane < SPREAD_ROWS ? totals[lane] : 0.0f;
    const float logit = fmaf(sum * (1.0f / sqrtf(mean + p.mix_norm_eps)), scale, base), open = gate(logit);
    float gates[4], x = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        gates[i] = shuffle(open, i) + p.eps;
        x = fmaf(gates[i], s[i], x);
    }
    const float norm = 1.0f / sqrtf(square_of_sum(gates, products) / static_cast<float>(p.hidden) + p.norm_eps);
    if (active) p.out[channel] = x * norm * weight;
    if (blockIdx.x == 0 && warp == 0 && lane < 24u) p.mix[lane] = lane < 4u ? open + p.eps : lane < 8u ? 2.0f * open : logit;
}

// Names: blocks of a cluster. Grid: any number of clusters. Shared memory: (4 hidden / blocks + 1280) · 4.
KERNEL(hyper_enter_8, HyperEnterParams, 1024) {
    SHARED(float, shared);
    enter<24, 8>(p, shared);
}
KERNEL(hyper_enter_16, HyperEnterParams, 512) {
    SHARED(float, shared);
    enter<24, 16>(p, shared);
}
struct HyperMatrixParams {
    MatrixErrand errand;
};

// One block: an errand that no other launch has run.
KERNEL(hyper_matrix, HyperMatrixParams, 512) {
    pdl_trigger();
    pdl_wait();
    run_errand(p.errand);
}
KERNEL(hyper_leave_8, HyperEnterParams, 1024) {
    SHARED(float, shared);
    enter<4, 8>(p, shared);
}
KERNEL(hyper_leave_16, HyperEnterParams, 512) {
    SHARED(float, shared);
    enter<4, 16>(p, shared);
}
