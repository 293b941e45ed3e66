// Sixteen lanes in four NEON registers. Same contract as `scalar.h`, which explains each function.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "pair_sums.h"

namespace qwenstack {
namespace {

#define QWENSTACK_INLINE inline __attribute__((always_inline))
// Before a loop over the four registers of a vector: it must become straight code.
#define QWENSTACK_EACH_QUARTER _Pragma("GCC unroll 4") for (int i = 0; i < 4; ++i)

// Tokens and tiles of 16 rows that the matrix kernels compute together. As with AVX2, sums and results of four tokens
// take all registers: four a vector here, 32 in all.
static constexpr size_t kBlockTokens = 4;
static constexpr size_t kMaxTiles = 1;
static constexpr size_t kVectorRegisters = 8;  // that hold 16 lanes, as fours

struct F32x16 {
    float32x4_t quarter[4];
};
struct I32x16 {
    int32x4_t quarter[4];
};
struct U8x64 {
    uint8x16_t quarter[4];
};

template <typename Function>
QWENSTACK_INLINE F32x16 map_quarters(Function function) {
    F32x16 result;
    QWENSTACK_EACH_QUARTER { result.quarter[i] = function(i); }
    return result;
}

template <typename Function>
QWENSTACK_INLINE I32x16 map_integer_quarters(Function function) {
    I32x16 result;
    QWENSTACK_EACH_QUARTER { result.quarter[i] = function(i); }
    return result;
}

template <typename Function>
QWENSTACK_INLINE U8x64 map_byte_quarters(Function function) {
    U8x64 result;
    QWENSTACK_EACH_QUARTER { result.quarter[i] = function(i); }
    return result;
}

QWENSTACK_INLINE F32x16 broadcast(float value) {
    return map_quarters([&](int) { return vdupq_n_f32(value); });
}
QWENSTACK_INLINE F32x16 load(const float* from) {
    return map_quarters([&](int i) { return vld1q_f32(from + 4 * i); });
}
QWENSTACK_INLINE F32x16 load_half(const uint16_t* from) {
    return map_quarters([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + 4 * i))); });
}
QWENSTACK_INLINE I32x16 widened(int8x16_t bytes) {
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return {{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
             vmovl_s16(vget_high_s16(high))}};
}
QWENSTACK_INLINE F32x16 load_int8(const int8_t* from) {
    const I32x16 values = widened(vld1q_s8(from));
    return map_quarters([&](int i) { return vcvtq_f32_s32(values.quarter[i]); });
}
QWENSTACK_INLINE I32x16 load_widened(const uint16_t* from) {
    return map_integer_quarters([&](int i) { return vreinterpretq_s32_u32(vmovl_u16(vld1_u16(from + 4 * i))); });
}
QWENSTACK_INLINE void store(float* to, F32x16 a) {
    QWENSTACK_EACH_QUARTER { vst1q_f32(to + 4 * i, a.quarter[i]); }
}
QWENSTACK_INLINE void store_half(uint16_t* to, F32x16 a) {
    QWENSTACK_EACH_QUARTER { vst1_u16(to + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.quarter[i]))); }
}
QWENSTACK_INLINE void store_narrowed(uint16_t* to, I32x16 a) {
    QWENSTACK_EACH_QUARTER { vst1_u16(to + 4 * i, vmovn_u32(vreinterpretq_u32_s32(a.quarter[i]))); }
}
QWENSTACK_INLINE void store_int8(int8_t* to, I32x16 a) {
    const int16x8_t low = vcombine_s16(vmovn_s32(a.quarter[0]), vmovn_s32(a.quarter[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(a.quarter[2]), vmovn_s32(a.quarter[3]));
    vst1q_s8(to, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}

QWENSTACK_INLINE F32x16 operator+(F32x16 a, F32x16 b) {
    return map_quarters([&](int i) { return vaddq_f32(a.quarter[i], b.quarter[i]); });
}
QWENSTACK_INLINE F32x16 operator-(F32x16 a, F32x16 b) {
    return map_quarters([&](int i) { return vsubq_f32(a.quarter[i], b.quarter[i]); });
}
QWENSTACK_INLINE F32x16 operator*(F32x16 a, F32x16 b) {
    return map_quarters([&](int i) { return vmulq_f32(a.quarter[i], b.quarter[i]); });
}
QWENSTACK_INLINE F32x16 operator/(F32x16 a, F32x16 b) {
    return map_quarters([&](int i) { return vdivq_f32(a.quarter[i], b.quarter[i]); });
}
QWENSTACK_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
    return map_quarters([&](int i) { return vfmaq_f32(c.quarter[i], a.quarter[i], b.quarter[i]); });
}
// `vmaxq_f32` and `vminq_f32` would return NaN whichever argument is NaN, and order the zeros.
QWENSTACK_INLINE float32x4_t larger(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
QWENSTACK_INLINE float32x4_t smaller(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
QWENSTACK_INLINE F32x16 max(F32x16 a, F32x16 b) {
    return map_quarters([&](int i) { return larger(a.quarter[i], b.quarter[i]); });
}
QWENSTACK_INLINE F32x16 min(F32x16 a, F32x16 b) {
    return map_quarters([&](int i) { return smaller(a.quarter[i], b.quarter[i]); });
}

QWENSTACK_INLINE I32x16 broadcast_integer(int32_t value) {
    return map_integer_quarters([&](int) { return vdupq_n_s32(value); });
}
QWENSTACK_INLINE I32x16 operator+(I32x16 a, I32x16 b) {
    return map_integer_quarters([&](int i) { return vaddq_s32(a.quarter[i], b.quarter[i]); });
}
QWENSTACK_INLINE I32x16 operator&(I32x16 a, I32x16 b) {
    return map_integer_quarters([&](int i) { return vandq_s32(a.quarter[i], b.quarter[i]); });
}
QWENSTACK_INLINE I32x16 operator|(I32x16 a, I32x16 b) {
    return map_integer_quarters([&](int i) { return vorrq_s32(a.quarter[i], b.quarter[i]); });
}
QWENSTACK_INLINE I32x16 max(I32x16 a, I32x16 b) {
    return map_integer_quarters([&](int i) { return vmaxq_s32(a.quarter[i], b.quarter[i]); });
}
template <int kBits>
QWENSTACK_INLINE I32x16 shift_left(I32x16 a) {
    return map_integer_quarters([&](int i) { return vshlq_n_s32(a.quarter[i], kBits); });
}
template <int kBits>
QWENSTACK_INLINE I32x16 shift_right_logical(I32x16 a) {
    return map_integer_quarters(
        [&](int i) { return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a.quarter[i]), kBits)); });
}
QWENSTACK_INLINE I32x16 is_greater(I32x16 a, I32x16 b) {
    return map_integer_quarters([&](int i) { return vreinterpretq_s32_u32(vcgtq_s32(a.quarter[i], b.quarter[i])); });
}
QWENSTACK_INLINE I32x16 select(I32x16 condition, I32x16 a, I32x16 b) {
    return map_integer_quarters(
        [&](int i) { return vbslq_s32(vreinterpretq_u32_s32(condition.quarter[i]), a.quarter[i], b.quarter[i]); });
}
QWENSTACK_INLINE I32x16 lane_numbers() {
    const int32_t numbers[4] = {0, 1, 2, 3};
    return map_integer_quarters([&](int i) { return vaddq_s32(vld1q_s32(numbers), vdupq_n_s32(4 * i)); });
}

QWENSTACK_INLINE F32x16 to_float(I32x16 a) {
    return map_quarters([&](int i) { return vcvtq_f32_s32(a.quarter[i]); });
}
QWENSTACK_INLINE I32x16 to_integer(F32x16 a) {
    return map_integer_quarters([&](int i) { return vcvtq_s32_f32(a.quarter[i]); });
}
QWENSTACK_INLINE I32x16 bits_of(F32x16 a) {
    return map_integer_quarters([&](int i) { return vreinterpretq_s32_f32(a.quarter[i]); });
}
QWENSTACK_INLINE F32x16 float_of(I32x16 a) {
    return map_quarters([&](int i) { return vreinterpretq_f32_s32(a.quarter[i]); });
}

QWENSTACK_INLINE float sum(F32x16 a) {
    const float32x4_t four = vaddq_f32(vaddq_f32(a.quarter[0], a.quarter[2]), vaddq_f32(a.quarter[1], a.quarter[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
QWENSTACK_INLINE float largest(F32x16 a) {
    const float32x4_t four = larger(larger(a.quarter[0], a.quarter[2]), larger(a.quarter[1], a.quarter[3]));
    const float32x4_t two = larger(four, vextq_f32(four, four, 2));
    const float first = vgetq_lane_f32(two, 0), second = vgetq_lane_f32(two, 1);
    return first > second ? first : second;
}
QWENSTACK_INLINE bool is_any_greater(F32x16 a, F32x16 b) {
    uint32x4_t found = vdupq_n_u32(0);
    QWENSTACK_EACH_QUARTER { found = vorrq_u32(found, vcgtq_f32(a.quarter[i], b.quarter[i])); }
    return vmaxvq_u32(found) != 0;
}
QWENSTACK_INLINE int32_t largest(I32x16 a) {
    return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.quarter[0], a.quarter[1]), vmaxq_s32(a.quarter[2], a.quarter[3])));
}

QWENSTACK_INLINE void transpose_4x4(float32x4_t& a, float32x4_t& b, float32x4_t& c, float32x4_t& d) {
    const float32x4_t ab_even = vtrn1q_f32(a, b), ab_odd = vtrn2q_f32(a, b);
    const float32x4_t cd_even = vtrn1q_f32(c, d), cd_odd = vtrn2q_f32(c, d);
    a = vcombine_f32(vget_low_f32(ab_even), vget_low_f32(cd_even));
    b = vcombine_f32(vget_low_f32(ab_odd), vget_low_f32(cd_odd));
    c = vcombine_f32(vget_high_f32(ab_even), vget_high_f32(cd_even));
    d = vcombine_f32(vget_high_f32(ab_odd), vget_high_f32(cd_odd));
}
QWENSTACK_INLINE void transpose(F32x16 rows[16]) {
    for (int block_row = 0; block_row < 4; ++block_row) {
        F32x16* const four = rows + 4 * block_row;
        QWENSTACK_EACH_QUARTER {
            transpose_4x4(four[0].quarter[i], four[1].quarter[i], four[2].quarter[i], four[3].quarter[i]);
        }
    }
    for (int block_row = 0; block_row < 4; ++block_row) {
        for (int block_column = 0; block_column < block_row; ++block_column) {
            QWENSTACK_EACH_QUARTER {
                float32x4_t& below = rows[4 * block_row + i].quarter[block_column];
                float32x4_t& above = rows[4 * block_column + i].quarter[block_row];
                const float32x4_t kept = below;
                below = above;
                above = kept;
            }
        }
    }
}

QWENSTACK_INLINE U8x64 load_bytes(const uint8_t* from) {
    return map_byte_quarters([&](int i) { return vld1q_u8(from + 16 * i); });
}
QWENSTACK_INLINE void store_bytes(uint8_t* to, U8x64 a) {
    QWENSTACK_EACH_QUARTER { vst1q_u8(to + 16 * i, a.quarter[i]); }
}
QWENSTACK_INLINE U8x64 operator&(U8x64 a, U8x64 b) {
    return map_byte_quarters([&](int i) { return vandq_u8(a.quarter[i], b.quarter[i]); });
}
QWENSTACK_INLINE U8x64 operator|(U8x64 a, U8x64 b) {
    return map_byte_quarters([&](int i) { return vorrq_u8(a.quarter[i], b.quarter[i]); });
}
QWENSTACK_INLINE U8x64 broadcast_byte(uint8_t value) {
    return map_byte_quarters([&](int) { return vdupq_n_u8(value); });
}
template <int kLeft>
QWENSTACK_INLINE U8x64 shifted_bits(U8x64 a, U8x64 mask) {
    return map_byte_quarters([&](int i) {
        if constexpr (kLeft > 0) {
            return vandq_u8(vshlq_n_u8(a.quarter[i], kLeft), mask.quarter[i]);
        } else if constexpr (kLeft < 0) {
            return vandq_u8(vshrq_n_u8(a.quarter[i], -kLeft), mask.quarter[i]);
        } else {
            return vandq_u8(a.quarter[i], mask.quarter[i]);
        }
    });
}

QWENSTACK_INLINE F32x16 kept(F32x16 a) { return a; }

QWENSTACK_INLINE PairSums pair_sums(const int8_t* activations) {
    const int16x8_t eight = vpaddlq_s8(vld1q_s8(activations));  // of 4i and 4i + 1, of 4i + 2 and 4i + 3, and so on
    const int16x8_t evens = vuzp1q_s16(eight, eight), odds = vuzp2q_s16(eight, eight);
    return {vaddv_s16(vget_low_s16(evens)), vaddv_s16(vget_low_s16(odds))};
}

QWENSTACK_INLINE int32_t start_of_dots(PairSums sums) { return -sums.total(); }

// The dot instruction takes signed bytes. A code of at most 6 bits is one; one of 8 bits becomes one by losing its
// zero.
template <int kCodeBits, int kZero>
struct DotSum {
    static constexpr size_t kSettleAfter = 8;
    I32x16 total;

    QWENSTACK_INLINE void start(int32_t start) { total = broadcast_integer(kCodeBits == 8 ? 0 : kZero * start); }
    QWENSTACK_INLINE void add(U8x64 codes, const int8_t* activations) {
        int32_t four;
        std::memcpy(&four, activations, sizeof four);
        const int8x16_t all = vreinterpretq_s8_s32(vdupq_n_s32(four));
        const uint8x16_t zero = vdupq_n_u8(kCodeBits == 8 ? 128 : 0);
        total = map_integer_quarters([&](int i) {
            return vdotq_s32(total.quarter[i], vreinterpretq_s8_u8(veorq_u8(codes.quarter[i], zero)), all);
        });
    }
    QWENSTACK_INLINE void settle() {}
    QWENSTACK_INLINE I32x16 result() const { return total; }
};

}  // namespace
}  // namespace qwenstack
