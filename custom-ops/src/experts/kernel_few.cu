// The experts of a few tokens. Most experts get one token or two, too few for the matrix units: a warp
// decodes a row once, and multiplies it with the bytes of all tokens of its item.
//
// The rows of all items, one after the other, are cut into as many runs as there are warps, of equal
// cost, so that no warp waits for another. The shared expert, which all tokens take, goes through the
// matrix units: of gate and up, the warps of a block share a tile's columns; a tile of down is one warp's,
// which gets fewer rows.
#include "../../include/cuda/experts.h"
#include "../../include/cuda/gated_unit.cuh"
#include "../../include/cuda/gemm.cuh"
#include "../../include/cuda/pieces.cuh"

namespace few {

constexpr uint32_t HIDDEN = 4096;
constexpr uint32_t INTER = 2048;
constexpr uint32_t WARPS = 16;
constexpr uint32_t OF_ITEM = EXPERTS_FEW_OF_ITEM;

// What a row costs for so many tokens: about a hundred instructions a unit.
DEVICE uint32_t cost_of(uint32_t count) { return count <= 1u ? 5u : count == 2u ? 6u : 9u; }

// The sums of N values over a warp: lanes `i 32 / N ..` get value i's. The order does not depend on N.
template <uint32_t N> DEVICE float reduce(float (&v)[N]) {
    const uint32_t lane = lane_id();
    uint32_t mask = 16;
#pragma unroll
    for (uint32_t n = N / 2u; n != 0; n /= 2u) {
        const bool upper = lane & mask;
#pragma unroll
        for (uint32_t i = 0; i < n; i++) {
            const float keep = upper ? v[n + i] : v[i], give = upper ? v[i] : v[n + i];
            v[i] = keep + shuffle_xor(give, mask);
        }
        mask /= 2u;
    }
#pragma unroll
    for (uint32_t n = 32u / N / 2u; n != 0; n /= 2u) v[0] += shuffle_xor(v[0], n);
    return v[0];
}

// What the warps of a block do, in shared memory, so that it takes no registers in the loops.
struct Plan {
    ExpertsItem items[EXPERTS_FEW_PAIRS];
    // Of each warp: costs `from .. to` of those of all items' rows.
    uint32_t from[WARPS];
    uint32_t to[WARPS];
    uint32_t count;
};

// Rows of one item, which a warp does one after the other.
struct Segment {
    uint32_t item;
    uint32_t first;
    uint32_t last;
};

// The first row of the item that begins at `cost` or later.
DEVICE uint32_t row_at(const ExpertsItem& item, uint32_t rows, uint32_t cost) {
    const uint32_t begin = item.before * rows, each = cost_of(item.count);
    return cost <= begin ? 0u : min((cost - begin + each - 1u) / each, rows);
}

// This warp's first segment of item `index` or after; none if `last` is 0.
DEVICE Segment segment_from(const Plan& plan, uint32_t rows, uint32_t index) {
    const uint32_t from = plan.from[warp_id()], to = plan.to[warp_id()];
    for (; index < plan.count && plan.items[index].before * rows < to; index++) {
        const uint32_t first = row_at(plan.items[index], rows, from), last = row_at(plan.items[index], rows, to);
        if (first < last) return {index, first, last};
    }
    return {index, 0, 0};
}

// The items, and the run of this warp, `index` of `warps`, of which the first `tiles` have work of
// `tile_cost` already. The block meets; the first segment is returned.
DEVICE Segment make_plan(Plan& plan, const ExpertsItem* items, const uint32_t* totals, uint32_t rows, uint32_t index,
                         uint32_t warps, uint32_t tiles, uint32_t tile_cost) {
    // May be read before the wait: whatever is there, it stays within the plan.
    const uint2 total = load_written8(totals);
    const uint32_t count = min(total.x, EXPERTS_FEW_PAIRS);
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
        const uint4 item = load_written16(&items[i].expert);
        plan.items[i] = {item.x, item.y, item.z, item.w};
    }
    const uint64_t all = static_cast<uint64_t>(total.y) * rows;
    if (tiles >= warps) tiles = 0;
    const uint64_t each = (all + static_cast<uint64_t>(tiles) * tile_cost) / warps;
    const uint64_t less = each > tile_cost ? each - tile_cost : 0u;
    const auto begin = [&](uint32_t i) {
        return i <= tiles ? i * less : tiles * less + (i - tiles) * (all - tiles * less) / (warps - tiles);
    };
    const uint32_t from = static_cast<uint32_t>(begin(index));
    if (lane_id() == 0) {
        plan.from[warp_id()] = from;
        plan.to[warp_id()] = static_cast<uint32_t>(begin(index + 1u));
        plan.count = count;
    }
    __syncthreads();
    // The last item that begins at `from` or before.
    uint32_t low = 0, high = count;
    while (low + 1u < high) {
        const uint32_t middle = (low + high) / 2u;
        if (plan.items[middle].before * rows <= from) low = middle; else high = middle;
    }
    return segment_from(plan, rows, low);
}

