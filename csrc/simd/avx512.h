// Sixteen lanes in one AVX-512 register. Same contract as `scalar.h`, which explains each function.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "x86.h"

namespace qwenstack {
namespace {

#define QWENSTACK_INLINE inline __attribute__((always_inline))

// Tokens and tiles of 16 rows that the matrix kernels compute together: sums of 8 × 2 in half of the 32 registers.
static constexpr size_t kBlockTokens = 8;
static constexpr size_t kMaxTiles = 2;
static constexpr size_t kVectorRegisters = 32;  // that hold 16 lanes

struct F32x16 {
    __m512 v;
};
struct I32x16 {
    __m512i v;
};
struct U8x64 {
    __m512i v;
};

QWENSTACK_INLINE F32x16 broadcast(float value) { return {_mm512_set1_ps(value)}; }
QWENSTACK_INLINE F32x16 load(const float* from) { return {_mm512_loadu_ps(from)}; }
QWENSTACK_INLINE F32x16 load_half(const uint16_t* from) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}
QWENSTACK_INLINE F32x16 load_int8(const int8_t* from) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))))};
}
QWENSTACK_INLINE I32x16 load_widened(const uint16_t* from) {
    return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}
QWENSTACK_INLINE void store(float* to, F32x16 a) { _mm512_storeu_ps(to, a.v); }
QWENSTACK_INLINE void store_half(uint16_t* to, F32x16 a) {
    const __m256i halves = _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
}
QWENSTACK_INLINE void store_narrowed(uint16_t* to, I32x16 a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(a.v));
}
QWENSTACK_INLINE void store_int8(int8_t* to, I32x16 a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(a.v));
}

QWENSTACK_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
QWENSTACK_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
QWENSTACK_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
QWENSTACK_INLINE F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
QWENSTACK_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
QWENSTACK_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
QWENSTACK_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }

QWENSTACK_INLINE I32x16 broadcast_integer(int32_t value) { return {_mm512_set1_epi32(value)}; }
QWENSTACK_INLINE I32x16 operator+(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
QWENSTACK_INLINE I32x16 operator&(I32x16 a, I32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
QWENSTACK_INLINE I32x16 operator|(I32x16 a, I32x16 b) { return {_mm512_or_si512(a.v, b.v)}; }
QWENSTACK_INLINE I32x16 max(I32x16 a, I32x16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
template <int kBits>
QWENSTACK_INLINE I32x16 shift_left(I32x16 a) {
    return {_mm512_slli_epi32(a.v, kBits)};
}
template <int kBits>
QWENSTACK_INLINE I32x16 shift_right_logical(I32x16 a) {
    return {_mm512_srli_epi32(a.v, kBits)};
}
QWENSTACK_INLINE I32x16 is_greater(I32x16 a, I32x16 b) {
    return {_mm512_movm_epi32(_mm512_cmpgt_epi32_mask(a.v, b.v))};
}
QWENSTACK_INLINE I32x16 select(I32x16 condition, I32x16 a, I32x16 b) {
    return {_mm512_ternarylogic_epi32(condition.v, a.v, b.v, 0xCA)};
}
QWENSTACK_INLINE I32x16 lane_numbers() {
    return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)};
}

QWENSTACK_INLINE F32x16 to_float(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
QWENSTACK_INLINE I32x16 to_integer(F32x16 a) { return {_mm512_cvttps_epi32(a.v)}; }
QWENSTACK_INLINE I32x16 bits_of(F32x16 a) { return {_mm512_castps_si512(a.v)}; }
QWENSTACK_INLINE F32x16 float_of(I32x16 a) { return {_mm512_castsi512_ps(a.v)}; }

QWENSTACK_INLINE float sum(F32x16 a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
QWENSTACK_INLINE float largest(F32x16 a) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
QWENSTACK_INLINE bool is_any_greater(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ) != 0; }
QWENSTACK_INLINE int32_t largest(I32x16 a) { return _mm512_reduce_max_epi32(a.v); }

QWENSTACK_INLINE void transpose(F32x16 rows[16]) {
    __m512 pairs[16];
    for (int i = 0; i < 16; i += 2) {  // 2 × 2 blocks
        pairs[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
        pairs[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
    }
    __m512 quads[16];
    for (int i = 0; i < 16; i += 4) {  // 4 × 4 blocks
        quads[i] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
        quads[i + 1] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0xEE);
        quads[i + 2] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
        quads[i + 3] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xEE);
    }
    for (int i = 0; i < 4; ++i) {  // the quarters of the registers
        const __m512 even_low = _mm512_shuffle_f32x4(quads[i], quads[i + 4], 0x88);
        const __m512 odd_low = _mm512_shuffle_f32x4(quads[i], quads[i + 4], 0xDD);
        const __m512 even_high = _mm512_shuffle_f32x4(quads[i + 8], quads[i + 12], 0x88);
        const __m512 odd_high = _mm512_shuffle_f32x4(quads[i + 8], quads[i + 12], 0xDD);
        rows[i].v = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
        rows[i + 4].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
        rows[i + 8].v = _mm512_shuffle_f32x4(even_low, even_high, 0xDD);
        rows[i + 12].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0xDD);
    }
}

QWENSTACK_INLINE U8x64 load_bytes(const uint8_t* from) { return {_mm512_loadu_si512(from)}; }
QWENSTACK_INLINE void store_bytes(uint8_t* to, U8x64 a) { _mm512_storeu_si512(to, a.v); }
QWENSTACK_INLINE U8x64 operator&(U8x64 a, U8x64 b) { return {_mm512_and_si512(a.v, b.v)}; }
QWENSTACK_INLINE U8x64 operator|(U8x64 a, U8x64 b) { return {_mm512_or_si512(a.v, b.v)}; }
QWENSTACK_INLINE U8x64 broadcast_byte(uint8_t value) { return {_mm512_set1_epi8(static_cast<char>(value))}; }
// There is no shift of bytes: 16-bit lanes are shifted, and the mask drops what came from the neighbour.
template <int kLeft>
QWENSTACK_INLINE U8x64 shifted_bits(U8x64 a, U8x64 mask) {
    if constexpr (kLeft > 0) {
        return U8x64{_mm512_slli_epi16(a.v, kLeft)} & mask;
    }
    if constexpr (kLeft < 0) {
        return U8x64{_mm512_srli_epi16(a.v, -kLeft)} & mask;
    }
    return a & mask;
}

QWENSTACK_INLINE F32x16 kept(F32x16 a) {
    asm("" : "+v"(a.v));
    return a;
}

QWENSTACK_INLINE int32_t start_of_dots(PairSums sums) { return -sums.total(); }

// Zeros are powers of two, and a shift leaves the multipliers to the products.
template <int kCodeBits, int kZero>
struct DotSum {
    static constexpr size_t kSettleAfter = 8;
    I32x16 total;

    QWENSTACK_INLINE void start(int32_t start) {
        if constexpr (kZero == 0) {
            total = broadcast_integer(0);
        } else {
            static_assert((kZero & (kZero - 1)) == 0);
            total = shift_left<__builtin_ctz(kZero)>(broadcast_integer(start));
        }
    }
    QWENSTACK_INLINE void add(U8x64 codes, const int8_t* activations) {
        int32_t four;
        std::memcpy(&four, activations, sizeof four);
        total.v = _mm512_dpbusd_epi32(total.v, codes.v, _mm512_set1_epi32(four));
    }
    QWENSTACK_INLINE void settle() {}
    QWENSTACK_INLINE I32x16 result() const { return total; }
};

}  // namespace
}  // namespace qwenstack
