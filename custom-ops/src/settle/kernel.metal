// What one new token of a sequence leaves before attention looks at it, in one launch: the norm of the
// queries' latent, its own row, and rows of the windows that it ends. Or, in place of the norm, the products
// of weights with the normed latent: nobody else wants it, and they take so long that the rest hides.

#define SETTLE_THREADS 256u
#define SETTLE_SIMDS (SETTLE_THREADS / LANES)
#define SETTLE_DIM 1024u
#define SETTLE_FREQUENCIES 32
#define SETTLE_COMPRESSIONS 2

// Roundings of a finished row.
#define ROUND_FP8 1u
#define ROUND_FP4 2u

// Norm, turn and rounding of a row.
struct Finish {
    uint dim;
    uint rounding;
    uint channels;  // that FP8 rounds; BF16 rounds the others
    uint block;     // of them, that share a scale
    float eps;
    float factor;   // of the Hadamard matrix
    uint count;     // of frequencies
    float frequencies[SETTLE_FREQUENCIES];
};

// How a list keeps its rows.
#define KEPT_F32 0u
#define KEPT_FP8 1u

struct Compression {
    uint ratio;
    uint overlap;
    uint width;  // of the projections
    uint slots;  // of the rings
    uint kept;
    uint nope;
    uint block;
    uint scales_at;
    uint row_bytes;
    Finish finish;
};

#define SETTLE_PRODUCTS 2
// Rows of a SIMD-group.
#define PRODUCT_ROWS 2u

struct Settle {
    uint blocks[SETTLE_PRODUCTS];     // of rows, of all products up to and with this one
    uint rows[SETTLE_PRODUCTS];
    uint row_bytes[SETTLE_PRODUCTS];
    uint formats[SETTLE_PRODUCTS];
    uint compressions;
    uint row;       // of the token in the batch
    uint position;
    uint latent_dim;
    float latent_eps;
    Finish finish;  // of the token's own row
    Compression of[SETTLE_COMPRESSIONS];
};

