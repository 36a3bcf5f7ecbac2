// Parameters of the products of activations with a weight. Rust's twins are in src/matmul/cuda.rs.
#pragma once

#include "errand.h"
#include "layout.h"
#include "spread.h"

// Weights that one launch multiplies with the same activations, at most.
#define MATMUL_PARTS 8u
// Warps of a block of the kernels for few tokens.
#define MATMUL_WARPS 16u

// `out[i][t, r] = Σ_k w[i][r, k] x[t, g·cols + k]`, `g` the group of row r.
//
// `matmul_1` wants one token; `matmul_8`, `_16`, `_32` up to as many, with `quants` and `scales` of
// `quantize_rows`. Several groups want no cluster. Weights are Q8_0, or F16 with cols a multiple of 32; all have the same cols; groups
// is 1 if there are several; a group's rows are a multiple of 16.
struct MatmulParams {
    const float* x;         // [tokens, groups · cols]
    const uint8_t* quants;  // see QuantizeRowsParams
    const float* scales;
    uint32_t tokens;
    uint32_t groups;
    uint32_t parts;
    uint32_t split;   // warps that share a tile of 16 rows: 1, 2, 4, 8 or 16
    uint32_t rounds;  // tiles that a warp works on before its block adds up
    uint32_t x_groups;  // groups that a block's tiles can touch (if x is in shared memory)
    uint32_t block_cols;  // of a block of a cluster, a multiple of 256; cols without clusters
    uint32_t has_f16;   // whether a weight is F16
    uint32_t has_q8_0;
    uint32_t staged;  // whether quants and scales of a block's x_groups fit into shared memory
    uint32_t unused;
    // Tiles of 16 rows of a weight and all before it, and their bytes in tiles of Q8_0: F16 has two.
    uint32_t tile_end[MATMUL_PARTS];
    uint32_t heft_end[MATMUL_PARTS];
    float* out[MATMUL_PARTS];  // [tokens, rows]
    Weight w[MATMUL_PARTS];
    // If there is one, the last block of the grid runs it and nothing else. Wants no cluster.
    MatrixErrand errand;
    // Of `matmul_1`, or null: x is normed first, as `rms_norm`. It was there when the launch before had waited,
    // which lets this one begin only then. At most 4096 columns, one group, no cluster.
    const float* norm;  // [cols]
    float norm_eps;
    uint32_t unused_too;
    // Of `matmul_1`, if there is one: the result goes there. One weight, one group, no cluster; rows a multiple of
    // 16, cols of 128; all tiles of a block in its rounds.
    Spread spread;
};

// Rows to signed bytes with one scale for 32, `scale = max |x| / 127`, ordered for mma.m16n8k32's B:
// block b (of 32 columns) of token t at `quants + (b · padded + t) · 32`, eight bytes for each quarter
// `q`: columns `4q ..+4`, then `16 + 4q ..+4`; its scale at `scales[b · padded + t]`. Rows from
// `tokens` to `padded` are zero.
struct QuantizeRowsParams {
    const float* x;  // [tokens, width]
    uint8_t* quants;
    float* scales;
    uint32_t tokens;
    uint32_t padded;  // a multiple of 8
    uint32_t width;   // a multiple of 32
};

// How the halves of 32 columns are ordered for the lanes of a matrix product.
enum HalvesOrder {
    HALVES_IN_ORDER = 0,
    HALVES_FOR_Q8_0 = 1,  // eight for each quarter q: columns 4q ..+4, then 16 + 4q ..+4
    // What the orders above have at 8t + 4j + 2i + e (t below 4, the others below 2) at 16j + 8i + 2t + e.
    HALVES_FOR_WGMMA = 2,
    HALVES_OF_Q8_0_FOR_WGMMA = 3,
};

// Rows to halves.
struct HalveRowsParams {
    const float* x;   // [tokens, width]
    uint16_t* halves;  // [tokens, width]
    uint64_t tokens;
    uint32_t width;  // a multiple of 32
    uint32_t order;  // HalvesOrder
};

// A product on the matrix units: many tokens.
struct GemmParams {
    const uint16_t* x;  // halves [tokens, groups · cols], in the order of the weight's format
    float* out;         // [tokens, rows]
    Weight w;           // Q8_0, F16, Q2_K, Q4_K or IQ2_XXS; cols a multiple of 64
    uint32_t tokens;
    uint32_t groups;  // a group's rows are a multiple of 16, if there are several
};

// Any format, any shape: a warp a row.
struct MatmulPlainParams {
    const float* x;  // [tokens, groups · cols]
    float* out;      // [tokens, rows]
    Weight w;
    uint32_t tokens;
    uint32_t groups;
};
