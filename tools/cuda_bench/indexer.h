// Checks and timings of the lightning indexer.
#pragma once

#include "../../custom-ops/include/cuda/indexer.h"
#include "kv.h"
#include "matmul.h"

enum class Scores { By128, By256, Warpgroups };

// Tokens of a block of `indexer_scores_wgmma`: as src/indexer/cuda.rs chooses them.
inline uint32_t tokens_of_block(uint32_t tokens, uint32_t most) {
    uint32_t best = 0;
    uint64_t least = ~0ull;
    for (uint32_t each = 64; each >= 2; each--) {
        const uint64_t blocks = uint64_t((most + 255) / 256) * ((tokens + each - 1) / each);
        const uint64_t time = (blocks + multiprocessors() - 1) / multiprocessors() * (each + 5);
        if (time < least) {
            least = time;
            best = each;
        }
    }
    return best;
}

inline void run_scores(const IndexerScoresParams& p, Scores how, uint32_t blocks) {
    Shape shape;
    if (how == Scores::Warpgroups) {
        shape.x = blocks;
        shape.y = (p.tokens + p.of_block - 1) / p.of_block;
        shape.threads = 512;
        shape.shared = INDEXER_SCORES_WGMMA_SHARED;
        LAUNCH(indexer_scores_wgmma, shape, p);
        return;
    }
    shape.x = blocks;
    shape.y = (p.tokens + p.of_block - 1) / p.of_block;
    shape.threads = 256;
    shape.shared = INDEXER_SCORES_SHARED;
    if (how == Scores::By256) LAUNCH(indexer_scores_256, shape, p); else LAUNCH(indexer_scores_128, shape, p);
}

inline void run_select(IndexerSelectParams p, uint32_t tokens, uint32_t cluster, uint32_t most, uint32_t cached) {
    const uint32_t each = ((most + cluster - 1) / cluster + 31) / 32 * 32;
    p.cached = std::min(each, cached);
    p.words = each / 32;
    Shape shape;
    shape.x = tokens * cluster;
    shape.threads = 1024;
    shape.cluster = cluster;
    shape.shared = INDEXER_SELECT_SHARED(p.cached, p.words);
    LAUNCH(indexer_select, shape, p);
}

inline void run_select_few(const IndexerSelectParams& p, uint32_t tokens, uint32_t cluster) {
    Shape shape;
    shape.x = tokens * cluster;
    shape.threads = 1024;
    shape.cluster = cluster;
    shape.shared = INDEXER_SELECT_FEW_SHARED;
    LAUNCH(indexer_select_few, shape, p);
}

inline void check_indexer_of(const std::string& what, const std::vector<std::pair<uint32_t, uint32_t>>& each, uint32_t heads,
                             uint32_t format, uint32_t ratio, uint32_t k) {
    const Sequences batch(each);
    const uint32_t tokens = batch.tokens();
    std::vector<uint32_t> counts;
    uint32_t most = 0;
    for (auto [start, len] : each) {
        counts.push_back((start + len) / ratio);
        most = std::max(most, counts.back());
    }
    const Lists keys(format, 128, 7, counts);
    // Small whole numbers over four: sums are exact, and there are ties.
    std::vector<float> q(size_t(tokens) * heads * 128), weights(size_t(tokens) * heads);
    for (float& v : q) v = std::nearbyint(2.0f * normal()) / 4.0f;
    for (float& v : weights) v = float(int(random_u32() % 3)) - 0.5f;
    const Buffer<float> q_there(q), weights_there(weights);
    Buffer<uint16_t> halves(q.size());
    halve(q_there.get(), halves.get(), tokens, heads * 128, HALVES_IN_ORDER);
    for (const Scores how : {Scores::By128, Scores::By256, Scores::Warpgroups}) {
        if (how == Scores::Warpgroups && heads != 64) continue;
        const uint32_t first = tokens > 3 ? 1 : 0, slice = tokens - first;  // a launch need not begin with the batch
        const uint64_t stride = most + 3;
        Buffer<float> scores(size_t(slice) * stride);
        run_scores({halves.get(), weights_there.get(), scores.get(), batch.batch(), keys.rows(), stride, heads, ratio, first,
                    slice, how == Scores::By256 ? 3u : how == Scores::By128 ? 1u : 5u},
                   how, 2);
        const auto got = scores.download();
        bool exact = true;
        std::vector<uint32_t> want(size_t(tokens) * k, 0xffffffffu);
        for (uint32_t t = first; t < tokens; t++) {
            const uint32_t s = batch.sequence[t], visible = (batch.positions[t] + 1) / ratio;
            std::vector<std::pair<double, uint32_t>> ranked;
            for (uint32_t r = 0; r < visible; r++) {
                double score = 0;
                for (uint32_t h = 0; h < heads; h++) {
                    double dot = 0;
                    for (uint32_t c = 0; c < 128; c++) dot += double(q[(size_t(t) * heads + h) * 128 + c]) * keys.values[s][r * 128 + c];
                    score += std::max(dot, 0.0) * weights[t * heads + h];
                }
                exact &= got[(t - first) * stride + r] == float(score);
                ranked.push_back({-score, r});
            }
            if (visible > k) {
                std::sort(ranked.begin(), ranked.end());
                ranked.resize(k);
            }
            std::vector<uint32_t> rows;
            for (auto& r : ranked) rows.push_back(r.second);
            std::sort(rows.begin(), rows.end());
            std::copy(rows.begin(), rows.end(), want.begin() + t * k);
        }
        report("indexer scores " + what + (how == Scores::By256 ? ", 256 keys a block" : how == Scores::By128 ? ", 128 keys a block" : ", by warpgroups"), exact);
        // Scores are exact, so that one kind of them is enough for a selection.
        for (uint32_t cluster : {1u, 2u, 8u}) {
            for (uint32_t cached : {0u, 32u, 4096u}) {  // 0: few rows, in registers
                if (how != Scores::By128) continue;
                Buffer<uint32_t> out(size_t(tokens) * k);
                IndexerSelectParams p = {scores.get(), out.get(), batch.batch(), stride, k, ratio, first, 0, 0};
                if (cached == 0) run_select_few(p, slice, cluster); else run_select(p, slice, cluster, most, cached);
                auto chosen = out.download();
                std::fill(chosen.begin(), chosen.begin() + first * k, 0xffffffffu);
                report("indexer select " + what + ", cluster of " + std::to_string(cluster) + ", " + std::to_string(cached) + " cached", chosen == want);
            }
        }
    }
}

inline void check_indexer() {
    check_indexer_of("one token, fp4", {{400, 1}}, 64, ROWS_FP4, 1, 37);
    check_indexer_of("64 heads, f32", {{1100, 3}, {0, 2}, {600, 4}}, 64, ROWS_F32, 2, 50);
    check_indexer_of("64 heads, fp4", {{250, 9}, {3, 1}}, 64, ROWS_FP4, 1, 20);
    check_indexer_of("few visible", {{9, 1}}, 16, ROWS_FP4, 4, 8);
    check_indexer_of("f32, two sequences", {{150, 3}, {620, 2}}, 16, ROWS_F32, 2, 50);
    check_indexer_of("fp4, three sequences", {{0, 9}, {300, 4}, {77, 1}}, 8, ROWS_FP4, 1, 16);
}
