// Rotary embedding of the last channels of each head, in place.

#include "cuda/turn.cuh"

#define MAX_FREQUENCIES 64

struct RopeParams {
    float* x;                   // [tokens, heads, dim]
    const uint32_t* positions;  // [tokens]
    uint32_t heads;
    uint32_t dim;
    uint32_t count;  // frequencies
    float sign;      // -1 turns back
    float frequencies[MAX_FREQUENCIES];
};

// A block for eight heads of a token: they share their angles.
KERNEL(rope, RopeParams, 256) {
    SHARED(Turn, turns);
    pdl_trigger();
    pdl_wait();
    const uint32_t token = blockIdx.x;
    if (threadIdx.x < p.count) {
        const Turn turn = turn_of(p.positions[token], p.frequencies[threadIdx.x]);
        turns[threadIdx.x] = p.sign < 0.0f ? back(turn) : turn;
    }
    __syncthreads();
    const uint32_t first = blockIdx.y * 8, heads = min(8u, p.heads - first);
    float* x = p.x + (uint64_t(token) * p.heads + first) * p.dim + (p.dim - 2 * p.count);
    for (uint32_t i = threadIdx.x; i < heads * p.count; i += blockDim.x) {
        const uint32_t head = i / p.count, pair = i % p.count;
        float* two = x + head * p.dim + 2 * pair;
        const float2 v = turned(two[0], two[1], turns[pair]);
        two[0] = v.x;
        two[1] = v.y;
    }
}
