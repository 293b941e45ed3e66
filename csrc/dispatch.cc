// Which instruction sets this processor can run.

#include <cstring>

#include "kernel_table.h"

#if defined(QWENSTACK_NEON_KERNELS)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace qwenstack {
namespace {

#if defined(QWENSTACK_X86_KERNELS)
// The builtins ask the processor and whether the operating system saves the registers.
bool can_run_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool can_run_avx512() {
    return can_run_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

#if defined(QWENSTACK_NEON_KERNELS)
bool can_run_neon() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
#endif

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
#if defined(QWENSTACK_NEON_KERNELS)
    if (std::strcmp(name, "neon") == 0) {
        return can_run_neon() ? &kNeonKernels : nullptr;
    }
#endif
    return std::strcmp(name, "scalar") == 0 ? &kScalarKernels : nullptr;
}

}  // namespace qwenstack
