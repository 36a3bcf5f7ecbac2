// Tests of fibers.h: c++ -std=c++17 -O1 fibers_test.cpp && ./a.out; also with -fsanitize=address,undefined.
#include "fibers.h"

#include <cmath>

using namespace emulator;

static int failures = 0;

#define CHECK(condition)                                               \
    do {                                                               \
        if (!(condition)) {                                            \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition);    \
            failures++;                                                \
        }                                                              \
    } while (0)

static bool has(const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
}

static Launch shape(unsigned blocks, unsigned threads, uint64_t seed) {
    Launch launch;
    launch.grid = {blocks, 1, 1};
    launch.block = {threads, 1, 1};
    launch.seed = seed;
    return launch;
}

/// A tree sum in shared memory; `barriers` false leaves the races in.
static std::vector<int> block_sums(uint64_t seed, bool barriers) {
    std::vector<int> out(3, -1);
    Launch launch = shape(3, 96, seed);
    launch.shared_bytes = 96 * sizeof(int);
    std::string fault = run(launch, [&] {
        int* shared = static_cast<int*>(shared_memory());
        unsigned t = thread_index().x;
        shared[t] = int(t + 1000 * block_index().x);
        if (barriers) barrier();
        int sum = 0;
        for (unsigned i = 0; i < 96; i++) sum += shared[i];
        if (t == 17) out[block_index().x] = sum;
    });
    CHECK(fault.empty());
    return out;
}

static void threads_meet_at_barriers() {
    for (uint64_t seed : {0, 1, 2, 99}) {
        CHECK((block_sums(seed, true) == std::vector<int>{4560, 100560, 196560}));
    }
    CHECK(block_sums(1, false) != block_sums(2, false) || block_sums(3, false) != block_sums(4, false));
}

static void lanes_meet() {
    for (uint64_t seed : {0, 5, 6}) {
        // 40 threads: the second warp has 8 lanes.
        std::string fault = run(shape(2, 40, seed), [&] {
            unsigned lane = lane_index(), warp = warp_index();
            float sum = reduce(ALL_LANES, float(lane), [](float a, float b) { return a + b; });
            CHECK(sum == (warp == 0 ? 496.0f : 28.0f));
            unsigned next = shuffle(ALL_LANES, lane, lane ^ 1);
            CHECK(next == (lane ^ 1));
            CHECK(shuffle(ALL_LANES, lane, 31) == (warp == 0 ? 31u : lane));
            CHECK(ballot(ALL_LANES, lane % 3 == 0) == (0x49249249u & (warp == 0 ? ~0u : 0xffu)));
            // Halves of a warp on their own, one of them oftener.
            unsigned half = lane / 16, mask = half ? 0xffff0000u : 0x0000ffffu;
            for (unsigned i = 0; i < 1 + 2 * half; i++) {
                CHECK(shuffle(mask, lane, 16 * half + 3) == (warp == 1 && half ? lane : 16 * half + 3));
            }
            barrier();
        });
        CHECK(fault.empty());
    }
}

static void blocks_of_a_cluster_see_each_other() {
    for (uint64_t seed : {0, 3, 4}) {
        Launch launch = shape(8, 64, seed);
        launch.cluster = {4, 1, 1};
        launch.shared_bytes = 64 * sizeof(unsigned);
        std::vector<unsigned> out(8, 0);
        std::string fault = run(launch, [&] {
            unsigned t = thread_index().x;
            static_cast<unsigned*>(shared_memory())[t] = block_index().x * 100 + t;
            cluster_barrier();
            unsigned sum = 0;
            for (unsigned rank = 0; rank < 4; rank++) {
                sum += static_cast<unsigned*>(shared_memory(rank))[t];
            }
            if (t == 63) out[block_index().x] = sum;
            cluster_barrier();
        });
        CHECK(fault.empty());
        CHECK(out[0] == 600 + 4 * 63 && out[7] == 2200 + 4 * 63 && out[3] == out[0]);
    }
}

static void signals_through_memory() {
    int flag = 0, seen = 0;
    auto body = [&](int last) {
        return [&, last] {
            if (thread_index().x == 0) {
                wait_until([&] { return flag == last; });
                seen = flag;
            } else {
                flag++;
            }
        };
    };
    CHECK(run(shape(1, 33, 8), body(32)).empty());
    CHECK(seen == 32);
    flag = 0;
    CHECK(has(run(shape(1, 33, 8), body(40)), "waits for ever"));
}

static void faults_are_named() {
    std::string fault = run(shape(1, 64, 1), [] {
        if (thread_index().x < 32) {
            barrier();
        } else {
            barrier();
        }
    });
    CHECK(has(fault, "fibers_test.cpp") && has(fault, "others of the same barrier"));
    fault = run(shape(1, 64, 0), [] {
        if (thread_index().x == 5) return;
        barrier();
    });
    CHECK(has(fault, "deadlock") && has(fault, "1 threads have ended") && has(fault, "63 wait"));
    Launch launch = shape(1, 64, 7);
    launch.ended_count = true;
    fault = run(launch, [] {
        if (thread_index().x == 5) return;
        barrier();
    });
    CHECK(fault.empty());
    fault = run(shape(1, 32, 2), [] {
        if (lane_index() < 9) warp_barrier();
    });
    CHECK(has(fault, "ended") || has(fault, "deadlock"));
    fault = run(shape(1, 32, 2), [] { warp_barrier(lane_index() < 9 ? 0x1ffu : ALL_LANES); });
    CHECK(has(fault, "another mask") || has(fault, "deadlock") || has(fault, "ended"));
    fault = run(shape(3, 1024, 2), [] { fail("no kernel for this"); });
    CHECK(has(fault, "no kernel for this") && has(fault, "block ("));
    launch = shape(3, 64, 1);
    launch.cluster = {2, 1, 1};
    CHECK(has(run(launch, [] {}), "whole number of clusters"));
    CHECK(has(run(shape(1, 2048, 1), [] {}), "1024"));
    // After all that, a launch is as good as new.
    threads_meet_at_barriers();
}

static void state_lives_as_long_as_its_owner() {
    struct Count {
        int value = 0;
    };
    int total = 0;
    static const char key = 0;
    std::string fault = run(shape(4, 32, 1), [&] {
        CHECK(thread_state<Count>().value == 0);
        thread_state<Count>().value++;
        int seen = block_state<Count>().value++;
        CHECK(seen < 32);
        auto* memory = static_cast<unsigned char*>(block_memory(&key, 32));
        if (seen == 0) CHECK(memory[31] == 0xff);
        memory[lane_index()] = 1;
        barrier();
        CHECK(thread_state<Count>().value == 1);
        if (lane_index() == 0) {
            for (int i = 0; i < 32; i++) total += memory[i];
        }
    });
    CHECK(fault.empty() && total == 128);
}

int main() {
    threads_meet_at_barriers();
    lanes_meet();
    blocks_of_a_cluster_see_each_other();
    signals_through_memory();
    faults_are_named();
    state_lives_as_long_as_its_owner();
    if (failures == 0) printf("fibers: all tests passed\n");
    return failures != 0;
}
