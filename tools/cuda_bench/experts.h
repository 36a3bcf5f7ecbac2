// Checks and timings of the experts.
#pragma once

#include "matmul.h"

struct Network {
    RandomWeight gate, up, down;
    Network(uint32_t format, uint32_t down_format, uint32_t n, uint32_t hidden, uint32_t inter, bool timed = false)
        : gate(format, n, inter, hidden, timed), up(format, n, inter, hidden, timed), down(down_format, n, hidden, inter, timed) {}
};

inline double swiglu(double gate, double up, double clamp) {
    gate = std::min(gate, clamp);
    return gate / (1 + std::exp(-gate)) * std::min(std::max(up, -clamp), clamp);
}

// What an expert makes of x, with `round` applied to what goes into each product.
template <class R>
std::vector<double> expert(const Network& net, uint32_t e, const float* x, double weight, double clamp, R round) {
    std::vector<float> in(x, x + net.gate.cols), h(net.gate.rows);
    in = round(in);
    for (uint32_t r = 0; r < net.gate.rows; r++) {
        double gate = 0, up = 0;
        for (uint32_t k = 0; k < net.gate.cols; k++) {
            gate += double(net.gate.row(e, r)[k]) * in[k];
            up += double(net.up.row(e, r)[k]) * in[k];
        }
        h[r] = float(swiglu(gate, up, clamp) * weight);
    }
    h = round(h);
    std::vector<double> out(net.down.rows);
    for (uint32_t r = 0; r < net.down.rows; r++) {
        for (uint32_t k = 0; k < net.down.cols; k++) out[r] += double(net.down.row(e, r)[k]) * h[k];
    }
    return out;
}

template <class R>
std::vector<double> mixture(const Network& routed, const Network* shared, const std::vector<float>& x,
                            const std::vector<uint32_t>& ids, const std::vector<float>& weights, uint32_t k,
                            double clamp, R round) {
    const uint32_t hidden = routed.gate.cols, tokens = uint32_t(x.size() / hidden);
    std::vector<double> out(x.size());
    for (uint32_t t = 0; t < tokens; t++) {
        for (uint32_t s = 0; s <= k; s++) {
            if (s == k && !shared) continue;
            const auto term = s < k ? expert(routed, ids[t * k + s], &x[t * hidden], weights[t * k + s], clamp, round)
                                    : expert(*shared, 0, &x[t * hidden], 1, clamp, round);
            for (uint32_t r = 0; r < hidden; r++) out[t * hidden + r] += term[r];
        }
    }
    return out;
}

inline uint32_t share(uint32_t tiles, uint32_t blocks) { return (tiles + blocks - 1) / blocks; }

// Experts by name, or by a router's logits. `shared_h` has room for gate and up of the shared expert, whose
// products are a launch before, as in the model.
inline void run_one(const Network& routed, const Network* shared, const float* x, const ExpertsRoute& route,
                    uint32_t k, float clamp, float* h, uint32_t* ids, float* shared_h, float* out) {
    const ExpertsGateUpParams a = {x, h, ids, route, routed.gate.weight(), routed.up.weight(), k, clamp};
    ExpertsDownParams b = {h, shared_h, nullptr, out, ids, routed.down.weight(), {}, k, 0, clamp};
    uint32_t cols = 0;
    if (shared) {
        b.shared_down = shared->down.weight();
        cols = b.shared_down.cols;
        b.shared_up = shared_h + cols;
        Few({&shared->gate, &shared->up}, {shared_h, shared_h + cols}, x, 1, 1).run(nullptr, nullptr);
    }
    Shape shape;
    shape.x = multiprocessors();
    shape.threads = 512;
    shape.shared = 384 * 128 + 4096 + 512 + 64 + 4096;
    LAUNCH(experts_one_gate_up, shape, a);
    b.rounds = share(b.down.rows / 16, shape.x);
    shape.shared = (k * 2048 + cols) / 8 * 9 + b.rounds * 16 * 16 * 4;
    LAUNCH(experts_one_down, shape, b);
}

