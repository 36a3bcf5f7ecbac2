// Times at the model's shapes, on a GPU. Weights rotate through more memory than the L2 cache holds.
// Predictions: 1.8 us for a launch that depends on the one before, and bytes at 4.4 TB/s.
#pragma once

#include <set>

#include "attention.h"
#include "experts.h"
#include "indexer.h"

#ifndef CUDA_EMULATOR

inline double law(double bytes) { return 1.8 + bytes / 4.4e6; }

// Enough copies of a weight that none is in the cache when its turn comes.
struct Rotating {
    std::vector<std::unique_ptr<RandomWeight>> copies;
    Rotating(uint32_t format, uint32_t rows, uint32_t cols) {
        double bytes = 0;
        do {
            copies.push_back(std::make_unique<RandomWeight>(format, 1, rows, cols, true));
            bytes += copies.back()->bytes();
        } while (bytes < 250e6 && copies.size() < 40);
    }
    const RandomWeight& operator[](uint32_t i) const { return *copies[i % copies.size()]; }
};

inline void time_few(const char* name, uint32_t format, uint32_t rows, uint32_t cols, uint32_t groups) {
    const Rotating weights(format, rows, cols);
    for (uint32_t tokens : {1u, 8u, 16u, 32u}) {
        const uint32_t width = groups * cols;
        const Buffer<float> x(normals(size_t(tokens) * width));
        Buffer<float> out(size_t(tokens) * rows);
        Few probe({&weights[0]}, {out.get()}, x.get(), tokens, groups);
        Buffer<uint8_t> quants(size_t(probe.padded) * width, 1);
        const Buffer<float> scales(std::vector<float>(size_t(probe.padded) * width / 32, 0.01f));
        std::vector<Few> calls;
        for (size_t i = 0; i < weights.copies.size(); i++) calls.emplace_back(std::vector<const RandomWeight*>{&weights[i]}, std::vector<float*>{out.get()}, x.get(), tokens, groups);
        const double us = microseconds(60, [&](uint32_t i) { calls[i % calls.size()].run(quants.get(), scales.get()); });
        row(std::string(name) + ", " + std::to_string(tokens) + " tokens", us, weights[0].bytes(), law(weights[0].bytes()));
    }
}

inline void time_together() {
    // What reads the same activations in a layer with an indexer, in one launch.
    const std::vector<std::pair<uint32_t, uint32_t>> parts = {{WEIGHT_Q8_0, 1024}, {WEIGHT_Q8_0, 512}, {WEIGHT_F16, 1024}, {WEIGHT_F16, 1024}, {WEIGHT_F16, 256}, {WEIGHT_F16, 256}, {WEIGHT_F16, 64}};
    std::vector<std::unique_ptr<RandomWeight>> weights;
    std::vector<Few> calls;
    const Buffer<float> x(normals(4096));
    Buffer<float> out(8192);
    double bytes = 0;
    for (int copy = 0; copy < 10; copy++) {
        std::vector<const RandomWeight*> group;
        bytes = 0;
        for (auto [format, rows] : parts) {
            weights.push_back(std::make_unique<RandomWeight>(format, 1, rows, 4096, true));
            group.push_back(weights.back().get());
            bytes += weights.back()->bytes();
        }
        calls.emplace_back(group, std::vector<float*>(parts.size(), out.get()), x.get(), 1, 1);
    }
    row("x-projections of a sparse layer, one launch", microseconds(60, [&](uint32_t i) { calls[i % calls.size()].run(nullptr, nullptr); }), bytes, law(bytes));
}

inline void time_gemm(const char* name, uint32_t format, uint32_t rows, uint32_t cols, uint32_t groups, uint32_t tokens) {
    const RandomWeight w(format, 1, rows, cols, true);
    Buffer<uint16_t> x(size_t(tokens) * groups * cols, 0x11);
    Buffer<float> out(size_t(tokens) * rows);
    for (const Tiles& tiles : GEMM_TILES) {
        const double us = microseconds(4, [&](uint32_t) { run_gemm({x.get(), out.get(), w.weight(), tokens, groups}, tiles); });
        row_flops(std::string(name) + ", " + std::to_string(tokens) + " tokens, " + name_of(tiles), us, 2.0 * tokens * rows * cols);
    }
}

