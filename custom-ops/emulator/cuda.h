// CUDA's words, and the wrappers of include/cuda/*.cuh, for kernels that run as fibers on a CPU.
//
// Copies in the background happen at their wait, not before: a kernel that forgets the wait reads the
// 0xff with which shared memory begins. Launch order and `pdl_wait` are not modelled: launches run one
// after the other.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define DEVICE static inline
#define DEVICE_MEMBER inline

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_extent())
#define gridDim (emulator::grid_extent())
#define __syncthreads() emulator::barrier(emulator::Site{__FILE__, __LINE__})

#define SHARED(type, name) type* const name = static_cast<type*>(emulator::shared_memory())

struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
static inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static inline uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }
static inline uint32_t max(uint32_t a, uint32_t b) { return a > b ? a : b; }
static inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

namespace cuda_emulator {

/// Runs a kernel's body for every thread of a grid; what went wrong, or nothing.
template <class L, class F>
std::string run(const L& l, F body) {
    emulator::Launch launch;
    launch.grid = {l.grid[0], l.grid[1], l.grid[2]};
    launch.block = {l.block[0], l.block[1], l.block[2]};
    launch.cluster = {l.cluster[0], l.cluster[1], l.cluster[2]};
    launch.shared_bytes = l.shared_bytes;
    launch.seed = l.seed;
    launch.ended_count = true;
    return emulator::run(launch, body);
}

struct Copy {
    void* to;
    const void* from;
    size_t bytes;
};

/// A thread's copies in the background: closed groups, oldest first, and the open one.
struct Copies {
    std::deque<std::vector<Copy>> groups;
    std::vector<Copy> open;
};

inline void finish(Copies& copies, size_t pending) {
    while (copies.groups.size() > pending) {
        for (const Copy& copy : copies.groups.front()) {
            if (copy.from) {
                memcpy(copy.to, copy.from, copy.bytes);
            } else {
                memset(copy.to, 0, copy.bytes);
            }
        }
        copies.groups.pop_front();
    }
}

}  // namespace cuda_emulator

// ------------------------------------------------------------------------------------------------
// warp.cuh

DEVICE uint32_t lane_id() { return emulator::lane_index(); }
DEVICE uint32_t warp_id() { return emulator::warp_index(); }

template <class T>
DEVICE T shuffle_xor(T value, uint32_t mask, emulator::Site site = emulator::Site::here()) {
    return emulator::shuffle(emulator::ALL_LANES, value, lane_id() ^ mask, site);
}
template <class T>
DEVICE T shuffle(T value, uint32_t lane, emulator::Site site = emulator::Site::here()) {
    return emulator::shuffle(emulator::ALL_LANES, value, lane % emulator::WARP, site);
}
template <class T>
DEVICE T shuffle_down(T value, uint32_t by, emulator::Site site = emulator::Site::here()) {
    return emulator::shuffle(emulator::ALL_LANES, value, lane_id() + by, site);
}
template <class T>
DEVICE T shuffle_up(T value, uint32_t by, emulator::Site site = emulator::Site::here()) {
    return emulator::shuffle(emulator::ALL_LANES, value, lane_id() - by, site);
}
DEVICE uint32_t warp_ballot(bool vote, emulator::Site site = emulator::Site::here()) {
    return emulator::ballot(emulator::ALL_LANES, vote, site);
}
DEVICE uint32_t warp_least(uint32_t value, emulator::Site site = emulator::Site::here()) {
    for (uint32_t mask = 16; mask != 0; mask /= 2) value = min(value, shuffle_xor(value, mask, site));
    return value;
}
DEVICE uint32_t warp_greatest(uint32_t value, emulator::Site site = emulator::Site::here()) {
    for (uint32_t mask = 16; mask != 0; mask /= 2) value = max(value, shuffle_xor(value, mask, site));
    return value;
}
DEVICE void warp_sync(emulator::Site site = emulator::Site::here()) {
    emulator::warp_barrier(emulator::ALL_LANES, site);
}
DEVICE uint32_t bit_count(uint32_t bits) { return uint32_t(__builtin_popcount(bits)); }

