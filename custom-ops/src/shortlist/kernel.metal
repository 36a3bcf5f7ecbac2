// The tokens of each row of scores that have a chance at all: those within a reach of the best.

#define SHORTLIST_THREADS 1024u
#define SHORTLIST_SIMDS (SHORTLIST_THREADS / LANES)
#define SHORTLIST_ROWS 32
#define SHORTLIST_ROOM 254u

struct Shortlist {
    uint count;
    float reach[SHORTLIST_ROWS];
    float inverse[SHORTLIST_ROWS];  // of the temperature
};

// One threadgroup a row. Writes how many there are (all ones if a score is not finite), the sum of all
// tokens' weights `exp((score - best) · inverse)` as a float, then places and scores, in any order, of as
// many as there is room for.
kernel void shortlist(constant Shortlist& p [[buffer(0)]], device const float* scores [[buffer(1)]],
                      device uint* out [[buffer(2)]], THREAD_POSITION) {
    THREADGROUP(float, partial, [LANES]);
    THREADGROUP(atomic_uint, found, [2]);
    device const float* row = scores + ulong(group.x) * p.count;
    device uint* to = out + ulong(group.x) * (2u + 2u * SHORTLIST_ROOM);
    if (index < 2u) atomic_store_explicit(&found[index], 0u, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float best = -INFINITY;
    bool odd = false;
    for (uint i = index; i < p.count; i += SHORTLIST_THREADS) {
        float score = row[i];
        odd = odd || !is_finite(score);
        best = max(best, score);
    }
    if (odd) atomic_fetch_add_explicit(&found[1], 1u, memory_order_relaxed);
    best = threadgroup_max(best, partial, lane, simd, SHORTLIST_SIMDS);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float least = best - p.reach[group.x], inverse = p.inverse[group.x], sum = 0.0f;
    for (uint i = index; i < p.count; i += SHORTLIST_THREADS) {
        float score = row[i];
        sum += precise::exp((score - best) * inverse);
        if (score >= least) {
            uint at = atomic_fetch_add_explicit(&found[0], 1u, memory_order_relaxed);
            if (at < SHORTLIST_ROOM) {
                to[2u + at] = i;
                to[2u + SHORTLIST_ROOM + at] = as_type<uint>(score);
            }
        }
    }
    sum = threadgroup_sum(sum, partial, lane, simd, SHORTLIST_SIMDS);
    // All have counted: the sum has met at a barrier.
    if (index == 0u) {
        uint odds = atomic_load_explicit(&found[1], memory_order_relaxed);
        to[0] = odds != 0u ? 0xffffffffu : atomic_load_explicit(&found[0], memory_order_relaxed);
        to[1] = as_type<uint>(sum);
    }
}
KERNEL(shortlist)
