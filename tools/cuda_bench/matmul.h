// Checks and timings of the products with a weight.
#pragma once

#include "weights.h"

// `out[t, r] = Σ_k w[r, k] x[t, group(r), k]` in doubles.
inline std::vector<double> product(const RandomWeight& w, const std::vector<float>& x, uint32_t tokens, uint32_t groups) {
    std::vector<double> out(size_t(tokens) * w.rows);
    for (uint32_t t = 0; t < tokens; t++) {
        for (uint32_t r = 0; r < w.rows; r++) {
            const float* row = w.row(0, r);
            const float* of_token = &x[(size_t(t) * groups + r / (w.rows / groups)) * w.cols];
            double sum = 0;
            for (uint32_t k = 0; k < w.cols; k++) sum += double(row[k]) * of_token[k];
            out[size_t(t) * w.rows + r] = sum;
        }
    }
    return out;
}

// What is left of activations as signed bytes with a scale for 32.
inline std::vector<float> through_bytes(const std::vector<float>& x) {
    std::vector<float> y(x.size());
    for (size_t b = 0; b < x.size(); b += 32) {
        float most = 0;
        for (size_t i = b; i < b + 32; i++) most = std::max(most, std::fabs(x[i]));
        for (size_t i = b; i < b + 32; i++) {
            y[i] = most > 0 ? std::nearbyint(x[i] * (127.0f / most)) * (most * (1.0f / 127.0f)) : 0.0f;
        }
    }
    return y;
}
inline std::vector<float> through_halves(const std::vector<float>& x) {
    std::vector<float> y(x.size());
    for (size_t i = 0; i < x.size(); i++) y[i] = from_f16(to_f16(x[i]));
    return y;
}

inline uint32_t split_of(uint32_t cols) {
    uint32_t split = 1;
    while (split < 16 && split * 2 <= cols / 256) split *= 2;
    return split;
}

// Whether activations may be in shared memory.
inline bool g_stage = true;

// A launch for few tokens, as src/matmul/cuda.rs makes it.
struct Few {
    MatmulParams p = {};
    Shape shape;
    uint32_t padded = 1;

    Few(const std::vector<const RandomWeight*>& weights, const std::vector<float*>& outs, const float* x,
        uint32_t tokens, uint32_t groups) {
        p.x = x;
        p.tokens = tokens;
        p.groups = groups;
        p.parts = uint32_t(weights.size());
        uint32_t tiles = 0;
        for (uint32_t i = 0; i < p.parts; i++) {
            p.w[i] = weights[i]->weight();
            p.out[i] = outs[i];
            tiles += (p.w[i].rows + 15) / 16;
            p.tile_end[i] = tiles;
            p.heft_end[i] = (i ? p.heft_end[i - 1] : 0) + (p.w[i].rows + 15) / 16 * (p.w[i].format == WEIGHT_F16 ? 2 : 1);
            (p.w[i].format == WEIGHT_F16 ? p.has_f16 : p.has_q8_0) = 1;
        }
        const uint32_t cols = p.w[0].cols;
        padded = tokens == 1 ? 1 : tokens <= 8 ? 8 : tokens <= 16 ? 16 : 32;
        // Few rows and many columns: the blocks of a cluster share them.
        while (groups == 1 && shape.cluster < 8 && tiles * shape.cluster * 2 <= multiprocessors() * (EMULATED ? 4 : 1) &&
               cols >= 4096 * shape.cluster) {
            shape.cluster *= 2;
        }
        p.block_cols = shape.cluster == 1 ? cols : (cols / shape.cluster + 255) / 256 * 256;
        p.split = split_of(p.block_cols);
        const uint32_t slots = 16 / p.split;
        shape.x = std::min(multiprocessors(), (tiles + slots - 1) / slots);
        shape.threads = 512;
        uint32_t most = (tiles + shape.x - 1) / shape.x;
        p.x_groups = 1;
        if (groups > 1) {
            const uint32_t of_group = std::max(1u, p.w[0].rows / groups / 16);
            p.x_groups = std::min(groups, (most + of_group - 1) / of_group + 1);
            uint32_t of_each = std::min(of_group, shape.x / groups);
            while (of_each > 1 && of_group % of_each != 0) of_each--;
            if (of_each > 0 && of_group / of_each <= most) {
                shape.x = groups * of_each;
                p.x_groups = 1;
            }
        }
        most = (tiles + shape.x - 1) / shape.x;
        const uint32_t round_bytes = 16 * 16 * padded * 4, limit = 227 * 1024;
        const uint32_t all = (p.x_groups * p.block_cols + 255) / 256 * 8 * 36 * padded;
        p.staged = g_stage && p.has_q8_0 && (padded > 8 || (padded == 8 && most > slots)) && all + round_bytes <= limit &&
                   (groups == 1 || cols % 256 == 0);
        const uint32_t of_stage = p.staged ? all : 0;
        p.rounds = std::max(1u, std::min((most + slots - 1) / slots, std::min(128u * 1024u, limit - of_stage) / round_bytes));
        shape.x *= shape.cluster;
        shape.shared = p.rounds * round_bytes + of_stage;
        if (tokens == 1) {
            const uint32_t count = p.x_groups * p.block_cols;
            shape.shared += (p.has_f16 ? count * 4 : 0) + (p.has_q8_0 ? count + count / 8 : 0);
        }
    }
    void run(const uint8_t* quants, const float* scales) {
        p.quants = quants;
        p.scales = scales;
        if (padded == 1) LAUNCH(matmul_1, shape, p);
        if (padded == 8) LAUNCH(matmul_8, shape, p);
        if (padded == 16) LAUNCH(matmul_16, shape, p);
        if (padded == 32) LAUNCH(matmul_32, shape, p);
    }
};

