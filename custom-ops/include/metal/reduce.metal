// Sums and maxima over a threadgroup of up to 1024 threads.

// `partial` has room for 32 values and is free again after the next barrier.
inline float threadgroup_sum(float v, threadgroup float* partial, uint lane, uint simd, uint simds) {
    v = simd_sum(v);
    if (simds == 1u) return v;
    if (lane == 0u) partial[simd] = v;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return simd_sum(lane < simds ? partial[lane] : 0.0f);
}
