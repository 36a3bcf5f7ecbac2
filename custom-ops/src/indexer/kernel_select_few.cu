// The selection where every block has at most 8,192 rows: each thread keeps the ranks of eight.
#include "../../include/cuda/cluster.cuh"
#include "../../include/cuda/indexer.h"
#include "../../include/cuda/keys.cuh"
#include "../../include/cuda/memory.cuh"

namespace few_rows {

constexpr uint32_t THREADS = 1024, EACH = INDEXER_SELECT_FEW / THREADS, WARPS = THREADS / 32u;
constexpr uint32_t BINS = 2048, PASSES = 3;
constexpr uint32_t WORDS = EACH * WARPS;

// In shared memory.
struct Found {
    uint32_t bins[PASSES][BINS];
    uint32_t of_warps[WARPS];
    uint32_t bin, above;  // of the pass
    alignas(8) uint32_t totals[2];  // rows of this block above the last that is wanted, and equal to it
    uint32_t words[WORDS][2];
    uint32_t before[WORDS][2];
};
static_assert(sizeof(Found) == INDEXER_SELECT_FEW_SHARED, "as the launch has it");

// The sum over the lanes after this one.
DEVICE uint32_t lanes_after(uint32_t value) {
    uint32_t sum = value;
    for (uint32_t by = 1; by < 32; by *= 2) {
        const uint32_t other = shuffle_down(sum, by);
        if (lane_id() + by < 32u) sum += other;
    }
    return sum - value;
}

// The sum over the threads after this one.
DEVICE uint32_t threads_after(uint32_t value, uint32_t* of_warps) {
    const uint32_t lane = lane_id(), after = lanes_after(value);
    if (lane == 0) of_warps[warp_id()] = after + value;
    __syncthreads();
    const uint32_t sum = of_warps[lane];
    return after + shuffle(lanes_after(sum), warp_id());
}

DEVICE void select(const IndexerSelectParams& p, Found& found) {
    const uint32_t rank = cluster_rank(), size = cluster_size(), lane = lane_id(), warp = warp_id();
    const uint32_t of_launch = blockIdx.x / size, token = p.first_token + of_launch;
    pdl_trigger();
    for (uint32_t i = threadIdx.x; i < PASSES * BINS; i += THREADS) (&found.bins[0][0])[i] = 0;
    // Positions are no kernel's work.
    const uint32_t visible = (p.batch.positions[token] + 1u) / p.ratio;
    pdl_wait();
    uint32_t* out = p.out + static_cast<uint64_t>(token) * p.k;
    if (visible <= p.k) {
        for (uint32_t i = rank * THREADS + threadIdx.x; i < p.k; i += size * THREADS) {
            out[i] = i < visible ? i : 0xffffffffu;
        }
        return;
    }
    const uint32_t each = ((visible + size - 1u) / size + 31u) / 32u * 32u;
    const uint32_t first = min(rank * each, visible), count = min(first + each, visible) - first;
    const float* scores = p.scores + of_launch * p.stride + first;
    uint32_t keys[EACH];
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++) {
        const uint32_t i = j * THREADS + threadIdx.x;
        keys[j] = rank_of(i < count ? scores[i] : 0.0f);
    }
    __syncthreads();

