// Products of 2 to 32 tokens with a weight: bound by reading the weight once.
//
// A tile of 16 rows is shared by `split` warps, each with pieces of its columns (256 of Q8_0, 128 of
// F16: 4 KB). A block has a run of tiles; its warps work through them without meeting, leave their
// sums in shared memory, and add up at the end, always in the same order. Weights of few rows and many
// columns are shared by the blocks of a cluster, each with a run of the columns.
#include "../../include/cuda/matmul.h"

#include "../../include/cuda/cluster.cuh"
#include "../../include/cuda/matmul_tiles.cuh"
#include "../../include/cuda/mma.cuh"
#include "../../include/cuda/pieces.cuh"
#include "../../include/cuda/sinkhorn.cuh"

namespace {

// Pieces of a tile's columns: the first one, and how many.
DEVICE uint32_t first_piece(const MatmulParams& p, const Tile& at, const Columns& columns) {
    return columns.first / (is_f16(p, at) ? 128u : 256u);
}
DEVICE uint32_t pieces_of(const MatmulParams& p, const Tile& at, const Columns& columns) {
    return is_f16(p, at) ? (columns.count + 127u) / 128u : (columns.count + 255u) / 256u;
}

// Bytes of all tokens, in the order of `quantize_rows`: those of a block of 32 columns and its scales are
// `8 NT` tokens together.
struct Quantized {
    const uint2* quants;
    const float2* scales;
};

// The quants and scales of the block's columns, or groups, copied to shared memory in the background. What
// is missing of the last piece has zero weights, which want a number as scale.
template <uint32_t NT>
DEVICE Quantized stage_x(const MatmulParams& p, unsigned char* shared, uint32_t first_group, const Columns& columns) {
    const uint32_t blocks = p.w[0].cols / 32u, from = first_group * blocks + columns.first / 32u;
    const uint32_t count = p.groups == 1u ? columns.count / 32u : min(p.x_groups, p.groups - first_group) * blocks;
    const uint32_t room = (p.x_groups * p.block_cols / 32u + 7u) / 8u * 8u;
    uint4* quants = reinterpret_cast<uint4*>(shared);
    uint4* scales = quants + room * (NT * 16u);
    const uint4* quants_from = reinterpret_cast<const uint4*>(p.quants) + from * (NT * 16u);
    const uint4* scales_from = reinterpret_cast<const uint4*>(p.scales) + from * (NT * 2u);
    for (uint32_t i = threadIdx.x; i < count * (NT * 16u); i += blockDim.x) copy16_async(quants + i, quants_from + i);
    for (uint32_t i = threadIdx.x; i < room * (NT * 2u); i += blockDim.x) {
        const bool there = i < count * (NT * 2u);
        copy16_async_or_zero(scales + i, there ? scales_from + i : scales_from, there);
    }
    copy_commit();
    return {reinterpret_cast<const uint2*>(quants), reinterpret_cast<const float2*>(scales)};
}

// Where a block's tile keeps value `token · 16 + row`: so that the lanes of a product, which have rows
// of every other token, write to different banks.
DEVICE uint32_t sum_at(uint32_t value) { return value ^ (value >> 5 & 1u) << 3 ^ (value >> 6 & 1u) << 4; }

// Up to 8 NT tokens, eight to a matrix product. `x` is that of the first block of the piece, `there` how
// many blocks of x there are from it on.
template <uint32_t NT>
DEVICE void multiply_many(const MatmulParams& p, Piece& piece, const Source& next, bool f16, uint32_t index,
                          uint32_t blocks, uint32_t group, const Quantized& x_quants, uint32_t there,
                          float (&sum)[NT][4]) {
    const uint32_t lane = lane_id(), g = lane / 4u, t = lane % 4u;
    if (f16) {
        const uint32_t width = p.groups * p.w[0].cols;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t block = min(index * 4u + i, blocks - 1u);
            const uint4 q0 = piece.q[2 * i], q1 = piece.q[2 * i + 1];
            const uint32_t a0[4] = {q0.x, q1.x, q0.y, q1.y}, a1[4] = {q0.z, q1.z, q0.w, q1.w};
            piece.q[2 * i] = fetch(next, 2 * i);
            piece.q[2 * i + 1] = fetch(next, 2 * i + 1);
#pragma unroll
            for (uint32_t n = 0; n < NT; n++) {
                const uint32_t token = n * 8u + g;
                float4 x[2];
                x[0] = x[1] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (token < p.tokens) {
                    const float* from = p.x + static_cast<uint64_t>(token) * width +
                                        group * p.w[0].cols + block * 32u + t * 8u;
                    x[0] = reinterpret_cast<const float4*>(from)[0];
                    x[1] = reinterpret_cast<const float4*>(from)[1];
                }
                // A half and the half of what it leaves out: together 22 bits of x.
#pragma unroll
                for (uint32_t h = 0; h < 2; h++) {
                    const uint32_t high0 = pack_f16x2(x[h].x, x[h].y), high1 = pack_f16x2(x[h].z, x[h].w);
                    const float2 y0 = unpack_f16x2(high0), y1 = unpack_f16x2(high1);
                    const uint32_t low0 = pack_f16x2(x[h].x - y0.x, x[h].y - y0.y);
                    const uint32_t low1 = pack_f16x2(x[h].z - y1.x, x[h].w - y1.y);
                    mma_m16n8k16_f16(sum[n], h == 0 ? a0 : a1, high0, high1);
                    mma_m16n8k16_f16(sum[n], h == 0 ? a0 : a1, low0, low1);
                }
            }
        }
    } else {
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t block = min(i, there - 1u);
            const uint4 q = piece.q[i];
            piece.q[i] = fetch(next, i);
            const uint32_t a[4] = {q.x, q.y, q.z, q.w};
            const float2 w = unpack_f16x2(word(piece.s[i / 4u], i % 4u));
#pragma unroll
            for (uint32_t n = 0; n < NT; n++) {
                const uint32_t eight = block * NT + n;
                const uint2 b = x_quants.quants[eight * 32u + lane];
                const float2 scale = x_quants.scales[eight * 4u + t];
                int32_t c[4];
                mma_m16n8k32_s8(c, a, b.x, b.y);
                sum[n][0] = fmaf(static_cast<float>(c[0]), w.x * scale.x, sum[n][0]);
                sum[n][1] = fmaf(static_cast<float>(c[1]), w.x * scale.y, sum[n][1]);
                sum[n][2] = fmaf(static_cast<float>(c[2]), w.y * scale.x, sum[n][2]);
                sum[n][3] = fmaf(static_cast<float>(c[3]), w.y * scale.y, sum[n][3]);
            }
            if (i % 4u == 3u) piece.s[i / 4u] = fetch_scales(next, i / 4u);
        }
    }
    if (f16) {
        piece.s[0] = fetch_scales(next, 0);
        piece.s[1] = fetch_scales(next, 1);
    }
}

