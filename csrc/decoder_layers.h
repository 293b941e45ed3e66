// All dense layers of a decoder in one call: what lies between two operations costs nothing here, and in Python 2 ms of
// a token's 25 (docs/lab-notes.md, 2026-11-26).
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "context.h"

namespace qwenstack {

// The weights of one layer, and where its keys and values live.
struct DecoderLayer {
    const float* input_norm;
    const PackedLinear* qkv;
    const float* q_norm;  // null: none
    const float* k_norm;
    const PackedLinear* output;
    const float* mlp_norm;
    const PackedLinear* gate_up;
    const PackedLinear* down;
    void* k_cache;
    void* v_cache;
};

// What all layers have in common.
struct DecoderShape {
    size_t width;
    size_t num_heads;
    size_t num_kv_heads;
    size_t head_dim;
    size_t num_blocks;
    size_t block_size;
    CacheType cache_type;
    float eps;
    float scale;  // of attention

    size_t q_size() const { return num_heads * head_dim; }
    size_t qkv_width() const { return (num_heads + 2 * num_kv_heads) * head_dim; }
};

// The rows that an adapter changes in each product of one layer.
struct LayerLora {
    std::vector<LoraRows> qkv;
    std::vector<LoraRows> output;
    std::vector<LoraRows> gate_up;
    std::vector<LoraRows> down;
};

// Tokens of sequences; see RopeJob and AttentionJob.
struct LayersJob {
    float* x;  // [num_tokens, width]
    size_t num_tokens;
    const float* cos;
    const float* sin;
    const int64_t* slot_mapping;
    const int32_t* query_start;
    const int32_t* kv_len;
    size_t num_sequences;
    const int32_t* block_table;
    size_t max_blocks;
    const LayerLora* lora;  // of each layer; null: no row has an adapter
    bool has_16_bit_activations;
};

class DecoderLayers {
public:
    // What `layers` point to must outlive this object.
    DecoderLayers(const DecoderShape& shape, std::vector<DecoderLayer> layers);

    const DecoderShape& shape() const { return shape_; }
    const std::vector<DecoderLayer>& layers() const { return layers_; }

    // Adds all layers to x, whose keys and values are in the caches afterwards. One caller at a time; a second one
    // waits. May throw std::bad_alloc, after which x and the slots of its tokens hold anything.
    void run(Context& context, const LayersJob& job);

private:
    void attend(Context& context, const DecoderLayer& layer, const LayersJob& job, const LayerLora& lora);
    void feed_forward(Context& context, const DecoderLayer& layer, const LayersJob& job, const LayerLora& lora);
    void compute_hidden(Context& context, const DecoderLayer& layer, const LinearJob& to_hidden, const LayerLora& lora);

    const DecoderShape shape_;
    const std::vector<DecoderLayer> layers_;
    std::mutex mutex_;
    ScratchMemory qkv_;
    ScratchMemory attended_;
    ScratchMemory gate_up_;
    ScratchMemory hidden_;
};

}  // namespace qwenstack
