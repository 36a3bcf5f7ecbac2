// Hopper's matrix units: four warps multiply 64 rows by up to 256 columns, in the background. A comes out
// of registers, laid out as mma_m16n8k16_f16's (each warp has its own 16 rows), B out of shared memory.
//
// B is 64 halves of k for each column (128 bytes, a column after the other), with its 16-byte pieces where
// swizzled_piece says, from a multiple of 1,024 bytes on. Instructions only exist on 9.0 (sm_90a): elsewhere
// kernels that use them are compiled to a trap.
#pragma once

#include "warp.cuh"

// Where the 16-byte piece `part` (below 8) of column `n` lies among the column's pieces.
DEVICE uint32_t swizzled_piece(uint32_t n, uint32_t part) { return part ^ n % 8u; }

#ifndef CUDA_EMULATOR

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAS_WGMMA true
#else
#define HAS_WGMMA false
#endif

// The end of a kernel that was chosen for another GPU than this.
DEVICE void trap() { asm volatile("trap;"); }

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// What this thread has written to shared memory, matrix units see after the next barrier.
DEVICE void shared_written() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// B's columns in the stages that begin here. What is `bytes` (a multiple of 16) on: plus `bytes / 16`.
DEVICE uint64_t wgmma_columns(const void* stages) {
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(stages));
    // Pieces are swizzled over 128 bytes; eight columns are 1,024 bytes apart.
    return (1ull << 62) | (64ull << 32) | (1ull << 16) | (at & 0x3ffffu) >> 4;
}

// Comes after the last change of registers that products read or add to, before these products.
DEVICE void wgmma_fence(uint32_t (&a)[2][4]) {
    asm volatile("wgmma.fence.sync.aligned;"
                 : "+r"(a[0][0]), "+r"(a[0][1]), "+r"(a[0][2]), "+r"(a[0][3]), "+r"(a[1][0]), "+r"(a[1][1]),
                   "+r"(a[1][2]), "+r"(a[1][3])::"memory");
}
// Ends a group of products.
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits for all groups but the last `PENDING`. Until then their registers and columns must be left alone.
template <int PENDING> DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Sums are not looked at before this.
template <uint32_t MT, uint32_t NT> DEVICE void wgmma_sums(float (&d)[MT][NT][4]) {
#pragma unroll
    for (uint32_t m = 0; m < MT; m++) {
#pragma unroll
        for (uint32_t n = 0; n < NT; n++) {
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) asm volatile("" : "+f"(d[m][n][i])::"memory");
        }
    }
}

// Registers of sums, as text and as operands.
#define WGMMA_D2 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WGMMA_D4 WGMMA_D2 \
    ", %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_D6 WGMMA_D4 \
    ", %16, %17, %18, %19, %20, %21, %22, %23"
#define WGMMA_D8 WGMMA_D6 \
    ", %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_D10 WGMMA_D8 \
    ", %32, %33, %34, %35, %36, %37, %38, %39"
#define WGMMA_D12 WGMMA_D10 \
    ", %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_D14 WGMMA_D12 \
    ", %48, %49, %50, %51, %52, %53, %54, %55"
#define WGMMA_D16 WGMMA_D14 \
    ", %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_D18 WGMMA_D16 \
    ", %64, %65, %66, %67, %68, %69, %70, %71"
#define WGMMA_D20 WGMMA_D18 \
    ", %72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_D22 WGMMA_D20 \
    ", %80, %81, %82, %83, %84, %85, %86, %87"
#define WGMMA_D24 WGMMA_D22 \
    ", %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_D26 WGMMA_D24 \
    ", %96, %97, %98, %99, %100, %101, %102, %103"
#define WGMMA_D28 WGMMA_D26 \
    ", %104, %105, %106, %107, %108, %109, %110, %111"
#define WGMMA_D30 WGMMA_D28 \
    ", %112, %113, %114, %115, %116, %117, %118, %119"
#define WGMMA_D32 WGMMA_D30 \
    ", %120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_TILE(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define WGMMA_SUMS2 WGMMA_TILE(0), WGMMA_TILE(1)
