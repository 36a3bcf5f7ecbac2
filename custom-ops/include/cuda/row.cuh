// What becomes of a row on its way into a cache, step by step: by a warp, or by a whole block on a row
// in shared memory. Blocks meet between steps, not inside the last.
#pragma once

#include "batch.h"
#include "memory.cuh"
#include "reduce.cuh"
#include "rounding.cuh"

// The largest magnitude of the values that a warp holds, up to two a lane, in every lane.
DEVICE float warp_most(float first, float second) { return warp_max(fmaxf(fabsf(first), fabsf(second))); }

// By a warp: `block` values (up to 64) of the row `x` in FP8, in place.
DEVICE void round_fp8(float* x, uint32_t block) {
    const uint32_t lane = lane_id();
    const float a = lane < block ? x[lane] : 0.0f, b = lane + 32 < block ? x[lane + 32] : 0.0f;
    const float scale = fp8_scale(warp_most(a, b));
    if (lane < block) x[lane] = round_e4m3(fminf(fmaxf(a / scale, -448.0f), 448.0f)) * scale;
    if (lane + 32 < block) x[lane + 32] = round_e4m3(fminf(fmaxf(b / scale, -448.0f), 448.0f)) * scale;
}

// By a warp: up to 64 values in BF16, in place.
DEVICE void round_bf16s(float* x, uint32_t count) {
    const uint32_t lane = lane_id();
    if (lane < count) x[lane] = round_bf16(x[lane]);
    if (lane + 32 < count) x[lane + 32] = round_bf16(x[lane + 32]);
}

// By a block: the Walsh-Hadamard butterflies of `dim` values in shared memory. The block has met before,
// and meets at the end.
DEVICE void hadamard(float* row, uint32_t dim) {
    for (uint32_t stride = 1; stride < dim; stride *= 2) {
        for (uint32_t i = threadIdx.x; i < dim / 2; i += blockDim.x) {
            const uint32_t low = i / stride * 2 * stride + i % stride, high = low + stride;
            const float a = row[low], b = row[high];
            row[low] = a + b;
            row[high] = a - b;
        }
        __syncthreads();
    }
}

// By a warp: `block` values (up to 32) times `factor`, in FP4.
DEVICE void round_fp4(const float* from, float* to, uint32_t block, float factor) {
    const uint32_t lane = lane_id();
    const float value = lane < block ? from[lane] * factor : 0.0f;
    const float scale = fp4_scale(warp_most(value, 0.0f));
    if (lane < block) to[lane] = round_e2m1(value / scale) * scale;
}

// By a block: the bytes of a row whose values the format of `rows` holds exactly. A warp for each run of
// channels that share a scale.
DEVICE void pack_row(const Rows& rows, const float* source, uint8_t* to) {
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
        const float most = warp_most(a, b);
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