inline void time_matmul() {
    printf("== products of few tokens\n");
    time_few("q_a 4096 -> 1024", WEIGHT_Q8_0, 1024, 4096, 1);
    time_few("kv 4096 -> 512", WEIGHT_Q8_0, 512, 4096, 1);
    time_few("q_b 1024 -> 32768", WEIGHT_Q8_0, 32768, 1024, 1);
    time_few("o_a 8 x (4096 -> 1024)", WEIGHT_Q8_0, 8192, 4096, 8);
    time_few("o_b 8192 -> 4096", WEIGHT_Q8_0, 4096, 8192, 1);
    time_few("head 4096 -> 129280", WEIGHT_Q8_0, 129280, 4096, 1);
    time_few("router 4096 -> 256, F16", WEIGHT_F16, 256, 4096, 1);
    time_few("compressor 4096 -> 1024, F16", WEIGHT_F16, 1024, 4096, 1);
    time_few("indexer q_b 1024 -> 8192, F16", WEIGHT_F16, 8192, 1024, 1);
    time_few("hyper-connection 16384 -> 24, F16", WEIGHT_F16, 24, 16384, 1);
    time_together();
    {
        const Buffer<float> x(normals(32 * 32768));
        Buffer<uint8_t> quants(32 * 32768);
        Buffer<float> scales(32 * 1024);
        const QuantizeRowsParams q = {x.get(), quants.get(), scales.get(), 32, 32, 32768};
        Shape shape;
        shape.threads = 256;
        shape.x = 32 * 256 / 8;
        row("quantize_rows, 32 x 32768", microseconds(60, [&](uint32_t) { LAUNCH(quantize_rows, shape, q); }), 32 * 32768 * 5.0, law(32 * 32768 * 5.0));
    }
    printf("== products of many tokens\n");
    for (uint32_t tokens : {512u, 2048u, 4096u}) {
        time_gemm("q_b", WEIGHT_Q8_0, 32768, 1024, 1, tokens);
        time_gemm("o_a", WEIGHT_Q8_0, 8192, 4096, 8, tokens);
        time_gemm("o_b", WEIGHT_Q8_0, 4096, 8192, 1, tokens);
        time_gemm("kv", WEIGHT_Q8_0, 512, 4096, 1, tokens);
        time_gemm("compressor, F16", WEIGHT_F16, 1024, 4096, 1, tokens);
    }
}

