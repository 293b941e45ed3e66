// Values of a key/value cache [blocks, kv heads, block size, row width].
//
// float32, float16 and bfloat16: a row is one head's values. int8: a row is one head's scales, float16 for each group
// of 16 columns, and then its codes:
//
//   scale = half(amax / 127),   code = round_half_even(value · (1 / scale)), clipped to ±127,   value = code · scale
//
// A group that is not finite, or whose scale is beyond float16, gets codes 0 and a scale that is not finite: its values
// are NaN and noticed. A scale below half the smallest float16 is 0. The width of a row tells that of the head:
// every group but the last has 16 columns.
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
template <>
struct CacheValue<CacheType::kInt8> {
    using Type = int8_t;
};

template <CacheType kType>
QWENSTACK_INLINE size_t cache_index(size_t block, size_t kv_head, size_t offset, size_t num_kv_heads, size_t block_size,
                                    size_t head_dim) {
    const size_t row_width = kType == CacheType::kInt8 ? int8_row_width(head_dim) : head_dim;
    return ((block * num_kv_heads + kv_head) * block_size + offset) * row_width;
}

// 16 columns of a row, those beyond the head 0; of an int8 row its codes.
template <CacheType kType>
QWENSTACK_INLINE F32x16 load_columns(const typename CacheValue<kType>::Type* row, size_t column, size_t head_dim) {
    using Value = typename CacheValue<kType>::Type;
    const auto load_all = [](const Value* values) {
        if constexpr (kType == CacheType::kFloat32) {
            return load(values);
        }
        if constexpr (kType == CacheType::kFloat16) {
            return load_half(values);
        }
        if constexpr (kType == CacheType::kBfloat16) {
            return load_bfloat16(values);
        }
        if constexpr (kType == CacheType::kInt8) {
            return load_int8(values);
        }
    };
    const size_t first = kType == CacheType::kInt8 ? 2 * num_int8_groups(head_dim) : 0;
    return load_first(load_all, row + first + column, head_dim - column);
}

// Up to 16 scales of an int8 row from a group on, widened.
QWENSTACK_INLINE F32x16 load_int8_scales(const int8_t* row, size_t group, size_t head_dim) {
    const size_t bytes_left = int8_row_width(head_dim) - 2 * group;
    uint16_t halves[16] = {};
    if (bytes_left >= sizeof halves) {
        std::memcpy(halves, row + 2 * group, sizeof halves);  // codes among them; nobody uses those lanes
    } else {
        std::memcpy(halves, row + 2 * group, 2 * (num_int8_groups(head_dim) - group));
    }
    return load_half(halves);
}

// Reads a row; columns up to the next multiple of 16 are written too.
template <CacheType kType>
QWENSTACK_INLINE void load_row(const typename CacheValue<kType>::Type* row, size_t head_dim, float* to) {
    float scales[16];
    for (size_t column = 0; column < head_dim; column += 16) {
        F32x16 values = load_columns<kType>(row, column, head_dim);
        if constexpr (kType == CacheType::kInt8) {
            const size_t group = column / kInt8GroupColumns;
            if (group % 16 == 0) {
                store(scales, load_int8_scales(row, group, head_dim));
            }
            values = values * broadcast(scales[group % 16]);
        }
        store(to + column, values);
    }
}

// Reads 16 columns of up to 16 rows and transposes them; missing rows count as 0.
template <CacheType kType>
QWENSTACK_INLINE void load_transposed(const typename CacheValue<kType>::Type* const* rows, size_t num_rows,
                                      size_t column, size_t head_dim, F32x16 (&to)[16]) {
    for (size_t row = 0; row < num_rows; ++row) {
        to[row] = load_columns<kType>(rows[row], column, head_dim);
    }
    for (size_t row = num_rows; row < 16; ++row) {
        to[row] = broadcast(0.0f);
    }
    transpose(to);
    if constexpr (kType == CacheType::kInt8) {
        uint16_t halves[16] = {};
        for (size_t row = 0; row < num_rows; ++row) {
            std::memcpy(&halves[row], rows[row] + 2 * (column / kInt8GroupColumns), sizeof(uint16_t));
        }
        const F32x16 scales = load_half(halves);
        for (size_t i = 0; i < 16; ++i) {
            to[i] = to[i] * scales;
        }
    }
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

// Rounds one group: 16 columns, those beyond the head 0.
QWENSTACK_INLINE void store_int8_group(F32x16 values, uint16_t& scale_half, int8_t* codes, size_t count) {
    const I32x16 magnitude = bits_of(values) & broadcast_integer(0x7FFFFFFF);  // NaN is the largest
    const int32_t amax_bits = largest(magnitude);
    float amax;
    std::memcpy(&amax, &amax_bits, sizeof amax);
    uint16_t halves[16];  // all the same
    store_half(halves, broadcast(amax * (1.0f / 127.0f)));
    scale_half = halves[0];
    constexpr uint16_t kInfinity = 0x7C00;
    I32x16 rounded = broadcast_integer(0);
    if (scale_half != 0 && scale_half < kInfinity) {
        const F32x16 inverse = broadcast(1.0f) / load_half(halves);
        const F32x16 whole = round_to_whole(values * inverse);
        rounded = to_integer(max(broadcast(-127.0f), min(broadcast(127.0f), whole)));
    }
    int8_t all[16];
    store_int8(all, rounded);
    std::memcpy(codes, all, count < 16 ? count : 16);
}

QWENSTACK_INLINE void store_int8_row(int8_t* row, const float* values, size_t head_dim) {
    const size_t num_groups = num_int8_groups(head_dim);
    int8_t* const codes = row + 2 * num_groups;
    for (size_t group = 0; group < num_groups; ++group) {
        const size_t column = group * kInt8GroupColumns;
        uint16_t scale;
        store_int8_group(load_first(values + column, head_dim - column), scale, codes + column, head_dim - column);
        std::memcpy(row + 2 * group, &scale, sizeof scale);
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
        case CacheType::kInt8:
            return function.template operator()<CacheType::kInt8>();
    }
}

}  // namespace
}  // namespace qwenstack