// ------------------------------------------------------------------------------------------------
// numbers.cuh

DEVICE uint32_t f32_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
DEVICE float f32_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

DEVICE float f16_to_f32(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    if (exponent == 31) return f32_from_bits(sign | 0x7f800000 | mantissa << 13);
    if (exponent == 0) {
        const float value = float(mantissa) * 0x1p-24f;
        return sign ? -value : value;
    }
    return f32_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

// To the nearest, halves to even; what is too large is infinite.
DEVICE uint16_t f32_to_f16(float value) {
    const uint32_t bits = f32_bits(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return uint16_t(sign | 0x7fff);
    if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);
    if (magnitude < 0x38800000) {
        return uint16_t(sign | uint32_t(std::nearbyint(f32_from_bits(magnitude) * 0x1p24f)));
    }
    const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return uint16_t(sign | (rounded - 0x38000000) >> 13);
}

DEVICE uint32_t pack_f16x2(float low, float high) {
    return uint32_t(f32_to_f16(low)) | uint32_t(f32_to_f16(high)) << 16;
}
DEVICE float2 unpack_f16x2(uint32_t bits) {
    return {f16_to_f32(uint16_t(bits)), f16_to_f32(uint16_t(bits >> 16))};
}
// One rounding: a product of halves, and its sum with a third, fit a double.
DEVICE uint16_t fma_f16(float a, float b, float c) {
    const double exact = double(a) * double(b) + double(c);
    // To odd first, so that the rounding to a float on the way does no harm.
    float near = float(exact);
    if (double(near) != exact && (f32_bits(near) & 1) == 0) {
        const bool up = (exact > double(near)) == (near >= 0.0f);
        near = f32_from_bits(up ? f32_bits(near) + 1 : f32_bits(near) - 1);
    }
    return f32_to_f16(near);
}
DEVICE uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
    const float2 x = unpack_f16x2(a), y = unpack_f16x2(b), z = unpack_f16x2(c);
    return uint32_t(fma_f16(x.x, y.x, z.x)) | uint32_t(fma_f16(x.y, y.y, z.y)) << 16;
}
DEVICE uint32_t mul_f16x2(uint32_t a, uint32_t b) {
    const float2 x = unpack_f16x2(a), y = unpack_f16x2(b);
    return pack_f16x2(x.x * y.x, x.y * y.y);
}

DEVICE int32_t round_to_int(float value) {
    return value != value ? 0 : value >= 0x1p31f ? INT32_MAX : value < -0x1p31f ? INT32_MIN : int32_t(std::nearbyint(value));
}

DEVICE int32_t dp4a(uint32_t a, uint32_t b, int32_t c) {
    for (int i = 0; i < 4; i++) c += int32_t(int8_t(a >> (8 * i))) * int32_t(int8_t(b >> (8 * i)));
    return c;
}
DEVICE int32_t dp4a_unsigned(uint32_t a, uint32_t b, int32_t c) {
    for (int i = 0; i < 4; i++) c += int32_t(uint8_t(a >> (8 * i))) * int32_t(int8_t(b >> (8 * i)));
    return c;
}

DEVICE uint32_t byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
    uint32_t r = 0;
    const uint64_t both = uint64_t(high) << 32 | low;
    for (int i = 0; i < 4; i++) {
        const uint32_t pick = selector >> (4 * i) & 15;
        if (pick & 8) emulator::fail("byte_perm: selector %08x has a sign bit", selector);
        r |= uint32_t(both >> (8 * pick) & 255) << (8 * i);
    }
    return r;
}

DEVICE uint32_t opaque(uint32_t value) { return value; }
DEVICE float fast_exp(float value) { return std::exp(value); }
DEVICE float fast_reciprocal(float value) { return 1.0f / value; }

// ------------------------------------------------------------------------------------------------
// memory.cuh

DEVICE void pdl_trigger() {}
DEVICE void pdl_wait() {}

