// Experts on the matrix units: pairs of token and slot that go to the same expert are multiplied
// together, 8 NT at a time, so that a weight is decoded once for all of them.
//
// A block has 128 rows (gate and up, or 256 rows of down) and one item: one expert, some pairs.
#include "../../include/cuda/experts.h"
#include "../../include/cuda/gated_unit.cuh"
#include "../../include/cuda/gemm.cuh"

namespace {

constexpr uint32_t GROUPED_WARPS = 8;

struct Work {
    uint32_t expert;
    uint32_t start;
    uint32_t count;
};

// The item of this block; false if there is none.
template <uint32_t NT>
DEVICE bool find_work(const ExpertsItem* items, const uint32_t* item_count, uint32_t pairs, Work& work) {
    if (items == nullptr) {
        work = {0, blockIdx.y * (8u * NT), 0};
        if (work.start >= pairs) return false;
        work.count = min(8u * NT, pairs - work.start);
        return true;
    }
    if (blockIdx.y >= *item_count) return false;
    const ExpertsItem item = items[blockIdx.y];
    work = {item.expert, item.start, item.count};
    return true;
}

// The tables of IQ2_XXS, if the format needs them, then the stages of the activations.
template <uint32_t FORMAT> DEVICE uint32_t table_bytes() {
    return FORMAT == WEIGHT_IQ2_XXS ? IQ2_XXS_TABLE_BYTES : 0u;
}

template <uint32_t FORMAT, uint32_t NT>
DEVICE void gate_up(const ExpertsGroupedGateUpParams& p, unsigned char* shared) {
    uint32_t* tables = reinterpret_cast<uint32_t*>(shared);
    unsigned char* stages = shared + table_bytes<FORMAT>();
    pdl_trigger();
    if (FORMAT == WEIGHT_IQ2_XXS) fill_iq2_xxs_tables(tables);
    pdl_wait();
    Work work;
    if (!find_work<NT>(p.items, p.item_count, p.pairs, work)) return;
    const uint32_t inter = p.gate.rows, hidden = p.gate.cols;
    const uint32_t first = blockIdx.x * (16u * GROUPED_WARPS), tile = min(first / 16u + warp_id(), inter / 16u - 1u);
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
    multiply_tiles<FORMAT, 2, NT, GROUPED_WARPS>(rows, hidden, x_of, stages, tables, acc);

    // Through shared memory, so that whole runs of halves are written.
    uint16_t* tile_h = reinterpret_cast<uint16_t*>(stages);
    const uint32_t g = lane_id() / 4u, t = lane_id() % 4u, columns = 16u * GROUPED_WARPS;
#pragma unroll
    for (uint32_t n = 0; n < NT; n++) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t of_block = n * 8u + 2u * t + i % 2u;
            float weight = 1.0f;
            if (of_block < work.count && p.weights != nullptr) {
                const uint32_t pair = pair_of(of_block);
                weight = pair & EXPERTS_NO_EXPERT ? f32_from_bits(0x7fc00000u) : p.weights[pair];
            }
            const uint32_t column = warp_id() * 16u + g + i / 2u * 8u;
            tile_h[of_block * columns + column / 32u * 32u + half_at(column % 32u, p.h_order)] =
                f32_to_f16(clamped_swiglu(acc[0][n][i], acc[1][n][i], p.clamp) * weight);
        }
    }
    __syncthreads();
    const uint32_t eights = min(columns, inter - first) / 8u;
    for (uint32_t i = threadIdx.x; i < work.count * eights; i += blockDim.x) {
        const uint32_t n = i / eights, eight = i % eights;
        reinterpret_cast<uint4*>(p.h)[((work.start + n) * static_cast<uint64_t>(inter) + first) / 8u + eight] =
            reinterpret_cast<const uint4*>(tile_h)[n * (columns / 8u) + eight];
    }
}

