// When blocks of kernels ran: compiled in by DS4_CUDA_TIMELINE (build.rs), read by src/device/cuda/timeline.rs.
//
// Each block leaves a record of when it began, when its wait for the kernels before returned, and when
// its last thread ended, in nanoseconds of the GPU's clock.
#pragma once

#ifdef DS4_TIMELINE

struct TimelineRecord {
    uint32_t kernel;  // hash of its name
    uint32_t blocks;  // of the launch
    uint32_t block;
    uint32_t processor;
    uint64_t begin, ready, end;
};

// Where records go; set by the host in each module.
struct Timeline {
    unsigned long long count;  // of records so far
    uint64_t room;             // a power of two: later records take the place of the first ones
    TimelineRecord records[1];
};
extern "C" {
__device__ Timeline* timeline;
}
static __shared__ uint64_t timeline_ready;

static __device__ __forceinline__ uint64_t timeline_now() {
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory");
    return now;
}

static __device__ __forceinline__ uint64_t timeline_begin() {
    const uint64_t now = timeline_now();
    if (threadIdx.x == 0) timeline_ready = now;
    return now;
}

static __device__ __forceinline__ void timeline_wait_over() {
    if (threadIdx.x == 0) timeline_ready = timeline_now();
}

static __device__ __forceinline__ void timeline_end(uint32_t kernel, uint64_t begin) {
    __syncthreads();
    if (threadIdx.x != 0 || timeline == nullptr) return;
    const uint64_t end = timeline_now();
    const uint64_t at = atomicAdd(&timeline->count, 1ull) & (timeline->room - 1);
    uint32_t processor;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(processor));
    const uint32_t block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    timeline->records[at] = {kernel, gridDim.x * gridDim.y * gridDim.z, block, processor, begin, timeline_ready, end};
}

// FNV-1a.
static __host__ __device__ constexpr uint32_t timeline_hash(const char* name) {
    uint32_t hash = 2166136261u;
    for (; *name != 0; name++) hash = (hash ^ static_cast<uint8_t>(*name)) * 16777619u;
    return hash;
}

#define TIMELINE_BEGIN const uint64_t begin_ = timeline_begin();
#define TIMELINE_END(name)                        \
    constexpr uint32_t hash_ = timeline_hash(#name); \
    timeline_end(hash_, begin_);

#endif
