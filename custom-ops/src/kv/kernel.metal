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

// One SIMD-group a row that was rounded.
kernel void kv_pack_fp8(constant Pack& p [[buffer(0)]], device const float* source [[buffer(1)]],
                        device uchar* out [[buffer(2)]], THREAD_POSITION) {
    pack_fp8_row(source + ulong(group.x) * p.width, out + ulong(group.x) * p.row_bytes, p.width, p.nope,
                 p.block, p.scales_at, p.row_bytes, lane, 0u, 1u);
}
KERNEL(kv_pack_fp8)

kernel void kv_pack_fp4(constant Pack& p [[buffer(0)]], device const float* source [[buffer(1)]],
                        device uchar* out [[buffer(2)]], THREAD_POSITION) {
    pack_fp4_row(source + ulong(group.x) * p.width, out + ulong(group.x) * p.row_bytes, p.width, p.block,
                 p.scales_at, p.row_bytes, lane, 0u, 1u);
}
KERNEL(kv_pack_fp4)
