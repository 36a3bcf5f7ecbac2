// Work on the side of a launch. Rust's twin is src/hyper_connection/errand.rs.
#pragma once

#include <stdint.h>

// Matrices of hyper-connections, out of their logits and in their place.
struct MatrixErrand {
    float* mix;  // [tokens, 24], the matrix from 8 on; or null
    uint32_t tokens;
    uint32_t iterations;
    float eps;
    uint32_t unused;
};
