// All kernels, for the instruction set whose vector types were included before.
#pragma once

// clang-format off: each file uses the ones before it
#include "vector_math.h"
#include "prefetch.h"
#include "activations.h"
#include "quantized_linear.h"
#include "float_linear.h"
#include "linear.h"
#include "kv_cache.h"
#include "rope.h"
#include "attention.h"
// clang-format on

namespace qwenstack {
namespace {

constexpr KernelTable kernel_table(const char* name) {
    return {
        .name = name,
        .block_tokens = kBlockTokens,
        .rms_norm_row = rms_norm_row,
        .quantize_block = quantize_block,
        .linear_scratch_bytes = linear_scratch_bytes,
        .linear = linear,
        .gate_up_silu = gate_up_silu,
        .silu_row = silu_row,
        .rope_and_write_kv = rope_and_write_kv,
        .attention_scratch_bytes = attention_scratch_bytes,
        .attend = attend,
    };
}

}  // namespace
}  // namespace qwenstack
