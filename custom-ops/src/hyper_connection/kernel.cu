// Hyper-connections with four streams: gates and the doubly stochastic matrix, the way in, the way out.

#include "cuda/memory.cuh"
#include "cuda/reduce.cuh"

struct HyperMixParams {
    const float* state;  // [tokens, 4, hidden]
    const float* raw;    // [tokens, 24], or [tokens, 4] of the head
    const float* scale;  // [3], or [1]
    const float* base;   // as a token's raw
    float* out;          // as raw
    double norm_eps;
    uint32_t per_token;  // 4 · hidden
    uint32_t iterations;
    float eps;
    uint32_t is_head;
};

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// A block for each token; its first warp mixes.
KERNEL(hyper_mix, HyperMixParams, 512) {
    SHARED(double, scratch);
    pdl_trigger();
    pdl_wait();
    const float* state = p.state + uint64_t(blockIdx.x) * p.per_token;
    const float norm = rms_scale(state, p.per_token, p.norm_eps, scratch);
    if (warp_id() != 0) return;
    const uint32_t lane = lane_id(), width = p.is_head ? 4 : 24;
    const float* raw = p.raw + uint64_t(blockIdx.x) * width;
    float* out = p.out + uint64_t(blockIdx.x) * width;
    if (lane < 4) out[lane] = sigmoid(raw[lane] * norm * p.scale[0] + p.base[lane]) + p.eps;
    if (p.is_head) return;
    if (lane >= 4 && lane < 8) {
        out[lane] = 2.0f * sigmoid(raw[lane] * norm * p.scale[1] + p.base[lane]);
    }
    // Lane 4j + k of both halves of the warp holds C[j][k].
    const uint32_t at = 8 + lane % 16;
    float c = raw[at] * norm * p.scale[2] + p.base[at];
    float most = fmaxf(c, shuffle_xor(c, 1));
    most = fmaxf(most, shuffle_xor(most, 2));
    c = expf(c - most);
    for (uint32_t i = 0; i < p.iterations; i++) {
        float sum = c + shuffle_xor(c, 1);
        sum += shuffle_xor(sum, 2);
        c = i == 0 ? c / sum + p.eps : c / (sum + p.eps);
        sum = c + shuffle_xor(c, 4);
        sum += shuffle_xor(sum, 8);
        c /= sum + p.eps;
    }
    if (lane < 16) out[at] = c;
}

struct HyperParams {
    float* state;      // [tokens, 4, hidden]; read only on the way in
    const float* mix;  // [tokens, width]
    const float* y;    // [tokens, hidden], on the way out
    float* out;        // [tokens, hidden], on the way in
    uint32_t hidden;
    uint32_t width;
};

// A block for 256 channels of a token.
KERNEL(hyper_collapse, HyperParams, 256) {
    pdl_trigger();
    pdl_wait();
    const uint32_t token = blockIdx.x, channel = blockIdx.y * 256 + threadIdx.x;
    if (channel >= p.hidden) return;
    const float* state = p.state + uint64_t(token) * 4 * p.hidden + channel;
    const float* pre = p.mix + uint64_t(token) * p.width;
    float sum = 0.0f;
    for (uint32_t stream = 0; stream < 4; stream++) sum += pre[stream] * state[uint64_t(stream) * p.hidden];
    p.out[uint64_t(token) * p.hidden + channel] = sum;
}

// The same blocks.
KERNEL(hyper_expand, HyperParams, 256) {
    pdl_trigger();
    pdl_wait();
    const uint32_t token = blockIdx.x, channel = blockIdx.y * 256 + threadIdx.x;
    if (channel >= p.hidden) return;
    float* state = p.state + uint64_t(token) * 4 * p.hidden + channel;
    const float* post = p.mix + uint64_t(token) * p.width + 4;
    const float* c = post + 4;
    const float y = p.y[uint64_t(token) * p.hidden + channel];
    float old[4];
    for (uint32_t stream = 0; stream < 4; stream++) old[stream] = state[uint64_t(stream) * p.hidden];
    for (uint32_t stream = 0; stream < 4; stream++) {
        float sum = post[stream] * y;
        for (uint32_t from = 0; from < 4; from++) sum += c[4 * from + stream] * old[from];
        state[uint64_t(stream) * p.hidden] = sum;
    }
}
