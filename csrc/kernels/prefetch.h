// Weights are read once from front to back, results are written far apart: both are asked for before they are needed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../weight_layout.h"

namespace qwenstack {
namespace {

// How far ahead of the bytes in work: the hardware alone stops at page ends. Best of 1…16 KiB for one token on a Xeon
// of 2.1 GHz (benches/kernel_linear.py, 2026-11-22): 9.9 → 12.8 GB/s a thread.
static constexpr size_t kPrefetchBytes = 8192;

// Asks for as many bytes as are in work, some way ahead. They may lie beyond the weights: a prefetch never faults.
QWENSTACK_INLINE void prefetch_weights_after(const uint8_t* in_work, size_t num_bytes) {
    const uintptr_t ahead = reinterpret_cast<uintptr_t>(in_work) + kPrefetchBytes;
    for (size_t i = 0; i < num_bytes; i += 64) {
        __builtin_prefetch(reinterpret_cast<const void*>(ahead + i));
    }
}

// Asks for share `index` of `num_shares` of what is needed next, so that memory is read while there is work to do.
QWENSTACK_INLINE void prefetch_share(uintptr_t first, size_t num_bytes, size_t index, size_t num_shares) {
    for (size_t i = num_bytes * index / num_shares; i < num_bytes * (index + 1) / num_shares; i += 64) {
        __builtin_prefetch(reinterpret_cast<const void*>(first + i));
    }
}

// Asks for the places of results, a cache line for each tile and token: they are far apart, and are written soon.
template <size_t kTiles, size_t kTokens>
QWENSTACK_INLINE void prefetch_results(const float* out, size_t out_stride) {
    for (size_t token = 0; token < kTokens; ++token) {
        for (size_t tile = 0; tile < kTiles; ++tile) {
            __builtin_prefetch(out + token * out_stride + tile * kTileRows, 1);
        }
    }
}

}  // namespace
}  // namespace qwenstack
