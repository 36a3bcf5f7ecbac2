// Rows of a sequence in pages: row r is row r mod page_rows of page r / page_rows.

// A page's address, as the host writes it into the table.
struct Page {
    device const uchar* bytes;
};

// Where row `row` begins.
inline device const uchar* row_at(constant Page* pages, uint row, uint page_rows, uint row_bytes) {
    return pages[row / page_rows].bytes + ulong(row % page_rows) * row_bytes;
}

// The byte forms of rows, see src/kv/packed.rs; widths are those of the family.
#define KV_NOPE 448u
#define KV_ROPE_AT 448u
#define KV_SCALES_AT 576u
#define KV_BLOCK 64u
#define KEY_SCALES_AT 64u
#define KEY_BLOCK 32u

// Value of an E4M3 code. Its subnormals are made as numbers: as bits they would be f32's, which the
// GPU takes for zero.
inline float e4m3_value(uint code) {
    uint magnitude = code & 0x7fu;
    float value = magnitude < 8u ? float(magnitude) / 512.0f : as_type<float>((magnitude << 20) + (120u << 23));
    return code & 0x80u ? -value : value;
}

// Value of an E2M1 code: twice each magnitude is a nibble of the constant.
inline float e2m1_value(uint code) {
    float magnitude = float(0xc8643210u >> (4u * (code & 7u)) & 15u) * 0.5f;
    return code & 8u ? -magnitude : magnitude;
}

// A scale from its byte.
inline float scale_value(uint byte) { return as_type<float>(byte << 23); }

// Channel `c` of a packed attention row.
inline float packed_row_value(device const uchar* row, uint c) {
    if (c < KV_NOPE) return e4m3_value(row[c]) * scale_value(row[KV_SCALES_AT + c / KV_BLOCK]);
    uint at = KV_ROPE_AT + 2u * (c - KV_NOPE);
    return as_type<float>(uint(row[at]) << 16 | uint(row[at + 1u]) << 24);
}

// Channel `c` of a packed indexer key.
inline float packed_key_value(device const uchar* key, uint c) {
    uint code = uint(key[c / 2u]) >> (4u * (c % 2u)) & 15u;
    return e2m1_value(code) * scale_value(key[KEY_SCALES_AT + c / KEY_BLOCK]);
}

// Writes a rounded row's byte form, scales canonical: by `simds` SIMD-groups of which this is one. `row`
// is in any address space.
template <typename P>
void pack_fp8_row(P row, device uchar* to, uint width, uint nope, uint block, uint scales_at, uint row_bytes,
                  uint lane, uint simd, uint simds) {
    uint blocks = nope / block;
    for (uint b = simd; b < blocks; b += simds) {
        bool has_a = lane < block, has_b = lane + 32u < block;
        float a = has_a ? row[b * block + lane] : 0.0f;
        float c = has_b ? row[b * block + lane + 32u] : 0.0f;
        float scale = fp8_scale(simd_max(max(fabs(a), fabs(c))));
        if (has_a) to[b * block + lane] = uchar(e4m3_code(a / scale));
        if (has_b) to[b * block + lane + 32u] = uchar(e4m3_code(c / scale));
        if (lane == 0u) to[scales_at + b] = uchar(as_type<uint>(scale) >> 23);
    }
    uint index = simd * LANES + lane, threads = simds * LANES;
    for (uint i = index; i < width - nope; i += threads) {
        uint bits = as_type<uint>(row[nope + i]);
        to[nope + 2u * i] = uchar(bits >> 16 & 255u);
        to[nope + 2u * i + 1u] = uchar(bits >> 24);
    }
    for (uint i = scales_at + blocks + index; i < row_bytes; i += threads) to[i] = 0;
}

// The same of an indexer key: a lane has the pair of channels of a byte.
template <typename P>
void pack_fp4_row(P row, device uchar* to, uint width, uint block, uint scales_at, uint row_bytes, uint lane,
                  uint simd, uint simds) {
    uint blocks = width / block;
    for (uint b = simd; b < blocks; b += simds) {
        bool there = 2u * lane < block;
        uint at = b * block + 2u * lane;
        float even = there ? row[at] : 0.0f, odd = there && 2u * lane + 1u < block ? row[at + 1u] : 0.0f;
        float scale = fp4_scale(simd_max(max(fabs(even), fabs(odd))));
        if (there) to[at / 2u] = uchar(e2m1_code(even / scale) | e2m1_code(odd / scale) << 4);
        if (lane == 0u) to[scales_at + b] = uchar(as_type<uint>(scale) >> 23);
    }
    for (uint i = scales_at + blocks + simd * LANES + lane; i < row_bytes; i += simds * LANES) to[i] = 0;
}
