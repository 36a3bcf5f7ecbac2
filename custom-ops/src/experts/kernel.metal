// The mixture-of-experts network: gate and up with the gated unit between, then down.
//
// A few tokens: a SIMD-group a row, each (token, slot) on its own. Many: pairs (token, slot) grouped
// by expert, tiles of SIMD-group matrices. The shared expert is one more slot of every token.

struct Experts {
    uint tokens;
    uint slots;       // routed ones of a token; 0 computes the shared expert only
    uint experts;
    uint hidden;
    uint inter;       // width of a routed expert
    uint common;      // width of the shared one; 0 if there is none
    float clamp;
    uint add;         // whether `down` adds to what is there
    uint in_bytes;    // of a row of gate and up, routed
    uint out_bytes;   // of a row of down, routed
    uint common_in_bytes;
    uint common_out_bytes;
};

#define EXPERT_SIMDS 4u

// A NaN stays one.
inline float clamped_swiglu(float gate, float up, float most) {
    gate = gate > most ? most : gate;
    up = up > most ? most : up < -most ? -most : up;
    return gate / (1.0f + precise::exp(-gate)) * up;
}

// What a lane contributes to one row of gate and one of up.
template <typename F>
float2 gate_and_up(device const uchar* gate, device const uchar* up, device const float* x, uint cols,
                   threadgroup const uint* grid, uint lane) {
    float2 sum = float2(0.0f);
    for (uint unit = lane; unit < F::units(cols); unit += LANES) {
        float y[8 * uint(F::RUNS)], sums[uint(F::RUNS)];
        load_unit<F>(x, unit, y, sums);
        sum.x += F::dot(gate, unit, grid, y, sums);
        sum.y += F::dot(up, unit, grid, y, sums);
    }
    return sum;
}

template <typename F>
float product(device const uchar* row, device const float* x, uint cols, threadgroup const uint* grid,
              uint lane) {
    float sum = 0.0f;
    for (uint unit = lane; unit < F::units(cols); unit += LANES) {
        float y[8 * uint(F::RUNS)], sums[uint(F::RUNS)];
        load_unit<F>(x, unit, y, sums);
        sum += F::dot(row, unit, grid, y, sums);
    }
    return sum;
}

// Grid: row blocks, slots and the shared expert, tokens. R is the routed experts' format, S the
// shared one's. Writes `inner` [tokens, slots, inter] and `shared` [tokens, common].
template <typename R, typename S>
kernel void experts_inner(constant Experts& p [[buffer(0)]], device const uchar* gate [[buffer(1)]],
                          device const uchar* up [[buffer(2)]],
                          device const uchar* common_gate [[buffer(3)]],
                          device const uchar* common_up [[buffer(4)]],
                          device const float* x [[buffer(5)]], device const uint* ids [[buffer(6)]],
                          device const float* weights [[buffer(7)]],
                          device float* inner [[buffer(8)]], device float* shared [[buffer(9)]],
                          THREAD_POSITION) {
    THREADGROUP(uint, grid, [uint(R::GRID) > uint(S::GRID) ? uint(R::GRID) : uint(S::GRID)]);
    fill_grid<R>(grid, index, EXPERT_SIMDS * LANES);
    if (has_grid<R>()) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
    } else {
        fill_grid<S>(grid, index, EXPERT_SIMDS * LANES);
        if (has_grid<S>()) threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    uint row = group.x * EXPERT_SIMDS + simd, slot = group.y, token = group.z;
    device const float* from = x + ulong(token) * p.hidden;
    if (slot < p.slots) {
        if (row >= p.inter) return;
        uint pair = token * p.slots + slot;
        ulong at = (ulong(min(ids[pair], p.experts - 1u)) * p.inter + row) * p.in_bytes;
        float2 both = gate_and_up<R>(gate + at, up + at, from, p.hidden, grid, lane);
        both.x = simd_sum(both.x);
        both.y = simd_sum(both.y);
        if (lane == 0u) {
            inner[ulong(pair) * p.inter + row] = clamped_swiglu(both.x, both.y, p.clamp) * weights[pair];
        }
    } else {
        if (row >= p.common) return;
        ulong at = ulong(row) * p.common_in_bytes;
        float2 both = gate_and_up<S>(common_gate + at, common_up + at, from, p.hidden, grid, lane);
        both.x = simd_sum(both.x);
        both.y = simd_sum(both.y);
        if (lane == 0u) shared[ulong(token) * p.common + row] = clamped_swiglu(both.x, both.y, p.clamp);
    }
}

