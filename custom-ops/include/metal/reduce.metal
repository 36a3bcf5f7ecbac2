// Sums and maxima over a threadgroup of up to 1024 threads.

// `partial` has room for 32 values and is free again after the next barrier.
inline float threadgroup_sum(float v, threadgroup float* partial, uint lane, uint simd, uint simds) {
    v = simd_sum(v);
    if (simds == 1u) return v;
    if (lane == 0u) partial[simd] = v;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return simd_sum(lane < simds ? partial[lane] : 0.0f);
}

// The same for the maximum.
inline float threadgroup_max(float v, threadgroup float* partial, uint lane, uint simd, uint simds) {
    v = simd_max(v);
    if (simds == 1u) return v;
    if (lane == 0u) partial[simd] = v;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return simd_max(lane < simds ? partial[lane] : -INFINITY);
}

// By comparison, which no compiler's mode makes away with.
inline bool is_finite(float v) { return fabs(v) <= 3.402823466e38f; }

// A key that orders as the float does, NaN with a sign as infinity beyond infinity.
inline uint order_of(float v) {
    uint bits = as_type<uint>(v);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