// Several weights on the same activations.
inline void check_few(const std::string& what, const std::vector<std::pair<uint32_t, uint32_t>>& formats_rows,
                      uint32_t cols, uint32_t tokens, uint32_t groups) {
    std::vector<std::unique_ptr<RandomWeight>> weights;
    std::vector<std::unique_ptr<Buffer<float>>> outs;
    std::vector<const RandomWeight*> of_params;
    std::vector<float*> pointers;
    for (auto [format, rows] : formats_rows) {
        weights.push_back(std::make_unique<RandomWeight>(format, 1, rows, cols));
        outs.push_back(std::make_unique<Buffer<float>>(size_t(tokens) * rows));
        of_params.push_back(weights.back().get());
        pointers.push_back(outs.back()->get());
    }
    const uint32_t width = groups * cols;
    const std::vector<float> x = normals(size_t(tokens) * width);
    const Buffer<float> x_there(x);
    Few few(of_params, pointers, x_there.get(), tokens, groups);
    Buffer<uint8_t> quants(few.padded == 1 ? 0 : size_t(few.padded) * width);
    Buffer<float> scales(few.padded == 1 ? 0 : size_t(few.padded) * width / 32);
    if (few.padded > 1 && few.p.has_q8_0) {
        const QuantizeRowsParams q = {x_there.get(), quants.get(), scales.get(), tokens, few.padded, width};
        Shape shape;
        shape.threads = 256;
        shape.x = (few.padded * ((width / 32 + 3) / 4) + 7) / 8;
        LAUNCH(quantize_rows, shape, q);
    }
    few.run(quants.get(), scales.get());
    const std::vector<float> bytes = through_bytes(x);
    for (size_t i = 0; i < weights.size(); i++) {
        const bool f16 = weights[i]->format == WEIGHT_F16;
        const auto want = product(*weights[i], f16 ? x : bytes, tokens, groups);
        const std::string name = what + (f16 ? ", F16 " : ", Q8_0 ") + std::to_string(cols) + " -> " +
                                 std::to_string(weights[i]->rows) + ", " + std::to_string(tokens) + " tokens";
        report(name, relative_error(outs[i]->download(), want), 2e-6);
    }
}