template <uint32_t NT, bool STAGED>
DEVICE void matmul_few(const MatmulParams& p, unsigned char* shared) {
    constexpr uint32_t TOKENS = 8u * NT;
    const uint32_t warp = warp_id(), lane = lane_id(), g = lane / 4u, t = lane % 4u;
    const uint32_t cols = p.w[0].cols, size = cluster_size();
    const bool errand = p.errand.mix != nullptr;
    const uint32_t block = blockIdx.x / size, of_grid = gridDim.x / size - (errand ? 1u : 0u);
    if (block == of_grid) {
        pdl_trigger();
        pdl_wait();
        run_errand(p.errand);
        return;
    }
    const Columns columns = columns_of_block(p);
    const Parts parts(p);
    const Run run = parts.run(block, of_grid);
    const uint32_t first = run.first, last = run.last;
    const uint32_t slots = MATMUL_WARPS / p.split, slot = warp / p.split, share = warp % p.split;
    const uint32_t group_tiles = p.w[0].rows / p.groups / 16u;

    pdl_trigger();
    // The flat sequence of this warp's pieces: tile after tile, each `split` pieces apart.
    Tile at = parts.find(first + slot);
    Piece now;
    fetch_all(now, first + slot < last && share < pieces_of(p, at, columns)
                       ? aim(p.w[at.part], at.tile, first_piece(p, at, columns) + share)
                       : nowhere());
    pdl_wait();

    const uint32_t first_group = p.groups == 1u ? 0u : first / group_tiles;
    float* sums = reinterpret_cast<float*>(shared);
    // Of many tokens: in shared memory from this block's first column on, or in global memory.
    Quantized many = {reinterpret_cast<const uint2*>(p.quants), reinterpret_cast<const float2*>(p.scales)};
    if constexpr (STAGED) {
        many = stage_x<NT>(p, shared, first_group, columns);
        const uint32_t room = (p.x_groups * p.block_cols / 32u + 7u) / 8u * 8u;
        sums = reinterpret_cast<float*>(shared + room * (NT * 288u));
        copy_wait<0>();
        __syncthreads();
    }

    for (uint32_t start = first; start < last; start += slots * p.rounds) {
        for (uint32_t round = 0; round < p.rounds; round++) {
            const uint32_t mine = start + round * slots + slot;
            if (mine >= last) break;
            float sum[NT][4] = {};
            const uint32_t group = p.groups == 1u ? 0u : at.tile / group_tiles;
            const bool f16 = is_f16(p, at), ahead = mine + slots < last;
            const uint32_t pieces = pieces_of(p, at, columns), from = first_piece(p, at, columns);
            uint32_t piece = share;
            bool more;
            do {
                // The next piece of this tile, or the first of this warp's next one.
                const uint32_t current = piece;
                more = piece + p.split < pieces;
                piece = more ? piece + p.split : share;
                if (!more && ahead) at = parts.find(mine + slots);
                const Source next = more || (ahead && share < pieces_of(p, at, columns))
                                        ? aim(p.w[at.part], at.tile, first_piece(p, at, columns) + piece)
                                        : nowhere();
                if (current >= pieces) {
                    // Fewer pieces than warps.
                    fetch_all(now, next);
                } else {
                    const uint32_t block = STAGED ? (group - first_group) * (cols / 32u) + current * 8u
                                                  : group * (cols / 32u) + (from + current) * 8u;
                    const uint32_t there = STAGED ? 8u : cols / 32u - min((from + current) * 8u, cols / 32u - 1u);
                    const Quantized of_piece = {many.quants + block * (NT * 32u), many.scales + block * (NT * 4u)};
                    multiply_many<NT>(p, now, next, f16, from + current, cols / 32u, group, of_piece, there, sum);
                }
            } while (more);
            float* to = sums + (round * MATMUL_WARPS + warp) * (16u * TOKENS);
#pragma unroll
            for (uint32_t n = 0; n < NT; n++) {
#pragma unroll
                for (uint32_t i = 0; i < 4; i++) {
                    to[sum_at((n * 8u + 2u * t + i % 2u) * 16u + g + 8u * (i / 2u))] = sum[n][i];
                }
            }
        }
        cluster_sync();
        const uint32_t here = min(last - start, slots * p.rounds);
        for (uint32_t i = threadIdx.x; cluster_rank() == 0 && i < here * 16u * TOKENS; i += blockDim.x) {
            const uint32_t tile_here = i / (16u * TOKENS), value = i % (16u * TOKENS);
            float s = 0.0f;
            for (uint32_t b = 0; b < size; b++) {
                const float* from = cluster_shared(sums, b) + tile_here * p.split * (16u * TOKENS) + sum_at(value);
                for (uint32_t w = 0; w < p.split; w++) s += from[w * (16u * TOKENS)];
            }
            const Tile tile = parts.find_own(start + tile_here);
            const uint32_t row = tile.tile * 16u + value % 16u, token = value / 16u;
            const uint32_t rows = p.w[tile.part].rows;
            if (row < rows && token < p.tokens) p.out[tile.part][static_cast<uint64_t>(token) * rows + row] = s;
        }
        // Sums stay until they have been read.
        cluster_sync();
    }
}

}  // namespace

