// Attention of many tokens on GPUs whose warpgroups multiply by themselves (compute capability 9.0): the 64
// heads of a token are the rows of a product.
//
// One warpgroup brings rows of the cache as halves into shared memory, 64 at a time and two such chunks
// ahead. Each of two others takes all scores, keeps its heads' softmax in registers, and has half of
// the dimensions of the values: they never wait for each other, so that one multiplies while the other
// takes exponents.
#include "../../include/cuda/attention.h"
#include "../../include/cuda/kv_rows.cuh"
#include "../../include/cuda/wgmma_attention.cuh"
#include "../../include/kv.h"

#if HAS_WARPGROUPS

namespace attention_by_warpgroups {

constexpr uint32_t HEADS = ATTENTION_PREFILL_HEADS;
constexpr uint32_t ROWS = 64;  // of a chunk
constexpr uint32_t TILE = ROWS * TILE_ROW;
constexpr uint32_t TILES = ATTENTION_DIM / 64u;
constexpr uint32_t STAGES = 2;
constexpr uint32_t OF_WARP = ROWS / 4u;  // rows of a chunk that a warp brings
// Registers of a thread that brings rows, and of one that computes. A block begins with 168 for each of 384
// threads: a warpgroup that takes more than the others leave waits for ever.
constexpr int BRINGING = 120, COMPUTING = 192;
static_assert(BRINGING + 2 * COMPUTING <= 3 * 168, "registers of the block");

// Between the warpgroups: which rows of a chunk are there, and whose turn it is.
struct Control {
    uint16_t there[STAGES][4];  // a bit for each row, warp by warp
    uint64_t full[STAGES], empty[STAGES], queries;
};

// Sixteen values of a packed row, and their scale.
struct Codes {
    uint2 v[2];
    uint32_t scale;
};

DEVICE void fetch_codes(Codes& codes, uint64_t address, uint32_t lane) {
    codes.v[0] = codes.v[1] = make_uint2(0, 0);
    codes.scale = 0;
    if ((address & 1u) == 0 || lane >= 28u) return;
    const uint8_t* row = reinterpret_cast<const uint8_t*>(address - 1u);
    codes.v[0] = load8(row + lane * 16u);
    codes.v[1] = load8(row + lane * 16u + 8u);
    codes.scale = row[KV_SCALES_AT + lane / 4u];
}

DEVICE void store_codes(const Codes& codes, unsigned char* stage, uint32_t row, uint32_t lane) {
    if (lane >= 28u) return;
    const float scale = e8m0_to_f32(static_cast<uint8_t>(codes.scale));
    const uint32_t scales = pack_f16x2(scale, scale);
    uint4 halves[2];
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        halves[i] = make_uint4(mul_f16x2(e4m3x2_to_f16x2(codes.v[i].x), scales), mul_f16x2(e4m3x2_to_f16x2(codes.v[i].x >> 16), scales),
                               mul_f16x2(e4m3x2_to_f16x2(codes.v[i].y), scales), mul_f16x2(e4m3x2_to_f16x2(codes.v[i].y >> 16), scales));
    }
    // Lanes of every other tile begin with their other half, so that eight lanes meet all banks.
    const bool turned = lane / 4u % 2u != 0;
    unsigned char* tile = stage + lane / 4u * TILE;
    const uint32_t piece = lane % 4u * 2u;
    *reinterpret_cast<uint4*>(tile + tile_piece(row, piece + (turned ? 1u : 0u))) = turned ? halves[1] : halves[0];
    *reinterpret_cast<uint4*>(tile + tile_piece(row, piece + (turned ? 0u : 1u))) = turned ? halves[0] : halves[1];
}

// This warp's 16 packed rows of a chunk (lane i has the address of row i), and zeros for those that are
// not there; `before_writing` is called when the first are on their way.
template <class F>
DEVICE void bring_packed(uint64_t address, uint32_t plain, unsigned char* stage, F before_writing) {
    // Opaque, or places in the stage are computed once for all chunks, for which there are no registers.
    const uint32_t lane = opaque(lane_id());
    stage += warp_id() % 4u * (OF_WARP * TILE_ROW);
    Codes codes[2][4];
    const auto fetch = [&](Codes(&four)[4], uint32_t from) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) fetch_codes(four[i], shuffle(address, from + i), lane);
    };
    const auto store = [&](const Codes(&four)[4], uint32_t from) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            if ((plain >> (from + i) & 1u) == 0) store_codes(four[i], stage, from + i, lane);
        }
    };
    fetch(codes[0], 0);
    fetch(codes[1], 4);
    before_writing();
    store(codes[0], 0);
    fetch(codes[0], 8);
    store(codes[1], 4);
    // The channels that carry the position: eight of a row by each of eight lanes.
    uint2 turned[4][2];
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const uint64_t of_row = shuffle(address, i * 4u + lane / 8u);
        turned[i][0] = turned[i][1] = make_uint2(0, 0);
        if (of_row & 1u) {
            const uint8_t* from = reinterpret_cast<const uint8_t*>(of_row - 1u) + KV_ROPE_AT + lane % 8u * 16u;
            turned[i][0] = load8(from);
            turned[i][1] = load8(from + 8u);
        }
    }
    store(codes[0], 8);
    fetch(codes[0], 12);
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t row = i * 4u + lane / 8u;
        if (plain >> row & 1u) continue;
        *reinterpret_cast<uint4*>(stage + (TILES - 1u) * TILE + tile_piece(row, lane % 8u)) =
            make_uint4(bf16x2_to_f16x2(turned[i][0].x), bf16x2_to_f16x2(turned[i][0].y), bf16x2_to_f16x2(turned[i][1].x),
                       bf16x2_to_f16x2(turned[i][1].y));
    }
    store(codes[0], 12);
}

