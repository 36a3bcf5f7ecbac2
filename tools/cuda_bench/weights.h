// Random weights: as a file has them, as floats, and as kernels read them.
#pragma once

#include <memory>

#include "../../custom-ops/include/cuda/layout.h"
#include "harness.h"

inline uint32_t block_length(uint32_t format) {
    return format == WEIGHT_Q8_0 ? 32 : format >= WEIGHT_Q2_K ? 256 : 1;
}

class RandomWeight {
   public:
    uint32_t format, stack, rows, cols;
    std::vector<float> values;  // [stack, rows, cols]; empty for `timed` weights

    // Values of about `scale`. Weights for timing (`timed`) are random bytes without values.
    RandomWeight(uint32_t format, uint32_t stack, uint32_t rows, uint32_t cols, bool timed = false)
        : format(format), stack(stack), rows(rows), cols(cols) {
        const uint64_t blocks = cols / block_length(format);
        const uint64_t sizes[7][3] = {{4ull * rows * cols},
                                      {2ull * rows * cols},
                                      {2ull * rows * cols},
                                      {q8_0_row_tiles(rows) * blocks * 512, q8_0_row_tiles(rows) * ((blocks + 3) / 4) * 128},
                                      {rows * blocks * 64, rows * blocks * 16, rows * blocks * 4},
                                      {rows * blocks * 128, rows * blocks * 16},
                                      {rows * blocks * 64, rows * uint64_t(iq2_xxs_d_row(cols)) * 2}};
        for (int i = 0; i < 3; i++) {
            stride_[i] = (sizes[format][i] + WEIGHT_ALIGN - 1) / WEIGHT_ALIGN * WEIGHT_ALIGN;
        }
        if (timed) {
            fill();
            return;
        }
        // Without the padding of the last matrix: a read past the end is found.
        std::vector<std::vector<uint8_t>> planes(3);
        for (int i = 0; i < 3; i++) {
            if (sizes[format][i]) planes[i].assign(stride_[i] * (stack - 1) + sizes[format][i], 0);
        }
        values.resize(size_t(stack) * rows * cols);
        for (uint32_t m = 0; m < stack; m++) {
            for (uint32_t r = 0; r < rows; r++) {
                for (uint32_t b = 0; b < blocks; b++) {
                    block(planes, m, r, b, &values[(size_t(m) * rows + r) * cols + b * block_length(format)]);
                }
            }
        }
        for (int i = 0; i < 3; i++) {
            if (sizes[format][i]) planes_[i] = std::make_unique<Buffer<uint8_t>>(planes[i]);
        }
    }

    Weight weight() const {
        Weight w = {};
        for (int i = 0; i < 3; i++) {
            if (planes_[i]) {
                w.plane[i] = planes_[i]->get();
                w.stride[i] = stride_[i];
            }
        }
        w.format = format;
        w.stack = stack;
        w.rows = rows;
        w.cols = cols;
        return w;
    }
    double bytes() const {
        double sum = 0;
        for (int i = 0; i < 3; i++) sum += double(stride_[i]) * stack;
        return sum;
    }
    const float* row(uint32_t matrix, uint32_t r) const { return &values[(size_t(matrix) * rows + r) * cols]; }

   private:
    uint64_t stride_[3];
    std::unique_ptr<Buffer<uint8_t>> planes_[3];

    void fill() {
        for (int i = 0; i < 3; i++) {
            if (stride_[i] == 0) continue;
            planes_[i] = std::make_unique<Buffer<uint8_t>>(stride_[i] * stack, 0);
            std::vector<uint8_t> some(std::min<size_t>(stride_[i] * stack, 1 << 22));
            for (size_t j = 0; j + 4 <= some.size(); j += 4) {
                const uint32_t bits = random_u32() & 0xbbffbbffu;  // no infinite half, no large one
                memcpy(&some[j], &bits, 4);
            }
#ifndef CUDA_EMULATOR
            for (size_t at = 0; at < stride_[i] * stack; at += some.size()) {
                CUDA(cudaMemcpy(planes_[i]->get() + at, some.data(), std::min(some.size(), stride_[i] * stack - at),
                                cudaMemcpyHostToDevice));
            }
#endif
        }
    }

    static void put16(std::vector<uint8_t>& plane, uint64_t at, uint16_t bits) { memcpy(&plane[at], &bits, 2); }

