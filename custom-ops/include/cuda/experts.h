// Parameters of the mixture of experts. Rust's twins are in src/experts/cuda.rs.
#pragma once

#include "layout.h"

// Slots of a token in the kernels for one token, at most.
#define EXPERTS_ONE_SLOTS 7u

// One token, a launch for `W1`, `W3` and the gated unit of all experts. Routed IQ2_XXS [n, 2048 r, 4096],
// shared Q8_0 or none (rows 0).
struct ExpertsGateUpParams {
    const float* x;         // [hidden]
    const uint32_t* ids;    // [k]
    const float* weights;   // [k]
    float* h;               // [k, inter]
    float* shared_h;        // [shared inter]
    Weight gate;
    Weight up;
    Weight shared_gate;
    Weight shared_up;
    uint32_t k;
    float clamp;
};

// And one for `W2` and the sum. Routed Q2_K with cols 2048, shared Q8_0 with cols a multiple of 256.
struct ExpertsDownParams {
    const float* h;
    const float* shared_h;
    const uint32_t* ids;
    float* out;  // [hidden]
    Weight down;
    Weight shared_down;
    uint32_t k;
    uint32_t rounds;  // tiles of 16 rows of a block at most
};

// Pairs of an item of the kernels for Hopper's matrix units, at most.
#define EXPERTS_WIDE_ITEM 128u

// Work on one expert: pairs `order[start .. start + count]`.
struct ExpertsItem {
    uint32_t expert;
    uint32_t start;
    uint32_t count;
    uint32_t unused;
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
    const float* shared_terms;  // [tokens, hidden] or null
    float* out;                 // [tokens, hidden]
    uint32_t tokens;
    uint32_t k;
    uint32_t hidden;  // a multiple of 4
};
