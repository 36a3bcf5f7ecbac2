// What Rust calls. The kernels are in the other files of the library, which build.rs makes.
#include "metal.h"

// Every kernel file defines one function of this kind, so that the linker keeps it: kernels are
// registered by static objects that nobody refers to.
#define EACH(op) extern "C" void ds4_metal_keep_##op();
#include "metal_ops.inc"
#undef EACH

static void keep() {
#define EACH(op) ds4_metal_keep_##op();
#include "metal_ops.inc"
#undef EACH
}

extern "C" size_t ds4_metal_launch(const metal_emulator::Launch* launch, char* message, size_t room) {
    keep();
    std::string fault = metal_emulator::launch(*launch);
    size_t len = fault.size() < room ? fault.size() : room;
    memcpy(message, fault.data(), len);
    return len;
}

extern "C" const char* ds4_metal_kernel(size_t index) {
    keep();
    auto& entries = metal_emulator::entries();
    return index < entries.size() ? entries[index].name : nullptr;
}
