// Which compressed rows are worth attending to: scores of all visible ones, then the best k.
#include "../../include/cuda/cluster.cuh"
#include "../../include/cuda/indexer.h"
#include "../../include/cuda/keys.cuh"
#include "../../include/cuda/memory.cuh"
#include "../../include/cuda/mma.cuh"
#include "../../include/cuda/numbers.cuh"

namespace {

// Bytes of a head's query in shared memory: pieces of eight channels, ordered for the lanes, and a gap
// that moves every other head to the other banks.
constexpr uint32_t QUERY_BYTES = 320;
constexpr uint32_t SCORE_WARPS = 8;
// 16 keys as A operands of eight products: lane t of a row has channels 32 t ..+32, four a product.
struct KeyTile {
    uint32_t a[8][4];
};

DEVICE void fetch_keys(KeyTile& keys, const Rows& rows, uint32_t sequence, uint32_t first, uint32_t count) {
    const uint32_t lane = lane_id(), g = lane / 4u, t = lane % 4u;
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        // Rows past the last repeat it; their scores are not written.
        const uint32_t index = min(first + g + 8u * r, count - 1u);
        const uint8_t* row = rows.pages[sequence][index / rows.page_rows] +
                             index % rows.page_rows * static_cast<uint64_t>(rows.row_bytes);
        if (rows.format == ROWS_FP4) {
            const float scale = e8m0_to_f32(row[64u + t]) * (16384.0f * KEY_FACTOR);
            const uint32_t scales = pack_f16x2(scale, scale);
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                const uint32_t codes = *reinterpret_cast<const uint32_t*>(row + t * 16u + i * 4u);
                const uint32_t even = e2m1_to_high_bytes(codes & 0x0f0f0f0fu);
                const uint32_t odd = e2m1_to_high_bytes(codes >> 4 & 0x0f0f0f0fu);
                // Halves {even, odd} of byte 0, then of bytes 1, 2, 3.
                const uint32_t low = byte_perm(even, odd, 0x5140u), high = byte_perm(even, odd, 0x7362u);
                keys.a[2 * i][r] = mul_f16x2(byte_perm(low, 0u, 0x1404u), scales);
                keys.a[2 * i][2 + r] = mul_f16x2(byte_perm(low, 0u, 0x3424u), scales);
                keys.a[2 * i + 1][r] = mul_f16x2(byte_perm(high, 0u, 0x1404u), scales);
                keys.a[2 * i + 1][2 + r] = mul_f16x2(byte_perm(high, 0u, 0x3424u), scales);
            }
        } else {
#pragma unroll
            for (uint32_t i = 0; i < 8; i++) {
                const float4 v = reinterpret_cast<const float4*>(row)[t * 8u + i];
                keys.a[i][r] = pack_f16x2(v.x * KEY_FACTOR, v.y * KEY_FACTOR);
                keys.a[i][2 + r] = pack_f16x2(v.z * KEY_FACTOR, v.w * KEY_FACTOR);
            }
        }
    }
}

