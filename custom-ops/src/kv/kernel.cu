// A batch's rows into the rings and pages of its sequences.

#include "cuda/batch.h"
#include "cuda/memory.cuh"
#include "cuda/row.cuh"

#define MAX_RINGS 4

struct WriteRingsParams {
    const float* rows[MAX_RINGS];  // [tokens, width] each
    Rings rings[MAX_RINGS];
    Batch batch;
};

// A block for 256 channels of a token's row, for each of up to four kinds of rings.
KERNEL(write_rings, WriteRingsParams, 256) {
    pdl_trigger();
    pdl_wait();
    const Rings& rings = p.rings[blockIdx.z];
    const uint32_t token = blockIdx.x, channel = blockIdx.y * 256 + threadIdx.x;
    if (channel >= rings.width) return;
    const uint32_t sequence = p.batch.sequence[token];
    const Span span = p.batch.spans[sequence];
    // Of a span longer than the ring, only the last rows: the others would race with them.
    if (token - span.row + rings.slots < span.len) return;
    const uint32_t slot = p.batch.positions[token] % rings.slots;
    rings.data[sequence][uint64_t(slot) * rings.width + channel] =
        p.rows[blockIdx.z][uint64_t(token) * rings.width + channel];
}

struct AppendRowsParams {
    const float* source;  // [rows, width], rounded to what the format holds
    Rows rows;
    Batch batch;
    uint32_t ratio;
    uint32_t per_sequence;
};

// A block for each row.
KERNEL(append_rows, AppendRowsParams, 256) {
    pdl_trigger();
    pdl_wait();
    const Window window = window_of(p.batch, blockIdx.x, p.ratio, p.per_sequence);
    if (!window.ended) return;
    pack_row(p.rows, p.source + uint64_t(blockIdx.x) * p.rows.width, row_at(p.rows, window.sequence, window.index));
}
