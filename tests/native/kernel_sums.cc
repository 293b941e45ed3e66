// Prints a checksum of what each operation computes on made-up inputs, with each instruction set of this processor,
//
//   scalar   linear Q4_K 37x1280 3 tokens, 8 bits     6f1c0c5e2b1f7a90
//
// and ends with 1 if an instruction set differs from the scalar one. Inputs come from integers by exact steps, so the
// lines of two machines can be compared too. NaN is one value here, whatever its bits: where an operation makes one,
// x86 sets the sign and ARM does not.

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "context.h"

namespace qwenstack {
namespace {

// Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators" (SplitMix64).
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed) {}

    uint64_t bits() {
        uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    }
    size_t below(size_t limit) { return bits() % limit; }

    // Nearly normal: the sum of four 16-bit fields, whose spread is about 1 after scaling. Exact in float32.
    float value() {
        const uint64_t fields = bits();
        int64_t total = -4 * 32768;
        for (int i = 0; i < 4; ++i) {
            total += static_cast<int64_t>((fields >> (16 * i)) & 0xFFFF);
        }
        return static_cast<float>(total) * 0x1p-15f;
    }
    std::vector<float> values(size_t count, float scale = 1.0f) {
        std::vector<float> result(count);
        for (float& each : result) {
            each = value() * scale;
        }
        return result;
    }
    // Any float32, infinities and NaN too.
    std::vector<float> patterns(size_t count) {
        std::vector<float> result(count);
        for (float& each : result) {
            const uint32_t pattern = static_cast<uint32_t>(bits());
            std::memcpy(&each, &pattern, sizeof each);
        }
        return result;
    }

private:
    uint64_t state_;
};

constexpr uint16_t kFloat16Infinity = 0x7C00;
constexpr uint16_t kBfloat16Infinity = 0x7F80;

// Source: Fowler, Noll and Vo's FNV-1a with 64 bits.
class Checksum {
public:
    void add(const std::vector<float>& values) {
        for (const float value : values) {
            uint32_t pattern;
            std::memcpy(&pattern, &value, sizeof pattern);
            add(value != value ? uint32_t{0x7FC00000} : pattern);
        }
    }
    void add_halves(const uint8_t* from, size_t count, uint16_t infinity) {
        for (size_t i = 0; i < count; ++i) {
            uint16_t pattern;
            std::memcpy(&pattern, from + 2 * i, sizeof pattern);
            add((pattern & 0x7FFF) > infinity ? uint16_t{0x7FFF} : pattern);
        }
    }
    void add_bytes(const uint8_t* from, size_t count) {
        for (size_t i = 0; i < count; ++i) {
            sum_ = (sum_ ^ from[i]) * 0x100000001B3u;
        }
    }
    uint64_t value() const { return sum_; }

private:
    template <typename T>
    void add(T pattern) {
        uint8_t bytes[sizeof pattern];
        std::memcpy(bytes, &pattern, sizeof pattern);
        add_bytes(bytes, sizeof bytes);
    }

    uint64_t sum_ = 0xCBF29CE484222325u;
};

using Lines = std::vector<std::pair<std::string, uint64_t>>;

// One instruction set, and what it has computed so far.
struct Run {
    Context context;
    Lines lines;

    void report(const std::string& name, const std::vector<float>& out) {
        Checksum checksum;
        checksum.add(out);
        lines.emplace_back(name, checksum.value());
    }
};

struct Type {
    const char* name;
    StorageType type;
    size_t columns;              // for one that spans several expanded runs, and ends within one
    std::vector<size_t> halves;  // where a block keeps its float16 numbers
};

