// Block formats (src/blocks/ says how each lies in bytes), read by the lanes of a SIMD-group.
//
// A row is cut in two ways. `run8` decodes one run of eight neighbouring values, for tiles and
// tables. For products with a vector, a lane takes a whole *unit*: what it can decode from the
// bytes that it loads, `RUNS` runs of eight that need not be neighbours, beginning at the columns
// `column(unit, run)`; `dot` multiplies one with the matching values of the vector, each scale
// once. `sums` are the sums over each run of the vector, for formats with a minimum (`SUMS`).
//
// IQ2_XXS looks its magnitudes up in a grid that a threadgroup fills first (`GRID` words).

// Two bytes at a time: blocks of 34 and 66 bytes are aligned to nothing more.
inline float half_at(device const uchar* p) {
    return float(as_type<half>(*(device const ushort*)p));
}

struct F32 {
    enum { RUNS = 1, SUMS = 0, GRID = 1 };
    static uint units(uint cols) { return cols / 8u; }
    static uint column(uint unit, uint) { return 8u * unit; }
    static void run8(device const uchar* row, uint run, threadgroup const uint*, thread float* v) {
        device const float4* p = (device const float4*)(row + 32u * ulong(run));
        float4 a = p[0], b = p[1];
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
        v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    }
    static float dot(device const uchar* row, uint unit, threadgroup const uint* grid,
                     thread const float* y, thread const float*) {
        float v[8], sum = 0.0f;
        run8(row, unit, grid, v);
        for (uint i = 0; i < 8; i++) sum = fma(v[i], y[i], sum);
        return sum;
    }
};

struct F16 {
    enum { RUNS = 1, SUMS = 0, GRID = 1 };
    static uint units(uint cols) { return cols / 8u; }
    static uint column(uint unit, uint) { return 8u * unit; }
    static void run8(device const uchar* row, uint run, threadgroup const uint*, thread float* v) {
        device const half4* p = (device const half4*)(row + 16u * ulong(run));
        half4 a = p[0], b = p[1];
        v[0] = float(a.x), v[1] = float(a.y), v[2] = float(a.z), v[3] = float(a.w);
        v[4] = float(b.x), v[5] = float(b.y), v[6] = float(b.z), v[7] = float(b.w);
    }
    static float dot(device const uchar* row, uint unit, threadgroup const uint* grid,
                     thread const float* y, thread const float*) {
        float v[8], sum = 0.0f;
        run8(row, unit, grid, v);
        for (uint i = 0; i < 8; i++) sum = fma(v[i], y[i], sum);
        return sum;
    }
};

struct BF16 {
    enum { RUNS = 1, SUMS = 0, GRID = 1 };
    static uint units(uint cols) { return cols / 8u; }
    static uint column(uint unit, uint) { return 8u * unit; }
    static void run8(device const uchar* row, uint run, threadgroup const uint*, thread float* v) {
        device const uint* p = (device const uint*)(row + 16u * ulong(run));
        for (uint i = 0; i < 4; i++) {
            uint two = p[i];
            v[2 * i] = as_type<float>(two << 16);
            v[2 * i + 1] = as_type<float>(two & 0xffff0000u);
        }
    }
    static float dot(device const uchar* row, uint unit, threadgroup const uint* grid,
                     thread const float* y, thread const float*) {
        float v[8], sum = 0.0f;
        run8(row, unit, grid, v);
        for (uint i = 0; i < 8; i++) sum = fma(v[i], y[i], sum);
        return sum;
    }
};

struct Q8_0 {
    enum { RUNS = 1, SUMS = 0, GRID = 1 };
    static uint units(uint cols) { return cols / 8u; }
    static uint column(uint unit, uint) { return 8u * unit; }
    static void run8(device const uchar* row, uint run, threadgroup const uint*, thread float* v) {
        device const uchar* block = row + 34u * ulong(run / 4u);
        device const ushort* q = (device const ushort*)(block + 2u + 8u * (run % 4u));
        float d = half_at(block);
        for (uint i = 0; i < 4; i++) {
            char2 two = as_type<char2>(q[i]);
            v[2 * i] = d * float(two.x);
            v[2 * i + 1] = d * float(two.y);
        }
    }
    static float dot(device const uchar* row, uint unit, threadgroup const uint*,
                     thread const float* y, thread const float*) {
        device const uchar* block = row + 34u * ulong(unit / 4u);
        device const ushort* q = (device const ushort*)(block + 2u + 8u * (unit % 4u));
        float sum = 0.0f;
        for (uint i = 0; i < 4; i++) {
            char2 two = as_type<char2>(q[i]);
            sum = fma(float(two.x), y[2 * i], sum);
            sum = fma(float(two.y), y[2 * i + 1], sum);
        }
        return half_at(block) * sum;
    }
};