// Rows of a threadgroup that has chosen its expert, and of a SIMD-group at a time.
#define ROUTED_ROWS 32u
#define ROUTED_AT_ONCE 2u

struct Routed {
    uint slots;    // of a token
    uint experts;
    uint hidden;
    uint inter;
    uint common;   // width of the shared expert; 0 if there is none
    uint in_bytes;
    float clamp;
    float scale;   // what the weights of a token add up to
    uint tokens_in_table;
};

// Pipelines by what experts are chosen by: token ids, or scores with a bias or without.
FUNCTION_CONSTANT(bool, BY_TOKEN, 1)
FUNCTION_CONSTANT(bool, HAS_BIAS, 2)

// The same of routed experts that the router's `logits` [tokens, experts] choose: by each threadgroup,
// which costs less than to wait for one that does. Of the shared expert the products with gate and up are
// given; it is the slot after the last. Grid: blocks of ROUTED_ROWS, slots and the shared expert, tokens.
// `by` is the table of experts by token, or the bias.
template <typename R>
kernel void experts_routed(constant Routed& p [[buffer(0)]], device const uchar* gate [[buffer(1)]],
                           device const uchar* up [[buffer(2)]], device const float* x [[buffer(3)]],
                           device const float* logits [[buffer(4)]], device const uint* by [[buffer(5)]],
                           device const uint* tokens [[buffer(6)]],
                           device const float* common_gate [[buffer(7)]],
                           device const float* common_up [[buffer(8)]], device uint* ids [[buffer(9)]],
                           device float* inner [[buffer(10)]], device float* shared [[buffer(11)]],
                           THREAD_POSITION) {
    THREADGROUP(uint, grid, [uint(R::GRID)]);
    THREADGROUP(uint, chosen, [1]);
    THREADGROUP(float, weight, [1]);
    uint slot = group.y, token = group.z, row0 = group.x * ROUTED_ROWS;
    if (slot == p.slots) {
        uint row = row0 + index;
        if (index >= ROUTED_ROWS || row >= p.common) return;
        ulong at = ulong(token) * p.common + row;
        shared[at] = clamped_swiglu(common_gate[at], common_up[at], p.clamp);
        return;
    }
    if (row0 >= p.inter) return;
    uint pair = token * p.slots + slot;
    if (simd == 0u) {
        device const float* of_token = logits + ulong(token) * p.experts;
        device const uint* entry = nullptr;
        if (BY_TOKEN) entry = by + ulong(min(tokens[token], p.tokens_in_table - 1u)) * p.slots;
        device const float* bias = nullptr;
        if (HAS_BIAS) bias = (device const float*)by;
        float sum;
        uint expert = route_slot(of_token, bias, entry, p.experts, p.slots, slot, sum, lane);
        if (lane == 0u) {
            chosen[0] = expert;
            weight[0] = route_score(of_token[expert]) / sum * p.scale;
            // For the launch after.
            if (group.x == 0u) ids[pair] = expert;
        }
    }
    fill_grid<R>(grid, index, EXPERT_SIMDS * LANES);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    device const float* from = x + ulong(token) * p.hidden;
    ulong first = ulong(chosen[0]) * p.inter;
    for (uint r = simd * ROUTED_AT_ONCE; r < ROUTED_ROWS; r += EXPERT_SIMDS * ROUTED_AT_ONCE) {
        if (row0 + r >= p.inter) break;
        device const uchar* gates[ROUTED_AT_ONCE];
        device const uchar* ups[ROUTED_AT_ONCE];
        float2 sum[ROUTED_AT_ONCE];
        for (uint i = 0; i < ROUTED_AT_ONCE; i++) {
            // Past the last row the last one is computed again, and not written.
            ulong at = (first + min(row0 + r + i, p.inter - 1u)) * p.in_bytes;
            gates[i] = gate + at;
            ups[i] = up + at;
            sum[i] = float2(0.0f);
        }
        for (uint unit = lane; unit < R::units(p.hidden); unit += LANES) {
            float y[8 * uint(R::RUNS)], sums[uint(R::RUNS)];
            load_unit<R>(from, unit, y, sums);
            for (uint i = 0; i < ROUTED_AT_ONCE; i++) {
                sum[i].x += R::dot(gates[i], unit, grid, y, sums);
                sum[i].y += R::dot(ups[i], unit, grid, y, sums);
            }
        }
        for (uint i = 0; i < ROUTED_AT_ONCE; i++) {
            float g = simd_sum(sum[i].x), u = simd_sum(sum[i].y);
            if (lane == 0u && row0 + r + i < p.inter) {
                inner[ulong(pair) * p.inter + row0 + r + i] = clamped_swiglu(g, u, p.clamp) * weight[0];
            }
        }
    }
}

