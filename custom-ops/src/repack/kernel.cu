// A file's blocks to planes, a chunk of rows at a time: layout.h says where everything goes.
//
// A thread writes 16 bytes of quants, so that a warp's stores are whole lines; its loads are two bytes
// wide because blocks are only that much aligned. The copy from the host is slower than either.

#include "cuda/memory.cuh"
#include "cuda/layout.h"

struct RepackParams {
    const uint8_t* blocks;  // of the chunk
    Weight weight;
    uint32_t matrix;
    uint32_t first_row;  // of the chunk in its matrix, a multiple of 16
    uint32_t rows;       // of the chunk
};

// Four bytes from a place that is aligned to two.
__device__ static inline uint32_t word_at(const uint8_t* bytes) {
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(bytes);
    return halves[0] | uint32_t(halves[1]) << 16;
}

__device__ static inline uint32_t half_at(const uint8_t* bytes) {
    return *reinterpret_cast<const uint16_t*>(bytes);
}

__device__ static inline void copy16(uint8_t* to, const uint8_t* from) {
    uint32_t* words = reinterpret_cast<uint32_t*>(to);
    for (uint32_t i = 0; i < 4; i++) words[i] = word_at(from + 4 * i);
}

__device__ static inline uint8_t* plane(const RepackParams& p, int i) {
    return const_cast<uint8_t*>(p.weight.plane[i]) + p.matrix * p.weight.stride[i];
}

KERNEL(repack_q8_0, RepackParams, 256) {
    pdl_wait();
    const uint32_t blocks = p.weight.cols / 32;
    const uint64_t thread = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const uint32_t lane = thread % 32, block = thread / 32 % blocks, tile = thread / 32 / blocks;
    if (tile * 16 >= p.rows) return;
    const uint64_t to_tile = p.first_row / 16 + tile;

    const uint32_t row = tile * 16 + lane / 4, col = 4 * (lane % 4);
    uint32_t words[4] = {0, 0, 0, 0};
    for (uint32_t half = 0; half < 2; half++) {
        if (row + 8 * half >= p.rows) break;
        const uint8_t* from = p.blocks + (uint64_t(row + 8 * half) * blocks + block) * 34 + 2;
        words[half] = word_at(from + col);
        words[2 + half] = word_at(from + 16 + col);
    }
    uint32_t* to = reinterpret_cast<uint32_t*>(
        plane(p, 0) + q8_0_tile(p.weight.cols, to_tile, block) + lane * 16);
    for (uint32_t i = 0; i < 4; i++) to[i] = words[i];

    // Lanes 0 .. 7 of every fourth block write the scales of rows lane, lane + 8 and four blocks.
    if (block % 4 != 0 || lane >= 8) return;
    uint32_t* scales = reinterpret_cast<uint32_t*>(
        plane(p, 1) + q8_0_scales(p.weight.cols, to_tile, block / 4) + lane * 16);
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t pair = 0;
        for (uint32_t half = 0; half < 2; half++) {
            const uint32_t of = tile * 16 + lane + 8 * half;
            if (of >= p.rows || block + i >= blocks) continue;
            pair |= half_at(p.blocks + (uint64_t(of) * blocks + block + i) * 34) << (16 * half);
        }
        scales[i] = pair;
    }
}

KERNEL(repack_q2_k, RepackParams, 256) {
    pdl_wait();
    const uint32_t blocks = p.weight.cols / 256;
    const uint64_t thread = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const uint64_t block = thread / 4;  // of the chunk
    const uint32_t quarter = thread % 4;
    if (block >= uint64_t(p.rows) * blocks) return;
    const uint8_t* from = p.blocks + block * 84;
    const uint64_t to = uint64_t(p.first_row) * blocks + block;
    copy16(plane(p, 0) + to * 64 + quarter * 16, from + 16 + quarter * 16);
    // Four scales whose place is this quarter's word.
    uint32_t scales = 0;
    for (uint32_t sixteen = 0; sixteen < 16; sixteen++) {
        const uint32_t at = q2_k_scale_at(sixteen);
        if (at / 4 == quarter) scales |= uint32_t(from[sixteen]) << (8 * (at % 4));
    }
    reinterpret_cast<uint32_t*>(plane(p, 1) + to * 16)[quarter] = scales;
    if (quarter == 0) *reinterpret_cast<uint32_t*>(plane(p, 2) + to * 4) = word_at(from + 80);
}

KERNEL(repack_q4_k, RepackParams, 256) {
    pdl_wait();
    const uint32_t blocks = p.weight.cols / 256;
    const uint64_t thread = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const uint64_t block = thread / 8;
    const uint32_t eighth = thread % 8;
    if (block >= uint64_t(p.rows) * blocks) return;
    const uint8_t* from = p.blocks + block * 144;
    const uint64_t to = uint64_t(p.first_row) * blocks + block;
    copy16(plane(p, 0) + to * 128 + eighth * 16, from + 16 + eighth * 16);
    if (eighth == 0) copy16(plane(p, 1) + to * 16, from);
}

KERNEL(repack_iq2_xxs, RepackParams, 256) {
    pdl_wait();
    const uint32_t blocks = p.weight.cols / 256;
    const uint64_t thread = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const uint64_t block = thread / 4;
    const uint32_t quarter = thread % 4;
    if (block >= uint64_t(p.rows) * blocks) return;
    const uint8_t* from = p.blocks + block * 66;
    const uint64_t to = uint64_t(p.first_row) * blocks + block;
    copy16(plane(p, 0) + to * 64 + quarter * 16, from + 2 + quarter * 16);
    if (quarter != 0) return;
    const uint64_t row = p.first_row + block / blocks;
    const uint64_t d = row * iq2_xxs_d_row(p.weight.cols) + iq2_xxs_d_at(blocks, block % blocks);
    reinterpret_cast<uint16_t*>(plane(p, 1))[d] = uint16_t(half_at(from));
}