// 256 columns of a tile of 16 rows of Q8_0 times up to 8 NT tokens. `piece` holds piece `index`; at the
// end it holds what is at `next`.
template <uint32_t NT>
DEVICE void multiply_piece(Piece& piece, uint32_t index, const Source& next, const uint8_t* quants, const float* scales,
                           float (&sum)[NT][4]) {
    const uint32_t lane = lane_id();
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) {
        const uint32_t block = index * 8u + i;
        const uint4 q = piece.q[i];
        piece.q[i] = fetch(next, i);
        const uint32_t a[4] = {q.x, q.y, q.z, q.w};
        const float2 d = unpack_f16x2(word(piece.s[i / 4u], i % 4u));
#pragma unroll
        for (uint32_t n = 0; n < NT; n++) {
            const uint32_t eight = block * NT + n;
            const uint2 b = reinterpret_cast<const uint2*>(quants)[eight * 32u + lane];
            const float2 scale = reinterpret_cast<const float2*>(scales)[eight * 4u + lane % 4u];
            int32_t c[4];
            mma_m16n8k32_s8(c, a, b.x, b.y);
            sum[n][0] = fmaf(static_cast<float>(c[0]), d.x * scale.x, sum[n][0]);
            sum[n][1] = fmaf(static_cast<float>(c[1]), d.x * scale.y, sum[n][1]);
            sum[n][2] = fmaf(static_cast<float>(c[2]), d.y * scale.x, sum[n][2]);
            sum[n][3] = fmaf(static_cast<float>(c[3]), d.y * scale.y, sum[n][3]);
        }
        if (i % 4u == 3u) piece.s[i / 4u] = fetch_scales(next, i / 4u);
    }
}

// ------------------------------------------------------------------------------------------------
// Gate and up

// A row of gate and of up: a lane has groups `2 lane, + 1` of 32 values of each half of the row.
struct RowPair {
    uint4 q[2][2];
    uint32_t d[2];
};

// Where a lane's part of a row is, in the planes of gate and of up, which have one shape.
struct RowAt {
    uint64_t q;
    uint64_t d;
};

DEVICE RowAt row_of(const Weight& w, uint32_t expert, uint32_t row) {
    const uint32_t lane = lane_id();
    return {expert * w.stride[0] + row * (HIDDEN / 4u) + lane * 16u,
            expert * w.stride[1] + row * (HIDDEN / 128u) + lane / 4u * 4u};
}

DEVICE uint4 fetch_codes(const Weight& w, const RowAt& at, uint32_t half) {
    return load_weights16(w.plane[0] + at.q + half * 512u);
}
// The scales of blocks lane / 4 and 8 + lane / 4 are neighbours.
DEVICE uint32_t fetch_d(const Weight& w, const RowAt& at) { return load_weights4(w.plane[1] + at.d); }

// The 32 values of a group, as bytes.
DEVICE void decode_group(uint32_t (&w)[8], uint32_t runs, uint32_t signs, const unsigned char* tables,
                         uint32_t positive, uint32_t negative) {
    const uint32_t lane = lane_id() * 4u;
#pragma unroll
    for (uint32_t l = 0; l < 4; l++) {
        // An entry has a word for each lane: 128 bytes.
        const uint32_t digits_at = ((l == 0 ? runs << 7 : runs >> (8u * l - 7u)) & 0x7f80u) | lane;
        const uint32_t signs_at = ((l == 0 ? signs << 7 : signs >> (7u * l - 7u)) & 0x3f80u) | lane;
        const uint32_t select = *reinterpret_cast<const uint32_t*>(tables + digits_at) |
                                *reinterpret_cast<const uint32_t*>(tables + 32768u + signs_at);
        w[2 * l] = byte_perm(positive, negative, select);
        w[2 * l + 1] = byte_perm(positive, negative, select >> 16);
    }
}

