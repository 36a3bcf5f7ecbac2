// Rows of a batch into a ring or a page.

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
