// Copies the blocks of GGUF's storage types into the tiles of weight_layout.h, losslessly.
//
// Source of the block structures: ggml's `ggml-common.h`; kernels/dequantize.py reads the same bytes.

#include <algorithm>
#include <cstring>

#include "packed_linear.h"

namespace qwenstack {
namespace {

// 256 columns of one row taken apart (32 for one-level types): codes, and the scales in the file's own form.
struct Block {
    uint8_t codes[256];
    uint16_t scale_halves[2];  // the f16 of one-level types, d and d_min of two-level ones
    int8_t scales[16];
    int8_t offsets[16];
};

using Unpack = void (*)(const uint8_t* block, Block& out);

struct TypeTraits {
    StorageType type;
    WeightKind kind;
    QuantizedFormat format;
    int32_t zero;
    size_t columns;  // of a block
    size_t bytes;    // of a block
    Unpack unpack;
};

uint16_t read_half(const uint8_t* from) { return static_cast<uint16_t>(from[0] | (from[1] << 8)); }

uint16_t negated_half(uint16_t half) { return half ^ 0x8000u; }

// Fields of `bits` bits: each run of bytes holds all its lowest fields first, then all the next ones. Adds them to the
// codes, moved to the left by `left`.
void add_fields(const uint8_t* from, size_t num_bytes, int bits, size_t run, int left, uint8_t* codes) {
    const uint8_t mask = static_cast<uint8_t>((1 << bits) - 1);
    for (size_t start = 0; start < num_bytes; start += run) {
        for (int shift = 0; shift < 8; shift += bits) {
            for (size_t i = 0; i < run; ++i) {
                *codes = static_cast<uint8_t>(*codes | (((from[start + i] >> shift) & mask) << left));
                ++codes;
            }
        }
    }
}

void set_fields(const uint8_t* from, size_t num_bytes, int bits, size_t run, uint8_t* codes) {
    std::memset(codes, 0, num_bytes * (8 / bits));
    add_fields(from, num_bytes, bits, run, 0, codes);
}

void add_fifth_bits(const uint8_t* from, uint8_t* codes) {
    for (int i = 0; i < 32; ++i) {
        codes[i] = static_cast<uint8_t>(codes[i] | (((from[i / 8] >> (i % 8)) & 1) << 4));
    }
}

void unpack_q4_0(const uint8_t* block, Block& out) {
    out.scale_halves[0] = read_half(block);
    set_fields(block + 2, 16, 4, 16, out.codes);
}

void unpack_q4_1(const uint8_t* block, Block& out) {
    out.scale_halves[0] = read_half(block);
    out.scale_halves[1] = read_half(block + 2);
    set_fields(block + 4, 16, 4, 16, out.codes);
}

void unpack_q5_0(const uint8_t* block, Block& out) {
    out.scale_halves[0] = read_half(block);
    set_fields(block + 6, 16, 4, 16, out.codes);
    add_fifth_bits(block + 2, out.codes);
}

void unpack_q5_1(const uint8_t* block, Block& out) {
    out.scale_halves[0] = read_half(block);
    out.scale_halves[1] = read_half(block + 2);
    set_fields(block + 8, 16, 4, 16, out.codes);
    add_fifth_bits(block + 4, out.codes);
}

void unpack_q8_0(const uint8_t* block, Block& out) {
    out.scale_halves[0] = read_half(block);
    for (int i = 0; i < 32; ++i) {
        out.codes[i] = block[2 + i] ^ 0x80u;
    }
}

void unpack_q2_k(const uint8_t* block, Block& out) {
    for (int i = 0; i < 16; ++i) {
        out.scales[i] = static_cast<int8_t>(block[i] & 15);
        out.offsets[i] = static_cast<int8_t>(block[i] >> 4);
    }
    set_fields(block + 16, 64, 2, 32, out.codes);
    out.scale_halves[0] = read_half(block + 80);
    out.scale_halves[1] = negated_half(read_half(block + 82));
}

void unpack_q3_k(const uint8_t* block, Block& out) {
    set_fields(block + 32, 64, 2, 32, out.codes);
    add_fields(block, 32, 1, 32, 2, out.codes);
    uint8_t scales[16] = {};
    add_fields(block + 96, 8, 4, 8, 0, scales);
    add_fields(block + 104, 4, 2, 4, 4, scales);
    for (int i = 0; i < 16; ++i) {
        out.scales[i] = static_cast<int8_t>(scales[i] - 32);
    }
    out.scale_halves[0] = read_half(block + 108);
}

// Eight scales and eight minima of 6 bits each from 12 bytes.
void unpack_k_scales(const uint8_t* packed, Block& out) {
    for (int i = 0; i < 4; ++i) {
        const int first = packed[i], second = packed[4 + i], low = packed[8 + i];
        out.scales[i] = static_cast<int8_t>(first & 63);
        out.offsets[i] = static_cast<int8_t>(second & 63);
        out.scales[4 + i] = static_cast<int8_t>((low & 15) | ((first >> 2) & 48));
        out.offsets[4 + i] = static_cast<int8_t>((low >> 4) | ((second >> 2) & 48));
    }
}

void unpack_q4_k(const uint8_t* block, Block& out) {
    out.scale_halves[0] = read_half(block);
    out.scale_halves[1] = negated_half(read_half(block + 2));
    unpack_k_scales(block + 4, out);
    set_fields(block + 16, 128, 4, 32, out.codes);
}

void unpack_q5_k(const uint8_t* block, Block& out) {
    out.scale_halves[0] = read_half(block);
    out.scale_halves[1] = negated_half(read_half(block + 2));
    unpack_k_scales(block + 4, out);
    set_fields(block + 48, 128, 4, 32, out.codes);
    add_fields(block + 16, 32, 1, 32, 4, out.codes);
}

void unpack_q6_k(const uint8_t* block, Block& out) {
    set_fields(block, 128, 4, 64, out.codes);
    add_fields(block + 128, 64, 2, 32, 4, out.codes);
    std::memcpy(out.scales, block + 192, 16);
    out.scale_halves[0] = read_half(block + 208);
}

constexpr TypeTraits kTypes[] = {
    {StorageType::kF32, WeightKind::kFloat32, {}, 0, 1, 4, nullptr},
    {StorageType::kF16, WeightKind::kFloat16, {}, 0, 1, 2, nullptr},
    {StorageType::kBF16, WeightKind::kBfloat16, {}, 0, 1, 2, nullptr},
    {StorageType::kQ4_0, WeightKind::kQuantized, kFormatQ4_0, 8, 32, 18, unpack_q4_0},
    {StorageType::kQ4_1, WeightKind::kQuantized, kFormatQ4_1, 0, 32, 20, unpack_q4_1},
    {StorageType::kQ5_0, WeightKind::kQuantized, kFormatQ5_0, 16, 32, 22, unpack_q5_0},
    {StorageType::kQ5_1, WeightKind::kQuantized, kFormatQ5_1, 0, 32, 24, unpack_q5_1},
    {StorageType::kQ8_0, WeightKind::kQuantized, kFormatQ8_0, 128, 32, 34, unpack_q8_0},
    {StorageType::kQ2_K, WeightKind::kQuantized, kFormatQ2_K, 0, 256, 84, unpack_q2_k},
    {StorageType::kQ3_K, WeightKind::kQuantized, kFormatQ3_K, 4, 256, 110, unpack_q3_k},
    {StorageType::kQ4_K, WeightKind::kQuantized, kFormatQ4_K, 0, 256, 144, unpack_q4_k},
    {StorageType::kQ5_K, WeightKind::kQuantized, kFormatQ5_K, 0, 256, 176, unpack_q5_k},
    {StorageType::kQ6_K, WeightKind::kQuantized, kFormatQ6_K, 32, 256, 210, unpack_q6_k},
};

const TypeTraits* find_type(uint32_t type) {
    for (const TypeTraits& traits : kTypes) {
        if (static_cast<uint32_t>(traits.type) == type) {
            return &traits;
        }
    }
    return nullptr;
}

size_t packed_tile_bytes(const TypeTraits& traits, size_t columns) {
    if (traits.kind != WeightKind::kQuantized) {
        return kTileRows * columns * traits.bytes;
    }
    return tile_bytes(traits.format, columns);
}

void write_half(uint8_t* to, size_t row, uint16_t half) { std::memcpy(to + row * sizeof half, &half, sizeof half); }

// Four codes of a row, one in each byte.
uint32_t read_quad(const uint8_t* codes, size_t quad) {
    uint32_t four;
    std::memcpy(&four, codes + 4 * quad, sizeof four);
    return four;
}

void write_quad(uint8_t* to, size_t byte_block, size_t row, uint32_t four) {
    std::memcpy(to + byte_block * kQuadBytes + row * sizeof four, &four, sizeof four);
}

// Writes one row's 32 codes into its lane of a group.
void write_codes(const uint8_t* codes, int bits, size_t row, uint8_t* to) {
    if (bits == 8) {
        for (size_t quad = 0; quad < kQuadsPerGroup; ++quad) {
            write_quad(to, quad, row, read_quad(codes, quad));
        }
        return;
    }
    constexpr uint32_t kLowBits = 0x0F0F0F0F, kOneBit = 0x01010101, kTwoBits = 0x03030303;
    for (size_t i = 0; i < 4; ++i) {
        write_quad(to, i, row, (read_quad(codes, i) & kLowBits) | ((read_quad(codes, i + 4) & kLowBits) << 4));
    }
    if (bits == 5) {
        uint32_t high = 0;
        for (size_t quad = 0; quad < 8; ++quad) {
            high |= ((read_quad(codes, quad) >> 4) & kOneBit) << quad;
        }
        write_quad(to, 4, row, high);
    }
    if (bits == 6) {
        for (size_t i = 0; i < 2; ++i) {
            uint32_t high = 0;
            for (size_t m = 0; m < 4; ++m) {
                high |= ((read_quad(codes, 4 * i + m) >> 4) & kTwoBits) << (2 * m);
            }
            write_quad(to, 4 + i, row, high);
        }
    }
}

// Writes one row of a block into its lane: the groups, and for two-level types the super-block before them.
uint8_t* write_block(const Block& block, const TypeTraits& traits, size_t row, uint8_t* to) {
    const QuantizedFormat& format = traits.format;
    if (format.two_level) {
        write_half(to, row, block.scale_halves[0]);
        if (format.has_offsets) {
            write_half(to + kTileRows * sizeof(uint16_t), row, block.scale_halves[1]);
        }
        to += super_block_header_bytes(format);
    }
    const size_t scales_per_group = static_cast<size_t>(format.scales_per_group);
    for (size_t group = 0; group < traits.columns / kGroupColumns; ++group) {
        uint8_t* const offsets = to + scale_bytes(format);
        uint8_t* const codes = to + scale_bytes(format) * (format.has_offsets ? 2 : 1);
        if (format.two_level) {
            for (size_t half = 0; half < scales_per_group; ++half) {
                const size_t index = group * scales_per_group + half;
                to[half * kTileRows + row] = static_cast<uint8_t>(block.scales[index]);
                if (format.has_offsets) {
                    offsets[half * kTileRows + row] = static_cast<uint8_t>(block.offsets[index]);
                }
            }
        } else {
            write_half(to, row, block.scale_halves[0]);
            if (format.has_offsets) {
                write_half(offsets, row, block.scale_halves[1]);
            }
        }
        write_codes(block.codes + group * kGroupColumns, format.code_bits, row, codes);
        to += group_bytes(format);
    }
    return to;
}

// Goes down the rows block by block, so that the lanes of a group are written while it is in the cache.
void pack_quantized_tile(const StoredMatrix& matrix, const TypeTraits& traits, size_t tile, uint8_t* to) {
    const size_t num_blocks = matrix.columns / traits.columns;
    const size_t num_rows = std::min(kTileRows, matrix.rows - tile * kTileRows);
    const uint8_t* const first_row = matrix.data + tile * kTileRows * num_blocks * traits.bytes;
    Block block = {};
    for (size_t i = 0; i < num_blocks; ++i) {
        uint8_t* end = to;
        for (size_t row = 0; row < num_rows; ++row) {
            traits.unpack(first_row + (row * num_blocks + i) * traits.bytes, block);
            end = write_block(block, traits, row, to);
        }
        to = end;
    }
}

void pack_float_tile(const StoredMatrix& matrix, size_t value_bytes, size_t tile, uint8_t* to) {
    const size_t num_rows = std::min(kTileRows, matrix.rows - tile * kTileRows);
    for (size_t row = 0; row < num_rows; ++row) {
        const uint8_t* from = matrix.data + (tile * kTileRows + row) * matrix.columns * value_bytes;
        for (size_t column = 0; column < matrix.columns; ++column) {
            std::memcpy(to + (column * kTileRows + row) * value_bytes, from + column * value_bytes, value_bytes);
        }
    }
}

constexpr size_t kCacheLineBytes = 64;

size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

size_t row_bytes(uint32_t type, size_t columns) {
    const TypeTraits* const traits = find_type(type);
    if (traits == nullptr || columns % traits->columns != 0) {
        return 0;
    }
    return columns / traits->columns * traits->bytes;
}

size_t packed_bytes(const std::vector<StoredMatrix>& matrices) {
    size_t total = 0;
    for (const StoredMatrix& matrix : matrices) {
        const size_t num_tiles = (matrix.rows + kTileRows - 1) / kTileRows;
        total += round_up(num_tiles * packed_tile_bytes(*find_type(static_cast<uint32_t>(matrix.type)), matrix.columns),
                          kCacheLineBytes);
    }
    return total;
}

std::vector<Segment> pack_segments(const std::vector<StoredMatrix>& matrices, const WeightMemory& memory,
                                   ThreadPool& pool) {
    std::vector<Segment> segments;
    uint8_t* to = memory.data();
    size_t first_row = 0;
    for (const StoredMatrix& matrix : matrices) {
        const TypeTraits& traits = *find_type(static_cast<uint32_t>(matrix.type));
        Segment segment{};
        segment.kind = traits.kind;
        segment.format = traits.format;
        segment.zero = traits.zero;
        segment.rows = matrix.rows;
        segment.first_row = first_row;
        segment.num_tiles = (matrix.rows + kTileRows - 1) / kTileRows;
        segment.tile_bytes = packed_tile_bytes(traits, matrix.columns);
        segment.tiles = to;
        pool.run(segment.num_tiles, [&](size_t tile, size_t) {
            uint8_t* const tile_data = to + tile * segment.tile_bytes;
            std::memset(tile_data, 0, segment.tile_bytes);  // lanes beyond the last row
            if (traits.kind == WeightKind::kQuantized) {
                pack_quantized_tile(matrix, traits, tile, tile_data);
            } else {
                pack_float_tile(matrix, traits.bytes, tile, tile_data);
            }
        });
        to += round_up(segment.num_tiles * segment.tile_bytes, kCacheLineBytes);
        first_row += matrix.rows;
        segments.push_back(segment);
    }
    return segments;
}

PackedLinear::PackedLinear(const std::vector<StoredMatrix>& matrices, const float* bias, WeightArena& arena,
                           ThreadPool& pool)
    : in_features_(matrices.front().columns),
      out_features_(0),
      memory_(arena.allocate(packed_bytes(matrices))),
      segments_(pack_segments(matrices, memory_, pool)) {
    for (const Segment& segment : segments_) {
        out_features_ += segment.rows;
    }
    if (bias != nullptr) {
        bias_.assign(bias, bias + out_features_);
    }
}

}  // namespace qwenstack
