// The Metal Shading Language as C++ (clang), so that src/*/kernel.metal run on a CPU.
//
// Two uses of the same text:
//
//   * run it: address spaces are empty words, each GPU thread is a fiber (fibers.h), SIMD-group
//     operations are meetings of 32 lanes, a simdgroup_matrix is spread over the lanes, two elements
//     each. `kernel` functions are registered by name (`KERNEL` at the end of each file) and
//     called from Rust through `ds4_metal_launch`;
//   * check it (`-DMETAL_ADDRESS_SPACES -fsyntax-only`): `device`, `constant` and `threadgroup` are
//     address spaces that clang does not convert into each other, as Apple's compiler does not.
//
// Vectors are clang's `ext_vector_type`, which have Metal's swizzles but neither its constructors
// nor its conversions: kernels write `float4{a, b, c, d}` and `convert<float4>(v)` instead, see
// include/metal/prelude.metal. Functions that Metal has and no kernel uses are not here.
#pragma once

#ifndef __clang__
#error "the Metal emulator needs clang++ (vector types with swizzles)"
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __SSE__
#include <xmmintrin.h>
#endif

#include "fibers.h"

#ifdef METAL_ADDRESS_SPACES
#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#else
#define device
#define constant const
#define threadgroup
#endif
#define thread
#define kernel

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
// Not _Float16, which clang before 15 does not have on x86.
typedef __fp16 half;