struct Bytes32 {
    uint32_t v[8];
};

DEVICE Bytes32 fetch_group(const uint8_t* x, uint32_t half, uint32_t group) {
    const uint4* from = reinterpret_cast<const uint4*>(x) + (half * 4u + group * 2u) * 32u + lane_id();
    const uint4 a = from[0], b = from[32];
    return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

// Rows `first .. last` of an item of up to T tokens. `pair` holds the first one; at the end it holds what
// is at `then`.
template <uint32_t T>
DEVICE void gate_up_rows(const ExpertsFewGateUpParams& p, const ExpertsItem& item, uint32_t first, uint32_t last,
                         RowPair& pair, const RowAt& then, const unsigned char* tables) {
    // Of more tokens, registers cannot hold the bytes.
    constexpr bool HELD = T <= 2u;
    // Rows until each lane has a value, and lanes that have the same sum.
    constexpr uint32_t SLOTS = 16u / T;
    const uint32_t lane = lane_id();
    // With the signs of index 0, which are none: else the compiler would know that all lanes have the same,
    // and move it out of a uniform register before each use.
    const uint32_t none = reinterpret_cast<const uint32_t*>(tables + 32768u)[lane];
    const uint32_t positive = IQ2_XXS_POSITIVE | none, negative = IQ2_XXS_NEGATIVE;
    const uint8_t* x_of[T];
    Bytes32 x[HELD ? T : 1u][2][2];
    float2 scale[T][2];
#pragma unroll
    for (uint32_t t = 0; t < T; t++) {
        const uint32_t token = (p.order[item.start + min(t, item.count - 1u)] & ~EXPERTS_NO_EXPERT) / p.k;
        x_of[t] = p.quants + token * HIDDEN;
#pragma unroll
        for (uint32_t c = 0; c < 2; c++) {
            scale[t][c] = reinterpret_cast<const float2*>(p.scales + token * (HIDDEN / 32u))[c * 32u + lane];
            if constexpr (HELD) {
                x[t][c][0] = fetch_group(x_of[t], c, 0);
                x[t][c][1] = fetch_group(x_of[t], c, 1);
            }
        }
    }
    // Whose results this lane writes: of the lower lanes' tokens.
    const uint32_t mine = min(lane / SLOTS % T, item.count - 1u), pair_index = p.order[item.start + mine];
    const float weight = pair_index & EXPERTS_NO_EXPERT ? f32_from_bits(0x7fc00000u) : p.weights[pair_index];
    const bool writes = lane < 16u && lane / SLOTS < item.count;
    float* h = p.h + (item.start + mine) * INTER + lane % SLOTS;

    float kept = 0.0f;
    RowAt ahead = row_of(p.gate, item.expert, first);
    for (uint32_t row = first; row < last; row++) {
        ahead.q += HIDDEN / 4u;
        ahead.d += HIDDEN / 128u;
        if (row + 1u == last) ahead = then;
        float sum[2 * T] = {};
#pragma unroll
        for (uint32_t c = 0; c < 2; c++) {
            uint4 q[2];
#pragma unroll
            for (uint32_t m = 0; m < 2; m++) {
                q[m] = pair.q[m][c];
                pair.q[m][c] = fetch_codes(m == 0 ? p.gate : p.up, ahead, c);
            }
            float part[2 * T];
#pragma unroll
            for (uint32_t group = 0; group < 2; group++) {
                uint32_t w[2][8];
                int32_t factor[2];
#pragma unroll
                for (uint32_t m = 0; m < 2; m++) {
                    const uint32_t runs = group == 0 ? q[m].x : q[m].z, signs = group == 0 ? q[m].y : q[m].w;
                    decode_group(w[m], runs, signs, tables, positive, negative);
                    // Twice the four bits on top, plus one.
                    factor[m] = static_cast<int32_t>(signs >> 27 | 1u);
                }
#pragma unroll
                for (uint32_t t = 0; t < T; t++) {
                    Bytes32 bytes;
                    if constexpr (HELD) {
                        bytes = x[t][c][group];
                    } else {
                        bytes = fetch_group(x_of[t], c, group);
                    }
                    const float s = group == 0 ? scale[t][c].x : scale[t][c].y;
#pragma unroll
                    for (uint32_t m = 0; m < 2; m++) {
                        int32_t dot = 0;
#pragma unroll
                        for (uint32_t i = 0; i < 8; i++) dot = dp4a(w[m][i], bytes.v[i], dot);
                        // Below 2^24: exact.
                        const float product = static_cast<float>(dot * factor[m]);
                        part[m * T + t] = group == 0 ? product * s : fmaf(product, s, part[m * T + t]);
                    }
                }
            }
#pragma unroll
            for (uint32_t m = 0; m < 2; m++) {
                const float2 d = unpack_f16x2(pair.d[m]);
#pragma unroll
                for (uint32_t t = 0; t < T; t++) {
                    sum[m * T + t] = fmaf(part[m * T + t], c == 0 ? d.x : d.y, sum[m * T + t]);
                }
                if (c == 1) pair.d[m] = fetch_d(m == 0 ? p.gate : p.up, ahead);
            }
        }
        // Lower lanes have gate's sums, upper ones up's; one row a lane until all have one.
        const float total = reduce<2 * T>(sum);
        const uint32_t slot = (row - first) % SLOTS;
        if (lane % SLOTS == slot) kept = total;
        if (slot == SLOTS - 1u || row + 1u == last) {
            const float up = shuffle_xor(kept, 16u);
            if (writes && lane % SLOTS <= slot) {
                h[row - slot] = clamped_swiglu(kept * 0.125f, up * 0.125f, p.clamp) * weight;
            }
        }
    }
}

// The shared expert's tile of gate and of up, of all warps of the block. `sums` has 16 rows of all warps
// for 8 NT tokens; `piece` holds this warp's of the tile of gate.
template <uint32_t NT>
DEVICE void shared_gate_up(const ExpertsFewGateUpParams& p, Piece& piece, uint32_t tile, uint32_t next, float* sums) {
    constexpr uint32_t VALUES = 128u * NT;
    const uint32_t warp = warp_id(), g = lane_id() / 4u, t = lane_id() % 4u, value = threadIdx.x;
    float gate = 0.0f, up = 0.0f;
#pragma unroll
    for (uint32_t m = 0; m < 2; m++) {
        const Source then = m == 0                                ? aim(p.shared_up, tile, warp)
                            : next < p.shared_gate.rows / 16u ? aim(p.shared_gate, next, warp)
                                                                  : nowhere();
        float sum[NT][4] = {};
        multiply_piece<NT>(piece, warp, then, p.mma_quants, p.mma_scales, sum);
#pragma unroll
        for (uint32_t n = 0; n < NT; n++) {
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                sums[warp * VALUES + (n * 8u + 2u * t + i % 2u) * 16u + g + 8u * (i / 2u)] = sum[n][i];
            }
        }
        __syncthreads();
        if (value < VALUES) {
            float total = 0.0f;
            for (uint32_t w = 0; w < WARPS; w++) total += sums[w * VALUES + value];
            (m == 0 ? gate : up) = total;
        }
        __syncthreads();
    }
    const uint32_t token = value / 16u;
    if (token < p.tokens) {
        p.shared_h[token * p.shared_gate.rows + tile * 16u + value % 16u] = clamped_swiglu(gate, up, p.clamp);
    }
}