inline void time_experts() {
    printf("== experts: 256 of 4096 -> 2048 (IQ2_XXS, Q2_K), 6 a token, and a shared one (Q8_0)\n");
    const Network routed(WEIGHT_IQ2_XXS, WEIGHT_Q2_K, 256, 4096, 2048, true), shared(WEIGHT_Q8_0, WEIGHT_Q8_0, 1, 4096, 2048, true);
    const double each = routed.gate.bytes() / 256, down = routed.down.bytes() / 256;
    const auto draw = [](uint32_t tokens) {
        std::vector<uint32_t> ids;
        for (uint32_t t = 0; t < tokens; t++) {
            std::vector<uint32_t> of_token;
            while (of_token.size() < 6) {
                const uint32_t id = random_u32() % 256;
                if (std::find(of_token.begin(), of_token.end(), id) == of_token.end()) of_token.push_back(id);
            }
            ids.insert(ids.end(), of_token.begin(), of_token.end());
        }
        return ids;
    };
    {
        const Buffer<float> x(normals(4096)), weights(std::vector<float>(6, 0.25f));
        std::vector<std::unique_ptr<Buffer<uint32_t>>> ids;
        for (int i = 0; i < 40; i++) ids.push_back(std::make_unique<Buffer<uint32_t>>(draw(1)));
        Buffer<float> h(6 * 2048), shared_h(2 * 2048), out(4096);
        Buffer<uint32_t> taken(6);
        const Buffer<float> logits(normals(40 * 256)), bias(normals(256));
        const double bytes = 12 * each + 6 * down;
        row("one token, routed only (two launches)", microseconds(60, [&](uint32_t i) { run_one(routed, nullptr, x.get(), {ids[i % 40]->get(), weights.get(), {}}, 6, 10, h.get(), taken.get(), shared_h.get(), out.get()); }), bytes, 13.5 + 6.9);
        const double all = bytes + shared.gate.bytes() * 2 + shared.down.bytes();
        const auto chosen = [&](uint32_t i) { return ExpertsRoute{nullptr, nullptr, {logits.get() + i % 40 * 256, bias.get(), nullptr, nullptr, 256, 6, 0, 1.5f}}; };
        row("one token, routed only, chosen there", microseconds(60, [&](uint32_t i) { run_one(routed, nullptr, x.get(), chosen(i), 6, 10, h.get(), taken.get(), shared_h.get(), out.get()); }), bytes, 13.5 + 6.9);
        row("one token, all, chosen there (three launches; the shared one is in L2)", microseconds(60, [&](uint32_t i) { run_one(routed, &shared, x.get(), chosen(i), 6, 10, h.get(), taken.get(), shared_h.get(), out.get()); }), all, 13.5 + 5.8 + 7.8);
    }
    for (uint32_t tokens : {2u, 4u, 8u, 16u, 32u}) {
        const Buffer<float> x(normals(size_t(tokens) * 4096)), weights(std::vector<float>(tokens * 6, 0.25f));
        const auto chosen = draw(tokens);
        const Buffer<uint32_t> ids(chosen);
        const double experts = double(std::set<uint32_t>(chosen.begin(), chosen.end()).size());
        Buffer<float> out(x.size());
        for (const Network* common : {static_cast<const Network*>(nullptr), &shared}) {
            FewExperts few(routed, common, tokens, 6);
            few.run(x.get(), ids.get(), weights.get(), 10, out.get());
            const std::string name = std::to_string(tokens) + " tokens" + (common ? " and the shared one: " : ": ");
            const double in = 2 * each * experts + (common ? common->gate.bytes() * 2 : 0), back = down * experts + (common ? common->down.bytes() : 0);
            row(name + "gate and up", microseconds(20, [&](uint32_t) { few.gate_up(weights.get(), 10); }), in, law(in));
            row(name + "down", microseconds(20, [&](uint32_t) { few.down(); }), back, law(back));
            row(name + "everything", microseconds(20, [&](uint32_t) { few.run(x.get(), ids.get(), weights.get(), 10, out.get()); }), in + back, law(in + back));
            if (!common) {
                row(name + "sort", microseconds(20, [&](uint32_t) { few.sort(x.get(), ids.get()); }), 0, 1.8);
                row(name + "quantize", microseconds(20, [&](uint32_t) { few.quantize(); }), 0, 1.8);
                row(name + "sum", microseconds(20, [&](uint32_t) { few.sum(out.get()); }), 0, 1.8);
            }
        }
    }
    for (uint32_t tokens : {2u, 8u, 16u, 32u, 256u, 1024u, 2048u, 4096u}) {
        const Buffer<float> x(normals(size_t(tokens) * 4096)), weights(std::vector<float>(tokens * 6, 0.25f));
        const Buffer<uint32_t> ids(draw(tokens));
        Buffer<float> out(x.size());
        const uint32_t expected = tokens * 6 / 256;
        for (uint32_t of_item : {expected < 8 ? 8u : expected < 32 ? 32u : 64u, EXPERTS_WIDE_ITEM}) {
            Grouped grouped(routed, &shared, tokens, 6, of_item);
            grouped.run(x.get(), ids.get(), weights.get(), 10, out.get());
            const uint32_t pairs = tokens * 6, order = order_of(WEIGHT_Q2_K, is_wide(of_item));
            const ExpertsGroupedGateUpParams gate_up = {grouped.x.get(), grouped.h.get(), weights.get(), grouped.order.get(), grouped.items.get(), grouped.item_count.get(), routed.gate.weight(), routed.up.weight(), pairs, 6, order, 10};
            const ExpertsGroupedDownParams downs = {grouped.h.get(), grouped.terms.get(), grouped.order.get(), grouped.items.get(), grouped.item_count.get(), routed.down.weight(), pairs};
            const uint32_t count = tokens > 256 ? 3 : 20;
            const std::string name = std::to_string(tokens) + " tokens, by " + std::to_string(of_item);
            row_flops(name + ": gate and up", microseconds(count, [&](uint32_t) { run_gate_up(gate_up, grouped.item_limit, of_item); }), 2.0 * pairs * 4096 * 4096);
            row_flops(name + ": down", microseconds(count, [&](uint32_t) { run_down(downs, grouped.item_limit, of_item); }), 2.0 * pairs * 2048 * 4096);
            row_flops(name + ": everything", microseconds(count, [&](uint32_t) { grouped.run(x.get(), ids.get(), weights.get(), 10, out.get()); }), 2.0 * (pairs + tokens) * 3 * 2048 * 4096);
        }
    }
}

