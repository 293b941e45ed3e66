// Products of quantised weights with int8 activations.
//
// For each output row, groups of 32 columns in ascending order (for types with two scales per group: its halves):
//
//   dot     = Σ code · q - zero · Σ q                    exact in int32
//   result += float(dot) · (scale · activation_scale)    one fused multiply-add
//   result += offset · (activation_scale · Σ q)          one fused multiply-add, types with offsets
//
// A lane is an output row, so nothing is ever added across lanes, and a row's result is the same whichever tokens are
// computed beside it. Few tokens read the packed tile directly; for many it is expanded once into bytes and floats,
// which changes no bit because codes and scales are the same numbers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../kernel_table.h"

namespace qwenstack {
namespace {

// Tiles that are multiplied together, of one format.
struct TileSet {
    const Segment* segment;  // of the first tile
    size_t count;            // 1…kMaxTiles
    const uint8_t* tile[kMaxTiles];
    size_t step;       // bytes from a tile to the one that will be multiplied next in its place
    const float* out;  // where the range's first token will have the first tile's results; others follow them
};

static constexpr size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

// Reads a tile of weight_layout.h group by group.
template <QuantizedFormat kFormat>
class PackedTileReader {
public:
    QWENSTACK_INLINE PackedTileReader() : PackedTileReader(nullptr, 0) {}
    QWENSTACK_INLINE PackedTileReader(const uint8_t* tile, size_t prefetch_distance)
        : at_(tile), prefetch_distance_(prefetch_distance), scale_(broadcast(0.0f)), offset_(broadcast(0.0f)) {}

    QWENSTACK_INLINE void start_group(size_t group) {
        if constexpr (kFormat.two_level) {
            if (group % kSuperBlockGroups != 0) {
                return;
            }
            scale_ = load_half(reinterpret_cast<const uint16_t*>(at_));
            if constexpr (kFormat.has_offsets) {
                offset_ = load_half(reinterpret_cast<const uint16_t*>(at_) + kTileRows);
            }
            at_ += super_block_header_bytes(kFormat);
        }
    }
    QWENSTACK_INLINE F32x16 scale(size_t half) const { return multiplier(at_, half, scale_); }
    QWENSTACK_INLINE F32x16 offset(size_t half) const {  // of types with offsets
        return kFormat.has_offsets ? multiplier(at_ + scale_bytes(kFormat), half, offset_) : broadcast(0.0f);
    }

    QWENSTACK_INLINE const uint8_t* position() const { return at_; }

    // One quad at a time: eight of them would fill the registers that the sums are to have.
    template <size_t kQuad>
    QWENSTACK_INLINE U8x64 codes() const {
        const uint8_t* const low = at_ + scale_bytes(kFormat) * (kFormat.has_offsets ? 2 : 1);
        if constexpr (kFormat.code_bits == 8) {
            return load_bytes(low + kQuad * kQuadBytes);
        } else {
            constexpr int kShift = kQuad < 4 ? 0 : -4;
            const U8x64 four_bits = shifted_bits<kShift>(load_bytes(low + kQuad % 4 * kQuadBytes), broadcast_byte(15));
            const uint8_t* const high = low + 4 * kQuadBytes;
            if constexpr (kFormat.code_bits == 5) {
                return four_bits | shifted_bits<4 - static_cast<int>(kQuad)>(load_bytes(high), broadcast_byte(16));
            }
            if constexpr (kFormat.code_bits == 6) {
                constexpr int kUp = 4 - 2 * static_cast<int>(kQuad % 4);
                const U8x64 two_bits = load_bytes(high + kQuad / 4 * kQuadBytes);
                return four_bits | shifted_bits<kUp>(two_bits, broadcast_byte(48));
            }
            return four_bits;
        }
    }
    QWENSTACK_INLINE void end_group() {
        prefetch_weights(at_, group_bytes(kFormat), prefetch_distance_);
        at_ += group_bytes(kFormat);
    }

private:
    QWENSTACK_INLINE static F32x16 multiplier(const uint8_t* from, size_t half, F32x16 upper_level) {
        if constexpr (!kFormat.two_level) {
            return load_half(reinterpret_cast<const uint16_t*>(from));
        }
        return upper_level * load_int8(reinterpret_cast<const int8_t*>(from) + half * kTileRows);
    }

