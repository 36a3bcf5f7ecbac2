// The gated unit of an expert.
#pragma once

#include "numbers.cuh"

// `silu(min(gate, clamp)) · clamp(up)`. A NaN stays one.
DEVICE float clamped_swiglu(float gate, float up, float clamp) {
    gate = gate > clamp ? clamp : gate;
    up = up > clamp ? clamp : up < -clamp ? -clamp : up;
    return gate / (1.0f + fast_exp(-gate)) * up;
}
