// Values of a key/value cache [blocks, kv heads, block size, head_dim] in float32, float16 or bfloat16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../kernel_table.h"

namespace qwenstack {
namespace {

template <CacheType kType>
struct CacheValue {
    using Type = uint16_t;
};
template <>
struct CacheValue<CacheType::kFloat32> {
    using Type = float;
};

QWENSTACK_INLINE size_t cache_index(size_t block, size_t kv_head, size_t offset, size_t num_kv_heads, size_t block_size,
                                    size_t head_dim) {
    return ((block * num_kv_heads + kv_head) * block_size + offset) * head_dim;
}

template <CacheType kType>
QWENSTACK_INLINE F32x16 load_cached(const typename CacheValue<kType>::Type* from, size_t count) {
    const auto load_all = [](const typename CacheValue<kType>::Type* values) {
        if constexpr (kType == CacheType::kFloat32) {
            return load(values);
        }
        if constexpr (kType == CacheType::kFloat16) {
            return load_half(values);
        }
        if constexpr (kType == CacheType::kBfloat16) {
            return load_bfloat16(values);
        }
    };
    return load_first(load_all, from, count);
}

template <CacheType kType>
QWENSTACK_INLINE void store_cached(typename CacheValue<kType>::Type* to, F32x16 a, size_t count) {
    if constexpr (kType == CacheType::kFloat32) {
        store_first(to, a, count);
    } else {
        uint16_t values[16];
        uint16_t* const target = count >= 16 ? to : values;
        if constexpr (kType == CacheType::kFloat16) {
            store_half(target, a);
        }
        if constexpr (kType == CacheType::kBfloat16) {
            store_bfloat16(target, a);
        }
        if (count < 16) {
            std::memcpy(to, values, count * sizeof(uint16_t));
        }
    }
}

// Calls `function.template operator()<type>()` with the type as a constant.
template <typename Function>
void with_cache_type(CacheType type, Function function) {
    switch (type) {
        case CacheType::kFloat32:
            return function.template operator()<CacheType::kFloat32>();
        case CacheType::kFloat16:
            return function.template operator()<CacheType::kFloat16>();
        case CacheType::kBfloat16:
            return function.template operator()<CacheType::kBfloat16>();
    }
}

}  // namespace
}  // namespace qwenstack
