// Weights are read once from front to back, results are written far apart: both are asked for before they are needed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../weight_layout.h"

namespace qwenstack {
namespace {

// Asks for as many bytes as are in work, `distance` ahead of them. They may lie beyond the weights: a prefetch never
// faults.
QWENSTACK_INLINE void prefetch_weights(const uint8_t* in_work, size_t num_bytes, size_t distance) {
    const uintptr_t ahead = reinterpret_cast<uintptr_t>(in_work) + distance;
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
