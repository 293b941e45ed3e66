// The low-rank changes that one adapter makes to the matrices of a linear layer.
#pragma once

#include <cstddef>
#include <vector>

#include "packed_linear.h"
#include "thread_pool.h"
#include "weight_layout.h"

namespace qwenstack {

// The change of one matrix, up · down · scale, as its file stores it. Float types only.
struct StoredLora {
    StoredMatrix down;  // [rank, in_features]
    StoredMatrix up;    // [rows of the matrix, rank]
    float scale;
    size_t first_column;  // the matrix's place among the outputs of the layer
};

struct LoraMatrix {
    Segment down;
    Segment up;
    size_t rank;
    float scale;
    size_t first_column;
};

class PackedLora {
public:
    // Copies the factors into one run of memory, all `down` and then all `up`: the order in which they are read. Throws
    // std::bad_alloc.
    PackedLora(const std::vector<StoredLora>& matrices, size_t out_features, WeightArena& arena, ThreadPool& pool);

    const std::vector<LoraMatrix>& matrices() const { return matrices_; }
    size_t in_features() const { return in_features_; }
    size_t out_features() const { return out_features_; }
    size_t num_bytes() const { return memory_.size(); }
    size_t total_rank() const;

private:
    size_t in_features_;
    size_t out_features_;
    WeightMemory memory_;
    std::vector<LoraMatrix> matrices_;
};

}  // namespace qwenstack
