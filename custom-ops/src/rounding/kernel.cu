// Rounding rows in place as the model was trained.

#include "cuda/memory.cuh"
#include "cuda/rounding.cuh"

struct RoundingParams {
    float* x;  // [rows, dim]
    uint32_t rows;
    uint32_t dim;
    uint32_t channels;  // of each row in FP8, from the first on; the others in BF16
    uint32_t block;     // channels that share a scale, a power of two up to 64
    float factor;       // of the Hadamard matrix
};

// The largest magnitude of `block` values, in every lane of a warp that holds up to two a lane.
DEVICE float block_most(float first, float second) { return warp_max(fmaxf(fabsf(first), fabsf(second))); }

// A warp for each block of a row, and one for each 64 of the channels after them.
KERNEL(kv_round_trip, RoundingParams, 256) {
    pdl_trigger();
    pdl_wait();
    const uint32_t blocks = p.channels / p.block, warps = blocks + (p.dim - p.channels + 63) / 64;
    const uint64_t index = uint64_t(blockIdx.x) * 8 + warp_id();
    if (index >= uint64_t(p.rows) * warps) return;
    float* x = p.x + index / warps * p.dim;
    const uint32_t block = uint32_t(index % warps), lane = lane_id();
    if (block >= blocks) {
        const uint32_t first = p.channels + (block - blocks) * 64 + lane;
        if (first < p.dim) x[first] = round_bf16(x[first]);
        if (first + 32 < p.dim) x[first + 32] = round_bf16(x[first + 32]);
        return;
    }
    x += block * p.block;
    const float a = lane < p.block ? x[lane] : 0.0f;
    const float b = lane + 32 < p.block ? x[lane + 32] : 0.0f;
    const float scale = fp8_scale(block_most(a, b));
    if (lane < p.block) x[lane] = round_e4m3(fminf(fmaxf(a / scale, -448.0f), 448.0f)) * scale;
    if (lane + 32 < p.block) x[lane + 32] = round_e4m3(fminf(fmaxf(b / scale, -448.0f), 448.0f)) * scale;
}

// A block for each row of `dim` values, a power of two.
KERNEL(hadamard_fp4_round_trip, RoundingParams, 256) {
    SHARED(float, row);
    pdl_trigger();
    pdl_wait();
    float* x = p.x + uint64_t(blockIdx.x) * p.dim;
    for (uint32_t i = threadIdx.x; i < p.dim; i += blockDim.x) row[i] = x[i];
    for (uint32_t stride = 1; stride < p.dim; stride *= 2) {
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < p.dim / 2; i += blockDim.x) {
            const uint32_t low = i / stride * 2 * stride + i % stride, high = low + stride;
            const float a = row[low], b = row[high];
            row[low] = a + b;
            row[high] = a - b;
        }
    }
    __syncthreads();
    const uint32_t lane = lane_id(), warps = blockDim.x / 32;
    for (uint32_t block = warp_id(); block < p.dim / p.block; block += warps) {
        const uint32_t at = block * p.block + lane;
        const float value = lane < p.block ? row[at] * p.factor : 0.0f;
        const float scale = fp4_scale(block_most(value, 0.0f));
        if (lane < p.block) x[at] = round_e2m1(value / scale) * scale;
    }
}
