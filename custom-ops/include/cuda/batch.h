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

// One ring of f32 rows for each sequence: the row of position p is in slot p mod slots.
struct Rings {
    float* data[MAX_SEQUENCES];  // [slots, width]
    uint32_t slots;
    uint32_t width;
};

// How a row is kept.
enum RowsFormat {
    ROWS_F32 = 0,     // width floats
    ROWS_PACKED = 1,  // attention rows, 584 bytes: 448 e4m3 codes, 64 bf16, 7 scales (e8m0), 1 pad
    ROWS_FP4 = 2,     // indexer keys, 68 bytes: 64 of e2m1 pairs (low nibble first), 4 scales (e8m0)
};

// One list of rows for each sequence, in pages: row r is row r mod page_rows of page r / page_rows.
struct Rows {
    uint8_t* const* pages[MAX_SEQUENCES];  // device arrays of page addresses
    uint32_t page_rows;
    uint32_t row_bytes;
    uint32_t width;   // values in a row
    uint32_t format;  // RowsFormat
};
