// Sixteen lanes in plain C++: the specification of the vector types that the kernels are written in.
//
// Every instruction set offers these types and functions, and each lane of each function gives the same bits as here:
// a fused multiply-add rounds once, `max` and `min` return the second argument when the first is not greater or
// smaller (also for NaN), and sums of lanes run over the fixed tree of `sum`.
//
// Everything here has internal linkage, so that code compiled for one instruction set can never be linked into
// another's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "pair_sums.h"

namespace qwenstack {
namespace {

#define QWENSTACK_INLINE inline __attribute__((always_inline))

// Tokens and tiles of 16 rows that the matrix kernels compute together: there are no registers to fill.
static constexpr size_t kBlockTokens = 1;
static constexpr size_t kMaxTiles = 1;
static constexpr size_t kVectorRegisters = 1;

struct F32x16 {
    float lane[16];
};
struct I32x16 {
    int32_t lane[16];
};
struct U8x64 {
    uint8_t byte[64];
};

template <typename Function>
QWENSTACK_INLINE F32x16 map_lanes(Function function) {
    F32x16 result;
    for (int i = 0; i < 16; ++i) {
        result.lane[i] = function(i);
    }
    return result;
}

template <typename Function>
QWENSTACK_INLINE I32x16 map_integer_lanes(Function function) {
    I32x16 result;
    for (int i = 0; i < 16; ++i) {
        result.lane[i] = function(i);
    }
    return result;
}

template <typename Function>
QWENSTACK_INLINE U8x64 map_bytes(Function function) {
    U8x64 result;
    for (int i = 0; i < 64; ++i) {
        result.byte[i] = static_cast<uint8_t>(function(i));
    }
    return result;
}

QWENSTACK_INLINE float float_of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

QWENSTACK_INLINE uint32_t bits_of_float(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// IEEE binary16 to binary32; exact.
inline float float_of_half(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t exponent = (half >> 10) & 31u;
    const uint32_t fraction = half & 1023u;
    if (exponent == 0) {
        const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
        return float_of_bits(sign | bits_of_float(magnitude));
    }
    if (exponent == 31) {
        const uint32_t quiet = fraction != 0 ? 0x00400000u : 0u;
        return float_of_bits(sign | 0x7F800000u | quiet | (fraction << 13));
    }
    return float_of_bits(sign | ((exponent + 112) << 23) | (fraction << 13));
}

// Rounds to the nearest half, ties to even, as the F16C instructions do.
inline uint16_t half_of_float(float value) {
    const uint32_t bits = bits_of_float(value);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) {
        return static_cast<uint16_t>(sign | 0x7E00u | ((magnitude >> 13) & 0x03FFu));
    }
    if (magnitude >= 0x477FF000u) {
        return static_cast<uint16_t>(sign | 0x7C00u);  // 65520 and above round to infinity
    }
    if (magnitude < 0x38800000u) {  // below the smallest normal half: adding 0.5 lets the hardware round at 2^-24
        const float shifted = float_of_bits(magnitude) + 0.5f;
        return static_cast<uint16_t>(sign | (bits_of_float(shifted) - 0x3F000000u));
    }
    const uint32_t rounded = magnitude - 0x38000000u + 0x0FFFu + ((magnitude >> 13) & 1u);
    return static_cast<uint16_t>(sign | (rounded >> 13));
}

QWENSTACK_INLINE F32x16 broadcast(float value) {
    return map_lanes([&](int) { return value; });
}
QWENSTACK_INLINE F32x16 load(const float* from) {
    return map_lanes([&](int i) { return from[i]; });
}
QWENSTACK_INLINE F32x16 load_half(const uint16_t* from) {
    return map_lanes([&](int i) { return float_of_half(from[i]); });
}
QWENSTACK_INLINE F32x16 load_int8(const int8_t* from) {
    return map_lanes([&](int i) { return static_cast<float>(from[i]); });
}
QWENSTACK_INLINE I32x16 load_widened(const uint16_t* from) {
    return map_integer_lanes([&](int i) { return static_cast<int32_t>(from[i]); });
}
QWENSTACK_INLINE void store(float* to, F32x16 a) { std::memcpy(to, a.lane, sizeof a.lane); }
QWENSTACK_INLINE void store_half(uint16_t* to, F32x16 a) {
    for (int i = 0; i < 16; ++i) {
        to[i] = half_of_float(a.lane[i]);
    }
}
QWENSTACK_INLINE void store_narrowed(uint16_t* to, I32x16 a) {  // keeps the low 16 bits
    for (int i = 0; i < 16; ++i) {
        to[i] = static_cast<uint16_t>(a.lane[i]);
    }
}
QWENSTACK_INLINE void store_int8(int8_t* to, I32x16 a) {  // lanes must fit
    for (int i = 0; i < 16; ++i) {
        to[i] = static_cast<int8_t>(a.lane[i]);
    }
}

QWENSTACK_INLINE F32x16 operator+(F32x16 a, F32x16 b) {
    return map_lanes([&](int i) { return a.lane[i] + b.lane[i]; });
}
QWENSTACK_INLINE F32x16 operator-(F32x16 a, F32x16 b) {
    return map_lanes([&](int i) { return a.lane[i] - b.lane[i]; });
}
QWENSTACK_INLINE F32x16 operator*(F32x16 a, F32x16 b) {
    return map_lanes([&](int i) { return a.lane[i] * b.lane[i]; });
}
QWENSTACK_INLINE F32x16 operator/(F32x16 a, F32x16 b) {
    return map_lanes([&](int i) { return a.lane[i] / b.lane[i]; });
}
QWENSTACK_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {  // a · b + c, rounded once
    return map_lanes([&](int i) { return __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]); });
}
QWENSTACK_INLINE F32x16 max(F32x16 a, F32x16 b) {
    return map_lanes([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
QWENSTACK_INLINE F32x16 min(F32x16 a, F32x16 b) {
    return map_lanes([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}

QWENSTACK_INLINE I32x16 broadcast_integer(int32_t value) {
    return map_integer_lanes([&](int) { return value; });
}
QWENSTACK_INLINE I32x16 operator+(I32x16 a, I32x16 b) {
    return map_integer_lanes([&](int i) {
        return static_cast<int32_t>(static_cast<uint32_t>(a.lane[i]) + static_cast<uint32_t>(b.lane[i]));
    });
}
QWENSTACK_INLINE I32x16 operator&(I32x16 a, I32x16 b) {
    return map_integer_lanes([&](int i) { return a.lane[i] & b.lane[i]; });
}
QWENSTACK_INLINE I32x16 operator|(I32x16 a, I32x16 b) {
    return map_integer_lanes([&](int i) { return a.lane[i] | b.lane[i]; });
}
QWENSTACK_INLINE I32x16 max(I32x16 a, I32x16 b) {
    return map_integer_lanes([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
template <int kBits>
QWENSTACK_INLINE I32x16 shift_left(I32x16 a) {
    return map_integer_lanes([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.lane[i]) << kBits); });
}
template <int kBits>
QWENSTACK_INLINE I32x16 shift_right_logical(I32x16 a) {
    return map_integer_lanes([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.lane[i]) >> kBits); });
}
QWENSTACK_INLINE I32x16 is_greater(I32x16 a, I32x16 b) {  // all ones where true
    return map_integer_lanes([&](int i) { return a.lane[i] > b.lane[i] ? -1 : 0; });
}
QWENSTACK_INLINE I32x16 select(I32x16 condition, I32x16 a, I32x16 b) {  // condition: all ones or zero in each lane
    return map_integer_lanes([&](int i) { return condition.lane[i] != 0 ? a.lane[i] : b.lane[i]; });
}
QWENSTACK_INLINE I32x16 lane_numbers() {
    return map_integer_lanes([&](int i) { return i; });
}

QWENSTACK_INLINE F32x16 to_float(I32x16 a) {
    return map_lanes([&](int i) { return static_cast<float>(a.lane[i]); });
}
QWENSTACK_INLINE I32x16 to_integer(F32x16 a) {  // of whole numbers
    return map_integer_lanes([&](int i) { return static_cast<int32_t>(a.lane[i]); });
}
QWENSTACK_INLINE I32x16 bits_of(F32x16 a) {
    return map_integer_lanes([&](int i) { return static_cast<int32_t>(bits_of_float(a.lane[i])); });
}
QWENSTACK_INLINE F32x16 float_of(I32x16 a) {
    return map_lanes([&](int i) { return float_of_bits(static_cast<uint32_t>(a.lane[i])); });
}

// The one order in which lanes are added: halves, quarters, eighths, pairs.
QWENSTACK_INLINE float sum(F32x16 a) {
    for (int width = 8; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) {
            a.lane[i] = a.lane[i] + a.lane[i + width];
        }
    }
    return a.lane[0];
}
QWENSTACK_INLINE float largest(F32x16 a) {
    for (int width = 8; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) {
            a.lane[i] = a.lane[i] > a.lane[i + width] ? a.lane[i] : a.lane[i + width];
        }
    }
    return a.lane[0];
}
// Whether any lane of a is greater than that of b; NaN is not.
QWENSTACK_INLINE bool is_any_greater(F32x16 a, F32x16 b) {
    for (int i = 0; i < 16; ++i) {
        if (a.lane[i] > b.lane[i]) {
            return true;
        }
    }
    return false;
}
QWENSTACK_INLINE int32_t largest(I32x16 a) {
    int32_t result = a.lane[0];
    for (int i = 1; i < 16; ++i) {
        result = result > a.lane[i] ? result : a.lane[i];
    }
    return result;
}

QWENSTACK_INLINE void transpose(F32x16 rows[16]) {
    for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < i; ++j) {
            const float kept = rows[i].lane[j];
            rows[i].lane[j] = rows[j].lane[i];
            rows[j].lane[i] = kept;
        }
    }
}

