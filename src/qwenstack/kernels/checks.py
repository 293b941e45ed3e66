"""Checks of arguments for the reference kernels; the native ones make the same checks in `csrc/bindings.cc`.

Every function raises `ValueError` naming the operation, the argument and what it must be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qwenstack.kernels.kv_rows import CACHE_DTYPES, MAX_INT8_HEAD_DIM, head_dim_of
from qwenstack.kernels.protocol import Expert, LoraMatrix, LoraRows, PackedLinear, RawWeight


def check_array(operation: str, name: str, array: np.ndarray, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    """Refuse an array of another type, shape or memory order."""
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        order = "contiguous" if array.flags.c_contiguous else "strided"
        raise ValueError(
            f"{operation}: `{name}` must be contiguous {np.dtype(dtype).name} of shape {list(shape)}, "
            f"not {order} {array.dtype.name} of shape {list(array.shape)}."
        )


def check_pack(weights: Sequence[RawWeight], bias: np.ndarray | None) -> tuple[int, int]:
    """Return `(in_features, out_features)` of matrices that can be stacked."""
    if not weights:
        raise ValueError("pack: needs at least one matrix.")
    for weight in weights:
        if len(weight.shape) != 2 or min(weight.shape) < 1:
            raise ValueError(f"pack: a matrix has two sizes of at least 1, not {list(weight.shape)}.")
        rows, columns = weight.shape
        if columns != weights[0].shape[1]:
            raise ValueError(
                f"pack: stacked matrices share their input width, not {weights[0].shape[1]} and {columns}."
            )
        try:
            row_bytes = weight.weight_type.row_bytes(columns)
        except ValueError as error:
            raise ValueError(f"pack: {error}") from error
        check_array("pack", "data", weight.data, np.uint8, (rows, row_bytes))
    out_features = sum(weight.shape[0] for weight in weights)
    if bias is not None:
        check_array("pack", "bias", bias, np.float32, (out_features,))
    return weights[0].shape[1], out_features


def check_linear(
    operation: str,
    x_TD: np.ndarray,
    packed: PackedLinear,
    norm_weight: np.ndarray | None,
    out: np.ndarray,
    out_features: int,
) -> None:
    """Check the arrays of `linear` and `gate_up_silu`."""
    num_tokens = x_TD.shape[0] if x_TD.ndim else 0
    check_array(operation, "x", x_TD, np.float32, (num_tokens, packed.in_features))
    check_array(operation, "out", out, np.float32, (num_tokens, out_features))
    if norm_weight is not None:
        check_array(operation, "norm_weight", norm_weight, np.float32, (packed.in_features,))


def check_add_experts(
    x_TD: np.ndarray,
    experts: Sequence[Expert],
    chosen_Tk: np.ndarray,
    weights_Tk: np.ndarray,
    out_TD: np.ndarray,
) -> None:
    """Check the arrays of `add_experts`, and that its experts are of one size."""
    if not experts:
        raise ValueError("add_experts: needs at least one expert.")
    width, hidden = experts[0][0].in_features, experts[0][1].in_features
    for gate_up, down in experts:
        sizes = (gate_up.in_features, gate_up.out_features, down.in_features, down.out_features)
        if sizes != (width, 2 * hidden, hidden, width):
            raise ValueError(
                "add_experts: the experts' gate, up and down matrices do not fit together or to the first expert's."
            )
    num_tokens = x_TD.shape[0] if x_TD.ndim else 0
    per_token = chosen_Tk.shape[1] if chosen_Tk.ndim == 2 else 0
    check_array("add_experts", "x", x_TD, np.float32, (num_tokens, width))
    check_array("add_experts", "chosen", chosen_Tk, np.int64, (num_tokens, per_token))
    check_array("add_experts", "weights", weights_Tk, np.float32, (num_tokens, per_token))
    check_array("add_experts", "out", out_TD, np.float32, (num_tokens, width))
    _check_range("add_experts", "chosen", chosen_Tk, len(experts))


def check_silu_times(gate_up_TG: np.ndarray, out_TF: np.ndarray) -> None:
    """Check the arrays of `silu_times`."""
    if gate_up_TG.ndim != 2 or gate_up_TG.shape[1] % 2:
        raise ValueError(
            f"silu_times: `gate_up` must hold gates and as many ups in each row, not be of shape "
            f"{list(gate_up_TG.shape)}."
        )
    num_tokens, width = gate_up_TG.shape
    check_array("silu_times", "gate_up", gate_up_TG, np.float32, (num_tokens, width))
    check_array("silu_times", "out", out_TF, np.float32, (num_tokens, width // 2))


def check_pack_lora(matrices: Sequence[LoraMatrix], out_features: int) -> int:
    """Return the `in_features` of factors that can be stacked."""
    if not matrices:
        raise ValueError("pack_lora: needs the factors of at least one matrix.")
    first_free = 0
    for matrix in matrices:
        for name, factor in (("down", matrix.down), ("up", matrix.up)):
            if not factor.weight_type.is_float or len(factor.shape) != 2 or min(factor.shape) < 1:
                raise ValueError(
                    f"pack_lora: `{name}` of type {factor.weight_type.name} and shape {list(factor.shape)} "
                    "is no float matrix."
                )
            check_array(
                "pack_lora",
                name,
                factor.data,
                np.uint8,
                (factor.shape[0], factor.weight_type.row_bytes(factor.shape[1])),
            )
        if matrix.up.shape[1] != matrix.down.shape[0] or matrix.down.shape[1] != matrices[0].down.shape[1]:
            raise ValueError(
                f"pack_lora: factors {list(matrix.up.shape)} and {list(matrix.down.shape)} do not fit together "
                "or to the other matrices."
            )
        if not first_free <= matrix.first_column <= out_features - matrix.up.shape[0]:
            raise ValueError(
                f"pack_lora: {matrix.up.shape[0]} columns from {matrix.first_column} on of {out_features} overlap "
                "others or end too late; matrices go in ascending order."
            )
        first_free = matrix.first_column + matrix.up.shape[0]
    return matrices[0].down.shape[1]


def check_add_lora(
    x_TD: np.ndarray, rows: Sequence[LoraRows], norm_weight: np.ndarray | None, out_TO: np.ndarray
) -> None:
    """Check the arrays and the rows of `add_lora`."""
    num_tokens = x_TD.shape[0] if x_TD.ndim else 0
    first_free = 0
    for first, end, lora in rows:
        if not first_free <= first <= end <= num_tokens:
            raise ValueError(
                f"add_lora: rows {first}…{end} overlap others or exceed {num_tokens}; they go in ascending order."
            )
        first_free = end
        check_array("add_lora", "x", x_TD, np.float32, (num_tokens, lora.in_features))
        check_array("add_lora", "out", out_TO, np.float32, (num_tokens, lora.out_features))
        if norm_weight is not None:
            check_array("add_lora", "norm_weight", norm_weight, np.float32, (lora.in_features,))


def check_rms_norm(x_TD: np.ndarray, weight_D: np.ndarray, out_TD: np.ndarray) -> None:
    """Check the arrays of `rms_norm`."""
    if x_TD.ndim != 2:
        raise ValueError(f"rms_norm: `x` must be a matrix, not of shape {list(x_TD.shape)}.")
    check_array("rms_norm", "x", x_TD, np.float32, x_TD.shape)
    check_array("rms_norm", "weight", weight_D, np.float32, x_TD.shape[1:])
    check_array("rms_norm", "out", out_TD, np.float32, x_TD.shape)


def check_rope(
    qkv_TW: np.ndarray,
    num_heads: int,
    num_kv_heads: int,
    q_norm_H: np.ndarray | None,
    k_norm_H: np.ndarray | None,
    cos_T_half: np.ndarray,
    sin_T_half: np.ndarray,
    slot_mapping: np.ndarray,
    k_cache: np.ndarray,
    v_cache: np.ndarray,
) -> int:
    """Check the arrays of `rope_and_write_kv` and return the head width."""
    operation = "rope_and_write_kv"
    head_dim = _check_heads(operation, num_heads, num_kv_heads, k_cache, v_cache)
    num_tokens = qkv_TW.shape[0] if qkv_TW.ndim else 0
    check_array(operation, "qkv", qkv_TW, np.float32, (num_tokens, (num_heads + 2 * num_kv_heads) * head_dim))
    for name, norm in (("q_norm", q_norm_H), ("k_norm", k_norm_H)):
        if norm is not None:
            check_array(operation, name, norm, np.float32, (head_dim,))
    check_array(operation, "cos", cos_T_half, np.float32, (num_tokens, head_dim // 2))
    check_array(operation, "sin", sin_T_half, np.float32, (num_tokens, head_dim // 2))
    check_array(operation, "slot_mapping", slot_mapping, np.int64, (num_tokens,))
    num_slots = k_cache.shape[0] * k_cache.shape[2]
    _check_range(operation, "slot_mapping", slot_mapping, num_slots)
    return head_dim


def check_attend(
    qkv_TW: np.ndarray,
    num_heads: int,
    num_kv_heads: int,
    k_cache: np.ndarray,
    v_cache: np.ndarray,
    query_start: np.ndarray,
    kv_len: np.ndarray,
    block_table: np.ndarray,
    out_TX: np.ndarray,
) -> int:
    """Check the arrays of `attend` and return the head width."""
    head_dim = _check_heads("attend", num_heads, num_kv_heads, k_cache, v_cache)
    num_tokens = qkv_TW.shape[0] if qkv_TW.ndim else 0
    check_array("attend", "qkv", qkv_TW, np.float32, (num_tokens, (num_heads + 2 * num_kv_heads) * head_dim))
    check_array("attend", "out", out_TX, np.float32, (num_tokens, num_heads * head_dim))
    num_sequences = len(kv_len) if kv_len.ndim else 0
    check_array("attend", "kv_len", kv_len, np.int32, (num_sequences,))
    check_array("attend", "query_start", query_start, np.int32, (num_sequences + 1,))
    max_blocks = block_table.shape[1] if block_table.ndim == 2 else 0
    check_array("attend", "block_table", block_table, np.int32, (num_sequences, max_blocks))
    query_len = np.diff(query_start)
    if query_start[0] != 0 or query_start[-1] != num_tokens or np.any(query_len < 0):
        raise ValueError(f"attend: `query_start` must rise from 0 to {num_tokens}, the rows of `qkv`.")
    block_size = k_cache.shape[2]
    if np.any(kv_len < query_len) or np.any(kv_len > max_blocks * block_size):
        raise ValueError(
            f"attend: each `kv_len` must lie between the sequence's queries and {max_blocks * block_size}, "
            "the positions that its row of `block_table` can hold."
        )
    for blocks, length in zip(block_table, kv_len, strict=True):
        _check_range("attend", "block_table", blocks[: -(-int(length) // block_size)], k_cache.shape[0])
    return head_dim


def _check_heads(operation: str, num_heads: int, num_kv_heads: int, k_cache: np.ndarray, v_cache: np.ndarray) -> int:
    if num_kv_heads < 1 or num_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(f"{operation}: {num_heads} query heads cannot share {num_kv_heads} key/value heads evenly.")
    if k_cache.ndim != 4 or k_cache.dtype not in CACHE_DTYPES or k_cache.shape[1] != num_kv_heads or 0 in k_cache.shape:
        raise ValueError(
            f"{operation}: `k_cache` must be float32, float16, uint16 (bfloat16) or int8 of shape "
            f"[blocks, {num_kv_heads}, block size, row width], not {k_cache.dtype.name} of {list(k_cache.shape)}."
        )
    check_array(operation, "k_cache", k_cache, k_cache.dtype.type, k_cache.shape)
    check_array(operation, "v_cache", v_cache, k_cache.dtype.type, k_cache.shape)
    head_dim = head_dim_of(k_cache.shape[3], k_cache.dtype)
    if head_dim is None:
        raise ValueError(
            f"{operation}: rows of {k_cache.shape[3]} bytes are no int8 codes of a head with their scales."
        )
    if head_dim % 2:
        raise ValueError(f"{operation}: the head width is {head_dim}; rotary embedding needs an even one.")
    if k_cache.dtype == np.int8 and head_dim > MAX_INT8_HEAD_DIM:
        raise ValueError(f"{operation}: the head width is {head_dim}; an int8 cache takes at most {MAX_INT8_HEAD_DIM}.")
    return head_dim


def _check_range(operation: str, name: str, indices: np.ndarray, limit: int) -> None:
    if indices.size and (indices.min() < 0 or indices.max() >= limit):
        raise ValueError(
            f"{operation}: `{name}` holds {int(indices.min())}…{int(indices.max())}; it must lie in 0…{limit - 1}."
        )
