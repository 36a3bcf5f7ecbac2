// Parameters of the mixture of experts. Rust's twins are in src/experts/cuda.rs.
#pragma once

#include "layout.h"
#include "route.cuh"

// Slots of a token in the kernels for one token, at most.
#define EXPERTS_ONE_SLOTS 7u

// Where one token's experts come from: named, or to be chosen by the router's logits. Each launch that
// needs them chooses anew: that is less work than to wait for another's answer.
struct ExpertsRoute {
    const uint32_t* ids;   // [k], or null:
    const float* weights;  // [k]
    Routing routing;
};

// One token, a launch for `W1`, `W3` and the gated unit of the routed experts. IQ2_XXS [n, 2048, 4096].
struct ExpertsGateUpParams {
    const float* x;  // [hidden]
    float* h;        // [k, inter]
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
    ExpertsRoute route;
    Weight down;
    Weight shared_down;
    uint32_t k;
    uint32_t rounds;  // tiles of 16 rows of a block at most
    float clamp;
};

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
