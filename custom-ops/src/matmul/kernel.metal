// Products of activations with a weight: mat-vec for a few tokens, SIMD-group matrices for many.

struct MatMul {
    uint tokens;
    uint rows;       // of a group
    uint cols;       // of a group
    uint row_bytes;
    uint x_stride;   // values from a token to the next
    uint out_stride;
};

// SIMD-groups of a threadgroup.
#define VEC_SIMDS 4u

// One token. Grid: row blocks, 1, groups.
template <typename F>
kernel void matvec(constant MatMul& p [[buffer(0)]], device const uchar* w [[buffer(1)]],
                   device const float* x [[buffer(2)]], device float* out [[buffer(3)]],
                   THREAD_POSITION) {
    THREADGROUP(uint, grid, [uint(F::GRID)]);
    fill_grid<F>(grid, index, VEC_SIMDS * LANES);
    if (has_grid<F>()) threadgroup_barrier(mem_flags::mem_threadgroup);
    uint row0 = group.z * p.rows;
    vec_rows<F>(w + ulong(row0) * p.row_bytes, p.row_bytes, (group.x * VEC_SIMDS + simd) * VEC_ROWS,
                p.rows, p.cols, x + group.z * p.cols, out + row0, grid, lane);
}

// Up to T tokens. Grid: row blocks, 1, groups.
template <typename F, uint T>
kernel void matvec_few(constant MatMul& p [[buffer(0)]], device const uchar* w [[buffer(1)]],
                       device const float* x [[buffer(2)]], device float* out [[buffer(3)]],
                       THREAD_POSITION) {
    THREADGROUP(uint, grid, [uint(F::GRID)]);
    fill_grid<F>(grid, index, VEC_SIMDS * LANES);
    if (has_grid<F>()) threadgroup_barrier(mem_flags::mem_threadgroup);
    uint row0 = group.z * p.rows;
    few_rows<F, T>(w + ulong(row0) * p.row_bytes, p.row_bytes,
                   (group.x * VEC_SIMDS + simd) * VEC_ROWS, p.rows, p.cols, x + group.z * p.cols,
                   p.x_stride, out + row0, p.out_stride, p.tokens, grid, lane);
}

// Weights of one launch at most.
#define PRODUCTS 8

struct MatVecs {
    uint tokens;
    uint cols;
    uint blocks[PRODUCTS];  // row blocks of all products up to and with this one
    uint rows[PRODUCTS];
    uint row_bytes[PRODUCTS];
    uint formats[PRODUCTS];
};

// Several weights with the same up to T tokens. Grid: row blocks of all of them.
template <uint T>
kernel void matvecs(constant MatVecs& p [[buffer(0)]], device const float* x [[buffer(1)]],
                    device const uchar* w0 [[buffer(2)]], device const uchar* w1 [[buffer(3)]],
                    device const uchar* w2 [[buffer(4)]], device const uchar* w3 [[buffer(5)]],
                    device const uchar* w4 [[buffer(6)]], device const uchar* w5 [[buffer(7)]],
                    device const uchar* w6 [[buffer(8)]], device const uchar* w7 [[buffer(9)]],
                    device float* out0 [[buffer(10)]], device float* out1 [[buffer(11)]],
                    device float* out2 [[buffer(12)]], device float* out3 [[buffer(13)]],
                    device float* out4 [[buffer(14)]], device float* out5 [[buffer(15)]],
                    device float* out6 [[buffer(16)]], device float* out7 [[buffer(17)]],
                    THREAD_POSITION) {
    uint at = 0;
    while (group.x >= p.blocks[at]) at++;
    device const uchar* w = at < 4u ? (at < 2u ? (at == 0u ? w0 : w1) : at == 2u ? w2 : w3)
                                    : (at < 6u ? (at == 4u ? w4 : w5) : at == 6u ? w6 : w7);
    device float* out = at < 4u ? (at < 2u ? (at == 0u ? out0 : out1) : at == 2u ? out2 : out3)
                                : (at < 6u ? (at == 4u ? out4 : out5) : at == 6u ? out6 : out7);
    uint block = group.x - (at == 0u ? 0u : p.blocks[at - 1u]);
    rows_of_any<T>(p.formats[at], w, p.row_bytes[at], (block * VEC_SIMDS + simd) * VEC_ROWS, p.rows[at],
                   p.cols, x, p.cols, out, p.rows[at], p.tokens, lane);
}

INSTANCE(matvecs_1, matvecs<1u>)
INSTANCE(matvecs_2, matvecs<2u>)
INSTANCE(matvecs_4, matvecs<4u>)
INSTANCE(matvecs_8, matvecs<8u>)

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
