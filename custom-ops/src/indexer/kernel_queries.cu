// The indexer's queries: turned to their positions, Hadamard, FP4, as halves. What is rounded so fits halves
// exactly.
#include "cuda/numbers.cuh"
#include "cuda/rounding.cuh"
#include "cuda/turn.cuh"

#define INDEXER_TURNS 32u

struct IndexerQueriesParams {
    const float* q;             // [tokens, heads, 128]
    const uint32_t* positions;  // [tokens]
    uint16_t* out;              // halves, as q
    uint32_t tokens;
    uint32_t heads;
    uint32_t turns;             // frequencies
    float frequencies[INDEXER_TURNS];
};

// A warp has a head of a token, a lane channels 4 l ..+4 of it.
KERNEL(indexer_queries, IndexerQueriesParams, 256) {
    const uint32_t lane = lane_id();
    const uint64_t index = uint64_t(blockIdx.x) * (blockDim.x / 32u) + warp_id();
    pdl_trigger();
    const uint32_t token = uint32_t(min(uint32_t(index / p.heads), p.tokens - 1u));
    // Lane l has the turn of pair l.
    const Turn turn = lane < p.turns ? turn_of(p.positions[token], p.frequencies[lane]) : no_turn();
    pdl_wait();
    if (index >= uint64_t(p.tokens) * p.heads) return;
    const float4 from = reinterpret_cast<const float4*>(p.q)[index * 32u + lane];
    float v[4] = {from.x, from.y, from.z, from.w};
    const uint32_t channel = 4u * lane, plain = 128u - 2u * p.turns;
    const uint32_t pair = channel < plain ? 0u : (channel - plain) / 2u;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const float2 two = turned(v[2 * i], v[2 * i + 1], shuffle_turn(turn, pair + i));
        if (channel + 2u * i >= plain) {
            v[2 * i] = two.x;
            v[2 * i + 1] = two.y;
        }
    }
    // Butterflies within the lane, then between lanes.
    const float a = v[0] + v[1], b = v[0] - v[1], c = v[2] + v[3], d = v[2] - v[3];
    v[0] = a + c;
    v[1] = b + d;
    v[2] = a - c;
    v[3] = b - d;
#pragma unroll
    for (uint32_t mask = 1; mask < 32; mask *= 2) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const float other = shuffle_xor(v[i], mask);
            v[i] = lane & mask ? other - v[i] : v[i] + other;
        }
    }
    const float factor = 1.0f / sqrtf(128.0f);
    float most = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        v[i] *= factor;
        most = fmaxf(most, fabsf(v[i]));
    }
    // Eight lanes share a scale.
    most = fmaxf(most, shuffle_xor(most, 1u));
    most = fmaxf(most, shuffle_xor(most, 2u));
    most = fmaxf(most, shuffle_xor(most, 4u));
    const float scale = fp4_scale(most);
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) v[i] = round_e2m1(v[i] / scale) * scale;
    reinterpret_cast<uint2*>(p.out)[index * 32u + lane] = make_uint2(pack_f16x2(v[0], v[1]), pack_f16x2(v[2], v[3]));
}