// A load of N bytes must lie at a multiple of N, as on the device.
template <class T>
DEVICE T load_aligned(const void* p) {
    if (reinterpret_cast<uintptr_t>(p) % sizeof(T) != 0) {
        emulator::fail("a load of %zu bytes at %p", sizeof(T), p);
    }
    T value;
    memcpy(&value, p, sizeof value);
    return value;
}
DEVICE uint4 load_weights16(const void* p) { return load_aligned<uint4>(p); }
DEVICE uint2 load_weights8(const void* p) { return load_aligned<uint2>(p); }
DEVICE uint32_t load_weights4(const void* p) { return load_aligned<uint32_t>(p); }
DEVICE uint16_t load_weights2(const void* p) { return load_aligned<uint16_t>(p); }

template <class T>
DEVICE void bring_near(const T* p) {
    T value;
    memcpy(&value, p, sizeof value);
}
DEVICE uint32_t load_now(const uint32_t* p) { return *p; }
DEVICE float4 load_written16(const float* p) { return *reinterpret_cast<const float4*>(p); }
DEVICE uint4 load_written16(const uint32_t* p) { return *reinterpret_cast<const uint4*>(p); }
DEVICE uint2 load_written8(const uint32_t* p) { return *reinterpret_cast<const uint2*>(p); }

DEVICE void copy_async(void* shared, const void* global, size_t bytes, bool copy) {
    if (reinterpret_cast<uintptr_t>(shared) % bytes || (copy && reinterpret_cast<uintptr_t>(global) % bytes)) {
        emulator::fail("a copy of %zu bytes from %p to %p", bytes, global, shared);
    }
    emulator::thread_state<cuda_emulator::Copies>().open.push_back({shared, copy ? global : nullptr, bytes});
}
DEVICE void copy16_async_or_zero(void* shared, const void* global, bool copy) { copy_async(shared, global, 16, copy); }
DEVICE void copy16_async(void* shared, const void* global) { copy_async(shared, global, 16, true); }
DEVICE void copy8_async(void* shared, const void* global) { copy_async(shared, global, 8, true); }
DEVICE void copy4_async(void* shared, const void* global) { copy_async(shared, global, 4, true); }
DEVICE void copy_commit() {
    auto& copies = emulator::thread_state<cuda_emulator::Copies>();
    copies.groups.push_back(std::move(copies.open));
    copies.open.clear();
}
template <int PENDING>
DEVICE void copy_wait() {
    cuda_emulator::finish(emulator::thread_state<cuda_emulator::Copies>(), PENDING);
}

DEVICE uint32_t shared_address(const void* p) {
    return uint32_t(static_cast<const char*>(p) - static_cast<const char*>(emulator::shared_memory()));
}
template <uint32_t OFFSET>
DEVICE uint32_t load_shared4(uint32_t at) {
    return load_aligned<uint32_t>(static_cast<const char*>(emulator::shared_memory()) + at + OFFSET);
}

DEVICE uint32_t shared_add(uint32_t* p, uint32_t value) {
    const uint32_t before = *p;
    *p += value;
    return before;
}

// ------------------------------------------------------------------------------------------------
// mma.cuh