INSTANCE(experts_routed_f32, experts_routed<F32>)
INSTANCE(experts_routed_f16, experts_routed<F16>)
INSTANCE(experts_routed_bf16, experts_routed<BF16>)
INSTANCE(experts_routed_q8_0, experts_routed<Q8_0>)
INSTANCE(experts_routed_q2_k, experts_routed<Q2_K>)
INSTANCE(experts_routed_q4_k, experts_routed<Q4_K>)
INSTANCE(experts_routed_iq2_xxs, experts_routed<IQ2_XXS>)

// Grid: row blocks, tokens. A SIMD-group adds up one value of `out` over all slots.
template <typename R, typename S>
kernel void experts_down(constant Experts& p [[buffer(0)]], device const uchar* down [[buffer(1)]],
                         device const uchar* common_down [[buffer(2)]],
                         device const float* inner [[buffer(3)]],
                         device const float* shared [[buffer(4)]], device const uint* ids [[buffer(5)]],
                         device float* out [[buffer(6)]], THREAD_POSITION) {
    THREADGROUP(uint, grid, [uint(R::GRID) > uint(S::GRID) ? uint(R::GRID) : uint(S::GRID)]);
    fill_grid<R>(grid, index, EXPERT_SIMDS * LANES);
    if (has_grid<R>()) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
    } else {
        fill_grid<S>(grid, index, EXPERT_SIMDS * LANES);
        if (has_grid<S>()) threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    uint row = group.x * EXPERT_SIMDS + simd, token = group.y;
    if (row >= p.hidden) return;
    float sum = 0.0f;
    for (uint slot = 0; slot < p.slots; slot++) {
        uint pair = token * p.slots + slot;
        ulong at = (ulong(min(ids[pair], p.experts - 1u)) * p.hidden + row) * p.out_bytes;
        sum += product<R>(down + at, inner + ulong(pair) * p.inter, p.inter, grid, lane);
    }
    if (p.common > 0u) {
        ulong at = ulong(row) * p.common_out_bytes;
        sum += product<S>(common_down + at, shared + ulong(token) * p.common, p.common, grid, lane);
    }
    sum = simd_sum(sum);
    device float* to = out + ulong(token) * p.hidden + row;
    if (lane == 0u) *to = p.add != 0u ? *to + sum : sum;
}

