// How weights lie in GPU memory: a file's blocks taken apart into planes that a warp reads at full
// width. Sizes are those of the file but for padding.
//
// Rust's twin is src/device/cuda/layout.rs (`Weight`, `Planes`): sizes, offsets and every index below are
// compared with it by test, and each repack kernel with a repack in Rust.
//
// A stack of `stack` matrices `[rows, cols]` has up to three planes. Matrix `m` of plane `i` begins at
// `plane[i] + m * stride[i]`; both are multiples of WEIGHT_ALIGN. A plane that a format lacks is null.
//
//   F32, F16, BF16  plane 0: rows one after the other, as in the file.
//
//   Q8_0            plane 0: quants in tiles of 16 rows x 32 columns (512 bytes), in the order in which
//                   a warp feeds mma.m16n8k32's A operand: lane `l` owns 16 bytes,
//                     bytes  0.. 3  row l/4,      columns 4(l%4) .. +4
//                     bytes  4.. 7  row l/4 + 8,  columns 4(l%4) .. +4
//                     bytes  8..11  row l/4,      columns 16 + 4(l%4) .. +4
//                     bytes 12..15  row l/4 + 8,  columns 16 + 4(l%4) .. +4
//                   Tiles run along the columns first. Rows past the last are zero quants.
//                   plane 1: scales (f16). For 16 rows x 4 blocks of 32 columns, 128 bytes: row pair
//                   `g` (rows g and g + 8) owns 16 bytes, [block 0..4][row g, row g + 8]. Groups of
//                   four blocks run along the columns first. Missing rows and blocks have scale zero.
//
//   IQ2_XXS         plane 0: codes, 64 bytes a block: eight groups of 32 values, each `u32 a` (four
//                   grid indices), `u32 b` (four 7-bit sign indices, then a 4-bit scale). Rows one
//                   after the other.
//                   plane 1: d (f16), row after row, `iq2_xxs_d_row` halves each. Within each full run
//                   of 16 blocks, block `8h + i` is at `2i + h`, so that a lane that works on blocks i
//                   and 8 + i reads one u32; blocks after the last full run are in order.
//
//   Q2_K            plane 0: quants, 64 bytes a block, as in the file.
//                   plane 1: scales and minima, 16 bytes a block: the byte of 16 values that the file
//                   has at `8h + 2j + k` is at `4(2h + k) + j`, so that whoever holds quant bytes
//                   `32h + 16k .. +16` finds the four that belong to it in one u32, j = 0 lowest.
//                   plane 2: d and dmin (f16 each), 4 bytes a block.
//
//   Q4_K            plane 0: quants, 128 bytes a block, as in the file.
//                   plane 1: the block's first 16 bytes: d, dmin (f16), twelve bytes of scales.
#pragma once

#ifndef __CUDACC_RTC__
#include <stddef.h>
#include <stdint.h>
#endif

#ifdef __CUDACC__
#define LAYOUT_FN static __host__ __device__ __forceinline__
#else
#define LAYOUT_FN static inline
#endif

// Every matrix of every plane begins at a multiple of this.
#define WEIGHT_ALIGN 256u

// Block formats; the numbers are ours, not GGUF's.
enum WeightFormat {
    WEIGHT_F32 = 0,
    WEIGHT_F16 = 1,
    WEIGHT_BF16 = 2,
    WEIGHT_Q8_0 = 3,
    WEIGHT_Q2_K = 4,
    WEIGHT_Q4_K = 5,
    WEIGHT_IQ2_XXS = 6,
};

// A weight as a kernel's parameter.
struct Weight {
    const uint8_t* plane[3];
    uint64_t stride[3];
    uint32_t format;
    uint32_t stack;
    uint32_t rows;
    uint32_t cols;
};

// Tiles of Q8_0 quants: bytes of one, its rows and columns.
#define Q8_0_TILE_BYTES 512u
#define Q8_0_TILE_ROWS 16u
#define Q8_0_TILE_COLS 32u
// A group of Q8_0 scales: 16 rows x 4 blocks.
#define Q8_0_SCALES_BYTES 128u

// Row tiles of a matrix.
LAYOUT_FN uint64_t q8_0_row_tiles(uint32_t rows) { return (rows + 15u) / 16u; }

// Offset in plane 0 of the tile of rows `16 tile ..` and block `block` of 32 columns.
LAYOUT_FN uint64_t q8_0_tile(uint32_t cols, uint64_t tile, uint32_t block) {
    return (tile * (cols / 32u) + block) * Q8_0_TILE_BYTES;
}

// Offset in a tile of the quant at `row` (below 16), `col` (below 32).
LAYOUT_FN uint32_t q8_0_in_tile(uint32_t row, uint32_t col) {
    uint32_t lane = (row % 8u) * 4u + (col % 16u) / 4u;
    return lane * 16u + (col / 16u) * 8u + (row / 8u) * 4u + col % 4u;
}

// Offset in plane 1 of the scales of rows `16 tile ..` and blocks `4 four ..`.
LAYOUT_FN uint64_t q8_0_scales(uint32_t cols, uint64_t tile, uint32_t four) {
    return (tile * ((cols / 32u + 3u) / 4u) + four) * Q8_0_SCALES_BYTES;
}

// Offset in such a group of the scale of `row` (below 16) and `block` (below 4).
LAYOUT_FN uint32_t q8_0_in_scales(uint32_t row, uint32_t block) {
    return (row % 8u) * 16u + block * 4u + (row / 8u) * 2u;
}

// Halves in a row of IQ2_XXS d's: even, so that a row is whole words.
LAYOUT_FN uint32_t iq2_xxs_d_row(uint32_t cols) { return (cols / 256u + 1u) / 2u * 2u; }

// Index in its row of the d of `block`, of `blocks` in the row.
LAYOUT_FN uint32_t iq2_xxs_d_at(uint32_t blocks, uint32_t block) {
    uint32_t run = block / 16u * 16u;
    return run + 16u <= blocks ? run + 2u * (block % 8u) + block % 16u / 8u : block;
}

// Index in its block's scales of the byte that the file has at `sixteen`.
LAYOUT_FN uint32_t q2_k_scale_at(uint32_t sixteen) {
    return 4u * (sixteen / 8u * 2u + sixteen % 2u) + sixteen / 2u % 4u;
}
