// The wrappers of include/cuda/wgmma_attention.cuh for kernels that run as fibers on a CPU.
//
// A product happens when it is waited for, not before: a tile that is overwritten too early, and
// registers that are read too early, are seen.
#pragma once

#define HAS_WARPGROUPS 1

namespace cuda_emulator {

/// A product that has begun. Tiles are offsets in shared memory, as on the device.
struct TileProduct {
    float* d;
    uint32_t a[4];
    uint64_t of_a, of_b;
    uint32_t columns;
    bool a_in_registers, transposed, add;
};

/// A thread's products in the background: closed groups, oldest first, and the open one.
struct TileProducts {
    std::deque<std::vector<TileProduct>> groups;
    std::vector<TileProduct> open;
};

/// A half of an operand, at `offset` bytes from the named one if nothing were permuted.
inline float half_of(uint64_t operand, uint32_t offset) {
    uint32_t at = uint32_t(operand & 0x3fff) * 16 + offset;
    at ^= (at >> 7 & 7) << 4;
    uint16_t bits;
    memcpy(&bits, static_cast<const char*>(emulator::shared_memory()) + at, 2);
    return f16_to_f32(bits);
}

/// One warp's 16 rows.
inline void multiply(const TileProduct* in, uint32_t, char* out) {
    const TileProduct& all = in[0];
    const uint32_t warp = emulator::warp_index() % 4;
    float a[16][16];
    for (uint32_t l = 0; l < 32; l++) {
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t row = l / 4 + 8 * (i % 2), k = 8 * (i / 2) + 2 * (l % 4);
            if (all.a_in_registers) {
                const float2 two = unpack_f16x2(in[l].a[i]);
                a[row][k] = two.x;
                a[row][k + 1] = two.y;
            } else {
                const uint32_t r = 16 * warp + row;
                for (uint32_t j = 0; j < 2; j++) a[row][k + j] = half_of(all.of_a, r * 128 + (k + j) * 2);
            }
        }
    }
    const uint32_t next = uint32_t(all.of_b >> 16 & 0x3fff) * 16;
    for (uint32_t column = 0; column < all.columns; column++) {
        float b[16];
        for (uint32_t k = 0; k < 16; k++) {
            b[k] = half_of(all.of_b, all.transposed ? column / 64 * next + k * 128 + column % 64 * 2 : column * 128 + k * 2);
        }
        for (uint32_t row = 0; row < 16; row++) {
            float& d = in[row % 8 * 4 + column % 8 / 2].d[column / 8 * 4 + row / 8 * 2 + column % 2];
            float sum = all.add ? d : 0.0f;
            for (uint32_t k = 0; k < 16; k++) sum += a[row][k] * b[k];
            d = sum;
        }
    }
    memset(out, 0, 32);
}

inline void begin(const TileProduct& product) { emulator::thread_state<TileProducts>().open.push_back(product); }

}  // namespace cuda_emulator

DEVICE uint64_t tile_operand(const void* tile, uint32_t next) {
    const auto at = static_cast<const char*>(tile) - static_cast<const char*>(emulator::shared_memory());
    if (at % 16 || at < 0 || at >= 0x40000) emulator::fail("a tile at %td in shared memory", at);
    return uint64_t(at) >> 4 | uint64_t(next >> 4) << 16;
}
DEVICE void products_begin() {}
DEVICE void products_commit() {
    auto& products = emulator::thread_state<cuda_emulator::TileProducts>();
    products.groups.push_back(std::move(products.open));
    products.open.clear();
}
template <int PENDING>
DEVICE void products_wait(emulator::Site site = emulator::Site::here()) {
    auto& products = emulator::thread_state<cuda_emulator::TileProducts>();
    while (products.groups.size() > PENDING) {
        for (const auto& product : products.groups.front()) {
            emulator::warp_meet<char>(emulator::ALL_LANES, product, cuda_emulator::multiply, site);
        }
        products.groups.pop_front();
    }
}
template <uint32_t N>
DEVICE void products_keep(float (&)[N]) {}

DEVICE void wgmma_n64(float (&d)[32], uint64_t a, uint64_t b, bool add) {
    cuda_emulator::begin({d, {}, a, b, 64, false, false, add});
}
DEVICE void wgmma_n64(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool add) {
    cuda_emulator::begin({d, {a[0], a[1], a[2], a[3]}, 0, b, 64, true, false, add});
}
DEVICE void wgmma_n256_transposed(float (&d)[128], const uint32_t (&a)[4], uint64_t b) {
    cuda_emulator::begin({d, {a[0], a[1], a[2], a[3]}, 0, b, 256, true, true, true});
}

DEVICE void writes_for_products() {}

// Of a gate: threads that open it (16 bits), those still missing (16 bits), how often it has opened.
DEVICE void gate_init(uint64_t* gate, uint32_t count) { *gate = uint64_t(count) | uint64_t(count) << 16; }
DEVICE void gate_arrive(uint64_t* gate) {
    const uint64_t count = *gate & 0xffff, missing = (*gate >> 16 & 0xffff) - 1, opened = *gate >> 32;
    *gate = missing ? count | missing << 16 | opened << 32 : count | count << 16 | (opened + 1) << 32;
}
DEVICE void gate_wait(uint64_t* gate, uint32_t parity, emulator::Site site = emulator::Site::here()) {
    emulator::wait_until([=] { return (*gate >> 32 & 1) != parity; }, site);
}

namespace cuda_emulator {

/// Registers that threads of a block have given back, of those that each had in the beginning.
struct Pool {
    int of_thread = int(65536 / emulator::block_extent().count() / 8 * 8), free = 0;
};

}  // namespace cuda_emulator

template <int N>
DEVICE void registers_give_back() {
    auto& pool = emulator::block_state<cuda_emulator::Pool>();
    pool.free += pool.of_thread - N;
}
template <int N>
DEVICE void registers_take(emulator::Site site = emulator::Site::here()) {
    auto& pool = emulator::block_state<cuda_emulator::Pool>();
    emulator::wait_until([&pool] { return pool.free >= N - pool.of_thread; }, site);
    pool.free -= N - pool.of_thread;
}

DEVICE uint32_t e4m3x2_to_f16x2(uint32_t codes) {
    const auto half = [](uint32_t code) -> uint32_t {
        const uint32_t sign = (code & 0x80) << 8;
        if ((code & 0x7f) == 0x7f) return sign | 0x7fff;
        const uint32_t exponent = code >> 3 & 15, mantissa = code & 7;
        const float value = exponent ? std::ldexp(float(8 + mantissa), int(exponent) - 10) : std::ldexp(float(mantissa), -9);
        return sign | f32_to_f16(value);
    };
    return half(codes & 255) | half(codes >> 8 & 255) << 16;
}
