// What every kernel begins with. Put in front of each src/<op>/kernel.metal when it is compiled, on
// a device (as text, at first use) as under the emulator.
//
//     kernel void rms_norm(constant RmsNorm& p [[buffer(0)]], device const float* x [[buffer(1)]],
//                          device float* out [[buffer(2)]], THREAD_POSITION) { … }
//     KERNEL(rms_norm)
//
// Buffer 0 is the parameter struct, made of 4-byte fields and mirrored by a `#[repr(C)]` struct in
// metal.rs; the others follow in order. A template is instantiated by `INSTANCE(name, f<A, B>)`.
#include <metal_stdlib>

using namespace metal;

#ifdef __METAL_VERSION__

// An array of the threadgroup: THREADGROUP(float, tile, [8][32]);
#define THREADGROUP(T, name, ...) threadgroup T name __VA_ARGS__
// A value that is known when the pipeline is made.
#define FUNCTION_CONSTANT(T, name, index) constant T name [[function_constant(index)]];
// Makes a kernel known by its name: only the emulator needs to be told.
#define KERNEL(name)
#define INSTANCE(name, ...) \
    template [[host_name(#name)]] [[kernel]] decltype(__VA_ARGS__) __VA_ARGS__;

template <typename To, typename From>
To convert(From v) {
    return To(v);
}

#endif

#define THREAD_POSITION                                                                       \
    uint3 group [[threadgroup_position_in_grid]], uint3 groups [[threadgroups_per_grid]],     \
        uint index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],  \
        uint simd [[simdgroup_index_in_threadgroup]]

#define LANES 32u
// Names no row of a list.
#define NO_ROW 0xffffffffu

inline uint div_up(uint a, uint b) { return (a + b - 1u) / b; }
