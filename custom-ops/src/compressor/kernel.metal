// Windows of tokens become rows: a softmax over the window, channel by channel.

struct Pool {
    uint ratio;
    uint overlap;
    uint width;         // of the projections
    uint dim;           // of a row
    uint row;           // of the span's first token in the batch
    uint start;         // its position
    uint slots;         // of the rings
    uint first_window;  // that ends in the span
    uint first_out;     // its row in `out`
};

// One thread a channel of a window. Rings hold the tokens before the span.
kernel void pool(constant Pool& p [[buffer(0)]], device const float* values [[buffer(1)]],
                 device const float* gates [[buffer(2)]], device const float* ape [[buffer(3)]],
                 device const float* past_values [[buffer(4)]],
                 device const float* past_gates [[buffer(5)]], device float* out [[buffer(6)]],
                 THREAD_POSITION) {
    uint channel = group.x * LANES + lane;
    if (channel >= p.dim) return;
    uint window = p.first_window + group.y, end = (window + 1u) * p.ratio;
    // With overlap a row begins one window earlier, with the other half of the projections.
    uint own = window * p.ratio, from = p.overlap != 0u && window > 0u ? own - p.ratio : own;
    float most = -INFINITY, sum = 0.0f, value = 0.0f;
    for (uint pass = 0; pass < 2; pass++) {
        for (uint position = from; position < end; position++) {
            uint column = p.overlap != 0u && position >= own ? p.dim + channel : channel;
            bool here = position >= p.start;
            uint row = here ? p.row + (position - p.start) : position % p.slots;
            ulong at = ulong(row) * p.width + column;
            float gate = here ? gates[at] : past_gates[at];
            gate += ape[position % p.ratio * p.width + column];
            if (pass == 0u) {
                most = max(most, gate);
            } else {
                float weight = precise::exp(gate - most);
                sum += weight;
                value = fma(weight, here ? values[at] : past_values[at], value);
            }
        }
    }
    out[ulong(p.first_out + group.y) * p.dim + channel] = value / sum;
}
KERNEL(pool)