inline void check_plain(uint32_t format, uint32_t rows, uint32_t cols, uint32_t tokens, uint32_t groups) {
    const RandomWeight w(format, 1, rows, cols);
    const std::vector<float> x = normals(size_t(tokens) * groups * cols);
    const Buffer<float> x_there(x);
    Buffer<float> out(size_t(tokens) * rows);
    const MatmulPlainParams p = {x_there.get(), out.get(), w.weight(), tokens, groups};
    Shape shape;
    shape.x = std::min((rows + 7) / 8, 4 * multiprocessors());
    shape.y = std::min((tokens + 3) / 4, 64u);
    shape.threads = 256;
    LAUNCH(matmul_plain, shape, p);
    report("matmul_plain, format " + std::to_string(format) + ", " + std::to_string(cols) + " -> " + std::to_string(rows),
           relative_error(out.download(), product(w, x, tokens, groups)), 2e-6);
}

inline void halve(const float* x, uint16_t* halves, uint64_t tokens, uint32_t width, uint32_t order) {
    const HalveRowsParams h = {x, halves, tokens, width, order};
    Shape shape;
    shape.threads = 256;
    shape.x = uint32_t((tokens * (width / 8) + 255) / 256);
    LAUNCH(halve_rows, shape, h);
}

// Which kernel multiplies many tokens: rows and tokens of its blocks, and whether it is for Hopper.
struct Tiles {
    uint32_t rows, tokens;
    bool wide;
};
inline const Tiles GEMM_TILES[] = {{256, 128, false}, {128, 64, false}, {128, 256, true}, {128, 128, true}, {128, 64, true}};

inline std::string name_of(const Tiles& tiles) {
    return std::to_string(tiles.rows) + " x " + std::to_string(tiles.tokens) + (tiles.wide ? " wide" : "");
}

inline uint32_t order_of(uint32_t format, bool wide) {
    return (format == WEIGHT_Q8_0 ? HALVES_FOR_Q8_0 : HALVES_IN_ORDER) + (wide ? HALVES_FOR_WGMMA : HALVES_IN_ORDER);
}

// Shared memory of a wide block: activations, and the weights of eight warps.
inline uint32_t wide_bytes(uint32_t format, uint32_t rows, uint32_t tokens) {
    const uint32_t of_tile = format == WEIGHT_Q8_0 ? 4352 : format == WEIGHT_F16 ? 8192 : format == WEIGHT_IQ2_XXS ? 2176 : format == WEIGHT_Q2_K ? 2688 : 4608;
    return tokens * 512 + rows / 16 * of_tile;
}