inline void time_attention_of(const char* name, uint32_t position, uint32_t tokens, uint32_t ratio, uint32_t top_k, double predicted) {
    const Sequences batch({{position, tokens}});
    const Buffer<float> q(normals(size_t(tokens) * 64 * 512)), kv(normals(size_t(tokens) * 512)), sinks(normals(64)), ring(normals(128 * 512));
    Buffer<float> out(q.size());
    const Lists lists(ROWS_FP8, 512, 1024 / ratio, {(position + tokens) / ratio}, false);
    std::vector<uint32_t> chosen(size_t(tokens) * top_k);
    for (uint32_t t = 0; t < tokens; t++) {
        const uint32_t visible = (position + t + 1) / ratio;
        for (uint32_t i = 0; i < top_k; i++) chosen[t * top_k + i] = uint32_t(uint64_t(visible) * i / top_k);
    }
    const Buffer<uint32_t> chosen_there(chosen);
    AttentionParams p = {};
    p.q = q.get();
    p.kv = kv.get();
    p.sinks = sinks.get();
    p.chosen = top_k ? chosen_there.get() : nullptr;
    p.out = out.get();
    p.batch = batch.batch();
    p.rings.data[0] = ring.get();
    p.rings.slots = 128;
    p.rings.width = 512;
    p.rows = lists.rows();
    p.heads = 64;
    p.window = 128;
    p.ratio = ratio;
    p.top_k = top_k;
    p.scale = 0.044f;
    const uint32_t middle = position + (tokens + 1) / 2;
    const double rows = std::min(middle, 128u) + double(top_k ? top_k : middle / ratio);
    if (tokens >= 16) {
        for (const How how : {How::Warpgroups, How::Prefill}) {
            const double us = microseconds(3, [&](uint32_t) { run_attention(p, how, 1); });
            row_flops(std::string(name) + ", " + std::to_string(tokens) + " tokens" + (how == How::Warpgroups ? ", by warpgroups" : ""), us,
                      4.0 * tokens * rows * 64 * 512);
        }
        return;
    }
    for (uint32_t cluster : {8u, 4u, 1u}) {
        const double us = microseconds(60, [&](uint32_t) { run_attention(p, How::Decode80, cluster); });
        row(std::string(name) + ", cluster of " + std::to_string(cluster), us, rows * 584, predicted);
    }
}

