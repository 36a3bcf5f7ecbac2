// Products of one token with a weight: bound by reading the weight once.
//
// A tile of 16 rows is shared by `split` warps, each with pieces of its columns (256 of Q8_0, 128 of F16:
// 4 KB). A warp has a piece in registers, the first one before the wait for the launch before, and asks for
// the next piece's bytes as it uses this one's. Warps work without meeting, leave their sums in shared
// memory, and add up at the end, always in the same order. Weights of few rows and many columns are shared by
// the blocks of a cluster, each with a run of the columns.
//
// What a block does before its first load and after its last one is time in which memory rests: little code,
// since its instructions are read from afar too.
#include "../../include/cuda/matmul.h"

#include "../../include/cuda/cluster.cuh"
#include "../../include/cuda/matmul_tiles.cuh"
#include "../../include/cuda/pieces.cuh"
#include "../../include/cuda/reduce.cuh"
#include "../../include/cuda/sinkhorn.cuh"
#include "../../include/cuda/spread.cuh"

namespace {

// Activations in shared memory.
struct Activations {
    float* plain;      // [x_groups, cols] if there is an F16 weight
    uint32_t* quants;  // [x_groups, cols / 4]
    float* scales;     // [x_groups, cols / 32]
};

// Eight neighbouring channels of a thread, normed; `scratch` has room for a value a warp.
DEVICE void norm_x(const MatmulParams& p, float4 (&v)[2], const float4 (&weight)[2], float* scratch) {
    float sum = 0.0f;
#pragma unroll
    for (uint32_t k = 0; k < 2; k++) sum += fmaf(v[k].x, v[k].x, fmaf(v[k].y, v[k].y, fmaf(v[k].z, v[k].z, v[k].w * v[k].w)));
    const float scale = 1.0f / sqrtf(block_total(sum, scratch) / static_cast<float>(p.w[0].cols) + p.norm_eps);
#pragma unroll
    for (uint32_t k = 0; k < 2; k++) {
        v[k] = make_float4(v[k].x * scale * weight[k].x, v[k].y * scale * weight[k].y, v[k].z * scale * weight[k].z,
                           v[k].w * scale * weight[k].w);
    }
}

// The block's groups of x, or its columns: as they are, and as bytes with scales. Eight values a thread.
DEVICE void stage_x(const MatmulParams& p, const Activations& x, const float* from, uint32_t count, float* scratch) {
    constexpr uint32_t AT_ONCE = 2;
    // All threads of the block go round together where they meet.
    for (uint32_t first = threadIdx.x; first / 32u * 32u < count / 8u || (p.norm != nullptr && first < blockDim.x);
         first += AT_ONCE * blockDim.x) {
        float4 v[AT_ONCE][2];
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) {
            const uint32_t i = first + j * blockDim.x;
#pragma unroll
            for (uint32_t k = 0; k < 2; k++) {
                v[j][k] = i < count / 8u ? load_written16(from + 8u * i + 4u * k) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            }
        }
        if (p.norm != nullptr) {
            float4 weight[2] = {make_float4(0.0f, 0.0f, 0.0f, 0.0f), make_float4(0.0f, 0.0f, 0.0f, 0.0f)};
#pragma unroll
            for (uint32_t k = 0; k < 2; k++) {
                if (first < count / 8u) weight[k] = reinterpret_cast<const float4*>(p.norm)[2u * first + k];
            }
            norm_x(p, v[0], weight, scratch);
        }
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) {
            const uint32_t i = first + j * blockDim.x;
            const bool there = i < count / 8u;
            if (i / 32u * 32u >= count / 8u) break;
            if (p.has_f16 && there) {
                reinterpret_cast<float4*>(x.plain)[2u * i] = v[j][0];
                reinterpret_cast<float4*>(x.plain)[2u * i + 1u] = v[j][1];
            }
            if (p.has_q8_0) {
                float scale;
                const uint2 bytes = quantize8_shared_scale(v[j][0], v[j][1], scale);
                if (there) reinterpret_cast<uint2*>(x.quants)[i] = bytes;
                if (there && i % 4u == 0u) x.scales[i / 4u] = scale;
            }
        }
    }
}

// Where a lane's part of a piece is. Of F16 rows `lane / 16 + 2 i` of the tile and columns `lane % 16 · 8 ..+8`
// of the piece: whole lines of memory, and the same of x for all rows.
DEVICE Source aim_one(const Weight& w, uint32_t tile, uint32_t index) {
    if (w.format != WEIGHT_F16) return aim(w, tile, index);
    const uint32_t lane = lane_id(), row = tile * 16u + lane / 16u, column = index * 128u + lane % 16u * 8u;
    const uint32_t rows = row < w.rows && column < w.cols ? min((w.rows - row + 1u) / 2u, 8u) : 0u;
    Source from;
    from.q = w.plane[0] + (static_cast<uint64_t>(row) * w.cols + column) * 2u;
    from.s = from.q;
    from.row_step = 4u * w.cols;
    from.mask = (1u << rows) - 1u;
    return from;
}