const std::array kTypes = {
    Type{"F32", StorageType::kF32, 77, {}},           Type{"F16", StorageType::kF16, 77, {}},
    Type{"BF16", StorageType::kBF16, 77, {}},         Type{"Q4_0", StorageType::kQ4_0, 1056, {0}},
    Type{"Q4_1", StorageType::kQ4_1, 1056, {0, 2}},   Type{"Q5_0", StorageType::kQ5_0, 1056, {0}},
    Type{"Q5_1", StorageType::kQ5_1, 1056, {0, 2}},   Type{"Q8_0", StorageType::kQ8_0, 1056, {0}},
    Type{"Q2_K", StorageType::kQ2_K, 1280, {80, 82}}, Type{"Q3_K", StorageType::kQ3_K, 1280, {108}},
    Type{"Q4_K", StorageType::kQ4_K, 1280, {0, 2}},   Type{"Q5_K", StorageType::kQ5_K, 1280, {0, 2}},
    Type{"Q6_K", StorageType::kQ6_K, 1280, {208}},
};

const Type& type_named(const std::string& name) {
    for (const Type& type : kTypes) {
        if (name == type.name) {
            return type;
        }
    }
    std::abort();
}

size_t block_bytes(const Type& type) {
    return row_bytes(static_cast<uint32_t>(type.type), type.type >= StorageType::kQ2_K ? 256 : 32);
}

struct Matrix {
    std::vector<uint8_t> data;
    StoredMatrix stored;

    Matrix(const Type& type, size_t rows, size_t columns, std::vector<uint8_t> bytes)
        : data(std::move(bytes)), stored{type.type, rows, columns, data.data()} {}
};

void write_half(uint8_t* to, uint16_t half) { std::memcpy(to, &half, sizeof half); }

// A float16 of a size between 2^-8 and 2^-4, for scales, or up to 2 for weights.
uint16_t random_half(Random& random, size_t exponents) {
    const uint64_t bits = random.bits();
    return static_cast<uint16_t>((bits & 0x83FF) | ((7 + (bits >> 16) % exponents) << 10));
}

std::unique_ptr<Matrix> random_matrix(const Type& type, size_t rows, size_t columns, Random& random) {
    std::vector<uint8_t> bytes(rows * row_bytes(static_cast<uint32_t>(type.type), columns));
    if (type.type == StorageType::kF32) {
        const std::vector<float> values = random.values(rows * columns);
        std::memcpy(bytes.data(), values.data(), bytes.size());
    } else if (type.type == StorageType::kF16 || type.type == StorageType::kBF16) {
        for (size_t i = 0; i < bytes.size(); i += 2) {
            const uint16_t exponents_of_8 = static_cast<uint16_t>(120 + random.below(8)) << 7;
            const uint16_t bfloat16 = static_cast<uint16_t>((random.bits() & 0x807F) | exponents_of_8);
            write_half(&bytes[i], type.type == StorageType::kBF16 ? bfloat16 : random_half(random, 9));
        }
    } else {
        for (uint8_t& byte : bytes) {
            byte = static_cast<uint8_t>(random.bits());
        }
        for (size_t block = 0; block < bytes.size(); block += block_bytes(type)) {
            for (const size_t offset : type.halves) {
                write_half(&bytes[block + offset], random_half(random, 4));
            }
        }
    }
    return std::make_unique<Matrix>(type, rows, columns, std::move(bytes));
}

using Matrices = std::vector<std::unique_ptr<Matrix>>;

std::vector<StoredMatrix> stored(const Matrices& matrices) {
    std::vector<StoredMatrix> result;
    for (const auto& matrix : matrices) {
        result.push_back(matrix->stored);
    }
    return result;
}

LinearJob linear_job(const std::vector<float>& x, size_t in_features, std::vector<float>& out, size_t out_stride) {
    LinearJob job{};
    job.x = x.data();
    job.num_tokens = x.size() / in_features;
    job.in_features = in_features;
    job.out = out.data();
    job.out_stride = out_stride;
    return job;
}

std::string tokens_and_bits(size_t num_tokens, bool has_16_bits) {
    return std::to_string(num_tokens) + " tokens, " + (has_16_bits ? "16 bits" : "8 bits");
}

