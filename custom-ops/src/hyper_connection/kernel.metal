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

// A gate's or the matrix's logit `i` of n streams, out of a value of the projection.
inline float mix_logit(float value, uint i, uint n, device const float* scale, device const float* base) {
    return value * scale[IS_HEAD || i < n ? 0u : i < 2u * n ? 1u : 2u] + base[i];
}

// Writes the mix whose logit l is in lane l.
inline void write_mix(float logit, uint n, uint iterations, float eps, device float* to, uint lane) {
    if (lane < 2u * n && !(IS_HEAD && lane >= n)) {
        to[lane] = lane < n ? sigmoid(logit) + eps : 2.0f * sigmoid(logit);
    }
    if (IS_HEAD) return;
    // Lane 4j + k holds C[j][k]; lanes beyond the matrix hold zeros that no sum minds.
    uint j = lane / MOST_STREAMS, k = lane % MOST_STREAMS;
    bool there = j < n && k < n;
    uint at = there ? 2u * n + n * j + k : 0u;
    float c = simd_shuffle(logit, ushort(at));
    c = there ? c : -INFINITY;
    float most = c;
    for (uint step = 1; step < MOST_STREAMS; step *= 2u) most = max(most, simd_shuffle_xor(most, ushort(step)));
    c = there ? precise::exp(c - most) : 0.0f;
    float row = c;
    for (uint step = 1; step < MOST_STREAMS; step *= 2u) row += simd_shuffle_xor(row, ushort(step));
    c = there ? c / row + eps : 0.0f;
    for (uint i = 0; i < iterations; i++) {
        if (i > 0u) {
            row = c;
            for (uint step = 1; step < MOST_STREAMS; step *= 2u) row += simd_shuffle_xor(row, ushort(step));
            c = there ? c / (row + eps) : 0.0f;
        }
        float column = c;
        for (uint step = MOST_STREAMS; step < LANES; step *= 2u) column += simd_shuffle_xor(column, ushort(step));
        c = there ? c / (column + eps) : 0.0f;
    }
    if (there) to[at] = c;
}

// One threadgroup a token: the norm by all, the mix by one SIMD-group, for it is a few dozen numbers.
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
    float logit = lane < width ? mix_logit(raw[group.x * width + lane] * norm, lane, n, scale, base) : 0.0f;
    write_mix(logit, n, p.iterations, p.eps, out + group.x * width, lane);
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

// ------------------------------------------------------------------------------------------------
// A sub-layer's way in, of few tokens, in two launches: one that passes over the streams, in blocks of
// channels, and one that knows what all blocks have found.
//
// The norm of the collapsed streams is found without them: x = Σ pre_i S_i, so that |x|² =
// Σ pre_i pre_j (S_i · S_j), and the first launch leaves the products of the streams with each other.

// Channels of a block: eight for each lane of a SIMD-group.
#define ENTER_CHANNELS (8u * LANES)
// What a block leaves of a token: a value for each row of the projection, then S_i · S_j at 32 + 4i + j.
#define ENTER_VALUES 64u
#define ENTER_ROWS 24u

struct Enter {
    uint streams;
    uint hidden;
    uint rows;       // of the projection
    uint row_bytes;
    uint iterations;
    float eps;
    float mix_norm_eps;
    float norm_eps;
};

// Pipelines for streams that something is due to.
FUNCTION_CONSTANT(bool, IS_DUE, 1)

