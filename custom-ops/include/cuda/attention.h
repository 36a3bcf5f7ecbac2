// Parameters of attention. Rust's twins are in src/attention/cuda.rs.
#pragma once

#include "batch.h"

// Values of a row, which is key and value at once.
#define ATTENTION_DIM 512u
// Heads of a block of `attention_decode_*`, and of `attention_prefill`.
#define ATTENTION_DECODE_HEADS 8u
// Blocks of a cluster that share a token's rows, at most.
#define ATTENTION_DECODE_CLUSTER 8u
#define ATTENTION_PREFILL_HEADS 64u
// Frequencies at most: one for each lane of a warp.
#define ATTENTION_TURNS 32u

// Rows of a token at position p: those of positions p - window + 1 ..= p (the batch's own in `kv`, those
// before in the ring), then compressed ones: the first (p + 1) / ratio, or those in `chosen`.
struct AttentionParams {
    const float* q;          // [tokens, heads, 512]
    const float* kv;         // [tokens, 512]
    const float* sinks;      // [heads]
    const uint32_t* chosen;  // [tokens, top_k], NO_ROW for none; or null
    float* out;              // [tokens, heads, 512]
    Batch batch;
    Rings rings;
    Rows rows;
    uint32_t heads;
    uint32_t window;
    uint32_t ratio;  // 0 without compressed rows
    uint32_t top_k;
    float scale;
    uint32_t first_token;  // of this launch
    // Frequencies that queries turn by, `attention_decode_*` only; 0 for queries that have turned already
    // and are of length one. If there are some, the values are turned back, and `kv` is written to the
    // rings: a batch has one token of each sequence then.
    uint32_t turns;
    float norm_eps;
    float frequencies[ATTENTION_TURNS];
};

// Shared memory of `attention_decode_<chunk>`: rows, queries, weights, scores, addresses, state.
#define ATTENTION_DECODE_SHARED(chunk) \
    ((chunk) * 1040u + 2u * 8u * 1040u + 8u * ((chunk) + 8u) * 2u + 8u * (chunk) * 8u * 4u + (chunk) * 8u + 96u)
// Shared memory of `attention_prefill`.
#define ATTENTION_PREFILL_SHARED (2u * 64u * 1040u + 64u * 68u * 4u + 64u * 72u * 2u + 64u * 8u + 64u * 4u)
// Shared memory of `attention_prefill_wgmma`: queries, two chunks of rows, gates.
#define ATTENTION_PREFILL_WGMMA_SHARED (64u * 1024u + 2u * 64u * 1024u + 64u)
