// Causal grouped-query attention of a few queries over the blocks of one sequence.
//
// Keys come in chunks of 32 by absolute position, whatever the block size and however many queries are computed. For
// each query head and chunk, with the running maximum m, weights l (16 lanes, key modulo 16) and result o:
//
//   s_j = (q · k_j) · scale             a chain of fused multiply-adds over the head's columns
//   m'  = max(m, max_j s_j);  c = e^(m - m')
//   p_j = e^(s_j - m')                  0 for keys that the query may not see
//   l   = l · c + (p_j + p_(j+16));  o = o · c, then o += p_j · v_j for each key it may see, in order
//
// and at the end o / Σ l. A query's result is so the same whichever queries are computed beside it.
// Source: Milakov and Gimelshein 2018, arXiv:1805.02867 (online softmax); Ainslie et al. 2023, arXiv:2305.13245.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../kernel_table.h"

namespace qwenstack {
namespace {

static constexpr size_t kChunkKeys = 32;
static constexpr size_t kLineBytes = 64;
// Rows × keys, and rows × vectors of a value, that are summed at the same time: as many as the registers hold.
static constexpr size_t kRowsTogether = kVectorRegisters >= 32 ? 4 : 2;
static constexpr size_t kValueVectors = kVectorRegisters >= 32 ? 4 : 2;

QWENSTACK_INLINE size_t round_up_to_lanes(size_t count) { return (count + 15) / 16 * 16; }

// What one thread works with. A row is a query head of a query.
struct AttentionScratch {
    float* keys;     // [head_dim, 32]: the chunk's keys, transposed
    float* values;   // [32, padded head_dim]
    float* results;  // [rows, padded head_dim]
    float* weights;  // [rows, 16]
    float* maxima;   // [rows]
    float* shares;   // [kRowsTogether, 32]: the p_j

    AttentionScratch(uint8_t* memory, size_t padded, size_t num_rows) {
        keys = reinterpret_cast<float*>(memory);
        values = keys + padded * kChunkKeys;
        results = values + padded * kChunkKeys;
        weights = results + padded * num_rows;
        shares = weights + 16 * num_rows;
        maxima = shares + kRowsTogether * kChunkKeys;
    }
};

inline size_t attention_scratch_bytes(const AttentionJob& job, size_t max_queries) {
    const size_t padded = round_up_to_lanes(job.head_dim);
    const size_t num_rows = max_queries * (job.num_heads / job.num_kv_heads);
    return sizeof(float) * (2 * padded * kChunkKeys + (padded + 16 + 1) * num_rows + kRowsTogether * kChunkKeys);
}

// One row's view of the chunk: its query, and how many of the chunk's keys it may see.
struct AttentionRow {
    const float* query;
    size_t num_visible;
};

class AttentionOfPart {
public:
    AttentionOfPart(const AttentionJob& job, CacheType type, const AttentionPart& part, uint8_t* memory)
        : job_(job),
          type_(type),
          part_(part),
          group_(job.num_heads / job.num_kv_heads),
          padded_(round_up_to_lanes(job.head_dim)),
          num_rows_(part.num_queries * group_),
          scratch_(memory, padded_, num_rows_) {
        const size_t num_queries =
            static_cast<size_t>(job.query_start[part.sequence + 1] - job.query_start[part.sequence]);
        first_position_ = static_cast<size_t>(job.kv_len[part.sequence]) - num_queries + part.first_query;
        first_token_ = static_cast<size_t>(job.query_start[part.sequence]) + part.first_query;
    }

    void run() {
        start_rows();
        const size_t num_keys = first_position_ + part_.num_queries;
        for (size_t first_key = 0; first_key < num_keys; first_key += kChunkKeys) {
            const size_t left = num_keys - first_key;
            with_cache_type(type_, [&]<CacheType kType>() {
                load_chunk<kType>(first_key, smaller(left, kChunkKeys));
                if (left > kChunkKeys) {
                    prefetch_chunk<kType>(first_key + kChunkKeys, smaller(left - kChunkKeys, kChunkKeys));
                }
            });
            size_t row = first_key <= first_position_ ? 0 : (first_key - first_position_) * group_;
            for (; row < num_rows_; row += kRowsTogether) {
                const size_t left = num_rows_ - row;
                with_count<kRowsTogether>(left < kRowsTogether ? left : kRowsTogether,
                                          [&]<size_t kRows>() { add_chunk<kRows>(row, first_key); });
            }
        }
        finish_rows();
    }

private:
    void start_rows() {
        const F32x16 zero = broadcast(0.0f);
        for (size_t i = 0; i < num_rows_ * padded_; i += 16) {
            store(scratch_.results + i, zero);
        }
        for (size_t row = 0; row < num_rows_; ++row) {
            store(scratch_.weights + 16 * row, zero);
            scratch_.maxima[row] = -__builtin_inff();
        }
    }