DEVICE void gate_up(const ExpertsFewGateUpParams& p, unsigned char* shared) {
    Plan& plan = *reinterpret_cast<Plan*>(shared + IQ2_XXS_TABLE_BYTES);
    float* sums = reinterpret_cast<float*>(shared + IQ2_XXS_TABLE_BYTES + EXPERTS_FEW_PLAN_BYTES);
    // Neighbours in the list of rows are on different multiprocessors, so that each gets all kinds of items.
    const uint32_t index = warp_id() * gridDim.x + blockIdx.x, tiles = p.shared_gate.rows / 16u;
    Piece piece;
    if (blockIdx.x < tiles) fetch_all(piece, aim(p.shared_gate, blockIdx.x, warp_id()));
    fill_iq2_xxs_tables(reinterpret_cast<uint32_t*>(shared));
    pdl_wait();
    // Only now: the kernel after the next one reads the items before its wait.
    pdl_trigger();
    Segment now = make_plan(plan, p.items, p.totals, INTER, index, WARPS * gridDim.x, 0, 0);
    RowPair pair;
    if (now.last != 0) {
        const RowAt at = row_of(p.gate, plan.items[now.item].expert, now.first);
#pragma unroll
        for (uint32_t m = 0; m < 2; m++) {
            const Weight& w = m == 0 ? p.gate : p.up;
            pair.q[m][0] = fetch_codes(w, at, 0);
            pair.q[m][1] = fetch_codes(w, at, 1);
            pair.d[m] = fetch_d(w, at);
        }
    }
    for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        if (p.tokens <= 8u) {
            shared_gate_up<1>(p, piece, tile, tile + gridDim.x, sums);
        } else if (p.tokens <= 16u) {
            shared_gate_up<2>(p, piece, tile, tile + gridDim.x, sums);
        } else {
            shared_gate_up<4>(p, piece, tile, tile + gridDim.x, sums);
        }
    }
    while (now.last != 0) {
        const ExpertsItem& item = plan.items[now.item];
        const Segment next = segment_from(plan, INTER, now.item + 1u);
        // Without a next one, the last row once more.
        const RowAt then = next.last != 0 ? row_of(p.gate, plan.items[next.item].expert, next.first)
                                          : row_of(p.gate, item.expert, now.last - 1u);
        if (item.count == 1u) {
            gate_up_rows<1>(p, item, now.first, now.last, pair, then, shared);
        } else if (item.count == 2u) {
            gate_up_rows<2>(p, item, now.first, now.last, pair, then, shared);
        } else {
            gate_up_rows<OF_ITEM>(p, item, now.first, now.last, pair, then, shared);
        }
        now = next;
    }
}

