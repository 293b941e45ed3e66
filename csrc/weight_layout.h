// How packed weights lie in memory. Packing (pack.cc) writes this layout, the kernels read it.
//
// A matrix [rows, columns] is cut into tiles of 16 rows, the lanes of a vector; the last tile is padded with zeros. A
// tile is one run of bytes, read once from front to back:
//
//   quantised   for each super-block of 8 groups (types with two levels of scales only):
//                   d, f16 × 16 rows;  d_min, f16 × 16 rows (types with offsets)
//               for each group of 32 columns:
//                   scales: f16 × 16 rows, or int8 × 16 rows × scales per group (two-level types)
//                   offsets, in the same form (types with offsets)
//                   low code bits, then high code bits (below)
//   float       for each column: 16 values of the stored type
//
// A value is scale · (code - zero) + offset, with unsigned codes. A group's codes are 8 quads of 64 bytes, quad j
// holding columns 4j…4j+3: byte 4·row + (column mod 4), what one int8 dot instruction takes. They are stored as
//
//   4 bits   256 bytes: byte block i holds quad i in the low and quad i+4 in the high half-bytes
//   5 bits   as 4 bits, then 64 bytes: bit j of byte b is bit 4 of byte b of quad j
//   6 bits   as 4 bits, then 2 × 64 bytes: bits 2m, 2m+1 of byte b of block i are bits 4, 5 of byte b of quad 4i+m
//   8 bits   512 bytes: the quads
//
// Nothing is lost: each code, scale and offset of the file can be had back.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qwenstack {

static constexpr size_t kTileRows = 16;
static constexpr size_t kGroupColumns = 32;
static constexpr size_t kSuperBlockGroups = 8;
static constexpr size_t kQuadBytes = 64;
static constexpr size_t kQuadsPerGroup = 8;

enum class WeightKind : uint8_t { kQuantized, kFloat32, kFloat16, kBfloat16 };

// The form of a quantised type. Two-level types multiply a super-block's f16 by a group's int8: the product is exact in
// float32, so it is the file's scale.
struct QuantizedFormat {
    int code_bits;         // 4, 5, 6 or 8
    int zero;              // the code that means 0; 0 in types with offsets
    int scales_per_group;  // 1, or 2 for types whose scales cover 16 columns
    bool two_level;
    bool has_offsets;

    constexpr bool operator==(const QuantizedFormat& other) const {
        return code_bits == other.code_bits && zero == other.zero && scales_per_group == other.scales_per_group &&
               two_level == other.two_level && has_offsets == other.has_offsets;
    }
};

static constexpr QuantizedFormat kFormatQ4_0{4, 8, 1, false, false};
static constexpr QuantizedFormat kFormatQ4_1{4, 0, 1, false, true};
static constexpr QuantizedFormat kFormatQ5_0{5, 16, 1, false, false};
static constexpr QuantizedFormat kFormatQ5_1{5, 0, 1, false, true};
static constexpr QuantizedFormat kFormatQ8_0{8, 128, 1, false, false};
static constexpr QuantizedFormat kFormatQ2_K{4, 0, 2, true, true};
static constexpr QuantizedFormat kFormatQ3_K{4, 4, 2, true, false};
static constexpr QuantizedFormat kFormatQ4_K{4, 0, 1, true, true};
static constexpr QuantizedFormat kFormatQ5_K{5, 0, 1, true, true};
static constexpr QuantizedFormat kFormatQ6_K{6, 32, 2, true, false};

static constexpr size_t code_bytes(const QuantizedFormat& format) {
    return format.code_bits * kQuadBytes;  // 32 columns × 16 rows × bits / 8
}

static constexpr size_t super_block_header_bytes(const QuantizedFormat& format) {
    if (!format.two_level) {
        return 0;
    }
    return kTileRows * sizeof(uint16_t) * (format.has_offsets ? 2 : 1);
}

static constexpr size_t scale_bytes(const QuantizedFormat& format) {  // of one group's scales, or of its offsets
    return kTileRows * (format.two_level ? sizeof(int8_t) * format.scales_per_group : sizeof(uint16_t));
}

static constexpr size_t group_bytes(const QuantizedFormat& format) {
    return scale_bytes(format) * (format.has_offsets ? 2 : 1) + code_bytes(format);
}

static constexpr size_t tile_bytes(const QuantizedFormat& format, size_t columns) {
    const size_t groups = columns / kGroupColumns;
    const size_t super_blocks = (groups + kSuperBlockGroups - 1) / kSuperBlockGroups;
    return groups * group_bytes(format) + super_blocks * super_block_header_bytes(format);
}

// One of the stacked matrices of a linear layer.
struct Segment {
    WeightKind kind;
    QuantizedFormat format;  // of quantised kinds
    size_t rows;
    size_t first_row;  // its place among the rows of all segments
    size_t num_tiles;
    size_t tile_bytes;
    const uint8_t* tiles;
};

}  // namespace qwenstack