namespace metal {

#define METAL_VECTORS(T)                                     \
    typedef T T##2 __attribute__((ext_vector_type(2)));      \
    typedef T T##3 __attribute__((ext_vector_type(3)));      \
    typedef T T##4 __attribute__((ext_vector_type(4)));
METAL_VECTORS(char)
METAL_VECTORS(uchar)
METAL_VECTORS(short)
METAL_VECTORS(ushort)
METAL_VECTORS(int)
METAL_VECTORS(uint)
METAL_VECTORS(half)
METAL_VECTORS(float)
METAL_VECTORS(ulong)
#undef METAL_VECTORS

// ------------------------------------------------------------------------------------------------
// Values

template <class To, class From>
To as_type(From from) {
    static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

/// `To(v)` of Metal for vectors of the same length.
template <class To, class From>
To convert(From v) {
    return __builtin_convertvector(v, To);
}

// Both arguments of one type, as Metal asks for.
template <class T>
T max(T a, T b) {
    return a < b ? b : a;
}
template <class T>
T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
T clamp(T x, T low, T high) {
    return min(max(x, low), high);
}
inline float fmax(float a, float b) { return std::fmax(a, b); }
inline float fmin(float a, float b) { return std::fmin(a, b); }
inline float fabs(float x) { return std::fabs(x); }
inline float abs(float x) { return std::fabs(x); }
inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
inline float rint(float x) { return std::rint(x); }
inline float floor(float x) { return std::floor(x); }
inline float copysign(float x, float y) { return std::copysign(x, y); }
inline bool isnan(float x) { return std::isnan(x); }
inline uint popcount(uint x) { return uint(__builtin_popcount(x)); }
inline uint ctz(uint x) { return x == 0 ? 32 : uint(__builtin_ctz(x)); }
inline uint clz(uint x) { return x == 0 ? 32 : uint(__builtin_clz(x)); }
inline float dot(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

namespace precise {
inline float exp(float x) { return std::exp(x); }
inline float log(float x) { return std::log(x); }
inline float sin(float x) { return std::sin(x); }
inline float cos(float x) { return std::cos(x); }
inline float sqrt(float x) { return std::sqrt(x); }
}  // namespace precise

// ------------------------------------------------------------------------------------------------
// Lanes

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };

inline void threadgroup_barrier(mem_flags, emulator::Site site = emulator::Site::here()) {
    emulator::barrier(site);
}
inline void simdgroup_barrier(mem_flags, emulator::Site site = emulator::Site::here()) {
    emulator::warp_barrier(emulator::ALL_LANES, site);
}

template <class T>
T simd_sum(T v, emulator::Site site = emulator::Site::here()) {
    return emulator::reduce(emulator::ALL_LANES, v, [](T a, T b) { return a + b; }, site);
}
template <class T>
T simd_max(T v, emulator::Site site = emulator::Site::here()) {
    return emulator::reduce(emulator::ALL_LANES, v, [](T a, T b) { return a < b ? b : a; }, site);
}
template <class T>
T simd_min(T v, emulator::Site site = emulator::Site::here()) {
    return emulator::reduce(emulator::ALL_LANES, v, [](T a, T b) { return b < a ? b : a; }, site);
}
template <class T>
T simd_shuffle(T v, ushort lane, emulator::Site site = emulator::Site::here()) {
    return emulator::shuffle(emulator::ALL_LANES, v, lane, site);
}
template <class T>
T simd_shuffle_xor(T v, ushort mask, emulator::Site site = emulator::Site::here()) {
    return emulator::shuffle(emulator::ALL_LANES, v, emulator::lane_index() ^ mask, site);
}
template <class T>
T simd_broadcast_first(T v, emulator::Site site = emulator::Site::here()) {
    return emulator::shuffle(emulator::ALL_LANES, v, 0, site);
}
template <class T>
T simd_prefix_exclusive_sum(T v, emulator::Site site = emulator::Site::here()) {
    return emulator::warp_meet<T>(
        emulator::ALL_LANES, v,
        [](const T* ins, unsigned mask, T* outs) {
            T sum = T(0);
            for (unsigned l = 0; l < emulator::WARP; l++) {
                outs[l] = sum;
                if (mask >> l & 1) sum = sum + ins[l];
            }
        },
        site);
}

// ------------------------------------------------------------------------------------------------
// Atomics: one thread runs at a time, so plain memory will do.

enum memory_order { memory_order_relaxed };

#ifdef METAL_ADDRESS_SPACES
// A class has no constructor for other address spaces.
typedef uint atomic_uint;
#define METAL_ATOMIC(p) (*(p))
#else
struct atomic_uint {
    uint value;
};
#define METAL_ATOMIC(p) ((p)->value)
#endif

template <class P>
uint atomic_fetch_add_explicit(P p, uint v, memory_order) {
    uint old = METAL_ATOMIC(p);
    METAL_ATOMIC(p) = old + v;
    return old;
}
template <class P>
uint atomic_load_explicit(P p, memory_order) {
    return METAL_ATOMIC(p);
}
template <class P>
void atomic_store_explicit(P p, uint v, memory_order) {
    METAL_ATOMIC(p) = v;
}

// ------------------------------------------------------------------------------------------------
// 8×8 matrices of a SIMD-group

/// Row and first column of a lane's two elements, as Apple's GPUs have them.
inline uint simdgroup_row(uint lane) { return (lane / 4 & 4) + lane / 2 % 4; }
inline uint simdgroup_column(uint lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }

template <class T, int Rows, int Columns>
struct simdgroup_matrix {
    static_assert(Rows == 8 && Columns == 8, "Metal has 8×8 only");
    T elements[2];
    simdgroup_matrix() = default;
    /// `value` on the diagonal.
    explicit simdgroup_matrix(T value) {
        uint lane = emulator::lane_index();
        for (uint i = 0; i < 2; i++) {
            elements[i] = simdgroup_row(lane) == simdgroup_column(lane) + i ? value : T(0);
        }
    }
};

typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;

template <class T, int Rows, int Columns>
simdgroup_matrix<T, Rows, Columns> make_filled_simdgroup_matrix(T value) {
    simdgroup_matrix<T, Rows, Columns> m;
    m.elements[0] = m.elements[1] = value;
    return m;
}

template <class T, class P>
void simdgroup_load(simdgroup_matrix<T, 8, 8>& m, P from, ulong stride = 8, ulong2 = {0, 0},
                    bool transpose = false, emulator::Site site = emulator::Site::here()) {
    uint lane = emulator::lane_index(), row = simdgroup_row(lane);
    // All lanes must be there, as on the device.
    emulator::warp_barrier(emulator::ALL_LANES, site);
    for (uint i = 0; i < 2; i++) {
        uint column = simdgroup_column(lane) + i;
        m.elements[i] = T(transpose ? from[column * stride + row] : from[row * stride + column]);
    }
}

template <class T, class P>
void simdgroup_store(const simdgroup_matrix<T, 8, 8>& m, P to, ulong stride = 8, ulong2 = {0, 0},
                     bool transpose = false, emulator::Site site = emulator::Site::here()) {
    uint lane = emulator::lane_index(), row = simdgroup_row(lane);
    emulator::warp_barrier(emulator::ALL_LANES, site);
    for (uint i = 0; i < 2; i++) {
        uint column = simdgroup_column(lane) + i;
        (transpose ? to[column * stride + row] : to[row * stride + column]) = m.elements[i];
    }
}

/// `d = a · b + c`.
template <class D, class A, class B>
void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d,
                                   const simdgroup_matrix<A, 8, 8>& a,
                                   const simdgroup_matrix<B, 8, 8>& b,
                                   const simdgroup_matrix<D, 8, 8>& c,
                                   emulator::Site site = emulator::Site::here()) {
    struct In {
        float a[2], b[2];
        D c[2];
    };
    struct Out {
        D d[2];
    };
    In in{{float(a.elements[0]), float(a.elements[1])},
          {float(b.elements[0]), float(b.elements[1])},
          {c.elements[0], c.elements[1]}};
    Out out = emulator::warp_meet<Out>(
        emulator::ALL_LANES, in,
        [](const In* ins, unsigned mask, Out* outs) {
            if (mask != emulator::ALL_LANES) emulator::fail("a SIMD-group matrix needs 32 lanes");
            float a[8][8], b[8][8], sums[8][8];
            for (uint lane = 0; lane < emulator::WARP; lane++) {
                for (uint i = 0; i < 2; i++) {
                    uint row = simdgroup_row(lane), column = simdgroup_column(lane) + i;
                    a[row][column] = ins[lane].a[i];
                    b[row][column] = ins[lane].b[i];
                    sums[row][column] = float(ins[lane].c[i]);
                }
            }
            for (uint row = 0; row < 8; row++) {
                for (uint k = 0; k < 8; k++) {
                    for (uint column = 0; column < 8; column++) {
                        sums[row][column] += a[row][k] * b[k][column];
                    }
                }
            }
            for (uint lane = 0; lane < emulator::WARP; lane++) {
                for (uint i = 0; i < 2; i++) {
                    outs[lane].d[i] = D(sums[simdgroup_row(lane)][simdgroup_column(lane) + i]);
                }
            }
        },
        site);
    d.elements[0] = out.d[0];
    d.elements[1] = out.d[1];
}

}  // namespace metal

