// Ways to read and copy memory, and the order of dependent launches.
#pragma once

#include "warp.cuh"

#ifndef CUDA_EMULATOR

// Lets the next kernel of the stream start. It must not touch what this one writes before its wait.
DEVICE void pdl_trigger() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until the kernels before have finished and their writes are visible. Until then only weights
// may be read, and nothing may be written that they read.
DEVICE void pdl_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
#ifdef DS4_TIMELINE
    timeline_wait_over();
#endif
}

// Weights: read once, so kept out of L1. The address must not be written while kernels run.
DEVICE uint4 load_weights16(const void* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
DEVICE uint2 load_weights8(const void* p) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}
DEVICE uint32_t load_weights4(const void* p) {
    uint32_t v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}
// Scales and the like, of which neighbours read other bytes of the line.
DEVICE uint16_t load_weights2(const void* p) {
    return __ldg(static_cast<const unsigned short*>(p));
}

// Reads what is read again later, into the cache of this multiprocessor.
template <class T> DEVICE void bring_near(const T* p) {
    const T value = *p;
    asm volatile("" ::"l"(value) : "memory");
}

// What is in memory now, whatever a cache of this multiprocessor says; others may be writing it.
DEVICE uint32_t load_now(const uint32_t* p) { return *static_cast<const volatile uint32_t*>(p); }

// What launches before this one have written, past the cache of this multiprocessor: for reads before the wait
// for the last of them.
DEVICE float4 load_written16(const float* p) { return __ldcg(reinterpret_cast<const float4*>(p)); }
DEVICE uint4 load_written16(const uint32_t* p) { return __ldcg(reinterpret_cast<const uint4*>(p)); }
DEVICE uint2 load_written8(const uint32_t* p) { return __ldcg(reinterpret_cast<const uint2*>(p)); }

// Copies 16 bytes into shared memory in the background; both addresses are multiples of 16.
DEVICE void copy16_async(void* shared, const void* global) {
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}
// The same of 8 or 4, at multiples of as many; what neighbours copy of the line is kept in L1.
DEVICE void copy8_async(void* shared, const void* global) {
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(global) : "memory");
}
DEVICE void copy4_async(void* shared, const void* global) {
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(global) : "memory");
}
// The same, or 16 zero bytes.
DEVICE void copy16_async_or_zero(void* shared, const void* global, bool copy) {
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(copy ? 16 : 0)
                 : "memory");
}
// Ends a group of this thread's copies.
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all groups of this thread but the last `PENDING`.
template <int PENDING> DEVICE void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// An address in shared memory as a number, for sums that are made once; and the word at one, plus `OFFSET`.
// Only for what nobody writes any more: loads may be moved.
DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
template <uint32_t OFFSET> DEVICE uint32_t load_shared4(uint32_t at) {
    uint32_t v;
    asm("ld.shared.u32 %0, [%1 + %2];" : "=r"(v) : "r"(at), "n"(OFFSET));
    return v;
}

// Counts in shared memory; whole numbers, so that the order does not matter.
DEVICE uint32_t shared_add(uint32_t* p, uint32_t value) { return atomicAdd(p, value); }

#endif