void multiply_every_type(Run& run) {
    constexpr size_t kRows = 37;
    for (const Type& type : kTypes) {
        for (const size_t num_tokens : {1, 2, 3, 4, 5, 8, 17, 300}) {
            for (const bool has_16_bits : {false, true}) {
                if (has_16_bits && type.halves.empty()) {
                    continue;  // activations that meet float weights are never rounded
                }
                Random random(num_tokens);
                const auto matrix = random_matrix(type, kRows, type.columns, random);
                const std::vector<float> bias = random.values(kRows);
                const std::vector<float> norm_weight = random.values(type.columns);
                const std::vector<float> x = random.values(num_tokens * type.columns);
                std::vector<float> out = random.values(num_tokens * kRows);
                const auto packed = run.context.pack({matrix->stored}, num_tokens % 2 == 0 ? bias.data() : nullptr);
                LinearJob job = linear_job(x, type.columns, out, kRows);
                job.bias = packed->bias();
                job.norm_weight = num_tokens % 3 == 0 ? nullptr : norm_weight.data();
                job.eps = 1e-6f;
                job.accumulate = num_tokens % 4 == 1;
                job.has_16_bit_activations = has_16_bits;
                run.context.linear(job, *packed);
                run.report(std::string("linear ") + type.name + " 37x" + std::to_string(type.columns) + " " +
                               tokens_and_bits(num_tokens, has_16_bits),
                           out);
            }
        }
    }
}

void multiply_stacked(Run& run) {
    Random random(11);
    Matrices matrices;
    size_t out_features = 0;
    for (const char* const name : {"Q5_0", "Q8_0", "F32", "Q4_K"}) {
        matrices.push_back(random_matrix(type_named(name), 7 + matrices.size(), 256, random));
        out_features += matrices.back()->stored.rows;
    }
    const auto packed = run.context.pack(stored(matrices), nullptr);
    const std::vector<float> x = random.values(600 * 256);
    std::vector<float> out(600 * out_features);
    run.context.linear(linear_job(x, 256, out, out_features), *packed);
    run.report("linear Q5_0+Q8_0+F32+Q4_K 600 tokens", out);
}

void multiply_at_the_edges(Run& run) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const std::pair<const char*, float> poisons[] = {
        {"NaN", std::numeric_limits<float>::quiet_NaN()}, {"infinity", kInfinity}, {"-infinity", -kInfinity}};
    for (const char* const name : {"Q4_0", "Q4_1", "F16"}) {
        for (const auto& [poison_name, poison] : poisons) {
            Random random(12);
            const auto matrix = random_matrix(type_named(name), 16, 128, random);
            const auto packed = run.context.pack({matrix->stored}, nullptr);
            std::vector<float> x = random.values(9 * 128);
            x[4 * 128 + 77] = poison;
            std::vector<float> out(9 * 16);
            run.context.linear(linear_job(x, 128, out, 16), *packed);
            run.report(std::string("linear ") + name + " with " + poison_name, out);
        }
    }
    const std::pair<const char*, float> sizes[] = {
        {"1e-45", 1e-45f}, {"1e-38", 1e-38f}, {"1e-31", 1e-31f}, {"3e-30", 3e-30f}, {"3e38", 3e38f}};
    for (const auto& [size_name, size] : sizes) {
        Random random(13);
        const auto matrix = random_matrix(type_named("Q8_0"), 16, 64, random);
        const auto packed = run.context.pack({matrix->stored}, nullptr);
        std::vector<float> x(64), out(16);
        for (float& each : x) {
            each = random.below(2) == 0 ? size : -size;  // rounded to ±127, the largest that there are
        }
        run.context.linear(linear_job(x, 64, out, 16), *packed);
        run.report(std::string("linear Q8_0 of activations of ") + size_name, out);
    }
    // Each pattern of 16 bits, as a weight that is multiplied by 1.
    for (const char* const name : {"F16", "BF16"}) {
        std::vector<uint8_t> bytes(2 * 65536);
        for (size_t i = 0; i < 65536; ++i) {
            write_half(&bytes[2 * i], static_cast<uint16_t>(i));
        }
        const Matrix matrix(type_named(name), 65536, 1, std::move(bytes));
        const auto packed = run.context.pack({matrix.stored}, nullptr);
        const std::vector<float> one = {1.0f};
        std::vector<float> out(65536);
        run.context.linear(linear_job(one, 1, out, 65536), *packed);
        run.report(std::string("linear ") + name + " of all patterns", out);
    }
}