// The raw row in threadgroup memory; barriers before, between and after.
inline void finish_row(constant Finish& f, device const float* norm, uint position, threadgroup float* row,
                       threadgroup float* partial, uint index, uint lane, uint simd) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float sum = 0.0f;
    for (uint i = index; i < f.dim; i += SETTLE_THREADS) sum = fma(row[i], row[i], sum);
    sum = threadgroup_sum(sum, partial, lane, simd, SETTLE_SIMDS);
    float scale = 1.0f / precise::sqrt(sum / float(f.dim) + f.eps);
    for (uint i = index; i < f.dim; i += SETTLE_THREADS) {
        float v = row[i] * scale;
        row[i] = v * norm[i];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (index < f.count) {
        float angle = float(position) * f.frequencies[index];
        float cosine = precise::cos(angle), sine = precise::sin(angle);
        threadgroup float* two = row + f.dim - 2u * f.count + 2u * index;
        float a = two[0], b = two[1];
        two[0] = a * cosine - b * sine;
        two[1] = a * sine + b * cosine;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (f.rounding == ROUND_FP8) {
        for (uint block = simd; block < f.channels / f.block; block += SETTLE_SIMDS) {
            round_fp8_block(row + block * f.block, f.block, lane);
        }
        for (uint i = f.channels + index; i < f.dim; i += SETTLE_THREADS) row[i] = round_bf16(row[i]);
    } else if (f.rounding == ROUND_FP4) {
        for (uint stride = 1; stride < f.dim; stride *= 2u) {
            for (uint i = index; i < f.dim / 2u; i += SETTLE_THREADS) {
                uint low = i / stride * 2u * stride + i % stride;
                float a = row[low], b = row[low + stride];
                row[low] = a + b;
                row[low + stride] = a - b;
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        for (uint first = simd * LANES; first < f.dim; first += SETTLE_THREADS) {
            bool there = first + lane < f.dim;
            float v = round_fp4(there ? row[first + lane] * f.factor : 0.0f);
            if (there) row[first + lane] = v;
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Rings hold the tokens before this one, which goes to its slot when the window has been pooled. `page`
// begins at the row that the window gets.
inline void compress(constant Settle& p, constant Compression& c, device const float* values,
                     device const float* gates, device const float* bias, device float* past_values,
                     device float* past_gates, device const float* norm, device uchar* page,
                     threadgroup float* row, threadgroup float* partial, uint index, uint lane, uint simd) {
    values += ulong(p.row) * c.width;
    gates += ulong(p.row) * c.width;
    bool ends = (p.position + 1u) % c.ratio == 0u;
    uint window = p.position / c.ratio, own = window * c.ratio;
    if (ends) {
        // With overlap a row begins one window earlier, with the other half of the projections.
        uint from = c.overlap != 0u && window > 0u ? own - c.ratio : own;
        for (uint channel = index; channel < c.finish.dim; channel += SETTLE_THREADS) {
            float most = -INFINITY, sum = 0.0f, value = 0.0f;
            for (uint pass = 0; pass < 2; pass++) {
                for (uint position = from; position <= p.position; position++) {
                    uint column = c.overlap != 0u && position >= own ? c.finish.dim + channel : channel;
                    bool here = position == p.position;
                    ulong at = ulong(position % c.slots) * c.width + column;
                    float gate = here ? gates[column] : past_gates[at];
                    gate += bias[position % c.ratio * c.width + column];
                    if (pass == 0u) {
                        most = max(most, gate);
                    } else {
                        float weight = precise::exp(gate - most);
                        sum += weight;
                        value = fma(weight, here ? values[column] : past_values[at], value);
                    }
                }
            }
            row[channel] = value / sum;
        }
    }
    // The slot that is overwritten is of no window that is pooled here.
    ulong slot = ulong(p.position % c.slots) * c.width;
    for (uint i = index; i < c.width; i += SETTLE_THREADS) {
        past_values[slot + i] = values[i];
        past_gates[slot + i] = gates[i];
    }
    if (!ends) return;
    finish_row(c.finish, norm, own, row, partial, index, lane, simd);
    if (c.kept == KEPT_F32) {
        device float* to = (device float*)page;
        for (uint i = index; i < c.finish.dim; i += SETTLE_THREADS) to[i] = row[i];
    } else if (c.kept == KEPT_FP8) {
        pack_fp8_row(row, page, c.finish.dim, c.nope, c.block, c.scales_at, c.row_bytes, lane, simd, SETTLE_SIMDS);
    } else {
        pack_fp4_row(row, page, c.finish.dim, c.block, c.scales_at, c.row_bytes, lane, simd, SETTLE_SIMDS);
    }
}

// Rows of a weight from `first` on, by a SIMD-group, with the latent as its norm would have it.
template <typename F>
void normed_product(device const uchar* w, uint row_bytes, uint first, uint row_count, device const float* x,
                    device const float* norm, uint cols, float eps, device float* out, uint lane) {
    if (first >= row_count) return;
    // Of these formats none looks anything up.
    threadgroup const uint* grid = nullptr;
    device const uchar* rows[PRODUCT_ROWS];
    float sum[PRODUCT_ROWS], square = 0.0f;
    for (uint r = 0; r < PRODUCT_ROWS; r++) {
        // Past the last row the last one is computed again, and not written.
        rows[r] = w + ulong(min(first + r, row_count - 1u)) * row_bytes;
        sum[r] = 0.0f;
    }
    for (uint unit = lane; unit < F::units(cols); unit += LANES) {
        float y[8 * uint(F::RUNS)], sums[uint(F::RUNS)];
        load_unit<F>(x, unit, y, sums);
        for (uint i = 0; i < 8; i++) {
            square = fma(y[i], y[i], square);
            y[i] *= norm[F::column(unit, 0u) + i];
        }
        for (uint r = 0; r < PRODUCT_ROWS; r++) sum[r] += F::dot(rows[r], unit, grid, y, sums);
    }
    float scale = 1.0f / precise::sqrt(simd_sum(square) / float(cols) + eps);
    for (uint r = 0; r < PRODUCT_ROWS; r++) {
        float total = simd_sum(sum[r]) * scale;
        if (lane == 0u && first + r < row_count) out[first + r] = total;
    }
}

// Pipelines that multiply by the normed latent, for one token alone, and such that write it.
FUNCTION_CONSTANT(bool, IS_PRODUCT, 0)

// Grid: row, compressions, then the latent, or blocks of rows of the products.
kernel void settle(constant Settle& p [[buffer(0)]], device const float* latent [[buffer(1)]],
                   device const float* latent_norm [[buffer(2)]], device float* latent_out [[buffer(3)]],
                   device const float* kv [[buffer(4)]], device const float* kv_norm [[buffer(5)]],
                   device const float* values0 [[buffer(6)]], device const float* gates0 [[buffer(7)]],
                   device const float* bias0 [[buffer(8)]], device const float* norm0 [[buffer(9)]],
                   device float* past_values0 [[buffer(10)]], device float* past_gates0 [[buffer(11)]],
                   device uchar* page0 [[buffer(12)]], device const float* values1 [[buffer(13)]],
                   device const float* gates1 [[buffer(14)]], device const float* bias1 [[buffer(15)]],
                   device const float* norm1 [[buffer(16)]], device float* past_values1 [[buffer(17)]],
                   device float* past_gates1 [[buffer(18)]], device uchar* page1 [[buffer(19)]],
                   device const uchar* w0 [[buffer(20)]], device const uchar* w1 [[buffer(21)]],
                   device float* product0 [[buffer(22)]], device float* product1 [[buffer(23)]],
                   device float* kv_out [[buffer(24)]], THREAD_POSITION) {
    THREADGROUP(float, row, [SETTLE_DIM]);
    THREADGROUP(float, partial, [LANES]);
    if (group.x == 0u) {
        ulong first = ulong(p.row) * p.finish.dim;
        for (uint i = index; i < p.finish.dim; i += SETTLE_THREADS) row[i] = kv[first + i];
        finish_row(p.finish, kv_norm, p.position, row, partial, index, lane, simd);
        for (uint i = index; i < p.finish.dim; i += SETTLE_THREADS) kv_out[first + i] = row[i];
        return;
    }
    if (group.x <= p.compressions) {
        if (group.x == 1u) {
            compress(p, p.of[0], values0, gates0, bias0, past_values0, past_gates0, norm0, page0, row,
                     partial, index, lane, simd);
        } else {
            compress(p, p.of[1], values1, gates1, bias1, past_values1, past_gates1, norm1, page1, row,
                     partial, index, lane, simd);
        }
        return;
    }
    device const float* x = latent + ulong(p.row) * p.latent_dim;
    if (IS_PRODUCT) {
        uint block = group.x - p.compressions - 1u, at = block < p.blocks[0] ? 0u : 1u;
        block -= at == 0u ? 0u : p.blocks[0];
        uint first = (block * SETTLE_SIMDS + simd) * PRODUCT_ROWS;
        device const uchar* w = at == 0u ? w0 : w1;
        device float* to = at == 0u ? product0 : product1;
        // As `dense_code` of src/matmul/metal.rs says.
        switch (p.formats[at]) {
            case 0: normed_product<F32>(w, p.row_bytes[at], first, p.rows[at], x, latent_norm, p.latent_dim, p.latent_eps, to, lane); break;
            case 1: normed_product<F16>(w, p.row_bytes[at], first, p.rows[at], x, latent_norm, p.latent_dim, p.latent_eps, to, lane); break;
            case 2: normed_product<BF16>(w, p.row_bytes[at], first, p.rows[at], x, latent_norm, p.latent_dim, p.latent_eps, to, lane); break;
            default: normed_product<Q8_0>(w, p.row_bytes[at], first, p.rows[at], x, latent_norm, p.latent_dim, p.latent_eps, to, lane);
        }
        return;
    }
    device float* to = latent_out + ulong(p.row) * p.latent_dim;
    float sum = 0.0f;
    for (uint i = index; i < p.latent_dim; i += SETTLE_THREADS) sum = fma(x[i], x[i], sum);
    sum = threadgroup_sum(sum, partial, lane, simd, SETTLE_SIMDS);
    float scale = 1.0f / precise::sqrt(sum / float(p.latent_dim) + p.latent_eps);
    for (uint i = index; i < p.latent_dim; i += SETTLE_THREADS) {
        float v = x[i] * scale;
        to[i] = v * latent_norm[i];
    }
}
KERNEL(settle)
