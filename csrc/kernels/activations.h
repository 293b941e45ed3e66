// RMS norm, and activations rounded to int8.
//
// norm:     y = (x · (1 / sqrt(mean(x²) + eps))) · weight, float32. The squares are added by a fused multiply-add into
//           16 lanes, column modulo 16, and the lanes over the fixed tree.
// quantise: in each group of 32 columns scale = amax / 127, q = round_half_even(y · (127 / amax)), -127 ≤ q ≤ 127. A
//           group whose amax is below 2^-100 counts as zero; one that holds infinity or NaN gets q = 0 and a scale that
//           is not finite, so that the result is NaN and is noticed. 16-bit activations are two such roundings: the
//           second takes what the first left, y - scale · q.
//
// Layout: blocks of up to kBlockTokens tokens; in a block, for each group of 32 columns, one record of 60 bytes per
// token, stored field by field: int8 codes[tokens][32], then float32 scale[tokens], int32 start_of_dots[3][tokens]:
// what the instruction set made of -Σ q (over the group, its first and its second half), float32 scaled_sum[3][tokens]:
// scale · Σ q over the same three.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../kernel_table.h"

namespace qwenstack {
namespace {

// The fields of one group's record for a block of tokens.
struct ActivationGroup {
    const uint8_t* at;
    size_t num_tokens;

    QWENSTACK_INLINE const int8_t* codes(size_t token) const {
        return reinterpret_cast<const int8_t*>(at) + token * kGroupColumns;
    }
    QWENSTACK_INLINE float scale(size_t token) const { return field<float>(0, token); }
    // part 0 is the whole group, 1 and 2 are its halves
    QWENSTACK_INLINE int32_t start_of_dots(size_t part, size_t token) const { return field<int32_t>(1 + part, token); }
    QWENSTACK_INLINE float scaled_sum(size_t part, size_t token) const { return field<float>(4 + part, token); }

    template <typename T>
    QWENSTACK_INLINE T field(size_t index, size_t token) const {
        T value;
        std::memcpy(&value, at + num_tokens * kGroupColumns + (index * num_tokens + token) * sizeof(T), sizeof value);
        return value;
    }
};
static_assert(kActivationGroupBytes == kGroupColumns + 7 * sizeof(float));

// 1 / sqrt(mean(x²) + eps).
QWENSTACK_INLINE float inverse_rms(const float* x, size_t width, float eps) {
    F32x16 squares = broadcast(0.0f);
    for (size_t i = 0; i < width; i += 16) {
        const F32x16 values = load_first(x + i, width - i);
        squares = fma(values, values, squares);
    }
    return 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(width) + eps);
}

QWENSTACK_INLINE F32x16 scaled_by_norm(F32x16 x, float inverse, const float* weight, size_t count) {
    return x * broadcast(inverse) * load_first(weight, count);
}

inline void rms_norm_row(const NormJob& job, size_t row) {
    const float* const x = job.x + row * job.width;
    float* const out = job.out + row * job.width;
    const float inverse = inverse_rms(x, job.width, job.eps);
    for (size_t i = 0; i < job.width; i += 16) {
        const size_t count = job.width - i;
        store_first(out + i, scaled_by_norm(load_first(x + i, count), inverse, job.weight + i, count), count);
    }
}

static constexpr int32_t kBitsOfInfinity = 0x7F800000;
static constexpr int32_t kBitsOfSmallestAmax = 0x0D800000;  // 2^-100

// The factor for codes and the scale of a group whose largest magnitude has these bits.
struct GroupScale {
    float factor;
    float scale;
};

QWENSTACK_INLINE GroupScale group_scale(int32_t amax_bits) {
    float amax;
    std::memcpy(&amax, &amax_bits, sizeof amax);
    if (amax_bits < kBitsOfSmallestAmax) {
        return {0.0f, 0.0f};
    }
    if (amax_bits >= kBitsOfInfinity) {
        return {0.0f, amax};
    }
    return {127.0f / amax, amax * (1.0f / 127.0f)};
}

// Rounds a group of one token into its record; what rounding took away is left in `first` and `second`.
QWENSTACK_INLINE void quantize_group(F32x16& first, F32x16& second, uint8_t* group, size_t num_tokens, size_t token) {
    // As integers the bits of magnitudes order like the magnitudes, with NaN above infinity: unlike a maximum of floats
    // this one can lose nothing.
    const I32x16 magnitude = broadcast_integer(0x7FFFFFFF);
    const int32_t amax_bits = largest(max(bits_of(first) & magnitude, bits_of(second) & magnitude));
    const GroupScale scale = group_scale(amax_bits);
    I32x16 codes[2] = {broadcast_integer(0), broadcast_integer(0)};
    if (scale.factor != 0.0f) {
        codes[0] = to_integer(round_to_whole(first * broadcast(scale.factor)));
        codes[1] = to_integer(round_to_whole(second * broadcast(scale.factor)));
    }
    int8_t* const to = reinterpret_cast<int8_t*>(group) + token * kGroupColumns;
    store_int8(to, codes[0]);
    store_int8(to + 16, codes[1]);
    const PairSums halves[2] = {pair_sums(to), pair_sums(to + 16)};
    const PairSums sums[3] = {halves[0] + halves[1], halves[0], halves[1]};
    uint8_t* field = group + num_tokens * kGroupColumns + token * sizeof(float);
    const size_t field_bytes = num_tokens * sizeof(float);
    std::memcpy(field, &scale.scale, sizeof scale.scale);
    for (int part = 0; part < 3; ++part) {
        const int32_t start = start_of_dots(sums[part]);
        const float scaled_sum = scale.scale * static_cast<float>(sums[part].total());
        std::memcpy(field + (1 + part) * field_bytes, &start, sizeof start);
        std::memcpy(field + (4 + part) * field_bytes, &scaled_sum, sizeof scaled_sum);
    }
    const F32x16 minus_scale = broadcast(-scale.scale);
    first = fma(to_float(codes[0]), minus_scale, first);
    second = fma(to_float(codes[1]), minus_scale, second);
}

inline void quantize_block(const LinearJob& job, size_t first_token, size_t num_tokens, uint8_t* to, uint8_t* rest) {
    const size_t width = job.in_features;
    const size_t block_at = first_token * (width / kGroupColumns) * kActivationGroupBytes;
    for (size_t token = 0; token < num_tokens; ++token) {
        const float* const x = job.x + (first_token + token) * width;
        const float inverse = job.norm_weight == nullptr ? 1.0f : inverse_rms(x, width, job.eps);
        size_t group_at = block_at;
        for (size_t i = 0; i < width; i += kGroupColumns) {
            F32x16 first = load(x + i), second = load(x + i + 16);
            if (job.norm_weight != nullptr) {
                first = scaled_by_norm(first, inverse, job.norm_weight + i, 16);
                second = scaled_by_norm(second, inverse, job.norm_weight + i + 16, 16);
            }
            quantize_group(first, second, to + group_at, num_tokens, token);
            if (rest != nullptr) {
                quantize_group(first, second, rest + group_at, num_tokens, token);
            }
            group_at += num_tokens * kActivationGroupBytes;
        }
    }
}

}  // namespace
}  // namespace qwenstack