namespace cuda_emulator {

struct MmaIn {
    float d[4];
    uint32_t a[4], b[2];
};
struct FourFloats {
    float v[4];
};
struct FourInts {
    int32_t v[4];
};
struct FourWords {
    uint32_t v[4];
};

inline void matrices_f16(const MmaIn* in, uint32_t, FourFloats* out) {
    float a[16][16], b[16][8];
    for (uint32_t l = 0; l < 32; l++) {
        const uint32_t g = l / 4, t = l % 4;
        for (uint32_t i = 0; i < 4; i++) {
            const float2 two = unpack_f16x2(in[l].a[i]);
            a[g + 8 * (i % 2)][8 * (i / 2) + 2 * t] = two.x;
            a[g + 8 * (i % 2)][8 * (i / 2) + 2 * t + 1] = two.y;
        }
        for (uint32_t i = 0; i < 2; i++) {
            const float2 two = unpack_f16x2(in[l].b[i]);
            b[8 * i + 2 * t][g] = two.x;
            b[8 * i + 2 * t + 1][g] = two.y;
        }
    }
    for (uint32_t l = 0; l < 32; l++) {
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t row = l / 4 + 8 * (i / 2), column = 2 * (l % 4) + i % 2;
            float sum = in[l].d[i];
            for (uint32_t k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
            out[l].v[i] = sum;
        }
    }
}

inline void matrices_s8(const MmaIn* in, uint32_t, FourInts* out) {
    int8_t a[16][32], b[8][32];
    for (uint32_t l = 0; l < 32; l++) {
        const uint32_t g = l / 4, t = l % 4;
        for (uint32_t i = 0; i < 4; i++) memcpy(&a[g + 8 * (i % 2)][16 * (i / 2) + 4 * t], &in[l].a[i], 4);
        for (uint32_t i = 0; i < 2; i++) memcpy(&b[g][16 * i + 4 * t], &in[l].b[i], 4);
    }
    for (uint32_t l = 0; l < 32; l++) {
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t row = l / 4 + 8 * (i / 2), column = 2 * (l % 4) + i % 2;
            int32_t sum = 0;
            for (uint32_t k = 0; k < 32; k++) sum += int32_t(a[row][k]) * int32_t(b[column][k]);
            out[l].v[i] = sum;
        }
    }
}

template <bool TRANSPOSED>
inline void tiles(const void* const* rows, uint32_t, FourWords* out) {
    for (uint32_t tile = 0; tile < 4; tile++) {
        uint16_t values[8][8];
        for (uint32_t row = 0; row < 8; row++) memcpy(values[row], rows[8 * tile + row], 16);
        for (uint32_t l = 0; l < 32; l++) {
            const uint32_t g = l / 4, t = l % 4;
            out[l].v[tile] = TRANSPOSED ? uint32_t(values[2 * t][g]) | uint32_t(values[2 * t + 1][g]) << 16
                                        : uint32_t(values[g][2 * t]) | uint32_t(values[g][2 * t + 1]) << 16;
        }
    }
}

}  // namespace cuda_emulator