    // Calls `function(key, index)` for keys of a chunk with the places of their rows in the caches.
    template <CacheType kType, typename Function>
    QWENSTACK_INLINE void for_each_key(size_t first_key, size_t num_keys, Function function) const {
        const int32_t* const blocks = job_.block_table + part_.sequence * job_.max_blocks;
        size_t block = first_key / job_.block_size;
        size_t offset = first_key % job_.block_size;
        for (size_t key = 0; key < num_keys; ++key) {
            function(key, cache_index<kType>(static_cast<size_t>(blocks[block]), part_.kv_head, offset,
                                             job_.num_kv_heads, job_.block_size, job_.head_dim));
            if (++offset == job_.block_size) {
                offset = 0;
                ++block;
            }
        }
    }

    // Asks for the rows of a chunk before they are needed: they lie in runs too short for the hardware to foresee.
    template <CacheType kType>
    QWENSTACK_NOINLINE void prefetch_chunk(size_t first_key, size_t num_keys) const {
        using Value = typename CacheValue<kType>::Type;
        const size_t row_bytes = cache_index<kType>(0, 0, 1, 1, 1, job_.head_dim) * sizeof(Value);
        for_each_key<kType>(first_key, num_keys, [&](size_t, size_t index) {
            for (size_t byte = 0; byte < row_bytes; byte += kLineBytes) {
                __builtin_prefetch(reinterpret_cast<const char*>(static_cast<const Value*>(job_.k_cache) + index) +
                                   byte);
                __builtin_prefetch(reinterpret_cast<const char*>(static_cast<const Value*>(job_.v_cache) + index) +
                                   byte);
            }
        });
    }

    // Reads the keys, transposed, and the values of a chunk. Keys beyond the sequence count as 0; nobody sees them.
    template <CacheType kType>
    QWENSTACK_NOINLINE void load_chunk(size_t first_key, size_t num_keys) {
        using Value = typename CacheValue<kType>::Type;
        const Value* keys[kChunkKeys];
        for_each_key<kType>(first_key, num_keys, [&](size_t key, size_t index) {
            keys[key] = static_cast<const Value*>(job_.k_cache) + index;
            load_row<kType>(static_cast<const Value*>(job_.v_cache) + index, job_.head_dim,
                            scratch_.values + key * padded_);
        });
        for (size_t start = 0; start < kChunkKeys; start += 16) {
            const size_t count = num_keys <= start ? 0 : num_keys - start;
            load_transposed_keys<kType>(keys + start, count < 16 ? count : 16, scratch_.keys + start);
        }
    }

    template <CacheType kType>
    void load_transposed_keys(const typename CacheValue<kType>::Type* const* keys, size_t num_keys, float* to) {
        for (size_t i = 0; i < job_.head_dim; i += 16) {
            F32x16 columns[16];
            load_transposed<kType>(keys, num_keys, i, job_.head_dim, columns);
            for (size_t column = 0; column < 16; ++column) {
                store(to + (i + column) * kChunkKeys, columns[column]);
            }
        }
    }

    AttentionRow row_at(size_t row, size_t first_key) const {
        const size_t query = row / group_;
        const size_t head = part_.kv_head * group_ + row % group_;
        const size_t width = (job_.num_heads + 2 * job_.num_kv_heads) * job_.head_dim;
        const size_t num_visible = first_position_ + query + 1 - first_key;
        return {job_.qkv + (first_token_ + query) * width + head * job_.head_dim,
                num_visible < kChunkKeys ? num_visible : kChunkKeys};
    }

    template <size_t kRows>
    QWENSTACK_INLINE void add_chunk(size_t first_row, size_t first_key) {
        AttentionRow rows[kRows];
        for (size_t r = 0; r < kRows; ++r) {
            rows[r] = row_at(first_row + r, first_key);
        }
        F32x16 scores[kRows][2];
        for (size_t r = 0; r < kRows; ++r) {
            scores[r][0] = scores[r][1] = broadcast(0.0f);
        }
        for (size_t i = 0; i < job_.head_dim; ++i) {
            const F32x16 low = kept(load(scratch_.keys + i * kChunkKeys));
            const F32x16 high = kept(load(scratch_.keys + i * kChunkKeys + 16));
            for (size_t r = 0; r < kRows; ++r) {
                const F32x16 query = broadcast(rows[r].query[i]);
                scores[r][0] = fma(query, low, scores[r][0]);
                scores[r][1] = fma(query, high, scores[r][1]);
            }
        }
        F32x16 corrections[kRows];
        weigh<kRows>(first_row, rows, scores, corrections);
        add_values<kRows>(first_row, rows, corrections);
    }