// ------------------------------------------------------------------------------------------------
// Down

// Four rows of Q2_K: a lane has 16 bytes of quants of each, a quarter of block lane / 4.
struct FourRows {
    uint4 q[4];
    uint32_t s[4];
    uint32_t d[4];
};

DEVICE void fetch_row(FourRows& rows, uint32_t i, const Weight& w, uint32_t expert, uint32_t four) {
    const uint32_t lane = lane_id();
    const uint32_t row = four * 4u + i;
    rows.q[i] = load_weights16(w.plane[0] + expert * w.stride[0] + row * (INTER / 4u) + lane * 16u);
    rows.s[i] = load_weights4(w.plane[1] + expert * w.stride[1] + row * (INTER / 16u) + lane * 4u);
    rows.d[i] = load_weights4(w.plane[2] + expert * w.stride[2] + row * (INTER / 64u) + lane / 4u * 4u);
}

DEVICE void fetch_rows(FourRows& rows, const Weight& w, uint32_t expert, uint32_t four) {
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) fetch_row(rows, i, w, expert, four);
}

// What a lane multiplies with digit `j` of its quants: 16 bytes, their scale, their sum times it. Digits,
// scales and minima stay where they are in their bytes and words, powers of two apart: the scale and the
// sum make up for it.
struct Sixteen {
    uint4 bytes;
    float scale;
    float sum;
};

DEVICE float exp2_minus(uint32_t n) { return f32_from_bits((127u - n) << 23); }

// Adds digit `j` of a row's quants times the bytes of T tokens.
template <uint32_t T>
DEVICE void multiply_digit(const uint4& q, uint32_t s, const float2& d, uint32_t j, const Sixteen (&x)[T],
                           float (&sum)[4 * T], uint32_t i) {
    const float scale = d.x * static_cast<float>(s & 15u << 8u * j);
    const float minimum = d.y * static_cast<float>(s & 240u << 8u * j);
    const uint32_t mask = 0x03030303u << 2u * j;
#pragma unroll
    for (uint32_t t = 0; t < T; t++) {
        int32_t dot = dp4a_unsigned(q.x & mask, x[t].bytes.x, 0);
        dot = dp4a_unsigned(q.y & mask, x[t].bytes.y, dot);
        dot = dp4a_unsigned(q.z & mask, x[t].bytes.z, dot);
        dot = dp4a_unsigned(q.w & mask, x[t].bytes.w, dot);
        sum[4u * t + i] = fmaf(static_cast<float>(dot), scale * x[t].scale, sum[4u * t + i]);
        sum[4u * t + i] = fmaf(-minimum, x[t].sum, sum[4u * t + i]);
    }
}

