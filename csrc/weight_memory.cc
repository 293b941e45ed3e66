#include "weight_memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace qwenstack {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;
constexpr size_t kCacheLineBytes = 64;

size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

std::shared_ptr<uint8_t> allocate_huge_pages(size_t size) {
    void* const memory = std::aligned_alloc(kHugePageBytes, size);
    if (memory == nullptr) {
        throw std::bad_alloc();
    }
#if defined(MADV_HUGEPAGE)
    madvise(memory, size, MADV_HUGEPAGE);  // a wish; without huge pages it is only slower
#endif
    return {static_cast<uint8_t*>(memory), &std::free};
}

}  // namespace

WeightMemory WeightArena::allocate(size_t size) {
    const size_t needed = round_up(size, kCacheLineBytes);
    std::shared_ptr<uint8_t> pages = pages_.lock();
    const size_t left = pages == nullptr ? 0 : size_ - used_;
    if (pages != nullptr && needed <= left) {
        uint8_t* const data = pages.get() + used_;
        used_ += needed;
        return {std::shared_ptr<uint8_t>(std::move(pages), data), size};
    }
    const size_t new_size = round_up(needed, kHugePageBytes);
    std::shared_ptr<uint8_t> new_pages = allocate_huge_pages(new_size);
    if (new_size - needed > left) {
        pages_ = new_pages;
        used_ = needed;
        size_ = new_size;
    }
    return {std::move(new_pages), size};
}

}  // namespace qwenstack
