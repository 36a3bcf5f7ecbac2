// The likeliest token of each row of scores.

#define LIKELIEST_THREADS 1024u

struct Likeliest {
    uint count;
    uint skip;  // an index that is left out
};

// One threadgroup a row. Writes an index, or NO_ROW where a score is not finite.
kernel void likeliest(constant Likeliest& p [[buffer(0)]], device const float* scores [[buffer(1)]],
                      device uint* out [[buffer(2)]], THREAD_POSITION) {
    THREADGROUP(float, bests, [LANES]);
    THREADGROUP(uint, places, [LANES]);
    THREADGROUP(uint, odds, [LANES]);
    device const float* row = scores + ulong(group.x) * p.count;
    float best = -INFINITY;
    uint at = NO_ROW, odd = 0u;
    for (uint i = index; i < p.count; i += LIKELIEST_THREADS) {
        float score = row[i];
        if (!is_finite(score)) odd = 1u;
        // Places ascend, so that of equals the first stays.
        if (score > best && i != p.skip) best = score, at = i;
    }
    float most = simd_max(best);
    uint place = simd_min(best == most ? at : NO_ROW);
    odd = simd_max(odd);
    if (lane == 0u) {
        bests[simd] = most;
        places[simd] = place;
        odds[simd] = odd;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (simd != 0u) return;
    best = bests[lane];
    most = simd_max(best);
    place = simd_min(best == most ? places[lane] : NO_ROW);
    odd = simd_max(odds[lane]);
    if (lane == 0u) out[group.x] = odd != 0u ? NO_ROW : place;
}
KERNEL(likeliest)
