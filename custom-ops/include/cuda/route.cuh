// Which experts a token goes to, and with what weight: by a warp.
#pragma once

#include "numbers.cuh"

// Experts that a warp's lanes can hold, and slots that they can remember.
#define ROUTE_EXPERTS 1024u
#define ROUTE_SLOTS 32u

// How experts are chosen; Rust's twin is src/router/cuda.rs.
struct Routing {
    const float* logits;     // [tokens, experts]
    const float* bias;       // [experts], or null
    const uint32_t* table;   // [vocab, k]: experts by token id, or null
    const uint32_t* tokens;  // [tokens], with a table
    uint32_t experts;
    uint32_t k;
    uint32_t vocab;
    float scale;
};

// A slot of a token.
struct Chosen {
    uint32_t id;
    float weight;
};

DEVICE float route_score(float logit) {
    return sqrtf(logit > 20.0f ? logit : log1pf(expf(logit)));
}

// A number whose order is that of the floats, the lowest bit pattern least.
DEVICE uint32_t sortable(float value) {
    const uint32_t bits = f32_bits(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The experts of `token`: lane s gets slot s, for s < k. In each of k rounds the lanes name the best that
// is left among their own experts, then the warp the best of theirs; ties go to the lower index.
DEVICE Chosen route_token(const Routing& r, uint32_t token) {
    const uint32_t lane = lane_id();
    const float* logits = r.logits + static_cast<uint64_t>(token) * r.experts;
    uint32_t chosen = 0;
    if (r.table != nullptr) {
        const uint32_t id = min(r.tokens[token], r.vocab - 1u);
        if (lane < r.k) chosen = min(r.table[static_cast<uint64_t>(id) * r.k + lane], r.experts - 1u);
    } else {
        // Lane l has experts l, l + 32, …
        uint32_t keys[ROUTE_EXPERTS / 32u];
#pragma unroll
        for (uint32_t i = 0; i < ROUTE_EXPERTS / 32u; i++) {
            const uint32_t expert = lane + 32u * i;
            keys[i] = 0;
            if (32u * i < r.experts && expert < r.experts) {
                keys[i] = sortable(route_score(logits[expert]) + (r.bias != nullptr ? r.bias[expert] : 0.0f));
            }
        }
        uint32_t taken = 0;  // bit i: expert lane + 32 i
        for (uint32_t slot = 0; slot < r.k; slot++) {
            uint32_t best = 0, best_id = 0xffffffffu;
#pragma unroll
            for (uint32_t i = 0; i < ROUTE_EXPERTS / 32u; i++) {
                if (32u * i >= r.experts) break;
                const bool there = lane + 32u * i < r.experts && !(taken >> i & 1u);
                if (there && (best_id == 0xffffffffu || keys[i] > best)) {
                    best = keys[i];
                    best_id = lane + 32u * i;
                }
            }
            const uint32_t most = warp_greatest(best_id == 0xffffffffu ? 0u : best);
            const uint32_t id = warp_least(best == most ? best_id : 0xffffffffu);
            if (id % 32u == lane) taken |= 1u << (id / 32u);
            if (lane == slot) chosen = id;
        }
    }
    // The sum in the order of the slots, as in the reference.
    const float score = lane < r.k ? route_score(logits[chosen]) : 0.0f;
    float sum = 0.0f;
    for (uint32_t slot = 0; slot < r.k; slot++) sum += shuffle(score, slot);
    return {chosen, score / fmaxf(sum, 1.17549435e-38f) * r.scale};
}
