// The Python module: checks shapes, types, layouts and indices, then hands plain pointers on. No arithmetic here.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "context.h"
#include "decoder_layers.h"

namespace nb = nanobind;

namespace qwenstack {
namespace {

using Input = nb::ndarray<nb::ro>;
using OptionalInput = std::optional<Input>;
using Output = nb::ndarray<>;

template <typename... Parts>
[[noreturn]] void refuse(const char* operation, const Parts&... parts) {
    std::string message = std::string(operation) + ": ";
    ((message += parts), ...);
    throw nb::value_error(message.c_str());
}

template <typename Array>
bool is_contiguous(const Array& array) {
    if (array.size() == 0) {
        return true;  // strides of nothing mean nothing
    }
    int64_t stride = 1;
    for (size_t i = array.ndim(); i-- > 0;) {
        if (array.shape(i) != 1 && array.stride(i) != stride) {
            return false;
        }
        stride *= static_cast<int64_t>(array.shape(i));
    }
    return true;
}

template <typename Array>
std::string describe_shape(const Array& array) {
    std::string text = "[";
    for (size_t i = 0; i < array.ndim(); ++i) {
        text += (i == 0 ? "" : ", ") + std::to_string(array.shape(i));
    }
    return text + "]";
}

template <typename Array>
std::string describe_type(const Array& array) {
    const char* const kinds[] = {"int", "uint", "float"};
    const uint8_t code = array.dtype().code;
    return (code < 3 ? kinds[code] : "type ") + std::to_string(array.dtype().bits);
}

std::string describe_shape(std::initializer_list<size_t> shape) {
    std::string text = "[";
    for (const size_t size : shape) {
        text += (text.size() == 1 ? "" : ", ") + std::to_string(size);
    }
    return text + "]";
}

template <typename Array>
bool has_shape(const Array& array, std::initializer_list<size_t> shape) {
    if (array.ndim() != shape.size()) {
        return false;
    }
    size_t axis = 0;
    for (const size_t size : shape) {
        if (array.shape(axis++) != size) {
            return false;
        }
    }
    return true;
}

template <typename T, typename Array>
void check_array(const char* operation, const char* name, const Array& array, std::initializer_list<size_t> shape) {
    if (array.dtype() == nb::dtype<T>() && has_shape(array, shape) && is_contiguous(array) &&
        array.device_type() == nb::device::cpu::value) {
        return;
    }
    const std::string type = std::string(std::is_same_v<T, float> ? "float"
                                         : std::is_signed_v<T>    ? "int"
                                                                  : "uint") +
                             std::to_string(sizeof(T) * 8);
    refuse(operation, "`", name, "` must be contiguous ", type, " of shape ", describe_shape(shape), ", not ",
           is_contiguous(array) ? "contiguous " : "strided ", describe_type(array), " of shape ", describe_shape(array),
           ".");
}

template <typename T>
const T* checked(const char* operation, const char* name, const Input& array, std::initializer_list<size_t> shape) {
    check_array<T>(operation, name, array, shape);
    return static_cast<const T*>(array.data());
}

template <typename T>
const T* checked(const char* operation, const char* name, const OptionalInput& array,
                 std::initializer_list<size_t> shape) {
    return array.has_value() ? checked<T>(operation, name, *array, shape) : nullptr;
}

template <typename T>
T* checked(const char* operation, const char* name, const Output& array, std::initializer_list<size_t> shape) {
    check_array<T>(operation, name, array, shape);
    return static_cast<T*>(array.data());
}

template <typename Array>
size_t num_rows(const Array& array) {
    return array.ndim() == 0 ? 0 : array.shape(0);
}

template <typename T>
void check_range(const char* operation, const char* name, const T* indices, size_t count, size_t limit) {
    for (size_t i = 0; i < count; ++i) {
        if (indices[i] >= 0 && static_cast<size_t>(indices[i]) < limit) {
            continue;
        }
        refuse(operation, "`", name, "` holds ", std::to_string(indices[i]), "; it must lie in 0…",
               std::to_string(limit - 1), ".");
    }
}

// The sizes that the key/value cache and the head counts fix.
struct Heads {
    size_t num_heads;
    size_t num_kv_heads;
    size_t head_dim;
    size_t num_blocks;
    size_t block_size;
    CacheType type;