    // Turns the rows' scores into shares, updates their maxima and weights, and says what older results are worth. The
    // rows go through each step together, so that they wait for its latency at the same time.
    template <size_t kRows>
    QWENSTACK_INLINE void weigh(size_t first_row, const AttentionRow (&rows)[kRows], const F32x16 (&scores)[kRows][2],
                                F32x16 (&corrections)[kRows]) {
        const I32x16 hidden = bits_of(broadcast(-__builtin_inff()));
        F32x16 scaled[kRows][2];
        I32x16 is_visible[kRows][2];
        for (size_t r = 0; r < kRows; ++r) {
            const I32x16 limit = broadcast_integer(static_cast<int32_t>(rows[r].num_visible));
            is_visible[r][0] = is_greater(limit, lane_numbers());
            is_visible[r][1] = is_greater(limit, lane_numbers() + broadcast_integer(16));
            for (int i = 0; i < 2; ++i) {
                const F32x16 score = scores[r][i] * broadcast(job_.scale);
                scaled[r][i] = float_of(select(is_visible[r][i], bits_of(score), hidden));
            }
        }
        float maxima[kRows];
        for (size_t r = 0; r < kRows; ++r) {
            const F32x16 largest_scores = max(scaled[r][0], scaled[r][1]);
            maxima[r] = scratch_.maxima[first_row + r];
            corrections[r] = broadcast(1.0f);
            if (is_any_greater(largest_scores, broadcast(maxima[r]))) {  // seldom, after the first chunks
                const float largest_score = largest(largest_scores);
                corrections[r] = exponential(broadcast(maxima[r] - largest_score));
                scratch_.maxima[first_row + r] = maxima[r] = largest_score;
            }
        }
        for (size_t r = 0; r < kRows; ++r) {
            F32x16 share[2];
            for (int i = 0; i < 2; ++i) {
                const F32x16 power = exponential(scaled[r][i] - broadcast(maxima[r]));
                share[i] = float_of(bits_of(power) & is_visible[r][i]);
                store(scratch_.shares + r * kChunkKeys + 16 * i, share[i]);
            }
            float* const weights = scratch_.weights + 16 * (first_row + r);
            store(weights, fma(load(weights), corrections[r], share[0] + share[1]));
        }
    }

    template <size_t kRows>
    QWENSTACK_INLINE void add_values(size_t first_row, const AttentionRow (&rows)[kRows],
                                     const F32x16 (&corrections)[kRows]) {
        const size_t num_vectors = padded_ / 16;
        for (size_t vector = 0; vector < num_vectors; vector += kValueVectors) {
            const size_t left = num_vectors - vector;
            with_count<kValueVectors>(left < kValueVectors ? left : kValueVectors, [&]<size_t kCount>() {
                add_values_at<kRows, kCount>(first_row, rows, corrections, vector * 16);
            });
        }
    }

    template <size_t kRows, size_t kCount>
    QWENSTACK_INLINE void add_values_at(size_t first_row, const AttentionRow (&rows)[kRows],
                                        const F32x16 (&corrections)[kRows], size_t column) {
        F32x16 sums[kRows][kCount];
        for (size_t r = 0; r < kRows; ++r) {
            for (size_t i = 0; i < kCount; ++i) {
                sums[r][i] = load(scratch_.results + (first_row + r) * padded_ + column + 16 * i) * corrections[r];
            }
        }
        // Later queries see more: the keys that all rows see, then for each row the rest.
        const size_t seen_by_all = rows[0].num_visible;
        for (size_t key = 0; key < seen_by_all; ++key) {
            F32x16 value[kCount];
            for (size_t i = 0; i < kCount; ++i) {
                value[i] = kept(load(scratch_.values + key * padded_ + column + 16 * i));
            }
            for (size_t r = 0; r < kRows; ++r) {
                const F32x16 share = broadcast(scratch_.shares[r * kChunkKeys + key]);
                for (size_t i = 0; i < kCount; ++i) {
                    sums[r][i] = fma(share, value[i], sums[r][i]);
                }
            }
        }
        for (size_t r = 0; r < kRows; ++r) {
            for (size_t key = seen_by_all; key < rows[r].num_visible; ++key) {
                const F32x16 share = broadcast(scratch_.shares[r * kChunkKeys + key]);
                for (size_t i = 0; i < kCount; ++i) {
                    sums[r][i] = fma(share, load(scratch_.values + key * padded_ + column + 16 * i), sums[r][i]);
                }
            }
            for (size_t i = 0; i < kCount; ++i) {
                store(scratch_.results + (first_row + r) * padded_ + column + 16 * i, sums[r][i]);
            }
        }
    }

    void finish_rows() {
        for (size_t row = 0; row < num_rows_; ++row) {
            const F32x16 total = broadcast(sum(load(scratch_.weights + 16 * row)));
            const size_t head = part_.kv_head * group_ + row % group_;
            float* const out = job_.out + ((first_token_ + row / group_) * job_.num_heads + head) * job_.head_dim;
            for (size_t i = 0; i < job_.head_dim; i += 16) {
                store_first(out + i, load(scratch_.results + row * padded_ + i) / total, job_.head_dim - i);
            }
        }
    }

    const AttentionJob& job_;
    const CacheType type_;
    const AttentionPart& part_;
    const size_t group_;
    const size_t padded_;
    const size_t num_rows_;
    AttentionScratch scratch_;
    size_t first_position_;  // of the part's first query
    size_t first_token_;
};

inline void attend(const AttentionJob& job, CacheType type, const AttentionPart& part, uint8_t* scratch) {
    AttentionOfPart(job, type, part, scratch).run();
}

}  // namespace
}  // namespace qwenstack