    // The k-th highest, eleven bits at a time: how many are in each bin, over all blocks.
    uint32_t prefix = 0, mask = 0, wanted = p.k;
#pragma unroll
    for (uint32_t pass = 0; pass < PASSES; pass++) {
        const uint32_t shift = pass == 0 ? 21u : pass == 1 ? 10u : 0u, digits = pass == 2 ? 1023u : 2047u;
        uint32_t* bins = found.bins[pass];
#pragma unroll
        for (uint32_t j = 0; j < EACH; j++) {
            if (j * THREADS + threadIdx.x < count && (keys[j] & mask) == prefix) shared_add(&bins[keys[j] >> shift & digits], 1u);
        }
        cluster_sync();
        uint32_t two[2] = {bins[2u * threadIdx.x], bins[2u * threadIdx.x + 1u]};
        if (size != 1u) {
            // What the others have comes from afar: asked for at once.
            uint2 theirs[INDEXER_SELECT_CLUSTER - 1u];
#pragma unroll
            for (uint32_t i = 0; i < INDEXER_SELECT_CLUSTER - 1u; i++) {
                if (i + 1u >= size) break;
                theirs[i] = *reinterpret_cast<const uint2*>(cluster_shared(bins, (rank + i + 1u) % size) + 2u * threadIdx.x);
            }
#pragma unroll
            for (uint32_t i = 0; i < INDEXER_SELECT_CLUSTER - 1u; i++) {
                if (i + 1u >= size) break;
                two[0] += theirs[i].x;
                two[1] += theirs[i].y;
            }
        }
        const uint32_t after = threads_after(two[0] + two[1], found.of_warps);
        if (after < wanted && after + two[1] >= wanted) {
            found.bin = 2u * threadIdx.x + 1u;
            found.above = after;
        } else if (after + two[1] < wanted && after + two[1] + two[0] >= wanted) {
            found.bin = 2u * threadIdx.x;
            found.above = after + two[1];
        }
        __syncthreads();
        prefix |= found.bin << shift;
        mask |= digits << shift;
        wanted -= found.above;
    }

    // All above the k-th highest, and the first `wanted` that are equal to it. A word is 32 rows.
    uint32_t higher[EACH], same[EACH];
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++) {
        const bool there = j * THREADS + threadIdx.x < count;
        higher[j] = warp_ballot(there && keys[j] > prefix);
        same[j] = warp_ballot(there && keys[j] == prefix);
        if (lane == 0) {
            found.words[j * WARPS + warp][0] = bit_count(higher[j]);
            found.words[j * WARPS + warp][1] = bit_count(same[j]);
        }
    }
    __syncthreads();
    // Both counts in one sum: neither is more than the rows of a block.
    const uint32_t both = threadIdx.x < WORDS ? found.words[threadIdx.x][0] | found.words[threadIdx.x][1] << 16 : 0u;
    const uint32_t after = threads_after(both, found.of_warps);
    if (threadIdx.x == 0) {
        found.totals[0] = (after + both) & 0xffffu;
        found.totals[1] = (after + both) >> 16;
    }
    if (threadIdx.x < WORDS) {
        found.before[threadIdx.x][0] = (after + both) & 0xffffu;
        found.before[threadIdx.x][1] = (after + both) >> 16;
    }
    cluster_sync();
    // Sums before = all - those from here on.
    uint32_t before[2] = {found.totals[0], found.totals[1]};
#pragma unroll
    for (uint32_t b = 0; b < INDEXER_SELECT_CLUSTER - 1u; b++) {
        const uint2 theirs = *reinterpret_cast<const uint2*>(cluster_shared(found.totals, min(b, size - 1u)));
        before[0] += b < rank ? theirs.x : 0u;
        before[1] += b < rank ? theirs.y : 0u;
    }
    const uint32_t lower = (1u << lane) - 1u;
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++) {
        const uint32_t row = first + j * THREADS + threadIdx.x;
        const uint32_t highers = before[0] - found.before[j * WARPS + warp][0] + bit_count(higher[j] & lower);
        const uint32_t sames = before[1] - found.before[j * WARPS + warp][1] + bit_count(same[j] & lower);
        if (higher[j] >> lane & 1u) {
            out[highers + min(sames, wanted)] = row;
        } else if ((same[j] >> lane & 1u) != 0 && sames < wanted) {
            out[highers + sames] = row;
        }
    }
    // Nobody leaves while others read its shared memory.
    cluster_sync();
}

}  // namespace few_rows

// Blocks of 1024 threads; grid: tokens · cluster. Each block of the cluster has a run of the rows.
KERNEL(indexer_select_few, IndexerSelectParams, 1024) {
    SHARED(few_rows::Found, found);
    few_rows::select(p, *found);
}
