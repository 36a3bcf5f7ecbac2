// How a kernel is written so that the same text is compiled by nvcc and run by the emulator.
//
//     KERNEL(rms_norm, RmsNormParams, 256) {       // name, parameter struct, threads a block at most
//         pdl_wait();
//         … p.x, threadIdx.x, blockIdx.x …          // `p` is the struct, by value
//     }
//
// Every kernel has one parameter: a plain struct, mirrored by a `#[repr(C)]` one in Rust. Dynamic shared
// memory is `SHARED(type, name)`. Kernels that differ by template arguments only are instantiated by one
// KERNEL each, whose body calls a template function. Names are unique in the crate: src/*/kernel*.cu are
// scanned for `KERNEL(name` by build.rs, which makes the emulator's table out of them.
//
// Under CUDA this is `extern "C" __global__`. Under the emulator it is
// `extern "C" const char* emulate_<name>(const EmulatedLaunch*, const void* params)`, which runs the body
// for every thread of the grid and returns what went wrong, or null.
#pragma once

#include <stdint.h>

#ifdef CUDA_EMULATOR

// What a launch asks for; mirrored in src/device/cuda/emulated.rs.
struct EmulatedLaunch {
    uint32_t grid[3];
    uint32_t block[3];
    uint32_t cluster[3];    // 1, 1, 1 without clusters
    uint32_t shared_bytes;  // dynamic shared memory
    uint64_t seed;          // of the order in which threads run between barriers
};

// Defines `std::string cuda_emulator::run(const EmulatedLaunch&, F body)` (what went wrong, or nothing),
// the wrappers of intrinsics, SHARED, and CUDA's words (`__device__`, `threadIdx`, …).
#include "../../emulator/cuda.h"

#define KERNEL(name, Params, threads)                                                         \
    static void name##_body(const Params& p);                                                 \
    extern "C" const char* emulate_##name(const EmulatedLaunch* launch, const void* params) { \
        static thread_local std::string fault;                                                \
        const Params p = *static_cast<const Params*>(params);                                 \
        fault = cuda_emulator::run(*launch, [&p] { name##_body(p); });                        \
        return fault.empty() ? nullptr : fault.c_str();                                       \
    }                                                                                         \
    static void name##_body(const Params& p)

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#ifdef DS4_TIMELINE
#include "timeline.cuh"
#else
#define TIMELINE_BEGIN
#define TIMELINE_END(name)
#endif

#define KERNEL(name, Params, threads)                                                              \
    static __device__ __forceinline__ void name##_body(const Params& p);                           \
    extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Params p) { \
        TIMELINE_BEGIN                                                                             \
        name##_body(p);                                                                            \
        TIMELINE_END(name)                                                                         \
    }                                                                                              \
    static __device__ __forceinline__ void name##_body(const Params& p)

#define SHARED(type, name)                                   \
    extern __shared__ __align__(1024) unsigned char shared_bytes_[]; \
    type* const name = reinterpret_cast<type*>(shared_bytes_)

#endif
