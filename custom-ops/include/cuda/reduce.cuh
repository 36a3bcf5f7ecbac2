// Sums and maxima over a block, always in the same order: equal inputs give equal bits.
#pragma once

#include "warp.cuh"

template <class T> DEVICE T warp_total(T value) {
#pragma unroll
    for (uint32_t mask = 16; mask != 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

// Halves how many values a lane has: it keeps those whose bit is its own, and adds its neighbour's.
template <uint32_t WIDTH> DEVICE void fold_lanes(float (&v)[16]) {
    const bool upper = lane_id() & WIDTH;
#pragma unroll
    for (uint32_t i = 0; i < WIDTH; i++) {
        const float keep = upper ? v[WIDTH + i] : v[i], give = upper ? v[i] : v[WIDTH + i];
        v[i] = keep + shuffle_xor(give, WIDTH);
    }
}

// Sums of 16 values over a warp: lanes `l` and `16 + l` get value `l`'s. In a fixed order.
DEVICE float warp_totals(float (&v)[16]) {
    fold_lanes<8>(v);
    fold_lanes<4>(v);
    fold_lanes<2>(v);
    fold_lanes<1>(v);
    return v[0] + shuffle_xor(v[0], 16u);
}

// Sums of eight values over a warp: lane `4 i ..+4` gets value i's. Fixed order.
DEVICE float warp_totals8(const float (&v)[8]) {
    const uint32_t lane = lane_id();
    float four[4], two[2];
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const bool upper = lane & 16u;
        const float keep = upper ? v[4 + i] : v[i], give = upper ? v[i] : v[4 + i];
        four[i] = keep + shuffle_xor(give, 16u);
    }
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const bool upper = lane & 8u;
        const float keep = upper ? four[2 + i] : four[i], give = upper ? four[i] : four[2 + i];
        two[i] = keep + shuffle_xor(give, 8u);
    }
    const bool upper = lane & 4u;
    float one = (upper ? two[1] : two[0]) + shuffle_xor(upper ? two[0] : two[1], 4u);
    one += shuffle_xor(one, 2u);
    one += shuffle_xor(one, 1u);
    return one;
}

// The sum over all threads, in every thread. `scratch` has room for one value a warp; threads must meet
// before it is used again.
template <class T> DEVICE T block_total(T value, T* scratch) {
    value = warp_total(value);
    if (lane_id() == 0) scratch[warp_id()] = value;
    __syncthreads();
    T total = T(0);
    const uint32_t warps = (blockDim.x + 31) / 32;
    for (uint32_t warp = 0; warp < warps; warp++) total += scratch[warp];
    return total;
}

// `1 / sqrt(mean(x²) + eps)` of `n` values, in every thread: squares and their sum in f64, as in the
// reference.
DEVICE float rms_scale(const float* x, uint32_t n, double eps, double* scratch) {
    double sum = 0.0;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) sum += double(x[i]) * double(x[i]);
    sum = block_total(sum, scratch);
    return float(1.0 / sqrt(sum / double(n) + eps));
}
