// Attention over a window and compressed rows, every row key and value at once, a sink per head.
//
// A threadgroup has 16 heads of one token, two for each SIMD-group; rows pass through threadgroup
// memory eight at a time, read once for all its heads. With few tokens the rows are split among
// several threadgroups, whose results a second kernel joins.

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

// Grid: splits, head blocks, tokens. `ids` begins at the span's first token.
kernel void attend(constant Attend& p [[buffer(0)]], constant Page* pages [[buffer(1)]],
                   device const float* q [[buffer(2)]], device const float* kv [[buffer(3)]],
                   device float* past [[buffer(4)]], device const uint* ids [[buffer(5)]],
                   device const float* sinks [[buffer(6)]], device float* partial [[buffer(7)]],
                   device float* out [[buffer(8)]], THREAD_POSITION) {
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
    if (IS_TURNING) {
        for (uint i = 0; i < TURNING; i++) {
            turns[i] = turn_of(p, position, lane + LANES * (VALUES - TURNING + i));
        }
    }
    for (uint h = 0; h < HEADS_PER_SIMD; h++) {
        // Past the last head the last one is computed again, and not written.
        uint head = min(head0 + h, p.heads - 1u);
        device const float* at = q + (ulong(token) * p.heads + head) * DIM;
        for (uint i = 0; i < VALUES; i++) {
            query[h][i] = at[lane + LANES * i];
            sum[h][i] = 0.0f;
        }
        if (IS_TURNING) {
            float square = 0.0f;
            for (uint i = 0; i < VALUES; i++) square = fma(query[h][i], query[h][i], square);
            float length = 1.0f / precise::sqrt(simd_sum(square) / float(DIM) + p.norm_eps);
            for (uint i = 0; i < VALUES; i++) query[h][i] *= length;
            for (uint i = 0; i < TURNING; i++) {
                thread float& v = query[h][VALUES - TURNING + i];
                v = turned(v, turns[i].x, turns[i].y, lane);
            }
        }
        for (uint i = 0; i < VALUES; i++) query[h][i] *= p.scale;
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
            if (row == nullptr) {
                for (uint i = 0; i < VALUES; i++) tile[simd][lane + LANES * i] = 0.0f;
            } else if (IS_PACKED && r >= in_window) {
                for (uint i = 0; i < VALUES; i++) {
                    tile[simd][lane + LANES * i] = packed_row_value(row, lane + LANES * i);
                }
            } else {
                device const float* values = (device const float*)row;
                for (uint i = 0; i < VALUES; i++) tile[simd][lane + LANES * i] = values[lane + LANES * i];
            }
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
        if (p.splits == 1u) {
            float top = max(most[h], sinks[head]);
            float fade = precise::exp(most[h] - top);
            float all = weight[h] * fade + precise::exp(sinks[head] - top);
            device float* at = out + (ulong(token) * p.heads + head) * DIM;
            for (uint i = 0; i < VALUES; i++) {
                float v = sum[h][i] * fade / all;
                if (IS_TURNING && i >= VALUES - TURNING) {
                    float2 turn = turns[i - (VALUES - TURNING)];
                    v = turned(v, -turn.x, turn.y, lane);
                }
                at[lane + LANES * i] = v;
            }
        } else {
            // Maximum, weight, then the sums.
            ulong place = (ulong(group.z) * p.heads + head) * p.splits + group.x;
            device float* at = partial + place * (DIM + 2u);
            if (lane == 0u) {
                at[0] = most[h];
                at[1] = weight[h];
            }
            for (uint i = 0; i < VALUES; i++) at[2u + lane + LANES * i] = sum[h][i];
        }
    }
    // The host has seen to it that the slot is one that no token of the span attends to.
    if (IS_TURNING && group.x == 0u && group.y == 0u) {
        device float* slot = past + ulong(position % p.slots) * DIM;
        for (uint i = index; i < DIM; i += ATTEND_THREADS) slot[i] = kv[ulong(token) * DIM + i];
    }
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