#define WGMMA_SUMS4 WGMMA_SUMS2, WGMMA_TILE(2), WGMMA_TILE(3)
#define WGMMA_SUMS6 WGMMA_SUMS4, WGMMA_TILE(4), WGMMA_TILE(5)
#define WGMMA_SUMS8 WGMMA_SUMS6, WGMMA_TILE(6), WGMMA_TILE(7)
#define WGMMA_SUMS10 WGMMA_SUMS8, WGMMA_TILE(8), WGMMA_TILE(9)
#define WGMMA_SUMS12 WGMMA_SUMS10, WGMMA_TILE(10), WGMMA_TILE(11)
#define WGMMA_SUMS14 WGMMA_SUMS12, WGMMA_TILE(12), WGMMA_TILE(13)
#define WGMMA_SUMS16 WGMMA_SUMS14, WGMMA_TILE(14), WGMMA_TILE(15)
#define WGMMA_SUMS18 WGMMA_SUMS16, WGMMA_TILE(16), WGMMA_TILE(17)
#define WGMMA_SUMS20 WGMMA_SUMS18, WGMMA_TILE(18), WGMMA_TILE(19)
#define WGMMA_SUMS22 WGMMA_SUMS20, WGMMA_TILE(20), WGMMA_TILE(21)
#define WGMMA_SUMS24 WGMMA_SUMS22, WGMMA_TILE(22), WGMMA_TILE(23)
#define WGMMA_SUMS26 WGMMA_SUMS24, WGMMA_TILE(24), WGMMA_TILE(25)
#define WGMMA_SUMS28 WGMMA_SUMS26, WGMMA_TILE(26), WGMMA_TILE(27)
#define WGMMA_SUMS30 WGMMA_SUMS28, WGMMA_TILE(28), WGMMA_TILE(29)
#define WGMMA_SUMS32 WGMMA_SUMS30, WGMMA_TILE(30), WGMMA_TILE(31)
// `columns`, and the numbers of the operands that follow 4 NT sums.
#define WGMMA(NT, columns, a0, a1, a2, a3, desc)                                                     \
    asm volatile("{ .reg .pred add; setp.eq.u32 add, 0, 0; "                                         \
                 "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.f16.f16 {" WGMMA_D##NT "}, "  \
                 "{%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #desc ", add, 1, 1, 0; }"             \
                 : WGMMA_SUMS##NT                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

// `d[n]` += (16 rows of this warp) x (columns 8 n ..+8), in the background.
template <uint32_t NT> DEVICE void wgmma(float (&d)[NT][4], const uint32_t (&a)[4], uint64_t b) {
    static_assert(NT % 2 == 0 && (NT <= 16 || NT == 24 || NT == 32), "columns of a product");
    if constexpr (NT == 2) WGMMA(2, 16, 8, 9, 10, 11, 12);
    if constexpr (NT == 4) WGMMA(4, 32, 16, 17, 18, 19, 20);
    if constexpr (NT == 6) WGMMA(6, 48, 24, 25, 26, 27, 28);
    if constexpr (NT == 8) WGMMA(8, 64, 32, 33, 34, 35, 36);
    if constexpr (NT == 10) WGMMA(10, 80, 40, 41, 42, 43, 44);
    if constexpr (NT == 12) WGMMA(12, 96, 48, 49, 50, 51, 52);
    if constexpr (NT == 14) WGMMA(14, 112, 56, 57, 58, 59, 60);
    if constexpr (NT == 16) WGMMA(16, 128, 64, 65, 66, 67, 68);
    if constexpr (NT == 24) WGMMA(24, 192, 96, 97, 98, 99, 100);
    if constexpr (NT == 32) WGMMA(32, 256, 128, 129, 130, 131, 132);
}

#else

DEVICE void shared_written() {}
DEVICE uint64_t wgmma_columns(const void*) { return 0; }
DEVICE void wgmma_fence(uint32_t (&)[2][4]) {}
DEVICE void wgmma_commit() {}
template <int PENDING> DEVICE void wgmma_wait() {}
template <uint32_t MT, uint32_t NT> DEVICE void wgmma_sums(float (&)[MT][NT][4]) {}
template <uint32_t NT> DEVICE void wgmma(float (&)[NT][4], const uint32_t (&)[4], uint64_t) {}

#endif
#endif
