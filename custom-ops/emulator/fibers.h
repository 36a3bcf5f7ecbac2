// Grids of GPU threads on a CPU: every thread is a fiber, so that barriers, shuffles and clusters
// work as on the device, one instruction stream at a time.
//
// The blocks of a grid run one after the other (clusters: the blocks of one together), in an order
// drawn from a seed; so do the threads of a block between two meeting points. A program that
// forgot a barrier gives another result under another seed. Threads that wait in different places
// are a fault, which `run` returns as text, as are threads that wait for ones that have ended.
//
// Works under AddressSanitizer (compile with -fsanitize-address-use-after-return=never: a fake
// stack for each of thousands of fibers is more than a machine holds).
//
//     emulator::Launch launch;
//     launch.grid = {blocks}; launch.block = {256}; launch.seed = 7;
//     std::string fault = emulator::run(launch, [&] { my_kernel(a, b, n); });
//
// C++17, no dependencies. The dialects are built on top: metal.h, cuda.h.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define EMULATOR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATOR_ASAN 1
#endif
#endif

#ifdef EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// A switch of our own where the compiler lets us write a whole function: ucontext enters the
// kernel for the signal mask at every switch.
#if defined(__x86_64__) || (defined(__aarch64__) && defined(__clang__))
#define EMULATOR_OWN_SWITCH 1
#else
#include <ucontext.h>
#endif

