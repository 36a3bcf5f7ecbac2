// A window of tokens pooled into a row, channel by channel.
#pragma once
#include "memory.cuh"

struct PooledWindow {
    uint32_t begin, own, end;  // positions: of the window before as well where windows overlap
    uint32_t half;             // columns from a token's first projection to the one of its own window
};

// Window `index` of `ratio` tokens and `dim` channels. The one before is pooled by the first half of its
// tokens' projections.
DEVICE PooledWindow pooled_window(uint32_t index, uint32_t ratio, bool overlap, uint32_t dim) {
    const uint32_t own = index * ratio;
    return {overlap && index > 0 ? own - ratio : own, own, own + ratio, overlap ? dim : 0u};
}

// Σ e^gate · value / Σ e^gate of a channel; `slot(position, column)` is a token's value and gate.
template <class F>
DEVICE float pooled(const PooledWindow& w, uint32_t channel, F slot) {
    const uint32_t second = channel + w.half;
    float most = -INFINITY;
    for (uint32_t position = w.begin; position < w.end; position++) {
        most = fmaxf(most, slot(position, position >= w.own ? second : channel).y);
    }
    float sum = 0.0f, weighted = 0.0f;
    for (uint32_t position = w.begin; position < w.end; position++) {
        const float2 of_token = slot(position, position >= w.own ? second : channel);
        const float weight = expf(of_token.y - most);
        sum += weight;
        weighted += weight * of_token.x;
    }
    return weighted / sum;
}
