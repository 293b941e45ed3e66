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

class Context {
public:
    Context(size_t num_threads, const KernelTable& kernels) : kernels_(kernels), pool_(num_threads) {}

    // Arguments are those of the jobs in kernel_table.h; fields that the context fills in itself may be left out. All
    // functions may throw std::bad_alloc and then have changed nothing.
    std::unique_ptr<PackedLinear> pack(const std::vector<StoredMatrix>& matrices, const float* bias);
    std::unique_ptr<PackedLora> pack_lora(const std::vector<StoredLora>& matrices, size_t out_features);
    void rms_norm(const NormJob& job, size_t num_rows);
    // With 16-bit activations each product with quantised weights is computed twice: with the rounded activations, and
    // with what rounding took away.
    void linear(LinearJob job, const PackedLinear& packed);
    void gate_up_silu(LinearJob job, const PackedLinear& packed);
    void silu_times(const float* gate_up, size_t num_tokens, size_t num_features, float* out);
    // Adds scale · up · (down · norm(x)) to each row that has an adapter; `rows` do not overlap.
    void add_lora(LinearJob job, const std::vector<LoraRows>& rows);
    void rope_and_write_kv(const RopeJob& job, CacheType type, size_t num_tokens);
    void attend(const AttentionJob& job, CacheType type, size_t num_sequences);

private:
    struct LinearPart {
        const Segment* segment;
        TileRange range;
    };

    // One factor of one matrix × a range of its rows.
    struct LoraPart {
        LinearJob job;
        const Segment* factor;
        TileRange range;
        float scale;  // of a `down` factor's products
    };

    void normalise(LinearJob& job);
    void prepare_activations(LinearJob& job, const PackedLinear& packed);
    void multiply(const LinearJob& job, const PackedLinear& packed, bool only_quantized);
    void multiply_with_rest(LinearJob job, const PackedLinear& packed);
    void split_tiles(const LinearJob& job, const Segment& segment, size_t first_token, size_t num_tokens);
    void run_lora_by_adapter();
    void run_lora_in_parts(const std::vector<LoraPart>& factors);
    void run_lora_part(const LoraPart& part, size_t thread);
    uint8_t* reserve_thread_scratch(size_t size);
    uint8_t* thread_scratch(size_t thread) const { return scratch_base_ + thread * scratch_stride_; }

    std::mutex mutex_;
    const KernelTable& kernels_;
    ThreadPool pool_;
    WeightArena weights_;
    ScratchMemory activations_;
    ScratchMemory rest_;
    ScratchMemory gate_up_;
    ScratchMemory normed_;
    ScratchMemory lowered_;
    ScratchMemory scratch_;
    uint8_t* scratch_base_ = nullptr;
    size_t scratch_stride_ = 0;
    std::vector<LinearPart> linear_parts_;
    std::vector<LoraPart> lora_downs_;
    std::vector<LoraPart> lora_ups_;
    std::vector<size_t> lora_ends_;  // of each adapter's factors in both
    std::vector<LoraPart> lora_parts_;
    std::vector<AttentionPart> attention_parts_;
};

}  // namespace qwenstack
