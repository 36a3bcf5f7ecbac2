// Norm of each head and rotary embedding of its last channels, in place and in one pass.

#include "cuda/reduce.cuh"
#include "cuda/turn.cuh"

#define MAX_FREQUENCIES 64

struct RopeNormedParams {
    float* x;                   // [tokens, heads, dim]
    const uint32_t* positions;  // [tokens]
    double eps;
    uint32_t heads;
    uint32_t dim;
    uint32_t count;  // frequencies
    uint32_t unused;
    float frequencies[MAX_FREQUENCIES];
};

// A block for eight heads of a token, a warp for each: they share their angles.
KERNEL(rope_normed, RopeNormedParams, 256) {
    SHARED(Turn, turns);
    pdl_trigger();
    pdl_wait();
    const uint32_t token = blockIdx.x;
    if (threadIdx.x < p.count) turns[threadIdx.x] = turn_of(p.positions[token], p.frequencies[threadIdx.x]);
    __syncthreads();
    const uint32_t head = blockIdx.y * 8 + warp_id();
    if (head >= p.heads) return;
    float* x = p.x + (uint64_t(token) * p.heads + head) * p.dim;
    double sum = 0.0;
    for (uint32_t i = lane_id(); i < p.dim; i += 32) sum += double(x[i]) * double(x[i]);
    // All lanes have read before any of them writes.
    sum = warp_total(sum);
    const float scale = float(1.0 / sqrt(sum / double(p.dim) + p.eps));
    const uint32_t still = p.dim - 2 * p.count;
    for (uint32_t i = lane_id(); i < still; i += 32) x[i] *= scale;
    for (uint32_t pair = lane_id(); pair < p.count; pair += 32) {
        float* two = x + still + 2 * pair;
        const float2 v = turned(two[0] * scale, two[1] * scale, turns[pair]);
        two[0] = v.x;
        two[1] = v.y;
    }
}
