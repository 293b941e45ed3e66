// Linear layers: the product of a tile, then what is done with it.
//
//   linear         out = product + bias, or out = out + (product + bias)
//   gate_up_silu   out = silu(gate product + bias) · (up product + bias)
#pragma once

#include <cstddef>
#include <cstdint>

#include "../kernel_table.h"

namespace qwenstack {
namespace {

// Scratch of one thread: products of tiles (a gate's and an up's at most), then what expanded tiles take.
static_assert(kMaxTiles <= 2);
static constexpr size_t kMostProducts = 2;
static constexpr size_t kProductFloats = kMaxRangeTokens * kTileRows;

inline size_t linear_scratch_bytes() {
    return kMostProducts * kProductFloats * sizeof(float) + kMaxTiles * kMaxRunBytes;
}

struct LinearScratch {
    float* products;  // [kMostProducts][kMaxRangeTokens][16 rows]
    uint8_t* runs;

    explicit LinearScratch(uint8_t* memory)
        : products(reinterpret_cast<float*>(memory)), runs(memory + kMostProducts * kProductFloats * sizeof(float)) {}
};

inline void multiply_tiles(const LinearJob& job, const TileSet& tiles, const TileRange& range,
                           const LinearScratch& scratch, float* products) {
    if (tiles.segment->kind == WeightKind::kQuantized) {
        multiply_quantized_tiles(job, tiles, range, scratch.runs, products);
        return;
    }
    for (size_t i = 0; i < tiles.count; ++i) {
        multiply_float_tile(job, tiles.segment->kind, tiles.tile[i], range, products + i * kProductFloats);
    }
}

QWENSTACK_INLINE const uint8_t* tile_at(const Segment& segment, size_t tile) {
    return segment.tiles + tile * segment.tile_bytes;
}

// The bias of 16 rows, 0 without one.
QWENSTACK_INLINE F32x16 bias_of(const LinearJob& job, size_t row, size_t count) {
    return job.bias == nullptr ? broadcast(0.0f) : load_first(job.bias + row, count);
}

inline void linear(const LinearJob& job, const Segment& segment, const TileRange& range, uint8_t* memory) {
    const LinearScratch scratch(memory);
    const size_t end = range.first_tile + range.num_tiles;
    for (size_t first = range.first_tile; first < end; first += kMaxTiles) {
        const size_t first_row = segment.first_row + first * kTileRows;
        float* const first_out = job.out + range.first_token * job.out_stride + first_row;
        TileSet tiles{&segment, smaller(kMaxTiles, end - first), {}, kMaxTiles * segment.tile_bytes, first_out};
        for (size_t i = 0; i < tiles.count; ++i) {
            tiles.tile[i] = tile_at(segment, first + i);
        }
        multiply_tiles(job, tiles, range, scratch, scratch.products);
        for (size_t i = 0; i < tiles.count; ++i) {
            const size_t count = segment.rows - (first + i) * kTileRows;
            const F32x16 bias = bias_of(job, first_row + i * kTileRows, count);
            for (size_t token = 0; token < range.num_tokens; ++token) {
                float* const out = first_out + token * job.out_stride + i * kTileRows;
                F32x16 result = load(scratch.products + i * kProductFloats + token * kTileRows) + bias;
                if (job.accumulate) {
                    result = load_first(out, count) + result;
                }
                store_first(out, result, count);
            }
        }
    }
}

// Multiplies a gate's and an up's tile, together if their format is the same.
inline void multiply_gate_and_up(const LinearJob& job, const Segment& gate, const Segment& up, size_t tile,
                                 const TileRange& range, const LinearScratch& scratch) {
    const float* const out = job.out + range.first_token * job.out_stride + tile * kTileRows;
    if (kMaxTiles >= 2 && gate.kind == up.kind && gate.format == up.format) {
        TileSet both{&gate, 2, {tile_at(gate, tile)}, gate.tile_bytes, out};
        both.tile[kMaxTiles - 1] = tile_at(up, tile);
        return multiply_tiles(job, both, range, scratch, scratch.products);
    }
    multiply_tiles(job, {&gate, 1, {tile_at(gate, tile)}, gate.tile_bytes, out}, range, scratch, scratch.products);
    multiply_tiles(job, {&up, 1, {tile_at(up, tile)}, up.tile_bytes, out}, range, scratch,
                   scratch.products + kProductFloats);
}

inline void gate_up_silu(const LinearJob& job, const Segment& gate, const Segment& up, const TileRange& range,
                         uint8_t* memory) {
    const LinearScratch scratch(memory);
    for (size_t tile = range.first_tile; tile < range.first_tile + range.num_tiles; ++tile) {
        multiply_gate_and_up(job, gate, up, tile, range, scratch);
        const size_t row = tile * kTileRows;
        const size_t count = gate.rows - row;
        const F32x16 gate_bias = bias_of(job, row, count);
        const F32x16 up_bias = bias_of(job, up.first_row + row, count);
        for (size_t token = 0; token < range.num_tokens; ++token) {
            const float* const gate_product = scratch.products + token * kTileRows;
            const F32x16 gated = load(gate_product) + gate_bias;
            const F32x16 result = silu_times(gated, load(gate_product + kProductFloats) + up_bias);
            store_first(job.out + (range.first_token + token) * job.out_stride + row, result, count);
        }
    }
}

inline void silu_row(const float* gate_up, size_t num_features, float* out) {
    for (size_t i = 0; i < num_features; i += 16) {
        const size_t count = num_features - i;
        const F32x16 up = load_first(gate_up + num_features + i, count);
        store_first(out + i, silu_times(load_first(gate_up + i, count), up), count);
    }
}

}  // namespace
}  // namespace qwenstack
