// A batch's rows into the rings and pages of its sequences.

#include "cuda/batch.h"
#include "cuda/memory.cuh"
#include "cuda/rounding.cuh"

#define MAX_RINGS 4

struct WriteRingsParams {
    const float* rows[MAX_RINGS];  // [tokens, width] each
    Rings rings[MAX_RINGS];
    Batch batch;
};

// A block for 256 channels of a token's row, for each of up to four kinds of rings.
KERNEL(write_rings, WriteRingsParams, 256) {
    pdl_trigger();
    pdl_wait();
    const Rings& rings = p.rings[blockIdx.z];
    const uint32_t token = blockIdx.x, channel = blockIdx.y * 256 + threadIdx.x;
    if (channel >= rings.width) return;
    const uint32_t sequence = p.batch.sequence[token];
    const Span span = p.batch.spans[sequence];
    // Of a span longer than the ring, only the last rows: the others would race with them.
    if (token - span.row + rings.slots < span.len) return;
    const uint32_t slot = p.batch.positions[token] % rings.slots;
    rings.data[sequence][uint64_t(slot) * rings.width + channel] =
        p.rows[blockIdx.z][uint64_t(token) * rings.width + channel];
}

struct AppendRowsParams {
    const float* source;  // [rows, width], rounded to what the format holds
    Rows rows;
    Batch batch;
    uint32_t ratio;
    uint32_t per_sequence;
};

// A block for each row; a warp for each run of channels that share a scale.
KERNEL(append_rows, AppendRowsParams, 256) {
    pdl_trigger();
    pdl_wait();
    const Window window = window_of(p.batch, blockIdx.x, p.ratio, p.per_sequence);
    if (!window.ended) return;
    const Rows& rows = p.rows;
    const float* source = p.source + uint64_t(blockIdx.x) * rows.width;
    uint8_t* to = row_at(rows, window.sequence, window.index);
    if (rows.format == ROWS_F32) {
        float* values = reinterpret_cast<float*>(to);
        for (uint32_t i = threadIdx.x; i < rows.width; i += blockDim.x) values[i] = source[i];
        return;
    }
    const bool fp8 = rows.format == ROWS_FP8;
    const uint32_t coded = fp8 ? rows.nope : rows.width, blocks = coded / rows.block;
    const uint32_t scales_at = fp8 ? rows.nope + 2 * (rows.width - rows.nope) : (rows.width + 1) / 2;
    const uint32_t lane = lane_id(), warps = blockDim.x / 32;
    for (uint32_t block = warp_id(); block < blocks; block += warps) {
        const float* x = source + block * rows.block;
        const float a = lane < rows.block ? x[lane] : 0.0f;
        const float b = lane + 32 < rows.block ? x[lane + 32] : 0.0f;
        const float most = warp_max(fmaxf(fabsf(a), fabsf(b)));
        const float scale = fp8 ? fp8_scale(most) : fp4_scale(most);
        if (lane == 0) to[scales_at + block] = uint8_t(f32_bits(scale) >> 23);
        if (fp8) {
            uint8_t* codes = to + block * rows.block;
            if (lane < rows.block) codes[lane] = e4m3_code(a / scale);
            if (lane + 32 < rows.block) codes[lane + 32] = e4m3_code(b / scale);
        } else {
            // Two channels a byte; blocks of FP4 have at most 32.
            const uint32_t code = e2m1_code(a / scale), next = shuffle_xor(code, 1u);
            if (lane < rows.block && lane % 2 == 0) {
                to[(block * rows.block + lane) / 2] = uint8_t(rows.block == 1 ? code : code | next << 4);
            }
        }
    }
    if (fp8) {
        uint8_t* bf16s = to + rows.nope;
        for (uint32_t i = threadIdx.x; i < rows.width - rows.nope; i += blockDim.x) {
            const uint32_t bits = f32_bits(source[rows.nope + i]) >> 16;
            bf16s[2 * i] = uint8_t(bits);
            bf16s[2 * i + 1] = uint8_t(bits >> 8);
        }
    }
    const uint32_t used = scales_at + blocks;
    if (threadIdx.x < rows.row_bytes - used) to[used + threadIdx.x] = 0;
}
