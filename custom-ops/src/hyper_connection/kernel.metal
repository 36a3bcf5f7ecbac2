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
// channels, and one that knows what all blocks have found. What is due may be a product that nobody has
// computed: a block of channels is a block of its rows, and the first launch computes them.
//
// The norm of the collapsed streams is found without them: x = Σ pre_i S_i, so that |x|² =
// Σ pre_i pre_j (S_i · S_j), and the first launch leaves the products of the streams with each other.

// Channels of a block: one for each lane.
#define ENTER_CHANNELS LANES
#define ENTER_SIMDS 8u
#define ENTER_THREADS (ENTER_SIMDS * LANES)
// What a block leaves of a token: a value for each row of the projection, then S_i · S_j at 32 + 4i + j.
#define ENTER_VALUES 48u

struct Enter {
    uint streams;
    uint hidden;
    uint blocks;     // of channels
    uint rows;       // of the projection
    uint row_bytes;
    uint iterations;
    float eps;
    float mix_norm_eps;
    float norm_eps;
};

// Pipelines for streams that something is due to.
FUNCTION_CONSTANT(bool, IS_DUE, 1)

// A SIMD-group a stream takes in what is due, of which the block's share is `y`; then all leave the block's
// share of the sums. `streams` has room for ENTER_CHANNELS of each, and is free again after the next barrier.
template <typename F, typename Y>
void take_in(constant Enter& p, uint token, uint block, device const uchar* projection, Y y,
             device const float* due, device float* state, device float* partial,
             threadgroup float* streams, uint lane, uint simd) {
    uint n = p.streams, first = block * ENTER_CHANNELS, channel = first + lane;
    bool active = simd < n && channel < p.hidden;
    device float* of_token = state + ulong(token) * n * p.hidden;
    float v = 0.0f;
    if (active && IS_DUE) {
        device const float* mix = due + token * (2u + n) * n;
        v = mix[n + simd] * y[lane];
        for (uint j = 0; j < n; j++) v = fma(mix[2u * n + j * n + simd], of_token[j * p.hidden + channel], v);
    } else if (active) {
        v = of_token[simd * p.hidden + channel];
    }
    if (simd < n) streams[simd * ENTER_CHANNELS + lane] = v;
    // All have read the old state.
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (active && IS_DUE) of_token[simd * p.hidden + channel] = v;
    device float* out = partial + (ulong(token) * p.blocks + block) * ENTER_VALUES;
    // Two rows at a time; a lane of a row has eight channels of a stream. Hidden sizes are multiples of eight.
    uint run = lane % 16u, stream = run / 4u, at = run % 4u * 8u;
    bool there = stream < n && first + at < p.hidden;
    for (uint row0 = 2u * simd; row0 < p.rows; row0 += 2u * ENTER_SIMDS) {
        uint row = row0 + lane / 16u;
        float sum = 0.0f;
        if (there && row < p.rows) {
            float w[8];
            // Of these formats none looks anything up.
            F::run8(projection + ulong(row) * p.row_bytes, (stream * p.hidden + first + at) / 8u, nullptr, w);
            threadgroup const float* s = streams + stream * ENTER_CHANNELS + at;
            for (uint i = 0; i < 8; i++) sum = fma(w[i], s[i], sum);
        }
        for (uint step = 1; step < 16u; step *= 2u) sum += simd_shuffle_xor(sum, ushort(step));
        if (run == 0u && row < p.rows) out[row] = sum;
    }
    for (uint pair = simd; pair < n * n; pair += ENTER_SIMDS) {
        uint a = pair / n, b = pair % n;
        float sum = simd_sum(streams[a * ENTER_CHANNELS + lane] * streams[b * ENTER_CHANNELS + lane]);
        if (lane == 0u) out[32u + MOST_STREAMS * a + b] = sum;
    }
}

