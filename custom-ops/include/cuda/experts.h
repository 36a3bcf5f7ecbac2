// Parameters of the mixture of experts. Rust's twins are in src/experts/cuda.rs.
#pragma once

#include "layout.h"
#include "route.cuh"
#include "spread.h"

// Slots of a token in the kernels for one token, at most.
#define EXPERTS_ONE_SLOTS 7u

// Where one token's experts come from: named, or to be chosen by the router's logits. Each block chooses
// anew: that is less work than to wait for another's answer.
struct ExpertsRoute {
    const uint32_t* ids;   // [k], or null:
    const float* weights;  // [k]
    Routing routing;
};

// One token, a launch for `W1`, `W3` and the gated unit of the routed experts. IQ2_XXS [n, 2048, 4096].
struct ExpertsGateUpParams {
    const float* x;  // [hidden]; not by the launch before, if experts are to be chosen
    float* h;        // [k, inter]
    uint32_t* ids;   // [k]: whom it took
    ExpertsRoute route;
    Weight gate;
    Weight up;
    uint32_t k;
    float clamp;
};

// And one for `W2` and the sum. Routed Q2_K with cols 2048; the shared expert Q8_0 with cols a multiple of
// 256, or none (rows 0), of which the products with `W1` and `W3` are given.
struct ExpertsDownParams {
    const float* h;
    const float* shared_gate;  // [shared inter]
    const float* shared_up;    // [shared inter]
    float* out;                // [hidden]
    const uint32_t* ids;       // [k], by the launch before
    Weight down;
    Weight shared_down;
    uint32_t k;
    uint32_t rounds;  // tiles of 16 rows of a block at most
    float clamp;
    uint32_t unused;
    Spread spread;  // if there is one, the result goes there
};

// Pairs of an item of the kernels for Hopper's matrix units, at most.
#define EXPERTS_WIDE_ITEM 128u

// Work on one expert: pairs `order[start .. start + count]`.
struct ExpertsItem {
    uint32_t expert;
    uint32_t start;
    uint32_t count;
    uint32_t before;  // for few tokens: cost of a row of each item before
};

// Set in an entry of `order` whose expert does not exist: what comes of it is NaN.
#define EXPERTS_NO_EXPERT 0x80000000u

// Sorts the pairs (token · k + slot) by expert, and cuts them into items. One block.
struct ExpertsGroupParams {
    const uint32_t* ids;    // [pairs]
    uint32_t* order;        // [pairs]
    ExpertsItem* items;     // [min(experts, pairs) + pairs / of_item]
    uint32_t* item_count;   // [1]
    uint32_t pairs;
    uint32_t experts;
    uint32_t of_item;       // pairs of an item, at most
};

// `W1`, `W3` and the gated unit of grouped pairs, on the matrix units. Without `items`: one network for
// all tokens, which are the pairs.
struct ExpertsGroupedGateUpParams {
    const uint16_t* x;         // halves [tokens, hidden], in the order of the gate's format
    uint16_t* h;               // halves [pairs, inter], in the order of the sorted pairs
    const float* weights;      // [pairs] in the order of tokens, or null for ones
    const uint32_t* order;
    const ExpertsItem* items;
    const uint32_t* item_count;
    Weight gate;
    Weight up;
    uint32_t pairs;
    uint32_t k;
    uint32_t h_order;  // HalvesOrder of the down matrix
    float clamp;
};

// `W2` of grouped pairs: `terms[pair] = W2 h[sorted pair]`.
struct ExpertsGroupedDownParams {
    const uint16_t* h;
    float* terms;  // [pairs, hidden], in the order of tokens
    const uint32_t* order;
    const ExpertsItem* items;
    const uint32_t* item_count;
    Weight down;
    uint32_t pairs;
};

