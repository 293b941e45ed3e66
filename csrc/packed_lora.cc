#include "packed_lora.h"

namespace qwenstack {
namespace {

std::vector<StoredMatrix> factors_of(const std::vector<StoredLora>& matrices) {
    std::vector<StoredMatrix> factors;
    for (const StoredLora& matrix : matrices) {
        factors.push_back(matrix.down);
    }
    for (const StoredLora& matrix : matrices) {
        factors.push_back(matrix.up);
    }
    return factors;
}

// A factor is multiplied on its own: its rows are counted from 0.
Segment alone(Segment segment) {
    segment.first_row = 0;
    return segment;
}

}  // namespace

PackedLora::PackedLora(const std::vector<StoredLora>& matrices, size_t out_features, WeightArena& arena,
                       ThreadPool& pool)
    : in_features_(matrices.front().down.columns),
      out_features_(out_features),
      memory_(arena.allocate(packed_bytes(factors_of(matrices)))) {
    const std::vector<Segment> factors = pack_segments(factors_of(matrices), memory_, pool);
    for (size_t i = 0; i < matrices.size(); ++i) {
        const StoredLora& matrix = matrices[i];
        matrices_.push_back({alone(factors[i]), alone(factors[matrices.size() + i]), matrix.down.rows, matrix.scale,
                             matrix.first_column});
    }
}

size_t PackedLora::total_rank() const {
    size_t total = 0;
    for (const LoraMatrix& matrix : matrices_) {
        total += matrix.rank;
    }
    return total;
}

}  // namespace qwenstack
