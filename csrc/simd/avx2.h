// Sixteen lanes in two AVX2 registers. Same contract as `scalar.h`, which explains each function.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "x86.h"

namespace qwenstack {
namespace {

#define QWENSTACK_INLINE inline __attribute__((always_inline))

// Tokens and tiles of 16 rows that the matrix kernels compute together: two registers a vector, 16 registers.
static constexpr size_t kBlockTokens = 4;
static constexpr size_t kMaxTiles = 1;
static constexpr size_t kVectorRegisters = 8;  // that hold 16 lanes, as pairs

struct F32x16 {
    __m256 low, high;
};
struct I32x16 {
    __m256i low, high;
};
struct U8x64 {
    __m256i low, high;
};

QWENSTACK_INLINE __m256i load_256(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
QWENSTACK_INLINE __m128i load_128(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
QWENSTACK_INLINE void store_256(void* to, __m256i a) { _mm256_storeu_si256(static_cast<__m256i*>(to), a); }
QWENSTACK_INLINE void store_128(void* to, __m128i a) { _mm_storeu_si128(static_cast<__m128i*>(to), a); }

QWENSTACK_INLINE F32x16 broadcast(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
QWENSTACK_INLINE F32x16 load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
QWENSTACK_INLINE F32x16 load_half(const uint16_t* from) {
    return {_mm256_cvtph_ps(load_128(from)), _mm256_cvtph_ps(load_128(from + 8))};
}
QWENSTACK_INLINE F32x16 load_int8(const int8_t* from) {
    const __m128i bytes = load_128(from);
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
QWENSTACK_INLINE I32x16 load_widened(const uint16_t* from) {
    return {_mm256_cvtepu16_epi32(load_128(from)), _mm256_cvtepu16_epi32(load_128(from + 8))};
}
QWENSTACK_INLINE void store(float* to, F32x16 a) {
    _mm256_storeu_ps(to, a.low);
    _mm256_storeu_ps(to + 8, a.high);
}
QWENSTACK_INLINE void store_half(uint16_t* to, F32x16 a) {
    store_128(to, _mm256_cvtps_ph(a.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    store_128(to + 8, _mm256_cvtps_ph(a.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
QWENSTACK_INLINE void store_narrowed(uint16_t* to, I32x16 a) {
    const __m256i mask = _mm256_set1_epi32(0xFFFF);
    const __m256i packed = _mm256_packus_epi32(_mm256_and_si256(a.low, mask), _mm256_and_si256(a.high, mask));
    store_256(to, _mm256_permute4x64_epi64(packed, 0xD8));
}
QWENSTACK_INLINE void store_int8(int8_t* to, I32x16 a) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.low, a.high), 0xD8);
    store_128(to, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

QWENSTACK_INLINE F32x16 operator+(F32x16 a, F32x16 b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
QWENSTACK_INLINE F32x16 operator-(F32x16 a, F32x16 b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
QWENSTACK_INLINE F32x16 operator*(F32x16 a, F32x16 b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
QWENSTACK_INLINE F32x16 operator/(F32x16 a, F32x16 b) {
    return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
QWENSTACK_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
QWENSTACK_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
QWENSTACK_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }

QWENSTACK_INLINE I32x16 broadcast_integer(int32_t value) {
    return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)};
}
QWENSTACK_INLINE I32x16 operator+(I32x16 a, I32x16 b) {
    return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
QWENSTACK_INLINE I32x16 operator&(I32x16 a, I32x16 b) {
    return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)};
}
QWENSTACK_INLINE I32x16 operator|(I32x16 a, I32x16 b) {
    return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)};
}
QWENSTACK_INLINE I32x16 max(I32x16 a, I32x16 b) {
    return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)};
}
template <int kBits>
QWENSTACK_INLINE I32x16 shift_left(I32x16 a) {
    return {_mm256_slli_epi32(a.low, kBits), _mm256_slli_epi32(a.high, kBits)};
}
template <int kBits>
QWENSTACK_INLINE I32x16 shift_right_logical(I32x16 a) {
    return {_mm256_srli_epi32(a.low, kBits), _mm256_srli_epi32(a.high, kBits)};
}
QWENSTACK_INLINE I32x16 is_greater(I32x16 a, I32x16 b) {
    return {_mm256_cmpgt_epi32(a.low, b.low), _mm256_cmpgt_epi32(a.high, b.high)};
}
QWENSTACK_INLINE I32x16 select(I32x16 condition, I32x16 a, I32x16 b) {
    return {_mm256_blendv_epi8(b.low, a.low, condition.low), _mm256_blendv_epi8(b.high, a.high, condition.high)};
}
QWENSTACK_INLINE I32x16 lane_numbers() {
    return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
}

QWENSTACK_INLINE F32x16 to_float(I32x16 a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
QWENSTACK_INLINE I32x16 to_integer(F32x16 a) { return {_mm256_cvttps_epi32(a.low), _mm256_cvttps_epi32(a.high)}; }
QWENSTACK_INLINE I32x16 bits_of(F32x16 a) { return {_mm256_castps_si256(a.low), _mm256_castps_si256(a.high)}; }
QWENSTACK_INLINE F32x16 float_of(I32x16 a) { return {_mm256_castsi256_ps(a.low), _mm256_castsi256_ps(a.high)}; }

QWENSTACK_INLINE float sum(F32x16 a) {
    const __m256 eight = _mm256_add_ps(a.low, a.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
QWENSTACK_INLINE float largest(F32x16 a) {
    const __m256 eight = _mm256_max_ps(a.low, a.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
QWENSTACK_INLINE bool is_any_greater(F32x16 a, F32x16 b) {
    const __m256 low = _mm256_cmp_ps(a.low, b.low, _CMP_GT_OQ), high = _mm256_cmp_ps(a.high, b.high, _CMP_GT_OQ);
    return _mm256_movemask_ps(_mm256_or_ps(low, high)) != 0;
}
QWENSTACK_INLINE int32_t largest(I32x16 a) {
    const __m256i eight = _mm256_max_epi32(a.low, a.high);
    const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xB1)));
}

QWENSTACK_INLINE void transpose_8x8(__m256 rows[8]) {
    __m256 pairs[8], quads[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
        quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xEE);
        quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
        quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xEE);
    }
    for (int i = 0; i < 4; ++i) {
        rows[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
        rows[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
    }
}
QWENSTACK_INLINE void transpose(F32x16 rows[16]) {
    __m256 top_left[8], top_right[8], bottom_left[8], bottom_right[8];
    for (int i = 0; i < 8; ++i) {
        top_left[i] = rows[i].low;
        top_right[i] = rows[i].high;
        bottom_left[i] = rows[i + 8].low;
        bottom_right[i] = rows[i + 8].high;
    }
    transpose_8x8(top_left);
    transpose_8x8(top_right);
    transpose_8x8(bottom_left);
    transpose_8x8(bottom_right);
    for (int i = 0; i < 8; ++i) {
        rows[i] = {top_left[i], bottom_left[i]};
        rows[i + 8] = {top_right[i], bottom_right[i]};
    }
}

QWENSTACK_INLINE U8x64 load_bytes(const uint8_t* from) { return {load_256(from), load_256(from + 32)}; }
QWENSTACK_INLINE void store_bytes(uint8_t* to, U8x64 a) {
    store_256(to, a.low);
    store_256(to + 32, a.high);
}
QWENSTACK_INLINE U8x64 operator&(U8x64 a, U8x64 b) {
    return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)};
}
QWENSTACK_INLINE U8x64 operator|(U8x64 a, U8x64 b) {
    return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)};
}
QWENSTACK_INLINE U8x64 broadcast_byte(uint8_t value) {
    const __m256i all = _mm256_set1_epi8(static_cast<char>(value));
    return {all, all};
}
// There is no shift of bytes: 16-bit lanes are shifted, and the mask drops what came from the neighbour.
template <int kLeft>
QWENSTACK_INLINE U8x64 shifted_bits(U8x64 a, U8x64 mask) {
    if constexpr (kLeft > 0) {
        return U8x64{_mm256_slli_epi16(a.low, kLeft), _mm256_slli_epi16(a.high, kLeft)} & mask;
    }
    if constexpr (kLeft < 0) {
        return U8x64{_mm256_srli_epi16(a.low, -kLeft), _mm256_srli_epi16(a.high, -kLeft)} & mask;
    }
    return a & mask;
}

QWENSTACK_INLINE F32x16 kept(F32x16 a) {
    asm("" : "+x"(a.low), "+x"(a.high));
    return a;
}

// Keeps the compiler from putting off sums until it runs out of registers.
QWENSTACK_INLINE void keep_in_registers(__m256i& a, __m256i& b) { asm("" : "+x"(a), "+x"(b)); }

QWENSTACK_INLINE int32_t start_of_dots(PairSums sums) {  // one 16-bit number for each of a lane's pairs
    return static_cast<int32_t>(static_cast<uint32_t>(-sums.later) << 16 | static_cast<uint16_t>(-sums.earlier));
}

// Pairs of products are summed in 16 bits, which may wrap around on the way: the sums of (code - zero) · activation, at
// most 2 · 127 · kMost for each quad, fit at the end. With a zero this end must be the only one: it is in `start`.
template <int kCodeBits, int kZero>
struct DotSum {
    static constexpr int kMost = std::max(kZero, (1 << kCodeBits) - 1 - kZero);
    static constexpr size_t kSettleAfter = 8 * 2 * 127 * kMost <= INT16_MAX ? 8 : 4;
    static_assert(kSettleAfter * 2 * 127 * kMost <= INT16_MAX);
    I32x16 total;
    __m256i pairs_low, pairs_high;

    QWENSTACK_INLINE void start(int32_t start) {
        total = broadcast_integer(0);
        pairs_low = pairs_high = _mm256_setzero_si256();
        if constexpr (kZero != 0) {
            pairs_low = pairs_high = _mm256_mullo_epi16(_mm256_set1_epi32(start), _mm256_set1_epi16(kZero));
        }
    }
    QWENSTACK_INLINE void add(U8x64 codes, const int8_t* activations) {
        int32_t four;
        std::memcpy(&four, activations, sizeof four);
        const __m256i all = _mm256_set1_epi32(four);
        pairs_low = _mm256_add_epi16(pairs_low, _mm256_maddubs_epi16(codes.low, all));
        pairs_high = _mm256_add_epi16(pairs_high, _mm256_maddubs_epi16(codes.high, all));
        keep_in_registers(pairs_low, pairs_high);
    }
    QWENSTACK_INLINE void settle() {
        const __m256i ones = _mm256_set1_epi16(1);
        total.low = _mm256_add_epi32(total.low, _mm256_madd_epi16(pairs_low, ones));
        total.high = _mm256_add_epi32(total.high, _mm256_madd_epi16(pairs_high, ones));
        pairs_low = pairs_high = _mm256_setzero_si256();
    }
    QWENSTACK_INLINE I32x16 result() const { return total; }
};

// Codes of 8 bits do not fit so: the sign of code - 128 goes to the activations, and 2 · 127 · 128 into 16 bits.
template <int kZero>
struct DotSum<8, kZero> {
    static constexpr size_t kSettleAfter = 8;
    I32x16 total;

    QWENSTACK_INLINE void start(int32_t) { total = broadcast_integer(0); }
    QWENSTACK_INLINE void add(U8x64 codes, const int8_t* activations) {
        int32_t four;
        std::memcpy(&four, activations, sizeof four);
        const __m256i all = _mm256_set1_epi32(four);
        total.low = _mm256_add_epi32(total.low, dot4(codes.low, all));
        total.high = _mm256_add_epi32(total.high, dot4(codes.high, all));
        keep_in_registers(total.low, total.high);
    }
    QWENSTACK_INLINE void settle() {}
    QWENSTACK_INLINE I32x16 result() const { return total; }

private:
    QWENSTACK_INLINE static __m256i dot4(__m256i codes, __m256i activations) {
        const __m256i values = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(values), _mm256_sign_epi8(activations, values));
        return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    }
};

}  // namespace
}  // namespace qwenstack
