// Attention of few tokens: eight heads of a token are the columns of a matrix product, rows its rows.
//
// The rows are split over the blocks of a cluster; each takes them a chunk at a time with a running
// maximum, and at the end the blocks read each other's sums out of shared memory.
#include "../../include/cuda/attention.h"
#include "../../include/cuda/cluster.cuh"
#include "../../include/cuda/kv_rows.cuh"
#include "../../include/cuda/mma.cuh"
#include "../../include/cuda/turn.cuh"

namespace {

constexpr uint32_t DECODE_WARPS = 8;
constexpr float NO_SCORE = -1e30f;

// A block has 256 threads; a chunk MT tiles of 16 rows. Shared memory, in this order: rows, q as halves
// and what they leave out, weights of rows, scores of each warp's part of the dimensions, addresses,
// factors, maximum and sum of each head. The values at the end take the place of the rows.
template <uint32_t MT>
DEVICE void decode(const AttentionParams& p, unsigned char* shared) {
    constexpr uint32_t CHUNK = MT * 16u, HEADS = ATTENTION_DECODE_HEADS, DIM = ATTENTION_DIM;
    constexpr uint32_t P_STRIDE = CHUNK + 8u;
    uint16_t* rows = reinterpret_cast<uint16_t*>(shared);
    uint16_t* q = rows + CHUNK * KV_STRIDE;
    uint16_t* weights = q + 2u * HEADS * KV_STRIDE;
    float* scores = reinterpret_cast<float*>(weights + HEADS * P_STRIDE);
    uint64_t* addresses = reinterpret_cast<uint64_t*>(scores + DECODE_WARPS * CHUNK * HEADS);
    float* factors = reinterpret_cast<float*>(addresses + CHUNK);
    float* state = factors + HEADS;  // maxima, then sums
    float* values = reinterpret_cast<float*>(shared);
    const uint32_t warp = warp_id(), lane = lane_id(), g = lane / 4u, t = lane % 4u;
    const uint32_t rank = cluster_rank(), size = cluster_size();
    const uint32_t groups = (p.heads + HEADS - 1u) / HEADS;
    const uint32_t work = blockIdx.x / size, token = p.first_token + work / groups, head = work % groups * HEADS + warp;

    pdl_trigger();
    // Positions are no kernel's work. Lane l has the turn of pair l.
    const Attending a = attending(p, token);
    const bool turning = p.turns != 0;
    const Turn turn = lane < p.turns ? turn_of(p.batch.positions[token], p.frequencies[lane]) : no_turn();
    const uint32_t plain = DIM - 2u * p.turns;  // channels that do not turn
    const uint32_t each = (a.count + size - 1u) / size;
    const uint32_t first = min(rank * each, a.count), last = min(first + each, a.count);
    const auto find_rows = [&](uint32_t start) {
        const uint32_t count = min(CHUNK, last - start);
        for (uint32_t i = threadIdx.x; i < CHUNK; i += blockDim.x) {
            addresses[i] = i < count ? row_address(p, a, start + i) : 0u;
        }
    };
    // Pages are no kernel's work either; what was chosen is the last one's.
    if (p.chosen == nullptr) find_rows(first);
    pdl_wait();

    // A warp has a head's query: as a half and the half of what that leaves out. It is on its way while rows
    // are looked up.
    {
        const bool there = head < p.heads;
        const float4* from = reinterpret_cast<const float4*>(p.q + (static_cast<uint64_t>(token) * p.heads + head) * DIM);
        float4 of_lane[4];
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) of_lane[i] = there ? from[i * 32u + lane] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (p.chosen != nullptr) find_rows(first);
        float square = 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const float4 v = of_lane[i];
            square += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        }
        const float length = 1.0f / sqrtf(warp_sum(square) / static_cast<float>(DIM) + p.norm_eps);
        const float factor = turning ? length * p.scale : p.scale;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            float4 v = of_lane[i];
            v = make_float4(v.x * factor, v.y * factor, v.z * factor, v.w * factor);
            if (turning) {
                const uint32_t channel = i * 128u + lane * 4u, pair = channel < plain ? 0u : (channel - plain) / 2u;
                const float2 first = turned(v.x, v.y, shuffle_turn(turn, pair)), second = turned(v.z, v.w, shuffle_turn(turn, pair + 1u));
                if (channel >= plain) v = make_float4(first.x, first.y, second.x, second.y);
            }
            const uint32_t h0 = pack_f16x2(v.x, v.y), h1 = pack_f16x2(v.z, v.w);
            const float2 f0 = unpack_f16x2(h0), f1 = unpack_f16x2(h1);
            uint16_t* to = q + warp * KV_STRIDE + i * 128u + lane * 4u;
            *reinterpret_cast<uint2*>(to) = make_uint2(h0, h1);
            *reinterpret_cast<uint2*>(to + HEADS * KV_STRIDE) =
                make_uint2(pack_f16x2(v.x - f0.x, v.y - f0.y), pack_f16x2(v.z - f1.x, v.w - f1.y));
        }
    }

    float out[4][4] = {};
    float most = NO_SCORE, sum = 0.0f;  // of this warp's head
    for (uint32_t start = first; start < last; start += CHUNK) {
        const uint32_t count = min(CHUNK, last - start), tiles = (count + 15u) / 16u;
        if (start != first) find_rows(start);
        __syncthreads();
        rows_to_shared<5>(addresses, tiles * 16u, rows);
        __syncthreads();

        // Each warp: 64 of the dimensions of all rows.
        {
            float s[MT][4] = {};
#pragma unroll
            for (uint32_t step = 0; step < 4; step++) {
                const uint32_t k = warp * 64u + step * 16u;
                const uint16_t* high = q + g * KV_STRIDE + k + 2u * t;
                const uint16_t* low = high + HEADS * KV_STRIDE;
                const uint32_t h0 = *reinterpret_cast<const uint32_t*>(high), h1 = *reinterpret_cast<const uint32_t*>(high + 8);
                const uint32_t l0 = *reinterpret_cast<const uint32_t*>(low), l1 = *reinterpret_cast<const uint32_t*>(low + 8);
#pragma unroll
                for (uint32_t m = 0; m < MT; m++) {
                    if (m >= tiles) break;
                    uint32_t tile[4];
                    load_tiles(tile, rows + (m * 16u + lane % 16u) * KV_STRIDE + k + lane / 16u * 8u);
                    mma_m16n8k16_f16(s[m], tile, h0, h1);
                    mma_m16n8k16_f16(s[m], tile, l0, l1);
                }
            }
#pragma unroll
            for (uint32_t m = 0; m < MT; m++) {
                float* to = scores + (warp * CHUNK + m * 16u + g) * HEADS + 2u * t;
                *reinterpret_cast<float2*>(to) = make_float2(s[m][0], s[m][1]);
                *reinterpret_cast<float2*>(to + 8u * HEADS) = make_float2(s[m][2], s[m][3]);
            }
        }
        __syncthreads();

        // Each warp: one head.
        {
            constexpr uint32_t EACH = (CHUNK + 31u) / 32u;
            float s[EACH], here = NO_SCORE;
#pragma unroll
            for (uint32_t i = 0; i < EACH; i++) {
                const uint32_t r = i * 32u + lane;
                float score = NO_SCORE;
                if (r < count && addresses[r] != 0) {
                    score = 0.0f;
#pragma unroll
                    for (uint32_t w = 0; w < DECODE_WARPS; w++) score += scores[(w * CHUNK + r) * HEADS + warp];
                }
                s[i] = score;
                here = fmaxf(here, score);
            }
            const float before = most;
            most = fmaxf(most, warp_max(here));
            const float factor = fast_exp(before - most);
            float added = 0.0f;
#pragma unroll
            for (uint32_t i = 0; i < EACH; i++) {
                const uint32_t r = i * 32u + lane;
                const float weight = r < count && addresses[r] != 0 ? fast_exp(s[i] - most) : 0.0f;
                added += weight;
                if (r < CHUNK) weights[warp * P_STRIDE + r] = f32_to_f16(weight);
            }
            sum = sum * factor + warp_sum(added);
            if (lane == 0) factors[warp] = factor;
        }
        __syncthreads();

        // Each warp: 64 of the dimensions of the values.
        const float f0 = factors[2u * t], f1 = factors[2u * t + 1u];
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            out[i][0] *= f0;
            out[i][1] *= f1;
            out[i][2] *= f0;
            out[i][3] *= f1;
        }