namespace emulator {

/// Lanes of a warp, or of a SIMD-group.
constexpr unsigned WARP = 32;
/// Every lane of a warp.
constexpr unsigned ALL_LANES = 0xffffffffu;
/// Bytes that a lane can bring to a meeting of its warp, or take from it.
constexpr size_t PARCEL = 128;

/// Extents of a grid, a block or a cluster; an index in one.
struct Dim {
    unsigned x = 1, y = 1, z = 1;
    size_t count() const { return size_t(x) * y * z; }
    /// The index of the `i`-th element, x fastest.
    Dim at(size_t i) const {
        return {unsigned(i % x), unsigned(i / x % y), unsigned(i / x / y)};
    }
};

/// A place in the kernel's text.
struct Site {
    const char* file;
    int line;
    /// The caller's, also as a default argument.
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
    bool operator==(const Site& o) const {
        return line == o.line && (file == o.file || (file && o.file && !strcmp(file, o.file)));
    }
};

/// How a grid is to run.
struct Launch {
    /// Blocks.
    Dim grid;
    /// Threads of a block.
    Dim block;
    /// Blocks that run together and see each other's shared memory; divides the grid.
    Dim cluster;
    /// Bytes of shared memory of each block, filled with 0xff.
    size_t shared_bytes = 0;
    /// Order of blocks and threads; 0 is ascending.
    uint64_t seed = 0;
    /// Whether threads that have ended count as waiting at every barrier of a whole block (CUDA on
    /// recent hardware), or are missed there (Metal).
    bool ended_count = false;
};

// ------------------------------------------------------------------------------------------------
// Context switch

#ifdef EMULATOR_OWN_SWITCH
#if defined(__x86_64__)
__attribute__((naked, noinline, no_sanitize("address"))) inline void switch_stack(void** /*save*/,
                                                                                   void* /*load*/) {
    asm volatile(
        "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
        "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
        "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}
#else
__attribute__((naked, noinline, no_sanitize("address"))) inline void switch_stack(void** /*save*/,
                                                                                   void* /*load*/) {
    asm volatile(
        "sub sp, sp, #160\n"
        "stp x19, x20, [sp, #0]\n stp x21, x22, [sp, #16]\n stp x23, x24, [sp, #32]\n"
        "stp x25, x26, [sp, #48]\n stp x27, x28, [sp, #64]\n stp x29, x30, [sp, #80]\n"
        "stp d8, d9, [sp, #96]\n stp d10, d11, [sp, #112]\n stp d12, d13, [sp, #128]\n"
        "stp d14, d15, [sp, #144]\n"
        "mov x9, sp\n str x9, [x0]\n mov sp, x1\n"
        "ldp x19, x20, [sp, #0]\n ldp x21, x22, [sp, #16]\n ldp x23, x24, [sp, #32]\n"
        "ldp x25, x26, [sp, #48]\n ldp x27, x28, [sp, #64]\n ldp x29, x30, [sp, #80]\n"
        "ldp d8, d9, [sp, #96]\n ldp d10, d11, [sp, #112]\n ldp d12, d13, [sp, #128]\n"
        "ldp d14, d15, [sp, #144]\n"
        "add sp, sp, #160\n ret\n");
}
#endif
#endif

/// One flow of control with its stack.
struct Context {
#ifdef EMULATOR_OWN_SWITCH
    void* sp = nullptr;
#else
    ucontext_t ucontext;
#endif
    const void* bottom = nullptr;
    size_t size = 0;
    void* fake_stack = nullptr;
};

// ------------------------------------------------------------------------------------------------
// What runs

struct Block;
struct Machine;

/// State that a dialect keeps for a thread or a block, by type or by key.
using Stash = std::map<const void*, std::shared_ptr<void>>;

/// One GPU thread.
struct Fiber {
    Context context;
    char* stack = nullptr;
    Block* block = nullptr;
    Dim thread;
    /// Index in the block, x fastest.
    unsigned linear = 0;
    bool ended = false;
    Stash stash;

    unsigned lane() const { return linear % WARP; }
    unsigned warp() const { return linear / WARP; }
};

/// Threads that wait until enough others have come.
struct Meeting {
    std::vector<Fiber*> waiting;
    Site site{nullptr, 0};
};

/// What one lane brings to a meeting of its warp.
struct LaneParcel {
    bool waiting = false;
    unsigned mask = 0;
    Site site{nullptr, 0};
    Fiber* fiber = nullptr;
    alignas(16) unsigned char in[PARCEL];
    alignas(16) unsigned char out[PARCEL];
};

struct Warp {
    /// Lanes that exist: a block need not be a multiple of 32 threads.
    unsigned members = 0;
    unsigned ended = 0;
    LaneParcel lanes[WARP];
};

struct Block {
    Dim index;
    /// Rank in its cluster.
    unsigned rank = 0;
    unsigned threads = 0;
    unsigned live = 0;
    char* shared = nullptr;
    std::vector<Warp> warps;
    std::map<unsigned, Meeting> barriers;
    Stash stash;
};

/// Everything that one CPU thread runs.
struct Machine {
    Launch launch;
    const std::function<void()>* body = nullptr;
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<std::unique_ptr<Block>> blocks;
    Meeting cluster;
    std::deque<Fiber*> ready;
    Fiber* current = nullptr;
    Context main;
    std::string fault;
    uint64_t random = 0;
    size_t live = 0;
    /// Polls since the last step of any thread that was not one.
    size_t idle_polls = 0;

    ~Machine() { drop_fibers(); }
    void drop_fibers();
};

inline Machine& machine() {
    static thread_local Machine machine;
    return machine;
}

constexpr size_t guard_bytes() { return 16384; }

constexpr size_t stack_bytes() {
#ifdef EMULATOR_ASAN
    return 512 << 10;
#else
    return 128 << 10;
#endif
}

inline uint64_t next_random(Machine& m) {
    m.random ^= m.random << 13;
    m.random ^= m.random >> 7;
    m.random ^= m.random << 17;
    return m.random;
}

#ifdef EMULATOR_ASAN
__attribute__((no_sanitize("address")))
#endif
inline void jump(Context& from, Context& to) {
#ifdef EMULATOR_ASAN
    __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
#endif
#ifdef EMULATOR_OWN_SWITCH
    switch_stack(&from.sp, to.sp);
#else
    swapcontext(&from.ucontext, &to.ucontext);
#endif
#ifdef EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

/// Takes the next thread that can run, if there is one.
inline Fiber* take_ready(Machine& m) {
    if (m.ready.empty()) return nullptr;
    if (m.launch.seed != 0) {
        size_t i = next_random(m) % m.ready.size();
        std::swap(m.ready[i], m.ready.front());
    }
    Fiber* fiber = m.ready.front();
    m.ready.pop_front();
    return fiber;
}

/// Lets another thread run; returns when somebody has made this one ready and it was taken.
inline void give_way(Machine& m) {
    Fiber* me = m.current;
    Fiber* next = m.fault.empty() ? take_ready(m) : nullptr;
    if (next == me) return;
    m.current = next;
    jump(me->context, next ? next->context : m.main);
}

/// Ends the whole launch with a message, as printf formats it. No destructor of the caller runs.
[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail(const char* format, ...) {
    Machine& m = machine();
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    if (m.current == nullptr) {
        fprintf(stderr, "emulator: %s\n", message);
        abort();
    }
    Fiber& me = *m.current;
    char where[160];
    snprintf(where, sizeof where, "block (%u, %u, %u), thread (%u, %u, %u): ", me.block->index.x,
             me.block->index.y, me.block->index.z, me.thread.x, me.thread.y, me.thread.z);
    m.fault = where;
    m.fault += message;
    for (;;) give_way(m);
}

inline std::string text(const Site& site) {
    return std::string(site.file ? site.file : "?") + ":" + std::to_string(site.line);
}

inline void fiber_loop() {
#ifdef EMULATOR_ASAN
    {
        Machine& m = machine();
        const void* bottom = nullptr;
        size_t size = 0;
        __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
        // The first fiber ever comes from the main stack, whose extent is known to nobody else.
        if (m.main.bottom == nullptr) {
            m.main.bottom = bottom;
            m.main.size = size;
        }
    }
#endif
    for (;;) {
        Machine& m = machine();
        (*m.body)();
        Fiber* me = m.current;
        me->ended = true;
        me->stash.clear();
        me->block->live -= 1;
        me->block->warps[me->warp()].ended |= 1u << me->lane();
        m.live -= 1;
        m.idle_polls = 0;
        if (m.launch.ended_count) {
            for (auto& [id, meeting] : me->block->barriers) {
                if (id == 0 && !meeting.waiting.empty() &&
                    meeting.waiting.size() == me->block->live) {
                    for (Fiber* fiber : meeting.waiting) m.ready.push_back(fiber);
                    meeting.waiting.clear();
                }
            }
        }
        give_way(m);
    }
}

inline void Machine::drop_fibers() {
    for (auto& fiber : fibers) {
        munmap(fiber->stack - guard_bytes(), stack_bytes() + guard_bytes());
    }
    fibers.clear();
}

inline Fiber* new_fiber() {
    auto* fiber = new Fiber;
    size_t size = stack_bytes();
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#ifdef MAP_NORESERVE
    flags |= MAP_NORESERVE;
#endif
    void* memory = mmap(nullptr, size + guard_bytes(), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, guard_bytes(), PROT_NONE) != 0) {
        fprintf(stderr, "emulator: no memory for the stack of a thread\n");
        abort();
    }
    fiber->stack = static_cast<char*>(memory) + guard_bytes();
#ifdef EMULATOR_ASAN
    // A stack that was given back with poison on it may have lain here.
    __asan_unpoison_memory_region(fiber->stack, size);
#endif
    Context& context = fiber->context;
    context.bottom = fiber->stack;
    context.size = size;
#ifdef EMULATOR_OWN_SWITCH
    auto* top = reinterpret_cast<void**>(fiber->stack + size - 64);
#if defined(__x86_64__)
    // After `ret` the stack must look as after a call: 8 off a multiple of 16.
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&fiber_loop);
    top -= 6;
#else
    top -= 20;
    memset(static_cast<void*>(top), 0, 160);
    top[11] = reinterpret_cast<void*>(&fiber_loop);
#endif
    context.sp = top;
#else
    getcontext(&context.ucontext);
    context.ucontext.uc_stack.ss_sp = fiber->stack;
    context.ucontext.uc_stack.ss_size = size;
    context.ucontext.uc_link = nullptr;
    makecontext(&context.ucontext, &fiber_loop, 0);
#endif
    return fiber;
}

// ------------------------------------------------------------------------------------------------
// What a kernel may ask

/// The thread that runs. Fails outside a launch.
inline Fiber& self() {
    Machine& m = machine();
    if (m.current == nullptr) fail("no thread of a grid is running here");
    return *m.current;
}

inline Dim thread_index() { return self().thread; }
inline Dim block_index() { return self().block->index; }
inline Dim block_extent() { return machine().launch.block; }
inline Dim grid_extent() { return machine().launch.grid; }
inline Dim cluster_extent() { return machine().launch.cluster; }
inline unsigned cluster_rank() { return self().block->rank; }
inline unsigned linear_thread() { return self().linear; }
inline unsigned lane_index() { return self().lane(); }
inline unsigned warp_index() { return self().warp(); }

/// Shared memory of this block.
inline void* shared_memory() { return self().block->shared; }

/// Shared memory of the block of that rank in this cluster.
inline void* shared_memory(unsigned rank) {
    Machine& m = machine();
    if (rank >= m.blocks.size()) fail("no block of rank %u in the cluster", rank);
    return m.blocks[rank]->shared;
}

/// `T` of this thread, made when first asked for.
template <class T>
T& thread_state() {
    static const char key = 0;
    auto& entry = self().stash[&key];
    if (!entry) entry = std::make_shared<T>();
    return *static_cast<T*>(entry.get());
}

/// `bytes` of this block under a key, filled with 0xff when first asked for: the static shared
/// arrays of a kernel.
inline void* block_memory(const void* key, size_t bytes) {
    auto& entry = self().block->stash[key];
    if (!entry) {
        void* memory = nullptr;
        if (posix_memalign(&memory, 64, bytes) != 0) fail("no memory");
        memset(memory, 0xff, bytes);
        entry = std::shared_ptr<void>(memory, free);
    }
    return entry.get();
}

/// `T` of this block, made when first asked for.
template <class T>
T& block_state() {
    static const char key = 0;
    auto& entry = self().block->stash[&key];
    if (!entry) entry = std::make_shared<T>();
    return *static_cast<T*>(entry.get());
}

/// Waits until `wanted` threads are there; all of them must have come to the same place.
inline void meet(Meeting& meeting, size_t wanted, Site site) {
    Machine& m = machine();
    if (!meeting.waiting.empty() && !(meeting.site == site)) {
        fail("waits at %s:%d while others of the same barrier wait at %s:%d", site.file, site.line,
             meeting.site.file, meeting.site.line);
    }
    meeting.site = site;
    m.idle_polls = 0;
    if (meeting.waiting.size() + 1 == wanted) {
        for (Fiber* fiber : meeting.waiting) m.ready.push_back(fiber);
        meeting.waiting.clear();
        // Whoever came last has no right to go on first.
        m.ready.push_back(m.current);
    } else {
        meeting.waiting.push_back(m.current);
    }
    give_way(m);
}

/// All threads of this block.
inline void barrier(Site site = Site::here()) {
    Block& block = *self().block;
    meet(block.barriers[0], machine().launch.ended_count ? block.live : block.threads, site);
}

/// A barrier by number, for the first `threads` that come to it; 0 is the block's.
inline void barrier(unsigned id, unsigned threads, Site site = Site::here()) {
    meet(self().block->barriers[id], threads, site);
}

/// All threads of all blocks of this cluster.
inline void cluster_barrier(Site site = Site::here()) {
    Machine& m = machine();
    size_t threads = 0;
    for (auto& block : m.blocks) threads += block->threads;
    meet(m.cluster, threads, site);
}

/// Lets others run until `done()`: for what is signalled through memory.
template <class F>
void wait_until(F done, Site site = Site::here()) {
    Machine& m = machine();
    while (!done()) {
        if (++m.idle_polls > 64 * (m.live + 1)) {
            fail("waits for ever at %s:%d: nobody else can go on", site.file, site.line);
        }
        m.ready.push_back(m.current);
        give_way(m);
    }
    m.idle_polls = 0;
}

/// The meeting of the lanes of `mask`: each brings an `In`; `combine(ins, mask, outs)` writes what
/// each takes away. `ins[l]` is only set for lanes of the mask. `combine` is called once, by whoever
/// comes last, so it must not depend on the caller.
///
/// All named lanes must come to the same place with the same mask.
template <class Out, class In, class F>
Out warp_meet(unsigned mask, const In& in, F combine, Site site = Site::here()) {
    static_assert(std::is_trivially_copyable<In>::value && sizeof(In) <= PARCEL, "a parcel");
    static_assert(std::is_trivially_copyable<Out>::value && sizeof(Out) <= PARCEL, "a parcel");
    Machine& m = machine();
    Fiber& me = self();
    Warp& warp = me.block->warps[me.warp()];
    mask &= warp.members;
    if (!(mask >> me.lane() & 1)) {
        fail("is not in the mask that it names at %s:%d", site.file, site.line);
    }
    LaneParcel& mine = warp.lanes[me.lane()];
    memcpy(mine.in, &in, sizeof in);
    mine.waiting = true;
    mine.mask = mask;
    mine.site = site;
    mine.fiber = &me;
    m.idle_polls = 0;

    bool all = true;
    for (unsigned l = 0; l < WARP; l++) {
        const LaneParcel& other = warp.lanes[l];
        if (!(mask >> l & 1)) continue;
        if (warp.ended >> l & 1) {
            fail("meets lane %u at %s:%d, which has ended", l, site.file, site.line);
        }
        if (!other.waiting || !(other.mask >> me.lane() & 1)) {
            all = false;
        } else if (other.mask != mask || !(other.site == site)) {
            fail("meets lane %u at %s:%d, which waits at %s:%d%s", l, site.file, site.line,
                 other.site.file, other.site.line, other.mask != mask ? " with another mask" : "");
        }
    }
    if (all) {
        In ins[WARP];
        Out outs[WARP];
        for (unsigned l = 0; l < WARP; l++) {
            if (mask >> l & 1) memcpy(static_cast<void*>(&ins[l]), warp.lanes[l].in, sizeof(In));
        }
        combine(static_cast<const In*>(ins), mask, static_cast<Out*>(outs));
        for (unsigned l = 0; l < WARP; l++) {
            if (!(mask >> l & 1)) continue;
            LaneParcel& lane = warp.lanes[l];
            memcpy(lane.out, &outs[l], sizeof(Out));
            lane.waiting = false;
            m.ready.push_back(lane.fiber);
        }
    }
    give_way(m);
    Out out;
    memcpy(static_cast<void*>(&out), mine.out, sizeof out);
    return out;
}

/// Lanes of the mask meet, nothing else.
inline void warp_barrier(unsigned mask = ALL_LANES, Site site = Site::here()) {
    warp_meet<char>(mask, char(0), [](const char*, unsigned, char* outs) { memset(outs, 0, WARP); }, site);
}

/// The value that lane `source` brought. Of a lane outside the mask, or none, one's own.
template <class T>
T shuffle(unsigned mask, T value, unsigned source, Site site = Site::here()) {
    struct In {
        T value;
        unsigned source;
    };
    In in{value, source};
    return warp_meet<T>(
        mask, in,
        [](const In* ins, unsigned mask, T* outs) {
            for (unsigned l = 0; l < WARP; l++) {
                if (!(mask >> l & 1)) continue;
                unsigned from = ins[l].source;
                outs[l] = ins[from < WARP && (mask >> from & 1) ? from : l].value;
            }
        },
        site);
}

/// One bit for each lane of the mask whose `flag` is set.
inline unsigned ballot(unsigned mask, bool flag, Site site = Site::here()) {
    return warp_meet<unsigned>(
        mask, flag,
        [](const bool* ins, unsigned mask, unsigned* outs) {
            unsigned bits = 0;
            for (unsigned l = 0; l < WARP; l++) {
                if ((mask >> l & 1) && ins[l]) bits |= 1u << l;
            }
            for (unsigned l = 0; l < WARP; l++) outs[l] = bits;
        },
        site);
}

/// `op` over the lanes' values as a butterfly does it: lanes `l` and `l ^ 16`, then 8, 4, 2, 1; so
/// that sums of floats are rounded as a shuffle loop rounds them. Lanes outside the mask are left
/// out.
template <class T, class F>
T reduce(unsigned mask, T value, F op, Site site = Site::here()) {
    return warp_meet<T>(
        mask, value,
        [op](const T* ins, unsigned mask, T* outs) {
            bool there[WARP];
            for (unsigned l = 0; l < WARP; l++) {
                there[l] = mask >> l & 1;
                if (there[l]) outs[l] = ins[l];
            }
            for (unsigned step = WARP / 2; step > 0; step /= 2) {
                for (unsigned a = 0; a < WARP; a++) {
                    unsigned b = a ^ step;
                    if (a > b || !(there[a] || there[b])) continue;
                    if (!there[a]) {
                        outs[a] = outs[b];
                    } else if (there[b]) {
                        outs[a] = op(outs[a], outs[b]);
                    }
                    outs[b] = outs[a];
                    there[a] = there[b] = true;
                }
            }
        },
        site);
}

// ------------------------------------------------------------------------------------------------
// Running

/// Where the threads that cannot go on wait.
inline std::string deadlock(Machine& m) {
    std::string what = "deadlock:";
    for (auto& block : m.blocks) {
        what += " block (" + std::to_string(block->index.x) + ", " + std::to_string(block->index.y) +
                ", " + std::to_string(block->index.z) + "):";
        if (block->live < block->threads) {
            what += " " + std::to_string(block->threads - block->live) + " threads have ended,";
        }
        for (auto& [id, meeting] : block->barriers) {
            if (meeting.waiting.empty()) continue;
            what += " " + std::to_string(meeting.waiting.size()) + " wait at the barrier " +
                    text(meeting.site) + ",";
        }
        for (size_t w = 0; w < block->warps.size(); w++) {
            std::map<std::pair<std::string, int>, int> sites;
            for (auto& lane : block->warps[w].lanes) {
                if (lane.waiting) sites[{lane.site.file ? lane.site.file : "?", lane.site.line}]++;
            }
            for (auto& [site, count] : sites) {
                what += " " + std::to_string(count) + " lanes of warp " + std::to_string(w) +
                        " meet at " + site.first + ":" + std::to_string(site.second) + ",";
            }
        }
    }
    if (!m.cluster.waiting.empty()) {
        what += " " + std::to_string(m.cluster.waiting.size()) + " wait at the cluster's barrier " +
                text(m.cluster.site) + ",";
    }
    what.back() = '.';
    return what;
}

/// The order in which `count` things run.
inline std::vector<size_t> order(Machine& m, size_t count) {
    std::vector<size_t> order(count);
    for (size_t i = 0; i < count; i++) order[i] = i;
    if (m.launch.seed != 0) {
        for (size_t i = count; i > 1; i--) std::swap(order[i - 1], order[next_random(m) % i]);
    }
    return order;
}

/// Runs the blocks of one cluster; `first` is the index of its first block.
inline void run_cluster(Machine& m, Dim first) {
    const Launch& launch = m.launch;
    size_t blocks = launch.cluster.count(), threads = launch.block.count();
    m.blocks.clear();
    m.ready.clear();
    m.cluster.waiting.clear();
    while (m.fibers.size() < blocks * threads) m.fibers.emplace_back(new_fiber());
    size_t next = 0;
    for (size_t rank = 0; rank < blocks; rank++) {
        auto block = std::make_unique<Block>();
        Dim in = launch.cluster.at(rank);
        block->index = {first.x + in.x, first.y + in.y, first.z + in.z};
        block->rank = unsigned(rank);
        block->threads = block->live = unsigned(threads);
        block->warps.resize((threads + WARP - 1) / WARP);
        if (launch.shared_bytes > 0) {
            void* memory = nullptr;
            // A block's shared memory is where AddressSanitizer sees its ends.
            if (posix_memalign(&memory, 128, launch.shared_bytes) != 0) abort();
            memset(memory, 0xff, launch.shared_bytes);
            block->shared = static_cast<char*>(memory);
        }
        for (size_t i = 0; i < threads; i++) {
            Fiber* fiber = m.fibers[next++].get();
            fiber->block = block.get();
            fiber->linear = unsigned(i);
            fiber->thread = launch.block.at(i);
            fiber->ended = false;
            block->warps[fiber->warp()].members |= 1u << fiber->lane();
            m.ready.push_back(fiber);
        }
        m.blocks.push_back(std::move(block));
    }
    m.live = blocks * threads;
    m.idle_polls = 0;
    while (m.live > 0 && m.fault.empty()) {
        Fiber* fiber = take_ready(m);
        if (fiber == nullptr) {
            m.fault = deadlock(m);
            break;
        }
        m.current = fiber;
        jump(m.main, fiber->context);
        m.current = nullptr;
    }
    for (auto& block : m.blocks) free(block->shared);
    m.blocks.clear();
}

/// Runs `body` once for each thread of the grid; returns what went wrong, or nothing.
inline std::string run(const Launch& launch, const std::function<void()>& body) {
    Machine& m = machine();
    if (m.current != nullptr) return "a grid cannot be launched from a thread of one";
    const Dim &grid = launch.grid, &cluster = launch.cluster;
    if (launch.block.count() == 0 || launch.block.count() > 1024) {
        return "a block has 1 to 1024 threads, not " + std::to_string(launch.block.count());
    }
    if (cluster.count() == 0 || grid.x % cluster.x || grid.y % cluster.y || grid.z % cluster.z) {
        return "the grid is not a whole number of clusters";
    }
    m.launch = launch;
    m.body = &body;
    m.fault.clear();
    m.random = launch.seed * 0x9e3779b97f4a7c15ull | 1;
    Dim clusters{grid.x / cluster.x, grid.y / cluster.y, grid.z / cluster.z};
    for (size_t i : order(m, clusters.count())) {
        Dim at = clusters.at(i);
        run_cluster(m, {at.x * cluster.x, at.y * cluster.y, at.z * cluster.z});
        if (!m.fault.empty()) {
            // Threads are stuck in the middle of it: their stacks cannot be used again.
            m.drop_fibers();
            break;
        }
    }
    m.current = nullptr;
    m.body = nullptr;
    return m.fault;
}

}  // namespace emulator
