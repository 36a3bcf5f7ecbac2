// The tokens of each row of scores that have a chance at all: those within a reach of the best.

#include "cuda/memory.cuh"
#include "cuda/numbers.cuh"
#include "cuda/reduce.cuh"

#define SHORTLIST_ROWS 32
#define SHORTLIST_ROOM 254u

struct ShortlistParams {
    const float* scores;  // [rows, count]
    // [rows, 2 + 2 · room]: how many there are (all ones if a score is not finite), the sum of all tokens'
    // weights as a float, then places and scores in any order, of as many as there is room for.
    uint32_t* out;
    uint32_t count;
    uint32_t unused;
    float reach[SHORTLIST_ROWS];
    float inverse[SHORTLIST_ROWS];  // of the temperature
};

// A block for each row. A weight is `exp((score - best) · inverse)`. Shared memory: 34 words.
KERNEL(shortlist, ShortlistParams, 1024) {
    SHARED(uint32_t, shared);
    float* of_warps = reinterpret_cast<float*>(shared);
    uint32_t* found = shared + 32;
    uint32_t* odd = shared + 33;
    const uint32_t lane = lane_id(), warp = warp_id(), warps = blockDim.x / 32u;
    pdl_trigger();
    if (threadIdx.x == 0) *found = *odd = 0;
    __syncthreads();
    pdl_wait();
    const float* scores = p.scores + uint64_t(blockIdx.x) * p.count;
    uint32_t* out = p.out + uint64_t(blockIdx.x) * (2u + 2u * SHORTLIST_ROOM);
    float best = -INFINITY;
    bool finite = true;
    for (uint32_t i = threadIdx.x; i < p.count; i += blockDim.x) {
        const float score = scores[i];
        finite = finite && fabsf(score) <= 3.402823466e38f;
        best = fmaxf(best, score);
    }
    best = warp_max(best);
    if (lane == 0) of_warps[warp] = best;
    if (!finite) *odd = 1;
    __syncthreads();
    best = warp_max(lane < warps ? of_warps[lane] : -INFINITY);
    __syncthreads();
    const float least = best - p.reach[blockIdx.x], inverse = p.inverse[blockIdx.x];
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x; i < p.count; i += blockDim.x) {
        const float score = scores[i];
        sum += expf((score - best) * inverse);
        if (score >= least) {
            const uint32_t at = shared_add(found, 1u);
            if (at < SHORTLIST_ROOM) {
                out[2u + at] = i;
                out[2u + SHORTLIST_ROOM + at] = f32_bits(score);
            }
        }
    }
    sum = block_total(sum, of_warps);
    __syncthreads();
    if (threadIdx.x == 0) {
        out[0] = *odd ? 0xffffffffu : *found;
        out[1] = f32_bits(sum);
    }
}
