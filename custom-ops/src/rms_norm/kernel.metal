// Root-mean-square normalisation of rows.

#define NORM_THREADS 256u

struct RmsNorm {
    uint n;
    float eps;
};

// Pipelines for rows with a weight and without.
FUNCTION_CONSTANT(bool, HAS_WEIGHT, 0)

// One threadgroup a row.
kernel void rms_norm(constant RmsNorm& p [[buffer(0)]], device const float* x [[buffer(1)]],
                     device const float* weight [[buffer(2)]], device float* out [[buffer(3)]],
                     THREAD_POSITION) {
    THREADGROUP(float, partial, [32]);
    device const float* row = x + ulong(group.x) * p.n;
    device float* to = out + ulong(group.x) * p.n;
    float sum = 0.0f;
    for (uint i = index; i < p.n; i += NORM_THREADS) sum = fma(row[i], row[i], sum);
    sum = threadgroup_sum(sum, partial, lane, simd, NORM_THREADS / LANES);
    float scale = 1.0f / precise::sqrt(sum / float(p.n) + p.eps);
    for (uint i = index; i < p.n; i += NORM_THREADS) {
        float v = row[i] * scale;
        to[i] = HAS_WEIGHT ? v * weight[i] : v;
    }
}
KERNEL(rms_norm)
