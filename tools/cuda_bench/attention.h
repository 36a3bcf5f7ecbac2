// Checks and timings of attention.
#pragma once

#include "../../custom-ops/include/cuda/attention.h"
#include "kv.h"

enum class How { Decode80, Decode32, Prefill, Warpgroups };

inline void run_attention(AttentionParams p, How how, uint32_t cluster) {
    Shape shape;
    if (how == How::Prefill) {
        shape.x = p.batch.tokens;
        shape.y = p.heads / 64;
        shape.threads = 512;
        shape.shared = ATTENTION_PREFILL_SHARED;
        LAUNCH(attention_prefill, shape, p);
        return;
    }
    if (how == How::Warpgroups) {
        shape.x = p.batch.tokens;
        shape.y = p.heads / 64;
        shape.threads = 384;
        shape.shared = ATTENTION_PREFILL_WGMMA_SHARED;
        LAUNCH(attention_prefill_wgmma, shape, p);
        return;
    }
    shape.x = p.batch.tokens * ((p.heads + 7) / 8) * cluster;
    shape.threads = 256;
    shape.cluster = cluster;
    if (how == How::Decode80) {
        shape.shared = ATTENTION_DECODE_SHARED(80);
        LAUNCH(attention_decode_80, shape, p);
    } else {
        shape.shared = ATTENTION_DECODE_SHARED(32);
        LAUNCH(attention_decode_32, shape, p);
    }
}

// One batch, by every kernel that can take it.
inline void check_attention_of(const std::string& what, const std::vector<std::pair<uint32_t, uint32_t>>& each, uint32_t heads,
                               uint32_t window, uint32_t slots, uint32_t format, uint32_t ratio, uint32_t top_k,
                               const std::vector<std::pair<How, uint32_t>>& hows) {
    constexpr uint32_t DIM = ATTENTION_DIM;
    const Sequences batch(each);
    const uint32_t tokens = batch.tokens();
    const auto q = normals(size_t(tokens) * heads * DIM), kv = normals(size_t(tokens) * DIM, 0.5f), sinks = normals(heads);
    const Buffer<float> q_there(q), kv_there(kv), sinks_there(sinks);
    Rings rings = {};
    rings.slots = slots;
    rings.width = DIM;
    std::vector<std::vector<float>> of_rings;
    std::vector<std::unique_ptr<Buffer<float>>> rings_there;
    std::vector<uint32_t> counts;
    for (size_t s = 0; s < each.size(); s++) {
        of_rings.push_back(normals(size_t(slots) * DIM, 0.5f));
        rings_there.push_back(std::make_unique<Buffer<float>>(of_rings.back()));
        rings.data[s] = rings_there.back()->get();
        counts.push_back(ratio ? (each[s].first + each[s].second) / ratio : 0);
    }
    const Lists lists(format, DIM, 5, counts);
    std::vector<uint32_t> chosen(size_t(tokens) * top_k, 0xffffffffu);
    for (uint32_t t = 0; t < tokens && top_k; t++) {
        // Every other visible row or so, at most as many as there is room for.
        const uint32_t visible = (batch.positions[t] + 1) / ratio;
        uint32_t n = 0;
        for (uint32_t r = 0; r < visible && n < top_k; r++) {
            if (random_u32() % 2) chosen[t * top_k + n++] = r;
        }
    }
    const Buffer<uint32_t> chosen_there(chosen);
    const float scale = 1.0f / std::sqrt(float(DIM));

    std::vector<double> want(q.size());
    for (uint32_t t = 0; t < tokens; t++) {
        const uint32_t s = batch.sequence[t], position = batch.positions[t], start = batch.spans[s].start;
        std::vector<const float*> rows;
        for (uint32_t at = position + 1 > window ? position + 1 - window : 0; at <= position; at++) {
            rows.push_back(at >= start ? &kv[size_t(batch.spans[s].row + at - start) * DIM] : &of_rings[s][size_t(at % slots) * DIM]);
        }
        if (top_k) {
            for (uint32_t i = 0; i < top_k && chosen[t * top_k + i] != 0xffffffffu; i++) {
                rows.push_back(&lists.values[s][size_t(chosen[t * top_k + i]) * DIM]);
            }
        } else if (ratio) {
            for (uint32_t r = 0; r < (position + 1) / ratio; r++) rows.push_back(&lists.values[s][size_t(r) * DIM]);
        }
        for (uint32_t h = 0; h < heads; h++) {
            const float* of_head = &q[(size_t(t) * heads + h) * DIM];
            std::vector<double> scores;
            double most = sinks[h];
            for (const float* row : rows) {
                double score = 0;
                for (uint32_t d = 0; d < DIM; d++) score += double(of_head[d]) * row[d];
                scores.push_back(score * scale);
                most = std::max(most, scores.back());
            }
            double sum = std::exp(sinks[h] - most);
            for (double& score : scores) sum += score = std::exp(score - most);
            for (size_t r = 0; r < rows.size(); r++) {
                for (uint32_t d = 0; d < DIM; d++) want[(size_t(t) * heads + h) * DIM + d] += scores[r] / sum * rows[r][d];
            }
        }
    }
    for (auto [how, cluster] : hows) {
        Buffer<float> out(q.size());
        AttentionParams p = {};
        p.q = q_there.get();
        p.kv = kv_there.get();
        p.sinks = sinks_there.get();
        p.chosen = top_k ? chosen_there.get() : nullptr;
        p.out = out.get();
        p.batch = batch.batch();
        p.rings = rings;
        p.rows = lists.rows();
        p.heads = heads;
        p.window = window;
        p.ratio = ratio;
        p.top_k = top_k;
        p.scale = scale;
        run_attention(p, how, cluster);
        const char* name = how == How::Prefill ? "prefill" : how == How::Warpgroups ? "warpgroups" : how == How::Decode80 ? "decode by 80" : "decode by 32";
        report("attention " + what + ", " + name + ", cluster of " + std::to_string(cluster), relative_error(out.download(), want), 1e-3);
    }
}