struct Q2_K {
    // Eight bytes of two-bit numbers: four runs, 32 columns apart.
    enum { RUNS = 4, SUMS = 1, GRID = 1 };
    static uint units(uint cols) { return cols / 32u; }
    static uint column(uint unit, uint run) {
        uint part = unit % 8u;
        return 256u * (unit / 8u) + 128u * (part / 4u) + 32u * run + 8u * (part % 4u);
    }
    static void run8(device const uchar* row, uint run, threadgroup const uint*, thread float* v) {
        device const uchar* block = row + 84u * ulong(run / 32u);
        uint h = run % 32u / 16u, j = run / 4u % 4u, k = run / 2u % 2u, l = run % 2u;
        float scale = half_at(block + 80) * float(block[8u * h + 2u * j + k] & 15);
        float low = half_at(block + 82) * float(block[8u * h + 2u * j + k] >> 4);
        device const uint* q = (device const uint*)(block + 16u + 32u * h + 16u * k + 8u * l);
        for (uint word = 0; word < 2; word++) {
            uint bits = q[word] >> (2u * j);
            for (uint i = 0; i < 4; i++) {
                v[4 * word + i] = scale * float(bits >> (8u * i) & 3u) - low;
            }
        }
    }
    static float dot(device const uchar* row, uint unit, threadgroup const uint*,
                     thread const float* y, thread const float* sums) {
        device const uchar* block = row + 84u * ulong(unit / 8u);
        uint h = unit / 4u % 2u, k = unit / 2u % 2u, l = unit % 2u;
        device const uint* q = (device const uint*)(block + 16u + 32u * h + 16u * k + 8u * l);
        uint words[2] = {q[0], q[1]};
        float scaled = 0.0f, low = 0.0f;
        for (uint j = 0; j < 4; j++) {
            uint s = block[8u * h + 2u * j + k];
            float sum = 0.0f;
            for (uint i = 0; i < 8; i++) {
                uint bits = words[i / 4u] >> (8u * (i % 4u) + 2u * j) & 3u;
                sum = fma(float(bits), y[8 * j + i], sum);
            }
            scaled = fma(float(s & 15u), sum, scaled);
            low = fma(float(s >> 4), sums[j], low);
        }
        return half_at(block + 80) * scaled - half_at(block + 82) * low;
    }
};

struct Q4_K {
    // Eight bytes of nibbles: two runs, 32 columns apart.
    enum { RUNS = 2, SUMS = 1, GRID = 1 };
    static uint units(uint cols) { return cols / 16u; }
    static uint column(uint unit, uint run) {
        uint part = unit % 16u;
        return 256u * (unit / 16u) + 64u * (part / 4u) + 32u * run + 8u * (part % 4u);
    }
    // Scale and minimum of group `j`.
    static uint2 scale_and_low(device const uchar* s, uint j) {
        uint2 both;
        if (j < 4u) {
            both.x = s[j] & 63;
            both.y = s[j + 4u] & 63;
        } else {
            both.x = (s[j + 4u] & 15) | (s[j - 4u] >> 6 << 4);
            both.y = (s[j + 4u] >> 4) | (s[j] >> 6 << 4);
        }
        return both;
    }
    static void run8(device const uchar* row, uint run, threadgroup const uint*, thread float* v) {
        device const uchar* block = row + 144u * ulong(run / 32u);
        uint j = run % 32u / 4u;
        uint2 s = scale_and_low(block + 4, j);
        float scale = half_at(block) * float(s.x), low = half_at(block + 2) * float(s.y);
        device const uint* q = (device const uint*)(block + 16u + 32u * (j / 2u) + 8u * (run % 4u));
        for (uint word = 0; word < 2; word++) {
            uint bits = q[word] >> (4u * (j % 2u));
            for (uint i = 0; i < 4; i++) {
                v[4 * word + i] = scale * float(bits >> (8u * i) & 15u) - low;
            }
        }
    }
    static float dot(device const uchar* row, uint unit, threadgroup const uint*,
                     thread const float* y, thread const float* sums) {
        device const uchar* block = row + 144u * ulong(unit / 16u);
        uint part = unit % 16u;
        device const uint* q = (device const uint*)(block + 16u + 32u * (part / 4u) + 8u * (part % 4u));
        uint words[2] = {q[0], q[1]};
        float scaled = 0.0f, low = 0.0f;
        for (uint n = 0; n < 2; n++) {
            uint2 s = scale_and_low(block + 4, 2u * (part / 4u) + n);
            float sum = 0.0f;
            for (uint i = 0; i < 8; i++) {
                uint bits = words[i / 4u] >> (8u * (i % 4u) + 4u * n) & 15u;
                sum = fma(float(bits), y[8 * n + i], sum);
            }
            scaled = fma(float(s.x), sum, scaled);
            low = fma(float(s.y), sums[n], low);
        }
        return half_at(block) * scaled - half_at(block + 2) * low;
    }
};

