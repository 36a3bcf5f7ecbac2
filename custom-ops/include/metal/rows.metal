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
