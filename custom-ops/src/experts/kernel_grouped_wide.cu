// Experts on Hopper's matrix units: as kernel_grouped.cu, with items of up to 128 pairs, whose products are
// as wide as their pairs need. Blocks are as many as can run at once and go from tile to tile: a tile is
// 128 rows of gate and up (256 of down) of one item.
#include "../../include/cuda/experts.h"
#include "../../include/cuda/gated_unit.cuh"
#include "../../include/cuda/gemm_wide.cuh"

namespace {

constexpr uint32_t WIDE_WARPS = 8;
// Rows of a tile: two times 16 of each warp.
constexpr uint32_t WIDE_ROWS = 32 * WIDE_WARPS;

struct WideWork {
    uint32_t expert;
    uint32_t start;
    uint32_t count;
    uint32_t row_block;
};

template <class Params> DEVICE uint32_t wide_items(const Params& p) {
    return p.items == nullptr ? (p.pairs + EXPERTS_WIDE_ITEM - 1u) / EXPERTS_WIDE_ITEM : *p.item_count;
}

DEVICE WideWork wide_work(const ExpertsItem* items, uint32_t pairs, uint32_t row_blocks, uint32_t tile) {
    const uint32_t i = tile / row_blocks, row_block = tile % row_blocks;
    if (items == nullptr) {
        const uint32_t start = i * EXPERTS_WIDE_ITEM;
        return {0, start, min(EXPERTS_WIDE_ITEM, pairs - start), row_block};
    }
    const ExpertsItem item = items[i];
    return {item.expert, item.start, item.count, row_block};
}

// IQ2_XXS's tables lie before the stages of the activations.
template <uint32_t FORMAT> DEVICE uint32_t wide_table_bytes() {
    return FORMAT == WEIGHT_IQ2_XXS ? IQ2_XXS_TABLE_BYTES : 0u;
}

template <uint32_t FORMAT, uint32_t NT>
DEVICE void gate_up_tile(const ExpertsGroupedGateUpParams& p, unsigned char* shared, const WideWork& work) {
    constexpr uint32_t ROWS = WIDE_ROWS / 2u, PITCH = ROWS + 8u;
    const uint32_t* tables = reinterpret_cast<const uint32_t*>(shared);
    unsigned char* stages = shared + wide_table_bytes<FORMAT>();
    const uint32_t inter = p.gate.rows, hidden = p.gate.cols;
    const uint32_t first = work.row_block * ROWS, tile = min(first / 16u + warp_id(), inter / 16u - 1u);
    Rows16<FORMAT> rows[2];
    rows[0].aim(p.gate, work.expert, tile);
    rows[1].aim(p.up, work.expert, tile);
    const auto pair_of = [&](uint32_t n) { return p.order == nullptr ? work.start + n : p.order[work.start + n]; };
    const auto x_of = [&](uint32_t n) -> const uint16_t* {
        if (n >= work.count) return nullptr;
        return p.x + static_cast<uint64_t>((pair_of(n) & ~EXPERTS_NO_EXPERT) / p.k) * hidden;
    };
    float acc[2][NT][4] = {};
    // Its first barrier comes after the tables were filled.
    multiply_tiles_wide<FORMAT, 2, NT, WIDE_WARPS>(rows, hidden, x_of, stages, tables, acc);

    // Through shared memory, so that whole runs of halves are written.
    uint16_t* tile_h = reinterpret_cast<uint16_t*>(stages);
    const uint32_t g = lane_id() / 4u, t = lane_id() % 4u, column = warp_id() * 16u + g;
#pragma unroll
    for (uint32_t n = 0; n < NT; n++) {
#pragma unroll
        for (uint32_t j = 0; j < 2; j++) {
            const uint32_t of_tile = n * 8u + 2u * t + j;
            float weight = 1.0f;
            if (of_tile < work.count && p.weights != nullptr) {
                const uint32_t pair = pair_of(of_tile);
                weight = pair & EXPERTS_NO_EXPERT ? f32_from_bits(0x7fc00000u) : p.weights[pair];
            }
#pragma unroll
            for (uint32_t i = 0; i < 2; i++) {
                const uint32_t c = column + 8u * i;
                const float h = clamped_swiglu(acc[0][n][2u * i + j], acc[1][n][2u * i + j], p.clamp);
                tile_h[of_tile * PITCH + c / 32u * 32u + half_at(c % 32u, p.h_order)] = f32_to_f16(h * weight);
            }
        }
    }
    __syncthreads();
    const uint32_t eights = min(ROWS, inter - first) / 8u;
    for (uint32_t i = threadIdx.x; i < work.count * eights; i += blockDim.x) {
        const uint32_t n = i / eights, eight = i % eights;
        reinterpret_cast<uint4*>(p.h)[((work.start + n) * static_cast<uint64_t>(inter) + first) / 8u + eight] =
            reinterpret_cast<const uint4*>(tile_h)[n * (PITCH / 8u) + eight];
    }
    __syncthreads();
}

template <uint32_t FORMAT, uint32_t NT>
DEVICE void down_tile(const ExpertsGroupedDownParams& p, unsigned char* shared, const WideWork& work) {
    const uint32_t* tables = reinterpret_cast<const uint32_t*>(shared);
    unsigned char* stages = shared + wide_table_bytes<FORMAT>();
    const uint32_t hidden = p.down.rows, inter = p.down.cols;
    const uint32_t first = work.row_block * WIDE_ROWS + warp_id() * 32u;
    Rows16<FORMAT> rows[2];
#pragma unroll
    for (uint32_t m = 0; m < 2; m++) rows[m].aim(p.down, work.expert, min(first / 16u + m, hidden / 16u - 1u));
    const auto x_of = [&](uint32_t n) -> const uint16_t* {
        return n < work.count ? p.h + static_cast<uint64_t>(work.start + n) * inter : nullptr;
    };
    float acc[2][NT][4] = {};
    multiply_tiles_wide<FORMAT, 2, NT, WIDE_WARPS>(rows, inter, x_of, stages, tables, acc);
    const uint32_t g = lane_id() / 4u, t = lane_id() % 4u;
#pragma unroll
    for (uint32_t n = 0; n < NT; n++) {
#pragma unroll
        for (uint32_t j = 0; j < 2; j++) {
            const uint32_t of_tile = n * 8u + 2u * t + j;
            if (of_tile >= work.count) continue;
            const uint32_t sorted = work.start + of_tile;
            const uint32_t pair = p.order == nullptr ? sorted : p.order[sorted] & ~EXPERTS_NO_EXPERT;
            float* to = p.terms + static_cast<uint64_t>(pair) * hidden;
#pragma unroll
            for (uint32_t m = 0; m < 2; m++) {
#pragma unroll
                for (uint32_t i = 0; i < 2; i++) {
                    const uint32_t row = first + 16u * m + g + 8u * i;
                    if (row < hidden) to[row] = acc[m][n][2 * i + j];
                }
            }
        }
    }
}

template <uint32_t FORMAT> DEVICE bool begin(unsigned char* shared) {
    if (!HAS_WGMMA) {
        trap();
        return false;
    }
    pdl_trigger();
    if (FORMAT == WEIGHT_IQ2_XXS) fill_iq2_xxs_tables(reinterpret_cast<uint32_t*>(shared));
    pdl_wait();
    return true;
}

// The tiles of this block. (A call would keep a compiler from letting products overlap; more widths than
// these would not leave it enough registers.)
#define EACH_TILE(row_blocks, function, FORMAT)                                 \
    const uint32_t of_item = (row_blocks), tiles = wide_items(p) * of_item;     \
    for (uint32_t i = blockIdx.x; i < tiles; i += gridDim.x) {                  \
        const WideWork work = wide_work(p.items, p.pairs, of_item, i);          \
        switch ((work.count + 31u) / 32u) {                                     \
            case 1: function<FORMAT, 4>(p, shared, work); break;                \
            case 2: function<FORMAT, 8>(p, shared, work); break;                \
            case 3: function<FORMAT, 12>(p, shared, work); break;               \
            default: function<FORMAT, 16>(p, shared, work); break;              \
        }                                                                       \
    }

template <uint32_t FORMAT> DEVICE void gate_up_wide(const ExpertsGroupedGateUpParams& p, unsigned char* shared) {
    if (!begin<FORMAT>(shared)) return;
    EACH_TILE((p.gate.rows + WIDE_ROWS / 2u - 1u) / (WIDE_ROWS / 2u), gate_up_tile, FORMAT)
}

template <uint32_t FORMAT> DEVICE void down_wide(const ExpertsGroupedDownParams& p, unsigned char* shared) {
    if (!begin<FORMAT>(shared)) return;
    EACH_TILE((p.down.rows + WIDE_ROWS - 1u) / WIDE_ROWS, down_tile, FORMAT)
}

}  // namespace

