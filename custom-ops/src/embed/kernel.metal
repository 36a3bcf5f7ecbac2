// Rows of a table by index, copied to every stream.

#define EMBED_THREADS 128u

struct Embed {
    uint hidden;
    uint streams;
    uint vocab;
    uint row_bytes;
};

// One threadgroup a token. An id past the table, which the host has refused where it could see it,
// reads the last row.
template <typename F>
kernel void embed(constant Embed& p [[buffer(0)]], device const uint* ids [[buffer(1)]],
                  device const uchar* table [[buffer(2)]], device float* out [[buffer(3)]],
                  THREAD_POSITION) {
    THREADGROUP(uint, grid, [uint(F::GRID)]);
    fill_grid<F>(grid, index, EMBED_THREADS);
    if (has_grid<F>()) threadgroup_barrier(mem_flags::mem_threadgroup);
    device const uchar* row = table + ulong(min(ids[group.x], p.vocab - 1u)) * p.row_bytes;
    device float* to = out + ulong(group.x) * p.streams * p.hidden;
    for (uint run = index; run < p.hidden / 8u; run += EMBED_THREADS) {
        float v[8];
        F::run8(row, run, grid, v);
        for (uint stream = 0; stream < p.streams; stream++) {
            for (uint i = 0; i < 8; i++) to[stream * p.hidden + 8u * run + i] = v[i];
        }
    }
}

INSTANCE(embed_f32, embed<F32>)
INSTANCE(embed_f16, embed<F16>)
INSTANCE(embed_bf16, embed<BF16>)
INSTANCE(embed_q8_0, embed<Q8_0>)
INSTANCE(embed_q2_k, embed<Q2_K>)
INSTANCE(embed_q4_k, embed<Q4_K>)
INSTANCE(embed_iq2_xxs, embed<IQ2_XXS>)