DEVICE uint4 fetch_one(const Source& from, uint32_t i) {
    const uint32_t step = from.row_step ? from.row_step : Q8_0_TILE_BYTES;
    return from.mask >> i & 1u ? load_weights16(from.q + i * step) : make_uint4(0, 0, 0, 0);
}

DEVICE void fetch_all_one(Piece& piece, const Source& from) {
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) piece.q[i] = fetch_one(from, i);
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) piece.s[i] = fetch_scales(from, i);
}

// A piece of F16 times the lane's columns of x, and the next one in its place.
DEVICE void multiply_f16(Piece& piece, const Source& next, const float* x, float (&sum)[8]) {
    const float4 x0 = reinterpret_cast<const float4*>(x)[0], x1 = reinterpret_cast<const float4*>(x)[1];
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) {
        const uint4 q = piece.q[i];
        piece.q[i] = fetch_one(next, i);
        const float2 a = unpack_f16x2(q.x), b = unpack_f16x2(q.y), c = unpack_f16x2(q.z), d = unpack_f16x2(q.w);
        const float low = fmaf(a.x, x0.x, fmaf(a.y, x0.y, fmaf(b.x, x0.z, b.y * x0.w)));
        const float high = fmaf(c.x, x1.x, fmaf(c.y, x1.y, fmaf(d.x, x1.z, d.y * x1.w)));
        sum[i] += low + high;
    }
    piece.s[0] = fetch_scales(next, 0);
    piece.s[1] = fetch_scales(next, 1);
}

// Sums of a tile's 16 rows, of all lanes, to memory. Fixed order.
DEVICE void leave_f16(const float (&sum)[8], float* to) {
    const uint32_t lane = lane_id();
    float four[4], two[2];
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const bool upper = lane & 8u;
        four[i] = (upper ? sum[4 + i] : sum[i]) + shuffle_xor(upper ? sum[i] : sum[4 + i], 8u);
    }
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const bool upper = lane & 4u;
        two[i] = (upper ? four[2 + i] : four[i]) + shuffle_xor(upper ? four[i] : four[2 + i], 4u);
    }
    const bool upper = lane & 2u;
    float one = (upper ? two[1] : two[0]) + shuffle_xor(upper ? two[0] : two[1], 2u);
    one += shuffle_xor(one, 1u);
    const uint32_t i = lane / 8u % 2u * 4u + lane / 4u % 2u * 2u + lane / 2u % 2u;
    if (lane % 2u == 0u) to[2u * i + lane / 16u] = one;
}

DEVICE void leave_q8_0(const float (&sum)[8], float* to) {
    const uint32_t lane = lane_id();
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        float s = sum[r];
        s += shuffle_xor(s, 1u);
        s += shuffle_xor(s, 2u);
        if (lane % 4u == 0u) to[lane / 4u + 8u * r] = s;
    }
}

// Pieces of a tile's columns: the first one of the block, and how many.
struct Stretch {
    uint32_t first, count;
};
DEVICE Stretch stretch_of(const MatmulParams& p, const Tile& at, const Columns& columns) {
    const uint32_t shift = is_f16(p, at) ? 7u : 8u;
    return {columns.first >> shift, (columns.count + (1u << shift) - 1u) >> shift};
}

