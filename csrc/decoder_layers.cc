#include "decoder_layers.h"

#include <utility>

namespace qwenstack {
namespace {

float* reserve_floats(ScratchMemory& memory, size_t count) {
    return reinterpret_cast<float*>(memory.reserve(count * sizeof(float)));
}

LinearJob product(const LayersJob& job, const PackedLinear& packed, const float* x, float* out, size_t out_width) {
    LinearJob linear{};
    linear.x = x;
    linear.num_tokens = job.num_tokens;
    linear.in_features = packed.in_features();
    linear.has_16_bit_activations = job.has_16_bit_activations;
    linear.bias = packed.bias();
    linear.out = out;
    linear.out_stride = out_width;
    return linear;
}

void multiply(Context& context, const LinearJob& job, const PackedLinear& packed, const std::vector<LoraRows>& lora) {
    context.linear(job, packed);
    if (!lora.empty()) {
        context.add_lora(job, lora);
    }
}

}  // namespace

DecoderLayers::DecoderLayers(const DecoderShape& shape, std::vector<DecoderLayer> layers)
    : shape_(shape), layers_(std::move(layers)) {}

void DecoderLayers::run(Context& context, const LayersJob& job) {
    const std::lock_guard lock(mutex_);
    const LayerLora none;
    for (size_t i = 0; i < layers_.size(); ++i) {
        const LayerLora& lora = job.lora == nullptr ? none : job.lora[i];
        attend(context, layers_[i], job, lora);
        feed_forward(context, layers_[i], job, lora);
    }
}

void DecoderLayers::attend(Context& context, const DecoderLayer& layer, const LayersJob& job, const LayerLora& lora) {
    float* const qkv = reserve_floats(qkv_, job.num_tokens * shape_.qkv_width());
    float* const attended = reserve_floats(attended_, job.num_tokens * shape_.q_size());

    LinearJob to_qkv = product(job, *layer.qkv, job.x, qkv, shape_.qkv_width());
    to_qkv.norm_weight = layer.input_norm;
    to_qkv.eps = shape_.eps;
    multiply(context, to_qkv, *layer.qkv, lora.qkv);

    RopeJob rope{};
    rope.qkv = qkv;
    rope.num_heads = shape_.num_heads;
    rope.num_kv_heads = shape_.num_kv_heads;
    rope.head_dim = shape_.head_dim;
    rope.q_norm = layer.q_norm;
    rope.k_norm = layer.k_norm;
    rope.eps = shape_.eps;
    rope.cos = job.cos;
    rope.sin = job.sin;
    rope.slot_mapping = job.slot_mapping;
    rope.k_cache = layer.k_cache;
    rope.v_cache = layer.v_cache;
    rope.block_size = shape_.block_size;
    context.rope_and_write_kv(rope, shape_.cache_type, job.num_tokens);

    AttentionJob attention{};
    attention.qkv = qkv;
    attention.num_heads = shape_.num_heads;
    attention.num_kv_heads = shape_.num_kv_heads;
    attention.head_dim = shape_.head_dim;
    attention.k_cache = layer.k_cache;
    attention.v_cache = layer.v_cache;
    attention.block_size = shape_.block_size;
    attention.query_start = job.query_start;
    attention.kv_len = job.kv_len;
    attention.block_table = job.block_table;
    attention.max_blocks = job.max_blocks;
    attention.scale = shape_.scale;
    attention.out = attended;
    context.attend(attention, shape_.cache_type, job.num_sequences);

    LinearJob to_x = product(job, *layer.output, attended, job.x, shape_.width);
    to_x.accumulate = true;
    multiply(context, to_x, *layer.output, lora.output);
}

void DecoderLayers::feed_forward(Context& context, const DecoderLayer& layer, const LayersJob& job,
                                 const LayerLora& lora) {
    const size_t hidden_width = layer.down->in_features();
    float* const hidden = reserve_floats(hidden_, job.num_tokens * hidden_width);

    LinearJob to_hidden = product(job, *layer.gate_up, job.x, hidden, hidden_width);
    to_hidden.norm_weight = layer.mlp_norm;
    to_hidden.eps = shape_.eps;
    compute_hidden(context, layer, to_hidden, lora);

    LinearJob to_x = product(job, *layer.down, hidden, job.x, shape_.width);
    to_x.accumulate = true;
    multiply(context, to_x, *layer.down, lora.down);
}

void DecoderLayers::compute_hidden(Context& context, const DecoderLayer& layer, const LinearJob& to_hidden,
                                   const LayerLora& lora) {
    if (lora.gate_up.empty()) {
        context.gate_up_silu(to_hidden, *layer.gate_up);
        return;
    }
    LinearJob apart = to_hidden;
    apart.out_stride = layer.gate_up->out_features();
    apart.out = reserve_floats(gate_up_, apart.num_tokens * apart.out_stride);
    multiply(context, apart, *layer.gate_up, lora.gate_up);
    context.silu_times(apart.out, apart.num_tokens, to_hidden.out_stride, to_hidden.out);
}

}  // namespace qwenstack