void join_gate_and_up(Run& run) {
    constexpr size_t kRows = 45, kColumns = 256;
    const std::pair<const char*, const char*> pairs[] = {
        {"Q4_0", "Q4_0"}, {"Q5_0", "Q6_K"}, {"Q8_0", "Q8_0"}, {"Q2_K", "Q2_K"}, {"BF16", "BF16"}};
    for (const auto& [gate, up] : pairs) {
        for (const size_t num_tokens : {1, 4, 30}) {
            for (const bool has_16_bits : {false, true}) {
                Random random(num_tokens);
                Matrices matrices;
                matrices.push_back(random_matrix(type_named(gate), kRows, kColumns, random));
                matrices.push_back(random_matrix(type_named(up), kRows, kColumns, random));
                const std::vector<float> norm_weight = random.values(kColumns);
                const std::vector<float> bias = random.values(2 * kRows);
                const std::vector<float> x = random.values(num_tokens * kColumns);
                std::vector<float> out(num_tokens * kRows);
                const auto packed = run.context.pack(stored(matrices), bias.data());
                LinearJob job = linear_job(x, kColumns, out, kRows);
                job.norm_weight = norm_weight.data();
                job.eps = 1e-6f;
                job.bias = packed->bias();
                job.has_16_bit_activations = has_16_bits;
                run.context.gate_up_silu(job, *packed);
                run.report(
                    std::string("gate_up_silu ") + gate + "+" + up + " " + tokens_and_bits(num_tokens, has_16_bits),
                    out);
            }
        }
    }
}

void mix_experts(Run& run) {
    constexpr size_t kExperts = 5, kPerToken = 2, kColumns = 64, kHidden = 96;
    for (const char* const name : {"Q4_0", "Q5_1", "F16"}) {
        for (const size_t num_tokens : {1, 3, 40}) {
            for (const bool has_16_bits : {false, true}) {
                Random random(num_tokens);
                std::vector<std::unique_ptr<PackedLinear>> packed;
                std::vector<Expert> experts;
                for (size_t i = 0; i < kExperts; ++i) {
                    Matrices gate_and_up;
                    gate_and_up.push_back(random_matrix(type_named(name), kHidden, kColumns, random));
                    gate_and_up.push_back(random_matrix(type_named(name), kHidden, kColumns, random));
                    const auto down = random_matrix(type_named("Q8_0"), kColumns, kHidden, random);
                    packed.push_back(run.context.pack(stored(gate_and_up), nullptr));
                    packed.push_back(run.context.pack({down->stored}, nullptr));
                    experts.push_back({packed[2 * i].get(), packed[2 * i + 1].get()});
                }
                std::vector<int64_t> chosen;
                for (size_t i = 0; i < num_tokens * kPerToken; ++i) {
                    chosen.push_back(static_cast<int64_t>(random.below(kExperts - 1)));  // one that nobody chooses
                }
                const std::vector<float> weights = random.values(num_tokens * kPerToken);
                const std::vector<float> x = random.values(num_tokens * kColumns);
                std::vector<float> out = random.values(num_tokens * kColumns);
                ExpertsJob job{};
                job.x = x.data();
                job.num_tokens = num_tokens;
                job.in_features = kColumns;
                job.hidden_features = kHidden;
                job.experts = experts.data();
                job.num_experts = kExperts;
                job.chosen = chosen.data();
                job.weights = weights.data();
                job.experts_per_token = kPerToken;
                job.has_16_bit_activations = has_16_bits;
                job.out = out.data();
                run.context.add_experts(job);
                run.report(std::string("add_experts ") + name + " " + tokens_and_bits(num_tokens, has_16_bits), out);
            }
        }
    }
}

