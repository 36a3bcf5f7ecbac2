// Which experts a token goes to, and with what weight.

#define MOST_EXPERTS 1024u

struct Route {
    uint experts;
    uint k;
    float scale;
    uint tokens_in_table;
};

FUNCTION_CONSTANT(bool, HAS_BIAS, 0)

inline void route_weights(device const float* logits, device const uint* ids, device float* weights,
                          uint k, float scale, uint lane) {
    float sum = 0.0f;
    for (uint i = 0; i < k; i++) sum += route_score(logits[ids[i]]);
    // The guard only matters when all scores underflow.
    sum = max(sum, 1.17549435e-38f);
    for (uint i = lane; i < k; i += LANES) weights[i] = route_score(logits[ids[i]]) / sum * scale;
}

// One SIMD-group a token: k times the best of what is left, ties to the lower expert.
kernel void route_top_k(constant Route& p [[buffer(0)]], device const float* logits [[buffer(1)]],
                        device const float* bias [[buffer(2)]], device uint* ids [[buffer(3)]],
                        device float* weights [[buffer(4)]], THREAD_POSITION) {
    uint token = group.x;
    device const float* row = logits + token * p.experts;
    uint keys[MOST_EXPERTS / LANES];
    for (uint i = 0; i < MOST_EXPERTS / LANES; i++) {
        uint expert = i * LANES + lane;
        // Zero is below the key of every number.
        keys[i] = 0u;
        if (expert < p.experts) {
            keys[i] = order_of(route_score(row[expert]) + (HAS_BIAS ? bias[expert] : 0.0f));
        }
    }
    for (uint rank = 0; rank < p.k; rank++) {
        uint best = 0u, at = 0u;
        for (uint i = 0; i < MOST_EXPERTS / LANES; i++) {
            if (keys[i] > best) best = keys[i], at = i;
        }
        uint most = simd_max(best);
        uint chosen = simd_min(best == most ? at * LANES + lane : MOST_EXPERTS);
        for (uint i = 0; i < MOST_EXPERTS / LANES; i++) {
            if (i * LANES + lane == chosen) keys[i] = 0u;
        }
        if (lane == 0u) ids[token * p.k + rank] = chosen;
    }
    simdgroup_barrier(mem_flags::mem_device);
    route_weights(row, ids + token * p.k, weights + token * p.k, p.k, p.scale, lane);
}
KERNEL(route_top_k)

// One SIMD-group a token. Tokens were checked against the vocabulary before the pass, the table when
// it was loaded; what is outside all the same stays inside the buffers.
kernel void route_hash(constant Route& p [[buffer(0)]], device const float* logits [[buffer(1)]],
                       device const uint* table [[buffer(2)]], device const uint* tokens [[buffer(3)]],
                       device uint* ids [[buffer(4)]], device float* weights [[buffer(5)]],
                       THREAD_POSITION) {
    uint token = group.x, entry = min(tokens[token], p.tokens_in_table - 1u);
    for (uint i = lane; i < p.k; i += LANES) {
        ids[token * p.k + i] = min(table[ulong(entry) * p.k + i], p.experts - 1u);
    }
    simdgroup_barrier(mem_flags::mem_device);
    route_weights(logits + token * p.experts, ids + token * p.k, weights + token * p.k, p.k, p.scale, lane);
}
KERNEL(route_hash)
