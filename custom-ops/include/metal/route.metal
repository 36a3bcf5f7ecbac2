// Which experts a token goes to: what the router's kernel shares with that of the experts.

// Softplus is the identity above 20, as in the reference code.
inline float route_score(float logit) {
    // log(1 + e) by Kahan's way: exact where e is small.
    float e = precise::exp(min(logit, 20.0f)), u = 1.0f + e;
    float softplus = u == 1.0f ? e : precise::log(u) * (e / (u - 1.0f));
    return precise::sqrt(logit > 20.0f ? logit : softplus);
}

// Experts among which a SIMD-group chooses on the way to their weights.
#define ROUTE_EXPERTS 256u

// By a SIMD-group: the expert in place `slot` of a token's `k`, and the sum of all their scores. `bias`
// and `entry`, which names them, may be null.
inline uint route_slot(device const float* logits, device const float* bias, device const uint* entry,
                       uint experts, uint k, uint slot, thread float& sum, uint lane) {
    uint keys[ROUTE_EXPERTS / LANES], found = 0u;
    if (entry == nullptr) {
        for (uint i = 0; i < ROUTE_EXPERTS / LANES; i++) {
            uint expert = i * LANES + lane;
            // Zero is below the key of every number.
            keys[i] = 0u;
            if (expert < experts) {
                keys[i] = order_of(route_score(logits[expert]) + (bias != nullptr ? bias[expert] : 0.0f));
            }
        }
    }
    sum = 0.0f;
    for (uint rank = 0; rank < k; rank++) {
        uint chosen = 0u;
        if (entry != nullptr) {
            chosen = min(entry[rank], experts - 1u);
        } else {
            // The best of what is left, ties to the lower expert.
            uint best = 0u, at = 0u;
            for (uint i = 0; i < ROUTE_EXPERTS / LANES; i++) {
                if (keys[i] > best) best = keys[i], at = i;
            }
            uint most = simd_max(best);
            chosen = simd_min(best == most ? at * LANES + lane : ROUTE_EXPERTS);
            for (uint i = 0; i < ROUTE_EXPERTS / LANES; i++) {
                if (i * LANES + lane == chosen) keys[i] = 0u;
            }
        }
        sum += route_score(logits[chosen]);
        if (rank == slot) found = chosen;
    }
    // The guard only matters when all scores underflow.
    sum = max(sum, 1.17549435e-38f);
    return found;
}
