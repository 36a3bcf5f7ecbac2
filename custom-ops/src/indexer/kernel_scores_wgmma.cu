// Scores of many tokens on GPUs whose warpgroups multiply by themselves (compute capability 9.0): 64 keys
// in a warpgroup's registers are the rows of a product, the 64 heads of a token its columns.
//
// While a token's products run, those of the token before are weighted and summed.
#include "../../include/cuda/indexer.h"
#include "../../include/cuda/keys.cuh"
#include "../../include/cuda/wgmma_attention.cuh"

#if HAS_WARPGROUPS

namespace indexer_by_warpgroups {

constexpr uint32_t KEYS = 256;  // of a block
constexpr uint32_t TILE = INDEXER_HEADS * TILE_ROW;
constexpr uint32_t QUERY_BYTES = 2u * TILE;
constexpr uint32_t STAGES = 4;

// This lane's part of the 64 keys of its warpgroup, as A operands of eight products.
struct Keys {
    uint32_t a[8][4];
};

DEVICE void fetch_keys(Keys& keys, const Rows& rows, uint32_t sequence, uint32_t first, uint32_t count) {
    const uint32_t lane = lane_id(), g = lane / 4u, t = lane % 4u;
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        // Rows past the last repeat it; their scores are not written.
        const uint8_t* row = row_at(rows, sequence, min(first + g + 8u * r, count - 1u));
        if (rows.format == ROWS_FP4) {
#pragma unroll
            for (uint32_t m = 0; m < 4; m++) {
                const float scale = e8m0_to_f32(row[64u + m]) * (16384.0f * KEY_FACTOR);
                const uint32_t scales = pack_f16x2(scale, scale);
                // A word has eight channels, two of each lane: byte t of four words.
                const uint32_t* words = reinterpret_cast<const uint32_t*>(row + m * 16u);
                const uint32_t pick = t | (t + 4u) << 4;
                const uint32_t codes = byte_perm(byte_perm(words[0], words[1], pick), byte_perm(words[2], words[3], pick), 0x5410u);
                const uint32_t even = e2m1_to_high_bytes(codes & 0x0f0f0f0fu);
                const uint32_t odd = e2m1_to_high_bytes(codes >> 4 & 0x0f0f0f0fu);
                // Halves {even, odd} of byte 0, then of bytes 1, 2, 3.
                const uint32_t low = byte_perm(even, odd, 0x5140u), high = byte_perm(even, odd, 0x7362u);
                keys.a[2 * m][r] = mul_f16x2(byte_perm(low, 0u, 0x1404u), scales);
                keys.a[2 * m][2 + r] = mul_f16x2(byte_perm(low, 0u, 0x3424u), scales);
                keys.a[2 * m + 1][r] = mul_f16x2(byte_perm(high, 0u, 0x1404u), scales);
                keys.a[2 * m + 1][2 + r] = mul_f16x2(byte_perm(high, 0u, 0x3424u), scales);
            }
        } else {
#pragma unroll
            for (uint32_t i = 0; i < 16; i++) {
                const float2 v = reinterpret_cast<const float2*>(row)[i * 4u + t];
                keys.a[i / 2][i % 2 * 2 + r] = pack_f16x2(v.x * KEY_FACTOR, v.y * KEY_FACTOR);
            }
        }
    }
}

// A query on its way into stage `token % STAGES`.
DEVICE void fetch_query(const IndexerScoresParams& p, unsigned char* shared, uint32_t token, uint32_t end) {
    if (token < end) {
        unsigned char* stage = shared + token % STAGES * QUERY_BYTES;
        const uint16_t* q = p.q + static_cast<uint64_t>(p.first_token + token) * (INDEXER_HEADS * INDEXER_DIM);
#pragma unroll
        for (uint32_t i = threadIdx.x; i < INDEXER_HEADS * 16u; i += 512u) {
            const uint32_t head = i / 16u, piece = i % 16u;
            copy16_async(stage + piece / 8u * TILE + tile_piece(head, piece % 8u), q + i * 8u);
        }
        if (threadIdx.x < INDEXER_HEADS / 4u) {
            const float* weights = p.weights + static_cast<uint64_t>(p.first_token + token) * INDEXER_HEADS;
            copy16_async(shared + STAGES * QUERY_BYTES + token % STAGES * (INDEXER_HEADS * 4u) + threadIdx.x * 16u,
                         weights + threadIdx.x * 4u);
        }
    }
    copy_commit();
}

// What is left to do of a token when its products are there.
struct Pending {
    uint32_t token, visible;
};

