// What AVX2 and AVX-512 do alike.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "pair_sums.h"

namespace qwenstack {
namespace {

inline __attribute__((always_inline)) PairSums pair_sums(const int8_t* activations) {
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(activations));
    const __m128i eight = _mm_maddubs_epi16(_mm_set1_epi8(1), values);
    const __m128i four = _mm_add_epi16(eight, _mm_shuffle_epi32(eight, 0x4E));
    const int32_t both = _mm_cvtsi128_si32(_mm_add_epi16(four, _mm_shuffle_epi32(four, 0xB1)));
    return {static_cast<int16_t>(both), both >> 16};
}

}  // namespace
}  // namespace qwenstack