#define EXPERTS(name, R, S)                              \
    INSTANCE(experts_inner_##name, experts_inner<R, S>)  \
    INSTANCE(experts_down_##name, experts_down<R, S>)
// One format for both, and what published files combine. Others are launched one after the other.
EXPERTS(f32_f32, F32, F32)
EXPERTS(f16_f16, F16, F16)
EXPERTS(bf16_bf16, BF16, BF16)
EXPERTS(q8_0_q8_0, Q8_0, Q8_0)
EXPERTS(q2_k_q2_k, Q2_K, Q2_K)
EXPERTS(q4_k_q4_k, Q4_K, Q4_K)
EXPERTS(iq2_xxs_iq2_xxs, IQ2_XXS, IQ2_XXS)
EXPERTS(q2_k_q8_0, Q2_K, Q8_0)
EXPERTS(q4_k_q8_0, Q4_K, Q8_0)
EXPERTS(iq2_xxs_q8_0, IQ2_XXS, Q8_0)

// ------------------------------------------------------------------------------------------------
// Many tokens

#define GROUP_THREADS 1024u

struct Grouping {
    uint pairs;
    uint experts;
    uint tiles;  // that the list has room for
};

// Sorts the pairs by expert and cuts each expert's into tiles of TILE_TOKENS. One threadgroup; each
// thread has its experts. `tiles` [tiles][3]: expert, first place in `order`, count; 0 for none.
kernel void experts_group(constant Grouping& p [[buffer(0)]], device const uint* ids [[buffer(1)]],
                          device uint* order [[buffer(2)]], device uint* tiles [[buffer(3)]],
                          THREAD_POSITION) {
    THREADGROUP(uint, counts, [GROUP_THREADS]);
    THREADGROUP(uint, starts, [GROUP_THREADS]);
    THREADGROUP(uint, first_tiles, [GROUP_THREADS]);
    uint count = 0;
    if (index < p.experts) {
        for (uint pair = 0; pair < p.pairs; pair++) {
            if (min(ids[pair], p.experts - 1u) == index) count++;
        }
    }
    counts[index] = count;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (index == 0u) {
        uint start = 0, tile = 0;
        for (uint expert = 0; expert < p.experts; expert++) {
            starts[expert] = start;
            first_tiles[expert] = tile;
            start += counts[expert];
            tile += div_up(counts[expert], TILE_TOKENS);
        }
        for (; tile < p.tiles; tile++) tiles[3u * tile + 2u] = 0u;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (index >= p.experts) return;
    uint at = starts[index];
    for (uint pair = 0; pair < p.pairs; pair++) {
        if (min(ids[pair], p.experts - 1u) == index) order[at++] = pair;
    }
    for (uint done = 0; done < count; done += TILE_TOKENS) {
        device uint* tile = tiles + 3u * (first_tiles[index] + done / TILE_TOKENS);
        tile[0] = index;
        tile[1] = starts[index] + done;
        tile[2] = min(TILE_TOKENS, count - done);
    }
}
KERNEL(experts_group)

// Which pairs a tile works on: of a list, or every token once.
struct TileOf {
    uint expert;
    uint first;
    uint count;
};

// Pipelines for routed experts, whose pairs are listed, and for the shared one.
FUNCTION_CONSTANT(bool, IS_ROUTED, 0)

inline TileOf tile_of(device const uint* tiles, uint tile, uint tokens) {
    TileOf of;
    if (IS_ROUTED) {
        of.expert = tiles[3u * tile];
        of.first = tiles[3u * tile + 1u];
        of.count = tiles[3u * tile + 2u];
    } else {
        of.expert = 0u;
        of.first = tile * TILE_TOKENS;
        of.count = min(TILE_TOKENS, tokens - of.first);
    }
    return of;
}

// Grid: blocks of 32 rows of both gate and up, tiles. Writes `inner` [pairs, inter].
template <typename F>
kernel void experts_inner_tiles(constant Experts& p [[buffer(0)]],
                                device const uchar* gate [[buffer(1)]],
                                device const uchar* up [[buffer(2)]],
                                device const float* x [[buffer(3)]],
                                device const float* weights [[buffer(4)]],
                                device const uint* order [[buffer(5)]],
                                device const uint* tiles [[buffer(6)]],
                                device float* inner [[buffer(7)]], THREAD_POSITION) {
    THREADGROUP(uint, grid, [uint(F::GRID)]);
    THREADGROUP(float, a, [TILE_ROWS * TILE_COLS]);
    THREADGROUP(float, b, [TILE_TOKENS * TILE_COLS]);
    TileOf of = tile_of(tiles, group.y, p.tokens);
    if (of.count == 0u) return;
    fill_grid<F>(grid, index, TILE_THREADS);
    uint row0 = group.x * TILE_ROWS / 2u;
    TileSums sums;
    tile_clear(sums);
    for (uint column = 0; column < p.hidden; column += TILE_COLS) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint task = index; task < TILE_ROWS * TILE_COLS / 8u; task += TILE_THREADS) {
            uint row = task / (TILE_COLS / 8u), run = task % (TILE_COLS / 8u);
            uint of_matrix = row0 + row % (TILE_ROWS / 2u);
            float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};
            if (of_matrix < p.inter && column + 8u * run < p.hidden) {
                ulong at = (ulong(of.expert) * p.inter + of_matrix) * p.in_bytes;
                F::run8((row < TILE_ROWS / 2u ? gate : up) + at, column / 8u + run, grid, v);
            }
            for (uint i = 0; i < 8; i++) a[row * TILE_COLS + 8u * run + i] = v[i];
        }
        for (uint task = index; task < TILE_TOKENS * TILE_COLS / 8u; task += TILE_THREADS) {
            uint place = task / (TILE_COLS / 8u), run = task % (TILE_COLS / 8u);
            bool there = place < of.count && column + 8u * run < p.hidden;
            uint pair = of.first + min(place, of.count - 1u);
            uint token = IS_ROUTED ? order[pair] / p.slots : pair;
            device const float* from = x + ulong(token) * p.hidden + column + 8u * run;
            for (uint i = 0; i < 8; i++) b[place * TILE_COLS + 8u * run + i] = there ? from[i] : 0.0f;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        tile_accumulate(sums, a, b, simd);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    tile_store(sums, a, simd);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = index; i < TILE_ROWS / 2u * TILE_TOKENS; i += TILE_THREADS) {
        uint row = i % (TILE_ROWS / 2u), place = i / (TILE_ROWS / 2u);
        if (row0 + row >= p.inter || place >= of.count) continue;
        uint pair = IS_ROUTED ? order[of.first + place] : of.first + place;
        threadgroup const float* both = a + place * TILE_ROWS + row;
        float v = clamped_swiglu(both[0], both[TILE_ROWS / 2u], p.clamp);
        inner[ulong(pair) * p.inter + row0 + row] = IS_ROUTED ? v * weights[pair] : v;
    }
}

// Grid: blocks of 64 rows, tiles. Writes `terms` [pairs, hidden].
template <typename F>
kernel void experts_down_tiles(constant Experts& p [[buffer(0)]],
                               device const uchar* down [[buffer(1)]],
                               device const float* inner [[buffer(2)]],
                               device const uint* order [[buffer(3)]],
                               device const uint* tiles [[buffer(4)]],
                               device float* terms [[buffer(5)]], THREAD_POSITION) {
    THREADGROUP(uint, grid, [uint(F::GRID)]);
    THREADGROUP(float, a, [TILE_ROWS * TILE_COLS]);
    THREADGROUP(float, b, [TILE_TOKENS * TILE_COLS]);
    TileOf of = tile_of(tiles, group.y, p.tokens);
    if (of.count == 0u) return;
    fill_grid<F>(grid, index, TILE_THREADS);
    uint row0 = group.x * TILE_ROWS;
    TileSums sums;
    tile_clear(sums);
    for (uint column = 0; column < p.inter; column += TILE_COLS) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint task = index; task < TILE_ROWS * TILE_COLS / 8u; task += TILE_THREADS) {
            uint row = task / (TILE_COLS / 8u), run = task % (TILE_COLS / 8u);
            float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};
            if (row0 + row < p.hidden && column + 8u * run < p.inter) {
                ulong at = (ulong(of.expert) * p.hidden + row0 + row) * p.out_bytes;
                F::run8(down + at, column / 8u + run, grid, v);
            }
            for (uint i = 0; i < 8; i++) a[row * TILE_COLS + 8u * run + i] = v[i];
        }
        for (uint task = index; task < TILE_TOKENS * TILE_COLS / 8u; task += TILE_THREADS) {
            uint place = task / (TILE_COLS / 8u), run = task % (TILE_COLS / 8u);
            bool there = place < of.count && column + 8u * run < p.inter;
            uint at = of.first + min(place, of.count - 1u);
            uint pair = IS_ROUTED ? order[at] : at;
            device const float* from = inner + ulong(pair) * p.inter + column + 8u * run;
            for (uint i = 0; i < 8; i++) b[place * TILE_COLS + 8u * run + i] = there ? from[i] : 0.0f;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        tile_accumulate(sums, a, b, simd);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    tile_store(sums, a, simd);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = index; i < TILE_ROWS * TILE_TOKENS; i += TILE_THREADS) {
        uint row = i % TILE_ROWS, place = i / TILE_ROWS;
        if (row0 + row >= p.hidden || place >= of.count) continue;
        uint pair = IS_ROUTED ? order[of.first + place] : of.first + place;
        terms[ulong(pair) * p.hidden + row0 + row] = a[i];
    }
}