DEVICE void finish(const IndexerScoresParams& p, const unsigned char* shared, const float (&dots)[32], Pending of, uint32_t first) {
    const uint32_t lane = lane_id(), g = lane / 4u, t = lane % 4u;
    const float* weights =
        reinterpret_cast<const float*>(shared + STAGES * QUERY_BYTES + of.token % STAGES * (INDEXER_HEADS * 4u)) + 2u * t;
    float score[2] = {};
#pragma unroll
    for (uint32_t j = 0; j < 8; j++) {
        const float2 w = *reinterpret_cast<const float2*>(weights + j * 8u);
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            score[r] = fmaf(w.y, fmaxf(dots[j * 4u + r * 2u + 1u], 0.0f), fmaf(w.x, fmaxf(dots[j * 4u + r * 2u], 0.0f), score[r]));
        }
    }
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        float s = score[r];
        s += shuffle_xor(s, 1u);
        s += shuffle_xor(s, 2u);
        const uint32_t row = first + g + 8u * r;
        if (t == 0 && row < of.visible) p.scores[of.token * p.stride + row] = s * (1.0f / KEY_FACTOR);
    }
}

DEVICE void begin(const unsigned char* shared, float (&dots)[32], const Keys& keys, uint32_t token) {
    const uint64_t query = tile_operand(shared + token % STAGES * QUERY_BYTES, 0);
    products_keep(dots);
    products_begin();
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) wgmma_n64(dots, keys.a[i], query + (i / 4u * TILE + i % 4u * 32u) / 16u, i != 0);
    products_commit();
}

// Tokens `from .. to` of one sequence, which see more and more of the block's keys.
DEVICE void run(const IndexerScoresParams& p, unsigned char* shared, const Keys& keys, uint32_t from, uint32_t to, uint32_t first) {
    const auto visible = [&](uint32_t token) { return (p.batch.positions[p.first_token + token] + 1u) / p.ratio; };
    // The query of `token` is there for all, and all are done with that of two tokens before.
    const auto arrive = [&](uint32_t token) {
        copy_wait<1>();
        writes_for_products();
        __syncthreads();
        fetch_query(p, shared, token + 2u, to);
    };
    fetch_query(p, shared, from, to);
    fetch_query(p, shared, from + 1u, to);
    float dots[2][32];
    Pending pending[2];
    arrive(from);
    pending[0] = {from, visible(from)};
    begin(shared, dots[0], keys, from);
    uint32_t token = from + 1u;
    for (; token + 1u < to; token += 2u) {
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            pending[1 - i] = {token + i, visible(token + i)};
            arrive(token + i);
            begin(shared, dots[1 - i], keys, token + i);
            products_wait<1>();
            products_keep(dots[i]);
            finish(p, shared, dots[i], pending[i], first);
        }
    }
    if (token < to) {
        pending[1] = {token, visible(token)};
        arrive(token);
        begin(shared, dots[1], keys, token);
        products_wait<1>();
        products_keep(dots[0]);
        finish(p, shared, dots[0], pending[0], first);
        products_wait<0>();
        products_keep(dots[1]);
        finish(p, shared, dots[1], pending[1], first);
    } else {
        products_wait<0>();
        products_keep(dots[0]);
        finish(p, shared, dots[0], pending[0], first);
    }
    copy_wait<0>();
    // Stages are filled anew by whoever comes first.
    __syncthreads();
}

DEVICE void scores(const IndexerScoresParams& p, unsigned char* shared) {
    pdl_trigger();
    pdl_wait();
    const uint32_t first_token = blockIdx.y * p.of_block, end_token = min(first_token + p.of_block, p.tokens);
    for (uint32_t from = first_token; from < end_token;) {
        // Tokens of one sequence here, and how many keys the last of them sees.
        const uint32_t sequence = p.batch.sequence[p.first_token + from];
        const Span span = p.batch.spans[sequence];
        const uint32_t to = min(span.row + span.len - p.first_token, end_token);
        const uint32_t start = p.batch.positions[p.first_token + from];
        const uint32_t most = (start + (to - from)) / p.ratio;
        for (uint32_t block = blockIdx.x * KEYS; block < most; block += gridDim.x * KEYS) {
            // The first token that sees one of these keys is at position (block + 1) ratio - 1.
            const uint32_t needed = (block + 1u) * p.ratio - 1u;
            const uint32_t seeing = from + (needed > start ? needed - start : 0u);
            const uint32_t first = block + warp_id() * 16u;
            Keys keys;
            fetch_keys(keys, p.keys, sequence, first, most);
            run(p, shared, keys, seeing, to, first);
        }
        from = to;
    }
}

}  // namespace indexer_by_warpgroups

#endif

// Grid: any number of blocks of 256 keys, tokens / of_block. 512 threads; 64 heads.
KERNEL(indexer_scores_wgmma, IndexerScoresParams, 512) {
#if HAS_WARPGROUPS
    SHARED(unsigned char, shared);
    indexer_by_warpgroups::scores(p, shared);
#else
    no_warpgroups();
#endif
}