// Fours of rows `first .. last` of an item of up to T tokens; `rows` and `then` as for gate and up.
template <uint32_t T>
DEVICE void down_rows(const ExpertsFewDownParams& p, const ExpertsItem& item, uint32_t first, uint32_t last,
                      FourRows& rows, uint32_t then_expert, uint32_t then) {
    // Of more tokens, registers cannot hold the bytes.
    constexpr bool HELD = T <= 2u;
    const uint32_t lane = lane_id(), expert = item.expert;
    // Past the item's last token there are others, or room for one: their sums go nowhere.
    const uint8_t* quants = p.quants + item.start * INTER + lane * 16u;
    const float* scales = p.scales + item.start * (INTER / 32u) + lane / 2u * 4u;
    const float* sums = p.sums + item.start * (INTER / 16u) + lane * 4u;
    const auto fetch_x = [&](Sixteen (&x)[T], uint32_t j) {
#pragma unroll
        for (uint32_t t = 0; t < T; t++) {
            x[t].bytes = *reinterpret_cast<const uint4*>(quants + t * INTER + j * 512u);
            x[t].scale = scales[t * (INTER / 32u) + j] * exp2_minus(10u * j);
            x[t].sum = sums[t * (INTER / 16u) + j] * exp2_minus(8u * j + 4u);
        }
    };
    Sixteen held[HELD ? 4 : 1][T];
    if constexpr (HELD) {
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) fetch_x(held[j], j);
    }
    // Value 4 t + i of the lanes' sums.
    constexpr uint32_t LANES = 8u / T;
    const uint32_t value = lane / LANES, mine = min(value / 4u, item.count - 1u);
    const uint32_t pair = p.order[item.start + mine] & ~EXPERTS_NO_EXPERT;
    const bool writes = lane % LANES == 0 && value / 4u < item.count;
    float* to = p.terms + pair * p.down.rows + value % 4u;

    for (uint32_t four = first; four < last; four++) {
        const bool end = four + 1u == last;
        const uint32_t next_expert = end ? then_expert : expert, next_four = end ? then : four + 1u;
        float sum[4 * T] = {};
        if constexpr (HELD) {
            // What has been used is replaced at once.
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                const uint4 q = rows.q[i];
                const uint32_t s = rows.s[i];
                const float2 d = unpack_f16x2(rows.d[i]);
                fetch_row(rows, i, p.down, next_expert, next_four);
#pragma unroll
                for (uint32_t j = 0; j < 4; j++) multiply_digit<T>(q, s, d, j, held[j], sum, i);
            }
        } else {
            FourRows next;
            fetch_rows(next, p.down, next_expert, next_four);
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) {
                Sixteen x[T];
                fetch_x(x, j);
#pragma unroll
                for (uint32_t i = 0; i < 4; i++) {
                    multiply_digit<T>(rows.q[i], rows.s[i], unpack_f16x2(rows.d[i]), j, x, sum, i);
                }
            }
            rows = next;
        }
        const float total = reduce<4 * T>(sum);
        if (writes) to[four * 4u] = total;
    }
}

// A tile of the shared expert's down.
template <uint32_t NT>
DEVICE void shared_down(const ExpertsFewDownParams& p, Piece& piece, uint32_t tile, uint32_t next) {
    const uint32_t g = lane_id() / 4u, t = lane_id() % 4u;
    const uint32_t hidden = p.shared_down.rows, pieces = p.shared_down.cols / 256u;
    float sum[NT][4] = {};
    for (uint32_t i = 0; i < pieces; i++) {
        const Source then = i + 1u < pieces        ? aim(p.shared_down, tile, i + 1u)
                            : next < hidden / 16u ? aim(p.shared_down, next, 0)
                                                   : nowhere();
        multiply_piece<NT>(piece, i, then, p.shared_quants, p.shared_scales, sum);
    }
#pragma unroll
    for (uint32_t n = 0; n < NT; n++) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t token = n * 8u + 2u * t + i % 2u, row = tile * 16u + g + i / 2u * 8u;
            if (token < p.tokens) p.shared_terms[token * hidden + row] = sum[n][i];
        }
    }
}