    size_t qkv_width() const { return (num_heads + 2 * num_kv_heads) * head_dim; }
};

template <typename Array>
std::optional<CacheType> cache_type(const Array& cache) {
    if (cache.dtype() == nb::dtype<float>()) {
        return CacheType::kFloat32;
    }
    if (cache.dtype() == nb::dtype<uint16_t>()) {
        return CacheType::kBfloat16;
    }
    if (cache.dtype() == nb::dtype<int8_t>()) {
        return CacheType::kInt8;
    }
    if (cache.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float) && cache.dtype().bits == 16) {
        return CacheType::kFloat16;
    }
    return std::nullopt;
}

// The head width of a cache's rows; 0 if no head fills them.
size_t head_dim_of(CacheType type, size_t row_width) {
    if (type != CacheType::kInt8) {
        return row_width;
    }
    constexpr size_t kGroupBytes = kInt8GroupColumns + 2;
    const size_t head_dim = row_width - 2 * ((row_width + kGroupBytes - 1) / kGroupBytes);
    return row_width > 2 && int8_row_width(head_dim) == row_width ? head_dim : 0;
}

template <typename Array>
Heads check_heads(const char* operation, int64_t num_heads, int64_t num_kv_heads, const Array& k_cache,
                  const Array& v_cache) {
    constexpr int64_t kMostHeads = 1 << 16;
    if (num_heads < 1 || num_kv_heads < 1 || num_heads > kMostHeads || num_heads % num_kv_heads != 0) {
        refuse(operation, std::to_string(num_heads), " query heads cannot share ", std::to_string(num_kv_heads),
               " key/value heads evenly.");
    }
    const std::optional<CacheType> type = cache_type(k_cache);
    if (!type.has_value() || k_cache.ndim() != 4 || k_cache.size() == 0 || !is_contiguous(k_cache) ||
        k_cache.shape(1) != static_cast<size_t>(num_kv_heads) || k_cache.device_type() != nb::device::cpu::value) {
        refuse(operation, "`k_cache` must be contiguous float32, float16, uint16 (bfloat16) or int8 of shape [blocks, ",
               std::to_string(num_kv_heads), ", block size, row width], not ", describe_type(k_cache), " of shape ",
               describe_shape(k_cache), ".");
    }
    if (!(v_cache.dtype() == k_cache.dtype()) || !is_contiguous(v_cache) ||
        v_cache.device_type() != nb::device::cpu::value ||
        !has_shape(v_cache, {k_cache.shape(0), k_cache.shape(1), k_cache.shape(2), k_cache.shape(3)})) {
        refuse(operation, "`v_cache` must be like `k_cache`, ", describe_type(k_cache), " of shape ",
               describe_shape(k_cache), ", not ", describe_type(v_cache), " of shape ", describe_shape(v_cache), ".");
    }
    const size_t head_dim = head_dim_of(*type, k_cache.shape(3));
    if (head_dim == 0) {
        refuse(operation, "rows of ", std::to_string(k_cache.shape(3)),
               " bytes are no int8 codes of a head with their scales.");
    }
    if (head_dim % 2 != 0) {
        refuse(operation, "the head width is ", std::to_string(head_dim), "; rotary embedding needs an even one.");
    }
    if (*type == CacheType::kInt8 && head_dim > kMaxInt8HeadDim) {
        refuse(operation, "the head width is ", std::to_string(head_dim), "; an int8 cache takes at most ",
               std::to_string(kMaxInt8HeadDim), ".");
    }
    return {static_cast<size_t>(num_heads),
            static_cast<size_t>(num_kv_heads),
            head_dim,
            k_cache.shape(0),
            k_cache.shape(2),
            *type};
}

LinearJob check_linear(const char* operation, const Input& x, const PackedLinear& packed, const Output& out,
                       size_t out_width, const OptionalInput& norm_weight, float eps, bool has_16_bit_activations) {
    const size_t num_tokens = num_rows(x);
    LinearJob job{};
    job.x = checked<float>(operation, "x", x, {num_tokens, packed.in_features()});
    job.norm_weight = checked<float>(operation, "norm_weight", norm_weight, {packed.in_features()});
    job.eps = eps;
    job.num_tokens = num_tokens;
    job.in_features = packed.in_features();
    job.has_16_bit_activations = has_16_bit_activations;
    job.bias = packed.bias();
    job.out = checked<float>(operation, "out", out, {num_tokens, out_width});
    job.out_stride = out_width;
    return job;
}

using Matrix = std::tuple<uint32_t, size_t, size_t, Input>;  // GGUF type, rows, columns, bytes

std::unique_ptr<PackedLinear> pack(Context& context, const std::vector<Matrix>& matrices, const OptionalInput& bias) {
    if (matrices.empty()) {
        refuse("pack", "needs at least one matrix.");
    }
    std::vector<StoredMatrix> stored;
    size_t out_features = 0;
    for (const auto& [type, rows, columns, data] : matrices) {
        const size_t bytes = row_bytes(type, columns);
        if (rows == 0 || columns == 0 || bytes == 0) {
            refuse("pack", "a matrix of GGUF type ", std::to_string(type), " cannot have shape ",
                   describe_shape({rows, columns}), ".");
        }
        if (columns != std::get<2>(matrices.front())) {
            refuse("pack", "stacked matrices share their input width, not ", std::to_string(columns), " and ",
                   std::to_string(std::get<2>(matrices.front())), ".");
        }
        const uint8_t* const start = checked<uint8_t>("pack", "data", data, {rows, bytes});
        stored.push_back({static_cast<StorageType>(type), rows, columns, start});
        out_features += rows;
    }
    const float* const bias_start = checked<float>("pack", "bias", bias, {out_features});
    const nb::gil_scoped_release release;
    return context.pack(stored, bias_start);
}

void linear(Context& context, const Input& x, const PackedLinear& packed, const Output& out,
            const OptionalInput& norm_weight, float eps, bool accumulate, bool has_16_bit_activations) {
    LinearJob job =
        check_linear("linear", x, packed, out, packed.out_features(), norm_weight, eps, has_16_bit_activations);
    job.accumulate = accumulate;
    const nb::gil_scoped_release release;
    context.linear(job, packed);
}

void gate_up_silu(Context& context, const Input& x, const PackedLinear& packed, const Output& out,
                  const OptionalInput& norm_weight, float eps, bool has_16_bit_activations) {
    const std::vector<Segment>& segments = packed.segments();
    if (segments.size() != 2 || segments[0].rows != segments[1].rows) {
        refuse("gate_up_silu", "needs weights packed from a gate and an up matrix of equal size.");
    }
    const LinearJob job =
        check_linear("gate_up_silu", x, packed, out, segments[0].rows, norm_weight, eps, has_16_bit_activations);
    const nb::gil_scoped_release release;
    context.gate_up_silu(job, packed);
}

using ExpertPair = std::tuple<const PackedLinear*, const PackedLinear*>;  // gate and up, down

void add_experts(Context& context, const Input& x, const std::vector<ExpertPair>& experts, const Input& chosen,
                 const Input& weights, const Output& out, bool has_16_bit_activations) {
    const char* const operation = "add_experts";
    if (experts.empty()) {
        refuse(operation, "needs at least one expert.");
    }
    for (const auto& [gate_up, down] : experts) {
        if (gate_up == nullptr || down == nullptr) {
            refuse(operation, "an expert is None.");
        }
    }
    const size_t num_tokens = num_rows(x);
    const size_t experts_per_token = chosen.ndim() < 2 ? 0 : chosen.shape(1);
    ExpertsJob job{};
    job.num_tokens = num_tokens;
    job.in_features = std::get<0>(experts.front())->in_features();
    job.hidden_features = std::get<1>(experts.front())->in_features();
    job.x = checked<float>(operation, "x", x, {num_tokens, job.in_features});
    job.chosen = checked<int64_t>(operation, "chosen", chosen, {num_tokens, experts_per_token});
    job.weights = checked<float>(operation, "weights", weights, {num_tokens, experts_per_token});
    job.out = checked<float>(operation, "out", out, {num_tokens, job.in_features});
    check_range(operation, "chosen", job.chosen, num_tokens * experts_per_token, experts.size());
    std::vector<Expert> own;
    for (const auto& [gate_up, down] : experts) {
        const std::vector<Segment>& gate_and_up = gate_up->segments();
        if (gate_and_up.size() != 2 || gate_and_up[0].rows != job.hidden_features ||
            gate_and_up[1].rows != job.hidden_features || gate_up->in_features() != job.in_features ||
            down->in_features() != job.hidden_features || down->out_features() != job.in_features) {
            refuse(operation, "the experts' gate, up and down matrices do not fit together or to the first expert's.");
        }
        own.push_back({gate_up, down});
    }
    job.experts = own.data();
    job.num_experts = own.size();
    job.experts_per_token = experts_per_token;
    job.has_16_bit_activations = has_16_bit_activations;
    if (num_tokens * experts_per_token == 0) {
        return;
    }
    const nb::gil_scoped_release release;
    context.add_experts(job);
}

using LoraFactors = std::tuple<Matrix, Matrix, float, size_t>;  // down, up, scale, first column

StoredMatrix checked_factor(const char* name, const Matrix& matrix) {
    const auto& [type, rows, columns, data] = matrix;
    const bool is_float = type == static_cast<uint32_t>(StorageType::kF32) ||
                          type == static_cast<uint32_t>(StorageType::kF16) ||
                          type == static_cast<uint32_t>(StorageType::kBF16);
    if (!is_float || rows == 0 || columns == 0) {
        refuse("pack_lora", "`", name, "` of GGUF type ", std::to_string(type), " and shape ",
               describe_shape({rows, columns}), " is no float matrix.");
    }
    const uint8_t* const start = checked<uint8_t>("pack_lora", name, data, {rows, row_bytes(type, columns)});
    return {static_cast<StorageType>(type), rows, columns, start};
}

std::unique_ptr<PackedLora> pack_lora(Context& context, const std::vector<LoraFactors>& matrices, size_t out_features) {
    if (matrices.empty()) {
        refuse("pack_lora", "needs the factors of at least one matrix.");
    }
    std::vector<StoredLora> stored;
    size_t first_free = 0;
    for (const auto& [down_matrix, up_matrix, scale, first_column] : matrices) {
        const StoredMatrix down = checked_factor("down", down_matrix);
        const StoredMatrix up = checked_factor("up", up_matrix);
        if (up.columns != down.rows || down.columns != std::get<2>(std::get<0>(matrices.front()))) {
            refuse("pack_lora", "factors ", describe_shape({up.rows, up.columns}), " and ",
                   describe_shape({down.rows, down.columns}), " do not fit together or to the other matrices.");
        }
        if (first_column < first_free || first_column > out_features || up.rows > out_features - first_column) {
            refuse("pack_lora", std::to_string(up.rows), " columns from ", std::to_string(first_column), " on of ",
                   std::to_string(out_features), " overlap others or end too late; matrices go in ascending order.");
        }
        first_free = first_column + up.rows;
        stored.push_back({down, up, scale, first_column});
    }
    const nb::gil_scoped_release release;
    return context.pack_lora(stored, out_features);
}

using RowsOfLora = std::tuple<int64_t, int64_t, const PackedLora*>;  // first row, end, adapter

std::vector<LoraRows> check_lora(const char* operation, const std::vector<RowsOfLora>& rows, size_t num_tokens,
                                 size_t in_features, size_t out_features) {
    std::vector<LoraRows> own;
    int64_t first_free = 0;
    for (const auto& [first, end, lora] : rows) {
        if (lora == nullptr) {
            refuse(operation, "an adapter is None.");
        }
        if (first < first_free || end < first || static_cast<size_t>(end) > num_tokens) {
            refuse(operation, "rows ", std::to_string(first), "…", std::to_string(end), " overlap others or exceed ",
                   std::to_string(num_tokens), "; they go in ascending order.");
        }
        if (lora->in_features() != in_features || lora->out_features() != out_features) {
            refuse(operation, "an adapter is for a product of another size.");
        }
        first_free = end;
        own.push_back({static_cast<size_t>(first), static_cast<size_t>(end - first), lora});
    }
    return own;
}

void add_lora(Context& context, const Input& x, const std::vector<RowsOfLora>& rows, const Output& out,
              const OptionalInput& norm_weight, float eps) {
    const char* const operation = "add_lora";
    if (rows.empty()) {
        return;
    }
    const size_t in_features = x.ndim() < 2 ? 0 : x.shape(1), out_features = out.ndim() < 2 ? 0 : out.shape(1);
    LinearJob job{};
    job.num_tokens = num_rows(x);
    job.x = checked<float>(operation, "x", x, {job.num_tokens, in_features});
    job.norm_weight = checked<float>(operation, "norm_weight", norm_weight, {in_features});
    job.eps = eps;
    job.in_features = in_features;
    job.out = checked<float>(operation, "out", out, {job.num_tokens, out_features});
    job.out_stride = out_features;
    const std::vector<LoraRows> own = check_lora(operation, rows, job.num_tokens, in_features, out_features);
    const nb::gil_scoped_release release;
    context.add_lora(job, own);
}

void silu_times(Context& context, const Input& gate_up, const Output& out) {
    const size_t num_tokens = num_rows(gate_up);
    const size_t num_features = gate_up.ndim() < 2 ? 0 : gate_up.shape(1) / 2;
    const float* const from = checked<float>("silu_times", "gate_up", gate_up, {num_tokens, 2 * num_features});
    float* const to = checked<float>("silu_times", "out", out, {num_tokens, num_features});
    const nb::gil_scoped_release release;
    context.silu_times(from, num_tokens, num_features, to);
}

void rms_norm(Context& context, const Input& x, const Input& weight, float eps, const Output& out) {
    const size_t rows = num_rows(x);
    const size_t width = x.ndim() < 2 ? 0 : x.shape(1);
    NormJob job{};
    job.x = checked<float>("rms_norm", "x", x, {rows, width});
    job.weight = checked<float>("rms_norm", "weight", weight, {width});
    job.eps = eps;
    job.width = width;
    job.out = checked<float>("rms_norm", "out", out, {rows, width});
    const nb::gil_scoped_release release;
    context.rms_norm(job, rows);
}

void rope_and_write_kv(Context& context, const Output& qkv, int64_t num_heads, int64_t num_kv_heads,
                       const OptionalInput& q_norm, const OptionalInput& k_norm, float eps, const Input& cos,
                       const Input& sin, const Input& slot_mapping, const Output& k_cache, const Output& v_cache) {
    const char* const operation = "rope_and_write_kv";
    const Heads heads = check_heads(operation, num_heads, num_kv_heads, k_cache, v_cache);
    const size_t num_tokens = num_rows(qkv);
    RopeJob job{};
    job.qkv = checked<float>(operation, "qkv", qkv, {num_tokens, heads.qkv_width()});
    job.num_heads = heads.num_heads;
    job.num_kv_heads = heads.num_kv_heads;
    job.head_dim = heads.head_dim;
    job.q_norm = checked<float>(operation, "q_norm", q_norm, {heads.head_dim});
    job.k_norm = checked<float>(operation, "k_norm", k_norm, {heads.head_dim});
    job.eps = eps;
    job.cos = checked<float>(operation, "cos", cos, {num_tokens, heads.head_dim / 2});
    job.sin = checked<float>(operation, "sin", sin, {num_tokens, heads.head_dim / 2});
    job.slot_mapping = checked<int64_t>(operation, "slot_mapping", slot_mapping, {num_tokens});
    check_range(operation, "slot_mapping", job.slot_mapping, num_tokens, heads.num_blocks * heads.block_size);
    job.k_cache = k_cache.data();
    job.v_cache = v_cache.data();
    job.block_size = heads.block_size;
    const nb::gil_scoped_release release;
    context.rope_and_write_kv(job, heads.type, num_tokens);
}

// `Job` names where sequences and their blocks are.
template <typename Job>
void check_sequences(const char* operation, const Job& job, size_t num_blocks, size_t block_size, size_t num_sequences,
                     size_t num_tokens) {
    const size_t most_keys = job.max_blocks * block_size;
    if (job.query_start[0] != 0 || job.query_start[num_sequences] != static_cast<int64_t>(num_tokens)) {
        refuse(operation, "`query_start` must rise from 0 to ", std::to_string(num_tokens), ", the rows of `qkv`.");
    }
    for (size_t i = 0; i < num_sequences; ++i) {
        const int64_t num_queries = static_cast<int64_t>(job.query_start[i + 1]) - job.query_start[i];
        if (num_queries < 0) {
            refuse(operation, "`query_start` must not fall; it does after entry ", std::to_string(i), ".");
        }
        const int64_t length = job.kv_len[i];
        if (length < num_queries || static_cast<size_t>(length) > most_keys) {
            refuse(operation, "`kv_len` of sequence ", std::to_string(i), " is ", std::to_string(length),
                   "; it must lie between its ", std::to_string(num_queries), " queries and ",
                   std::to_string(most_keys), ", what its row of `block_table` can hold.");
        }
        const size_t num_used = (static_cast<size_t>(length) + block_size - 1) / block_size;
        check_range(operation, "block_table", job.block_table + i * job.max_blocks, num_used, num_blocks);
    }
}

void attend(Context& context, const Input& qkv, int64_t num_heads, int64_t num_kv_heads, const Input& k_cache,
            const Input& v_cache, const Input& query_start, const Input& kv_len, const Input& block_table, float scale,
            const Output& out) {
    const Heads heads = check_heads("attend", num_heads, num_kv_heads, k_cache, v_cache);
    const size_t num_tokens = num_rows(qkv);
    const size_t num_sequences = num_rows(kv_len);
    AttentionJob job{};
    job.qkv = checked<float>("attend", "qkv", qkv, {num_tokens, heads.qkv_width()});
    job.num_heads = heads.num_heads;
    job.num_kv_heads = heads.num_kv_heads;
    job.head_dim = heads.head_dim;
    job.k_cache = k_cache.data();
    job.v_cache = v_cache.data();
    job.block_size = heads.block_size;
    job.query_start = checked<int32_t>("attend", "query_start", query_start, {num_sequences + 1});
    job.kv_len = checked<int32_t>("attend", "kv_len", kv_len, {num_sequences});
    job.max_blocks = block_table.ndim() < 2 ? 0 : block_table.shape(1);
    job.block_table = checked<int32_t>("attend", "block_table", block_table, {num_sequences, job.max_blocks});
    job.scale = scale;
    job.out = checked<float>("attend", "out", out, {num_tokens, heads.num_heads * heads.head_dim});
    check_sequences("attend", job, heads.num_blocks, heads.block_size, num_sequences, num_tokens);
    const nb::gil_scoped_release release;
    context.attend(job, heads.type, num_sequences);
}

// Norm before attention, qkv, norms of query and key heads, output; norm before the network, gate and up, down.
using LayerWeights = std::tuple<Input, const PackedLinear*, OptionalInput, OptionalInput, const PackedLinear*, Input,
                                const PackedLinear*, const PackedLinear*>;
using LayerCache = std::tuple<Output, Output>;  // keys, values

DecoderLayer check_layer(const char* operation, const LayerWeights& weights, const LayerCache& cache,
                         const DecoderShape& shape) {
    const auto& [input_norm, qkv, q_norm, k_norm, output, mlp_norm, gate_up, down] = weights;
    for (const PackedLinear* const packed : {qkv, output, gate_up, down}) {
        if (packed == nullptr) {
            refuse(operation, "a matrix is None.");
        }
    }
    const auto& [k_cache, v_cache] = cache;
    const auto num_heads = static_cast<int64_t>(shape.num_heads),
               num_kv_heads = static_cast<int64_t>(shape.num_kv_heads);
    const Heads heads = check_heads(operation, num_heads, num_kv_heads, k_cache, v_cache);
    if (heads.head_dim != shape.head_dim || heads.num_blocks != shape.num_blocks ||
        heads.block_size != shape.block_size || heads.type != shape.cache_type) {
        refuse(operation, "the layers' caches differ in shape or type.");
    }
    const std::vector<Segment>& gate_and_up = gate_up->segments();
    if (qkv->in_features() != shape.width || qkv->out_features() != shape.qkv_width() ||
        output->in_features() != shape.q_size() || output->out_features() != shape.width || gate_and_up.size() != 2 ||
        gate_and_up[0].rows != gate_and_up[1].rows || gate_up->in_features() != shape.width ||
        down->in_features() != gate_and_up[0].rows || down->out_features() != shape.width) {
        refuse(operation, "the matrices of a layer do not fit together or to the heads.");
    }
    return {checked<float>(operation, "input_norm", input_norm, {shape.width}),
            qkv,
            checked<float>(operation, "q_norm", q_norm, {shape.head_dim}),
            checked<float>(operation, "k_norm", k_norm, {shape.head_dim}),
            output,
            checked<float>(operation, "mlp_norm", mlp_norm, {shape.width}),
            gate_up,
            down,
            k_cache.data(),
            v_cache.data()};
}

std::unique_ptr<DecoderLayers> record_layers(Context&, const std::vector<LayerWeights>& layers,
                                             const std::vector<LayerCache>& caches, int64_t num_heads,
                                             int64_t num_kv_heads, float eps, float scale) {
    const char* const operation = "record_layers";
    if (layers.empty() || layers.size() != caches.size()) {
        refuse(operation, std::to_string(layers.size()), " layers cannot use ", std::to_string(caches.size()),
               " caches.");
    }
    const auto& [k_cache, v_cache] = caches.front();
    const Heads heads = check_heads(operation, num_heads, num_kv_heads, k_cache, v_cache);
    const size_t width = num_rows(std::get<0>(layers.front()));
    const DecoderShape shape{
        width, heads.num_heads, heads.num_kv_heads, heads.head_dim, heads.num_blocks, heads.block_size, heads.type, eps,
        scale};
    std::vector<DecoderLayer> checked_layers;
    for (size_t i = 0; i < layers.size(); ++i) {
        checked_layers.push_back(check_layer(operation, layers[i], caches[i], shape));
    }
    return std::make_unique<DecoderLayers>(shape, std::move(checked_layers));
}

// Of one layer: qkv, output, gate and up, down.
using LoraOfLayer =
    std::tuple<std::vector<RowsOfLora>, std::vector<RowsOfLora>, std::vector<RowsOfLora>, std::vector<RowsOfLora>>;

std::vector<LayerLora> check_layers_lora(const char* operation, const std::vector<LoraOfLayer>& lora,
                                         const std::vector<DecoderLayer>& layers, size_t num_tokens) {
    if (!lora.empty() && lora.size() != layers.size()) {
        refuse(operation, "`lora` is for ", std::to_string(lora.size()), " layers, not ", std::to_string(layers.size()),
               ".");
    }
    std::vector<LayerLora> own;
    for (size_t i = 0; i < lora.size(); ++i) {
        const auto check = [&](const std::vector<RowsOfLora>& rows, const PackedLinear* packed) {
            return check_lora(operation, rows, num_tokens, packed->in_features(), packed->out_features());
        };
        const auto& [qkv, output, gate_up, down] = lora[i];
        own.push_back({check(qkv, layers[i].qkv), check(output, layers[i].output), check(gate_up, layers[i].gate_up),
                       check(down, layers[i].down)});
    }
    return own;
}

void run_layers(Context& context, DecoderLayers& layers, const Output& x, const Input& cos, const Input& sin,
                const Input& slot_mapping, const Input& query_start, const Input& kv_len, const Input& block_table,
                const std::vector<LoraOfLayer>& lora, bool has_16_bit_activations) {
    const char* const operation = "run_layers";
    const DecoderShape& shape = layers.shape();
    LayersJob job{};
    job.num_tokens = num_rows(x);
    job.x = checked<float>(operation, "x", x, {job.num_tokens, shape.width});
    job.cos = checked<float>(operation, "cos", cos, {job.num_tokens, shape.head_dim / 2});
    job.sin = checked<float>(operation, "sin", sin, {job.num_tokens, shape.head_dim / 2});
    job.slot_mapping = checked<int64_t>(operation, "slot_mapping", slot_mapping, {job.num_tokens});
    check_range(operation, "slot_mapping", job.slot_mapping, job.num_tokens, shape.num_blocks * shape.block_size);
    job.num_sequences = num_rows(kv_len);
    job.query_start = checked<int32_t>(operation, "query_start", query_start, {job.num_sequences + 1});
    job.kv_len = checked<int32_t>(operation, "kv_len", kv_len, {job.num_sequences});
    job.max_blocks = block_table.ndim() < 2 ? 0 : block_table.shape(1);
    job.block_table = checked<int32_t>(operation, "block_table", block_table, {job.num_sequences, job.max_blocks});
    check_sequences(operation, job, shape.num_blocks, shape.block_size, job.num_sequences, job.num_tokens);
    const std::vector<LayerLora> own_lora = check_layers_lora(operation, lora, layers.layers(), job.num_tokens);
    job.lora = own_lora.empty() ? nullptr : own_lora.data();
    job.has_16_bit_activations = has_16_bit_activations;
    const nb::gil_scoped_release release;
    layers.run(context, job);
}

std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (const char* const name : kIsaNames) {
        if (find_kernels(name) != nullptr) {
            names.emplace_back(name);
        }
    }
    return names;
}