#pragma unroll
        for (uint32_t m = 0; m < MT; m++) {
            if (m >= tiles) break;
            const uint16_t* of_head = weights + g * P_STRIDE + m * 16u + 2u * t;
            const uint32_t w0 = *reinterpret_cast<const uint32_t*>(of_head), w1 = *reinterpret_cast<const uint32_t*>(of_head + 8);
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                uint32_t tile[4];
                load_tiles_transposed(tile, rows + (m * 16u + lane % 8u + lane / 16u * 8u) * KV_STRIDE + warp * 64u +
                                                i * 16u + lane / 8u % 2u * 8u);
                mma_m16n8k16_f16(out[i], tile, w0, w1);
            }
        }
        __syncthreads();
    }

#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            values[(2u * t + j % 2u) * DIM + warp * 64u + i * 16u + g + j / 2u * 8u] = out[i][j];
        }
    }
    if (lane == 0) {
        state[warp] = most;
        state[HEADS + warp] = sum;
    }
    cluster_sync();
    // Every block writes its part of the heads' values: two neighbours a thread, so that a warp's are of one
    // head. What the others have is asked for at once, since it comes from afar.
    constexpr uint32_t BLOCKS = ATTENTION_DECODE_CLUSTER;
    const uint32_t part = HEADS * DIM / size;
    for (uint32_t i = threadIdx.x * 2u; i < part; i += blockDim.x * 2u) {
        const uint32_t at = rank * part + i, of_group = at / DIM, h = work % groups * HEADS + of_group;
        float maxima[BLOCKS], sums[BLOCKS];
        float2 parts[BLOCKS];
#pragma unroll
        for (uint32_t b = 0; b < BLOCKS; b++) {
            const float* theirs = cluster_shared(state, min(b, size - 1u));
            maxima[b] = theirs[of_group];
            sums[b] = theirs[HEADS + of_group];
            parts[b] = *reinterpret_cast<const float2*>(cluster_shared(values, min(b, size - 1u)) + at);
        }
        const float sink = p.sinks[min(h, p.heads - 1u)];
        float highest = sink;
#pragma unroll
        for (uint32_t b = 0; b < BLOCKS; b++) highest = fmaxf(highest, maxima[b]);
        float total = fast_exp(sink - highest);
        float2 value = make_float2(0.0f, 0.0f);
#pragma unroll
        for (uint32_t b = 0; b < BLOCKS; b++) {
            const float factor = b < size ? fast_exp(maxima[b] - highest) : 0.0f;
            total += factor * sums[b];
            value.x += factor * parts[b].x;
            value.y += factor * parts[b].y;
        }
        value = make_float2(value.x / total, value.y / total);
        if (turning) {
            // Values were turned with their keys; the query's angle is taken back from their sum.
            const uint32_t channel = at % DIM, pair = channel < plain ? 0u : (channel - plain) / 2u;
            const float2 before = turned(value.x, value.y, back(shuffle_turn(turn, pair)));
            if (channel >= plain) value = before;
        }
        if (h < p.heads) *reinterpret_cast<float2*>(p.out + (static_cast<uint64_t>(token) * p.heads + h) * DIM + at % DIM) = value;
    }
    // The slot that is overwritten is of a token that left the window before.
    if (turning && rank == 0 && work % groups == 0) {
        float* slot = p.rings.data[a.sequence] + static_cast<uint64_t>(p.batch.positions[token] % p.rings.slots) * DIM;
        for (uint32_t i = threadIdx.x; i < DIM; i += blockDim.x) slot[i] = p.kv[static_cast<uint64_t>(token) * DIM + i];
    }
    // Nobody leaves while others read its shared memory.
    cluster_sync();
}

}  // namespace

// Names: rows of a chunk. Grid: tokens · ceil(heads / 8) · cluster. Shared memory:
// ATTENTION_DECODE_SHARED(rows).
KERNEL(attention_decode_80, AttentionParams, 256) {
    SHARED(unsigned char, shared);
    decode<5>(p, shared);
}
KERNEL(attention_decode_32, AttentionParams, 256) {
    SHARED(unsigned char, shared);
    decode<2>(p, shared);
}