DEVICE void down(const ExpertsFewDownParams& p, Plan& plan) {
    const uint32_t index = warp_id() * gridDim.x + blockIdx.x, warps = WARPS * gridDim.x;
    const uint32_t tiles = p.shared_down.rows / 16u, fours = p.down.rows / 4u;
    pdl_trigger();
    // The items are of the launch before the one before the last, which has ended.
    Piece piece;
    if (index < tiles) fetch_all(piece, aim(p.shared_down, index, 0));
    // What a tile costs, about, in the units of `cost_of`.
    const uint32_t of_piece = p.tokens <= 8u ? 6u : p.tokens <= 16u ? 9u : 14u;
    const uint32_t tile_cost = of_piece * (p.shared_down.cols / 256u);
    Segment now = make_plan(plan, p.items, p.totals, fours, index, warps, tiles, tile_cost);
    FourRows rows;
    if (now.last != 0 && index >= tiles) fetch_rows(rows, p.down, plan.items[now.item].expert, now.first);
    pdl_wait();

    for (uint32_t tile = index; tile < tiles; tile += warps) {
        if (p.tokens <= 8u) {
            shared_down<1>(p, piece, tile, tile + warps);
        } else if (p.tokens <= 16u) {
            shared_down<2>(p, piece, tile, tile + warps);
        } else {
            shared_down<4>(p, piece, tile, tile + warps);
        }
    }
    if (now.last != 0 && index < tiles) fetch_rows(rows, p.down, plan.items[now.item].expert, now.first);
    while (now.last != 0) {
        const ExpertsItem& item = plan.items[now.item];
        const Segment next = segment_from(plan, fours, now.item + 1u);
        const uint32_t then_expert = next.last != 0 ? plan.items[next.item].expert : item.expert;
        const uint32_t then = next.last != 0 ? next.first : now.last - 1u;
        if (item.count == 1u) {
            down_rows<1>(p, item, now.first, now.last, rows, then_expert, then);
        } else if (item.count == 2u) {
            down_rows<2>(p, item, now.first, now.last, rows, then_expert, then);
        } else {
            down_rows<OF_ITEM>(p, item, now.first, now.last, rows, then_expert, then);
        }
        now = next;
    }
}

}  // namespace few

// Block 0 of 256 threads sorts, a warp of the others makes four blocks of 32 values. Shared memory: 2 · 4
// · EXPERTS_FEW_PAIRS. Expert for expert, pairs in ascending order.
KERNEL(experts_few_sort, ExpertsFewSortParams, 256) {
    SHARED(uint32_t, keys);
    uint32_t* costs = keys + EXPERTS_FEW_PAIRS;
    // The next kernel's tables can be made meanwhile.
    pdl_trigger();
    pdl_wait();
    if (blockIdx.x != 0) {
        const uint32_t warp = (blockIdx.x - 1u) * (blockDim.x / 32u) + warp_id(), lane = lane_id(), in_block = lane % 8u;
        const uint32_t token = warp / (few::HIDDEN / 128u), block = warp % (few::HIDDEN / 128u) * 4u + lane / 8u;
        if (token >= p.tokens) return;
        const float4 v = reinterpret_cast<const float4*>(p.x + token * few::HIDDEN)[block * 8u + in_block];
        float scale;
        const uint32_t four = quantize_shared_scale(v, scale);
        const uint32_t at = ((block / 64u * 4u + block % 2u * 2u + in_block / 4u) * 32u + block % 64u / 2u) * 16u;
        *reinterpret_cast<uint32_t*>(p.quants + token * few::HIDDEN + at + in_block % 4u * 4u) = four;
        if (in_block == 0) p.scales[token * (few::HIDDEN / 32u) + block] = scale;
        if (p.mma_quants == nullptr) return;
        const uint32_t place = block * p.padded + token;
        reinterpret_cast<uint32_t*>(p.mma_quants)[place * 8u + in_block % 4u * 2u + in_block / 4u] = four;
        if (in_block == 0) p.mma_scales[place] = scale;
        return;
    }
    const uint32_t pair = threadIdx.x;
    const uint32_t id = pair < p.pairs ? p.ids[pair] : 0u, key = pair < p.pairs ? min(id, p.experts - 1u) : 0xffffffffu;
    keys[pair] = key;
    costs[pair] = 0;
    __syncthreads();
    uint32_t before = 0, same_before = 0, same = 0;
#pragma unroll 4
    for (uint32_t i = 0; i < p.pairs; i += 4) {
        const uint4 four = *reinterpret_cast<const uint4*>(keys + i);
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            const uint32_t other = word(four, j);
            before += other < key ? 1u : 0u;
            same += other == key ? 1u : 0u;
            same_before += other == key && i + j < pair ? 1u : 0u;
        }
    }
    const uint32_t position = before + same_before, count = min(few::OF_ITEM, same - same_before);
    const bool leads = pair < p.pairs && same_before % few::OF_ITEM == 0;
    if (pair < p.pairs) p.order[position] = id < p.experts ? pair : pair | EXPERTS_NO_EXPERT;
    // An item, and what it costs.
    if (leads) costs[position] = 0x10000u | few::cost_of(count);
    __syncthreads();
    if (!leads) return;
    uint32_t all_before = 0;