#define EXPERT_TILES(name, F)                                    \
    INSTANCE(experts_inner_tiles_##name, experts_inner_tiles<F>) \
    INSTANCE(experts_down_tiles_##name, experts_down_tiles<F>)
EXPERT_TILES(f32, F32)
EXPERT_TILES(f16, F16)
EXPERT_TILES(bf16, BF16)
EXPERT_TILES(q8_0, Q8_0)
EXPERT_TILES(q2_k, Q2_K)
EXPERT_TILES(q4_k, Q4_K)
EXPERT_TILES(iq2_xxs, IQ2_XXS)

// Adds up the terms of each token, what is in `out` last. Grid: channel blocks, tokens.
kernel void experts_sum(constant Experts& p [[buffer(0)]], device const float* terms [[buffer(1)]],
                        device float* out [[buffer(2)]], THREAD_POSITION) {
    uint channel = group.x * TILE_THREADS + index, token = group.y;
    if (channel >= p.hidden) return;
    float sum = 0.0f;
    for (uint slot = 0; slot < p.slots; slot++) {
        sum += terms[(ulong(token) * p.slots + slot) * p.hidden + channel];
    }
    device float* to = out + ulong(token) * p.hidden + channel;
    *to = p.add != 0u ? sum + *to : sum;
}
KERNEL(experts_sum)
