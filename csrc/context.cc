#include "context.h"

#include <algorithm>
#include <cstdlib>
#include <new>

namespace qwenstack {
namespace {

constexpr size_t kCacheLineBytes = 64;

// Tiles of one part. With few tokens the product is limited by reading weights: parts are long, to hide the cost of
// claiming one and of prefetching beyond its end, and become shorter towards the end of the matrix, so that threads end
// together. Each is a share of what is left then; equal parts cost 1 to 4 % of a token, and 64 KB each 8 %
// (docs/lab-notes.md, 2026-11-26). With many tokens, two tiles are work enough.
constexpr size_t kFewTokens = 8;
constexpr size_t kLeastPartBytes = size_t{32} << 10;
constexpr size_t kMostPartBytes = size_t{512} << 10;
constexpr double kPartsOfTheRest = 1.5;  // for each thread
constexpr size_t kManyTokensTiles = 2;
// A range has fewer tokens than share an expanded tile at best, down to this, where each thread would find few parts.
constexpr size_t kLeastRangeTokens = 64;
constexpr size_t kPartsPerThread = 4;
// Tiles of a factor of an adapter with many tokens: its inner dimension is a rank, so that a tile alone is little work.
constexpr size_t kLoraTiles = 16;
// From so many adapters of few tokens for each thread on, an adapter is one part, both of its factors without a wait
// between them.
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

void Context::normalise(LinearJob& job, float* normed) {
    job.normed = job.x;
    if (job.norm_weight == nullptr) {
        return;
    }
    const NormJob norm{job.x, job.norm_weight, job.eps, job.in_features, normed};
    pool_.run_in_halves(job.num_tokens, [&](size_t row, size_t) { kernels_.rms_norm_row(norm, row); });
    job.normed = normed;
}

void Context::prepare_activations() {
    size_t num_normed = 0, num_quantized = 0;
    for (const Product& product : products_) {
        const LinearJob& job = product.job;
        if (has_kind(*product.packed, false) && job.norm_weight != nullptr) {
            num_normed += job.num_tokens * job.in_features;
        }
        if (has_kind(*product.packed, true)) {
            num_quantized += job.num_tokens * (job.in_features / kGroupColumns) * kActivationGroupBytes;
        }
    }
    const bool has_rest = products_.front().job.has_16_bit_activations;
    auto* normed = reinterpret_cast<float*>(normed_.reserve(num_normed * sizeof(float)));
    uint8_t* activations = activations_.reserve(num_quantized);
    uint8_t* rest = has_rest ? rest_.reserve(num_quantized) : nullptr;
    blocks_.clear();
    for (Product& product : products_) {
        LinearJob& job = product.job;
        job.prefetch_distance = prefetch_distance(job.num_tokens);
        if (has_kind(*product.packed, false)) {
            normalise(job, normed);
            normed += job.norm_weight == nullptr ? 0 : job.num_tokens * job.in_features;
        }
        if (!has_kind(*product.packed, true)) {
            continue;
        }
        for (size_t token = 0; token < job.num_tokens; token += kernels_.block_tokens) {
            blocks_.push_back({&job, token, activations, rest});
        }
        const size_t size = job.num_tokens * (job.in_features / kGroupColumns) * kActivationGroupBytes;
        job.activations = activations;
        activations += size;
        if (has_rest) {
            product.rest = rest;
            rest += size;
        }
    }
    pool_.run_in_halves(blocks_.size(), [&](size_t index, size_t) {
        const Block& block = blocks_[index];
        const size_t num_tokens = std::min(kernels_.block_tokens, block.job->num_tokens - block.first_token);
        kernels_.quantize_block(*block.job, block.first_token, num_tokens, block.activations, block.rest);
    });
}

// Up to half of the tokens that kernels compute together a product waits for its weights (1, 2, 3, 4, 5, 6, 8 and 16
// tokens with AVX-512, 1, 2, 4 and 8 with AVX2: docs/lab-notes.md, 2026-11-26).
size_t Context::prefetch_distance(size_t num_tokens) const {
    return num_tokens <= kernels_.block_tokens / 2 ? distances_.few_tokens : distances_.many_tokens;
}

// Tiles of the next part, of those that are left, where reading them is what takes the time.
size_t Context::tiles_to_read(const Segment& segment, size_t tiles_left) const {
    const double share = static_cast<double>(tiles_left * segment.tile_bytes) /
                         (kPartsOfTheRest * static_cast<double>(pool_.num_threads()));
    const size_t bytes = std::clamp(static_cast<size_t>(share), kLeastPartBytes, kMostPartBytes);
    return std::clamp<size_t>(bytes / segment.tile_bytes, 1, tiles_left);
}

// Calls `function(first_token, num_tokens)` for the ranges of tokens of a product with so many rows.
template <typename Function>
void Context::for_each_range(size_t num_tokens, size_t num_rows, Function function) const {
    const size_t row_parts = (num_rows + kManyTokensTiles * kTileRows - 1) / (kManyTokensTiles * kTileRows);
    const size_t enough_parts = kPartsPerThread * pool_.num_threads();
    size_t range = kMaxRangeTokens;
    while (range > kLeastRangeTokens && (num_tokens + range - 1) / range * row_parts < enough_parts) {
        range /= 2;
    }
    for (size_t token = 0; token < num_tokens; token += range) {
        function(token, std::min(range, num_tokens - token));
    }
}

// The parts of a segment's product with a range of tokens.
void Context::split(const LinearJob& job, const Segment& segment, const Segment* up, size_t first_token,
                    size_t num_tokens) {
    size_t num_tiles = 0;
    for (size_t tile = 0; tile < segment.num_tiles; tile += num_tiles) {
        const size_t left = segment.num_tiles - tile;
        num_tiles = job.num_tokens <= kFewTokens ? tiles_to_read(segment, left) : std::min(kManyTokensTiles, left);
        linear_parts_.push_back({&job, &segment, up, {tile, num_tiles, first_token, num_tokens}});
    }
}

void Context::linear(const LinearJob& job, const PackedLinear& packed) {
    const std::lock_guard lock(mutex_);
    products_.assign(1, {job, &packed, nullptr});
    prepare_activations();
    multiply();
}

void Context::multiply() {
    reserve_thread_scratch(kernels_.linear_scratch_bytes());
    multiply_segments(false);
    if (products_.front().job.has_16_bit_activations) {
        for (Product& product : products_) {
            product.job.activations = product.rest;
            product.job.bias = nullptr;
            product.job.accumulate = true;
        }
        multiply_segments(true);
    }
}

void Context::multiply_segments(bool only_quantized) {
    linear_parts_.clear();
    for (const Product& product : products_) {
        for_each_range(product.job.num_tokens, product.packed->out_features(), [&](size_t first, size_t num_tokens) {
            for (const Segment& segment : product.packed->segments()) {
                if (!only_quantized || segment.kind == WeightKind::kQuantized) {
                    split(product.job, segment, nullptr, first, num_tokens);
                }
            }
        });
    }
    run_linear_parts([&](const LinearPart& part, size_t thread) {
        kernels_.linear(*part.job, *part.segment, part.range, thread_scratch(thread));
    });
}

// Few tokens have parts that become shorter, in this order; many have them from the first tokens to the last.
template <typename Work>
void Context::run_linear_parts(Work work) {
    auto run_part = [&](size_t index, size_t thread) { work(linear_parts_[index], thread); };
    const auto has_few_tokens = [](const Product& product) { return product.job.num_tokens <= kFewTokens; };
    if (std::all_of(products_.begin(), products_.end(), has_few_tokens)) {
        pool_.run(linear_parts_.size(), run_part);
    } else {
        pool_.run_in_halves(linear_parts_.size(), run_part);
    }
}

void Context::gate_up_silu(const LinearJob& job, const PackedLinear& packed) {
    const std::lock_guard lock(mutex_);
    products_.assign(1, {job, &packed, nullptr});
    multiply_gates();
}

void Context::multiply_gates() {
    prepare_activations();
    if (products_.front().job.has_16_bit_activations) {
        return multiply_gates_apart();
    }
    reserve_thread_scratch(kernels_.linear_scratch_bytes());
    linear_parts_.clear();
    for (const Product& product : products_) {
        const std::vector<Segment>& segments = product.packed->segments();
        for_each_range(product.job.num_tokens, segments[0].rows, [&](size_t first, size_t num_tokens) {
            split(product.job, segments[0], &segments[1], first, num_tokens);
        });
    }
    run_linear_parts([&](const LinearPart& part, size_t thread) {
        kernels_.gate_up_silu(*part.job, *part.segment, *part.up, part.range, thread_scratch(thread));
    });
}

void Context::multiply_gates_apart() {
    silu_rows_.clear();
    size_t num_values = 0;
    for (const Product& product : products_) {
        num_values += product.job.num_tokens * product.packed->out_features();
    }
    auto* gate_up = reinterpret_cast<float*>(gate_up_.reserve(num_values * sizeof(float)));
    for (Product& product : products_) {
        LinearJob& job = product.job;
        const size_t num_features = product.packed->segments()[0].rows;
        for (size_t token = 0; token < job.num_tokens; ++token) {
            silu_rows_.push_back({gate_up + token * 2 * num_features, num_features, job.out + token * job.out_stride});
        }
        job.out = gate_up;
        job.out_stride = 2 * num_features;
        job.accumulate = false;
        gate_up += job.num_tokens * job.out_stride;
    }
    multiply();
    pool_.run(silu_rows_.size(), [&](size_t index, size_t) {
        const SiluRow& row = silu_rows_[index];
        kernels_.silu_row(row.gate_up, row.num_features, row.out);
    });
}

void Context::add_experts(const ExpertsJob& job) {
    const std::lock_guard lock(mutex_);
    const size_t num_places = job.num_tokens * job.experts_per_token;
    order_by_expert(job, num_places);
    const size_t width = job.in_features, hidden_width = job.hidden_features;
    auto* const gathered = reinterpret_cast<float*>(gathered_.reserve(num_places * width * sizeof(float)));
    auto* const hidden = reinterpret_cast<float*>(hidden_.reserve(num_places * hidden_width * sizeof(float)));
    auto* const answers = gathered;  // the gates are multiplied by then
    pool_.run(num_places, [&](size_t row, size_t) {
        std::copy_n(job.x + places_[row] / job.experts_per_token * width, width, gathered + row * width);
    });

    place_products(job, &Expert::gate_up, gathered, hidden);
    multiply_gates();
    place_products(job, &Expert::down, hidden, answers);
    prepare_activations();
    multiply();

    pool_.run(job.num_tokens, [&](size_t token, size_t) {
        float* const out = job.out + token * width;
        for (size_t i = token * job.experts_per_token; i < (token + 1) * job.experts_per_token; ++i) {
            const float weight = job.weights[ascending_[i].place];
            const float* const answer = answers + ascending_[i].row * width;
            for (size_t column = 0; column < width; ++column) {
                out[column] += weight * answer[column];
            }
        }
    });
}

// One product for each expert that somebody chose: its rows of x with one of its packed matrices.
void Context::place_products(const ExpertsJob& job, const PackedLinear* Expert::* matrix, const float* x, float* out) {
    products_.clear();
    for (size_t expert = 0; expert < job.num_experts; ++expert) {
        const size_t first = expert_starts_[expert], end = expert_starts_[expert + 1];
        if (first == end) {
            continue;
        }
        const PackedLinear* const packed = job.experts[expert].*matrix;
        LinearJob own{};
        own.num_tokens = end - first;
        own.in_features = packed->in_features();
        own.x = x + first * own.in_features;
        own.bias = packed->bias();
        own.out_stride = matrix == &Expert::gate_up ? job.hidden_features : job.in_features;
        own.out = out + first * own.out_stride;
        own.has_16_bit_activations = job.has_16_bit_activations;
        products_.push_back({own, packed, nullptr});
    }
}

// A counting sort of the places (token, rank) by their expert, and each token's places with its experts ascending.
void Context::order_by_expert(const ExpertsJob& job, size_t num_places) {
    expert_starts_.assign(job.num_experts + 1, 0);
    for (size_t place = 0; place < num_places; ++place) {
        ++expert_starts_[static_cast<size_t>(job.chosen[place]) + 1];
    }
    for (size_t expert = 0; expert < job.num_experts; ++expert) {
        expert_starts_[expert + 1] += expert_starts_[expert];
    }
    places_.resize(num_places);
    std::vector<size_t>& next = next_rows_;
    next.assign(expert_starts_.begin(), expert_starts_.end() - 1);
    for (size_t place = 0; place < num_places; ++place) {
        places_[next[static_cast<size_t>(job.chosen[place])]++] = place;
    }
    ascending_.resize(num_places);
    next.assign(job.num_tokens, 0);
    for (size_t row = 0; row < num_places; ++row) {
        const size_t token = places_[row] / job.experts_per_token;
        ascending_[token * job.experts_per_token + next[token]++] = {places_[row], row};
    }
}

void Context::silu_times(const float* gate_up, size_t num_tokens, size_t num_features, float* out) {
    const std::lock_guard lock(mutex_);
    pool_.run(num_tokens, [&](size_t token, size_t) {
        kernels_.silu_row(gate_up + token * 2 * num_features, num_features, out + token * num_features);
    });
}

void Context::add_lora(LinearJob job, const std::vector<LoraRows>& rows) {
    const std::lock_guard lock(mutex_);
    job.bias = nullptr;  // the product that the job was made for has added it
    job.accumulate = false;
    normalise(job, reinterpret_cast<float*>(normed_.reserve(job.num_tokens * job.in_features * sizeof(float))));
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
            down.prefetch_distance = prefetch_distance(own.num_rows);
            down.normed = job.normed + own.first_row * job.in_features;
            down.num_tokens = own.num_rows;
            down.out = lowered;
            down.out_stride = matrix.rank;
            lora_downs_.push_back({down, &matrix.down, {0, matrix.down.num_tiles, 0, own.num_rows}, matrix.scale});
            LinearJob up = job;
            up.prefetch_distance = down.prefetch_distance;
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
    const bool are_short =
        std::all_of(rows.begin(), rows.end(), [](const LoraRows& own) { return own.num_rows <= kFewTokens; });
    if (are_short && rows.size() >= kAdaptersPerThread * pool_.num_threads()) {
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
        for (size_t token = 0; token < num_tokens; token += kLeastRangeTokens) {
            size_t num_tiles = 0;
            for (size_t tile = 0; tile < whole.range.num_tiles; tile += num_tiles) {
                const size_t left = whole.range.num_tiles - tile;
                num_tiles = num_tokens <= kFewTokens ? tiles_to_read(*whole.factor, left) : std::min(kLoraTiles, left);
                LoraPart part = whole;
                part.range = {tile, num_tiles, token, std::min(kLeastRangeTokens, num_tokens - token)};
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
    pool_.run_in_halves(num_tokens, [&](size_t token, size_t) { kernels_.rope_and_write_kv(job, type, token); });
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
