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
using PackTile = void (*)(const StoredMatrix& matrix, size_t tile, uint8_t* to);

struct TypeTraits {
    StorageType type;
    WeightKind kind;
    QuantizedFormat format;
    size_t columns;  // of a block
    size_t bytes;    // of a block
    PackTile pack_tile;
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

// Bit i of the 32 is bit 4 of code i; eight at a time, each in a byte.
void add_fifth_bits(const uint8_t* from, uint8_t* codes) {
    constexpr uint64_t kOnes = 0x0101010101010101, kOneBitEach = 0x8040201008040201,
                       kAllButHighest = 0x7F7F7F7F7F7F7F7F;
    for (int i = 0; i < 4; ++i) {
        const uint64_t bits = ((from[i] * kOnes) & kOneBitEach) + kAllButHighest;
        uint64_t eight;
        std::memcpy(&eight, codes + 8 * i, sizeof eight);
        eight |= ((bits >> 7) & kOnes) << 4;
        std::memcpy(codes + 8 * i, &eight, sizeof eight);
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
template <int kBits>
void write_codes(const uint8_t* codes, size_t row, uint8_t* to) {
    if constexpr (kBits == 8) {
        for (size_t quad = 0; quad < kQuadsPerGroup; ++quad) {
            write_quad(to, quad, row, read_quad(codes, quad));
        }
        return;
    }
    constexpr uint32_t kLowBits = 0x0F0F0F0F, kOneBit = 0x01010101, kTwoBits = 0x03030303;
    for (size_t i = 0; i < 4; ++i) {
        write_quad(to, i, row, (read_quad(codes, i) & kLowBits) | ((read_quad(codes, i + 4) & kLowBits) << 4));
    }
    if constexpr (kBits == 5) {
        uint32_t high = 0;
        for (size_t quad = 0; quad < 8; ++quad) {
            high |= ((read_quad(codes, quad) >> 4) & kOneBit) << quad;
        }
        write_quad(to, 4, row, high);
    }
    if constexpr (kBits == 6) {
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
template <QuantizedFormat kFormat, size_t kColumns>
uint8_t* write_block(const Block& block, size_t row, uint8_t* to) {
    if constexpr (kFormat.two_level) {
        write_half(to, row, block.scale_halves[0]);
        if (kFormat.has_offsets) {
            write_half(to + kTileRows * sizeof(uint16_t), row, block.scale_halves[1]);
        }
        to += super_block_header_bytes(kFormat);
    }
    constexpr size_t kScales = static_cast<size_t>(kFormat.scales_per_group);
    for (size_t group = 0; group < kColumns / kGroupColumns; ++group) {
        uint8_t* const offsets = to + scale_bytes(kFormat);
        uint8_t* const codes = to + scale_bytes(kFormat) * (kFormat.has_offsets ? 2 : 1);
        if constexpr (kFormat.two_level) {
            for (size_t half = 0; half < kScales; ++half) {
                const size_t index = group * kScales + half;
                to[half * kTileRows + row] = static_cast<uint8_t>(block.scales[index]);
                if (kFormat.has_offsets) {
                    offsets[half * kTileRows + row] = static_cast<uint8_t>(block.offsets[index]);
                }
            }
        } else {
            write_half(to, row, block.scale_halves[0]);
            if (kFormat.has_offsets) {
                write_half(offsets, row, block.scale_halves[1]);
            }
        }
        write_codes<kFormat.code_bits>(block.codes + group * kGroupColumns, row, codes);
        to += group_bytes(kFormat);
    }
    return to;
}

// Goes down the rows block by block, so that the lanes of a group are written while it is in the cache.
template <Unpack kUnpack, QuantizedFormat kFormat, size_t kColumns, size_t kBytes>
void pack_quantized_tile(const StoredMatrix& matrix, size_t tile, uint8_t* to) {
    const size_t num_blocks = matrix.columns / kColumns;
    const size_t num_rows = std::min(kTileRows, matrix.rows - tile * kTileRows);
    const uint8_t* const first_row = matrix.data + tile * kTileRows * num_blocks * kBytes;
    Block block = {};
    for (size_t i = 0; i < num_blocks; ++i) {
        uint8_t* end = to;
        for (size_t row = 0; row < num_rows; ++row) {
            kUnpack(first_row + (row * num_blocks + i) * kBytes, block);
            end = write_block<kFormat, kColumns>(block, row, to);
        }
        to = end;
    }
}

template <size_t kBytes>
void pack_float_tile(const StoredMatrix& matrix, size_t tile, uint8_t* to) {
    const size_t num_rows = std::min(kTileRows, matrix.rows - tile * kTileRows);
    const uint8_t* const from = matrix.data + tile * kTileRows * matrix.columns * kBytes;
    for (size_t column = 0; column < matrix.columns; ++column) {
        for (size_t row = 0; row < num_rows; ++row) {
            std::memcpy(to + (column * kTileRows + row) * kBytes, from + (row * matrix.columns + column) * kBytes,
                        kBytes);
        }
    }
}

template <size_t kBytes>
constexpr TypeTraits floats(StorageType type, WeightKind kind) {
    return {type, kind, {}, 1, kBytes, pack_float_tile<kBytes>};
}

template <Unpack kUnpack, QuantizedFormat kFormat, size_t kColumns, size_t kBytes>
constexpr TypeTraits quantized(StorageType type) {
    return {type,    WeightKind::kQuantized,
            kFormat, kColumns,
            kBytes,  pack_quantized_tile<kUnpack, kFormat, kColumns, kBytes>};
}

constexpr TypeTraits kTypes[] = {
    floats<4>(StorageType::kF32, WeightKind::kFloat32),
    floats<2>(StorageType::kF16, WeightKind::kFloat16),
    floats<2>(StorageType::kBF16, WeightKind::kBfloat16),
    quantized<unpack_q4_0, kFormatQ4_0, 32, 18>(StorageType::kQ4_0),
    quantized<unpack_q4_1, kFormatQ4_1, 32, 20>(StorageType::kQ4_1),
    quantized<unpack_q5_0, kFormatQ5_0, 32, 22>(StorageType::kQ5_0),
    quantized<unpack_q5_1, kFormatQ5_1, 32, 24>(StorageType::kQ5_1),
    quantized<unpack_q8_0, kFormatQ8_0, 32, 34>(StorageType::kQ8_0),
    quantized<unpack_q2_k, kFormatQ2_K, 256, 84>(StorageType::kQ2_K),
    quantized<unpack_q3_k, kFormatQ3_K, 256, 110>(StorageType::kQ3_K),
    quantized<unpack_q4_k, kFormatQ4_K, 256, 144>(StorageType::kQ4_K),
    quantized<unpack_q5_k, kFormatQ5_K, 256, 176>(StorageType::kQ5_K),
    quantized<unpack_q6_k, kFormatQ6_K, 256, 210>(StorageType::kQ6_K),
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
        segment.rows = matrix.rows;
        segment.first_row = first_row;
        segment.num_tiles = (matrix.rows + kTileRows - 1) / kTileRows;
        segment.tile_bytes = packed_tile_bytes(traits, matrix.columns);
        segment.tiles = to;
        pool.run(segment.num_tiles, [&](size_t tile, size_t) {
            uint8_t* const tile_data = to + tile * segment.tile_bytes;
            if ((tile + 1) * kTileRows > matrix.rows) {
                std::memset(tile_data, 0, segment.tile_bytes);  // lanes beyond the last row
            }
            traits.pack_tile(matrix, tile, tile_data);
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
