// KV state of random sequences: rings and pages as kernels see them, rows as floats.
#pragma once

#include <memory>

#include "../../custom-ops/include/cuda/batch.h"
#include "harness.h"

struct Sequences {
    std::vector<Span> spans;
    std::vector<uint32_t> positions, sequence;
    std::unique_ptr<Buffer<uint32_t>> positions_there, sequence_there;
    std::unique_ptr<Buffer<Span>> spans_there;

    // Each is (start position, tokens).
    explicit Sequences(const std::vector<std::pair<uint32_t, uint32_t>>& each) {
        for (auto [start, len] : each) {
            spans.push_back({uint32_t(positions.size()), len, start});
            for (uint32_t i = 0; i < len; i++) {
                positions.push_back(start + i);
                sequence.push_back(uint32_t(spans.size() - 1));
            }
        }
        positions_there = std::make_unique<Buffer<uint32_t>>(positions);
        sequence_there = std::make_unique<Buffer<uint32_t>>(sequence);
        spans_there = std::make_unique<Buffer<Span>>(spans);
    }
    uint32_t tokens() const { return uint32_t(positions.size()); }
    Batch batch() const {
        return {positions_there->get(), sequence_there->get(), spans_there->get(), tokens(), uint32_t(spans.size())};
    }
};

// Compressed rows of each sequence.
struct Lists {
    uint32_t format, width, page_rows, row_bytes;
    std::vector<std::vector<float>> values;  // of each sequence
    std::vector<std::unique_ptr<Buffer<uint8_t>>> pages;
    std::vector<std::unique_ptr<Buffer<uint8_t*>>> tables;

    Lists(uint32_t format, uint32_t width, uint32_t page_rows, const std::vector<uint32_t>& counts, bool keep_values = true)
        : format(format), width(width), page_rows(page_rows),
          row_bytes(format == ROWS_F32 ? 4 * width : format == ROWS_FP8 ? 584 : 68) {
        for (uint32_t count : counts) {
            std::vector<float> rows;
            std::vector<uint8_t*> table;
            for (uint32_t first = 0; first < count; first += page_rows) {
                std::vector<uint8_t> page(size_t(page_rows) * row_bytes, 0xff);
                if (keep_values || first == 0) {
                    for (uint32_t r = 0; r < page_rows && first + r < count; r++) {
                        std::vector<float> row(width);
                        fill(&page[size_t(r) * row_bytes], row);
                        if (keep_values) rows.insert(rows.end(), row.begin(), row.end());
                    }
                    pages.push_back(std::make_unique<Buffer<uint8_t>>(page));
                } else {
                    // For timing: rows of zeros are rows too.
                    pages.push_back(std::make_unique<Buffer<uint8_t>>(page.size(), 0));
                }
                table.push_back(pages.back()->get());
            }
            values.push_back(std::move(rows));
            tables.push_back(std::make_unique<Buffer<uint8_t*>>(table));
        }
    }
    Rows rows() const {
        Rows rows = {};
        for (size_t i = 0; i < tables.size(); i++) rows.pages[i] = tables[i]->get();
        rows.page_rows = page_rows;
        rows.row_bytes = row_bytes;
        rows.width = width;
        rows.format = format;
        return rows;
    }

   private:
    static float e4m3(uint8_t code) {
        const int exponent = code >> 3 & 15, mantissa = code & 7;
        const float v = exponent == 0 ? std::ldexp(float(mantissa), -9) : std::ldexp(float(8 + mantissa), exponent - 10);
        return code & 0x80 ? -v : v;
    }
    void fill(uint8_t* to, std::vector<float>& row) {
        if (format == ROWS_F32) {
            // Small integers over eight: exact as halves, so that scores can be compared to the bit.
            for (float& v : row) v = std::nearbyint(8.0f * normal()) / 8.0f;
            memcpy(to, row.data(), 4 * width);
        } else if (format == ROWS_FP8) {
            for (int b = 0; b < 7; b++) to[576 + b] = uint8_t(115 + random_u32() % 4);
            to[583] = 0;
            for (int c = 0; c < 448; c++) {
                do to[c] = uint8_t(random_u32()); while ((to[c] & 0x7f) == 0x7f);
                row[c] = std::ldexp(e4m3(to[c]), to[576 + c / 64] - 127);
            }
            for (int c = 0; c < 64; c++) {
                float v = normal();
                uint32_t bits;
                memcpy(&bits, &v, 4);
                bits &= 0xffff0000u;
                memcpy(&row[448 + c], &bits, 4);
                const uint16_t high = uint16_t(bits >> 16);
                memcpy(to + 448 + 2 * c, &high, 2);
            }
        } else {
            const float levels[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
            for (int b = 0; b < 4; b++) to[64 + b] = uint8_t(125 + random_u32() % 3);
            for (uint32_t c = 0; c < 128; c++) {
                const uint32_t code = random_u32() & 15;
                if (c % 2 == 0) to[c / 2] = 0;
                to[c / 2] |= uint8_t(code << (c % 2 * 4));
                row[c] = std::ldexp(levels[code & 7] * (code & 8 ? -1.0f : 1.0f), to[64 + c / 32] - 127);
            }
        }
    }
};
