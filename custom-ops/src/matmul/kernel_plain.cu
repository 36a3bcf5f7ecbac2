// The product for formats and shapes that no other kernel takes: a warp has a row, and decodes it once
// for four tokens at a time.
#include "../../include/cuda/decode.cuh"
#include "../../include/cuda/matmul.h"

KERNEL(matmul_plain, MatmulPlainParams, 256) {
    constexpr uint32_t TOKENS = 4;
    pdl_wait();
    // Only now: the kernel after may read before its wait what the one before has written.
    pdl_trigger();
    const uint32_t lane = lane_id(), warps = blockDim.x / 32u, cols = p.w.cols;
    const uint32_t runs = (cols + 7u) / 8u;
    const uint64_t width = static_cast<uint64_t>(p.groups) * cols;
    for (uint32_t row = blockIdx.x * warps + warp_id(); row < p.w.rows; row += gridDim.x * warps) {
        const float* x = p.x + static_cast<uint64_t>(row / (p.w.rows / p.groups)) * cols;
        for (uint32_t first = blockIdx.y * TOKENS; first < p.tokens; first += gridDim.y * TOKENS) {
            float sum[TOKENS] = {};
            for (uint32_t run = lane; run < runs; run += 32u) {
                float weights[8];
                decode8(p.w, 0, row, run, weights);
                const uint32_t count = min(8u, cols - 8u * run);
                for (uint32_t n = 0; n < TOKENS; n++) {
                    if (first + n >= p.tokens) break;
                    const float* of_token = x + (first + n) * width + 8u * run;
                    for (uint32_t j = 0; j < count; j++) sum[n] = fmaf(weights[j], of_token[j], sum[n]);
                }
            }
            for (uint32_t n = 0; n < TOKENS; n++) {
                const float all = warp_sum(sum[n]);
                if (lane == 0 && first + n < p.tokens) {
                    p.out[static_cast<uint64_t>(first + n) * p.w.rows + row] = all;
                }
            }
        }
    }
}
