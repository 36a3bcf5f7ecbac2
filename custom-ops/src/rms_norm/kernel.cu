// RMS norm of rows.

#include "cuda/memory.cuh"
#include "cuda/reduce.cuh"

struct RmsNormParams {
    const float* x;       // [rows, n], or where `out` is
    const float* weight;  // [n], or null for ones
    float* out;           // [rows, n]
    double eps;
    uint32_t n;
};

// A block for each row.
KERNEL(rms_norm, RmsNormParams, 512) {
    SHARED(double, scratch);
    pdl_trigger();
    pdl_wait();
    const float* x = p.x + uint64_t(blockIdx.x) * p.n;
    float* out = p.out + uint64_t(blockIdx.x) * p.n;
    const float scale = rms_scale(x, p.n, p.eps, scratch);
    for (uint32_t i = threadIdx.x; i < p.n; i += blockDim.x) {
        const float value = x[i] * scale;
        out[i] = p.weight ? value * p.weight[i] : value;
    }
}