#define GEMM_BY_TILES(format)                                                                        \
    do {                                                                                             \
        if (!tiles.wide && tiles.rows == 256) LAUNCH(gemm_##format##_256x128, shape, p);             \
        if (!tiles.wide && tiles.rows == 128) LAUNCH(gemm_##format##_128x64, shape, p);              \
        if (tiles.wide && tiles.tokens == 256) LAUNCH(gemm_wide_##format##_128x256, shape, p);       \
        if (tiles.wide && tiles.tokens == 128) LAUNCH(gemm_wide_##format##_128x128, shape, p); \
        if (tiles.wide && tiles.tokens == 64) LAUNCH(gemm_wide_##format##_128x64, shape, p);         \
    } while (0)

inline void run_gemm(const GemmParams& p, const Tiles& tiles) {
    const uint32_t rows = p.w.rows / p.groups;
    Shape shape;
    shape.x = (p.tokens + tiles.tokens - 1) / tiles.tokens;
    shape.y = (rows + tiles.rows - 1) / tiles.rows;
    shape.z = p.groups;
    shape.threads = tiles.wide ? 256 : tiles.rows;
    shape.shared = tiles.wide ? wide_bytes(p.w.format, tiles.rows, tiles.tokens) : tiles.tokens * 512;
    if (p.w.format == WEIGHT_F16) GEMM_BY_TILES(f16); else GEMM_BY_TILES(q8_0);
}

inline void check_gemm(uint32_t format, uint32_t rows, uint32_t cols, uint32_t tokens, uint32_t groups, const Tiles& tiles) {
    const RandomWeight w(format, 1, rows, cols);
    const std::vector<float> x = normals(size_t(tokens) * groups * cols);
    const Buffer<float> x_there(x);
    Buffer<uint16_t> halves(x.size());
    Buffer<float> out(size_t(tokens) * rows);
    halve(x_there.get(), halves.get(), tokens, groups * cols, order_of(format, tiles.wide));
    run_gemm({halves.get(), out.get(), w.weight(), tokens, groups}, tiles);
    // Weights are rounded to halves too.
    report("gemm " + name_of(tiles) + (format == WEIGHT_F16 ? ", F16 " : ", Q8_0 ") + std::to_string(cols) + " -> " +
               std::to_string(rows) + ", " + std::to_string(tokens) + " tokens, " + std::to_string(groups) + " groups",
           relative_error(out.download(), product(w, through_halves(x), tokens, groups)), format == WEIGHT_F16 ? 2e-6 : 3e-4);
}

inline void check_matmul() {
    const uint32_t large = EMULATED ? 1 : 8;
    check_few("one", {{WEIGHT_Q8_0, 48 * large}}, 4096, 1, 1);
    check_few("ragged", {{WEIGHT_Q8_0, 37}}, 96, 1, 1);
    check_few("narrow", {{WEIGHT_Q8_0, 272}}, 64, 1, 1);
    check_few("q_b", {{WEIGHT_Q8_0, 240 * large}}, 1024, 1, 1);
    check_few("o_b", {{WEIGHT_Q8_0, 64 * large}}, 8192, 1, 1);
    check_few("o_a", {{WEIGHT_Q8_0, 256 * large}}, 4096, 1, 8);
    check_few("o_a of the demo", {{WEIGHT_Q8_0, 128}}, 1024, 1, 2);
    check_few("x-projections", {{WEIGHT_Q8_0, 48}, {WEIGHT_F16, 20}, {WEIGHT_Q8_0, 32}, {WEIGHT_F16, 64}}, 4096, 1, 1);
    check_few("halves", {{WEIGHT_F16, 30}, {WEIGHT_F16, 5}}, 352, 1, 1);
    check_few("hyper-connection", {{WEIGHT_F16, 24}}, 16384, 1, 1);
    check_few("hyper-connection", {{WEIGHT_F16, 4}}, 16384, 3, 1);
    check_few("long and ragged", {{WEIGHT_Q8_0, 17}, {WEIGHT_F16, 3}}, 8192 + 96, 1, 1);
    for (uint32_t tokens : {2u, 8u, 13u, 32u}) {
        check_few("one", {{WEIGHT_Q8_0, 37}}, 96, tokens, 1);
        check_few("q_b", {{WEIGHT_Q8_0, 112 * large}}, 1024, tokens, 1);
        check_few("o_a", {{WEIGHT_Q8_0, 128}}, 1024, tokens, 2);
        check_few("x-projections", {{WEIGHT_Q8_0, 48}, {WEIGHT_F16, 20}, {WEIGHT_Q8_0, 32}}, 512 * large, tokens, 1);
        check_few("o_b", {{WEIGHT_Q8_0, 64}}, 8192, tokens, 1);
        g_stage = false;
        check_few("in global memory", {{WEIGHT_Q8_0, 37}}, 4096 + 96, tokens, 1);
        check_few("in global memory", {{WEIGHT_Q8_0, 128}}, 1024, tokens, 2);
        g_stage = true;
    }
    for (uint32_t format : {WEIGHT_Q8_0, WEIGHT_F16}) {
        for (const Tiles& tiles : GEMM_TILES) {
            check_gemm(format, 300, 128, 70, 1, tiles);
            check_gemm(format, 37, 1024, 33, 1, tiles);
            check_gemm(format, 128, 64, 130, 2, tiles);
        }
    }
    for (uint32_t format = 0; format < 7; format++) check_plain(format, 21, 512, 5, 1);
    check_plain(WEIGHT_F32, 6, 77, 3, 2);
    check_plain(WEIGHT_F16, 9, 130, 1, 3);
    check_plain(WEIGHT_IQ2_XXS, 5, 4096 + 256, 1, 1);
}