QWENSTACK_INLINE U8x64 load_bytes(const uint8_t* from) {
    return map_bytes([&](int i) { return from[i]; });
}
QWENSTACK_INLINE void store_bytes(uint8_t* to, U8x64 a) { std::memcpy(to, a.byte, sizeof a.byte); }
QWENSTACK_INLINE U8x64 operator&(U8x64 a, U8x64 b) {
    return map_bytes([&](int i) { return a.byte[i] & b.byte[i]; });
}
QWENSTACK_INLINE U8x64 operator|(U8x64 a, U8x64 b) {
    return map_bytes([&](int i) { return a.byte[i] | b.byte[i]; });
}
QWENSTACK_INLINE U8x64 broadcast_byte(uint8_t value) {
    return map_bytes([&](int) { return value; });
}
// Moves the bits of each byte and keeps those of `mask`; positive `kLeft` moves to the left, negative to the right.
template <int kLeft>
QWENSTACK_INLINE U8x64 shifted_bits(U8x64 a, U8x64 mask) {
    return map_bytes(
        [&](int i) { return (kLeft >= 0 ? a.byte[i] << (kLeft & 7) : a.byte[i] >> (-kLeft & 7)) & mask.byte[i]; });
}

// A value that is used several times in a row: loaded into a register once, rather than from memory at each use.
QWENSTACK_INLINE F32x16 kept(F32x16 a) { return a; }

