// Which instruction sets this processor can run.

#include <cstring>

#include "kernel_table.h"

namespace qwenstack {
namespace {

// The builtins ask the processor and whether the operating system saves the registers.
[[maybe_unused]] bool can_run_avx2() {
#if defined(QWENSTACK_X86_KERNELS)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
    return false;
#endif
}

[[maybe_unused]] bool can_run_avx512() {
#if defined(QWENSTACK_X86_KERNELS)
    return can_run_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

}  // namespace

const KernelTable* find_kernels(const char* name) {
#if defined(QWENSTACK_X86_KERNELS)
    if (std::strcmp(name, "avx512") == 0) {
        return can_run_avx512() ? &kAvx512Kernels : nullptr;
    }
    if (std::strcmp(name, "avx2") == 0) {
        return can_run_avx2() ? &kAvx2Kernels : nullptr;
    }
#endif
    return std::strcmp(name, "scalar") == 0 ? &kScalarKernels : nullptr;
}

}  // namespace qwenstack
