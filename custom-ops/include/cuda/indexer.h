// Parameters of the lightning indexer. Rust's twins are in src/indexer/cuda.rs.
#pragma once

#include "batch.h"

// Values of a key and of a head's query.
#define INDEXER_DIM 128u
// Heads at most; a multiple of 8.
#define INDEXER_HEADS 64u

// `score[t, r] = Σ_h weight[t, h] · relu(q[t, h] · key[r])` for the visible rows of each token.
struct IndexerScoresParams {
    const uint16_t* q;     // halves [tokens, heads, 128], in order
    const float* weights;  // [tokens, heads]
    float* scores;         // [tokens of this launch, stride]
    Batch batch;
    Rows keys;
    uint64_t stride;
    uint32_t heads;
    uint32_t ratio;
    uint32_t first_token;  // of this launch
    uint32_t tokens;       // of this launch
    uint32_t of_block;     // tokens that a block takes one after the other
};

// The `k` visible rows with the highest scores, ascending; ties go to the lower row.
struct IndexerSelectParams {
    const float* scores;  // [tokens of this launch, stride]
    uint32_t* out;        // [tokens, k], NO_ROW at the end of a list that is shorter
    Batch batch;
    uint64_t stride;
    uint32_t k;
    uint32_t ratio;
    uint32_t first_token;
    uint32_t cached;  // scores that a block keeps in shared memory, a multiple of 32
    uint32_t words;   // of bitmaps: rows of a block / 32, rounded up, at most
};

// Shared memory of `indexer_scores_*`: queries of two tokens, their weights.
#define INDEXER_SCORES_SHARED (2u * (64u * 320u + 64u * 4u))
// Shared memory of `indexer_scores_wgmma`: queries of four tokens, their weights.
#define INDEXER_SCORES_WGMMA_SHARED (4u * (64u * 256u + 64u * 4u))
// Shared memory of `indexer_select`.
#define INDEXER_SELECT_SHARED(cached, words) (((cached) + 2048u + 64u + 2u * (words)) * 4u)
// Rows of a block of `indexer_select_few` at most, and its shared memory.
#define INDEXER_SELECT_FEW 8192u
#define INDEXER_SELECT_FEW_SHARED ((3u * 2048u + 32u + 4u + 4u * 256u) * 4u)
// Blocks of its clusters at most.
#define INDEXER_SELECT_CLUSTER 8u