struct IQ2_XXS {
    // A group of 32 values that share a scale.
    enum { RUNS = 4, SUMS = 0, GRID = 512 };
    static uint units(uint cols) { return cols / 32u; }
    static uint column(uint unit, uint run) { return 32u * unit + 8u * run; }
    // Grid indices in x, signs and scale in y.
    static uint2 group_at(device const uchar* row, uint unit) {
        device const ushort* p = (device const ushort*)(row + 66u * ulong(unit / 8u) + 2u + 8u * (unit % 8u));
        uint2 both;
        both.x = uint(p[0]) | uint(p[1]) << 16;
        both.y = uint(p[2]) | uint(p[3]) << 16;
        return both;
    }
    static float scale(device const uchar* row, uint unit, uint b) {
        return half_at(row + 66u * ulong(unit / 8u)) * (0.5f + float(b >> 28)) * 0.25f;
    }
    // Seven given signs, and an even number in all.
    static uint signs(uint b, uint run) {
        uint t = b >> (7u * run) & 127u;
        return t | (popcount(t) & 1u) << 7;
    }
    static void run8(device const uchar* row, uint run, threadgroup const uint* grid, thread float* v) {
        uint2 both = group_at(row, run / 4u);
        float d = scale(row, run / 4u, both.y);
        uint at = both.x >> (8u * (run % 4u)) & 255u, negative = signs(both.y, run % 4u);
        for (uint i = 0; i < 8; i++) {
            float x = d * float(grid[2u * at + i / 4u] >> (8u * (i % 4u)) & 255u);
            v[i] = negative >> i & 1u ? -x : x;
        }
    }
    static float dot(device const uchar* row, uint unit, threadgroup const uint* grid,
                     thread const float* y, thread const float*) {
        uint2 both = group_at(row, unit);
        float sum = 0.0f;
        for (uint run = 0; run < 4; run++) {
            uint at = both.x >> (8u * run) & 255u, negative = signs(both.y, run);
            uint words[2] = {grid[2u * at], grid[2u * at + 1u]};
            for (uint i = 0; i < 8; i++) {
                float x = float(words[i / 4u] >> (8u * (i % 4u)) & 255u);
                sum = fma(negative >> i & 1u ? -x : x, y[8 * run + i], sum);
            }
        }
        return scale(row, unit, both.y) * sum;
    }
};

// Fills the grid that F looks its magnitudes up in; others have none. A barrier must follow.
template <typename F>
void fill_grid(threadgroup uint* grid, uint index, uint threads) {
    if (uint(F::GRID) < 512u) return;
    for (uint i = index; i < 512u; i += threads) {
        uint codes = uint(IQ2_XXS_CODES[i / 2u]) >> (8u * (i % 2u)), word = 0;
        for (uint j = 0; j < 4; j++) {
            uint code = codes >> (2u * j) & 3u;
            word |= (code == 0u ? 8u : code == 1u ? 25u : 43u) << (8u * j);
        }
        grid[i] = word;
    }
}

// Whether a threadgroup must wait for its grid.
template <typename F>
bool has_grid() {
    return uint(F::GRID) == 512u;
}

// A unit of the vector `x`, and the sums of its runs.
template <typename F>
void load_unit(device const float* x, uint unit, thread float* y, thread float* sums) {
    for (uint run = 0; run < uint(F::RUNS); run++) {
        device const float4* p = (device const float4*)(x + F::column(unit, run));
        float4 a = p[0], b = p[1];
        y[8 * run] = a.x, y[8 * run + 1] = a.y, y[8 * run + 2] = a.z, y[8 * run + 3] = a.w;
        y[8 * run + 4] = b.x, y[8 * run + 5] = b.y, y[8 * run + 6] = b.z, y[8 * run + 7] = b.w;
        if (F::SUMS) sums[run] = (a.x + a.y) + (a.z + a.w) + ((b.x + b.y) + (b.z + b.w));
    }
}