#pragma unroll 4
    for (uint32_t i = 0; i < p.pairs; i += 4) {
        const uint4 four = *reinterpret_cast<const uint4*>(costs + i);
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) all_before += i + j < position ? word(four, j) : 0u;
    }
    const uint32_t index = all_before >> 16, cost = all_before & 0xffffu;
    p.items[index] = {key, position, count, cost};
    if (position + count == p.pairs) {
        p.totals[0] = index + 1u;
        p.totals[1] = cost + few::cost_of(count);
    }
}

// Grid: one block a multiprocessor. Shared memory: tables, the
// plan, and with a shared expert the sums of its tiles, 1024 bytes for each of the padded tokens.
KERNEL(experts_few_gate_up, ExpertsFewGateUpParams, 512) {
    SHARED(unsigned char, shared);
    few::gate_up(p, shared);
}

// A warp makes four blocks of 32 values.
KERNEL(experts_few_quantize, ExpertsFewQuantizeParams, 256) {
    pdl_wait();
    // Only now: when the next kernel starts, the one before this one has ended.
    pdl_trigger();
    const uint32_t lane = lane_id(), in_block = lane % 8u;
    const uint32_t routed = p.pairs * (few::INTER / 32u), all = routed + p.tokens * (p.shared_cols / 32u);
    // Whole warps are of one kind.
    const uint32_t block = (blockIdx.x * (blockDim.x / 32u) + warp_id()) * 4u + lane / 8u;
    if (block - lane / 8u >= all) return;
    const float* from = block < routed ? p.h + block * 32u : p.shared_h + (block - routed) * 32u;
    float scale;
    const uint32_t four = quantize_shared_scale(reinterpret_cast<const float4*>(from)[in_block], scale);
    if (block >= routed) {
        const uint32_t of_row = p.shared_cols / 32u, token = (block - routed) / of_row;
        const uint32_t place = (block - routed) % of_row * p.padded + token;
        reinterpret_cast<uint32_t*>(p.shared_quants)[place * 8u + in_block % 4u * 2u + in_block / 4u] = four;
        if (in_block == 0) p.shared_scales[place] = scale;
        return;
    }
    const uint32_t row = block / (few::INTER / 32u), of_row = block % (few::INTER / 32u);
    const uint32_t j = of_row % 4u, quarter = of_row / 4u * 2u + in_block / 4u;
    *reinterpret_cast<uint32_t*>(p.quants + row * few::INTER + (32u * j + quarter) * 16u + in_block % 4u * 4u) = four;
    int32_t sum = dp4a(four, 0x01010101u, 0);
    sum += shuffle_xor(sum, 1u);
    sum += shuffle_xor(sum, 2u);
    if (in_block % 4u == 0) p.sums[row * (few::INTER / 16u) + quarter * 4u + j] = static_cast<float>(sum) * scale;
    if (in_block == 0) p.scales[row * (few::INTER / 32u) + of_row] = scale;
}

// Grid: one block a multiprocessor. Shared memory: the plan.
KERNEL(experts_few_down, ExpertsFewDownParams, 512) {
    SHARED(few::Plan, plan);
    few::down(p, *plan);
}