    void block(std::vector<std::vector<uint8_t>>& planes, uint32_t m, uint32_t r, uint32_t b, float* out) {
        const uint64_t blocks = cols / block_length(format), at = r * blocks + b;
        const uint64_t base[3] = {m * stride_[0], m * stride_[1], m * stride_[2]};
        switch (format) {
            case WEIGHT_F32: {
                out[0] = 0.02f * normal();
                memcpy(&planes[0][base[0] + 4 * at], out, 4);
                break;
            }
            case WEIGHT_F16: {
                const uint16_t bits = to_f16(0.02f * normal());
                out[0] = from_f16(bits);
                put16(planes[0], base[0] + 2 * at, bits);
                break;
            }
            case WEIGHT_BF16: {
                const float v = 0.02f * normal();
                uint32_t bits;
                memcpy(&bits, &v, 4);
                bits &= 0xffff0000u;
                memcpy(out, &bits, 4);
                put16(planes[0], base[0] + 2 * at, uint16_t(bits >> 16));
                break;
            }
            case WEIGHT_Q8_0: {
                const uint16_t d = to_f16(0.0003f * (0.5f + uniform()));
                put16(planes[1], base[1] + q8_0_scales(cols, r / 16, b / 4) + q8_0_in_scales(r % 16, b % 4), d);
                for (uint32_t j = 0; j < 32; j++) {
                    const int8_t q = int8_t(int(random_u32() % 255) - 127);
                    planes[0][base[0] + q8_0_tile(cols, r / 16, b) + q8_0_in_tile(r % 16, j)] = uint8_t(q);
                    out[j] = from_f16(d) * q;
                }
                break;
            }
            case WEIGHT_Q2_K: {
                const uint16_t d = to_f16(0.002f * (0.5f + uniform())), least = to_f16(0.003f * (0.5f + uniform()));
                put16(planes[2], base[2] + at * 4, d);
                put16(planes[2], base[2] + at * 4 + 2, least);
                uint8_t* qs = &planes[0][base[0] + at * 64];
                for (int i = 0; i < 64; i++) qs[i] = uint8_t(random_u32());
                for (uint32_t s = 0; s < 16; s++) {
                    const uint8_t scale = uint8_t(random_u32());
                    planes[1][base[1] + at * 16 + q2_k_scale_at(s)] = scale;
                    const uint32_t h = s / 8, j = s / 2 % 4, k = s % 2;
                    for (uint32_t l = 0; l < 16; l++) {
                        const int q = qs[32 * h + 16 * k + l] >> (2 * j) & 3;
                        out[16 * s + l] = from_f16(d) * float(scale & 15) * float(q) - from_f16(least) * float(scale >> 4);
                    }
                }
                break;
            }
            case WEIGHT_Q4_K: {
                const uint16_t d = to_f16(0.0001f * (0.5f + uniform())), least = to_f16(0.0007f * (0.5f + uniform()));
                uint8_t head[16];
                memcpy(head, &d, 2);
                memcpy(head + 2, &least, 2);
                for (int i = 4; i < 16; i++) head[i] = uint8_t(random_u32());
                memcpy(&planes[1][base[1] + at * 16], head, 16);
                uint8_t* qs = &planes[0][base[0] + at * 128];
                for (int i = 0; i < 128; i++) qs[i] = uint8_t(random_u32());
                const uint8_t* s = head + 4;
                for (uint32_t j = 0; j < 8; j++) {
                    const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
                    const int minimum = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | (s[j] >> 6) << 4;
                    for (uint32_t l = 0; l < 32; l++) {
                        const int q = qs[32 * (j / 2) + l] >> (4 * (j % 2)) & 15;
                        out[32 * j + l] = from_f16(d) * float(scale) * float(q) - from_f16(least) * float(minimum);
                    }
                }
                break;
            }
            default: {
                const uint16_t d = to_f16(0.0004f * (0.5f + uniform()));
                put16(planes[1], base[1] + (uint64_t(r) * iq2_xxs_d_row(cols) + iq2_xxs_d_at(uint32_t(blocks), b)) * 2, d);
                for (uint32_t group = 0; group < 8; group++) {
                    const uint32_t a = random_u32(), c = random_u32();
                    memcpy(&planes[0][base[0] + at * 64 + group * 8], &a, 4);
                    memcpy(&planes[0][base[0] + at * 64 + group * 8 + 4], &c, 4);
                    const float scale = from_f16(d) * (0.5f + float(c >> 28)) * 0.25f;
                    for (uint32_t l = 0; l < 4; l++) {
                        const uint32_t digits = IQ2_XXS_DIGITS[a >> (8 * l) & 255], t = c >> (7 * l) & 127;
                        const uint32_t signs = t | uint32_t(__builtin_popcount(t) & 1) << 7;
                        const float levels[4] = {8, 25, 43, 0};
                        for (uint32_t j = 0; j < 8; j++) {
                            const float v = scale * levels[digits >> (2 * j) & 3];
                            out[32 * group + 8 * l + j] = signs >> j & 1 ? -v : v;
                        }
                    }
                }
            }
        }
    }

    static const uint16_t IQ2_XXS_DIGITS[256];
};
const uint16_t RandomWeight::IQ2_XXS_DIGITS[256] = {
#include "../../custom-ops/include/cuda/iq2_xxs_digits.h"
};
