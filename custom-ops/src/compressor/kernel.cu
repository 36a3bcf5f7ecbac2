// Windows of tokens pooled into rows, channel by channel.

#include "cuda/batch.h"
#include "cuda/pool.cuh"

struct PoolParams {
    const float* values;  // [tokens, width]
    const float* gates;   // [tokens, width]
    const float* bias;    // [ratio, width]
    float* out;           // [rows, dim]
    Rings past_values;
    Rings past_gates;
    Batch batch;
    uint32_t ratio;
    uint32_t overlap;
    uint32_t width;
    uint32_t dim;
    uint32_t per_sequence;
};

// Value and logarithm of the weight of one token of a window.
DEVICE float2 pool_slot(const PoolParams& p, const Span& span, uint32_t sequence, uint32_t position,
                        uint32_t column) {
    float2 slot;
    if (position >= span.start) {
        const uint64_t at = uint64_t(span.row + position - span.start) * p.width + column;
        slot = make_float2(p.values[at], p.gates[at]);
    } else {
        const uint64_t at = uint64_t(position % p.past_values.slots) * p.width + column;
        slot = make_float2(p.past_values.data[sequence][at], p.past_gates.data[sequence][at]);
    }
    slot.y += p.bias[uint64_t(position % p.ratio) * p.width + column];
    return slot;
}

// A block for 128 channels of a row; a thread for each channel.
KERNEL(pool, PoolParams, 128) {
    pdl_trigger();
    pdl_wait();
    const uint32_t channel = blockIdx.y * 128 + threadIdx.x;
    if (channel >= p.dim) return;
    const Window window = window_of(p.batch, blockIdx.x, p.ratio, p.per_sequence);
    float* out = p.out + uint64_t(blockIdx.x) * p.dim + channel;
    if (!window.ended) {
        *out = 0.0f;
        return;
    }
    const Span span = p.batch.spans[window.sequence];
    *out = pooled(pooled_window(window.index, p.ratio, p.overlap != 0, p.dim), channel, [&](uint32_t position, uint32_t column) {
        return pool_slot(p, span, window.sequence, position, column);
    });
}