// Grid: blocks of channels, tokens. Writes `partial` [tokens, blocks, ENTER_VALUES].
template <typename F>
kernel void hyper_streams(constant Enter& p [[buffer(0)]], device const uchar* projection [[buffer(1)]],
                          device const float* y [[buffer(2)]], device const float* due [[buffer(3)]],
                          device float* state [[buffer(4)]], device float* partial [[buffer(5)]],
                          THREAD_POSITION) {
    THREADGROUP(float, streams, [MOST_STREAMS * ENTER_CHANNELS]);
    device const float* share = y + ulong(group.y) * p.hidden + group.x * ENTER_CHANNELS;
    take_in<F>(p, group.y, group.x, projection, share, due, state, partial, streams, lane, simd);
}

struct Product {
    Enter enter;
    uint tokens;
    uint cols;
    uint row_bytes;
    uint format;  // as `dense_code` of src/matmul/metal.rs says
};

// The same of what is due as w·x [hidden, cols] of up to T tokens. Grid: blocks of channels.
template <typename F, uint T>
kernel void hyper_product(constant Product& p [[buffer(0)]], device const uchar* projection [[buffer(1)]],
                          device const uchar* w [[buffer(2)]], device const float* x [[buffer(3)]],
                          device const float* due [[buffer(4)]], device float* state [[buffer(5)]],
                          device float* partial [[buffer(6)]], THREAD_POSITION) {
    THREADGROUP(float, y, [T * ENTER_CHANNELS]);
    THREADGROUP(float, streams, [MOST_STREAMS * ENTER_CHANNELS]);
    uint first = group.x * ENTER_CHANNELS, rows = min(ENTER_CHANNELS, p.enter.hidden - first);
    device const uchar* of_block = w + ulong(first) * p.row_bytes;
    for (uint row = VEC_ROWS * simd; row < rows; row += VEC_ROWS * ENTER_SIMDS) {
        rows_of_any<T>(p.format, of_block, p.row_bytes, row, rows, p.cols, x, p.cols, (threadgroup float*)y,
                       ENTER_CHANNELS, p.tokens, lane);
    }
    for (uint token = 0; token < p.tokens; token++) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        take_in<F>(p.enter, token, group.x, projection, (threadgroup const float*)y + token * ENTER_CHANNELS, due,
                   state, partial, streams, lane, simd);
    }
}

#define ENTER(name, F)                                       \
    INSTANCE(hyper_streams_##name, hyper_streams<F>)         \
    INSTANCE(hyper_product_1_##name, hyper_product<F, 1u>)   \
    INSTANCE(hyper_product_2_##name, hyper_product<F, 2u>)   \
    INSTANCE(hyper_product_4_##name, hyper_product<F, 4u>)   \
    INSTANCE(hyper_product_8_##name, hyper_product<F, 8u>)
ENTER(f32, F32)
ENTER(f16, F16)
ENTER(bf16, BF16)
ENTER(q8_0, Q8_0)

// Grid: blocks of ENTER_THREADS channels, tokens. Every threadgroup adds up what all blocks have left.
kernel void hyper_collapsed(constant Enter& p [[buffer(0)]], device const float* state [[buffer(1)]],
                            device const float* partial [[buffer(2)]],
                            device const float* scale [[buffer(3)]], device const float* base [[buffer(4)]],
                            device const float* norm [[buffer(5)]], device float* mix [[buffer(6)]],
                            device float* out [[buffer(7)]], THREAD_POSITION) {
    THREADGROUP(float, values, [ENTER_SIMDS][LANES]);
    THREADGROUP(float, products, [ENTER_SIMDS][LANES]);
    uint n = p.streams, token = group.y;
    uint a = lane / MOST_STREAMS, b = lane % MOST_STREAMS;
    bool is_pair = a < n && b < n;
    device const float* from = partial + ulong(token) * p.blocks * ENTER_VALUES + lane;
    float value = 0.0f, product = 0.0f;
    for (uint block = simd; block < p.blocks; block += ENTER_SIMDS) {
        if (lane < p.rows) value += from[block * ENTER_VALUES];
        if (is_pair) product += from[block * ENTER_VALUES + 32u];
    }
    values[simd][lane] = value;
    products[simd][lane] = product;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    value = product = 0.0f;
    for (uint i = 0; i < ENTER_SIMDS; i++) {
        value += values[i][lane];
        product += products[i][lane];
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
    uint channel = group.x * ENTER_THREADS + index;
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