void multiply_silu(Run& run) {
    for (const size_t num_features : {1, 16, 45, 4096}) {
        Random random(num_features);
        const std::vector<float> gate_up =
            num_features == 4096 ? random.patterns(2 * 2 * num_features) : random.values(2 * 2 * num_features, 4.0f);
        std::vector<float> out(2 * num_features);
        run.context.silu_times(gate_up.data(), 2, num_features, out.data());
        run.report("silu_times " + std::to_string(num_features) + (num_features == 4096 ? " of any bits" : ""), out);
    }
}

void normalise_rows(Run& run) {
    for (const size_t width : {1, 15, 16, 17, 64, 130, 896}) {
        Random random(width);
        std::vector<float> x = random.values(3 * width);
        if (width == 130) {
            x[131] = std::numeric_limits<float>::quiet_NaN();
            x[261] = std::numeric_limits<float>::infinity();
        }
        const std::vector<float> weight = random.values(width);
        std::vector<float> out(3 * width);
        run.context.rms_norm({x.data(), weight.data(), 1e-5f, width, out.data()}, 3);
        run.report("rms_norm " + std::to_string(width), out);
    }
}

void add_low_rank_changes(Run& run) {
    constexpr size_t kColumns = 96, kOut = 60;
    for (const char* const name : {"F32", "F16", "BF16"}) {
        for (const size_t rank : {1, 7, 16}) {
            Random random(rank);
            Matrices factors;
            std::vector<StoredLora> matrices;
            for (const size_t first_column : {0, 33}) {
                factors.push_back(random_matrix(type_named(name), rank, kColumns, random));
                const StoredMatrix down = factors.back()->stored;
                factors.push_back(random_matrix(type_named(name), 27, rank, random));
                matrices.push_back({down, factors.back()->stored, 0.75f, first_column});
            }
            const auto lora = run.context.pack_lora(matrices, kOut);
            const std::vector<float> norm_weight = random.values(kColumns);
            const std::vector<float> x = random.values(80 * kColumns);
            std::vector<float> out = random.values(80 * kOut);
            LinearJob job = linear_job(x, kColumns, out, kOut);
            job.norm_weight = norm_weight.data();
            job.eps = 1e-6f;
            run.context.add_lora(job, {{0, 3, lora.get()}, {5, 70, lora.get()}});
            run.report(std::string("add_lora ") + name + " rank " + std::to_string(rank), out);
        }
    }
}

struct CacheKind {
    const char* name;
    CacheType type;
    size_t value_bytes;
};

constexpr CacheKind kCacheKinds[] = {{"float32", CacheType::kFloat32, 4},
                                     {"float16", CacheType::kFloat16, 2},
                                     {"bfloat16", CacheType::kBfloat16, 2},
                                     {"int8", CacheType::kInt8, 1}};

// Blocks of keys or values.
struct Cache {
    CacheKind kind;
    size_t head_dim;
    std::vector<uint8_t> data;

    Cache(CacheKind cache_kind, size_t width_of_head, size_t num_rows)
        : kind(cache_kind), head_dim(width_of_head), data(num_rows * row_bytes()) {}

    size_t row_bytes() const {
        return kind.type == CacheType::kInt8 ? int8_row_width(head_dim) : head_dim * kind.value_bytes;
    }
    void add_to(Checksum& checksum) const {
        for (size_t at = 0; at < data.size(); at += row_bytes()) {
            add_row_to(checksum, &data[at]);
        }
    }

private:
    void add_row_to(Checksum& checksum, const uint8_t* row) const {
        switch (kind.type) {
            case CacheType::kFloat32: {
                std::vector<float> values(head_dim);
                std::memcpy(values.data(), row, row_bytes());
                return checksum.add(values);
            }
            case CacheType::kFloat16:
                return checksum.add_halves(row, head_dim, kFloat16Infinity);
            case CacheType::kBfloat16:
                return checksum.add_halves(row, head_dim, kBfloat16Infinity);
            case CacheType::kInt8:
                checksum.add_halves(row, num_int8_groups(head_dim), kFloat16Infinity);
                return checksum.add_bytes(row + 2 * num_int8_groups(head_dim), head_dim);
        }
    }
};

