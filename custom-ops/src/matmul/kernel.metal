// Products of activations with a weight: mat-vec for a few tokens, SIMD-group matrices for many.

struct MatMul {
    uint tokens;
    uint rows;       // of a group
    uint cols;       // of a group
    uint row_bytes;
    uint x_stride;   // values from a token to the next
    uint out_stride;
};

// SIMD-groups of a threadgroup, and rows of each.
#define VEC_SIMDS 4u
#define VEC_ROWS 2u

// One token. Grid: row blocks, 1, groups.
template <typename F>
kernel void matvec(constant MatMul& p [[buffer(0)]], device const uchar* w [[buffer(1)]],
                   device const float* x [[buffer(2)]], device float* out [[buffer(3)]],
                   THREAD_POSITION) {
    THREADGROUP(uint, grid, [uint(F::GRID)]);
    fill_grid<F>(grid, index, VEC_SIMDS * LANES);
    if (has_grid<F>()) threadgroup_barrier(mem_flags::mem_threadgroup);
    uint first = (group.x * VEC_SIMDS + simd) * VEC_ROWS;
    if (first >= p.rows) return;
    device const uchar* rows[VEC_ROWS];
    float sum[VEC_ROWS];
    for (uint r = 0; r < VEC_ROWS; r++) {
        // Past the last row the last one is computed again, and not written.
        uint row = group.z * p.rows + min(first + r, p.rows - 1u);
        rows[r] = w + ulong(row) * p.row_bytes;
        sum[r] = 0.0f;
    }
    device const float* from = x + group.z * p.cols;
    for (uint unit = lane; unit < F::units(p.cols); unit += LANES) {
        float y[8 * uint(F::RUNS)], sums[uint(F::RUNS)];
        load_unit<F>(from, unit, y, sums);
        for (uint r = 0; r < VEC_ROWS; r++) sum[r] += F::dot(rows[r], unit, grid, y, sums);
    }
    for (uint r = 0; r < VEC_ROWS; r++) {
        float total = simd_sum(sum[r]);
        if (lane == 0u && first + r < p.rows) out[group.z * p.rows + first + r] = total;
    }
}

// Up to T tokens: weights are decoded once for all of them. Grid: row blocks, token blocks, groups.
template <typename F, uint T>
kernel void matvec_few(constant MatMul& p [[buffer(0)]], device const uchar* w [[buffer(1)]],
                       device const float* x [[buffer(2)]], device float* out [[buffer(3)]],
                       THREAD_POSITION) {
    THREADGROUP(uint, grid, [uint(F::GRID)]);
    fill_grid<F>(grid, index, VEC_SIMDS * LANES);
    if (has_grid<F>()) threadgroup_barrier(mem_flags::mem_threadgroup);
    uint first = (group.x * VEC_SIMDS + simd) * VEC_ROWS, token = group.y * T;
    if (first >= p.rows) return;
    device const uchar* rows[VEC_ROWS];
    float sum[VEC_ROWS][T];
    for (uint r = 0; r < VEC_ROWS; r++) {
        uint row = group.z * p.rows + min(first + r, p.rows - 1u);
        rows[r] = w + ulong(row) * p.row_bytes;
        for (uint t = 0; t < T; t++) sum[r][t] = 0.0f;
    }
    for (uint run = lane; run < p.cols / 8u; run += LANES) {
        float v[VEC_ROWS][8];
        for (uint r = 0; r < VEC_ROWS; r++) F::run8(rows[r], run, grid, v[r]);
        for (uint t = 0; t < T; t++) {
            ulong row = min(token + t, p.tokens - 1u);
            device const float* y = x + row * p.x_stride + group.z * p.cols + 8u * run;
            for (uint i = 0; i < 8; i++) {
                for (uint r = 0; r < VEC_ROWS; r++) sum[r][t] = fma(v[r][i], y[i], sum[r][t]);
            }
        }
    }
    for (uint r = 0; r < VEC_ROWS; r++) {
        for (uint t = 0; t < T; t++) {
            float total = simd_sum(sum[r][t]);
            if (lane == 0u && first + r < p.rows && token + t < p.tokens) {
                out[ulong(token + t) * p.out_stride + group.z * p.rows + first + r] = total;
            }
        }
    }
}

// Many tokens. Grid: row tiles, token tiles, groups.
template <typename F>
kernel void matmul_tiles(constant MatMul& p [[buffer(0)]], device const uchar* w [[buffer(1)]],
                         device const float* x [[buffer(2)]], device float* out [[buffer(3)]],
                         THREAD_POSITION) {
    THREADGROUP(uint, grid, [uint(F::GRID)]);
    THREADGROUP(float, a, [TILE_ROWS * TILE_COLS]);
    THREADGROUP(float, b, [TILE_TOKENS * TILE_COLS]);
    fill_grid<F>(grid, index, TILE_THREADS);
    uint row0 = group.x * TILE_ROWS, token0 = group.y * TILE_TOKENS;
    TileSums sums;
    tile_clear(sums);
    for (uint column = 0; column < p.cols; column += TILE_COLS) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint task = index; task < TILE_ROWS * TILE_COLS / 8u; task += TILE_THREADS) {
            uint row = task / (TILE_COLS / 8u), run = task % (TILE_COLS / 8u);
            float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};
            if (row0 + row < p.rows && column + 8u * run < p.cols) {
                device const uchar* from = w + ulong(group.z * p.rows + row0 + row) * p.row_bytes;
                F::run8(from, column / 8u + run, grid, v);
            }
            for (uint i = 0; i < 8; i++) a[row * TILE_COLS + 8u * run + i] = v[i];
        }
        for (uint task = index; task < TILE_TOKENS * TILE_COLS / 8u; task += TILE_THREADS) {
            uint token = task / (TILE_COLS / 8u), run = task % (TILE_COLS / 8u);
            bool there = token0 + token < p.tokens && column + 8u * run < p.cols;
            device const float* from = x + ulong(min(token0 + token, p.tokens - 1u)) * p.x_stride + group.z * p.cols + column + 8u * run;
            for (uint i = 0; i < 8; i++) b[token * TILE_COLS + 8u * run + i] = there ? from[i] : 0.0f;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        tile_accumulate(sums, a, b, simd);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    tile_store(sums, a, simd);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = index; i < TILE_ROWS * TILE_TOKENS; i += TILE_THREADS) {
        uint row = i % TILE_ROWS, token = i / TILE_ROWS;
        if (row0 + row < p.rows && token0 + token < p.tokens) {
            out[ulong(token0 + token) * p.out_stride + group.z * p.rows + row0 + row] = a[i];
        }
    }
}

#define MATMUL(name, F)                          \
    INSTANCE(matvec_##name, matvec<F>)           \
    INSTANCE(matvec_2_##name, matvec_few<F, 2u>) \
    INSTANCE(matvec_4_##name, matvec_few<F, 4u>) \
    INSTANCE(matvec_8_##name, matvec_few<F, 8u>) \
    INSTANCE(matmul_tiles_##name, matmul_tiles<F>)
MATMUL(f32, F32)
MATMUL(f16, F16)
MATMUL(bf16, BF16)
MATMUL(q8_0, Q8_0)
MATMUL(q2_k, Q2_K)
MATMUL(q4_k, Q4_K)
MATMUL(iq2_xxs, IQ2_XXS)