// Sums of 16 activations.
QWENSTACK_INLINE PairSums pair_sums(const int8_t* activations) {
    PairSums sums{0, 0};
    for (int i = 0; i < 16; i += 4) {
        sums.earlier += activations[i] + activations[i + 1];
        sums.later += activations[i + 2] + activations[i + 3];
    }
    return sums;
}

// What DotSum::start makes -zero · Σ activation of: the sums of all quads that will be added, as suits the type.
QWENSTACK_INLINE int32_t start_of_dots(PairSums sums) { return -sums.total(); }

// Sums over one group of columns: lane by lane Σ (code - zero) · activation, exact. Codes are unsigned, of `kCodeBits`
// bits; activations lie in -127…127. Codes of 8 bits mean 0 by 128.
//
// Sums may be kept in narrow integers for a while: after every kSettleAfter quads, `settle` must be called.
template <int kCodeBits, int kZero>
struct DotSum {
    static constexpr size_t kSettleAfter = 8;
    I32x16 total;

    QWENSTACK_INLINE void start(int32_t start) { total = broadcast_integer(kZero * start); }
    // Takes four columns: a quad of codes, and their four activations.
    QWENSTACK_INLINE void add(U8x64 codes, const int8_t* activations) {
        total = map_integer_lanes([&](int i) {
            int32_t result = total.lane[i];
            for (int k = 0; k < 4; ++k) {
                result += codes.byte[4 * i + k] * activations[k];
            }
            return result;
        });
    }
    QWENSTACK_INLINE void settle() {}
    QWENSTACK_INLINE I32x16 result() const { return total; }
};

}  // namespace
}  // namespace qwenstack