    const uint8_t* at_;
    size_t prefetch_distance_;
    F32x16 scale_, offset_;  // the super-block's
};

// The integer sums of a group's (or half group's) rows with one token.
template <QuantizedFormat kFormat>
using GroupSum = DotSum<kFormat.code_bits, kFormat.zero>;

// Quads that share a scale, and quads after which their sum is settled.
static constexpr size_t quads_per_scale(const QuantizedFormat& format) {
    return kQuadsPerGroup / format.scales_per_group;
}
template <QuantizedFormat kFormat>
static constexpr size_t kSettledQuads = smaller(quads_per_scale(kFormat), GroupSum<kFormat>::kSettleAfter);

// Adds a group's (or half group's) sums for `kTokens` tokens to the results.
template <QuantizedFormat kFormat, size_t kTokens>
QWENSTACK_INLINE void add_dots(const GroupSum<kFormat> (&dots)[kTokens], F32x16 scale, F32x16 offset,
                               const ActivationGroup& group, size_t part, F32x16 (&results)[kTokens]) {
    QWENSTACK_UNROLL
    for (size_t token = 0; token < kTokens; ++token) {
        const F32x16 dot = to_float(dots[token].result());
        results[token] = fma(dot, scale * broadcast(group.scale(token)), results[token]);
        if constexpr (kFormat.has_offsets) {
            results[token] = fma(offset, broadcast(group.scaled_sum(part, token)), results[token]);
        }
    }
}

// Starts the sums of a block of tokens.
template <QuantizedFormat kFormat, size_t kTokens>
QWENSTACK_INLINE void start_dots(const ActivationGroup& group, size_t part, GroupSum<kFormat> (&dots)[kTokens]) {
    static_assert(kFormat.zero == 0 || kSettledQuads<kFormat> == quads_per_scale(kFormat), "a zero is subtracted once");
    QWENSTACK_UNROLL
    for (size_t token = 0; token < kTokens; ++token) {
        dots[token].start(group.start_of_dots(part, token));
    }
}

// Multiplies a packed tile with a block of `kTokens` tokens; products [kTokens][16 rows].
template <QuantizedFormat kFormat, size_t kTokens>
QWENSTACK_NOINLINE void multiply_packed_tile(const uint8_t* tile, size_t prefetch_distance, size_t num_groups,
                                             const uint8_t* activations, float* products) {
    constexpr size_t kScales = kFormat.scales_per_group;
    constexpr size_t kQuadsPerScale = quads_per_scale(kFormat);
    F32x16 results[kTokens];
    for (size_t token = 0; token < kTokens; ++token) {
        results[token] = broadcast(0.0f);
    }
    PackedTileReader<kFormat> reader(tile, prefetch_distance);
    for (size_t index = 0; index < num_groups; ++index) {
        const ActivationGroup group{activations + index * kTokens * kActivationGroupBytes, kTokens};
        reader.start_group(index);
        for_each_index<kScales>([&]<size_t kHalf>() QWENSTACK_INLINE_LAMBDA {
            constexpr size_t kPart = kScales == 1 ? 0 : 1 + kHalf;
            GroupSum<kFormat> dots[kTokens];
            start_dots<kFormat>(group, kPart, dots);
            for_each_index<kQuadsPerScale>([&]<size_t kIndex>() QWENSTACK_INLINE_LAMBDA {
                constexpr size_t kQuad = kHalf * kQuadsPerScale + kIndex;
                const U8x64 codes = reader.template codes<kQuad>();
                // Tokens go inside: their sums do not wait for each other.
                QWENSTACK_UNROLL
                for (size_t token = 0; token < kTokens; ++token) {
                    dots[token].add(codes, group.codes(token) + 4 * kQuad);
                    if ((kQuad + 1) % kSettledQuads<kFormat> == 0) {
                        dots[token].settle();
                    }
                }
            });
            add_dots<kFormat>(dots, reader.scale(kHalf), reader.offset(kHalf), group, kPart, results);
        });
        reader.end_group();
    }
    for (size_t token = 0; token < kTokens; ++token) {
        store(products + token * kTileRows, results[token]);
    }
}

// A run of groups of a tile with codes as bytes and scales as float32: for each group the scales, the offsets, the
// quads.
static constexpr size_t kVectorBytes = kTileRows * sizeof(float);

static constexpr size_t expanded_codes_at(const QuantizedFormat& format) {
    return kVectorBytes * format.scales_per_group * (format.has_offsets ? 2 : 1);
}
static constexpr size_t expanded_group_bytes(const QuantizedFormat& format) {
    return expanded_codes_at(format) + kQuadsPerGroup * kQuadBytes;
}

// Groups that are expanded at a time, whole super-blocks: the runs of all tiles together fit the first-level cache.
static constexpr size_t kRunGroups = 32;
static constexpr size_t kMaxRunBytes = kRunGroups * expanded_group_bytes(kFormatQ2_K);
static_assert(kRunGroups % kSuperBlockGroups == 0);

template <QuantizedFormat kFormat>
void expand_groups(PackedTileReader<kFormat>& reader, size_t num_groups, uint8_t* to) {
    for (size_t group = 0; group < num_groups; ++group) {
        reader.start_group(group);
        float* const vectors = reinterpret_cast<float*>(to);
        for (size_t half = 0; half < kFormat.scales_per_group; ++half) {
            store(vectors + half * kTileRows, reader.scale(half));
            if constexpr (kFormat.has_offsets) {
                store(vectors + (kFormat.scales_per_group + half) * kTileRows, reader.offset(half));
            }
        }
        for_each_index<kQuadsPerGroup>([&]<size_t kQuad>() QWENSTACK_INLINE_LAMBDA {
            store_bytes(to + expanded_codes_at(kFormat) + kQuad * kQuadBytes, reader.template codes<kQuad>());
        });
        reader.end_group();
        to += expanded_group_bytes(kFormat);
    }
}

// Multiplies the runs of `kTiles` tiles, kMaxRunBytes apart, with a block of `kTokens` tokens and adds to the products
// [kTiles][kMaxRangeTokens][16 rows]; several tiles share each broadcast of activations.
template <QuantizedFormat kFormat, size_t kTiles, size_t kTokens>
QWENSTACK_NOINLINE void add_expanded_products(const uint8_t* runs, size_t num_groups, const uint8_t* activations,
                                              float* products) {
    constexpr bool kHasOffsets = kFormat.has_offsets;
    constexpr size_t kScales = kFormat.scales_per_group;
    constexpr size_t kQuadsPerScale = quads_per_scale(kFormat);
    F32x16 results[kTiles][kTokens];
    for (size_t tile = 0; tile < kTiles; ++tile) {
        for (size_t token = 0; token < kTokens; ++token) {
            results[tile][token] = load(products + (tile * kMaxRangeTokens + token) * kTileRows);
        }
    }
    for (size_t index = 0; index < num_groups; ++index) {
        const ActivationGroup group{activations + index * kTokens * kActivationGroupBytes, kTokens};
        const uint8_t* const first = runs + index * expanded_group_bytes(kFormat);
        for (size_t half = 0; half < kScales; ++half) {
            const size_t part = kScales == 1 ? 0 : 1 + half;
            GroupSum<kFormat> dots[kTiles][kTokens];
            for (size_t tile = 0; tile < kTiles; ++tile) {
                start_dots<kFormat>(group, part, dots[tile]);
            }
            QWENSTACK_UNROLL
            for (size_t i = half * kQuadsPerScale; i < (half + 1) * kQuadsPerScale; ++i) {
                U8x64 quads[kTiles];
                for (size_t tile = 0; tile < kTiles; ++tile) {
                    quads[tile] = load_bytes(first + tile * kMaxRunBytes + expanded_codes_at(kFormat) + i * kQuadBytes);
                }
                QWENSTACK_UNROLL
                for (size_t token = 0; token < kTokens; ++token) {
                    const int8_t* const codes = group.codes(token) + 4 * i;
                    for (size_t tile = 0; tile < kTiles; ++tile) {
                        dots[tile][token].add(quads[tile], codes);
                        if ((i + 1) % kSettledQuads<kFormat> == 0) {
                            dots[tile][token].settle();
                        }
                    }
                }
            }
            for (size_t tile = 0; tile < kTiles; ++tile) {
                const float* const vectors = reinterpret_cast<const float*>(first + tile * kMaxRunBytes);
                const F32x16 scale = load(vectors + half * kTileRows);
                const F32x16 offset = kHasOffsets ? load(vectors + (kScales + half) * kTileRows) : scale;
                add_dots<kFormat>(dots[tile], scale, offset, group, part, results[tile]);
            }
        }
    }
    for (size_t tile = 0; tile < kTiles; ++tile) {
        for (size_t token = 0; token < kTokens; ++token) {
            store(products + (tile * kMaxRangeTokens + token) * kTileRows, results[tile][token]);
        }
    }
}

// Calls `function.template operator()<format>()` with the format as a constant.
template <typename Function>
void with_format(const QuantizedFormat& format, Function function) {
    if (format == kFormatQ4_0) {
        return function.template operator()<kFormatQ4_0>();
    }
    if (format == kFormatQ4_1) {
        return function.template operator()<kFormatQ4_1>();
    }
    if (format == kFormatQ5_0) {
        return function.template operator()<kFormatQ5_0>();
    }
    if (format == kFormatQ5_1) {
        return function.template operator()<kFormatQ5_1>();
    }
    if (format == kFormatQ8_0) {
        return function.template operator()<kFormatQ8_0>();
    }
    if (format == kFormatQ2_K) {
        return function.template operator()<kFormatQ2_K>();
    }
    if (format == kFormatQ3_K) {
        return function.template operator()<kFormatQ3_K>();
    }
    if (format == kFormatQ4_K) {
        return function.template operator()<kFormatQ4_K>();
    }
    if (format == kFormatQ5_K) {
        return function.template operator()<kFormatQ5_K>();
    }
    return function.template operator()<kFormatQ6_K>();
}

// Calls `function.template operator()<n>()` for n = 1…kMost.
template <size_t kMost, typename Function>
void with_count(size_t count, Function function) {
    if constexpr (kMost > 1) {
        if (count < kMost) {
            return with_count<kMost - 1>(count, function);
        }
    }
    return function.template operator()<kMost>();
}

// Up to so many tokens tiles are multiplied from their packed form, unpacked anew for each block of tokens; expanding
// them once pays beyond. Codes in two parts take the most to unpack (one core of a Zen 3 with AVX2, 16 tokens, G
// products/s packed/expanded: Q4_0 108/102, Q8_0 61/55, Q5_0 87/98, Q6_K 63/77; 8 tokens: 85/82, 61/64 for the last
// two).
static constexpr size_t few_tokens(const QuantizedFormat& format) {
    const bool in_two_parts = format.code_bits == 5 || format.code_bits == 6;
    return in_two_parts ? 2 * kBlockTokens : 16;
}

// Multiplies tiles of one format with a few tokens, straight from their packed form.
template <QuantizedFormat kFormat>
void multiply_few_tokens(const LinearJob& job, const TileSet& tiles, const TileRange& range, float* products) {
    const size_t num_groups = job.in_features / kGroupColumns;
    const size_t token_bytes = num_groups * kActivationGroupBytes;
    for (size_t i = 0; i < tiles.count; ++i) {
        for (size_t token = 0; token < range.num_tokens; token += kBlockTokens) {
            with_count<kBlockTokens>(smaller(kBlockTokens, range.num_tokens - token), [&]<size_t kTokens>() {
                multiply_packed_tile<kFormat, kTokens>(tiles.tile[i], job.prefetch_distance, num_groups,
                                                       job.activations + (range.first_token + token) * token_bytes,
                                                       products + (i * kMaxRangeTokens + token) * kTileRows);
            });
        }
    }
}

// Multiplies `kTiles` tiles of one format with any range of tokens, expanding them run by run.
template <QuantizedFormat kFormat, size_t kTiles>
void multiply_many_tokens(const LinearJob& job, const TileSet& tiles, const TileRange& range, uint8_t* runs,
                          float* products) {
    const size_t num_groups = job.in_features / kGroupColumns;
    const size_t token_bytes = num_groups * kActivationGroupBytes;
    const size_t num_blocks = (range.num_tokens + kBlockTokens - 1) / kBlockTokens;
    PackedTileReader<kFormat> readers[kTiles];
    for (size_t i = 0; i < kTiles; ++i) {
        readers[i] = PackedTileReader<kFormat>(tiles.tile[i], job.prefetch_distance);
        std::memset(products + i * kMaxRangeTokens * kTileRows, 0, range.num_tokens * kVectorBytes);
    }
    for (size_t group = 0; group < num_groups; group += kRunGroups) {
        const size_t run_groups = smaller(kRunGroups, num_groups - group);
        const bool is_last_run = group + run_groups == num_groups;
        const size_t next_groups = is_last_run ? smaller(kRunGroups, num_groups) : run_groups;
        for (size_t i = 0; i < kTiles; ++i) {
            expand_groups<kFormat>(readers[i], run_groups, runs + i * kMaxRunBytes);
        }
        for (size_t block = 0; block < num_blocks; ++block) {
            for (size_t i = 0; i < kTiles; ++i) {
                const uintptr_t next = is_last_run ? reinterpret_cast<uintptr_t>(tiles.tile[i]) + tiles.step
                                                   : reinterpret_cast<uintptr_t>(readers[i].position());
                prefetch_share(next, next_groups * group_bytes(kFormat), block, num_blocks);
            }
            const size_t token = block * kBlockTokens;
            with_count<kBlockTokens>(smaller(kBlockTokens, range.num_tokens - token), [&]<size_t kTokens>() {
                if (is_last_run) {
                    prefetch_results<kTiles, kTokens>(tiles.out + token * job.out_stride, job.out_stride);
                }
                const uint8_t* const activations = job.activations + (range.first_token + token) * token_bytes +
                                                   group * kTokens * kActivationGroupBytes;
                add_expanded_products<kFormat, kTiles, kTokens>(runs, run_groups, activations,
                                                                products + token * kTileRows);
            });
        }
    }
}

// Multiplies tiles of one format with a range of tokens; products [tiles][kMaxRangeTokens][16 rows].
inline void multiply_quantized_tiles(const LinearJob& job, const TileSet& tiles, const TileRange& range, uint8_t* runs,
                                     float* products) {
    with_format(tiles.segment->format, [&]<QuantizedFormat kFormat>() {
        if (range.num_tokens <= few_tokens(kFormat)) {
            multiply_few_tokens<kFormat>(job, tiles, range, products);
        } else {
            with_count<kMaxTiles>(tiles.count, [&]<size_t kTiles>() {
                multiply_many_tokens<kFormat, kTiles>(job, tiles, range, runs, products);
            });
        }
    });
}

}  // namespace
}  // namespace qwenstack
