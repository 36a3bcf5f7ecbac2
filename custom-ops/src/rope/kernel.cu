// Rotary embedding of the last channels of each head, in place.

#include "cuda/memory.cuh"

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
    SHARED(float, sines);
    float* cosines = sines + p.count;
    pdl_trigger();
    pdl_wait();
    const uint32_t token = blockIdx.x;
    if (threadIdx.x < p.count) {
        // The product is rounded to f32, the sine taken in f64: as in the reference.
        const float product = float(p.positions[token]) * p.frequencies[threadIdx.x];
        sines[threadIdx.x] = p.sign * float(sin(double(product)));
        cosines[threadIdx.x] = float(cos(double(product)));
    }
    __syncthreads();
    const uint32_t first = blockIdx.y * 8, heads = min(8u, p.heads - first);
    float* x = p.x + (uint64_t(token) * p.heads + first) * p.dim + (p.dim - 2 * p.count);
    for (uint32_t i = threadIdx.x; i < heads * p.count; i += blockDim.x) {
        const uint32_t head = i / p.count, pair = i % p.count;
        float* two = x + head * p.dim + 2 * pair;
        const float a = two[0], b = two[1], sine = sines[pair], cosine = cosines[pair];
        two[0] = a * cosine - b * sine;
        two[1] = a * sine + b * cosine;
    }
}
