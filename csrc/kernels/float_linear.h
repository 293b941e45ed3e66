// Products of float weights (float32, float16, bfloat16) with float32 activations.
//
// For each output row four partial sums, column modulo 4, each a chain of fused multiply-adds over ascending columns;
// result = (s0 + s1) + (s2 + s3). A lane is an output row.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../kernel_table.h"

namespace qwenstack {
namespace {

template <WeightKind kKind>
QWENSTACK_INLINE F32x16 load_weights(const uint8_t* from) {
    if constexpr (kKind == WeightKind::kFloat32) {
        return load(reinterpret_cast<const float*>(from));
    }
    if constexpr (kKind == WeightKind::kFloat16) {
        return load_half(reinterpret_cast<const uint16_t*>(from));
    }
    return load_bfloat16(reinterpret_cast<const uint16_t*>(from));
}

template <WeightKind kKind, size_t kTokens>
void multiply_float_block(const LinearJob& job, const uint8_t* tile, const float* x, float* products) {
    const size_t num_columns = job.in_features;
    constexpr size_t kColumnBytes = kTileRows * (kKind == WeightKind::kFloat32 ? sizeof(float) : sizeof(uint16_t));
    constexpr size_t kSums = 4;
    F32x16 sums[kTokens][kSums];
    for (size_t token = 0; token < kTokens; ++token) {
        for (size_t i = 0; i < kSums; ++i) {
            sums[token][i] = broadcast(0.0f);
        }
    }
    size_t column = 0;
    for (; column + kSums <= num_columns; column += kSums) {
        prefetch_weights(tile + column * kColumnBytes, kSums * kColumnBytes, job.prefetch_distance);
        for (size_t i = 0; i < kSums; ++i) {
            const F32x16 weights = load_weights<kKind>(tile + (column + i) * kColumnBytes);
            for (size_t token = 0; token < kTokens; ++token) {
                const F32x16 activation = broadcast(x[token * num_columns + column + i]);
                sums[token][i] = fma(weights, activation, sums[token][i]);
            }
        }
    }
    for (size_t i = 0; column + i < num_columns; ++i) {
        const F32x16 weights = load_weights<kKind>(tile + (column + i) * kColumnBytes);
        for (size_t token = 0; token < kTokens; ++token) {
            const F32x16 activation = broadcast(x[token * num_columns + column + i]);
            sums[token][i] = fma(weights, activation, sums[token][i]);
        }
    }
    for (size_t token = 0; token < kTokens; ++token) {
        const F32x16 result = (sums[token][0] + sums[token][1]) + (sums[token][2] + sums[token][3]);
        store(products + token * kTileRows, result);
    }
}

template <WeightKind kKind>
void multiply_float_tokens(const LinearJob& job, const uint8_t* tile, const TileRange& range, float* products) {
    constexpr size_t kMaxTokens = kBlockTokens < 4 ? kBlockTokens : 4;  // with four sums each
    for (size_t token = 0; token < range.num_tokens; token += kMaxTokens) {
        const size_t left = range.num_tokens - token;
        const float* const x = job.normed + (range.first_token + token) * job.in_features;
        with_count<kMaxTokens>(left < kMaxTokens ? left : kMaxTokens, [&]<size_t kTokens>() {
            multiply_float_block<kKind, kTokens>(job, tile, x, products + token * kTileRows);
        });
    }
}

// Multiplies one tile with a range of tokens; products [tokens][16 rows].
inline void multiply_float_tile(const LinearJob& job, WeightKind kind, const uint8_t* tile, const TileRange& range,
                                float* products) {
    switch (kind) {
        case WeightKind::kFloat32:
            return multiply_float_tokens<WeightKind::kFloat32>(job, tile, range, products);
        case WeightKind::kFloat16:
            return multiply_float_tokens<WeightKind::kFloat16>(job, tile, range, products);
        case WeightKind::kBfloat16:
            return multiply_float_tokens<WeightKind::kBfloat16>(job, tile, range, products);
        case WeightKind::kQuantized:
            return;
    }
}

}  // namespace
}  // namespace qwenstack