template <uint32_t FORMAT, uint32_t NT>
DEVICE void down(const ExpertsGroupedDownParams& p, unsigned char* shared) {
    uint32_t* tables = reinterpret_cast<uint32_t*>(shared);
    unsigned char* stages = shared + table_bytes<FORMAT>();
    pdl_trigger();
    if (FORMAT == WEIGHT_IQ2_XXS) fill_iq2_xxs_tables(tables);
    pdl_wait();
    Work work;
    if (!find_work<NT>(p.items, p.item_count, p.pairs, work)) return;
    const uint32_t hidden = p.down.rows, inter = p.down.cols;
    const uint32_t first = (blockIdx.x * GROUPED_WARPS + warp_id()) * 32u;
    Rows16<FORMAT> rows[2];
#pragma unroll
    for (uint32_t m = 0; m < 2; m++) rows[m].aim(p.down, work.expert, min(first / 16u + m, hidden / 16u - 1u));
    const auto x_of = [&](uint32_t n) -> const uint16_t* {
        return n < work.count ? p.h + static_cast<uint64_t>(work.start + n) * inter : nullptr;
    };
    float acc[2][NT][4] = {};
    multiply_tiles<FORMAT, 2, NT, GROUPED_WARPS>(rows, inter, x_of, stages, tables, acc);
    const uint32_t g = lane_id() / 4u, t = lane_id() % 4u;
#pragma unroll
    for (uint32_t n = 0; n < NT; n++) {
#pragma unroll
        for (uint32_t j = 0; j < 2; j++) {
            const uint32_t of_block = n * 8u + 2u * t + j;
            if (of_block >= work.count) continue;
            const uint32_t sorted = work.start + of_block;
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

}  // namespace

// Names: format, pairs of an item. Grid: rows / 128 (down: rows / 256) by items. Shared memory: the
// tables for IQ2_XXS, and 512 bytes for each pair.
KERNEL(experts_gate_up_iq2_xxs_8, ExpertsGroupedGateUpParams, 256) {
    SHARED(unsigned char, shared);
    gate_up<WEIGHT_IQ2_XXS, 1>(p, shared);
}
KERNEL(experts_gate_up_iq2_xxs_32, ExpertsGroupedGateUpParams, 256) {
    SHARED(unsigned char, shared);
    gate_up<WEIGHT_IQ2_XXS, 4>(p, shared);
}
KERNEL(experts_gate_up_iq2_xxs_64, ExpertsGroupedGateUpParams, 256) {
    SHARED(unsigned char, shared);
    gate_up<WEIGHT_IQ2_XXS, 8>(p, shared);
}
KERNEL(experts_gate_up_q2_k_8, ExpertsGroupedGateUpParams, 256) {
    SHARED(unsigned char, shared);
    gate_up<WEIGHT_Q2_K, 1>(p, shared);
}
KERNEL(experts_gate_up_q2_k_32, ExpertsGroupedGateUpParams, 256) {
    SHARED(unsigned char, shared);
    gate_up<WEIGHT_Q2_K, 4>(p, shared);
}
KERNEL(experts_gate_up_q2_k_64, ExpertsGroupedGateUpParams, 256) {
    SHARED(unsigned char, shared);
    gate_up<WEIGHT_Q2_K, 8>(p, shared);
}
KERNEL(experts_gate_up_q4_k_8, ExpertsGroupedGateUpParams, 256) {
    SHARED(unsigned char, shared);
    gate_up<WEIGHT_Q4_K, 1>(p, shared);
}
KERNEL(experts_gate_up_q4_k_32, ExpertsGroupedGateUpParams, 256) {
    SHARED(unsigned char, shared);
    gate_up<WEIGHT_Q4_K, 4>(p, shared);
}
KERNEL(experts_gate_up_q4_k_64, ExpertsGroupedGateUpParams, 256) {
    SHARED(unsigned char, shared);
    gate_up<WEIGHT_Q4_K, 8>(p, shared);
}
KERNEL(experts_gate_up_q8_0_8, ExpertsGroupedGateUpParams, 256) {
    SHARED(unsigned char, shared);
    gate_up<WEIGHT_Q8_0, 1>(p, shared);
}
KERNEL(experts_gate_up_q8_0_32, ExpertsGroupedGateUpParams, 256) {
    SHARED(unsigned char, shared);
    gate_up<WEIGHT_Q8_0, 4>(p, shared);
}
KERNEL(experts_gate_up_q8_0_64, ExpertsGroupedGateUpParams, 256) {
    SHARED(unsigned char, shared);
    gate_up<WEIGHT_Q8_0, 8>(p, shared);
}
KERNEL(experts_gate_up_f16_8, ExpertsGroupedGateUpParams, 256) {
    SHARED(unsigned char, shared);
    gate_up<WEIGHT_F16, 1>(p, shared);
}
KERNEL(experts_gate_up_f16_32, ExpertsGroupedGateUpParams, 256) {
    SHARED(unsigned char, shared);
    gate_up<WEIGHT_F16, 4>(p, shared);
}
KERNEL(experts_gate_up_f16_64, ExpertsGroupedGateUpParams, 256) {
    SHARED(unsigned char, shared);
    gate_up<WEIGHT_F16, 8>(p, shared);
}
KERNEL(experts_down_iq2_xxs_8, ExpertsGroupedDownParams, 256) {
    SHARED(unsigned char, shared);
    down<WEIGHT_IQ2_XXS, 1>(p, shared);
}
KERNEL(experts_down_iq2_xxs_32, ExpertsGroupedDownParams, 256) {
    SHARED(unsigned char, shared);
    down<WEIGHT_IQ2_XXS, 4>(p, shared);
}
KERNEL(experts_down_iq2_xxs_64, ExpertsGroupedDownParams, 256) {
    SHARED(unsigned char, shared);
    down<WEIGHT_IQ2_XXS, 8>(p, shared);
}
KERNEL(experts_down_q2_k_8, ExpertsGroupedDownParams, 256) {
    SHARED(unsigned char, shared);
    down<WEIGHT_Q2_K, 1>(p, shared);
}
KERNEL(experts_down_q2_k_32, ExpertsGroupedDownParams, 256) {
    SHARED(unsigned char, shared);
    down<WEIGHT_Q2_K, 4>(p, shared);
}
KERNEL(experts_down_q2_k_64, ExpertsGroupedDownParams, 256) {
    SHARED(unsigned char, shared);
    down<WEIGHT_Q2_K, 8>(p, shared);
}
KERNEL(experts_down_q4_k_8, ExpertsGroupedDownParams, 256) {
    SHARED(unsigned char, shared);
    down<WEIGHT_Q4_K, 1>(p, shared);
}
KERNEL(experts_down_q4_k_32, ExpertsGroupedDownParams, 256) {
    SHARED(unsigned char, shared);
    down<WEIGHT_Q4_K, 4>(p, shared);
}
KERNEL(experts_down_q4_k_64, ExpertsGroupedDownParams, 256) {
    SHARED(unsigned char, shared);
    down<WEIGHT_Q4_K, 8>(p, shared);
}
KERNEL(experts_down_q8_0_8, ExpertsGroupedDownParams, 256) {
    SHARED(unsigned char, shared);
    down<WEIGHT_Q8_0, 1>(p, shared);
}
KERNEL(experts_down_q8_0_32, ExpertsGroupedDownParams, 256) {
    SHARED(unsigned char, shared);
    down<WEIGHT_Q8_0, 4>(p, shared);
}
KERNEL(experts_down_q8_0_64, ExpertsGroupedDownParams, 256) {
    SHARED(unsigned char, shared);
    down<WEIGHT_Q8_0, 8>(p, shared);
}
KERNEL(experts_down_f16_8, ExpertsGroupedDownParams, 256) {
    SHARED(unsigned char, shared);
    down<WEIGHT_F16, 1>(p, shared);
}
KERNEL(experts_down_f16_32, ExpertsGroupedDownParams, 256) {
    SHARED(unsigned char, shared);
    down<WEIGHT_F16, 4>(p, shared);
}
KERNEL(experts_down_f16_64, ExpertsGroupedDownParams, 256) {
    SHARED(unsigned char, shared);
    down<WEIGHT_F16, 8>(p, shared);
}
