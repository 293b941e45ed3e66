// Sums of activations as the vector types hand them out, the same for all of them.
#pragma once

#include <cstdint>

namespace qwenstack {
namespace {

// Sums of some activations: of columns 4i and 4i + 1, and of 4i + 2 and 4i + 3.
struct PairSums {
    int32_t earlier;
    int32_t later;

    PairSums operator+(PairSums other) const { return {earlier + other.earlier, later + other.later}; }
    int32_t total() const { return earlier + later; }
};

}  // namespace
}  // namespace qwenstack