DEVICE void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                             emulator::Site site = emulator::Site::here()) {
    const cuda_emulator::MmaIn in{{d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    const auto out = emulator::warp_meet<cuda_emulator::FourFloats>(emulator::ALL_LANES, in,
                                                                    cuda_emulator::matrices_f16, site);
    for (int i = 0; i < 4; i++) d[i] = out.v[i];
}
DEVICE void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                            emulator::Site site = emulator::Site::here()) {
    const cuda_emulator::MmaIn in{{}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    const auto out = emulator::warp_meet<cuda_emulator::FourInts>(emulator::ALL_LANES, in,
                                                                  cuda_emulator::matrices_s8, site);
    for (int i = 0; i < 4; i++) d[i] = out.v[i];
}
DEVICE void load_tiles(uint32_t (&r)[4], const void* row, emulator::Site site = emulator::Site::here()) {
    if (reinterpret_cast<uintptr_t>(row) % 16) emulator::fail("load_tiles at %p", row);
    const auto out = emulator::warp_meet<cuda_emulator::FourWords>(emulator::ALL_LANES, row,
                                                                   cuda_emulator::tiles<false>, site);
    for (int i = 0; i < 4; i++) r[i] = out.v[i];
}
DEVICE void load_tiles_transposed(uint32_t (&r)[4], const void* row,
                                  emulator::Site site = emulator::Site::here()) {
    if (reinterpret_cast<uintptr_t>(row) % 16) emulator::fail("load_tiles_transposed at %p", row);
    const auto out = emulator::warp_meet<cuda_emulator::FourWords>(emulator::ALL_LANES, row,
                                                                   cuda_emulator::tiles<true>, site);
    for (int i = 0; i < 4; i++) r[i] = out.v[i];
}

// ------------------------------------------------------------------------------------------------
// wgmma.cuh

#define HAS_WGMMA true
DEVICE void trap() { emulator::fail("trap"); }

namespace cuda_emulator {

/// A product in the background.
struct Product {
    float (*d)[4];
    const uint32_t* a;
    uint32_t tiles;
    uint64_t b;
};

/// A thread's products: closed groups, oldest first, and the open one.
struct Products {
    std::deque<std::vector<Product>> groups;
    std::vector<Product> open;
};

/// Two halves of row `k` (even) of column `n`, through a descriptor of pieces swizzled over 128 bytes.
inline uint32_t two_halves(uint64_t b, uint32_t n, uint32_t k) {
    if (b >> 62 != 1) emulator::fail("wgmma: columns %llx are not swizzled", (unsigned long long)b);
    uint32_t at = uint32_t(b & 0x3fff) << 4;
    at += n / 8 * (uint32_t(b >> 32 & 0x3fff) << 4) + n % 8 * 128 + k * 2;
    at ^= (at >> 7 & 7u) << 4;
    if (at + 4 > emulator::machine().launch.shared_bytes) emulator::fail("wgmma reads at %u of shared memory", at);
    uint32_t two;
    memcpy(&two, static_cast<const char*>(emulator::shared_memory()) + at, 4);
    return two;
}

inline void finish(Products& products, size_t pending);

}  // namespace cuda_emulator

DEVICE void shared_written() {}
DEVICE uint64_t wgmma_columns(const void* stages) {
    const auto at = static_cast<const char*>(stages) - static_cast<const char*>(emulator::shared_memory());
    if (at % 1024) emulator::fail("wgmma: columns at %ld of shared memory", long(at));
    return 1ull << 62 | 64ull << 32 | 1ull << 16 | uint64_t(at) >> 4;
}
DEVICE void wgmma_fence(uint32_t (&)[2][4]) {}
template <uint32_t NT>
DEVICE void wgmma(float (&d)[NT][4], const uint32_t (&a)[4], uint64_t b) {
    emulator::thread_state<cuda_emulator::Products>().open.push_back({d, a, NT, b});
}
// A product may be done at once, or as late as its wait: which, is up to the seed.
DEVICE void wgmma_commit() {
    auto& products = emulator::thread_state<cuda_emulator::Products>();
    products.groups.push_back(std::move(products.open));
    products.open.clear();
    if (emulator::machine().launch.seed % 2) cuda_emulator::finish(products, 0);
}
template <int PENDING>
DEVICE void wgmma_wait() {
    cuda_emulator::finish(emulator::thread_state<cuda_emulator::Products>(), PENDING);
}
template <uint32_t MT, uint32_t NT>
DEVICE void wgmma_sums(float (&)[MT][NT][4]) {}

inline void cuda_emulator::finish(Products& products, size_t pending) {
    const uint32_t g = lane_id() / 4, t = lane_id() % 4;
    while (products.groups.size() > pending) {
        const auto group = std::move(products.groups.front());
        products.groups.pop_front();
        for (const Product& p : group) {
            const uint32_t a[4] = {p.a[0], p.a[1], p.a[2], p.a[3]};
            for (uint32_t n = 0; n < p.tiles; n++) {
                mma_m16n8k16_f16(p.d[n], a, two_halves(p.b, 8 * n + g, 2 * t), two_halves(p.b, 8 * n + g, 8 + 2 * t));
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------
// cluster.cuh

DEVICE uint32_t cluster_size() { return uint32_t(emulator::cluster_extent().count()); }
DEVICE uint32_t cluster_rank() { return emulator::cluster_rank(); }
DEVICE void cluster_sync(emulator::Site site = emulator::Site::here()) { emulator::cluster_barrier(site); }
DEVICE void cluster_arrive() {}
DEVICE void cluster_wait(emulator::Site site = emulator::Site::here()) { emulator::cluster_barrier(site); }
template <class T>
DEVICE T* cluster_shared(T* own, uint32_t rank) {
    const auto offset = reinterpret_cast<char*>(own) - static_cast<char*>(emulator::shared_memory());
    return reinterpret_cast<T*>(static_cast<char*>(emulator::shared_memory(rank)) + offset);
}