// ------------------------------------------------------------------------------------------------
// Kernels by name, and what a launch gives them

namespace metal_emulator {

/// What Rust hands over; `Launch` of src/device/metal/emulated.rs is its twin.
struct Launch {
    const char* name;
    uint32_t groups[3];
    uint32_t threads;
    const void* params;
    size_t params_len;
    void* const* buffers;
    size_t buffers_len;
    /// Values of function constants, by index; missing ones keep no value and must not be used.
    const uint32_t* constants;
    size_t constants_len;
    uint64_t seed;
};

struct Constant {
    uint32_t index;
    void (*set)(uint32_t);
};

struct Entry {
    const char* name;
    size_t params_len;
    size_t buffers_len;
    void (*call)(const Launch&);
    const std::vector<Constant>* constants;
};

inline std::vector<Entry>& entries() {
    static std::vector<Entry> entries;
    return entries;
}

/// The function constants of the file that is being compiled: their indices are the file's own.
namespace {
std::vector<Constant>& constants_here() {
    static std::vector<Constant> constants;
    return constants;
}

struct RegisterConstant {
    RegisterConstant(uint32_t index, void (*set)(uint32_t)) {
        constants_here().push_back({index, set});
    }
};
}  // namespace

template <auto F>
struct Call;

// Every kernel has the parameters `constant Params&`, then buffers, then the five of THREAD_POSITION.
template <class P, class... A, void (*F)(P&, A...)>
struct Call<F> {
    static constexpr size_t BUFFERS = sizeof...(A) - 5;
    typedef std::remove_const_t<P> Params;