DEVICE void matmul_one(const MatmulParams& p, unsigned char* shared) {
    const uint32_t warp = warp_id(), lane = lane_id(), size = cluster_size();
    const bool errand = p.errand.mix != nullptr;
    const uint32_t block = blockIdx.x / size, of_grid = gridDim.x / size - (errand ? 1u : 0u);
    if (block == of_grid) {
        pdl_wait();
        pdl_trigger();
        run_errand(p.errand);
        return;
    }
    const uint32_t cols = p.w[0].cols;
    const Columns columns = columns_of_block(p);
    const Parts parts(p);
    const Run run = parts.run(block, of_grid);
    const uint32_t shift = bit_count(p.split - 1u), slots = MATMUL_WARPS >> shift, slot = warp >> shift, share = warp & (p.split - 1u);

    // The flat sequence of this warp's pieces: tile after tile, each `split` pieces apart.
    Tile at = parts.find(run.first + slot);
    Stretch stretch = stretch_of(p, at, columns);
    Piece now;
    fetch_all_one(now, run.first + slot < run.last && share < stretch.count ? aim_one(p.w[at.part], at.tile, stretch.first + share) : nowhere());

    const uint32_t group_tiles = p.w[0].rows / p.groups / 16u;
    const uint32_t first_group = p.groups == 1u ? 0u : run.first / group_tiles;
    const uint32_t room = p.x_groups * p.block_cols;
    Activations x;
    x.plain = reinterpret_cast<float*>(shared);
    x.quants = reinterpret_cast<uint32_t*>(x.plain + (p.has_f16 ? room : 0u));
    x.scales = reinterpret_cast<float*>(x.quants + (p.has_q8_0 ? room / 4u : 0u));
    float* sums = x.scales + (p.has_q8_0 ? room / 32u : 0u);  // [rounds, warps, 16]
    const bool spreads = p.spread.state != nullptr;
    const uint32_t first_row = run.first * 16u, rows = (run.last - run.first) * 16u;
    const SpreadRoom spread = spread_room(sums + p.rounds * MATMUL_WARPS * 16u, rows);
    // What the launch before only stands beside can be waited for at the end.
    const bool early = p.norm != nullptr;
    if (!early) {
        pdl_wait();
        // Only now, so that the kernel after may read before its wait what the one before has written: it finds
        // no room earlier anyway.
        pdl_trigger();
    }
    if (spreads) spread_begin(p.spread, spread, first_row, rows);
    stage_x(p, x, p.x + static_cast<uint64_t>(first_group) * cols + columns.first,
            p.groups == 1u ? columns.count : min(p.x_groups, p.groups - first_group) * cols, sums);
    __syncthreads();

    for (uint32_t start = run.first; start < run.last; start += slots * p.rounds) {
        for (uint32_t round = 0; round < p.rounds; round++) {
            const uint32_t mine = start + round * slots + slot;
            if (mine >= run.last) break;
            float sum[8] = {};
            const uint32_t local = p.groups == 1u ? 0u : at.tile / group_tiles - first_group;
            const bool f16 = is_f16(p, at), ahead = mine + slots < run.last;
            const uint32_t pieces = stretch.count;
            uint32_t piece = share;
            bool more;
            do {
                // The next piece of this tile, or the first of this warp's next one.
                const uint32_t current = piece;
                more = piece + p.split < pieces;
                piece = more ? piece + p.split : share;
                if (!more && ahead) {
                    at = parts.find(mine + slots);
                    stretch = stretch_of(p, at, columns);
                }
                const Source next = more || (ahead && share < stretch.count) ? aim_one(p.w[at.part], at.tile, stretch.first + piece) : nowhere();
                if (current >= pieces) {
                    // Fewer pieces than warps.
                    fetch_all_one(now, next);
                } else if (f16) {
                    const uint32_t column = min(current * 128u + lane % 16u * 8u, columns.count - 8u);
                    multiply_f16(now, next, x.plain + local * cols + column, sum);
                } else {
                    const uint32_t first = local * (cols / 32u) + current * 8u;
                    const auto fetch_next = [&next](uint32_t i) { return fetch_one(next, i); };
                    multiply_1(now, fetch_next, next, x.quants + first * 8u, x.scales + first, columns.count / 32u - current * 8u, sum);
                }
            } while (more);
            float* to = sums + (round * MATMUL_WARPS + warp) * 16u;
            if (f16) {
                leave_f16(sum, to);
            } else {
                leave_q8_0(sum, to);
            }
        }
        if (early && start == run.first) {
            pdl_wait();
            pdl_trigger();
        }
        cluster_sync();
        // A sum's parts are neighbouring lanes' (their number is a power of two).
        const uint32_t values = min(run.last - start, slots * p.rounds) * 16u;
        for (uint32_t from = 0; cluster_rank() == 0 && from < values << shift; from += blockDim.x) {
            const uint32_t i = from + threadIdx.x, part = i & (p.split - 1u), value = i >> shift;
            float s = 0.0f;
            for (uint32_t b = 0; value < values && b < size; b++) {
                s += cluster_shared(sums, b)[(value / 16u << shift << 4u) + part * 16u + value % 16u];
            }
            for (uint32_t mask = 1; mask < p.split; mask *= 2u) s += shuffle_xor(s, mask);
            // All lanes look it up together; a lane without a value the last one.
            const Tile tile = parts.find_own(start + min(value, values - 1u) / 16u);
            if (part != 0 || value >= values) continue;
            const uint32_t row = tile.tile * 16u + value % 16u;
            if (spreads) {
                spread.y[row - first_row] = s;
            } else if (row < p.w[tile.part].rows) {
                p.out[tile.part][row] = s;
            }
        }
        // Sums stay until they have been read.
        if (size != 1u || start + slots * p.rounds < run.last) cluster_sync();
    }
    if (!spreads) return;
    copy_wait<0>();
    __syncthreads();
    spread_end(p.spread, spread, first_row, rows);
}

}  // namespace

// Shared memory: x, sums, and room to spread the rows.
KERNEL(matmul_1, MatmulParams, 512) {
    SHARED(unsigned char, shared);
    matmul_one(p, shared);
}
