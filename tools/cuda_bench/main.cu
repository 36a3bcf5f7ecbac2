// Checks each heavy kernel against plain loops, then, on a GPU, times it at the model's shapes.
//
//     nvcc -std=c++17 -O3 -arch=sm_90a -o cuda_bench main.cu && ./cuda_bench [check|time|all] [part …]
//     g++ -std=c++17 -O1 -g -fsanitize=address,undefined -DCUDA_EMULATOR -x c++ main.cu && ./a.out
#include "../../custom-ops/src/attention/kernel.cu"
#include "../../custom-ops/src/attention/kernel_prefill.cu"
#include "../../custom-ops/src/attention/kernel_prefill_wgmma.cu"
#include "../../custom-ops/src/experts/kernel_few.cu"
#include "../../custom-ops/src/experts/kernel_grouped.cu"
#include "../../custom-ops/src/experts/kernel_grouped_wide.cu"
#include "../../custom-ops/src/experts/kernel_groups.cu"
#include "../../custom-ops/src/experts/kernel_one.cu"
#include "../../custom-ops/src/indexer/kernel.cu"
#include "../../custom-ops/src/indexer/kernel_scores_wgmma.cu"
#include "../../custom-ops/src/indexer/kernel_select_few.cu"
#include "../../custom-ops/src/matmul/kernel.cu"
#include "../../custom-ops/src/matmul/kernel_gemm.cu"
#include "../../custom-ops/src/matmul/kernel_one.cu"
#include "../../custom-ops/src/matmul/kernel_plain.cu"

#include "attention.h"
#include "experts.h"
#include "indexer.h"
#include "matmul.h"
#include "timings.h"

int main(int argc, char** argv) {
    const std::string mode = argc > 1 ? argv[1] : "all";
    const auto wanted = [&](const char* part) {
        for (int i = 2; i < argc; i++) {
            if (std::string(argv[i]) == part) return true;
        }
        return argc <= 2;
    };
    if (const char* seed = getenv("SEED")) {
        g_seed = strtoull(seed, nullptr, 10);
        g_random ^= g_seed * 0x2545f4914f6cdd1dull;
    }
#ifndef CUDA_EMULATOR
    CUDA(cudaStreamCreateWithFlags(&g_stream, cudaStreamNonBlocking));
#endif
    if (mode != "time") {
        if (wanted("matmul")) check_matmul();
        if (wanted("experts")) check_experts();
        if (wanted("attention")) check_attention();
        if (wanted("indexer")) check_indexer();
        printf("%d checks, %d failures\n", g_checks, g_failures);
        if (g_failures) return 1;
    }
#ifndef CUDA_EMULATOR
    if (mode != "check") {
        if (wanted("matmul")) time_matmul();
        if (wanted("experts")) time_experts();
        if (wanted("attention")) time_attention();
        if (wanted("indexer")) time_indexer();
    }
#endif
    return 0;
}