// A block has MT · 128 keys at a time and `of_block` tokens.
template <uint32_t MT>
DEVICE void scores(const IndexerScoresParams& p, unsigned char* shared) {
    const uint32_t warp = warp_id(), lane = lane_id(), g = lane / 4u, t = lane % 4u;
    const uint32_t stage_bytes = INDEXER_HEADS * (QUERY_BYTES + 4u);
    pdl_trigger();
    constexpr uint32_t KEYS = MT * 16u * SCORE_WARPS;
    const uint32_t first_token = blockIdx.y * p.of_block;
    const uint32_t end_token = min(first_token + p.of_block, p.tokens);
    // Where keys are is the host's word, which is read from afar, one thing after the other: once read it is
    // near.
    if (first_token < end_token) {
        const uint32_t sequence = p.batch.sequence[p.first_token + first_token];
        const Span span = p.batch.spans[sequence];
        const uint32_t last = min(span.row + span.len, p.first_token + end_token) - 1u;
        const uint32_t there = (p.batch.positions[last] + 1u) / p.ratio;
        const uint32_t row = blockIdx.x * KEYS + warp * (MT * 16u) + lane % (MT * 16u);
        if (there != 0) bring_near(&p.keys.pages[sequence][min(row, there - 1u) / p.keys.page_rows]);
    }
    pdl_wait();
    const auto fetch_query = [&](uint32_t token) {
        if (token < end_token) {
            unsigned char* stage = shared + token % 2u * stage_bytes;
            const uint16_t* q = p.q + static_cast<uint64_t>(p.first_token + token) * p.heads * INDEXER_DIM;
            for (uint32_t i = threadIdx.x; i < p.heads * 16u; i += blockDim.x) {
                const uint32_t head = i / 16u, piece = i % 16u;
                copy16_async(stage + head * QUERY_BYTES + (piece % 4u * 4u + piece / 4u) * 16u, q + i * 8u);
            }
            const float* weights = p.weights + static_cast<uint64_t>(p.first_token + token) * p.heads;
            for (uint32_t i = threadIdx.x; i < p.heads / 4u; i += blockDim.x) {
                copy16_async(stage + INDEXER_HEADS * QUERY_BYTES + i * 16u, weights + i * 4u);
            }
        }
        copy_commit();
    };
    // The most that any token of this block sees.
    uint32_t most = 0;
    for (uint32_t token = first_token; token < end_token; token++) {
        most = max(most, (p.batch.positions[p.first_token + token] + 1u) / p.ratio);
    }
    for (uint32_t block = blockIdx.x * KEYS; block < most; block += gridDim.x * KEYS) {
        const uint32_t first = block + warp * (MT * 16u);
        KeyTile keys[MT];
        uint32_t sequence = 0xffffffffu, there = 0;
        fetch_query(first_token);
        for (uint32_t token = first_token; token < end_token; token++) {
            fetch_query(token + 1u);
            const uint32_t visible = (p.batch.positions[p.first_token + token] + 1u) / p.ratio;
            if (p.batch.sequence[p.first_token + token] != sequence) {
                sequence = p.batch.sequence[p.first_token + token];
                // Its keys: as many as its last token here sees.
                const Span span = p.batch.spans[sequence];
                const uint32_t last = min(span.row + span.len, p.first_token + end_token) - 1u;
                there = (p.batch.positions[last] + 1u) / p.ratio;
                if (there != 0) {
#pragma unroll
                    for (uint32_t m = 0; m < MT; m++) fetch_keys(keys[m], p.keys, sequence, first + m * 16u, there);
                }
            }
            copy_wait<1>();
            __syncthreads();
            const unsigned char* stage = shared + token % 2u * stage_bytes;
            const float* weights = reinterpret_cast<const float*>(stage + INDEXER_HEADS * QUERY_BYTES);
            if (first < visible) {
                float score[MT][2] = {};
                for (uint32_t head = 0; head < p.heads; head += 8u) {
                    float dots[MT][4] = {};
#pragma unroll
                    for (uint32_t i = 0; i < 4; i++) {
                        const uint4 q = *reinterpret_cast<const uint4*>(stage + (head + g) * QUERY_BYTES + (i * 4u + t) * 16u);
#pragma unroll
                        for (uint32_t m = 0; m < MT; m++) {
                            mma_m16n8k16_f16(dots[m], keys[m].a[2 * i], q.x, q.y);
                            mma_m16n8k16_f16(dots[m], keys[m].a[2 * i + 1], q.z, q.w);
                        }
                    }
                    const float w0 = weights[head + 2u * t], w1 = weights[head + 2u * t + 1u];
#pragma unroll
                    for (uint32_t m = 0; m < MT; m++) {
                        score[m][0] = fmaf(w1, fmaxf(dots[m][1], 0.0f), fmaf(w0, fmaxf(dots[m][0], 0.0f), score[m][0]));
                        score[m][1] = fmaf(w1, fmaxf(dots[m][3], 0.0f), fmaf(w0, fmaxf(dots[m][2], 0.0f), score[m][1]));
                    }
                }
#pragma unroll
                for (uint32_t m = 0; m < MT; m++) {
#pragma unroll
                    for (uint32_t r = 0; r < 2; r++) {
                        float s = score[m][r];
                        s += shuffle_xor(s, 1u);
                        s += shuffle_xor(s, 2u);
                        const uint32_t row = first + m * 16u + g + 8u * r;
                        if (t == 0 && row < visible) p.scores[token * p.stride + row] = s * (1.0f / KEY_FACTOR);
                    }
                }
            }
            // The stage is overwritten by the token after the next.
            __syncthreads();
        }
        copy_wait<0>();
    }
}

}  // namespace

// Names: keys of a block. Grid: any number of blocks, tokens / of_block.
KERNEL(indexer_scores_128, IndexerScoresParams, 256) {
    SHARED(unsigned char, shared);
    scores<1>(p, shared);
}
KERNEL(indexer_scores_256, IndexerScoresParams, 256) {
    SHARED(unsigned char, shared);
    scores<2>(p, shared);
}

namespace {

constexpr uint32_t BINS = 2048;

// The sum over the threads after this one, of 1024; `of_warps` holds 32.
DEVICE uint32_t sum_after(uint32_t value, uint32_t* of_warps) {
    const uint32_t lane = lane_id(), warp = warp_id();
    uint32_t sum = value;
    for (uint32_t by = 1; by < 32; by *= 2) {
        const uint32_t other = shuffle_down(sum, by);
        if (lane + by < 32u) sum += other;
    }
    if (lane == 0) of_warps[warp] = sum;
    __syncthreads();
    uint32_t after = sum - value;
    for (uint32_t w = warp + 1u; w < 32u; w++) after += of_warps[w];
    __syncthreads();
    return after;
}

}  // namespace

