// The indexer's keys as halves, and its scores as ranks.
#pragma once

#include "numbers.cuh"

// Keys are multiplied times 2^-7, which e2m1 codes and scales of any model lie well within f16 with.
#define KEY_FACTOR 0.0078125f

// Four e2m1 codes in the low nibbles of the bytes, as high bytes of halves that are 2^-14 of them.
DEVICE uint32_t e2m1_to_high_bytes(uint32_t codes) {
    return (codes & 0x07070707u) << 1 | (codes & 0x08080808u) << 4;
}

// Whole numbers in the order of the scores, by the total order of floats.
DEVICE uint32_t rank_of(float score) {
    const uint32_t bits = f32_bits(score);
    return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}