    template <size_t... I>
    static void with(const Launch& launch, std::index_sequence<I...>) {
        typedef std::tuple<A...> Types;
        emulator::Dim group = emulator::block_index(), groups = emulator::grid_extent();
        F(*static_cast<const Params*>(launch.params),
          static_cast<std::tuple_element_t<I, Types>>(launch.buffers[I])...,
          metal::uint3{group.x, group.y, group.z}, metal::uint3{groups.x, groups.y, groups.z},
          emulator::linear_thread(), emulator::lane_index(), emulator::warp_index());
    }

    static void call(const Launch& launch) { with(launch, std::make_index_sequence<BUFFERS>()); }
};

template <auto F>
struct Register {
    Register(const char* name, const std::vector<Constant>* constants) {
        typedef Call<F> C;
        entries().push_back({name, sizeof(typename C::Params), C::BUFFERS, &C::call, constants});
    }
};

/// Apple's GPUs take f32 numbers below the smallest normal one for zero.
struct FlushDenormals {
#ifdef __SSE__
    unsigned before = _mm_getcsr();
    FlushDenormals() { _mm_setcsr(before | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(before); }
#endif
};

inline std::string launch(const Launch& launch) {
    for (const Entry& entry : entries()) {
        if (strcmp(entry.name, launch.name) != 0) continue;
        if (entry.params_len != launch.params_len) {
            return "takes " + std::to_string(entry.params_len) + " bytes of parameters, got " +
                   std::to_string(launch.params_len);
        }
        if (entry.buffers_len != launch.buffers_len) {
            return "takes " + std::to_string(entry.buffers_len) + " buffers, got " +
                   std::to_string(launch.buffers_len);
        }
        for (const Constant& constant_ : *entry.constants) {
            if (constant_.index < launch.constants_len) {
                constant_.set(launch.constants[constant_.index]);
            }
        }
        FlushDenormals as_on_the_device;
        emulator::Launch grid;
        grid.grid = {launch.groups[0], launch.groups[1], launch.groups[2]};
        grid.block = {launch.threads, 1, 1};
        grid.seed = launch.seed;
        return emulator::run(grid, [&] { entry.call(launch); });
    }
    return "is not there";
}

}  // namespace metal_emulator

#define KERNEL(name) INSTANCE(name, name)

// See include/metal/prelude.metal for the Metal side of these.
#ifdef METAL_ADDRESS_SPACES
#define THREADGROUP(T, name, ...) static threadgroup T name __VA_ARGS__
#define INSTANCE(name, ...) \
    static constexpr auto kernel_##name = &__VA_ARGS__;
#else
#define THREADGROUP(T, name, ...)                     \
    static const char name##_key = 0;                 \
    typedef T name##_type __VA_ARGS__;                \
    name##_type& name = *static_cast<name##_type*>(   \
        emulator::block_memory(&name##_key, sizeof(name##_type)))
#define INSTANCE(name, ...)                                                                \
    static const metal_emulator::Register<&__VA_ARGS__> registered_##name( \
        #name, &metal_emulator::constants_here());
#endif
#define FUNCTION_CONSTANT(T, name, index)                                      \
    static thread_local T name;                                                \
    static const metal_emulator::RegisterConstant set_##name( \
        index, [](uint32_t value) { name = T(value); });
