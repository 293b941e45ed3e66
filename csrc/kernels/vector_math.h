// Functions on vectors that are the same sequence of operations on every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

// Before a loop of at most 8 rounds over registers: it must become straight code.
#if defined(__clang__)
#define QWENSTACK_UNROLL _Pragma("unroll")
#else
#define QWENSTACK_UNROLL _Pragma("GCC unroll 8")
#endif

// For functions around an inner loop: it gets registers of its own.
#define QWENSTACK_NOINLINE __attribute__((noinline))

// Between the parameters and the body of a lambda that must become part of its caller.
#define QWENSTACK_INLINE_LAMBDA __attribute__((always_inline))

namespace qwenstack {
namespace {

// Calls `function.template operator()<i>()` for i = 0…kCount - 1, as straight code.
template <size_t kCount, typename Function>
QWENSTACK_INLINE void for_each_index(Function function) {
    [&]<size_t... kIndex>(std::index_sequence<kIndex...>)
        QWENSTACK_INLINE_LAMBDA { (function.template operator()<kIndex>(), ...); }(std::make_index_sequence<kCount>());
}

// Loads and stores of fewer than 16 values; the missing lanes are 0.
template <typename Load, typename T>
QWENSTACK_INLINE auto load_first(Load load_all, const T* from, size_t count) {
    if (count >= 16) {
        return load_all(from);
    }
    T values[16] = {};
    std::memcpy(values, from, count * sizeof(T));
    return load_all(values);
}

QWENSTACK_INLINE F32x16 load_first(const float* from, size_t count) {
    return load_first([](const float* p) { return load(p); }, from, count);
}

QWENSTACK_INLINE void store_first(float* to, F32x16 a, size_t count) {
    if (count >= 16) {
        return store(to, a);
    }
    float values[16];
    store(values, a);
    std::memcpy(to, values, count * sizeof(float));
}

// Rounds to a whole number, ties to even, for |a| < 2^22: adding 1.5 · 2^23 leaves no bits for a fraction.
static constexpr float kRoundingMagic = 12582912.0f;

QWENSTACK_INLINE F32x16 round_to_whole(F32x16 a) { return (a + broadcast(kRoundingMagic)) - broadcast(kRoundingMagic); }

// e^x for x clipped to ±87, about 2 ulp; NaN stays NaN. With n = round(x / ln 2) it is 2^n · p(x - n · ln 2).
// Source: polynomial and two-part ln 2 of Cephes `expf` (Moshier).
QWENSTACK_INLINE F32x16 exponential(F32x16 x) {
    x = max(broadcast(-87.0f), min(broadcast(87.0f), x));
    const F32x16 shifted = fma(x, broadcast(1.44269504088896341f), broadcast(kRoundingMagic));
    const F32x16 n = shifted - broadcast(kRoundingMagic);
    F32x16 r = fma(n, broadcast(-0.693359375f), x);
    r = fma(n, broadcast(2.12194440e-4f), r);
    F32x16 p = broadcast(1.9875691500e-4f);
    p = fma(p, r, broadcast(1.3981999507e-3f));
    p = fma(p, r, broadcast(8.3334519073e-3f));
    p = fma(p, r, broadcast(4.1665795894e-2f));
    p = fma(p, r, broadcast(1.6666665459e-1f));
    p = fma(p, r, broadcast(5.0000001201e-1f));
    p = fma(p, r * r, r) + broadcast(1.0f);
    const I32x16 exponent = shift_left<23>(bits_of(shifted)) + broadcast_integer(0x3F800000);  // the low bits are n
    return p * float_of(exponent);
}

QWENSTACK_INLINE F32x16 silu_times(F32x16 gate, F32x16 up) {
    const F32x16 one = broadcast(1.0f);
    return gate / (one + exponential(broadcast(0.0f) - gate)) * up;
}

QWENSTACK_INLINE F32x16 load_bfloat16(const uint16_t* from) { return float_of(shift_left<16>(load_widened(from))); }

// Rounds to the nearest bfloat16, ties to even; NaN becomes a quiet NaN.
QWENSTACK_INLINE void store_bfloat16(uint16_t* to, F32x16 a) {
    const I32x16 bits = bits_of(a);
    const I32x16 high = shift_right_logical<16>(bits);
    const I32x16 rounded = shift_right_logical<16>(bits + broadcast_integer(0x7FFF) + (high & broadcast_integer(1)));
    const I32x16 is_nan = is_greater(bits & broadcast_integer(0x7FFFFFFF), broadcast_integer(0x7F800000));
    const I32x16 quiet = high | broadcast_integer(0x40);
    store_narrowed(to, select(is_nan, quiet, rounded));
}

}  // namespace
}  // namespace qwenstack
