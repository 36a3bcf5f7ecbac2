// Rows of a batch into a ring or a page, as they are or packed.

#define COPY_THREADS 256u

struct Copy {
    uint count;
};

kernel void kv_copy(constant Copy& p [[buffer(0)]], device const float* source [[buffer(1)]],
                    device float* out [[buffer(2)]], THREAD_POSITION) {
    uint i = group.x * COPY_THREADS + index;
    if (i < p.count) out[i] = source[i];
}
KERNEL(kv_copy)

struct Pack {
    uint width;
    uint nope;       // E4M3 channels; the others are BF16
    uint block;      // channels that share a scale
    uint scales_at;
    uint row_bytes;
};

// One SIMD-group a row that was rounded: its byte form, scales canonical.
kernel void kv_pack_fp8(constant Pack& p [[buffer(0)]], device const float* source [[buffer(1)]],
                        device uchar* out [[buffer(2)]], THREAD_POSITION) {
    device const float* row = source + ulong(group.x) * p.width;
    device uchar* to = out + ulong(group.x) * p.row_bytes;
    uint blocks = p.nope / p.block;
    for (uint b = 0; b < blocks; b++) {
        bool has_a = lane < p.block, has_b = lane + 32u < p.block;
        float a = has_a ? row[b * p.block + lane] : 0.0f;
        float c = has_b ? row[b * p.block + lane + 32u] : 0.0f;
        float scale = fp8_scale(simd_max(max(fabs(a), fabs(c))));
        if (has_a) to[b * p.block + lane] = uchar(e4m3_code(a / scale));
        if (has_b) to[b * p.block + lane + 32u] = uchar(e4m3_code(c / scale));
        if (lane == 0u) to[p.scales_at + b] = uchar(as_type<uint>(scale) >> 23);
    }
    for (uint i = lane; i < p.width - p.nope; i += LANES) {
        uint bits = as_type<uint>(row[p.nope + i]);
        to[p.nope + 2u * i] = uchar(bits >> 16 & 255u);
        to[p.nope + 2u * i + 1u] = uchar(bits >> 24);
    }
    for (uint i = p.scales_at + blocks + lane; i < p.row_bytes; i += LANES) to[i] = 0;
}
KERNEL(kv_pack_fp8)

// The same of an indexer key: a lane has the pair of channels of a byte.
kernel void kv_pack_fp4(constant Pack& p [[buffer(0)]], device const float* source [[buffer(1)]],
                        device uchar* out [[buffer(2)]], THREAD_POSITION) {
    device const float* row = source + ulong(group.x) * p.width;
    device uchar* to = out + ulong(group.x) * p.row_bytes;
    uint blocks = p.width / p.block;
    for (uint b = 0; b < blocks; b++) {
        bool there = 2u * lane < p.block;
        uint at = b * p.block + 2u * lane;
        float even = there ? row[at] : 0.0f, odd = there && 2u * lane + 1u < p.block ? row[at + 1u] : 0.0f;
        float scale = fp4_scale(simd_max(max(fabs(even), fabs(odd))));
        if (there) to[at / 2u] = uchar(e2m1_code(even / scale) | e2m1_code(odd / scale) << 4);
        if (lane == 0u) to[p.scales_at + b] = uchar(as_type<uint>(scale) >> 23);
    }
    for (uint i = p.scales_at + blocks + lane; i < p.row_bytes; i += LANES) to[i] = 0;
}
KERNEL(kv_pack_fp4)