// The same for rows of floats.
template <class F>
DEVICE void bring_plain(uint64_t address, uint32_t plain, unsigned char* stage, F before_writing) {
    // Opaque, or places in the stage are computed once for all chunks, for which there are no registers.
    const uint32_t lane = opaque(lane_id());
    stage += warp_id() % 4u * (OF_WARP * TILE_ROW);
    for (uint32_t from = 0; from < OF_WARP; from += 4u) {
        uint4 v[4][4];
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const uint4* row = reinterpret_cast<const uint4*>(shuffle(address, from + i));
            if ((plain >> (from + i) & 1u) == 0) continue;
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) v[i][j] = row[j * 32u + lane];
        }
        if (from == 0) before_writing();
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            if ((plain >> (from + i) & 1u) == 0) continue;
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) {
                unsigned char* tile = stage + (j * 2u + lane / 16u) * TILE;
                *reinterpret_cast<uint2*>(tile + tile_piece(from + i, lane % 16u / 2u) + lane % 2u * 8u) =
                    make_uint2(pack_f16x2(f32_from_bits(v[i][j].x), f32_from_bits(v[i][j].y)),
                               pack_f16x2(f32_from_bits(v[i][j].z), f32_from_bits(v[i][j].w)));
            }
        }
    }
}

DEVICE void bring_rows(const AttentionParams& p, const Attending& a, unsigned char* stages, Control& control) {
    const uint32_t lane = lane_id(), warp = warp_id() % 4u;
    // Which row, then where it is, are looked up while the chunks before are brought.
    const auto row_of = [&](uint32_t chunk) { return lane < OF_WARP ? chunk * ROWS + warp * OF_WARP + lane : a.count; };
    uint64_t address = row_address(p, a, row_of(0));
    uint32_t index = row_index(p, a, row_of(1));
    for (uint32_t chunk = 0; chunk * ROWS < a.count; chunk++) {
        const uint32_t s = chunk % STAGES;
        unsigned char* stage = stages + s * (TILES * TILE);
        const uint64_t after = row_address(p, a, row_of(chunk + 1u), index);
        index = row_index(p, a, row_of(chunk + 2u));
        const uint32_t there = warp_ballot(address != 0), plain = warp_ballot(address != 0 && (address & 1u) == 0);
        bool free = chunk < STAGES;
        const auto wait = [&] {
            if (!free) gate_wait(&control.empty[s], (chunk / STAGES - 1u) % 2u);
            free = true;
        };
        if (plain != 0) bring_plain(address, plain, stage, wait);
        if (plain != (1u << OF_WARP) - 1u) bring_packed(address, plain, stage, wait);
        if (lane == 0) control.there[s][warp] = static_cast<uint16_t>(there);
        writes_for_products();
        warp_sync();
        if (lane == 0) gate_arrive(&control.full[s]);
        address = after;
    }
}

// Halves of the queries of 64 heads, as tiles; by 256 threads.
DEVICE void bring_queries(const float* from, float scale, unsigned char* q) {
    const float4* values = reinterpret_cast<const float4*>(from);
#pragma unroll 8
    for (uint32_t i = threadIdx.x; i < HEADS * ATTENTION_DIM / 4u; i += 256u) {
        const float4 v = values[i];
        const uint32_t head = i / (ATTENTION_DIM / 4u), at = i % (ATTENTION_DIM / 4u);
        *reinterpret_cast<uint2*>(q + at / 16u * TILE + tile_piece(head, at % 16u / 2u) + at % 2u * 8u) =
            make_uint2(pack_f16x2(v.x * scale, v.y * scale), pack_f16x2(v.z * scale, v.w * scale));
    }
}

