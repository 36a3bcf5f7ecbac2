// Which tiles of which weights a block of a product of few tokens has.
#pragma once

#include "cluster.cuh"
#include "matmul.h"

// Which tile, of which weight.
struct Tile {
    uint32_t part;
    uint32_t tile;  // in its weight
};

DEVICE bool is_f16(const MatmulParams& p, const Tile& at) { return p.w[at.part].format == WEIGHT_F16; }

// A block's tiles, of all weights one after the other.
struct Run {
    uint32_t first, last;
};

// The weights one after the other, a weight a lane: all lanes of a warp must ask together.
class Parts {
   public:
    DEVICE_MEMBER explicit Parts(const MatmulParams& p) {
        const uint32_t part = min(lane_id(), p.parts - 1u);
        end_ = p.tile_end[part];
        begin_ = part == 0 ? 0u : p.tile_end[part - 1u];
        heft_begin_ = part == 0 ? 0u : p.heft_end[part - 1u];
        heft_ = p.heft_end[p.parts - 1u];
        each_ = p.w[part].format == WEIGHT_F16 ? 2u : 1u;
        last_ = p.parts - 1u;
    }

    // The tile at `index`, the same for all lanes.
    DEVICE_MEMBER Tile find(uint32_t index) const {
        const uint32_t part = last_ == 0 ? 0u : min(bit_count(warp_ballot(lane_id() < last_ && index >= end_)), last_);
        return {part, index - shuffle(begin_, part)};
    }

    // The tile at each lane's own `index`.
    DEVICE_MEMBER Tile find_own(uint32_t index) const {
        Tile at = {0, index};
        for (uint32_t i = 0; i < last_; i++) {
            const uint32_t end = shuffle(end_, i);
            if (index >= end) at = {i + 1u, index - end};
        }
        return at;
    }

    // Blocks have the same number of bytes, as far as whole tiles allow.
    DEVICE_MEMBER Run run(uint32_t block, uint32_t blocks) const {
        return {tile_from(heft_ * block / blocks), tile_from(heft_ * (block + 1u) / blocks)};
    }

   private:
    uint32_t end_, begin_, heft_begin_, heft_, each_, last_;

    // The first tile that begins at or after `heft`.
    DEVICE_MEMBER uint32_t tile_from(uint32_t heft) const {
        const uint32_t part = bit_count(warp_ballot(lane_id() != 0 && lane_id() <= last_ && heft >= heft_begin_));
        return min(shuffle(begin_ + (heft - heft_begin_ + each_ - 1u) / each_, part), shuffle(end_, last_));
    }
};

// The columns of this block: a run of them if it is one of a cluster.
struct Columns {
    uint32_t first;
    uint32_t count;
};

DEVICE Columns columns_of_block(const MatmulParams& p) {
    const uint32_t first = min(cluster_rank() * p.block_cols, p.w[0].cols);
    return {first, min(p.block_cols, p.w[0].cols - first)};
}
