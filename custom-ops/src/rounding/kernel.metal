// FP8 and BF16 of KV rows; Hadamard and FP4 of the indexer's rows; in place.

struct Kv {
    uint dim;
    uint nope;   // channels that FP8 rounds, the first ones; BF16 rounds the others
    uint block;  // channels that share a scale: a power of two up to 64
};

// One SIMD-group a block of up to 64 channels, and one for the channels that turn.
kernel void kv_round_trip(constant Kv& p [[buffer(0)]], device float* x [[buffer(1)]],
                           THREAD_POSITION) {
    device float* at = x + ulong(group.y) * p.dim + group.x * p.block;
    if (group.x * p.block >= p.nope) {
        for (uint i = lane; i < p.dim - p.nope; i += LANES) at[i] = round_bf16(at[i]);
        return;
    }
    bool has_a = lane < p.block, has_b = lane + 32u < p.block;
    float a = has_a ? at[lane] : 0.0f, b = has_b ? at[lane + 32u] : 0.0f;
    float scale = fp8_scale(simd_max(max(fabs(a), fabs(b))));
    if (has_a) at[lane] = round_e4m3(clamp(a / scale, -448.0f, 448.0f)) * scale;
    if (has_b) at[lane + 32u] = round_e4m3(clamp(b / scale, -448.0f, 448.0f)) * scale;
}
KERNEL(kv_round_trip)

struct Fp4 {
    uint dim;  // a power of two up to 1024
    float scale;
};

// One SIMD-group a row.
kernel void hadamard_fp4_round_trip(constant Fp4& p [[buffer(0)]], device float* x [[buffer(1)]],
                                    THREAD_POSITION) {
    THREADGROUP(float, row, [1024]);
    device float* at = x + ulong(group.x) * p.dim;
    for (uint i = lane; i < p.dim; i += LANES) row[i] = at[i];
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (uint stride = 1; stride < p.dim; stride *= 2u) {
        for (uint i = lane; i < p.dim / 2u; i += LANES) {
            uint low = i / stride * 2u * stride + i % stride;
            float a = row[low], b = row[low + stride];
            row[low] = a + b;
            row[low + stride] = a - b;
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
    for (uint first = 0; first < p.dim; first += LANES) {
        bool there = first + lane < p.dim;
        float v = there ? row[first + lane] * p.scale : 0.0f;
        float scale = fp4_scale(simd_max(fabs(v)));
        if (there) at[first + lane] = round_e2m1(v / scale) * scale;
    }
}
KERNEL(hadamard_fp4_round_trip)
