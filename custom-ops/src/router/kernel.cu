// Which experts a token goes to, and with what weight.

#include "cuda/memory.cuh"
#include "cuda/numbers.cuh"

#define MAX_EXPERTS 1024
#define MAX_CHOSEN 32

struct RouteParams {
    const float* logits;     // [tokens, experts]
    const float* bias;       // [experts], or null
    const uint32_t* table;   // [vocab, k]: experts by token id, or null
    const uint32_t* tokens;  // [count], with a table
    uint32_t* ids;           // [count, k]
    float* weights;          // [count, k]
    uint32_t count;
    uint32_t experts;
    uint32_t k;
    uint32_t vocab;
    float scale;
};

DEVICE float route_score(float logit) {
    return sqrtf(logit > 20.0f ? logit : log1pf(expf(logit)));
}

// A number whose order is that of the floats, the lowest bit pattern least.
DEVICE uint32_t sortable(float value) {
    const uint32_t bits = f32_bits(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// A warp for each token. In each of k rounds the lanes look for the best that is left among their own
// experts, then the warp for the best of theirs; ties go to the lower index.
KERNEL(route, RouteParams, 128) {
    pdl_trigger();
    pdl_wait();
    const uint32_t token = blockIdx.x * 4 + warp_id(), lane = lane_id();
    if (token >= p.count) return;
    const float* logits = p.logits + uint64_t(token) * p.experts;
    // Lane s remembers slot s.
    uint32_t chosen = 0;
    if (p.table) {
        const uint32_t id = min(p.tokens[token], p.vocab - 1);
        if (lane < p.k) chosen = min(p.table[uint64_t(id) * p.k + lane], p.experts - 1);
    } else {
        uint32_t taken = 0;  // bit i: this lane's expert lane + 32 i
        for (uint32_t slot = 0; slot < p.k; slot++) {
            uint32_t best = 0, best_id = 0xffffffffu;
            for (uint32_t i = 0; lane + 32 * i < p.experts; i++) {
                if (taken >> i & 1) continue;
                const uint32_t expert = lane + 32 * i;
                const uint32_t key = sortable(route_score(logits[expert]) + (p.bias ? p.bias[expert] : 0.0f));
                if (best_id == 0xffffffffu || key > best) {
                    best = key;
                    best_id = expert;
                }
            }
            for (uint32_t mask = 16; mask != 0; mask /= 2) {
                const uint32_t key = shuffle_xor(best, mask), id = shuffle_xor(best_id, mask);
                if (id != 0xffffffffu && (best_id == 0xffffffffu || key > best || (key == best && id < best_id))) {
                    best = key;
                    best_id = id;
                }
            }
            if (best_id % 32 == lane) taken |= 1u << (best_id / 32);
            if (lane == slot) chosen = best_id;
        }
    }
    // The sum in the order of the slots, as in the reference.
    const float score = lane < p.k ? route_score(logits[chosen]) : 0.0f;
    float sum = 0.0f;
    for (uint32_t slot = 0; slot < p.k; slot++) sum += shuffle(score, slot);
    sum = fmaxf(sum, 1.17549435e-38f);
    if (lane >= p.k) return;
    p.ids[uint64_t(token) * p.k + lane] = chosen;
    p.weights[uint64_t(token) * p.k + lane] = score / sum * p.scale;
}