struct HeadShape {
    size_t num_heads;
    size_t num_kv_heads;
    size_t head_dim;
    size_t block_size;

    size_t width() const { return (num_heads + 2 * num_kv_heads) * head_dim; }
};

std::string describe(const HeadShape& shape) {
    return std::to_string(shape.num_heads) + "/" + std::to_string(shape.num_kv_heads) + " heads of " +
           std::to_string(shape.head_dim) + ", blocks of " + std::to_string(shape.block_size);
}

// Turns and writes `num_tokens` tokens to slots in descending order.
void write_tokens(Context& context, const HeadShape& shape, std::vector<float>& qkv, bool has_norms, Random& random,
                  Cache& keys, Cache& values) {
    const size_t num_tokens = qkv.size() / shape.width();
    const std::vector<float> norms = random.values(2 * shape.head_dim);
    const std::vector<float> angles = random.values(2 * num_tokens * (shape.head_dim / 2), 0.5f);
    std::vector<int64_t> slots(num_tokens);
    for (size_t token = 0; token < num_tokens; ++token) {
        slots[token] = static_cast<int64_t>(num_tokens - 1 - token);
    }
    RopeJob job{};
    job.qkv = qkv.data();
    job.num_heads = shape.num_heads;
    job.num_kv_heads = shape.num_kv_heads;
    job.head_dim = shape.head_dim;
    job.q_norm = has_norms ? norms.data() : nullptr;
    job.k_norm = has_norms ? norms.data() + shape.head_dim : nullptr;
    job.eps = 1e-6f;
    job.cos = angles.data();
    job.sin = angles.data() + angles.size() / 2;
    job.slot_mapping = slots.data();
    job.k_cache = keys.data.data();
    job.v_cache = values.data.data();
    job.block_size = shape.block_size;
    context.rope_and_write_kv(job, keys.kind.type, num_tokens);
}

size_t num_cache_rows(const HeadShape& shape, size_t num_tokens) {
    const size_t num_blocks = (num_tokens + shape.block_size - 1) / shape.block_size;
    return num_blocks * shape.block_size * shape.num_kv_heads;
}

void turn_and_write(Run& run) {
    constexpr size_t kTokens = 9;
    const HeadShape shapes[] = {{1, 1, 2, 1},    {6, 2, 10, 4}, {4, 4, 32, 16},
                                {14, 2, 64, 16}, {3, 1, 70, 4}, {2, 1, 128, 16}};
    for (const CacheKind& kind : kCacheKinds) {
        for (const HeadShape& shape : shapes) {
            for (const bool has_norms : {false, true}) {
                for (const bool is_any : {false, true}) {
                    Random random(shape.head_dim);
                    std::vector<float> qkv = is_any ? random.patterns(kTokens * shape.width())
                                                    : random.values(kTokens * shape.width(), 2.0f);
                    Cache keys(kind, shape.head_dim, num_cache_rows(shape, kTokens)), values = keys;
                    write_tokens(run.context, shape, qkv, has_norms, random, keys, values);
                    Checksum checksum;
                    checksum.add(qkv);
                    keys.add_to(checksum);
                    values.add_to(checksum);
                    run.lines.emplace_back(std::string("rope_and_write_kv ") + kind.name + " " + describe(shape) +
                                               (has_norms ? ", norms" : "") + (is_any ? ", any bits" : ""),
                                           checksum.value());
                }
            }
        }
    }
}

struct Lengths {
    const char* name;
    std::vector<int32_t> kv_len;
    std::vector<int32_t> num_queries;
};

