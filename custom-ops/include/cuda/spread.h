// What becomes of a sub-layer's result where it is computed. Rust's twin is src/hyper_connection/spread.rs.
#pragma once

#include <stdint.h>

// Rows of a projection: gates and matrix.
#define SPREAD_ROWS 24u
// What a block leaves: of each row of the projection, and of each pair of streams (0 0, 0 1, … 3 3).
#define SPREAD_SUMS 34u

struct Spread {
    float* state;                // [4, hidden]; or null: the result goes to memory
    const float* due;            // [24]: the mix that it is written back with
    const uint16_t* projection;  // halves [24, 4 hidden]
    float* sums;                 // [SPREAD_SUMS, blocks]
    uint32_t hidden;             // a multiple of 16
    uint32_t blocks;
};
