// Tiles of a product by SIMD-group matrices: 64 rows of weights × 32 tokens, by four SIMD-groups of
// 32 rows × 16 tokens each. In f32 throughout: Apple's GPUs multiply f32 matrices as fast as f16
// ones up to the M4, and activations keep their range.

#define TILE_ROWS 64u
#define TILE_TOKENS 32u
#define TILE_COLS 32u
#define TILE_THREADS 128u

struct TileSums {
    simdgroup_float8x8 m[4][2];
};

inline void tile_clear(thread TileSums& sums) {
    for (uint i = 0; i < 4; i++) {
        for (uint j = 0; j < 2; j++) sums.m[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
}

// Adds the products of `a` [rows][columns] and `b` [tokens][columns].
inline void tile_accumulate(thread TileSums& sums, threadgroup const float* a, threadgroup const float* b,
                       uint simd) {
    threadgroup const float* rows = a + simd % 2u * 32u * TILE_COLS;
    threadgroup const float* tokens = b + simd / 2u * 16u * TILE_COLS;
    for (uint k = 0; k < TILE_COLS; k += 8u) {
        simdgroup_float8x8 left[4], right[2];
        for (uint i = 0; i < 4; i++) simdgroup_load(left[i], rows + 8u * i * TILE_COLS + k, TILE_COLS);
        for (uint j = 0; j < 2; j++) {
            simdgroup_load(right[j], tokens + 8u * j * TILE_COLS + k, TILE_COLS, ulong2(0), true);
        }
        for (uint i = 0; i < 4; i++) {
            for (uint j = 0; j < 2; j++) {
                simdgroup_multiply_accumulate(sums.m[i][j], left[i], right[j], sums.m[i][j]);
            }
        }
    }
}

// Writes `to` [tokens][rows].
inline void tile_store(thread const TileSums& sums, threadgroup float* to, uint simd) {
    threadgroup float* at = to + simd / 2u * 16u * TILE_ROWS + simd % 2u * 32u;
    for (uint i = 0; i < 4; i++) {
        for (uint j = 0; j < 2; j++) {
            simdgroup_store(sums.m[i][j], at + 8u * j * TILE_ROWS + 8u * i, TILE_ROWS, ulong2(0), true);
        }
    }
}