KERNEL(matmul_8, MatmulParams, 512) {
    SHARED(unsigned char, shared);
    if (p.staged) {
        matmul_few<1, true>(p, shared);
    } else {
        matmul_few<1, false>(p, shared);
    }
}
KERNEL(matmul_16, MatmulParams, 512) {
    SHARED(unsigned char, shared);
    if (p.staged) {
        matmul_few<2, true>(p, shared);
    } else {
        matmul_few<2, false>(p, shared);
    }
}
KERNEL(matmul_32, MatmulParams, 512) {
    SHARED(unsigned char, shared);
    if (p.staged) {
        matmul_few<4, true>(p, shared);
    } else {
        matmul_few<4, false>(p, shared);
    }
}

// A warp makes four blocks of 32 columns of a row at a time.
KERNEL(quantize_rows, QuantizeRowsParams, 256) {
    pdl_trigger();
    pdl_wait();
    const uint32_t blocks = p.width / 32u, lane = lane_id(), in_block = lane % 8u;
    const uint32_t fours = (blocks + 3u) / 4u;
    const uint32_t warp = blockIdx.x * (blockDim.x / 32u) + warp_id();
    if (warp >= fours * p.padded) return;
    const uint32_t token = warp / fours, block = warp % fours * 4u + lane / 8u;
    const bool there = token < p.tokens && block < blocks;
    const float4 v = there ? reinterpret_cast<const float4*>(
                                 p.x + static_cast<uint64_t>(token) * p.width)[block * 8u + in_block]
                           : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float scale;
    const uint32_t four = quantize_shared_scale(v, scale);
    if (block < blocks) {
        const uint64_t at = static_cast<uint64_t>(block) * p.padded + token;
        uint32_t* to = reinterpret_cast<uint32_t*>(p.quants + at * 32u);
        to[in_block % 4u * 2u + in_block / 4u] = four;
        if (in_block == 0) p.scales[at] = scale;
    }
}

// A thread makes eight halves.
KERNEL(halve_rows, HalveRowsParams, 256) {
    pdl_trigger();
    pdl_wait();
    const uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= p.tokens * (p.width / 8u)) return;
    const uint64_t block = i / 4u;
    const uint32_t q = static_cast<uint32_t>(i % 4u);
    const float* x = p.x + block * 32u;
    // Two columns after two.
    const bool q8_0 = p.order == HALVES_FOR_Q8_0 || p.order == HALVES_OF_Q8_0_FOR_WGMMA;
    const bool wgmma = p.order >= HALVES_FOR_WGMMA;
    uint32_t two[4];
#pragma unroll
    for (uint32_t v = 0; v < 4; v++) {
        const uint32_t at = wgmma ? 8u * v + 2u * q : 8u * q + 2u * v;
        const uint32_t column = q8_0 ? at % 8u / 4u * 16u + at / 8u * 4u + at % 4u : at;
        const float2 pair = *reinterpret_cast<const float2*>(x + column);
        two[v] = pack_f16x2(pair.x, pair.y);
    }
    reinterpret_cast<uint4*>(p.halves)[i] = make_uint4(two[0], two[1], two[2], two[3]);
}
