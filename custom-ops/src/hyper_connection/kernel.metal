// Hyper-connections: mixing weights, the way into a sub-layer and the way out of it.

#define MIX_THREADS 256u
#define MOST_STREAMS 4u

struct Mix {
    uint streams;
    uint per_token;  // values of all streams
    uint iterations;
    float eps;
    float norm_eps;
};

inline float sigmoid(float x) { return 1.0f / (1.0f + precise::exp(-x)); }

// Pipelines for a layer's mix and for the head's, which is gates only.
FUNCTION_CONSTANT(bool, IS_HEAD, 0)

// One threadgroup a token: the norm by all, the mix by one thread, for it is a few dozen numbers.
kernel void hyper_mix(constant Mix& p [[buffer(0)]], device const float* state [[buffer(1)]],
                      device const float* raw [[buffer(2)]], device const float* scale [[buffer(3)]],
                      device const float* base [[buffer(4)]], device float* out [[buffer(5)]],
                      THREAD_POSITION) {
    THREADGROUP(float, partial, [32]);
    device const float* s = state + ulong(group.x) * p.per_token;
    float sum = 0.0f;
    for (uint i = index; i < p.per_token; i += MIX_THREADS) sum = fma(s[i], s[i], sum);
    sum = threadgroup_sum(sum, partial, lane, simd, MIX_THREADS / LANES);
    float norm = 1.0f / precise::sqrt(sum / float(p.per_token) + p.norm_eps);
    if (simd != 0u) return;

    uint n = p.streams, width = IS_HEAD ? n : (2u + n) * n;
    device const float* m = raw + group.x * width;
    device float* to = out + group.x * width;
    if (lane < n) {
        to[lane] = sigmoid(m[lane] * norm * scale[0] + base[lane]) + p.eps;
        if (!IS_HEAD) to[n + lane] = 2.0f * sigmoid(m[n + lane] * norm * scale[1] + base[n + lane]);
    }
    if (IS_HEAD) return;
    // Lane 4j + k holds C[j][k]; lanes beyond the matrix hold zeros that no sum minds.
    uint j = lane / MOST_STREAMS, k = lane % MOST_STREAMS;
    bool there = j < n && k < n;
    uint at = 2u * n + n * j + k;
    float c = there ? m[at] * norm * scale[2] + base[at] : -INFINITY;
    float most = c;
    for (uint step = 1; step < MOST_STREAMS; step *= 2u) most = max(most, simd_shuffle_xor(most, ushort(step)));
    c = there ? precise::exp(c - most) : 0.0f;
    float row = c;
    for (uint step = 1; step < MOST_STREAMS; step *= 2u) row += simd_shuffle_xor(row, ushort(step));
    c = there ? c / row + p.eps : 0.0f;
    for (uint i = 0; i < p.iterations; i++) {
        if (i > 0u) {
            row = c;
            for (uint step = 1; step < MOST_STREAMS; step *= 2u) row += simd_shuffle_xor(row, ushort(step));
            c = there ? c / (row + p.eps) : 0.0f;
        }
        float column = c;
        for (uint step = MOST_STREAMS; step < LANES; step *= 2u) column += simd_shuffle_xor(column, ushort(step));
        c = there ? c / (column + p.eps) : 0.0f;
    }
    if (there) to[at] = c;
}
KERNEL(hyper_mix)

struct Streams {
    uint streams;
    uint width;  // of a token's mix
    uint hidden;
};

kernel void hyper_collapse(constant Streams& p [[buffer(0)]], device const float* state [[buffer(1)]],
                           device const float* mix [[buffer(2)]], device float* out [[buffer(3)]],
                           THREAD_POSITION) {
    uint channel = group.x * MIX_THREADS + index, token = group.y;
    if (channel >= p.hidden) return;
    device const float* s = state + ulong(token) * p.streams * p.hidden + channel;
    float sum = 0.0f;
    for (uint i = 0; i < p.streams; i++) sum = fma(mix[token * p.width + i], s[i * p.hidden], sum);
    out[ulong(token) * p.hidden + channel] = sum;
}
KERNEL(hyper_collapse)

// One thread a channel: it reads all streams before it writes the first.
kernel void hyper_expand(constant Streams& p [[buffer(0)]], device const float* y [[buffer(1)]],
                         device const float* mix [[buffer(2)]], device float* state [[buffer(3)]],
                         THREAD_POSITION) {
    uint channel = group.x * MIX_THREADS + index, token = group.y;
    if (channel >= p.hidden) return;
    device float* s = state + ulong(token) * p.streams * p.hidden + channel;
    device const float* post = mix + token * p.width + p.streams;
    device const float* c = post + p.streams;
    float old[MOST_STREAMS], v = y[ulong(token) * p.hidden + channel];
    for (uint j = 0; j < p.streams; j++) old[j] = s[j * p.hidden];
    for (uint k = 0; k < p.streams; k++) {
        float sum = post[k] * v;
        for (uint j = 0; j < p.streams; j++) sum = fma(c[j * p.streams + k], old[j], sum);
        s[k * p.hidden] = sum;
    }
}
KERNEL(hyper_expand)
