// Attention over a window and compressed rows, every row key and value at once, a sink per head.
//
// Few tokens with few rows: a threadgroup has two heads of one token, its SIMD-groups share the rows. Few
// tokens with many rows: a threadgroup has 16 heads and a part of the rows, which pass through
// threadgroup memory eight at a time; a second kernel joins the parts. Many tokens: the same heads as
// the rows of a product of SIMD-group matrices, with all the token's rows.

#define DIM 512u
#define ROW_TILE 8u
#define HEADS_PER_SIMD 2u
#define ATTEND_SIMDS 8u
#define ATTEND_HEADS (HEADS_PER_SIMD * ATTEND_SIMDS)
#define ATTEND_THREADS (ATTEND_SIMDS * LANES)
#define VALUES (DIM / LANES)
// Pairs of channels that can turn: of each lane, its last two channels.
#define MOST_PAIRS 32
#define TURNING 2u

struct Attend {
    uint heads;
    uint row;        // of the span's first token in the batch
    uint start;      // its position
    uint slots;      // of the ring
    uint window;
    uint ratio;      // of visible compressed rows; 0 without
    uint chosen;     // places in a token's list of chosen rows; 0 without
    uint rows;       // compressed rows that there are
    uint page_rows;
    uint row_bytes;
    uint splits;
    float scale;
    uint pairs;      // of channels that turn, the last ones
    float norm_eps;
    float frequencies[MOST_PAIRS];
};

// Pipelines for compressed rows that are packed and for such in f32.
FUNCTION_CONSTANT(bool, IS_PACKED, 0)
// Pipelines that bring queries to length one and turn them, turn back what comes out, and write the
// tokens' rows to the ring.
FUNCTION_CONSTANT(bool, IS_TURNING, 1)

// Sine and cosine of channel `c` at `position`; of one that does not turn, of no angle.
inline float2 turn_of(constant Attend& p, uint position, uint c) {
    uint plain = DIM - 2u * p.pairs;
    float angle = c < plain ? 0.0f : float(position) * p.frequencies[(c - plain) / 2u];
    float2 turn;
    turn.x = precise::sin(angle);
    turn.y = precise::cos(angle);
    return turn;
}

// Neighbouring lanes have the two channels of a pair.
inline float turned(float v, float sine, float cosine, uint lane) {
    float other = simd_shuffle_xor(v, ushort(1));
    return lane % 2u == 0u ? v * cosine - other * sine : other * sine + v * cosine;
}

// Row `r` of those that the token at `position` attends to: window first. Null for a place that is
// empty.
inline device const uchar* attended(constant Attend& p, device const float* kv, device const float* past,
                                    constant Page* pages, device const uint* ids, uint position,
                                    uint in_window, uint r) {
    if (r < in_window) {
        uint at = position + 1u - in_window + r;
        bool here = at >= p.start;
        device const float* from = here ? kv : past;
        uint row = here ? p.row + (at - p.start) : at % p.slots;
        return (device const uchar*)(from + ulong(row) * DIM);
    }
    uint row = r - in_window;
    if (p.chosen > 0u) row = ids[ulong(position - p.start) * p.chosen + row];
    // What lies past the rows the host could not see: it must not be read.
    return row < p.rows ? row_at(pages, row, p.page_rows, p.row_bytes) : nullptr;
}

// A lane's channels of a head's query, scaled.
inline void load_query(constant Attend& p, device const float* at, thread float* query,
                       thread const float2* turns, uint lane) {
    for (uint i = 0; i < VALUES; i++) query[i] = at[lane + LANES * i];
    if (IS_TURNING) {
        float square = 0.0f;
        for (uint i = 0; i < VALUES; i++) square = fma(query[i], query[i], square);
        float length = 1.0f / precise::sqrt(simd_sum(square) / float(DIM) + p.norm_eps);
        for (uint i = 0; i < VALUES; i++) query[i] *= length;
        for (uint i = 0; i < TURNING; i++) {
            thread float& v = query[VALUES - TURNING + i];
            v = turned(v, turns[i].x, turns[i].y, lane);
        }
    }
    for (uint i = 0; i < VALUES; i++) query[i] *= p.scale;
}

// A lane's turns at `position`.
inline void load_turns(constant Attend& p, uint position, thread float2* turns, uint lane) {
    if (!IS_TURNING) return;
    for (uint i = 0; i < TURNING; i++) turns[i] = turn_of(p, position, lane + LANES * (VALUES - TURNING + i));
}