#define EXPERTS_BY_PAIRS(op, format)                                          \
    do {                                                                      \
        if (of_item == 8) LAUNCH(experts_##op##_##format##_8, shape, p);      \
        if (of_item == 32) LAUNCH(experts_##op##_##format##_32, shape, p);    \
        if (of_item == 64) LAUNCH(experts_##op##_##format##_64, shape, p);    \
    } while (0)
#define EXPERTS_BY_FORMAT(op, format)                                         \
    do {                                                                      \
        if (format == WEIGHT_IQ2_XXS) EXPERTS_BY_PAIRS(op, iq2_xxs);          \
        if (format == WEIGHT_Q2_K) EXPERTS_BY_PAIRS(op, q2_k);                \
        if (format == WEIGHT_Q4_K) EXPERTS_BY_PAIRS(op, q4_k);                \
        if (format == WEIGHT_Q8_0) EXPERTS_BY_PAIRS(op, q8_0);                \
        if (format == WEIGHT_F16) EXPERTS_BY_PAIRS(op, f16);                  \
    } while (0)

// Items of 128 pairs are those of the kernels for Hopper.
inline bool is_wide(uint32_t of_item) { return of_item == EXPERTS_WIDE_ITEM; }

inline void run_gate_up(const ExpertsGroupedGateUpParams& p, uint32_t items, uint32_t of_item) {
    Shape shape;
    shape.threads = 256;
    shape.shared = (p.gate.format == WEIGHT_IQ2_XXS ? 384 * 128 : 0) + of_item * 512;
    if (is_wide(of_item)) {
        shape.x = multiprocessors();
        shape.shared = (p.gate.format == WEIGHT_IQ2_XXS ? 384 * 128 : 0) + wide_bytes(p.gate.format, 256, of_item);
        if (p.gate.format == WEIGHT_IQ2_XXS) LAUNCH(experts_gate_up_wide_iq2_xxs, shape, p);
        if (p.gate.format == WEIGHT_Q4_K) LAUNCH(experts_gate_up_wide_q4_k, shape, p);
        if (p.gate.format == WEIGHT_Q8_0) LAUNCH(experts_gate_up_wide_q8_0, shape, p);
        return;
    }
    shape.x = (p.gate.rows + 127) / 128;
    shape.y = items;
    EXPERTS_BY_FORMAT(gate_up, p.gate.format);
}
inline void run_down(const ExpertsGroupedDownParams& p, uint32_t items, uint32_t of_item) {
    Shape shape;
    shape.threads = 256;
    shape.shared = (p.down.format == WEIGHT_IQ2_XXS ? 384 * 128 : 0) + of_item * 512;
    if (is_wide(of_item)) {
        shape.x = multiprocessors();
        shape.shared = wide_bytes(p.down.format, 256, of_item);
        if (p.down.format == WEIGHT_Q2_K) LAUNCH(experts_down_wide_q2_k, shape, p);
        if (p.down.format == WEIGHT_Q4_K) LAUNCH(experts_down_wide_q4_k, shape, p);
        if (p.down.format == WEIGHT_Q8_0) LAUNCH(experts_down_wide_q8_0, shape, p);
        return;
    }
    shape.x = (p.down.rows + 255) / 256;
    shape.y = items;
    EXPERTS_BY_FORMAT(down, p.down.format);
}

// Everything that the grouped path keeps between its launches.
struct Grouped {
    const Network& routed;
    const Network* shared;
    uint32_t tokens, k, of_item, item_limit;
    Buffer<uint16_t> x, shared_x, h, shared_h;
    Buffer<uint32_t> order, item_count;
    Buffer<ExpertsItem> items;
    Buffer<float> terms, shared_terms;

    Grouped(const Network& routed, const Network* shared, uint32_t tokens, uint32_t k, uint32_t of_item)
        : routed(routed), shared(shared), tokens(tokens), k(k), of_item(of_item),
          item_limit(std::min(routed.gate.stack, tokens * k) + tokens * k / of_item),
          x(size_t(tokens) * routed.gate.cols), shared_x(x.size()), h(size_t(tokens) * k * routed.gate.rows),
          shared_h(size_t(tokens) * (shared ? shared->gate.rows : 0)), order(tokens * k), item_count(1),
          items(item_limit), terms(size_t(tokens) * k * routed.gate.cols), shared_terms(shared_h.size() ? x.size() : 0) {}

    void run(const float* from, const uint32_t* ids, const float* weights, float clamp, float* out) {
        const uint32_t hidden = routed.gate.cols, pairs = tokens * k;
        const ExpertsGroupParams group = {ids, order.get(), items.get(), item_count.get(), pairs, routed.gate.stack, of_item};
        Shape one;
        one.threads = 1024;
        one.shared = (2 * routed.gate.stack + 33) * 4;
        LAUNCH(experts_group, one, group);
        halve(from, x.get(), tokens, hidden, order_of(routed.gate.format, is_wide(of_item)));
        run_gate_up({x.get(), h.get(), weights, order.get(), items.get(), item_count.get(), routed.gate.weight(),
                     routed.up.weight(), pairs, k, order_of(routed.down.format, is_wide(of_item)), clamp},
                    item_limit, of_item);
        run_down({h.get(), terms.get(), order.get(), items.get(), item_count.get(), routed.down.weight(), pairs},
                 item_limit, of_item);
        if (shared) {
            const uint32_t blocks = (tokens + of_item - 1) / of_item;
            if (order_of(shared->gate.format, is_wide(of_item)) != order_of(routed.gate.format, is_wide(of_item))) {
                halve(from, shared_x.get(), tokens, hidden, order_of(shared->gate.format, is_wide(of_item)));
            }
            const uint16_t* halves = order_of(shared->gate.format, is_wide(of_item)) == order_of(routed.gate.format, is_wide(of_item)) ? x.get() : shared_x.get();
            run_gate_up({halves, shared_h.get(), nullptr, nullptr, nullptr, nullptr, shared->gate.weight(),
                         shared->up.weight(), tokens, 1, order_of(shared->down.format, is_wide(of_item)), clamp},
                        blocks, of_item);
            run_down({shared_h.get(), shared_terms.get(), nullptr, nullptr, nullptr, shared->down.weight(), tokens},
                     blocks, of_item);
        }
        const ExpertsSumParams sum = {terms.get(), shared ? shared_terms.get() : nullptr, out, tokens, k, hidden};
        Shape shape;
        shape.threads = 256;
        shape.x = (tokens * (hidden / 4) + 255) / 256;
        LAUNCH(experts_sum, shape, sum);
    }
};

// Everything that the kernels for few tokens keep between their launches.
struct FewExperts {
    const Network& routed;
    const Network* shared;
    uint32_t tokens, k, pairs, padded, shared_cols;
    Buffer<uint8_t> x, x_shared, h_bytes, shared_bytes;
    Buffer<float> x_scales, x_shared_scales, h_scales, h_sums, shared_scales, h, shared_h, terms, shared_terms;
    Buffer<uint32_t> order, totals;
    Buffer<ExpertsItem> items;

    FewExperts(const Network& routed, const Network* shared, uint32_t tokens, uint32_t k)
        : routed(routed), shared(shared), tokens(tokens), k(k), pairs(tokens * k), padded(tokens <= 8 ? 8 : tokens <= 16 ? 16 : 32),
          shared_cols(shared ? shared->down.cols : 0), x(size_t(tokens) * 4096),
          x_shared(shared ? padded * 4096 : 0), h_bytes(size_t(pairs + 1) * 2048),
          shared_bytes(size_t(padded) * shared_cols), x_scales(x.size() / 32), x_shared_scales(x_shared.size() / 32), h_scales(h_bytes.size() / 32),
          h_sums(h_bytes.size() / 16), shared_scales(shared_bytes.size() / 32), h(size_t(pairs) * 2048),
          shared_h(size_t(tokens) * shared_cols), terms(size_t(pairs) * 4096), shared_terms(shared ? x.size() : 0),
          order(pairs), totals(2), items(std::min(routed.gate.stack, pairs) + pairs / EXPERTS_FEW_OF_ITEM) {}

    void sort(const float* from, const uint32_t* ids) {
        const ExpertsFewSortParams p = {from, ids, x.get(), x_scales.get(), shared ? x_shared.get() : nullptr, x_shared_scales.get(),
                                        order.get(), items.get(), totals.get(), tokens, padded, pairs, routed.gate.stack};
        Shape shape;
        shape.x = 1 + tokens * 4;
        shape.threads = 256;
        shape.shared = 8 * EXPERTS_FEW_PAIRS;
        LAUNCH(experts_few_sort, shape, p);
    }
    void gate_up(const float* weights, float clamp) {
        const Weight none = {};
        const ExpertsFewGateUpParams p = {x.get(), x_scales.get(), x_shared.get(), x_shared_scales.get(), weights, order.get(), items.get(), totals.get(),
                                          h.get(), shared_h.get(), routed.gate.weight(), routed.up.weight(),
                                          shared ? shared->gate.weight() : none, shared ? shared->up.weight() : none,
                                          tokens, k, clamp};
        Shape shape;
        shape.x = multiprocessors();
        shape.threads = 512;
        shape.shared = IQ2_XXS_TABLE_BYTES + EXPERTS_FEW_PLAN_BYTES + (shared ? padded * 1024 : 0);
        LAUNCH(experts_few_gate_up, shape, p);
    }
    void quantize() {
        const ExpertsFewQuantizeParams p = {h.get(), shared_h.get(), h_bytes.get(), h_scales.get(), h_sums.get(),
                                            shared_bytes.get(), shared_scales.get(), pairs, tokens, padded, shared_cols};
        Shape shape;
        shape.x = (pairs * 64 + tokens * shared_cols / 32 + 31) / 32;
        shape.threads = 256;
        LAUNCH(experts_few_quantize, shape, p);
    }
    void down() {
        const ExpertsFewDownParams p = {h_bytes.get(), h_scales.get(), h_sums.get(), shared_bytes.get(), shared_scales.get(),
                                        order.get(), items.get(), totals.get(), terms.get(), shared_terms.get(),
                                        routed.down.weight(), shared ? shared->down.weight() : Weight{}, tokens};
        Shape shape;
        shape.x = multiprocessors();
        shape.threads = 512;
        shape.shared = EXPERTS_FEW_PLAN_BYTES;
        LAUNCH(experts_few_down, shape, p);
    }
    void sum(float* out) {
        const ExpertsSumParams p = {terms.get(), shared ? shared_terms.get() : nullptr, out, tokens, k, 4096};
        Shape shape;
        shape.threads = 256;
        shape.x = tokens * 4;
        LAUNCH(experts_sum, shape, p);
    }
    void run(const float* from, const uint32_t* ids, const float* weights, float clamp, float* out) {
        sort(from, ids);
        gate_up(weights, clamp);
        quantize();
        down();
        sum(out);
    }
};

inline void check_grouped(uint32_t gate, uint32_t down, uint32_t n, uint32_t hidden, uint32_t inter, uint32_t tokens,
                          uint32_t k, uint32_t of_item, bool with_shared, bool uneven = false) {
    const Network routed(gate, down, n, hidden, inter);
    std::unique_ptr<Network> shared;
    if (with_shared) shared = std::make_unique<Network>(WEIGHT_Q8_0, WEIGHT_Q8_0, 1, hidden, 2 * inter);
    const auto x = normals(size_t(tokens) * hidden);
    std::vector<uint32_t> ids(tokens * k);
    std::vector<float> weights(tokens * k);
    for (auto& id : ids) id = random_u32() % n;
    if (uneven) {
        // One expert with a single pair, some with none, one with nearly all.
        for (auto& id : ids) id = random_u32() % 8 ? 1 : 3;
        ids[ids.size() / 2] = 0;
    }
    for (auto& weight : weights) weight = 0.2f + uniform();
    const Buffer<float> x_there(x), weights_there(weights);
    const Buffer<uint32_t> ids_there(ids);
    Buffer<float> out(x.size());
    Grouped grouped(routed, shared.get(), tokens, k, of_item);
    grouped.run(x_there.get(), ids_there.get(), weights_there.get(), 1.5f, out.get());
    report("experts grouped by " + std::to_string(of_item) + ", formats " + std::to_string(gate) + " and " +
               std::to_string(down) + ", " + std::to_string(tokens) + " tokens",
           relative_error(out.download(), mixture(routed, shared.get(), x, ids, weights, k, 1.5, through_halves)), 1e-3);
}

inline void check_one(uint32_t n, uint32_t rows_inter, uint32_t k, uint32_t shared_inter) {
    // The kernels' columns are fixed: the routed matrices cannot be small.
    const Network routed(WEIGHT_IQ2_XXS, WEIGHT_Q2_K, n, 4096, rows_inter);
    std::unique_ptr<Network> shared;
    if (shared_inter) shared = std::make_unique<Network>(WEIGHT_Q8_0, WEIGHT_Q8_0, 1, 4096, shared_inter);
    const auto x = normals(4096);
    std::vector<uint32_t> ids(k);
    std::vector<float> weights(k);
    for (auto& id : ids) id = random_u32() % n;
    for (auto& weight : weights) weight = 0.2f + uniform();
    const Buffer<float> x_there(x), weights_there(weights);
    const Buffer<uint32_t> ids_there(ids);
    Buffer<float> out(4096), h(size_t(k) * rows_inter), shared_h(2 * size_t(shared_inter));
    Buffer<uint32_t> taken(k);
    run_one(routed, shared.get(), x_there.get(), {ids_there.get(), weights_there.get(), {}}, k, 1.5f, h.get(), taken.get(), shared_h.get(), out.get());
    // Sums of another order can round one value of h to another byte.
    report("experts of one token, " + std::to_string(k) + " of " + std::to_string(n) + ", shared " + std::to_string(shared_inter),
           relative_error(out.download(), mixture(routed, shared.get(), x, ids, weights, k, 1.5, through_bytes)), 1e-3);
}

// `most` experts of `n` are chosen. A token may choose one twice.
inline void check_few_experts(uint32_t n, uint32_t most, uint32_t tokens, uint32_t k, uint32_t shared_inter, bool odd = false) {
    const Network routed(WEIGHT_IQ2_XXS, WEIGHT_Q2_K, n, 4096, 2048);
    std::unique_ptr<Network> shared;
    if (shared_inter) shared = std::make_unique<Network>(WEIGHT_Q8_0, WEIGHT_Q8_0, 1, 4096, shared_inter);
    auto x = normals(size_t(tokens) * 4096);
    std::vector<uint32_t> ids(tokens * k);
    std::vector<float> weights(tokens * k);
    for (auto& id : ids) id = random_u32() % most;
    for (auto& weight : weights) weight = 0.2f + uniform();
    const std::vector<uint32_t> good = ids;
    if (odd) {
        // Neither a chosen expert that is not there nor a value that is no number may vanish, or spread.
        ids[0] = n;
        x[4096 + 77] = NAN;
    }
    const Buffer<float> x_there(x), weights_there(weights);
    const Buffer<uint32_t> ids_there(ids);
    Buffer<float> out(x.size());
    FewExperts few(routed, shared.get(), tokens, k);
    few.run(x_there.get(), ids_there.get(), weights_there.get(), 1.5f, out.get());
    const std::string name = "experts of " + std::to_string(tokens) + " tokens, " + std::to_string(k) + " of " +
                             std::to_string(most) + ", shared " + std::to_string(shared_inter);
    auto got = out.download();
    uint32_t first = 0;
    if (odd) {
        first = 2;
        bool all = true;
        for (uint32_t i = 0; i < 2 * 4096; i++) all = all && std::isnan(got[i]);
        report(name + ": no number stays none", all);
    }
    // Enough tokens for the kinds of items; the reference takes its time.
    const uint32_t last = tokens;
    const std::vector<float> some(x.begin() + first * 4096, x.begin() + last * 4096), some_weights(weights.begin() + first * k, weights.end());
    const std::vector<uint32_t> some_ids(good.begin() + first * k, good.end());
    got.erase(got.begin(), got.begin() + first * 4096);
    report(name, relative_error(got, mixture(routed, shared.get(), some, some_ids, some_weights, k, 1.5, through_bytes)), 1e-3);
    Buffer<float> again(x.size());
    few.run(x_there.get(), ids_there.get(), weights_there.get(), 1.5f, again.get());
    const auto second = again.download();
    report(name + ": the same bits again", memcmp(second.data() + first * 4096, got.data(), got.size() * 4) == 0);
}

inline void check_experts() {
    check_few_experts(5, 5, 2, 2, 256);
    check_few_experts(4, 4, EMULATED ? 5 : 8, 3, EMULATED ? 256 : 2048, true);
    check_few_experts(6, 6, EMULATED ? 9 : 17, EMULATED ? 1 : 6, 0);
    check_few_experts(2, 1, EMULATED ? 17 : 32, 1, 256);
    if (!EMULATED) check_few_experts(16, 16, 32, 6, 2048, true);
    check_one(3, 2048, 2, 256);
    check_one(3, 2048, EMULATED ? 3 : 6, 0);
    check_one(EMULATED ? 2 : 16, 2048, EMULATED ? 2 : 6, 2048);
    for (uint32_t of_item : {8u, 32u, 64u}) {
        check_grouped(WEIGHT_IQ2_XXS, WEIGHT_Q2_K, 7, 256, 256, 37, 3, of_item, true);
        check_grouped(WEIGHT_Q4_K, WEIGHT_Q4_K, 5, 512, 256, 11, 2, of_item, false);
        check_grouped(WEIGHT_Q2_K, WEIGHT_IQ2_XXS, 5, 256, 256, 9, 2, of_item, false);
        check_grouped(WEIGHT_Q8_0, WEIGHT_Q8_0, 4, 256, 256, 70, 2, of_item, true);
        check_grouped(WEIGHT_F16, WEIGHT_F16, 1300, 128, 64, 70, 3, of_item, false);
    }
    const uint32_t wide = EXPERTS_WIDE_ITEM;
    check_grouped(WEIGHT_IQ2_XXS, WEIGHT_Q2_K, 7, 256, 256, 37, 3, wide, true);
    check_grouped(WEIGHT_IQ2_XXS, WEIGHT_Q2_K, 5, 768, 512, 65, 4, wide, true, true);
    check_grouped(WEIGHT_Q4_K, WEIGHT_Q4_K, 5, 512, 256, 33, 2, wide, false);
    check_grouped(WEIGHT_Q4_K, WEIGHT_Q4_K, 4, 256, 256, 64, 3, wide, true, true);
    check_grouped(WEIGHT_Q8_0, WEIGHT_Q8_0, 4, 192, 128, 70, 2, wide, true);
    check_grouped(WEIGHT_Q8_0, WEIGHT_Q8_0, 4, 256, 256, 200, 2, wide, true, true);
}
