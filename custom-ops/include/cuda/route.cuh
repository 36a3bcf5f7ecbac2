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

// What an expert of `token` is chosen by: the highest come first.
DEVICE uint32_t route_key(const Routing& r, float logit, uint32_t expert) {
    return sortable(route_score(logit) + (r.bias != nullptr ? r.bias[expert] : 0.0f));
}

// The experts with the k highest keys, by a warp: lane s gets slot s. Lane l names experts l, l + 32, … of
// up to 32 EACH. In each of k rounds lanes name the best that is left among their own, then the warp the
// best of theirs; ties go to the lower index.
template <uint32_t EACH, class Key>
DEVICE uint32_t route_best(const Routing& r, Key key_of) {
    const uint32_t lane = lane_id();
    uint32_t keys[EACH], chosen = 0;
#pragma unroll
    for (uint32_t i = 0; i < EACH; i++) keys[i] = lane + 32u * i < r.experts ? key_of(lane + 32u * i) : 0u;
    uint32_t taken = 0;  // bit i: expert lane + 32 i
    for (uint32_t slot = 0; slot < r.k; slot++) {
        uint32_t best = 0, best_id = 0xffffffffu;
#pragma unroll
        for (uint32_t i = 0; i < EACH; i++) {
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
    return chosen;
}

// The experts of `token` and their weights: lane s gets slot s, for s < k. `key_of` is only asked without a
// table.
template <class Key> DEVICE Chosen route_by(const Routing& r, uint32_t token, Key key_of) {
    const uint32_t lane = lane_id();
    uint32_t chosen = 0;
    if (r.table != nullptr) {
        const uint32_t id = min(r.tokens[token], r.vocab - 1u);
        if (lane < r.k) chosen = min(r.table[static_cast<uint64_t>(id) * r.k + lane], r.experts - 1u);
    } else {
        chosen = r.experts <= 256u ? route_best<8>(r, key_of) : route_best<ROUTE_EXPERTS / 32u>(r, key_of);
    }
    // The sum in the order of the slots, as in the reference.
    const float logit = lane < r.k ? r.logits[static_cast<uint64_t>(token) * r.experts + chosen] : 0.0f;
    const float score = lane < r.k ? route_score(logit) : 0.0f;
    float sum = 0.0f;
    for (uint32_t slot = 0; slot < r.k; slot++) sum += shuffle(score, slot);
    return {chosen, score / fmaxf(sum, 1.17549435e-38f) * r.scale};
}

// All of it by one warp.
DEVICE Chosen route_token(const Routing& r, uint32_t token) {
    const float* logits = r.logits + static_cast<uint64_t>(token) * r.experts;
    return route_by(r, token, [&](uint32_t expert) { return route_key(r, logits[expert], expert); });
}

// The same by a block, whose threads rank an expert each: first all threads, then, after a barrier, any
// warps. `keys` is shared memory for ROUTE_EXPERTS.
DEVICE void route_rank(const Routing& r, uint32_t token, uint32_t* keys) {
    if (r.table != nullptr) return;
    const float* logits = r.logits + static_cast<uint64_t>(token) * r.experts;
    for (uint32_t e = threadIdx.x; e < r.experts; e += blockDim.x) keys[e] = route_key(r, logits[e], e);
}
DEVICE Chosen route_ranked(const Routing& r, uint32_t token, const uint32_t* keys) {
    return route_by(r, token, [keys](uint32_t expert) { return keys[expert]; });
}
