// Which pairs of token and slot go to which expert, and the sum over a token's slots.
#include "../../include/cuda/experts.h"
#include "../../include/cuda/memory.cuh"
#include "../../include/cuda/numbers.cuh"

// One block of 1024 threads; shared memory: (2 · experts + 33) · 4. The order of the pairs of an expert
// differs from run to run; no value depends on it.
KERNEL(experts_group, ExpertsGroupParams, 1024) {
    SHARED(uint32_t, counts);
    uint32_t* next = counts + p.experts;
    uint32_t* of_warps = next + p.experts;
    const uint32_t lane = lane_id(), warp = warp_id(), warps = blockDim.x / 32u;
    pdl_trigger();
    for (uint32_t e = threadIdx.x; e < p.experts; e += blockDim.x) counts[e] = 0;
    pdl_wait();
    __syncthreads();
    for (uint32_t pair = threadIdx.x; pair < p.pairs; pair += blockDim.x) {
        shared_add(&counts[min(p.ids[pair], p.experts - 1u)], 1u);
    }
    __syncthreads();
    // Where each expert's pairs, and its items, begin: sums over the experts before, 1024 at a time.
    uint32_t pairs_before = 0, items_before = 0;
    for (uint32_t from = 0; from < p.experts; from += blockDim.x) {
        const uint32_t e = from + threadIdx.x;
        const uint32_t count = e < p.experts ? counts[e] : 0u;
        const uint32_t items = (count + p.of_item - 1u) / p.of_item;
        uint32_t start[2] = {count, items};
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            const uint32_t own = start[i];
            uint32_t sum = own;
            for (uint32_t by = 1; by < 32; by *= 2) {
                const uint32_t other = shuffle_up(sum, by);
                if (lane >= by) sum += other;
            }
            if (lane == 31u) of_warps[warp] = sum;
            __syncthreads();
            uint32_t before = i == 0 ? pairs_before : items_before, all = 0;
            for (uint32_t w = 0; w < warps; w++) {
                if (w < warp) before += of_warps[w];
                all += of_warps[w];
            }
            start[i] = before + sum - own;
            if (i == 0) pairs_before += all; else items_before += all;
            __syncthreads();
        }
        if (e < p.experts) {
            next[e] = start[0];
            for (uint32_t i = 0; i < items; i++) {
                const uint32_t done = i * p.of_item;
                p.items[start[1] + i] = {e, start[0] + done, min(p.of_item, count - done), 0};
            }
        }
    }
    if (threadIdx.x == 0) *p.item_count = items_before;
    __syncthreads();
    for (uint32_t pair = threadIdx.x; pair < p.pairs; pair += blockDim.x) {
        const uint32_t id = p.ids[pair], e = min(id, p.experts - 1u);
        p.order[shared_add(&next[e], 1u)] = id < p.experts ? pair : pair | EXPERTS_NO_EXPERT;
    }
}

KERNEL(experts_sum, ExpertsSumParams, 256) {
    pdl_trigger();
    pdl_wait();
    const uint32_t quads = p.hidden / 4u;
    const uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= static_cast<uint64_t>(p.tokens) * quads) return;
    const uint64_t token = i / quads, quad = i % quads;
    const float4* terms = reinterpret_cast<const float4*>(p.terms) + token * p.k * quads + quad;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (uint32_t slot = 0; slot <= p.k; slot++) {
        if (slot == p.k && p.shared_terms == nullptr) break;
        const float4 term = slot < p.k ? terms[static_cast<uint64_t>(slot) * quads]
                                       : reinterpret_cast<const float4*>(p.shared_terms)[i];
        sum.x += term.x;
        sum.y += term.y;
        sum.z += term.z;
        sum.w += term.w;
    }
    reinterpret_cast<float4*>(p.out)[i] = sum;
}