// Grid: blocks of channels, tokens. Two SIMD-groups a stream, which share the projection's rows. What is
// due is written back first. Writes `partial` [tokens, blocks, ENTER_VALUES].
template <typename F>
kernel void hyper_streams(constant Enter& p [[buffer(0)]], device const uchar* projection [[buffer(1)]],
                          device const float* y [[buffer(2)]], device const float* due [[buffer(3)]],
                          device float* state [[buffer(4)]], device float* partial [[buffer(5)]],
                          THREAD_POSITION) {
    THREADGROUP(uint, grid, [uint(F::GRID)]);
    THREADGROUP(float, streams, [MOST_STREAMS][ENTER_CHANNELS]);
    THREADGROUP(float, sums, [2u * MOST_STREAMS][ENTER_ROWS / 2u]);
    uint n = p.streams, stream = simd / 2u, half_of = simd % 2u, token = group.y;
    fill_grid<F>(grid, index, 2u * n * LANES);
    if (has_grid<F>()) threadgroup_barrier(mem_flags::mem_threadgroup);
    // Hidden sizes are multiples of eight.
    uint channel = group.x * ENTER_CHANNELS + 8u * lane;
    bool active = channel < p.hidden;
    device float* of_token = state + ulong(token) * n * p.hidden;
    float s[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    if (active && IS_DUE) {
        device const float* mix = due + token * (2u + n) * n;
        device const float* from = y + ulong(token) * p.hidden + channel;
        float post = mix[n + stream];
        for (uint i = 0; i < 8; i++) s[i] = post * from[i];
        for (uint j = 0; j < n; j++) {
            float c = mix[2u * n + j * n + stream];
            device const float* old = of_token + j * p.hidden + channel;
            for (uint i = 0; i < 8; i++) s[i] = fma(c, old[i], s[i]);
        }
    } else if (active) {
        device const float* old = of_token + stream * p.hidden + channel;
        for (uint i = 0; i < 8; i++) s[i] = old[i];
    }
    if (half_of == 0u) {
        for (uint i = 0; i < 8; i++) streams[stream][8u * lane + i] = s[i];
    }
    uint mine = div_up(p.rows, 2u), first = half_of * mine, last = min(first + mine, p.rows);
    for (uint row = first; row < last; row++) {
        float sum = 0.0f;
        if (active) {
            float v[8];
            F::run8(projection + ulong(row) * p.row_bytes, (stream * p.hidden + channel) / 8u, grid, v);
            for (uint i = 0; i < 8; i++) sum = fma(v[i], s[i], sum);
        }
        sum = simd_sum(sum);
        if (lane == 0u) sums[simd][row - first] = sum;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // All have read the old state.
    if (active && IS_DUE && half_of == 0u) {
        device float* to = of_token + stream * p.hidden + channel;
        for (uint i = 0; i < 8; i++) to[i] = s[i];
    }
    device float* out = partial + (ulong(token) * groups.x + group.x) * ENTER_VALUES;
    if (index < p.rows) {
        uint at = index / mine, of = index % mine;
        float sum = 0.0f;
        for (uint i = 0; i < n; i++) sum += sums[2u * i + at][of];
        out[index] = sum;
    }
    for (uint pair = simd; pair < n * n; pair += 2u * n) {
        uint a = pair / n, b = pair % n;
        float sum = 0.0f;
        for (uint i = lane; i < ENTER_CHANNELS; i += LANES) sum = fma(streams[a][i], streams[b][i], sum);
        sum = simd_sum(sum);
        if (lane == 0u) out[32u + MOST_STREAMS * a + b] = sum;
    }
}

INSTANCE(hyper_streams_f32, hyper_streams<F32>)
INSTANCE(hyper_streams_f16, hyper_streams<F16>)
INSTANCE(hyper_streams_bf16, hyper_streams<BF16>)
INSTANCE(hyper_streams_q8_0, hyper_streams<Q8_0>)

// Grid: blocks of 256 channels, tokens. Every SIMD-group adds up what all blocks have left.
kernel void hyper_collapsed(constant Enter& p [[buffer(0)]], device const float* state [[buffer(1)]],
                            device const float* partial [[buffer(2)]],
                            device const float* scale [[buffer(3)]], device const float* base [[buffer(4)]],
                            device const float* norm [[buffer(5)]], device float* mix [[buffer(6)]],
                            device float* out [[buffer(7)]], THREAD_POSITION) {
    uint n = p.streams, token = group.y, blocks = div_up(p.hidden, ENTER_CHANNELS);
    uint a = lane / MOST_STREAMS, b = lane % MOST_STREAMS;
    bool is_pair = a < n && b < n;
    device const float* from = partial + ulong(token) * blocks * ENTER_VALUES + lane;
    float value = 0.0f, product = 0.0f;
    for (uint block = 0; block < blocks; block++) {
        if (lane < p.rows) value += from[block * ENTER_VALUES];
        if (is_pair) product += from[block * ENTER_VALUES + 32u];
    }
    float mean = simd_sum(is_pair && a == b ? product : 0.0f) / float(n * p.hidden);
    value *= 1.0f / precise::sqrt(mean + p.mix_norm_eps);
    float logit = lane < p.rows ? mix_logit(value, lane, n, scale, base) : 0.0f;
    float gate = sigmoid(logit) + p.eps;
    float square = simd_shuffle(gate, ushort(a)) * simd_shuffle(gate, ushort(b)) * product;
    square = max(simd_sum(is_pair ? square : 0.0f), 0.0f);
    float length = 1.0f / precise::sqrt(square / float(p.hidden) + p.norm_eps);
    float pre[MOST_STREAMS];
    for (uint i = 0; i < MOST_STREAMS; i++) pre[i] = simd_shuffle(gate, ushort(i));
    uint channel = group.x * MIX_THREADS + index;
    if (channel < p.hidden) {
        device const float* s = state + ulong(token) * n * p.hidden + channel;
        float x = 0.0f;
        for (uint i = 0; i < n; i++) x = fma(pre[i], s[i * p.hidden], x);
        out[ulong(token) * p.hidden + channel] = x * length * norm[channel];
    }
    if (!IS_HEAD && group.x == 0u && simd == 0u) {
        write_mix(logit, n, p.iterations, p.eps, mix + token * p.rows, lane);
    }
}
KERNEL(hyper_collapsed)