inline void time_attention() {
    printf("== attention, 64 heads, packed rows in L2\n");
    time_attention_of("144 rows", 2047, 1, 128, 0, 5.4);
    time_attention_of("384 rows", 32767, 1, 128, 0, 6.6);
    time_attention_of("640 rows chosen", 32767, 1, 4, 512, 7.7);
    time_attention_of("1152 rows", 131071, 1, 128, 0, 13);
    time_attention_of("8320 rows", 1048575, 1, 128, 0, 80);
    for (uint32_t tokens : {512u, 4096u}) {
        time_attention_of("640 rows chosen", 32767, tokens, 4, 512, 0);
        time_attention_of("144 rows", 2047, tokens, 128, 0, 0);
        time_attention_of("384 rows", 32767, tokens, 128, 0, 0);
    }
}

inline void time_indexer() {
    printf("== indexer, 64 heads, keys of 68 bytes\n");
    for (uint32_t keys : {512u, 1024u, 8192u, 32768u, 262144u}) {
        for (uint32_t tokens : {1u, 256u, 4096u}) {
            if ((keys > 32768 && tokens > 1) || keys * 4 < tokens) continue;
            const uint32_t position = keys * 4 - tokens;
            const Sequences batch({{position, tokens}});
            const Lists lists(ROWS_FP4, 128, 256, {keys}, false);
            Buffer<uint16_t> q(size_t(tokens) * 64 * 128, 0x11);
            const Buffer<float> weights(normals(tokens * 64)), random(normals(size_t(tokens) * keys));
            Buffer<float> scores(size_t(tokens) * keys);
            Buffer<uint32_t> out(size_t(tokens) * 512);
            const IndexerScoresParams p = {q.get(), weights.get(), scores.get(), batch.batch(), lists.rows(), keys, 64, 4, 0, tokens, tokens > 1 ? 32u : 1u};
            const uint32_t tile = tokens > 1 ? 256 : 128, groups = (tokens + p.of_block - 1) / p.of_block;
            const uint32_t blocks = std::min((keys + tile - 1) / tile, (4 * multiprocessors() + groups - 1) / groups);
            const std::string name = std::to_string(keys) + " keys, " + std::to_string(tokens) + " tokens: ";
            const Scores how = tokens > 1 ? Scores::By256 : Scores::By128;
            const double us = microseconds(tokens > 1 ? 4 : 60, [&](uint32_t) { run_scores(p, how, blocks); });
            const double flops = 2.0 * 64 * 128 * tokens * keys;
            if (tokens > 1) {
                row_flops(name + "scores", us, flops);
                IndexerScoresParams by_warpgroups = p;
                by_warpgroups.of_block = tokens_of_block(tokens, keys);
                const double us2 = microseconds(4, [&](uint32_t) { run_scores(by_warpgroups, Scores::Warpgroups, (keys + 255) / 256); });
                row_flops(name + "scores by warpgroups, " + std::to_string(by_warpgroups.of_block) + " a block", us2, flops);
            } else {
                row(name + "scores", us, keys * 68.0, law(keys * 68.0) + 1);
            }
            const IndexerSelectParams select = {random.get(), out.get(), batch.batch(), keys, 512, 4, 0, 0, 0};
            for (uint32_t cluster : {1u, 2u, 4u, 8u}) {
                if (keys / cluster > INDEXER_SELECT_FEW) continue;
                const double us2 = microseconds(tokens > 1 ? 4 : 60, [&](uint32_t) { run_select_few(select, tokens, cluster); });
                row(name + "select few, cluster of " + std::to_string(cluster), us2, keys * 4.0 * tokens, keys <= 8192 ? 6.4 : 13);
            }
            for (uint32_t cluster : {1u, 2u, 8u}) {
                if (keys / cluster > 40960 || (tokens > 256 && cluster > 1)) continue;
                const double us2 = microseconds(tokens > 1 ? 4 : 60, [&](uint32_t) { run_select(select, tokens, cluster, keys, 45056); });
                row(name + "select, cluster of " + std::to_string(cluster), us2, keys * 4.0 * tokens, keys <= 8192 ? 6.4 : keys <= 32768 ? 13 : 21.6);
            }
        }
    }
}

#endif
