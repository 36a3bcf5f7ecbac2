// Lanes of a warp: who they are and what they tell each other. All 32 lanes must take part.
#pragma once

#include "kernel.h"

#ifndef CUDA_EMULATOR

#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__

// Index of this thread in its warp, and of the warp in its block.
DEVICE uint32_t lane_id() { return threadIdx.x & 31u; }
DEVICE uint32_t warp_id() { return threadIdx.x >> 5; }

template <class T> DEVICE T shuffle_xor(T value, uint32_t mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <class T> DEVICE T shuffle(T value, uint32_t lane) {
    return __shfl_sync(0xffffffffu, value, lane);
}
// The value of the lane `by` above or below; lanes without one get their own.
template <class T> DEVICE T shuffle_down(T value, uint32_t by) {
    return __shfl_down_sync(0xffffffffu, value, by);
}
template <class T> DEVICE T shuffle_up(T value, uint32_t by) {
    return __shfl_up_sync(0xffffffffu, value, by);
}
// Bit `l` is lane `l`'s vote.
DEVICE uint32_t warp_ballot(bool vote) { return __ballot_sync(0xffffffffu, vote); }
DEVICE uint32_t warp_least(uint32_t value) {
    return __reduce_min_sync(0xffffffffu, value);
}
DEVICE uint32_t warp_greatest(uint32_t value) {
    return __reduce_max_sync(0xffffffffu, value);
}
DEVICE void warp_sync() { __syncwarp(); }
DEVICE uint32_t bit_count(uint32_t bits) { return __popc(bits); }

#endif

// The same sum in every lane, always added in the same order.
DEVICE float warp_sum(float value) {
#pragma unroll
    for (uint32_t mask = 16; mask != 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

DEVICE float warp_max(float value) {
#pragma unroll
    for (uint32_t mask = 16; mask != 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
    return value;
}
