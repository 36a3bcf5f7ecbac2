// The lightning indexer: scores of all visible rows, then the exact best of them.

#define DIM 128u
#define SCORE_SIMDS 4u
#define SCORE_THREADS (SCORE_SIMDS * LANES)
// Rows of a threadgroup: eight for each SIMD-group.
#define SCORE_ROWS (8u * SCORE_SIMDS)

#define MOST_PAIRS 32

// How queries are turned, by Hadamard's matrix too.
struct Turn {
    uint pairs;  // of channels that turn by their position, the last ones
    float factor;
    float frequencies[MOST_PAIRS];
};

struct Select {
    uint heads;      // a multiple of 8
    uint row;        // of the first token in the batch
    uint start;      // its position
    uint ratio;
    uint k;
    uint stride;     // of a token's scores
    uint page_rows;
    uint row_bytes;
    Turn turn;
};

// Pipelines for keys that are packed and for such in f32.
FUNCTION_CONSTANT(bool, IS_PACKED, 0)
// Pipelines that turn and round the queries on the way.
FUNCTION_CONSTANT(bool, IS_TURNING, 1)

// Sines and cosines of a lane's two pairs of neighbouring channels, 4 · lane and the next three.
struct LaneTurn {
    float sine[2];
    float cosine[2];
};

inline LaneTurn lane_turn(constant Turn& t, uint position, uint lane) {
    LaneTurn turn;
    uint plain = DIM - 2u * t.pairs;
    for (uint i = 0; i < 2; i++) {
        uint channel = 4u * lane + 2u * i;
        float angle = channel < plain ? 0.0f : float(position) * t.frequencies[(channel - plain) / 2u];
        turn.sine[i] = precise::sin(angle);
        turn.cosine[i] = precise::cos(angle);
    }
    return turn;
}

// A SIMD-group turns a head's query to its position and by Hadamard's matrix, and rounds it through FP4.
template <typename P>
void turn_query(constant Turn& t, LaneTurn turn, device const float* from, P to, uint lane) {
    float v[4];
    for (uint i = 0; i < 4; i++) v[i] = from[4u * lane + i];
    for (uint i = 0; i < 2; i++) {
        float a = v[2u * i], b = v[2u * i + 1u];
        v[2u * i] = a * turn.cosine[i] - b * turn.sine[i];
        v[2u * i + 1u] = a * turn.sine[i] + b * turn.cosine[i];
    }
    float w[4] = {v[0] + v[1], v[0] - v[1], v[2] + v[3], v[2] - v[3]};
    v[0] = w[0] + w[2], v[1] = w[1] + w[3], v[2] = w[0] - w[2], v[3] = w[1] - w[3];
    for (uint step = 1; step < LANES; step *= 2u) {
        for (uint i = 0; i < 4; i++) {
            float other = simd_shuffle_xor(v[i], ushort(step));
            v[i] = (lane & step) == 0u ? v[i] + other : other - v[i];
        }
    }
    float most = 0.0f;
    for (uint i = 0; i < 4; i++) {
        v[i] *= t.factor;
        most = max(most, fabs(v[i]));
    }
    // Eight lanes have the channels of a scale.
    for (uint step = 1; step < KEY_BLOCK / 4u; step *= 2u) most = max(most, simd_shuffle_xor(most, ushort(step)));
    float scale = fp4_scale(most);
    for (uint i = 0; i < 4; i++) to[4u * lane + i] = round_e2m1(v[i] / scale) * scale;
}

// In place, for so many tokens or rows that each query is wanted by many. Grid: heads, tokens.
kernel void index_queries(constant Turn& p [[buffer(0)]], device const uint* positions [[buffer(1)]],
                          device float* q [[buffer(2)]], THREAD_POSITION) {
    device float* at = q + (ulong(group.y) * groups.x + group.x) * DIM;
    turn_query(p, lane_turn(p, positions[group.y], lane), at, at, lane);
}
KERNEL(index_queries)

