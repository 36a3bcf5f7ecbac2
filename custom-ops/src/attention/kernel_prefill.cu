// Attention of many tokens: a block has a token and all its 64 heads, so that each row is fetched once
// for all of them.
#include "../../include/cuda/attention.h"
#include "../../include/cuda/kv_rows.cuh"
#include "../../include/cuda/mma.cuh"

namespace {

constexpr uint32_t HEADS = ATTENTION_PREFILL_HEADS;
constexpr uint32_t ROWS = 64;             // of a chunk
constexpr uint32_t SCORE_STRIDE = ROWS + 4;
constexpr uint32_t WEIGHT_STRIDE = ROWS + 8;

}  // namespace

// Grid: tokens, groups of 64 heads. 512 threads.
KERNEL(attention_prefill, AttentionParams, 512) {
    SHARED(unsigned char, shared);
    constexpr uint32_t DIM = ATTENTION_DIM;
    uint16_t* q = reinterpret_cast<uint16_t*>(shared);
    uint16_t* rows = q + HEADS * KV_STRIDE;
    float* scores = reinterpret_cast<float*>(rows + ROWS * KV_STRIDE);
    uint16_t* weights = reinterpret_cast<uint16_t*>(scores + HEADS * SCORE_STRIDE);
    uint64_t* addresses = reinterpret_cast<uint64_t*>(weights + HEADS * WEIGHT_STRIDE);
    float* factors = reinterpret_cast<float*>(addresses + ROWS);
    const uint32_t warp = warp_id(), lane = lane_id(), g = lane / 4u, t = lane % 4u;

    pdl_trigger();
    pdl_wait();
    const uint32_t token = p.first_token + blockIdx.x, first_head = blockIdx.y * HEADS;
    const Attending a = attending(p, token);
    {
        const float4* from =
            reinterpret_cast<const float4*>(p.q + (static_cast<uint64_t>(token) * p.heads + first_head) * DIM);
        for (uint32_t i = threadIdx.x; i < HEADS * DIM / 4u; i += blockDim.x) {
            const float4 v = from[i];
            *reinterpret_cast<uint2*>(q + i / (DIM / 4u) * KV_STRIDE + i % (DIM / 4u) * 4u) =
                make_uint2(pack_f16x2(v.x * p.scale, v.y * p.scale), pack_f16x2(v.z * p.scale, v.w * p.scale));
        }
    }
    // Softmax: eight neighbouring threads have a head.
    const uint32_t soft_head = threadIdx.x / 8u, eighth = threadIdx.x % 8u;
    float most = p.sinks[first_head + soft_head], sum = 1.0f;  // the sink has weight and no value
    float out[4][4][4] = {};
    for (uint32_t start = 0; start < a.count; start += ROWS) {
        const uint32_t count = min(ROWS, a.count - start);
        __syncthreads();
        if (threadIdx.x < ROWS) addresses[threadIdx.x] = threadIdx.x < count ? row_address(p, a, start + threadIdx.x) : 0u;
        __syncthreads();
        rows_to_shared<2>(addresses, ROWS, rows);
        __syncthreads();

        // Each warp: 16 heads and 16 rows.
        {
            float s[2][4] = {};
            const uint32_t h = warp % 4u * 16u, r = warp / 4u * 16u;
#pragma unroll 4
            for (uint32_t k = 0; k < DIM; k += 16) {
                uint32_t of_q[4], of_rows[4];
                load_tiles(of_q, q + (h + lane % 16u) * KV_STRIDE + k + lane / 16u * 8u);
                load_tiles(of_rows, rows + (r + lane % 8u + lane / 16u * 8u) * KV_STRIDE + k + lane / 8u % 2u * 8u);
                mma_m16n8k16_f16(s[0], of_q, of_rows[0], of_rows[1]);
                mma_m16n8k16_f16(s[1], of_q, of_rows[2], of_rows[3]);
            }
#pragma unroll
            for (uint32_t n = 0; n < 2; n++) {
                float* to = scores + (h + g) * SCORE_STRIDE + r + n * 8u + 2u * t;
                *reinterpret_cast<float2*>(to) = make_float2(s[n][0], s[n][1]);
                *reinterpret_cast<float2*>(to + 8u * SCORE_STRIDE) = make_float2(s[n][2], s[n][3]);
            }
        }
        __syncthreads();
        {
            float s[8], here = most;
#pragma unroll
            for (uint32_t i = 0; i < 8; i++) {
                s[i] = scores[soft_head * SCORE_STRIDE + i * 8u + eighth];
                if (addresses[i * 8u + eighth] != 0) here = fmaxf(here, s[i]);
            }
            here = fmaxf(here, shuffle_xor(here, 1u));
            here = fmaxf(here, shuffle_xor(here, 2u));
            here = fmaxf(here, shuffle_xor(here, 4u));
            const float factor = fast_exp(most - here);
            most = here;
            float added = 0.0f;
#pragma unroll
            for (uint32_t i = 0; i < 8; i++) {
                const float weight = addresses[i * 8u + eighth] != 0 ? fast_exp(s[i] - most) : 0.0f;
                added += weight;
                weights[soft_head * WEIGHT_STRIDE + i * 8u + eighth] = f32_to_f16(weight);
            }
            added += shuffle_xor(added, 1u);
            added += shuffle_xor(added, 2u);
            added += shuffle_xor(added, 4u);
            sum = sum * factor + added;
            if (eighth == 0) factors[soft_head] = factor;
        }
        __syncthreads();
        // Each warp: all heads and 32 dimensions.
#pragma unroll
        for (uint32_t m = 0; m < 4; m++) {
            const float f0 = factors[m * 16u + g], f1 = factors[m * 16u + g + 8u];
#pragma unroll
            for (uint32_t n = 0; n < 4; n++) {
                out[m][n][0] *= f0;
                out[m][n][1] *= f0;
                out[m][n][2] *= f1;
                out[m][n][3] *= f1;
            }
        }
#pragma unroll
        for (uint32_t k = 0; k < ROWS; k += 16) {
            uint32_t of_rows[2][4];
#pragma unroll
            for (uint32_t n = 0; n < 2; n++) {
                load_tiles_transposed(of_rows[n], rows + (k + lane % 16u) * KV_STRIDE + warp * 32u + n * 16u + lane / 16u * 8u);
            }
#pragma unroll
            for (uint32_t m = 0; m < 4; m++) {
                uint32_t of_weights[4];
                load_tiles(of_weights, weights + (m * 16u + lane % 16u) * WEIGHT_STRIDE + k + lane / 16u * 8u);
#pragma unroll
                for (uint32_t n = 0; n < 4; n++) {
                    mma_m16n8k16_f16(out[m][n], of_weights, of_rows[n / 2][n % 2 * 2], of_rows[n / 2][n % 2 * 2 + 1]);
                }
            }
        }
    }
    __syncthreads();
    if (eighth == 0) factors[soft_head] = 1.0f / sum;
    __syncthreads();
#pragma unroll
    for (uint32_t m = 0; m < 4; m++) {
#pragma unroll
        for (uint32_t j = 0; j < 2; j++) {
            const uint32_t h = m * 16u + g + 8u * j;
            const float share = factors[h];
            float* to = p.out + (static_cast<uint64_t>(token) * p.heads + first_head + h) * DIM + warp * 32u + 2u * t;
#pragma unroll
            for (uint32_t n = 0; n < 4; n++) {
                *reinterpret_cast<float2*>(to + n * 8u) = make_float2(out[m][n][2 * j] * share, out[m][n][2 * j + 1] * share);
            }
        }
    }
}
