#include "context.h"

#include <algorithm>
#include <cstdlib>
#include <new>

namespace qwenstack {
namespace {

constexpr size_t kCacheLineBytes = 64;

// Tiles of one part: with few tokens the product is limited by reading weights, and parts are runs of about kPartBytes,
// long enough to hide the cost of claiming one and of prefetching beyond its end; with many, two tiles are work enough.
constexpr size_t kFewTokens = 8;
constexpr size_t kPartBytes = size_t{64} << 10;
constexpr size_t kManyTokensTiles = 2;
// Tiles of a factor of an adapter with many tokens: its inner dimension is a rank, so that a tile alone is little work.
constexpr size_t kLoraTiles = 16;
// From so many adapters for each thread on, an adapter is one part, both of its factors without a wait between them.
constexpr size_t kAdaptersPerThread = 4;
// Rows (query heads of queries) that share one pass over the keys: their results fit the first-level cache.
constexpr size_t kAttentionRows = 128;

size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

bool has_kind(const PackedLinear& packed, bool quantized) {
    return std::any_of(packed.segments().begin(), packed.segments().end(),
                       [&](const Segment& segment) { return (segment.kind == WeightKind::kQuantized) == quantized; });
}

}  // namespace

uint8_t* ScratchMemory::reserve(size_t size) {
    if (size > size_) {
        const size_t rounded = round_up(size, kCacheLineBytes);
        data_.reset();
        size_ = 0;
        data_.reset(static_cast<uint8_t*>(std::aligned_alloc(kCacheLineBytes, rounded)));
        if (data_ == nullptr) {
            throw std::bad_alloc();
        }
        size_ = rounded;
    }
    return data_.get();
}

void ScratchMemory::Free::operator()(uint8_t* data) const noexcept { std::free(data); }

uint8_t* Context::reserve_thread_scratch(size_t size) {
    scratch_stride_ = round_up(size, kCacheLineBytes);
    scratch_base_ = scratch_.reserve(scratch_stride_ * pool_.num_threads());
    return scratch_base_;
}

std::unique_ptr<PackedLinear> Context::pack(const std::vector<StoredMatrix>& matrices, const float* bias) {
    const std::lock_guard lock(mutex_);
    return std::make_unique<PackedLinear>(matrices, bias, weights_, pool_);
}

std::unique_ptr<PackedLora> Context::pack_lora(const std::vector<StoredLora>& matrices, size_t out_features) {
    const std::lock_guard lock(mutex_);
    return std::make_unique<PackedLora>(matrices, out_features, weights_, pool_);
}

void Context::rms_norm(const NormJob& job, size_t num_rows) {
    const std::lock_guard lock(mutex_);
    pool_.run(num_rows, [&](size_t row, size_t) { kernels_.rms_norm_row(job, row); });
}

void Context::normalise(LinearJob& job) {
    job.normed = job.x;
    if (job.norm_weight == nullptr) {
        return;
    }
    auto* const normed = reinterpret_cast<float*>(normed_.reserve(job.num_tokens * job.in_features * sizeof(float)));
    const NormJob norm{job.x, job.norm_weight, job.eps, job.in_features, normed};
    pool_.run(job.num_tokens, [&](size_t row, size_t) { kernels_.rms_norm_row(norm, row); });
    job.normed = normed;
}

void Context::prepare_activations(LinearJob& job, const PackedLinear& packed) {
    if (has_kind(packed, false)) {
        normalise(job);
    }
    if (has_kind(packed, true)) {
        const size_t size = job.num_tokens * (job.in_features / kGroupColumns) * kActivationGroupBytes;
        uint8_t* const activations = activations_.reserve(size);
        uint8_t* const rest = job.has_16_bit_activations ? rest_.reserve(size) : nullptr;
        const size_t block_tokens = kernels_.block_tokens;
        const size_t num_blocks = (job.num_tokens + block_tokens - 1) / block_tokens;
        pool_.run(num_blocks, [&](size_t block, size_t) {
            const size_t first_token = block * block_tokens;
            const size_t num_tokens = std::min(block_tokens, job.num_tokens - first_token);
            kernels_.quantize_block(job, first_token, num_tokens, activations, rest);
        });
        job.activations = activations;
    }
}

void Context::split_tiles(const LinearJob& job, const Segment& segment, size_t first_token, size_t num_tokens) {
    const size_t tiles_per_part =
        job.num_tokens <= kFewTokens ? std::max<size_t>(1, kPartBytes / segment.tile_bytes) : kManyTokensTiles;
    for (size_t tile = 0; tile < segment.num_tiles; tile += tiles_per_part) {
        const size_t num_tiles = std::min(tiles_per_part, segment.num_tiles - tile);
        linear_parts_.push_back({&segment, {tile, num_tiles, first_token, num_tokens}});
    }
}

void Context::linear(LinearJob job, const PackedLinear& packed) {
    const std::lock_guard lock(mutex_);
    prepare_activations(job, packed);
    reserve_thread_scratch(kernels_.linear_scratch_bytes());
    if (job.has_16_bit_activations) {
        multiply_with_rest(job, packed);
    } else {
        multiply(job, packed, false);
    }
}

void Context::multiply_with_rest(LinearJob job, const PackedLinear& packed) {
    multiply(job, packed, false);
    if (!has_kind(packed, true)) {
        return;
    }
    job.activations = rest_.data();
    job.bias = nullptr;
    job.accumulate = true;
    multiply(job, packed, true);
}

void Context::multiply(const LinearJob& job, const PackedLinear& packed, bool only_quantized) {
    linear_parts_.clear();
    for (size_t token = 0; token < job.num_tokens; token += kMaxRangeTokens) {
        const size_t num_tokens = std::min(kMaxRangeTokens, job.num_tokens - token);
        for (const Segment& segment : packed.segments()) {
            if (!only_quantized || segment.kind == WeightKind::kQuantized) {
                split_tiles(job, segment, token, num_tokens);
            }
        }
    }
    pool_.run(linear_parts_.size(), [&](size_t index, size_t thread) {
        const LinearPart& part = linear_parts_[index];
        kernels_.linear(job, *part.segment, part.range, thread_scratch(thread));
    });
}

void Context::gate_up_silu(LinearJob job, const PackedLinear& packed) {
    const std::lock_guard lock(mutex_);
    prepare_activations(job, packed);
    reserve_thread_scratch(kernels_.linear_scratch_bytes());
    const Segment& gate = packed.segments()[0];
    const Segment& up = packed.segments()[1];
    if (job.has_16_bit_activations) {
        LinearJob product = job;
        product.out_stride = packed.out_features();
        product.out = reinterpret_cast<float*>(gate_up_.reserve(job.num_tokens * product.out_stride * sizeof(float)));
        product.accumulate = false;
        multiply_with_rest(product, packed);
        pool_.run(job.num_tokens, [&](size_t token, size_t) {
            kernels_.silu_row(product.out + token * product.out_stride, gate.rows, job.out + token * job.out_stride);
        });
        return;
    }
    linear_parts_.clear();
    for (size_t token = 0; token < job.num_tokens; token += kMaxRangeTokens) {
        split_tiles(job, gate, token, std::min(kMaxRangeTokens, job.num_tokens - token));
    }
    pool_.run(linear_parts_.size(), [&](size_t index, size_t thread) {
        kernels_.gate_up_silu(job, gate, up, linear_parts_[index].range, thread_scratch(thread));
    });
}

void Context::silu_times(const float* gate_up, size_t num_tokens, size_t num_features, float* out) {
    const std::lock_guard lock(mutex_);
    pool_.run(num_tokens, [&](size_t token, size_t) {
        kernels_.silu_row(gate_up + token * 2 * num_features, num_features, out + token * num_features);
    });
}

void Context::add_lora(LinearJob job, const std::vector<LoraRows>& rows) {
    const std::lock_guard lock(mutex_);
    normalise(job);
    reserve_thread_scratch(kernels_.linear_scratch_bytes());
    size_t num_lowered = 0;
    for (const LoraRows& own : rows) {
        num_lowered += own.num_rows * own.lora->total_rank();
    }
    auto* lowered = reinterpret_cast<float*>(lowered_.reserve(num_lowered * sizeof(float)));
    lora_downs_.clear();
    lora_ups_.clear();
    lora_ends_.clear();
    for (const LoraRows& own : rows) {
        for (const LoraMatrix& matrix : own.lora->matrices()) {
            LinearJob down = job;
            down.normed = job.normed + own.first_row * job.in_features;
            down.num_tokens = own.num_rows;
            down.out = lowered;
            down.out_stride = matrix.rank;
            lora_downs_.push_back({down, &matrix.down, {0, matrix.down.num_tiles, 0, own.num_rows}, matrix.scale});
            LinearJob up = job;
            up.normed = lowered;
            up.in_features = matrix.rank;
            up.num_tokens = own.num_rows;
            up.accumulate = true;
            up.out = job.out + own.first_row * job.out_stride + matrix.first_column;
            lora_ups_.push_back({up, &matrix.up, {0, matrix.up.num_tiles, 0, own.num_rows}, 1.0f});
            lowered += own.num_rows * matrix.rank;
        }
        lora_ends_.push_back(lora_downs_.size());
    }
    if (job.num_tokens <= kFewTokens * rows.size() && rows.size() >= kAdaptersPerThread * pool_.num_threads()) {
        run_lora_by_adapter();
    } else {
        run_lora_in_parts(lora_downs_);
        run_lora_in_parts(lora_ups_);
    }
}

void Context::run_lora_by_adapter() {
    pool_.run(lora_ends_.size(), [&](size_t adapter, size_t thread) {
        const size_t begin = adapter == 0 ? 0 : lora_ends_[adapter - 1];
        for (size_t i = begin; i < lora_ends_[adapter]; ++i) {
            run_lora_part(lora_downs_[i], thread);
        }
        for (size_t i = begin; i < lora_ends_[adapter]; ++i) {
            run_lora_part(lora_ups_[i], thread);
        }
    });
}

void Context::run_lora_in_parts(const std::vector<LoraPart>& factors) {
    lora_parts_.clear();
    for (const LoraPart& whole : factors) {
        const size_t num_tokens = whole.range.num_tokens;
        const size_t tiles_per_part =
            num_tokens <= kFewTokens ? std::max<size_t>(1, kPartBytes / whole.factor->tile_bytes) : kLoraTiles;
        for (size_t token = 0; token < num_tokens; token += kMaxRangeTokens) {
            for (size_t tile = 0; tile < whole.range.num_tiles; tile += tiles_per_part) {
                LoraPart part = whole;
                part.range = {tile, std::min(tiles_per_part, whole.range.num_tiles - tile), token,
                              std::min(kMaxRangeTokens, num_tokens - token)};
                lora_parts_.push_back(part);
            }
        }
    }
    pool_.run(lora_parts_.size(), [&](size_t index, size_t thread) { run_lora_part(lora_parts_[index], thread); });
}

void Context::run_lora_part(const LoraPart& part, size_t thread) {
    kernels_.linear(part.job, *part.factor, part.range, thread_scratch(thread));
    if (part.job.accumulate) {
        return;
    }
    const size_t first = part.range.first_tile * kTileRows;
    const size_t end = std::min(part.factor->rows, first + part.range.num_tiles * kTileRows);
    for (size_t token = part.range.first_token; token < part.range.first_token + part.range.num_tokens; ++token) {
        for (size_t i = first; i < end; ++i) {
            part.job.out[token * part.job.out_stride + i] *= part.scale;
        }
    }
}

void Context::rope_and_write_kv(const RopeJob& job, CacheType type, size_t num_tokens) {
    const std::lock_guard lock(mutex_);
    pool_.run(num_tokens, [&](size_t token, size_t) { kernels_.rope_and_write_kv(job, type, token); });
}

void Context::attend(const AttentionJob& job, CacheType type, size_t num_sequences) {
    const std::lock_guard lock(mutex_);
    const size_t group = job.num_heads / job.num_kv_heads;
    const size_t max_queries = std::max<size_t>(1, kAttentionRows / group);
    attention_parts_.clear();
    for (size_t sequence = 0; sequence < num_sequences; ++sequence) {
        const size_t num_queries = static_cast<size_t>(job.query_start[sequence + 1] - job.query_start[sequence]);
        const size_t num_parts = (num_queries + max_queries - 1) / max_queries;
        for (size_t part = num_parts; part-- > 0;) {  // late queries see most keys: the longest work comes first
            const size_t first_query = part * max_queries;
            for (size_t kv_head = 0; kv_head < job.num_kv_heads; ++kv_head) {
                attention_parts_.push_back(
                    {sequence, kv_head, first_query, std::min(max_queries, num_queries - first_query)});
            }
        }
    }
    reserve_thread_scratch(kernels_.attention_scratch_bytes(job, max_queries));
    pool_.run(attention_parts_.size(), [&](size_t index, size_t thread) {
        kernels_.attend(job, type, attention_parts_[index], thread_scratch(thread));
    });
}

}  // namespace qwenstack
