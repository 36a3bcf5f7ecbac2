// Blocks of a cluster, which reach into each other's shared memory. Before Hopper a cluster is one block.
#pragma once

#include "warp.cuh"

#ifndef CUDA_EMULATOR

DEVICE uint32_t cluster_size() {
#if __CUDA_ARCH__ >= 900
    uint32_t size;
    asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(size));
    return size;
#else
    return 1;
#endif
}
DEVICE uint32_t cluster_rank() {
#if __CUDA_ARCH__ >= 900
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
#else
    return 0;
#endif
}

// Every thread of every block of the cluster; what was written to shared memory before is seen after.
DEVICE void cluster_sync() {
#if __CUDA_ARCH__ >= 900
    if (cluster_size() != 1) {
        asm volatile("barrier.cluster.arrive;\n\tbarrier.cluster.wait;" ::: "memory");
        return;
    }
#endif
    __syncthreads();
}

// The same in two steps: between them a thread may do what needs nothing of the others.
DEVICE void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    if (cluster_size() != 1) asm volatile("barrier.cluster.arrive;" ::: "memory");
#endif
}
DEVICE void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    if (cluster_size() != 1) {
        asm volatile("barrier.cluster.wait;" ::: "memory");
        return;
    }
#endif
    __syncthreads();
}

// The same place in the shared memory of block `rank`.
template <class T> DEVICE T* cluster_shared(T* own, uint32_t rank) {
#if __CUDA_ARCH__ >= 900
    uint64_t there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(own), "r"(rank));
    return reinterpret_cast<T*>(there);
#else
    return own;
#endif
}

#endif
