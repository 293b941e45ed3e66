// Rotary embedding of one token's queries and keys, and the write of its keys and values into the cache.
//
// Each head is RMS-normalised first if there is a weight for it. The pair (i, i + H/2) turns by the token's angle i:
//   first' = first · cos - second · sin,   second' = second · cos + first · sin
// with every product rounded on its own, as in the reference implementation.
// Source: Su et al. 2021, arXiv:2104.09864, section 3.4.2.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../kernel_table.h"

namespace qwenstack {
namespace {

struct TokenAngles {
    const float* cos;
    const float* sin;
};

// Normalises and turns one head; `write(index, values, count)` receives the result.
template <typename Write>
QWENSTACK_INLINE void rotate_head(const float* head, size_t head_dim, const float* norm, float eps, TokenAngles angles,
                                  Write write) {
    const size_t half = head_dim / 2;
    const float inverse = norm == nullptr ? 1.0f : inverse_rms(head, head_dim, eps);
    for (size_t i = 0; i < half; i += 16) {
        const size_t count = half - i;
        F32x16 first = load_first(head + i, count);
        F32x16 second = load_first(head + half + i, count);
        if (norm != nullptr) {
            first = scaled_by_norm(first, inverse, norm + i, count);
            second = scaled_by_norm(second, inverse, norm + half + i, count);
        }
        const F32x16 cos = load_first(angles.cos + i, count);
        const F32x16 sin = load_first(angles.sin + i, count);
        write(i, first * cos - second * sin, count);
        write(half + i, second * cos + first * sin, count);
    }
}

template <CacheType kType>
QWENSTACK_INLINE void write_key(const RopeJob& job, const float* key, TokenAngles angles,
                                typename CacheValue<kType>::Type* row) {
    if constexpr (kType == CacheType::kInt8) {  // a group's scale needs all of its turned columns
        float turned_key[kMaxInt8HeadDim];
        rotate_head(key, job.head_dim, job.k_norm, job.eps, angles,
                    [&](size_t i, F32x16 turned, size_t count) { store_first(turned_key + i, turned, count); });
        store_int8_row(row, turned_key, job.head_dim);
    } else {
        rotate_head(key, job.head_dim, job.k_norm, job.eps, angles,
                    [&](size_t i, F32x16 turned, size_t count) { store_cached<kType>(row + i, turned, count); });
    }
}

template <CacheType kType>
QWENSTACK_INLINE void write_value(const float* value, size_t head_dim, typename CacheValue<kType>::Type* row) {
    if constexpr (kType == CacheType::kInt8) {
        store_int8_row(row, value, head_dim);
    } else {
        for (size_t i = 0; i < head_dim; i += 16) {
            const size_t count = head_dim - i;
            store_cached<kType>(row + i, load_first(value + i, count), count);
        }
    }
}

template <CacheType kType>
void rope_and_write_token(const RopeJob& job, size_t token) {
    using Value = typename CacheValue<kType>::Type;
    const size_t head_dim = job.head_dim;
    float* const queries = job.qkv + token * (job.num_heads + 2 * job.num_kv_heads) * head_dim;
    const float* const keys = queries + job.num_heads * head_dim;
    const float* const values = keys + job.num_kv_heads * head_dim;
    const TokenAngles angles{job.cos + token * (head_dim / 2), job.sin + token * (head_dim / 2)};
    const size_t slot = static_cast<size_t>(job.slot_mapping[token]);
    for (size_t head = 0; head < job.num_heads; ++head) {
        float* const query = queries + head * head_dim;
        rotate_head(query, head_dim, job.q_norm, job.eps, angles,
                    [&](size_t i, F32x16 turned, size_t count) { store_first(query + i, turned, count); });
    }
    for (size_t head = 0; head < job.num_kv_heads; ++head) {
        const size_t index = cache_index<kType>(slot / job.block_size, head, slot % job.block_size, job.num_kv_heads,
                                                job.block_size, head_dim);
        write_key<kType>(job, keys + head * head_dim, angles, static_cast<Value*>(job.k_cache) + index);
        write_value<kType>(values + head * head_dim, head_dim, static_cast<Value*>(job.v_cache) + index);
    }
}

inline void rope_and_write_kv(const RopeJob& job, CacheType type, size_t token) {
    with_cache_type(type, [&]<CacheType kType>() { rope_and_write_token<kType>(job, token); });
}

}  // namespace
}  // namespace qwenstack
