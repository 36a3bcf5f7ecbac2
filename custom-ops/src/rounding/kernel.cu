// Rounding rows in place as the model was trained.

#include "cuda/memory.cuh"
#include "cuda/row.cuh"

struct RoundingParams {
    float* x;  // [rows, dim]
    uint32_t rows;
    uint32_t dim;
    uint32_t channels;  // of each row in FP8, from the first on; the others in BF16
    uint32_t block;     // channels that share a scale, a power of two up to 64
    float factor;       // of the Hadamard matrix
};

// A warp for each block of a row, and one for each 64 of the channels after them.
KERNEL(kv_round_trip, RoundingParams, 256) {
    pdl_trigger();
    pdl_wait();
    const uint32_t blocks = p.channels / p.block, warps = blocks + (p.dim - p.channels + 63) / 64;
    const uint64_t index = uint64_t(blockIdx.x) * 8 + warp_id();
    if (index >= uint64_t(p.rows) * warps) return;
    float* x = p.x + index / warps * p.dim;
    const uint32_t block = uint32_t(index % warps);
    if (block < blocks) {
        round_fp8(x + block * p.block, p.block);
    } else {
        const uint32_t first = p.channels + (block - blocks) * 64;
        round_bf16s(x + first, min(64u, p.dim - first));
    }
}

// A block for each row of `dim` values, a power of two.
KERNEL(hadamard_fp4_round_trip, RoundingParams, 256) {
    SHARED(float, row);
    pdl_trigger();
    pdl_wait();
    float* x = p.x + uint64_t(blockIdx.x) * p.dim;
    for (uint32_t i = threadIdx.x; i < p.dim; i += blockDim.x) row[i] = x[i];
    __syncthreads();
    hadamard(row, p.dim);
    const uint32_t warps = blockDim.x / 32;
    for (uint32_t block = warp_id(); block < p.dim / p.block; block += warps) {
        round_fp4(row + block * p.block, x + block * p.block, p.block, p.factor);
    }
}
