// Products by a whole warpgroup (four warps, 128 threads) on GPUs of compute capability 9.0, and what
// orders the threads around them.
//
// Operands in shared memory are tiles of rows of 64 halves, 128 bytes, one after the other, whose eight
// pieces of 16 bytes are permuted by the row (`tile_piece`); a tile begins at a multiple of 1,024 bytes.
// Of a product of 64 rows warp w of the group has rows 16 w .. 16 w + 15: with g = lane / 4 and t = lane % 4
// its register 4 j + i is row g + 8 (i / 2), column 8 j + 2 t + i % 2. A in registers is as for
// `mma_m16n8k16_f16`.
//
// A product runs in the background, between `products_begin` and `products_wait`: until then its
// operands must stay as they are, in registers too.
#pragma once

#include "memory.cuh"
#include "numbers.cuh"

// Bytes of a row of a tile.
#define TILE_ROW 128u

// Where piece `piece` (0..8) of a row lies in its tile.
DEVICE uint32_t tile_piece(uint32_t row, uint32_t piece) { return row * TILE_ROW + ((piece ^ row) & 7u) * 16u; }

#ifdef CUDA_EMULATOR

#include "../../emulator/wgmma.h"

#else

// Whether this code is for a GPU that has these products; for others it is left out.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HAS_WARPGROUPS 1
#else
#define HAS_WARPGROUPS 0
#endif

// The body of a kernel that was left out.
DEVICE void no_warpgroups() { asm volatile("trap;"); }


// Names a tile to a product. Rows are eights of 1,024 bytes. If columns of the product are values of rows
// (transposed), the next 64 of them are `next` bytes further. Adding n moves it by 16 n bytes.
DEVICE uint64_t tile_operand(const void* tile, uint32_t next) {
    return static_cast<uint64_t>((shared_address(tile) & 0x3ffffu) >> 4) | static_cast<uint64_t>(next >> 4) << 16 |
           static_cast<uint64_t>(1024u >> 4) << 32 | 1ull << 62;
}

// Before the first of some products: registers that they use are as they should be.
DEVICE void products_begin() {
#if HAS_WARPGROUPS
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
// Ends a group of products.
DEVICE void products_commit() {
#if HAS_WARPGROUPS
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Waits for all groups but the last `PENDING`.
template <int PENDING> DEVICE void products_wait() {
#if HAS_WARPGROUPS
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#endif
}
// Keeps the compiler from moving what uses these registers over this place.
template <uint32_t N> DEVICE void products_keep(float (&d)[N]) {
#pragma unroll
    for (uint32_t i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

#define ATTENTION_D4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define ATTENTION_D16(d, i) ATTENTION_D4(d, i), ATTENTION_D4(d, i + 4), ATTENTION_D4(d, i + 8), ATTENTION_D4(d, i + 12)
#define ATTENTION_D32(d, i) ATTENTION_D16(d, i), ATTENTION_D16(d, i + 16)
#define ATTENTION_D128(d) ATTENTION_D32(d, 0), ATTENTION_D32(d, 32), ATTENTION_D32(d, 64), ATTENTION_D32(d, 96)

// `d = [d +] a b`, 64 rows of A, 64 columns (rows of the tile `b`), 16 values.
DEVICE void wgmma_n64(float (&d)[32], uint64_t a, uint64_t b, bool add) {
#if HAS_WARPGROUPS
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "%32, %33, add, 1, 1, 0, 0;\n}"
        : ATTENTION_D32(d, 0)
        : "l"(a), "l"(b), "r"(add ? 1 : 0));
#endif
}
// The same with A in registers.
DEVICE void wgmma_n64(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool add) {
#if HAS_WARPGROUPS
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, add, 1, 1, 0;\n}"
        : ATTENTION_D32(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0));
#endif
}
// `d += a b`, 64 rows of A, 256 columns: values of the 16 rows of the tile `b` and of its neighbours.
DEVICE void wgmma_n256_transposed(float (&d)[128], const uint32_t (&a)[4], uint64_t b) {
#if HAS_WARPGROUPS
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
        "{%128, %129, %130, %131}, %132, 1, 1, 1, 1;"
        : ATTENTION_D128(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

// What this thread wrote to shared memory can be read by products of whoever is told so afterwards.
DEVICE void writes_for_products() {
#if HAS_WARPGROUPS
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// A gate in shared memory: opens each time that `count` threads have arrived.
DEVICE void gate_init(uint64_t* gate, uint32_t count) {
#if HAS_WARPGROUPS
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(gate)), "r"(count) : "memory");
#endif
}
DEVICE void gate_arrive(uint64_t* gate) {
#if HAS_WARPGROUPS
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(gate)) : "memory");
#endif
}
// Waits until it has opened once more than an even (0) or an odd (1) number of times.
DEVICE void gate_wait(uint64_t* gate, uint32_t parity) {
#if HAS_WARPGROUPS
    asm volatile(
        "{\n.reg .pred open;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 open, [%0], %1;\n"
        "@open bra done;\n"
        "bra again;\n"
        "done:\n}"
        ::"r"(shared_address(gate)), "r"(parity)
        : "memory");
#endif
}

// Registers of each thread of this warpgroup from here on, a multiple of 8.
template <int N> DEVICE void registers_give_back() {
#if HAS_WARPGROUPS
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}
template <int N> DEVICE void registers_take() {
#if HAS_WARPGROUPS
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

// Two e4m3 codes as halves, the low one first.
DEVICE uint32_t e4m3x2_to_f16x2(uint32_t codes) {
    uint32_t r = 0;
#if HAS_WARPGROUPS
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"(static_cast<uint16_t>(codes)));
#endif
    return r;
}

#endif