// `out[t] = Σ_slot terms[t, slot] + shared_terms[t]`, slots in order.
struct ExpertsSumParams {
    const float* terms;         // [tokens, k, hidden]
    const float* shared_terms;  // [tokens, hidden] or null; may be `out`
    float* out;                 // [tokens, hidden]
    uint32_t tokens;
    uint32_t k;
    uint32_t hidden;  // a multiple of 4
};

// Few tokens of the 2-bit model, formats and shapes as for one token. Activations are bytes with a scale
// for 32; weights are decoded once for up to EXPERTS_FEW_OF_ITEM tokens.
#define EXPERTS_FEW_TOKENS 32u
#define EXPERTS_FEW_PAIRS 256u
#define EXPERTS_FEW_OF_ITEM 4u
// Shared memory of the plan of a block.
#define EXPERTS_FEW_PLAN_BYTES (16u * EXPERTS_FEW_PAIRS + 2u * 4u * 16u + 16u)

// Sorts the pairs, cuts them into items, and makes bytes of x: of the 32 values of block `b`, the bytes
// `16 i ..+16` are at `((b / 64 * 4 + b % 2 * 2 + i) * 32 + b % 64 / 2) * 16`, so that a warp reads
// 512 bytes at a time.
struct ExpertsFewSortParams {
    const float* x;        // [tokens, hidden]
    const uint32_t* ids;   // [pairs]
    uint8_t* quants;       // [tokens, hidden]
    float* scales;         // [tokens, hidden / 32]
    uint8_t* mma_quants;   // the same once more, as `quantize_rows` orders them, for the shared expert:
    float* mma_scales;     // [hidden / 32, padded, 32] and [hidden / 32, padded]; null for none
    uint32_t* order;       // [pairs]
    ExpertsItem* items;    // [min(experts, pairs) + pairs / EXPERTS_FEW_OF_ITEM]
    uint32_t* totals;      // number of items, and the sum of their costs
    uint32_t tokens;
    uint32_t padded;  // tokens with room for whole eights, 8, 16 or 32
    uint32_t pairs;
    uint32_t experts;
};

// `W1`, `W3` and the gated unit: of the items, and of the shared expert for all tokens.
struct ExpertsFewGateUpParams {
    const uint8_t* quants;
    const float* scales;
    const uint8_t* mma_quants;
    const float* mma_scales;
    const float* weights;   // [pairs], in the order of tokens
    const uint32_t* order;
    const ExpertsItem* items;
    const uint32_t* totals;
    float* h;               // [pairs, inter], in the order of the sorted pairs
    float* shared_h;        // [tokens, shared inter]
    Weight gate;
    Weight up;
    Weight shared_gate;     // rows 0 for none
    Weight shared_up;
    uint32_t tokens;
    uint32_t k;
    float clamp;
};

// Makes bytes of h. Of 2048 routed values, `256 b + 128 h + 32 j + 16 s ..+16` are at
// `(32 j + 4 b + 2 h + s) * 16`, and their sum at `4 (4 b + 2 h + s) + j`.
struct ExpertsFewQuantizeParams {
    const float* h;
    const float* shared_h;
    uint8_t* quants;         // [pairs, inter], and room for one more, as the next two
    float* scales;           // [pairs, inter / 32]
    float* sums;             // [pairs, inter / 16], of bytes times their scale
    uint8_t* shared_quants;  // as `quantize_rows` orders them
    float* shared_scales;
    uint32_t pairs;
    uint32_t tokens;
    uint32_t padded;
    uint32_t shared_cols;  // 0 for none
};

// `terms[pair] = W2 h[sorted pair]`, and the shared expert's.
struct ExpertsFewDownParams {
    const uint8_t* quants;
    const float* scales;
    const float* sums;
    const uint8_t* shared_quants;
    const float* shared_scales;
    const uint32_t* order;
    const ExpertsItem* items;
    const uint32_t* totals;
    float* terms;         // [pairs, hidden], in the order of tokens
    float* shared_terms;  // [tokens, hidden]
    Weight down;
    Weight shared_down;
    uint32_t tokens;
};
