// Products of many tokens with a weight, on the matrix units.
#include "../../include/cuda/gemm_wide.cuh"

namespace {

// A block has 16 MT rows for each warp and 8 NT tokens. Blocks run along the tokens first, so that those
// that read the same rows run together.
template <uint32_t FORMAT, uint32_t MT, uint32_t NT, uint32_t WARPS, bool WIDE>
DEVICE void gemm(const GemmParams& p, unsigned char* shared) {
    if (WIDE && !HAS_WGMMA) {
        trap();
        return;
    }
    pdl_trigger();
    const uint32_t of_group = p.w.rows / p.groups, cols = p.w.cols, group = blockIdx.z;
    const uint32_t first = (blockIdx.y * WARPS + warp_id()) * (16u * MT), token = blockIdx.x * (8u * NT);
    Rows16<FORMAT> rows[MT];
#pragma unroll
    for (uint32_t m = 0; m < MT; m++) {
        // Tiles past the group's end repeat its last one.
        const uint32_t tile = min(first / 16u + m, (of_group + 15u) / 16u - 1u);
        rows[m].aim(p.w, 0, group * (of_group / 16u) + tile);
    }
    pdl_wait();
    const uint64_t width = static_cast<uint64_t>(p.groups) * cols;
    const auto x_of = [&](uint32_t n) -> const uint16_t* {
        return token + n < p.tokens ? p.x + (token + n) * width + group * cols : nullptr;
    };
    float acc[MT][NT][4] = {};
    if (WIDE) {
        multiply_tiles_wide<FORMAT, MT, NT, WARPS>(rows, cols, x_of, shared, nullptr, acc);
    } else {
        multiply_tiles<FORMAT, MT, NT, WARPS>(rows, cols, x_of, shared, nullptr, acc);
    }
    const uint32_t g = lane_id() / 4u, t = lane_id() % 4u;
#pragma unroll
    for (uint32_t m = 0; m < MT; m++) {
        const uint32_t row = first + 16u * m + g;
#pragma unroll
        for (uint32_t n = 0; n < NT; n++) {
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                const uint32_t of_block = token + n * 8u + 2u * t + i % 2u, r = row + i / 2u * 8u;
                if (of_block >= p.tokens || r >= of_group) continue;
                p.out[static_cast<uint64_t>(of_block) * p.w.rows + group * of_group + r] = acc[m][n][i];
            }
        }
    }
}

}  // namespace

// Names: format, rows and tokens of a block; wide ones are for Hopper.
KERNEL(gemm_q8_0_256x128, GemmParams, 256) {
    SHARED(unsigned char, shared);
    gemm<WEIGHT_Q8_0, 2, 16, 8, false>(p, shared);
}
KERNEL(gemm_q8_0_128x64, GemmParams, 128) {
    SHARED(unsigned char, shared);
    gemm<WEIGHT_Q8_0, 2, 8, 4, false>(p, shared);
}
KERNEL(gemm_wide_q8_0_128x256, GemmParams, 256) {
    SHARED(unsigned char, shared);
    gemm<WEIGHT_Q8_0, 1, 32, 8, true>(p, shared);
}
KERNEL(gemm_wide_q8_0_128x128, GemmParams, 256) {
    SHARED(unsigned char, shared);
    gemm<WEIGHT_Q8_0, 1, 16, 8, true>(p, shared);
}
KERNEL(gemm_wide_q8_0_128x64, GemmParams, 256) {
    SHARED(unsigned char, shared);
    gemm<WEIGHT_Q8_0, 1, 8, 8, true>(p, shared);
}
KERNEL(gemm_f16_256x128, GemmParams, 256) {
    SHARED(unsigned char, shared);
    gemm<WEIGHT_F16, 2, 16, 8, false>(p, shared);
}
KERNEL(gemm_f16_128x64, GemmParams, 128) {
    SHARED(unsigned char, shared);
    gemm<WEIGHT_F16, 2, 8, 4, false>(p, shared);
}
KERNEL(gemm_wide_f16_128x256, GemmParams, 256) {
    SHARED(unsigned char, shared);
    gemm<WEIGHT_F16, 1, 32, 8, true>(p, shared);
}
KERNEL(gemm_wide_f16_128x128, GemmParams, 256) {
    SHARED(unsigned char, shared);
    gemm<WEIGHT_F16, 1, 16, 8, true>(p, shared);
}
KERNEL(gemm_wide_f16_128x64, GemmParams, 256) {
    SHARED(unsigned char, shared);
    gemm<WEIGHT_F16, 1, 8, 8, true>(p, shared);
}
