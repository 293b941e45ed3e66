// The operations, split over a pool of threads. One operation runs at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "kernel_table.h"
#include "packed_linear.h"
#include "packed_lora.h"
#include "thread_pool.h"

namespace qwenstack {

// Memory that only ever grows, aligned to cache lines; its contents are lost when it grows.
class ScratchMemory {
public:
    uint8_t* reserve(size_t size);
    uint8_t* data() const { return data_.get(); }

private:
    struct Free {
        void operator()(uint8_t* data) const noexcept;
    };
    std::unique_ptr<uint8_t, Free> data_;
    size_t size_ = 0;
};

// Rows of a batch and the adapter that changes them.
struct LoraRows {
    size_t first_row;
    size_t num_rows;
    const PackedLora* lora;
};

struct Expert {
    const PackedLinear* gate_up;
    const PackedLinear* down;
};

// A mixture of experts: out += the sum over a token's experts, in ascending order, of
// weight · down(silu(gate(x)) · up(x)).
struct ExpertsJob {
    const float* x;  // [num_tokens, in_features]
    size_t num_tokens;
    size_t in_features;
    size_t hidden_features;
    const Expert* experts;
    size_t num_experts;
    const int64_t* chosen;  // [num_tokens, experts_per_token]
    const float* weights;   // the same shape
    size_t experts_per_token;
    bool has_16_bit_activations;
    float* out;
};

class Context {
public:
    Context(size_t num_threads, const KernelTable& kernels)
        : kernels_(kernels), distances_(prefetch_distances()), pool_(num_threads) {}

    // Arguments are those of the jobs in kernel_table.h; fields that the context fills in itself may be left out. All
    // functions may throw std::bad_alloc and then have changed nothing.
    std::unique_ptr<PackedLinear> pack(const std::vector<StoredMatrix>& matrices, const float* bias);
    std::unique_ptr<PackedLora> pack_lora(const std::vector<StoredLora>& matrices, size_t out_features);
    void rms_norm(const NormJob& job, size_t num_rows);
    // With 16-bit activations each product with quantised weights is computed twice: with the rounded activations, and
    // with what rounding took away.
    void linear(const LinearJob& job, const PackedLinear& packed);
    void gate_up_silu(const LinearJob& job, const PackedLinear& packed);
    void add_experts(const ExpertsJob& job);
    void silu_times(const float* gate_up, size_t num_tokens, size_t num_features, float* out);
    // Adds scale · up · (down · norm(x)) to each row that has an adapter; `rows` do not overlap.
    void add_lora(LinearJob job, const std::vector<LoraRows>& rows);
    void rope_and_write_kv(const RopeJob& job, CacheType type, size_t num_tokens);
    void attend(const AttentionJob& job, CacheType type, size_t num_sequences);

private:
    // Rows and what they are multiplied with. Products of one operation share its setting of 16-bit activations.
    struct Product {
        LinearJob job;
        const PackedLinear* packed;
        const uint8_t* rest;  // of the activations, if they have 16 bits
    };

    struct Block {
        const LinearJob* job;
        size_t first_token;
        uint8_t* activations;
        uint8_t* rest;
    };

    struct LinearPart {
        const LinearJob* job;
        const Segment* segment;
        const Segment* up;  // of a gate's segment
        TileRange range;
    };

    struct SiluRow {
        const float* gate_up;
        size_t num_features;
        float* out;
    };

    // A token's choice of an expert, and its row among all choices in the order of experts.
    struct PlacedRow {
        size_t place;
        size_t row;
    };

    // One factor of one matrix × a range of its rows.
    struct LoraPart {
        LinearJob job;
        const Segment* factor;
        TileRange range;
        float scale;  // of a `down` factor's products
    };

    void normalise(LinearJob& job, float* normed);
    // The rest works on `products_`.
    void prepare_activations();
    void multiply();
    void multiply_segments(bool only_quantized);
    template <typename Work>
    void run_linear_parts(Work work);
    void multiply_gates();
    void multiply_gates_apart();
    size_t prefetch_distance(size_t num_tokens) const;
    size_t tiles_to_read(const Segment& segment, size_t tiles_left) const;
    template <typename Function>
    void for_each_range(size_t num_tokens, size_t num_rows, Function function) const;
    void split(const LinearJob& job, const Segment& segment, const Segment* up, size_t first_token, size_t num_tokens);
    void order_by_expert(const ExpertsJob& job, size_t num_places);
    void place_products(const ExpertsJob& job, const PackedLinear* Expert::* matrix, const float* x, float* out);
    void run_lora_by_adapter();
    void run_lora_in_parts(const std::vector<LoraPart>& factors);
    void run_lora_part(const LoraPart& part, size_t thread);
    uint8_t* reserve_thread_scratch(size_t size);
    uint8_t* thread_scratch(size_t thread) const { return scratch_base_ + thread * scratch_stride_; }

    std::mutex mutex_;
    const KernelTable& kernels_;
    const PrefetchDistances distances_;
    ThreadPool pool_;
    WeightArena weights_;
    ScratchMemory activations_;
    ScratchMemory rest_;
    ScratchMemory gate_up_;
    ScratchMemory normed_;
    ScratchMemory lowered_;
    ScratchMemory gathered_;
    ScratchMemory hidden_;
    ScratchMemory scratch_;
    uint8_t* scratch_base_ = nullptr;
    size_t scratch_stride_ = 0;
    std::vector<Product> products_;
    std::vector<Block> blocks_;
    std::vector<LinearPart> linear_parts_;
    std::vector<SiluRow> silu_rows_;
    std::vector<size_t> expert_starts_;
    std::vector<size_t> next_rows_;
    std::vector<size_t> places_;
    std::vector<PlacedRow> ascending_;
    std::vector<LoraPart> lora_downs_;
    std::vector<LoraPart> lora_ups_;
    std::vector<size_t> lora_ends_;  // of each adapter's factors in both
    std::vector<LoraPart> lora_parts_;
    std::vector<AttentionPart> attention_parts_;
};

}  // namespace qwenstack
