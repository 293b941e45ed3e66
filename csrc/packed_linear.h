// Stacked weight matrices in the layout of weight_layout.h, and how they get there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "thread_pool.h"
#include "weight_layout.h"
#include "weight_memory.h"

namespace qwenstack {

// GGUF's numbers of the storage types.
enum class StorageType : uint32_t {
    kF32 = 0,
    kF16 = 1,
    kQ4_0 = 2,
    kQ4_1 = 3,
    kQ5_0 = 6,
    kQ5_1 = 7,
    kQ8_0 = 8,
    kQ2_K = 10,
    kQ3_K = 11,
    kQ4_K = 12,
    kQ5_K = 13,
    kQ6_K = 14,
    kBF16 = 30,
};

// A matrix as a file stores it; rows × row_bytes(type, columns) bytes at `data`.
struct StoredMatrix {
    StorageType type;
    size_t rows;
    size_t columns;
    const uint8_t* data;
};

// Bytes of a stored row, or 0 if the type is unknown or the row is not a whole number of blocks.
size_t row_bytes(uint32_t type, size_t columns);

// Copies matrices into the packed layout, one after the other from the start of `memory`.
std::vector<Segment> pack_segments(const std::vector<StoredMatrix>& matrices, const WeightMemory& memory,
                                   ThreadPool& pool);

// Bytes that `pack_segments` fills.
size_t packed_bytes(const std::vector<StoredMatrix>& matrices);

class PackedLinear {
public:
    // Copies the matrices and the bias (null, or one value for each row of all matrices) into the packed layout. Throws
    // std::bad_alloc.
    PackedLinear(const std::vector<StoredMatrix>& matrices, const float* bias, WeightArena& arena, ThreadPool& pool);

    const std::vector<Segment>& segments() const { return segments_; }
    const float* bias() const { return bias_.empty() ? nullptr : bias_.data(); }
    size_t in_features() const { return in_features_; }
    size_t out_features() const { return out_features_; }
    size_t num_bytes() const { return memory_.size() + bias_.size() * sizeof(float); }

private:
    size_t in_features_;
    size_t out_features_;
    WeightMemory memory_;
    std::vector<Segment> segments_;
    std::vector<float> bias_;
};

}  // namespace qwenstack
