// The doubly stochastic matrix of a hyper-connection with four streams.
//
// It is needed when a sub-layer's result is written back, long after its logits are known, and takes a warp
// two microseconds of nothing but waiting: a launch in between runs it along, in a block of its own.
#pragma once

#include "errand.h"
#include "numbers.cuh"

// The doubly stochastic matrix, of logits in lanes 8 ..+16 of the warp; each lane computes all of it.
DEVICE void sinkhorn(float (&c)[4][4], float logit, uint32_t iterations, float eps) {
#pragma unroll
    for (uint32_t j = 0; j < 4; j++) {
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) c[j][k] = shuffle(logit, 8u + 4u * j + k);
        const float most = fmaxf(fmaxf(c[j][0], c[j][1]), fmaxf(c[j][2], c[j][3]));
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) c[j][k] = expf(c[j][k] - most);
    }
    for (uint32_t i = 0; i < iterations; i++) {
        const float in_sum = i == 0 ? 0.0f : eps, in_value = i == 0 ? eps : 0.0f;
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            const float share = fast_reciprocal((c[j][0] + c[j][1]) + (c[j][2] + c[j][3]) + in_sum);
#pragma unroll
            for (uint32_t k = 0; k < 4; k++) c[j][k] = fmaf(c[j][k], share, in_value);
        }
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) {
            const float share = fast_reciprocal((c[0][k] + c[1][k]) + (c[2][k] + c[3][k]) + eps);
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) c[j][k] *= share;
        }
    }
}

// By a block: a warp a token.
DEVICE void run_errand(const MatrixErrand& errand) {
    const uint32_t lane = lane_id(), warps = blockDim.x / 32u;
    for (uint32_t token = warp_id(); token < errand.tokens; token += warps) {
        float* mix = errand.mix + token * 24u;
        const float logit = lane < 24u ? mix[lane] : 0.0f;
        float c[4][4], own = 0.0f;
        sinkhorn(c, logit, errand.iterations, errand.eps);
#pragma unroll
        for (uint32_t i = 0; i < 16; i++) own = lane == 8u + i ? c[i / 4u][i % 4u] : own;
        if (lane >= 8u && lane < 24u) mix[lane] = own;
    }
}
