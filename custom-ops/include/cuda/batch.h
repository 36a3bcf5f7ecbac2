// A ragged batch and the KV state of its sequences, as kernels see them.
//
// Whatever changes from one decode step to the next lies in device memory, so that a captured graph
// can be replayed: positions and spans of the batch, the page tables of compressed rows. What stays
// (the addresses of those, ring sizes, formats) is in the parameter struct. A kernel derives lengths
// from positions: at position `p` a list of ratio `r` has `(p + 1) / r` visible rows.
//
// Rust's twin is src/device/cuda/batch.rs.
#pragma once

#include "layout.h"

// Sequences of a batch at most.
#define MAX_SEQUENCES 32u

// The tokens of one sequence: rows `row .. row + len` of the batch, at positions `start ..`.
struct Span {
    uint32_t row;
    uint32_t len;
    uint32_t start;
};

struct Batch {
    const uint32_t* positions;  // [tokens]
    const uint32_t* sequence;   // [tokens]: index of the token's sequence
    const Span* spans;          // [sequences]
    uint32_t tokens;
    uint32_t sequences;
};

// A window of `ratio` tokens that ends inside the batch, as the compressor counts them: one row each,
// sequence after sequence. Where rows must not depend on positions (`per_sequence` is not 0), each
// sequence has that many, and those after its last window are nobody's.
struct Window {
    uint32_t sequence;
    uint32_t index;  // in its sequence
    bool ended;
};

LAYOUT_FN Window window_of(const Batch& batch, uint32_t row, uint32_t ratio, uint32_t per_sequence) {
    for (uint32_t i = 0; i < batch.sequences; i++) {
        const Span span = batch.spans[i];
        const uint32_t first = span.start / ratio, count = (span.start + span.len) / ratio - first;
        const uint32_t rows = per_sequence ? per_sequence : count;
        if (row < rows) return Window{i, first + row, row < count};
        row -= rows;
    }
    return Window{0, 0, false};
}

// One ring of f32 rows for each sequence: the row of position p is in slot p mod slots.
struct Rings {
    float* data[MAX_SEQUENCES];  // [slots, width]
    uint32_t slots;
    uint32_t width;
};

// How a row is kept; kv.h has the bytes.
enum RowsFormat {
    ROWS_F32 = 0,  // width floats
    ROWS_FP8 = 1,  // attention rows: `nope` e4m3 codes, width - nope bf16, a scale (e8m0) for each block
    ROWS_FP4 = 2,  // indexer keys: e2m1 codes, the even channel low, a scale (e8m0) for each block
};

// One list of rows for each sequence, in pages: row r is row r mod page_rows of page r / page_rows.
struct Rows {
    uint8_t* const* pages[MAX_SEQUENCES];  // device arrays of page addresses
    uint32_t page_rows;
    uint32_t row_bytes;
    uint32_t width;   // values in a row
    uint32_t format;  // RowsFormat
    uint32_t nope;    // channels in e4m3, of ROWS_FP8
    uint32_t block;   // channels that share a scale
};

LAYOUT_FN uint8_t* row_at(const Rows& rows, uint32_t sequence, uint32_t row) {
    uint8_t* page = rows.pages[sequence][row / rows.page_rows];
    return page + uint64_t(row % rows.page_rows) * rows.row_bytes;
}