DEVICE void attend(const AttentionParams& p, const Attending& a, uint32_t first_head, unsigned char* q, unsigned char* stages,
                   Control& control) {
    const uint32_t lane = lane_id(), g = lane / 4u, t = lane % 4u;
    const uint32_t half = warp_id() / 4u, head = first_head + warp_id() % 4u * 16u + g;  // and the eighth after it
    bring_queries(p.q + (static_cast<uint64_t>(a.token) * p.heads + first_head) * ATTENTION_DIM, p.scale, q);
    writes_for_products();
    warp_sync();
    if (lane == 0) gate_arrive(&control.queries);
    float most[2] = {p.sinks[head], p.sinks[head + 8u]};
    float sum[2] = {t == 0 ? 1.0f : 0.0f, t == 0 ? 1.0f : 0.0f};  // the sink has weight and no value
    float out[128] = {};
    const uint64_t queries = tile_operand(q, 0);
    gate_wait(&control.queries, 0);
    for (uint32_t chunk = 0; chunk * ROWS < a.count; chunk++) {
        const uint32_t s = chunk % STAGES;
        unsigned char* stage = stages + s * (TILES * TILE);
        gate_wait(&control.full[s], chunk / STAGES % 2u);
        float scores[32];
        {
            const uint64_t keys = tile_operand(stage, 0);
            products_begin();
#pragma unroll
            for (uint32_t k = 0; k < ATTENTION_DIM / 16u; k++) {
                const uint32_t at = (k / 4u * TILE + k % 4u * 32u) / 16u;
                wgmma_n64(scores, queries + at, keys + at, k != 0);
            }
            products_commit();
            products_wait<0>();
            products_keep(scores);
        }
        // Read by the lane that arrives at `empty`: what the others read nothing would order.
        uint2 masks = make_uint2(0, 0);
        if (lane == 0) masks = *reinterpret_cast<const uint2*>(control.there[s]);
        const uint32_t there[2] = {shuffle(masks.x, 0), shuffle(masks.y, 0)};
        if ((there[0] & there[1]) != 0xffffffffu) {
#pragma unroll
            for (uint32_t i = 0; i < 32; i++) {
                const uint32_t row = i / 4u * 8u + 2u * t + i % 2u;
                if ((there[i / 16u] >> row % 32u & 1u) == 0) scores[i] = -INFINITY;
            }
        }
        float factor[2];
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            float here = most[r];
#pragma unroll
            for (uint32_t i = 0; i < 16; i++) here = fmaxf(here, scores[i / 2u * 4u + r * 2u + i % 2u]);
            here = fmaxf(here, shuffle_xor(here, 1u));
            here = fmaxf(here, shuffle_xor(here, 2u));
            factor[r] = fast_exp(most[r] - here);
            most[r] = here;
            float added = 0.0f;
#pragma unroll
            for (uint32_t i = 0; i < 16; i++) {
                float& score = scores[i / 2u * 4u + r * 2u + i % 2u];
                score = fast_exp(score - here);
                added += score;
            }
            sum[r] = sum[r] * factor[r] + added;
        }
        uint32_t weights[4][4];
#pragma unroll
        for (uint32_t i = 0; i < 16; i++) weights[i / 4u][i % 4u] = pack_f16x2(scores[2u * i], scores[2u * i + 1u]);
        if (warp_ballot(factor[0] != 1.0f || factor[1] != 1.0f) != 0) {
#pragma unroll
            for (uint32_t i = 0; i < 128; i++) out[i] *= factor[i / 2u % 2u];
        }
        {
            const uint64_t values = tile_operand(stage + half * (TILES / 2u) * TILE, TILE);
            products_keep(out);
            products_begin();
#pragma unroll
            for (uint32_t k = 0; k < 4; k++) wgmma_n256_transposed(out, weights[k], values + k * (16u * TILE_ROW / 16u));
            products_commit();
            products_wait<0>();
            products_keep(out);
        }
        if (lane == 0) gate_arrive(&control.empty[s]);
    }
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        sum[r] += shuffle_xor(sum[r], 1u);
        sum[r] += shuffle_xor(sum[r], 2u);
        const float share = 1.0f / sum[r];
        float* to = p.out + (static_cast<uint64_t>(a.token) * p.heads + head + 8u * r) * ATTENTION_DIM + half * 256u + 2u * t;
#pragma unroll
        for (uint32_t j = 0; j < 32; j++) {
            *reinterpret_cast<float2*>(to + j * 8u) = make_float2(out[j * 4u + r * 2u] * share, out[j * 4u + r * 2u + 1u] * share);
        }
    }
}

DEVICE void prefill(const AttentionParams& p, unsigned char* shared) {
    unsigned char* stages = shared + TILES * TILE;
    Control& control = *reinterpret_cast<Control*>(stages + STAGES * TILES * TILE);
    if (threadIdx.x == 0) {
        for (uint32_t s = 0; s < STAGES; s++) {
            gate_init(&control.full[s], 4);
            gate_init(&control.empty[s], 8);
        }
        gate_init(&control.queries, 8);
    }
    pdl_trigger();
    pdl_wait();
    __syncthreads();
    const Attending a = attending(p, p.first_token + blockIdx.x);
    if (warp_id() >= 8u) {
        registers_give_back<BRINGING>();
        bring_rows(p, a, stages, control);
    } else {
        registers_take<COMPUTING>();
        attend(p, a, blockIdx.y * HEADS, shared, stages, control);
    }
}

}  // namespace attention_by_warpgroups

#endif

// Grid: tokens, groups of 64 heads. 384 threads.
KERNEL(attention_prefill_wgmma, AttentionParams, 384) {
#if HAS_WARPGROUPS
    SHARED(unsigned char, shared);
    attention_by_warpgroups::prefill(p, shared);
#else
    no_warpgroups();
#endif
}