// Names: format. Grid: as many blocks as can run at once. Shared memory: the tables for
// IQ2_XXS, and gemm_wide_bytes of 128 pairs.
KERNEL(experts_gate_up_wide_iq2_xxs, ExpertsGroupedGateUpParams, 256) {
    SHARED(unsigned char, shared);
    gate_up_wide<WEIGHT_IQ2_XXS>(p, shared);
}
KERNEL(experts_gate_up_wide_q4_k, ExpertsGroupedGateUpParams, 256) {
    SHARED(unsigned char, shared);
    gate_up_wide<WEIGHT_Q4_K>(p, shared);
}
KERNEL(experts_gate_up_wide_q8_0, ExpertsGroupedGateUpParams, 256) {
    SHARED(unsigned char, shared);
    gate_up_wide<WEIGHT_Q8_0>(p, shared);
}
KERNEL(experts_down_wide_q2_k, ExpertsGroupedDownParams, 256) {
    SHARED(unsigned char, shared);
    down_wide<WEIGHT_Q2_K>(p, shared);
}
KERNEL(experts_down_wide_q4_k, ExpertsGroupedDownParams, 256) {
    SHARED(unsigned char, shared);
    down_wide<WEIGHT_Q4_K>(p, shared);
}
KERNEL(experts_down_wide_q8_0, ExpertsGroupedDownParams, 256) {
    SHARED(unsigned char, shared);
    down_wide<WEIGHT_Q8_0>(p, shared);
}
