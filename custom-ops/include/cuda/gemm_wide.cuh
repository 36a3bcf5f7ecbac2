// Products on Hopper's matrix units (9.0 only): as gemm.cuh's, but a warp's 16 rows meet up to 256 tokens
// in one instruction, which runs while the next weights are decoded.
//
// Halves of x are in the order of a HALVES_FOR_WGMMA: what gemm.cuh has in a lane's eight halves (of 32
// columns) lies where the two instructions' A registers of that lane have their columns.
#pragma once

#include "gemm.cuh"
#include "wgmma.cuh"

// Chunks of activations in shared memory: two under way, one that is multiplied, and one that products of the
// last chunk may still read. Of weights there are as many, or two blocks of four.
#define GEMM_WIDE_STAGES 4u
template <uint32_t FORMAT> DEVICE constexpr uint32_t gemm_wide_ring() { return Rows16<FORMAT>::SPAN == 1 ? 4u : 2u; }

// Bytes of `stages` below: activations, then each warp's weights.
template <uint32_t FORMAT, uint32_t MT, uint32_t NT, uint32_t WARPS> DEVICE constexpr uint32_t gemm_wide_bytes() {
    return GEMM_WIDE_STAGES * NT * 8u * GEMM_TOKEN_BYTES +
           gemm_wide_ring<FORMAT>() * WARPS * MT * Rows16<FORMAT>::STAGED;
}

// `acc[m][n]` += (16 rows of weights m) x (8 tokens n), over all columns, as multiply_tiles. `stages` lies at
// a multiple of 1,024.
template <uint32_t FORMAT, uint32_t MT, uint32_t NT, uint32_t WARPS, class X>
DEVICE void multiply_tiles_wide(const Rows16<FORMAT> (&rows)[MT], uint32_t cols, X x_of, unsigned char* stages,
                                const uint32_t* tables, float (&acc)[MT][NT][4]) {
    constexpr uint32_t STAGE = NT * 8u * GEMM_TOKEN_BYTES, PIECES = NT * 64u, THREADS = WARPS * 32u;
    constexpr uint32_t MINE = (PIECES + THREADS - 1u) / THREADS;
    constexpr uint32_t STAGED = Rows16<FORMAT>::STAGED, SPAN = Rows16<FORMAT>::SPAN, RING = gemm_wide_ring<FORMAT>();
    const uint32_t chunks = cols / 64u;
    unsigned char* weights = stages + GEMM_WIDE_STAGES * STAGE + warp_id() * (RING * MT * STAGED);

    // Sixteen bytes of a token's 128. A token that is not there is not read; an address that is stands in
    // for its own.
    const uint32_t part = threadIdx.x % 8u, first = threadIdx.x / 8u;
    const uint32_t to = first * GEMM_TOKEN_BYTES + swizzled_piece(first, part) * 16u;
    const uint16_t* from[MINE];
    uint32_t there = 0;
#pragma unroll
    for (uint32_t i = 0; i < MINE; i++) {
        const uint32_t n = first + i * (THREADS / 8u);
        const uint16_t* x = n < NT * 8u ? x_of(n) : nullptr;
        there |= x != nullptr ? 1u << i : 0u;
        from[i] = (x != nullptr ? x : x_of(0)) + part * 8u;
    }
    const auto copy = [&](uint32_t chunk) {
        if (chunk < chunks) {
            unsigned char* stage = stages + chunk % GEMM_WIDE_STAGES * STAGE + to;
#pragma unroll
            for (uint32_t i = 0; i < MINE; i++) {
                if ((i + 1u) * THREADS <= PIECES || first + i * (THREADS / 8u) < NT * 8u) {
                    copy16_async_or_zero(stage + i * (THREADS * 16u), from[i] + chunk * 64u, there >> i & 1u);
                }
            }
            if (chunk % SPAN == 0) {
#pragma unroll
                for (uint32_t m = 0; m < MT; m++) {
                    rows[m].copy(weights + (chunk / SPAN % RING * MT + m) * STAGED, chunk);
                }
            }
        }
        copy_commit();
    };

#pragma unroll
    for (uint32_t i = 0; i + 2 < GEMM_WIDE_STAGES; i++) copy(i);
    // Registers of a product are left alone until it is done: two sets take turns.
    uint32_t a[2][2][4];
    const uint64_t columns = wgmma_columns(stages);
    for (uint32_t chunk = 0; chunk < chunks; chunk++) {
        copy_wait<GEMM_WIDE_STAGES - 3>();
        shared_written();
        __syncthreads();
        // Here all warps have waited for the products of the chunk before last.
        copy(chunk + GEMM_WIDE_STAGES - 2u);
        const unsigned char* block_of = weights + chunk / SPAN % RING * (MT * STAGED);
        const uint64_t b = columns + chunk % GEMM_WIDE_STAGES * (STAGE / 16u);
        typename Rows16<FORMAT>::Chunk now[MT];
#pragma unroll
        for (uint32_t step = 0; step < 2u * MT; step++) {
            const uint32_t block = step / MT, m = step % MT;
            if (block == 0) rows[m].take(now[m], block_of + m * STAGED, chunk);
            wgmma_wait<1>();
            rows[m].decode(now[m], chunk, block, tables, a[step % 2u]);
            wgmma_fence(a[step % 2u]);
            // Sixteen halves of k are 32 bytes.
            wgmma(acc[m], a[step % 2u][0], b + 4u * block);
            wgmma(acc[m], a[step % 2u][1], b + 4u * block + 2u);
            wgmma_commit();
        }
    }
    wgmma_wait<0>();
    wgmma_sums(acc);
    copy_wait<0>();
    __syncthreads();
}
