// What one new token of each sequence leaves before attention looks at it, in one launch: the norm of the
// queries' latent, its own row, and rows of the windows that it ends.
#include "cuda/batch.h"
#include "cuda/pool.cuh"
#include "cuda/row.cuh"
#include "cuda/turn.cuh"

#define SETTLE_FREQUENCIES 32
#define SETTLE_COMPRESSIONS 2

// Rounding of a finished row.
enum SettleRounding {
    SETTLE_PLAIN = 0,
    SETTLE_FP8 = 1,  // the first `channels`, in blocks of `block`; the others BF16
    SETTLE_FP4 = 2,  // after Hadamard, in blocks of `block`
};

// Norm, turn and rounding of a row.
struct SettleFinish {
    const float* norm;  // [dim]
    double eps;
    uint32_t dim;
    uint32_t rounding;
    uint32_t channels;
    uint32_t block;
    float factor;    // of the Hadamard matrix
    uint32_t count;  // frequencies
    float frequencies[SETTLE_FREQUENCIES];
};

struct SettleCompression {
    const float* values;  // [tokens, width]
    const float* gates;   // [tokens, width]
    const float* bias;    // [ratio, width]
    uint32_t ratio;
    uint32_t overlap;
    uint32_t width;
    uint32_t unused;
    Rings past_values;
    Rings past_gates;
    Rows rows;
    SettleFinish finish;
};

struct SettleParams {
    const float* latent;  // [tokens, latent_dim]
    const float* latent_norm;
    float* latent_out;    // null if the launch after norms it, which then begins when this one has waited
    const float* kv;  // [tokens, dim]
    float* kv_out;
    double latent_eps;
    Batch batch;
    uint32_t latent_dim;
    uint32_t compressions;
    SettleFinish finish;  // of kv
    SettleCompression of[SETTLE_COMPRESSIONS];
};

namespace {

// Of this thread's pair of channels.
DEVICE Turn own_turn(const SettleFinish& f, uint32_t position) {
    return threadIdx.x < f.count ? turn_of(position, f.frequencies[threadIdx.x]) : no_turn();
}

// The row in shared memory, of which thread i has written values i, i + 512, …
DEVICE void finish_row(const SettleFinish& f, float* row, Turn turn, double* scratch) {
    const float scale = rms_scale(row, f.dim, f.eps, scratch);
    for (uint32_t i = threadIdx.x; i < f.dim; i += blockDim.x) row[i] = row[i] * scale * f.norm[i];
    __syncthreads();
    if (threadIdx.x < f.count) {
        float* two = row + f.dim - 2u * f.count + 2u * threadIdx.x;
        const float2 v = turned(two[0], two[1], turn);
        two[0] = v.x;
        two[1] = v.y;
    }
    __syncthreads();
    const uint32_t warps = blockDim.x / 32u;
    if (f.rounding == SETTLE_FP8) {
        const uint32_t blocks = f.channels / f.block, rest = (f.dim - f.channels + 63u) / 64u;
        for (uint32_t block = warp_id(); block < blocks + rest; block += warps) {
            if (block < blocks) {
                round_fp8(row + block * f.block, f.block);
            } else {
                const uint32_t first = f.channels + (block - blocks) * 64u;
                round_bf16s(row + first, min(64u, f.dim - first));
            }
        }
    } else if (f.rounding == SETTLE_FP4) {
        hadamard(row, f.dim);
        for (uint32_t block = warp_id(); block < f.dim / f.block; block += warps) {
            round_fp4(row + block * f.block, row + block * f.block, f.block, f.factor);
        }
    }
    __syncthreads();
}

// Value and gate of the token at `position`, the batch's own or remembered.
DEVICE float2 slot_of(const SettleCompression& c, uint32_t token, uint32_t sequence, uint32_t own, uint32_t position, uint32_t column) {
    float2 slot;
    if (position == own) {
        const uint64_t at = uint64_t(token) * c.width + column;
        slot = make_float2(c.values[at], c.gates[at]);
    } else {
        const uint64_t at = uint64_t(position % c.past_values.slots) * c.width + column;
        slot = make_float2(c.past_values.data[sequence][at], c.past_gates.data[sequence][at]);
    }
    slot.y += c.bias[uint64_t(position % c.ratio) * c.width + column];
    return slot;
}

DEVICE void compress(const SettleCompression& c, uint32_t token, uint32_t sequence, uint32_t position, float* row, double* scratch) {
    const bool ends = (position + 1u) % c.ratio == 0;
    const uint32_t index = position / c.ratio, own = index * c.ratio;
    const Turn turn = ends ? own_turn(c.finish, own) : no_turn();
    pdl_wait();
    pdl_trigger();
    if (ends) {
        const PooledWindow window = pooled_window(index, c.ratio, c.overlap != 0, c.finish.dim);
        for (uint32_t channel = threadIdx.x; channel < c.finish.dim; channel += blockDim.x) {
            row[channel] = pooled(window, channel, [&](uint32_t at, uint32_t column) {
                return slot_of(c, token, sequence, position, at, column);
            });
        }
    }
    // The slot that is overwritten is of no window that is pooled here.
    const uint64_t slot = uint64_t(position % c.past_values.slots) * c.width;
    for (uint32_t i = threadIdx.x; i < c.width; i += blockDim.x) {
        c.past_values.data[sequence][slot + i] = c.values[uint64_t(token) * c.width + i];
        c.past_gates.data[sequence][slot + i] = c.gates[uint64_t(token) * c.width + i];
    }
    if (!ends) return;
    __syncthreads();
    finish_row(c.finish, row, turn, scratch);
    pack_row(c.rows, row, row_at(c.rows, sequence, index));
}

}  // namespace

// Grid: latent, row, compressions; tokens, one of each sequence. Shared memory: 16 doubles and a row.
KERNEL(settle, SettleParams, 512) {
    SHARED(double, scratch);
    float* row = reinterpret_cast<float*>(scratch + 16);
    const uint32_t token = blockIdx.y, sequence = p.batch.sequence[token], position = p.batch.positions[token];
    if (p.latent_out != nullptr) pdl_trigger();
    if (blockIdx.x >= 2) {
        compress(p.of[blockIdx.x - 2u], token, sequence, position, row, scratch);
    } else if (blockIdx.x == 1) {
        const Turn turn = own_turn(p.finish, position);
        const uint32_t dim = p.finish.dim;
        pdl_wait();
        pdl_trigger();
        for (uint32_t i = threadIdx.x; i < dim; i += blockDim.x) row[i] = p.kv[uint64_t(token) * dim + i];
        __syncthreads();
        finish_row(p.finish, row, turn, scratch);
        for (uint32_t i = threadIdx.x; i < dim; i += blockDim.x) p.kv_out[uint64_t(token) * dim + i] = row[i];
    } else {
        pdl_wait();
        pdl_trigger();
        if (p.latent_out == nullptr) return;
        const float* x = p.latent + uint64_t(token) * p.latent_dim;
        const float scale = rms_scale(x, p.latent_dim, p.latent_eps, scratch);
        for (uint32_t i = threadIdx.x; i < p.latent_dim; i += blockDim.x) {
            p.latent_out[uint64_t(token) * p.latent_dim + i] = x[i] * scale * p.latent_norm[i];
        }
    }
}
