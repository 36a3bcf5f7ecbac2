// What checks and timings need, for a GPU and for the emulator: memory, launches, comparisons, a table.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#ifdef CUDA_EMULATOR
constexpr bool EMULATED = true;
#else
constexpr bool EMULATED = false;
#define CUDA(call)                                                                                 \
    do {                                                                                           \
        const cudaError_t error_ = (call);                                                         \
        if (error_ != cudaSuccess) {                                                               \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error_));      \
            exit(2);                                                                               \
        }                                                                                          \
    } while (0)
#endif

struct Shape {
    uint32_t x = 1, y = 1, z = 1;
    uint32_t threads = 32;
    uint32_t shared = 0;
    uint32_t cluster = 1;
    bool dependent = true;  // programmatic dependent launch
};

inline uint64_t g_seed = 1;
inline int g_failures = 0;
inline int g_checks = 0;
#ifndef CUDA_EMULATOR
inline cudaStream_t g_stream;
#endif

// Values on the device; exactly as long as asked for, so that a read past the end is seen.
template <class T>
class Buffer {
   public:
    explicit Buffer(size_t n, int fill = 0xff) : n_(n) {
#ifdef CUDA_EMULATOR
        void* p = nullptr;
        if (posix_memalign(&p, 256, std::max<size_t>(n * sizeof(T), 1)) != 0) abort();
        data_ = static_cast<T*>(p);
        memset(static_cast<void*>(data_), fill, n * sizeof(T));
#else
        CUDA(cudaMalloc(&data_, std::max<size_t>(n * sizeof(T), 16)));
        CUDA(cudaMemset(data_, fill, n * sizeof(T)));
        // Kernels run on a stream that does not wait for this one.
        CUDA(cudaDeviceSynchronize());
#endif
    }
    explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) { upload(values); }
    Buffer(const Buffer&) = delete;
    ~Buffer() {
#ifdef CUDA_EMULATOR
        free(data_);
#else
        cudaFree(data_);
#endif
    }
    void upload(const std::vector<T>& values) {
#ifdef CUDA_EMULATOR
        if (!values.empty()) memcpy(static_cast<void*>(data_), values.data(), values.size() * sizeof(T));
#else
        CUDA(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
        CUDA(cudaDeviceSynchronize());
#endif
    }
    std::vector<T> download() const {
        std::vector<T> values(n_);
#ifdef CUDA_EMULATOR
        if (n_ != 0) memcpy(static_cast<void*>(values.data()), data_, n_ * sizeof(T));
#else
        CUDA(cudaStreamSynchronize(g_stream));
        CUDA(cudaMemcpy(values.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost));
#endif
        return values;
    }
    T* get() const { return data_; }
    size_t size() const { return n_; }

   private:
    T* data_ = nullptr;
    size_t n_;
};

#ifdef CUDA_EMULATOR
#define LAUNCH(name, shape, params)                                                                  \
    do {                                                                                             \
        const Shape s_ = (shape);                                                                    \
        const EmulatedLaunch l_ = {{s_.x, s_.y, s_.z}, {s_.threads, 1, 1}, {s_.cluster, 1, 1}, s_.shared, g_seed++}; \
        if (const char* fault_ = emulate_##name(&l_, &(params))) {                                   \
            printf("%s: %s\n", #name, fault_);                                                       \
            exit(2);                                                                                 \
        }                                                                                            \
    } while (0)
#else
template <class P>
void launch_kernel(const char* name, void (*kernel)(const P), const Shape& s, const P& params) {
    if (s.shared > 48u * 1024u) {
        CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(s.shared)));
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(s.x, s.y, s.z);
    config.blockDim = dim3(s.threads);
    config.dynamicSmemBytes = s.shared;
    config.stream = g_stream;
    cudaLaunchAttribute attributes[2];
    uint32_t count = 0;
    if (s.dependent) {
        attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[count++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (s.cluster > 1) {
        attributes[count].id = cudaLaunchAttributeClusterDimension;
        attributes[count].val.clusterDim.x = s.cluster;
        attributes[count].val.clusterDim.y = 1;
        attributes[count++].val.clusterDim.z = 1;
    }
    config.attrs = attributes;
    config.numAttrs = count;
    const cudaError_t error = cudaLaunchKernelEx(&config, kernel, params);
    if (error != cudaSuccess) {
        printf("%s: %s\n", name, cudaGetErrorString(error));
        exit(2);
    }
}
#define LAUNCH(name, shape, params) launch_kernel(#name, name, shape, params)
#endif

inline uint32_t multiprocessors() {
#ifdef CUDA_EMULATOR
    return 3;
#else
    int n = 0;
    CUDA(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, 0));
    return uint32_t(n);
#endif
}

// ------------------------------------------------------------------------------------------------
// Random inputs

inline uint64_t g_random = 0x9e3779b97f4a7c15ull;
inline uint32_t random_u32() {
    g_random ^= g_random << 13;
    g_random ^= g_random >> 7;
    g_random ^= g_random << 17;
    return uint32_t(g_random >> 32);
}
inline float uniform() { return float(random_u32() >> 8) * 0x1p-24f; }
inline float normal() {
    const float u = std::max(uniform(), 1e-7f), v = uniform();
    return std::sqrt(-2.0f * std::log(u)) * std::cos(6.2831853f * v);
}
inline std::vector<float> normals(size_t n, float scale = 1.0f) {
    std::vector<float> v(n);
    for (float& x : v) x = scale * normal();
    return v;
}

inline uint16_t to_f16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return uint16_t(sign | 0x7fff);
    if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);
    if (magnitude < 0x38800000) {
        float m;
        memcpy(&m, &magnitude, 4);
        return uint16_t(sign | uint32_t(std::nearbyint(m * 0x1p24f)));
    }
    const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return uint16_t(sign | (rounded - 0x38000000) >> 13);
}
inline float from_f16(uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const float value = exponent == 0 ? std::ldexp(float(mantissa), -24) : std::ldexp(float(1024 + mantissa), exponent - 25);
    return bits & 0x8000 ? -value : value;
}