// Grid: row blocks, tokens. Writes `scores` [tokens, stride].
kernel void index_scores(constant Select& p [[buffer(0)]], constant Page* pages [[buffer(1)]],
                         device const float* q [[buffer(2)]], device const float* weights [[buffer(3)]],
                         device float* scores [[buffer(4)]], THREAD_POSITION) {
    THREADGROUP(float, keys, [SCORE_SIMDS][8 * DIM]);
    THREADGROUP(float, dots, [SCORE_SIMDS][64]);
    THREADGROUP(float, queries, [8 * DIM]);
    uint token = p.row + group.y, visible = (p.start + group.y + 1u) / p.ratio;
    uint first = group.x * SCORE_ROWS + 8u * simd;
    // All of them are taken: there is nothing to score.
    if (visible <= p.k) return;
    // Without rows a SIMD-group only helps with the queries.
    if (!IS_TURNING && first >= visible) return;
    for (uint r = 0; r < 8; r++) {
        bool there = first + r < visible;
        device const uchar* key =
            row_at(pages, min(first + r, visible - 1u), p.page_rows, p.row_bytes);
        for (uint i = lane; i < DIM; i += LANES) {
            float v = IS_PACKED ? packed_key_value(key, i) : ((device const float*)key)[i];
            keys[simd][r * DIM + i] = there ? v : 0.0f;
        }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    device const float* heads = q + ulong(token) * p.heads * DIM;
    device const float* of_heads = weights + ulong(token) * p.heads;
    LaneTurn turn;
    if (IS_TURNING) turn = lane_turn(p.turn, p.start + group.y, lane);
    // Lane l adds up heads l / 8 and l / 8 + 4 of each eight for row l % 8.
    float sum = 0.0f;
    for (uint head = 0; head < p.heads; head += 8u) {
        if (IS_TURNING) {
            threadgroup_barrier(mem_flags::mem_threadgroup);
            for (uint h = simd; h < 8u; h += SCORE_SIMDS) {
                turn_query(p.turn, turn, heads + (head + h) * DIM, queries + h * DIM, lane);
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        simdgroup_float8x8 products = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
        for (uint i = 0; i < DIM; i += 8u) {
            simdgroup_float8x8 left, right;
            if (IS_TURNING) {
                simdgroup_load(left, queries + i, DIM);
            } else {
                simdgroup_load(left, heads + head * DIM + i, DIM);
            }
            simdgroup_load(right, keys[simd] + i, DIM, ulong2(0), true);
            simdgroup_multiply_accumulate(products, left, right, products);
        }
        simdgroup_store(products, dots[simd], 8);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        for (uint h = lane / 8u; h < 8; h += 4u) {
            sum = fma(of_heads[head + h], max(dots[simd][8u * h + lane % 8u], 0.0f), sum);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
    sum += simd_shuffle_xor(sum, ushort(8));
    sum += simd_shuffle_xor(sum, ushort(16));
    if (lane < 8u && first + lane < visible) scores[ulong(group.y) * p.stride + first + lane] = sum;
}
KERNEL(index_scores)

#define SELECT_THREADS 512u
#define SELECT_SIMDS (SELECT_THREADS / LANES)

// The sum of `v` over the threads before this one; `total` is that over all. Barriers inside.
inline uint threadgroup_prefix(uint v, threadgroup uint* partial, uint lane, uint simd, thread uint& total) {
    uint before = simd_prefix_exclusive_sum(v);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (lane == LANES - 1u) partial[simd] = before + v;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint of_simd = lane < SELECT_SIMDS ? partial[lane] : 0u;
    uint before_simd = simd_prefix_exclusive_sum(of_simd);
    total = simd_sum(of_simd);
    return before + simd_shuffle(before_simd, ushort(simd));
}

// One threadgroup a token: the k-th best key, eight bits at a time; then the rows above it and as
// many of the equal ones as fit, lowest first, in ascending order.
kernel void index_select(constant Select& p [[buffer(0)]], device const float* scores [[buffer(1)]],
                         device uint* out [[buffer(2)]], THREAD_POSITION) {
    THREADGROUP(atomic_uint, histogram, [256]);
    THREADGROUP(uint, partial, [LANES]);
    THREADGROUP(uint, found, [2]);
    uint token = p.row + group.x, visible = (p.start + group.x + 1u) / p.ratio;
    device uint* to = out + ulong(token) * p.k;
    if (visible <= p.k) {
        for (uint i = index; i < p.k; i += SELECT_THREADS) to[i] = i < visible ? i : NO_ROW;
        return;
    }
    device const float* from = scores + ulong(group.x) * p.stride;
    uint prefix = 0u, mask = 0u, wanted = p.k;
    for (uint shift = 24;; shift -= 8u) {
        for (uint i = index; i < 256u; i += SELECT_THREADS) {
            atomic_store_explicit(&histogram[i], 0u, memory_order_relaxed);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint i = index; i < visible; i += SELECT_THREADS) {
            uint key = order_of(from[i]);
            if ((key & mask) == prefix) {
                atomic_fetch_add_explicit(&histogram[key >> shift & 255u], 1u, memory_order_relaxed);
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (simd == 0u) {
            // Lane l has the digits 255 - 8l and below, so that sums run from the best.
            uint counts[8], sum = 0u;
            for (uint i = 0; i < 8; i++) {
                counts[i] = atomic_load_explicit(&histogram[255u - 8u * lane - i], memory_order_relaxed);
                sum += counts[i];
            }
            uint before = simd_prefix_exclusive_sum(sum);
            for (uint i = 0; i < 8; i++) {
                if (before < wanted && before + counts[i] >= wanted) {
                    found[0] = 255u - 8u * lane - i;
                    found[1] = wanted - before;
                }
                before += counts[i];
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        prefix |= found[0] << shift;
        mask |= 255u << shift;
        wanted = found[1];
        if (shift == 0u) break;
    }
    // `wanted` of the rows whose key is `prefix` belong to the best.
    uint written = 0u, equal_before = 0u;
    for (uint first = 0; first < visible; first += SELECT_THREADS) {
        uint i = first + index;
        uint key = i < visible ? order_of(from[i]) : 0u;
        bool above = i < visible && key > prefix, equal = i < visible && key == prefix;
        uint equals, taken;
        uint rank = equal_before + threadgroup_prefix(equal ? 1u : 0u, partial, lane, simd, equals);
        bool takes = above || (equal && rank < wanted);
        uint at = written + threadgroup_prefix(takes ? 1u : 0u, partial, lane, simd, taken);
        if (takes) to[at] = i;
        written += taken;
        equal_before += equals;
    }
}
KERNEL(index_select)
