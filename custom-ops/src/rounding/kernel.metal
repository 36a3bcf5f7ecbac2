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
    round_fp8_block(at, p.block, lane);
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
        float v = round_fp4(there ? row[first + lane] * p.scale : 0.0f);
        if (there) at[first + lane] = v;
    }
}
KERNEL(hadamard_fp4_round_trip)