// Blocks of 1024 threads; grid: tokens · cluster. Each block of the cluster has a run of the rows.
KERNEL(indexer_select, IndexerSelectParams, 1024) {
    SHARED(uint32_t, cache);
    uint32_t* bins = cache + p.cached;
    uint32_t* of_warps = bins + BINS;
    uint32_t* found = of_warps + 32;  // bin, rows above it; then rows of this block: above, equal
    uint32_t* above = found + 32;
    uint32_t* equal = above + p.words;
    const uint32_t rank = cluster_rank(), size = cluster_size(), lane = lane_id(), warp = warp_id();
    const uint32_t of_launch = blockIdx.x / size, token = p.first_token + of_launch;

    pdl_trigger();
    pdl_wait();
    const uint32_t visible = (p.batch.positions[token] + 1u) / p.ratio;
    uint32_t* out = p.out + static_cast<uint64_t>(token) * p.k;
    if (visible <= p.k) {
        for (uint32_t i = rank * blockDim.x + threadIdx.x; i < p.k; i += size * blockDim.x) {
            out[i] = i < visible ? i : 0xffffffffu;
        }
        return;
    }
    const uint32_t each = ((visible + size - 1u) / size + 31u) / 32u * 32u;
    const uint32_t first = min(rank * each, visible), count = min(first + each, visible) - first;
    const float* scores = p.scores + of_launch * p.stride + first;
    for (uint32_t i = threadIdx.x; i < min(count, p.cached); i += blockDim.x) cache[i] = rank_of(scores[i]);
    __syncthreads();
    const auto key = [&](uint32_t i) { return i < p.cached ? cache[i] : rank_of(scores[i]); };

    // The k-th highest, eleven bits at a time: how many are in each bin, over all blocks.
    uint32_t prefix = 0, mask = 0, wanted = p.k;
    for (uint32_t pass = 0; pass < 3; pass++) {
        const uint32_t shift = pass == 0 ? 21u : pass == 1 ? 10u : 0u, digits = pass == 2 ? 1023u : 2047u;
        for (uint32_t i = threadIdx.x; i < BINS; i += blockDim.x) bins[i] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
            const uint32_t k = key(i);
            if ((k & mask) == prefix) shared_add(&bins[k >> shift & digits], 1u);
        }
        cluster_sync();
        uint32_t two[2] = {0, 0};
        for (uint32_t b = 0; b < size; b++) {
            const uint32_t* theirs = cluster_shared(bins, b);
            two[0] += theirs[2u * threadIdx.x];
            two[1] += theirs[2u * threadIdx.x + 1u];
        }
        const uint32_t after = sum_after(two[0] + two[1], of_warps);
        if (after < wanted && after + two[1] >= wanted) {
            found[0] = 2u * threadIdx.x + 1u;
            found[1] = after;
        } else if (after + two[1] < wanted && after + two[1] + two[0] >= wanted) {
            found[0] = 2u * threadIdx.x;
            found[1] = after + two[1];
        }
        __syncthreads();
        prefix |= found[0] << shift;
        mask |= digits << shift;
        wanted -= found[1];
        // Nobody clears bins that others read.
        cluster_sync();
    }

    // All above the k-th highest, and the first `wanted` that are equal to it.
    for (uint32_t word = warp; word < (count + 31u) / 32u; word += blockDim.x / 32u) {
        const uint32_t i = word * 32u + lane, k = i < count ? key(i) : 0u;
        const uint32_t higher = warp_ballot(i < count && k > prefix), same = warp_ballot(i < count && k == prefix);
        if (lane == 0) {
            above[word] = higher;
            equal[word] = same;
        }
    }
    __syncthreads();
    const uint32_t words = (count + 31u) / 32u, mine = (words + blockDim.x - 1u) / blockDim.x;
    const uint32_t from = min(threadIdx.x * mine, words), to = min(from + mine, words);
    uint32_t counts[2] = {0, 0};
    for (uint32_t word = from; word < to; word++) {
        counts[0] += bit_count(above[word]);
        counts[1] += bit_count(equal[word]);
    }
    // Sums before = all - own - after.
    const uint32_t after[2] = {sum_after(counts[0], of_warps), sum_after(counts[1], of_warps)};
    if (threadIdx.x == 0) {
        found[2] = after[0] + counts[0];
        found[3] = after[1] + counts[1];
    }
    cluster_sync();
    uint32_t before[2] = {found[2] - counts[0] - after[0], found[3] - counts[1] - after[1]};
    for (uint32_t b = 0; b < rank; b++) {
        before[0] += cluster_shared(found, b)[2];
        before[1] += cluster_shared(found, b)[3];
    }
    for (uint32_t word = from; word < to; word++) {
        const uint32_t higher = above[word], same = equal[word];
        for (uint32_t bits = higher | same; bits != 0; bits &= bits - 1u) {
            const uint32_t bit = bits & (0u - bits), row = first + word * 32u + bit_count(bit - 1u);
            if (higher & bit) {
                out[before[0] + min(before[1], wanted)] = row;
                before[0] += 1;
            } else {
                if (before[1] < wanted) out[before[0] + before[1]] = row;
                before[1] += 1;
            }
        }
    }
    // Nobody leaves while others read its shared memory.
    cluster_sync();
}
