// The matrix units: a warp multiplies a 16-row by an 8-column tile. `g` is lane / 4, `t` lane % 4.
//
// A's register i holds row `g + 8 (i % 2)`, columns of half `i / 2`; B's register i column `g`, rows of
// half i; D is {row g, columns 2t and 2t + 1}, {row g + 8, the same}.
#pragma once

#include "warp.cuh"

#ifndef CUDA_EMULATOR

// `d += a b`, halves into floats: a half is columns (rows of B) `8 i + 2t, + 1`.
DEVICE void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// `d = a b`, signed bytes into integers: a half is columns (rows of B) `16 i + 4t ..+ 3`.
DEVICE void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %10, %10, %10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(0));
}

// Four 8 x 8 tiles of halves out of shared memory: lane l names row l % 8 of tile l / 8 (16 bytes, at a
// multiple of 16), and gets columns 2t, 2t + 1 of row g of each; transposed: rows 2t, 2t + 1 of column g.
DEVICE void load_tiles(uint32_t (&r)[4], const void* row) {
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
DEVICE void load_tiles_transposed(uint32_t (&r)[4], const void* row) {
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

#endif