// Keys and values are written by `rope_and_write_kv` of the same instruction set; blocks are used from the last on.
void attend_to(Run& run, const CacheKind& kind, const HeadShape& shape, const Lengths& lengths, bool is_poisoned) {
    Random random(shape.head_dim + shape.num_heads);
    size_t max_blocks = 0, num_tokens = 0;
    for (const int32_t length : lengths.kv_len) {
        max_blocks = std::max(max_blocks, (static_cast<size_t>(length) + shape.block_size - 1) / shape.block_size);
    }
    const size_t num_blocks = lengths.kv_len.size() * max_blocks;
    const size_t num_slots = num_blocks * shape.block_size;
    Cache keys(kind, shape.head_dim, num_cache_rows(shape, num_slots)), values = keys;
    std::vector<float> written = random.values(num_slots * shape.width());
    if (is_poisoned) {
        written[shape.num_heads * shape.head_dim] = std::numeric_limits<float>::infinity();
    }
    write_tokens(run.context, shape, written, true, random, keys, values);

    std::vector<int32_t> query_start = {0}, block_table(num_blocks);
    for (const int32_t count : lengths.num_queries) {
        num_tokens += static_cast<size_t>(count);
        query_start.push_back(static_cast<int32_t>(num_tokens));
    }
    for (size_t i = 0; i < num_blocks; ++i) {
        block_table[i] = static_cast<int32_t>(num_blocks - 1 - i);
    }
    const std::vector<float> qkv = random.values(num_tokens * shape.width(), 2.0f);
    std::vector<float> out(num_tokens * shape.num_heads * shape.head_dim);
    AttentionJob job{};
    job.qkv = qkv.data();
    job.num_heads = shape.num_heads;
    job.num_kv_heads = shape.num_kv_heads;
    job.head_dim = shape.head_dim;
    job.k_cache = keys.data.data();
    job.v_cache = values.data.data();
    job.block_size = shape.block_size;
    job.query_start = query_start.data();
    job.kv_len = lengths.kv_len.data();
    job.block_table = block_table.data();
    job.max_blocks = max_blocks;
    job.scale = 0.375f;
    job.out = out.data();
    run.context.attend(job, kind.type, lengths.kv_len.size());
    run.report(std::string("attend ") + kind.name + " " + describe(shape) + ", " + lengths.name +
                   (is_poisoned ? ", an infinite key" : ""),
               out);
}

void attend_everywhere(Run& run) {
    const HeadShape shapes[] = {{1, 1, 2, 1}, {6, 2, 10, 4}, {14, 2, 64, 16}, {5, 1, 70, 32}, {8, 4, 128, 16}};
    const Lengths lengths[] = {{"decoding", {1, 31, 32, 33, 70}, {1, 1, 1, 1, 1}},
                               {"a prompt", {75}, {75}},
                               {"a later piece of a prompt", {90}, {20}},
                               {"both", {9, 64, 40}, {5, 1, 40}}};
    for (const CacheKind& kind : kCacheKinds) {
        for (const HeadShape& shape : shapes) {
            for (const Lengths& each : lengths) {
                attend_to(run, kind, shape, each, false);
            }
        }
        attend_to(run, kind, shapes[1], lengths[3], true);
    }
}

Lines compute(const KernelTable& kernels) {
    Run run{{2, kernels}, {}};
    multiply_every_type(run);
    multiply_stacked(run);
    multiply_at_the_edges(run);
    join_gate_and_up(run);
    mix_experts(run);
    multiply_silu(run);
    normalise_rows(run);
    add_low_rank_changes(run);
    turn_and_write(run);
    attend_everywhere(run);
    return run.lines;
}

int print_all() {
    const Lines expected = compute(*find_kernels("scalar"));
    int status = 0;
    for (const char* const isa : kIsaNames) {
        const KernelTable* const kernels = find_kernels(isa);
        if (kernels == nullptr) {
            continue;
        }
        const Lines lines = compute(*kernels);
        for (size_t i = 0; i < lines.size(); ++i) {
            std::printf("%-8s %-80s %016" PRIx64 "\n", isa, lines[i].first.c_str(), lines[i].second);
            if (lines[i] != expected[i]) {
                std::fprintf(stderr, "%s differs from scalar: %s\n", isa, lines[i].first.c_str());
                status = 1;
            }
        }
    }
    return status;
}

}  // namespace
}  // namespace qwenstack

int main() { return qwenstack::print_all(); }
