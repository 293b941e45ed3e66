// Memory for packed weights: huge pages, shared by matrices that do not fill one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace qwenstack {

// A piece of memory aligned to a cache line; what it shares pages with keeps them too.
class WeightMemory {
public:
    WeightMemory(std::shared_ptr<uint8_t> data, size_t size) : data_(std::move(data)), size_(size) {}
    uint8_t* data() const { return data_.get(); }
    size_t size() const { return size_; }

private:
    std::shared_ptr<uint8_t> data_;
    size_t size_;
};

// Hands out pieces one behind the other: weights are read in the order in which they were packed, and fewer page walks
// leave more bandwidth. A run of huge pages, as many as the piece takes that it was made for, is freed with the last
// piece in it. Not thread-safe.
class WeightArena {
public:
    // Throws std::bad_alloc.
    WeightMemory allocate(size_t size);

private:
    std::weak_ptr<uint8_t> pages_;  // the run whose end is still free
    size_t used_ = 0;
    size_t size_ = 0;
};

}  // namespace qwenstack
