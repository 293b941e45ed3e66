// What every instruction set offers: the kernels as plain functions over plain structs.
//
// A job describes one operation on all its rows; the functions compute one independent part of it, so that any number
// of threads gives the same bits. No function here checks anything: bindings.cc has done so.
#pragma once

#include <cstddef>
#include <cstdint>

#include "weight_layout.h"

namespace qwenstack {

// Activations of a block of tokens, quantised; for each group of 32 columns one record of this size per token (see
// kernels/activations.h).
static constexpr size_t kActivationGroupBytes = 60;

struct NormJob {
    const float* x;
    const float* weight;
    float eps;
    size_t width;
    float* out;
};

struct LinearJob {
    const float* x;            // [num_tokens, in_features]
    const float* norm_weight;  // null: x is taken as it is
    float eps;
    size_t num_tokens;
    size_t in_features;
    bool has_16_bit_activations;  // what rounding x to int8 took away is multiplied too
    const uint8_t* activations;   // quantised x, if a segment is quantised
    const float* normed;          // x after the norm (x itself without one), if a segment is float
    const float* bias;            // null: none
    bool accumulate;
    float* out;
    size_t out_stride;
    size_t prefetch_distance;  // bytes between the weights in work and those that are asked for
};

// Part of a product: tiles of one segment × a range of at most kMaxRangeTokens tokens that starts at a multiple of
// block_tokens.
static constexpr size_t kMaxRangeTokens = 256;

struct TileRange {
    size_t first_tile;
    size_t num_tiles;
    size_t first_token;
    size_t num_tokens;
};

struct RopeJob {
    float* qkv;
    size_t num_heads;
    size_t num_kv_heads;
    size_t head_dim;
    const float* q_norm;  // null: none
    const float* k_norm;
    float eps;
    const float* cos;
    const float* sin;
    const int64_t* slot_mapping;
    void* k_cache;
    void* v_cache;
    size_t block_size;
};

struct AttentionJob {
    const float* qkv;
    size_t num_heads;
    size_t num_kv_heads;
    size_t head_dim;
    const void* k_cache;
    const void* v_cache;
    size_t block_size;
    const int32_t* query_start;
    const int32_t* kv_len;
    const int32_t* block_table;
    size_t max_blocks;  // columns of block_table
    float scale;
    float* out;
};

// Part of an attention: some queries of one sequence × the query heads of one key/value head.
struct AttentionPart {
    size_t sequence;
    size_t kv_head;
    size_t first_query;  // within the sequence
    size_t num_queries;
};

enum class CacheType : uint8_t { kFloat32, kFloat16, kBfloat16, kInt8 };

// A row of an int8 cache: a float16 scale for each group of columns, then the codes (see kernels/kv_cache.h).
static constexpr size_t kInt8GroupColumns = 16;
static constexpr size_t kMaxInt8HeadDim = 1024;  // several times the widest head in use

constexpr size_t num_int8_groups(size_t head_dim) { return (head_dim + kInt8GroupColumns - 1) / kInt8GroupColumns; }
constexpr size_t int8_row_width(size_t head_dim) { return head_dim + 2 * num_int8_groups(head_dim); }

struct KernelTable {
    const char* name;
    size_t block_tokens;  // tokens that the matrix kernels compute together

    void (*rms_norm_row)(const NormJob& job, size_t row);

    // Normalises and quantises tokens first_token … + num_tokens (at most block_tokens) into their place in `to`; what
    // rounding took away is quantised into `rest`, if that is not null.
    void (*quantize_block)(const LinearJob& job, size_t first_token, size_t num_tokens, uint8_t* to, uint8_t* rest);

    // Bytes of scratch that one thread needs for the next two.
    size_t (*linear_scratch_bytes)();
    void (*linear)(const LinearJob& job, const Segment& segment, const TileRange& range, uint8_t* scratch);
    void (*gate_up_silu)(const LinearJob& job, const Segment& gate, const Segment& up, const TileRange& range,
                         uint8_t* scratch);

    // out = silu(gate) · up, of one token's `num_features` gates and then as many ups.
    void (*silu_row)(const float* gate_up, size_t num_features, float* out);

    void (*rope_and_write_kv)(const RopeJob& job, CacheType type, size_t token);

    size_t (*attention_scratch_bytes)(const AttentionJob& job, size_t max_queries);
    void (*attend)(const AttentionJob& job, CacheType type, const AttentionPart& part, uint8_t* scratch);
};

extern const KernelTable kScalarKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
extern const KernelTable kNeonKernels;

// Names of the instruction sets, the fastest first; the scalar one, which every processor runs, last.
inline constexpr const char* kIsaNames[] = {"avx512", "avx2", "neon", "scalar"};

// How many bytes ahead weights are asked for, in products that wait for memory and in those that have work meanwhile.
struct PrefetchDistances {
    size_t few_tokens;
    size_t many_tokens;
};

// What is best on this processor.
PrefetchDistances prefetch_distances();

// The kernels of an instruction set by name, or null if it was not built or this processor cannot run it.
const KernelTable* find_kernels(const char* name);

}  // namespace qwenstack
