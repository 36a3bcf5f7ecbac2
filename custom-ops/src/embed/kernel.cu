// Rows of a table by index, copied to every stream.

#include "cuda/layout.h"
#include "cuda/memory.cuh"
#include "cuda/numbers.cuh"

struct EmbedParams {
    const uint32_t* ids;  // [tokens]
    Weight table;
    float* out;  // [tokens, streams, hidden]
    uint32_t streams;
};

// One value of a table in a format whose values can be found one by one.
DEVICE float table_value(const Weight& w, uint32_t row, uint32_t col) {
    const uint64_t at = uint64_t(row) * w.cols + col;
    switch (w.format) {
    case WEIGHT_F32: return reinterpret_cast<const float*>(w.plane[0])[at];
    case WEIGHT_F16: return f16_to_f32(reinterpret_cast<const uint16_t*>(w.plane[0])[at]);
    case WEIGHT_BF16: return bf16_to_f32(reinterpret_cast<const uint16_t*>(w.plane[0])[at]);
    default: {
        const uint32_t tile = row / 16, block = col / 32;
        const uint8_t* quants = w.plane[0] + q8_0_tile(w.cols, tile, block);
        const uint8_t* scales = w.plane[1] + q8_0_scales(w.cols, tile, block / 4);
        const int8_t quant = int8_t(quants[q8_0_in_tile(row % 16, col % 32)]);
        const uint16_t scale =
            *reinterpret_cast<const uint16_t*>(scales + q8_0_in_scales(row % 16, block % 4));
        return f16_to_f32(scale) * float(quant);
    }
    }
}

// A block for 256 channels of a token.
KERNEL(embed, EmbedParams, 256) {
    pdl_trigger();
    pdl_wait();
    const uint32_t token = blockIdx.x, col = blockIdx.y * 256 + threadIdx.x;
    if (col >= p.table.cols) return;
    // Ids are checked before they are uploaded; a wild one must still not read elsewhere.
    const uint32_t id = min(p.ids[token], p.table.rows - 1);
    const float value = table_value(p.table, id, col);
    float* out = p.out + uint64_t(token) * p.streams * p.table.cols + col;
    for (uint32_t stream = 0; stream < p.streams; stream++) out[uint64_t(stream) * p.table.cols] = value;
}