void create_context(Context* place, int64_t num_threads, const std::string& isa) {
    if (num_threads < 1 || num_threads > static_cast<int64_t>(ThreadPool::kMaxThreads)) {
        refuse("kernels", "the number of threads is ", std::to_string(num_threads), "; it must lie in 1…",
               std::to_string(ThreadPool::kMaxThreads), ".");
    }
    const KernelTable* const kernels = find_kernels(isa.c_str());
    if (kernels == nullptr) {
        std::string choices;
        for (const std::string& name : supported_isas()) {
            choices += (choices.empty() ? "" : ", ") + name;
        }
        refuse("kernels", "this processor cannot run `", isa, "`; it can run ", choices, ".");
    }
    new (place) Context(static_cast<size_t>(num_threads), *kernels);
}

}  // namespace
}  // namespace qwenstack

NB_MODULE(_native, module) {
    using namespace qwenstack;
    module.def("supported_isas", &supported_isas);
    nb::class_<PackedLinear>(module, "PackedLinear")
        .def_prop_ro("in_features", &PackedLinear::in_features)
        .def_prop_ro("out_features", &PackedLinear::out_features)
        .def_prop_ro("num_bytes", &PackedLinear::num_bytes);
    nb::class_<PackedLora>(module, "PackedLora")
        .def_prop_ro("in_features", &PackedLora::in_features)
        .def_prop_ro("out_features", &PackedLora::out_features)
        .def_prop_ro("num_bytes", &PackedLora::num_bytes);
    nb::class_<DecoderLayers>(module, "DecoderLayers");
    nb::class_<Context>(module, "Context")
        .def("__init__", &create_context, nb::arg("num_threads"), nb::arg("isa"))
        .def("pack", &pack, nb::arg("matrices"), nb::arg("bias").none())
        .def("linear", &linear, nb::arg("x").noconvert(), nb::arg("packed"), nb::arg("out").noconvert(),
             nb::arg("norm_weight").noconvert().none(), nb::arg("eps"), nb::arg("accumulate"),
             nb::arg("has_16_bit_activations"))
        .def("gate_up_silu", &gate_up_silu, nb::arg("x").noconvert(), nb::arg("packed"), nb::arg("out").noconvert(),
             nb::arg("norm_weight").noconvert().none(), nb::arg("eps"), nb::arg("has_16_bit_activations"))
        .def("silu_times", &silu_times, nb::arg("gate_up").noconvert(), nb::arg("out").noconvert())
        .def("pack_lora", &pack_lora, nb::arg("matrices"), nb::arg("out_features"))
        .def("add_experts", &add_experts, nb::arg("x").noconvert(), nb::arg("experts"), nb::arg("chosen").noconvert(),
             nb::arg("weights").noconvert(), nb::arg("out").noconvert(), nb::arg("has_16_bit_activations"))
        .def("add_lora", &add_lora, nb::arg("x").noconvert(), nb::arg("rows"), nb::arg("out").noconvert(),
             nb::arg("norm_weight").noconvert().none(), nb::arg("eps"))
        .def("rms_norm", &rms_norm, nb::arg("x").noconvert(), nb::arg("weight").noconvert(), nb::arg("eps"),
             nb::arg("out").noconvert())
        .def("rope_and_write_kv", &rope_and_write_kv, nb::arg("qkv").noconvert(), nb::arg("num_heads"),
             nb::arg("num_kv_heads"), nb::arg("q_norm").noconvert().none(), nb::arg("k_norm").noconvert().none(),
             nb::arg("eps"), nb::arg("cos").noconvert(), nb::arg("sin").noconvert(),
             nb::arg("slot_mapping").noconvert(), nb::arg("k_cache").noconvert(), nb::arg("v_cache").noconvert())
        .def("attend", &attend, nb::arg("qkv").noconvert(), nb::arg("num_heads"), nb::arg("num_kv_heads"),
             nb::arg("k_cache").noconvert(), nb::arg("v_cache").noconvert(), nb::arg("query_start").noconvert(),
             nb::arg("kv_len").noconvert(), nb::arg("block_table").noconvert(), nb::arg("scale"),
             nb::arg("out").noconvert())
        .def("record_layers", &record_layers, nb::arg("layers"), nb::arg("caches"), nb::arg("num_heads"),
             nb::arg("num_kv_heads"), nb::arg("eps"), nb::arg("scale"), nb::keep_alive<0, 2>(), nb::keep_alive<0, 3>())
        .def("run_layers", &run_layers, nb::arg("layers"), nb::arg("x").noconvert(), nb::arg("cos").noconvert(),
             nb::arg("sin").noconvert(), nb::arg("slot_mapping").noconvert(), nb::arg("query_start").noconvert(),
             nb::arg("kv_len").noconvert(), nb::arg("block_table").noconvert(), nb::arg("lora"),
             nb::arg("has_16_bit_activations"));
}
