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

// Hardware alone stops at page ends: 9.9 → 12.8 GB/s a thread on a Xeon of 2.1 GHz, where this was the best of 1…16 KiB
// for one token (benches/kernel_linear.py, 2026-11-22).
constexpr PrefetchDistances kFarAhead{8192, 8192};
#if defined(QWENSTACK_X86_KERNELS)
// A Zen 4 follows a stream by itself, and requests far ahead of it disturb it: a token of one stream is 1.10 times as
// fast as with the distance above, with one thread 1.29 times. With more tokens it looks too few lines ahead
// (docs/lab-notes.md, 2026-11-26, "What a processor foresees").
constexpr PrefetchDistances kBesideAStream{256, 4096};
#endif

}  // namespace

PrefetchDistances prefetch_distances() {
#if defined(QWENSTACK_X86_KERNELS)
    if (__builtin_cpu_is("amd") && can_run_avx512()) {  // Zen 4 and later
        return kBesideAStream;
    }
#endif
    return kFarAhead;
}

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