inline void check_attention() {
    const std::vector<std::pair<How, uint32_t>> few = {{How::Decode80, 1}, {How::Decode80, 2}, {How::Decode80, 8}, {How::Decode32, 1}, {How::Decode32, 4}};
    const std::vector<std::pair<How, uint32_t>> all = {{How::Prefill, 1}, {How::Warpgroups, 1}, {How::Decode80, 4}};
    check_attention_of("first token, 4 heads", {{0, 1}}, 4, 128, 128, ROWS_F32, 0, 0, few);
    check_attention_of("window, 12 heads", {{300, 1}, {5, 2}}, 12, 128, 128, ROWS_F32, 0, 0, few);
    check_attention_of("visible f32", {{129, 2}}, 8, 20, 32, ROWS_F32, 4, 0, few);
    check_attention_of("visible packed", {{200, 1}}, 8, 128, 128, ROWS_FP8, 4, 0, few);
    check_attention_of("chosen packed", {{250, 2}}, 8, 16, 24, ROWS_FP8, 4, 40, few);
    check_attention_of("64 heads", {{70, 1}}, 64, 24, 32, ROWS_FP8, 4, 0, all);
    check_attention_of("64 heads, chunk", {{0, 3}, {90, 4}}, 64, 24, 32, ROWS_FP8, 4, 15, all);
    check_attention_of("64 heads, many rows", {{500, 2}, {2, 1}}, 64, 128, 128, ROWS_FP8, 2, 0, all);
    check_attention_of("128 heads, choices", {{900, 2}, {50, 1}}, 128, 128, 130, ROWS_FP8, 2, 200, all);
    check_attention_of("64 heads, f32", {{3, 2}}, 64, 24, 32, ROWS_F32, 2, 0, all);
}