// ------------------------------------------------------------------------------------------------
// Comparisons

// The root mean square of the differences, relative to that of the wanted values; NaN counts as wrong.
inline double relative_error(const std::vector<float>& got, const std::vector<double>& want) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < want.size(); i++) {
        if (!(std::fabs(got[i]) < 1e30f)) return INFINITY;
        error += (got[i] - want[i]) * (got[i] - want[i]);
        norm += want[i] * want[i];
    }
    return norm > 0 ? std::sqrt(error / norm) : std::sqrt(error);
}

inline void report(const std::string& what, double error, double limit) {
    const bool good = error <= limit;
    g_checks++;
    if (!good) g_failures++;
    printf("%-4s %-64s error %.1e (limit %.0e)\n", good ? "ok" : "BAD", what.c_str(), error, limit);
    fflush(stdout);
}

inline void report(const std::string& what, bool good) {
    g_checks++;
    if (!good) g_failures++;
    printf("%-4s %s\n", good ? "ok" : "BAD", what.c_str());
    fflush(stdout);
}

// ------------------------------------------------------------------------------------------------
// Timing: launches that depend on one another, in a graph; the median of some replays.

#ifndef CUDA_EMULATOR
inline double microseconds(uint32_t count, const std::function<void(uint32_t)>& launch) {
    launch(0);
    CUDA(cudaStreamSynchronize(g_stream));
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CUDA(cudaStreamBeginCapture(g_stream, cudaStreamCaptureModeThreadLocal));
    for (uint32_t i = 0; i < count; i++) launch(i);
    CUDA(cudaStreamEndCapture(g_stream, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    cudaEvent_t start, stop;
    CUDA(cudaEventCreate(&start));
    CUDA(cudaEventCreate(&stop));
    std::vector<float> times;
    for (int replay = 0; replay < 9; replay++) {
        CUDA(cudaEventRecord(start, g_stream));
        CUDA(cudaGraphLaunch(exec, g_stream));
        CUDA(cudaEventRecord(stop, g_stream));
        CUDA(cudaStreamSynchronize(g_stream));
        float ms = 0;
        CUDA(cudaEventElapsedTime(&ms, start, stop));
        if (replay >= 2) times.push_back(ms);
    }
    std::sort(times.begin(), times.end());
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaEventDestroy(start));
    CUDA(cudaEventDestroy(stop));
    return times[times.size() / 2] * 1000.0 / count;
}

// `predicted` from the law of launches that depend on each other: a constant plus bytes at full width.
inline void row(const std::string& what, double us, double bytes, double predicted) {
    printf("%-56s %9.2f us %9.2f MB %8.1f GB/s   predicted %8.2f us\n", what.c_str(), us, bytes / 1e6,
           bytes / us / 1e3, predicted);
    fflush(stdout);
}
inline void row_flops(const std::string& what, double us, double flops) {
    printf("%-56s %9.2f us %9.2f TFLOP/s\n", what.c_str(), us, flops / us / 1e6);
    fflush(stdout);
}
#endif
