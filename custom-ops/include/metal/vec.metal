// Products of a SIMD-group's rows with one token, or with a few. `out` may be in a device's memory or a
// threadgroup's.

// Rows of a SIMD-group.
#define VEC_ROWS 2u

// VEC_ROWS rows of a weight from `first` on, by a SIMD-group, with one token.
template <typename F, typename Out>
void vec_rows(device const uchar* w, uint row_bytes, uint first, uint row_count, uint cols,
              device const float* x, Out out, threadgroup const uint* grid, uint lane) {
    if (first >= row_count) return;
    device const uchar* rows[VEC_ROWS];
    float sum[VEC_ROWS];
    for (uint r = 0; r < VEC_ROWS; r++) {
        // Past the last row the last one is computed again, and not written.
        rows[r] = w + ulong(min(first + r, row_count - 1u)) * row_bytes;
        sum[r] = 0.0f;
    }
    for (uint unit = lane; unit < F::units(cols); unit += LANES) {
        float y[8 * uint(F::RUNS)], sums[uint(F::RUNS)];
        load_unit<F>(x, unit, y, sums);
        for (uint r = 0; r < VEC_ROWS; r++) sum[r] += F::dot(rows[r], unit, grid, y, sums);
    }
    for (uint r = 0; r < VEC_ROWS; r++) {
        float total = simd_sum(sum[r]);
        if (lane == 0u && first + r < row_count) out[first + r] = total;
    }
}

// The same with up to T tokens: weights are decoded once for all of them.
template <typename F, uint T, typename Out>
void few_rows(device const uchar* w, uint row_bytes, uint first, uint row_count, uint cols,
              device const float* x, uint x_stride, Out out, uint out_stride, uint tokens,
              threadgroup const uint* grid, uint lane) {
    if (first >= row_count) return;
    device const uchar* rows[VEC_ROWS];
    float sum[VEC_ROWS][T];
    for (uint r = 0; r < VEC_ROWS; r++) {
        rows[r] = w + ulong(min(first + r, row_count - 1u)) * row_bytes;
        for (uint t = 0; t < T; t++) sum[r][t] = 0.0f;
    }
    for (uint run = lane; run < cols / 8u; run += LANES) {
        float v[VEC_ROWS][8];
        for (uint r = 0; r < VEC_ROWS; r++) F::run8(rows[r], run, grid, v[r]);
        for (uint t = 0; t < T; t++) {
            device const float* y = x + ulong(min(t, tokens - 1u)) * x_stride + 8u * run;
            for (uint i = 0; i < 8; i++) {
                for (uint r = 0; r < VEC_ROWS; r++) sum[r][t] = fma(v[r][i], y[i], sum[r][t]);
            }
        }
    }
    for (uint r = 0; r < VEC_ROWS; r++) {
        for (uint t = 0; t < T; t++) {
            float total = simd_sum(sum[r][t]);
            if (lane == 0u && first + r < row_count && t < tokens) {
                out[ulong(t) * out_stride + first + r] = total;
            }
        }
    }
}

// The same in a format that is known at run time, as `dense_code` of src/matmul/metal.rs says.
template <uint T, typename Out>
void rows_of_any(uint format, device const uchar* w, uint row_bytes, uint first, uint rows, uint cols,
                 device const float* x, uint x_stride, Out out, uint out_stride, uint tokens, uint lane) {
    // Of these formats none looks anything up.
    threadgroup const uint* grid = nullptr;
    if (T == 1u) {
        switch (format) {
            case 0: vec_rows<F32>(w, row_bytes, first, rows, cols, x, out, grid, lane); break;
            case 1: vec_rows<F16>(w, row_bytes, first, rows, cols, x, out, grid, lane); break;
            case 2: vec_rows<BF16>(w, row_bytes, first, rows, cols, x, out, grid, lane); break;
            default: vec_rows<Q8_0>(w, row_bytes, first, rows, cols, x, out, grid, lane);
        }
        return;
    }
    switch (format) {
        case 0: few_rows<F32, T>(w, row_bytes, first, rows, cols, x, x_stride, out, out_stride, tokens, grid, lane); break;
        case 1: few_rows<F16, T>(w, row_bytes, first, rows, cols, x, x_stride, out, out_stride, tokens, grid, lane); break;
        case 2: few_rows<BF16, T>(w, row_bytes, first, rows, cols, x, x_stride, out, out_stride, tokens, grid, lane); break;
        default: few_rows<Q8_0, T>(w, row_bytes, first, rows, cols, x, x_stride, out, out_stride, tokens, grid, lane);
    }
}
