// The likeliest token of each row of scores.

#include "cuda/memory.cuh"
#include "cuda/numbers.cuh"

struct LikeliestParams {
    const float* scores;  // [rows, count]
    uint32_t* out;        // [rows]: an index, or all ones if a score is not finite
    uint32_t count;
    uint32_t skip;        // an index that is left out
};

namespace {

// A place and its score; of equal scores the lower place is better.
struct Best {
    float score;
    uint32_t at;
};

DEVICE Best better(Best a, Best b) {
    return b.score > a.score || (b.score == a.score && b.at < a.at) ? b : a;
}

}  // namespace

// A block for each row. Shared memory: 32 places and scores, and whether all is well.
KERNEL(likeliest, LikeliestParams, 1024) {
    SHARED(Best, of_warps);
    uint32_t* odd = reinterpret_cast<uint32_t*>(of_warps + 32);
    const uint32_t lane = lane_id(), warp = warp_id();
    pdl_trigger();
    if (threadIdx.x < 32) odd[lane] = 0;
    __syncthreads();
    pdl_wait();
    const float* scores = p.scores + uint64_t(blockIdx.x) * p.count;
    Best best = {-INFINITY, 0xffffffffu};
    bool finite = true;
    const auto look = [&](float score, uint32_t i) {
        finite = finite && fabsf(score) <= 3.402823466e38f;
        if (i != p.skip) best = better(best, {score, i});
    };
    // Many loads under way: a block is alone with its row. Rows may begin between two fours.
    const uint32_t ahead = min(p.count, static_cast<uint32_t>(-(reinterpret_cast<uintptr_t>(scores) / 4u) & 3u));
    const uint32_t fours = (p.count - ahead) / 4u;
    if (threadIdx.x < ahead) look(scores[threadIdx.x], threadIdx.x);
    for (uint32_t first = threadIdx.x; first < fours; first += 8u * blockDim.x) {
        float4 v[8];
#pragma unroll
        for (uint32_t j = 0; j < 8; j++) {
            v[j] = reinterpret_cast<const float4*>(scores + ahead)[min(first + j * blockDim.x, fours - 1u)];
        }
#pragma unroll
        for (uint32_t j = 0; j < 8; j++) {
            const uint32_t i = ahead + 4u * min(first + j * blockDim.x, fours - 1u);
            look(v[j].x, i);
            look(v[j].y, i + 1u);
            look(v[j].z, i + 2u);
            look(v[j].w, i + 3u);
        }
    }
    for (uint32_t i = ahead + 4u * fours + threadIdx.x; i < p.count; i += blockDim.x) look(scores[i], i);
#pragma unroll
    for (uint32_t mask = 16; mask != 0; mask /= 2) {
        best = better(best, {shuffle_xor(best.score, mask), shuffle_xor(best.at, mask)});
    }
    const uint32_t well = warp_ballot(finite);
    if (lane == 0) {
        of_warps[warp] = best;
        odd[warp] = ~well;
    }
    __syncthreads();
    if (warp != 0) return;
    const bool there = lane < blockDim.x / 32;
    best = there ? of_warps[lane] : Best{-INFINITY, 0xffffffffu};
    const uint32_t broken = warp_ballot(odd[lane] != 0);
#pragma unroll
    for (uint32_t mask = 16; mask != 0; mask /= 2) {
        best = better(best, {shuffle_xor(best.score, mask), shuffle_xor(best.at, mask)});
    }
    if (lane == 0) p.out[blockIdx.x] = broken ? 0xffffffffu : best.at;
}