// A lane's channels of a row that is there.
inline void load_row(device const uchar* row, bool packed, thread float* v, uint lane) {
    if (packed) {
        for (uint i = 0; i < VALUES; i++) v[i] = packed_row_value(row, lane + LANES * i);
    } else {
        device const float* values = (device const float*)row;
        for (uint i = 0; i < VALUES; i++) v[i] = values[lane + LANES * i];
    }
}

// The token's row to its ring, by one of the token's threadgroups. The host has seen to it that the slot is
// one that no token of the span attends to.
inline void keep_row(constant Attend& p, device const float* kv, device float* past, uint token, uint position,
                     uint index) {
    device float* slot = past + ulong(position % p.slots) * DIM;
    for (uint i = index; i < DIM; i += ATTEND_THREADS) slot[i] = kv[ulong(token) * DIM + i];
}

// Grid: pairs of heads, tokens. `ids` begins at the span's first token.
kernel void attend_whole(constant Attend& p [[buffer(0)]], constant Page* pages [[buffer(1)]],
                         device const float* q [[buffer(2)]], device const float* kv [[buffer(3)]],
                         device float* past [[buffer(4)]], device const uint* ids [[buffer(5)]],
                         device const float* sinks [[buffer(6)]], device float* out [[buffer(7)]],
                         THREAD_POSITION) {
    THREADGROUP(float, sums, [ATTEND_SIMDS][DIM]);
    THREADGROUP(float, tops, [HEADS_PER_SIMD][ATTEND_SIMDS]);
    THREADGROUP(float, weights, [HEADS_PER_SIMD][ATTEND_SIMDS]);
    uint token = p.row + group.y, position = p.start + group.y, head0 = group.x * HEADS_PER_SIMD;
    uint in_window = min(position + 1u, p.window);
    uint compressed = p.chosen > 0u ? p.chosen : p.ratio > 0u ? (position + 1u) / p.ratio : 0u;
    uint total = in_window + compressed;
    float2 turns[TURNING];
    load_turns(p, position, turns, lane);
    float query[HEADS_PER_SIMD][VALUES], sum[HEADS_PER_SIMD][VALUES];
    float most[HEADS_PER_SIMD], weight[HEADS_PER_SIMD];
    for (uint h = 0; h < HEADS_PER_SIMD; h++) {
        // Past the last head the last one is computed again, and not written.
        uint head = min(head0 + h, p.heads - 1u);
        load_query(p, q + (ulong(token) * p.heads + head) * DIM, query[h], turns, lane);
        for (uint i = 0; i < VALUES; i++) sum[h][i] = 0.0f;
        most[h] = -INFINITY;
        weight[h] = 0.0f;
    }
    for (uint r = simd; r < total; r += ATTEND_SIMDS) {
        device const uchar* row = attended(p, kv, past, pages, ids, position, in_window, r);
        if (row == nullptr) continue;
        float v[VALUES];
        load_row(row, IS_PACKED && r >= in_window, v, lane);
        for (uint h = 0; h < HEADS_PER_SIMD; h++) {
            float score = 0.0f;
            for (uint i = 0; i < VALUES; i++) score = fma(query[h][i], v[i], score);
            score = simd_sum(score);
            if (score > most[h]) {
                float fade = precise::exp(most[h] - score);
                most[h] = score;
                weight[h] *= fade;
                for (uint i = 0; i < VALUES; i++) sum[h][i] *= fade;
            }
            float share = precise::exp(score - most[h]);
            weight[h] += share;
            for (uint i = 0; i < VALUES; i++) sum[h][i] = fma(share, v[i], sum[h][i]);
        }
    }
    for (uint h = 0; h < HEADS_PER_SIMD; h++) {
        if (lane == 0u) {
            tops[h][simd] = most[h];
            weights[h][simd] = weight[h];
        }
        for (uint i = 0; i < VALUES; i++) sums[simd][lane + LANES * i] = sum[h][i];
        threadgroup_barrier(mem_flags::mem_threadgroup);
        uint head = head0 + h;
        if (head < p.heads) {
            float top = sinks[head];
            for (uint s = 0; s < ATTEND_SIMDS; s++) top = max(top, tops[h][s]);
            float all = precise::exp(sinks[head] - top);
            float fades[ATTEND_SIMDS];
            for (uint s = 0; s < ATTEND_SIMDS; s++) {
                fades[s] = precise::exp(tops[h][s] - top);
                all = fma(weights[h][s], fades[s], all);
            }
            device float* to = out + (ulong(token) * p.heads + head) * DIM;
            for (uint c = index; c < DIM; c += ATTEND_THREADS) {
                float v = 0.0f;
                for (uint s = 0; s < ATTEND_SIMDS; s++) v = fma(sums[s][c], fades[s], v);
                v /= all;
                if (IS_TURNING && c >= DIM - ATTEND_THREADS) {
                    float2 turn = turn_of(p, position, c);
                    v = turned(v, -turn.x, turn.y, lane);
                }
                to[c] = v;
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    if (IS_TURNING && group.x == 0u) keep_row(p, kv, past, token, position, index);
}
KERNEL(attend_whole)

// Grid: splits, head blocks, tokens. Writes `partial` [tokens, heads, splits, 2 + DIM].
kernel void attend(constant Attend& p [[buffer(0)]], constant Page* pages [[buffer(1)]],
                   device const float* q [[buffer(2)]], device const float* kv [[buffer(3)]],
                   device float* past [[buffer(4)]], device const uint* ids [[buffer(5)]],
                   device float* partial [[buffer(6)]], THREAD_POSITION) {
    THREADGROUP(float, tile, [ROW_TILE][DIM]);
    THREADGROUP(uint, there, [ROW_TILE]);
    uint token = p.row + group.z, position = p.start + group.z;
    uint in_window = min(position + 1u, p.window);
    uint compressed = p.chosen > 0u ? p.chosen : p.ratio > 0u ? (position + 1u) / p.ratio : 0u;
    uint total = in_window + compressed;
    uint share = div_up(div_up(total, p.splits), ROW_TILE) * ROW_TILE;
    uint from = min(group.x * share, total), to = min(from + share, total);

    uint head0 = group.y * ATTEND_HEADS + simd * HEADS_PER_SIMD;
    float query[HEADS_PER_SIMD][VALUES], sum[HEADS_PER_SIMD][VALUES];
    float most[HEADS_PER_SIMD], weight[HEADS_PER_SIMD];
    float2 turns[TURNING];
    load_turns(p, position, turns, lane);
    for (uint h = 0; h < HEADS_PER_SIMD; h++) {
        // Past the last head the last one is computed again, and not written.
        uint head = min(head0 + h, p.heads - 1u);
        load_query(p, q + (ulong(token) * p.heads + head) * DIM, query[h], turns, lane);
        for (uint i = 0; i < VALUES; i++) sum[h][i] = 0.0f;
        most[h] = -INFINITY;
        weight[h] = 0.0f;
    }
    for (uint first = from; first < to; first += ROW_TILE) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        // One row for each SIMD-group.
        {
            uint r = first + simd;
            device const uchar* row =
                r < to ? attended(p, kv, past, pages, ids, position, in_window, r) : nullptr;
            if (lane == 0u) there[simd] = row != nullptr ? 1u : 0u;
            float v[VALUES] = {};
            if (row != nullptr) load_row(row, IS_PACKED && r >= in_window, v, lane);
            for (uint i = 0; i < VALUES; i++) tile[simd][lane + LANES * i] = v[i];
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint h = 0; h < HEADS_PER_SIMD; h++) {
            float scores[ROW_TILE], top = most[h];
            for (uint r = 0; r < ROW_TILE; r++) {
                float score = 0.0f;
                for (uint i = 0; i < VALUES; i++) score = fma(query[h][i], tile[r][lane + LANES * i], score);
                score = simd_sum(score);
                scores[r] = there[r] != 0u ? score : -INFINITY;
                top = max(top, scores[r]);
            }
            if (top == -INFINITY) continue;
            float fade = precise::exp(most[h] - top);
            most[h] = top;
            weight[h] *= fade;
            for (uint i = 0; i < VALUES; i++) sum[h][i] *= fade;
            for (uint r = 0; r < ROW_TILE; r++) {
                float share_of_row = precise::exp(scores[r] - top);
                weight[h] += share_of_row;
                for (uint i = 0; i < VALUES; i++) {
                    sum[h][i] = fma(share_of_row, tile[r][lane + LANES * i], sum[h][i]);
                }
            }
        }
    }
    for (uint h = 0; h < HEADS_PER_SIMD; h++) {
        uint head = head0 + h;
        if (head >= p.heads) break;
        // Maximum, weight, then the sums.
        ulong place = (ulong(group.z) * p.heads + head) * p.splits + group.x;
        device float* at = partial + place * (DIM + 2u);
        if (lane == 0u) {
            at[0] = most[h];
            at[1] = weight[h];
        }
        for (uint i = 0; i < VALUES; i++) at[2u + lane + LANES * i] = sum[h][i];
    }
    if (IS_TURNING && group.x == 0u && group.y == 0u) keep_row(p, kv, past, token, position, index);
}
KERNEL(attend)

// Grid: heads, tokens; 128 threads.
kernel void attend_join(constant Attend& p [[buffer(0)]], device const float* partial [[buffer(1)]],
                        device const float* sinks [[buffer(2)]], device float* out [[buffer(3)]],
                        THREAD_POSITION) {
    uint head = group.x;
    device const float* at = partial + (ulong(group.y) * p.heads + head) * p.splits * (DIM + 2u);
    float top = sinks[head];
    for (uint i = 0; i < p.splits; i++) top = max(top, at[i * (DIM + 2u)]);
    float all = precise::exp(sinks[head] - top);
    float4 sum = float4(0.0f);
    for (uint i = 0; i < p.splits; i++) {
        device const float* of = at + i * (DIM + 2u);
        float fade = precise::exp(of[0] - top);
        all = fma(of[1], fade, all);
        for (uint j = 0; j < 4; j++) sum[j] = fma(of[2u + index + 128u * j], fade, sum[j]);
    }
    device float* to = out + (ulong(p.row + group.y) * p.heads + head) * DIM;
    for (uint j = 0; j < 4; j++) {
        float v = sum[j] / all;
        if (IS_TURNING && j == 3u) {
            float2 turn = turn_of(p, p.start + group.y, index + 128u * j);
            v = turned(v, -turn.x, turn.y, lane);
        }
        to[index + 128u * j] = v;
    }
}
KERNEL(attend_join)

// ------------------------------------------------------------------------------------------------
// Many tokens

// Heads are the rows of the products: two blocks of eight, with four SIMD-groups each. For the scores a
// SIMD-group has one block and a quarter of the channels, its queries in matrices; for the values both blocks
// and an eighth of the channels.
#define QUERY_TILES (DIM / 4u / 8u)
#define VALUE_TILES (DIM / ATTEND_SIMDS / 8u)

// Multiplies the rows of both blocks by the factors of their heads, of which `diagonals` has the matrices.
inline void scale_heads(thread simdgroup_float8x8 (&sums)[2][VALUE_TILES], threadgroup const float* diagonals) {
    for (uint b = 0; b < 2; b++) {
        simdgroup_float8x8 factor;
        simdgroup_load(factor, diagonals + 64u * b, 8);
        for (uint i = 0; i < VALUE_TILES; i++) {
            simdgroup_float8x8 scaled = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
            simdgroup_multiply_accumulate(scaled, factor, sums[b][i], scaled);
            sums[b][i] = scaled;
        }
    }
}

// Grid: head blocks, tokens. `ids` begins at the span's first token.
kernel void attend_many(constant Attend& p [[buffer(0)]], constant Page* pages [[buffer(1)]],
                        device const float* q [[buffer(2)]], device const float* kv [[buffer(3)]],
                        device const float* past [[buffer(4)]], device const uint* ids [[buffer(5)]],
                        device const float* sinks [[buffer(6)]], device float* out [[buffer(7)]],
                        THREAD_POSITION) {
    THREADGROUP(float, tile, [ROW_TILE][DIM]);
    THREADGROUP(uint, there, [ROW_TILE]);
    THREADGROUP(float, dots, [ATTEND_SIMDS][64]);
    THREADGROUP(float, shares, [ATTEND_HEADS][ROW_TILE]);
    THREADGROUP(float, diagonals, [2][64]);
    THREADGROUP(atomic_uint, fades, [1]);
    uint token = p.row + group.y, position = p.start + group.y, head0 = group.x * ATTEND_HEADS;
    uint in_window = min(position + 1u, p.window);
    uint compressed = p.chosen > 0u ? p.chosen : p.ratio > 0u ? (position + 1u) / p.ratio : 0u;
    uint total = in_window + compressed;
    uint block = simd % 2u, channel0 = simd / 2u * (DIM / 4u), value0 = simd * (DIM / ATTEND_SIMDS);

    simdgroup_float8x8 query[QUERY_TILES], sums[2][VALUE_TILES];
    for (uint b = 0; b < 2; b++) {
        // Eight heads wait where the rows will be.
        threadgroup_barrier(mem_flags::mem_threadgroup);
        uint head = min(head0 + 8u * b + simd, p.heads - 1u);
        device const float* at = q + (ulong(token) * p.heads + head) * DIM;
        for (uint i = 0; i < VALUES; i++) tile[simd][lane + LANES * i] = at[lane + LANES * i] * p.scale;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (block == b) {
            for (uint i = 0; i < QUERY_TILES; i++) simdgroup_load(query[i], &tile[0][channel0 + 8u * i], DIM);
        }
        for (uint i = 0; i < VALUE_TILES; i++) sums[b][i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
    if (index < 128u) diagonals[index / 64u][index % 64u] = 0.0f;
    if (index == 0u) atomic_store_explicit(&fades[0], 0u, memory_order_relaxed);

    // Of the first 128 threads: a head, and a row of each eight. All eight of a head have its maximum.
    uint my_head = index / ROW_TILE, my_row = index % ROW_TILE;
    bool weighs = index < ATTEND_HEADS * ROW_TILE;
    float most = -INFINITY, weight = 0.0f;
    for (uint first = 0; first < total; first += ROW_TILE) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        // One row for each SIMD-group.
        {
            uint r = first + simd;
            device const uchar* row =
                r < total ? attended(p, kv, past, pages, ids, position, in_window, r) : nullptr;
            if (lane == 0u) there[simd] = row != nullptr ? 1u : 0u;
            float v[VALUES] = {};
            if (row != nullptr) load_row(row, IS_PACKED && r >= in_window, v, lane);
            for (uint i = 0; i < VALUES; i++) tile[simd][lane + LANES * i] = v[i];
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        {
            simdgroup_float8x8 products = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
            for (uint i = 0; i < QUERY_TILES; i++) {
                simdgroup_float8x8 rows;
                simdgroup_load(rows, &tile[0][channel0 + 8u * i], DIM, ulong2(0), true);
                simdgroup_multiply_accumulate(products, query[i], rows, products);
            }
            simdgroup_store(products, dots[simd], 8);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (weighs) {
            uint b = my_head / 8u, at = my_head % 8u * 8u + my_row;
            float score = (dots[b][at] + dots[2u + b][at]) + (dots[4u + b][at] + dots[6u + b][at]);
            score = there[my_row] != 0u ? score : -INFINITY;
            float top = score;
            for (uint step = 1; step < ROW_TILE; step *= 2u) top = max(top, simd_shuffle_xor(top, ushort(step)));
            top = max(top, most);
            // Without any row so far there is no maximum to measure by.
            float fade = top > most ? precise::exp(most - top) : 1.0f;
            float share = score == -INFINITY ? 0.0f : precise::exp(score - top);
            float added = share;
            for (uint step = 1; step < ROW_TILE; step *= 2u) added += simd_shuffle_xor(added, ushort(step));
            weight = fma(weight, fade, added);
            most = top;
            shares[my_head][my_row] = share;
            if (my_row == 0u) {
                diagonals[b][9u * (my_head % 8u)] = fade;
                if (fade != 1.0f) atomic_store_explicit(&fades[0], first + 1u, memory_order_relaxed);
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        // Maxima soon change no more.
        if (atomic_load_explicit(&fades[0], memory_order_relaxed) == first + 1u) scale_heads(sums, diagonals[0]);
        simdgroup_float8x8 of_rows[2];
        for (uint b = 0; b < 2; b++) simdgroup_load(of_rows[b], shares[8u * b], ROW_TILE);
        for (uint i = 0; i < VALUE_TILES; i++) {
            simdgroup_float8x8 values;
            simdgroup_load(values, &tile[0][value0 + 8u * i], DIM);
            for (uint b = 0; b < 2; b++) simdgroup_multiply_accumulate(sums[b][i], of_rows[b], values, sums[b][i]);
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (weighs && my_row == 0u) {
        float sink = sinks[min(head0 + my_head, p.heads - 1u)], top = max(most, sink);
        float fade = precise::exp(most - top);
        diagonals[my_head / 8u][9u * (my_head % 8u)] = fade / (weight * fade + precise::exp(sink - top));
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    scale_heads(sums, diagonals[0]);
    for (uint b = 0; b < 2; b++) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint i = 0; i < VALUE_TILES; i++) simdgroup_store(sums[b][i], &tile[0][value0 + 8u * i], DIM);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        uint head = head0 + 8u * b + simd;
        if (head >= p.heads) continue;
        device float* at = out + (ulong(token) * p.heads + head) * DIM;
        for (uint i = 0; i < VALUES; i++) at[lane + LANES * i] = tile[simd][lane + LANES * i];
    }
}
KERNEL(attend_many)
