"""Wrong arguments are refused before memory is touched, by the reference and by the native kernels alike."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qwenstack.core.weight_type import WeightType
from qwenstack.kernels import Kernels, load_kernels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weight:
    weight_type: WeightType
    shape: tuple[int, ...]
    data: np.ndarray


def zeros(weight_type: WeightType, rows: int, columns: int) -> Weight:
    data = np.zeros((rows, weight_type.row_bytes(columns)), np.uint8)
    return Weight(weight_type=weight_type, shape=(rows, columns), data=data)


@pytest.fixture(params=["reference", "auto"])
def kernels(request) -> Kernels:
    return load_kernels(2, request.param)


def floats(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    "weights",
    [
        [],
        [zeros(WeightType.F32, 4, 32), zeros(WeightType.F32, 4, 64)],
        [dataclasses.replace(zeros(WeightType.Q4_0, 4, 64), shape=(4, 65))],
        [dataclasses.replace(zeros(WeightType.Q4_K, 4, 256), shape=(4, 128))],
        [dataclasses.replace(zeros(WeightType.Q8_0, 4, 64), shape=(5, 64))],
        [dataclasses.replace(zeros(WeightType.Q8_0, 4, 64), shape=(4, 64, 1))],
        [dataclasses.replace(zeros(WeightType.F32, 4, 32), data=np.zeros((4, 32), np.float32))],
        [dataclasses.replace(zeros(WeightType.F32, 4, 32), data=np.zeros((8, 128), np.uint8)[::2])],
    ],
)
def test_matrices_that_do_not_fit_are_not_packed(weights, kernels):
    with pytest.raises(ValueError, match="pack: "):
        kernels.pack(weights)


@pytest.mark.parametrize("bias", [floats(3), floats(4, 1), np.zeros(4)])
def test_a_bias_has_one_float_for_each_row(bias, kernels):
    with pytest.raises(ValueError, match="pack: `bias`"):
        kernels.pack([zeros(WeightType.F32, 4, 32)], bias)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("x", {"x": floats(2, 31)}),
        ("x", {"x": floats(32)}),
        ("x", {"x": np.zeros((2, 32))}),
        ("x", {"x": floats(4, 32)[::2]}),
        ("out", {"out": floats(3, 4)}),
        ("out", {"out": floats(2, 8)[:, :4]}),
        ("norm_weight", {"norm_weight": floats(31)}),
    ],
)
@pytest.mark.parametrize("operation", ["linear", "gate_up_silu"])
def test_linear_arrays_have_the_weights_sizes(operation, name, changes, kernels):
    weights = [zeros(WeightType.Q8_0, 4, 32)] * (2 if operation == "gate_up_silu" else 1)
    arguments = {"x": floats(2, 32), "out": floats(2, 4), "norm_weight": None} | changes
    with pytest.raises(ValueError, match=f"{operation}: `{name}`"):
        getattr(kernels, operation)(
            arguments["x"], kernels.pack(weights), arguments["out"], norm_weight=arguments["norm_weight"]
        )


@pytest.mark.parametrize("rows", [(4,), (4, 5), (4, 4, 4)])
def test_gate_and_up_are_two_matrices_of_one_size(rows, kernels):
    packed = kernels.pack([zeros(WeightType.F16, count, 8) for count in rows])
    with pytest.raises(ValueError, match="gate_up_silu: "):
        kernels.gate_up_silu(floats(1, 8), packed, floats(1, 4))


def test_weights_packed_by_other_kernels_are_refused():
    native, reference = load_kernels(1), load_kernels(1, "reference")
    weight = zeros(WeightType.F32, 4, 8)
    for user, packer in ((native, reference), (reference, native)):
        with pytest.raises(ValueError, match=r"linear: .*other kernels"):
            user.linear(floats(1, 8), packer.pack([weight]), floats(1, 4))


@pytest.mark.parametrize(("x", "weight", "out"), [((2, 8), 7, (2, 8)), ((2, 8), 8, (2, 9)), ((8,), 8, (8,))])
def test_rms_norm_arrays_have_one_width(x, weight, out, kernels):
    with pytest.raises(ValueError, match="rms_norm: "):
        kernels.rms_norm(floats(*x), floats(weight), 1e-6, floats(*out))


def rope_arguments() -> dict:
    return {
        "qkv_TW": floats(3, 8 * 6),
        "num_heads": 4,
        "num_kv_heads": 2,
        "q_norm_H": floats(6),
        "k_norm_H": None,
        "eps": 1e-6,
        "cos_T_half": floats(3, 3),
        "sin_T_half": floats(3, 3),
        "slot_mapping": np.array([0, 9, 5]),
        "k_cache": floats(5, 2, 2, 6),
        "v_cache": floats(5, 2, 2, 6),
    }


def attend_arguments() -> dict:
    return {
        "qkv_TW": floats(3, 8 * 6),
        "num_heads": 4,
        "num_kv_heads": 2,
        "k_cache": floats(5, 2, 2, 6),
        "v_cache": floats(5, 2, 2, 6),
        "query_start": np.array([0, 1, 3], np.int32),
        "kv_len": np.array([4, 6], np.int32),
        "block_table": np.array([[4, 0, 0], [1, 2, 3]], np.int32),
        "scale": 0.5,
        "out_TX": floats(3, 24),
    }


def test_the_examples_are_accepted(kernels):
    kernels.rope_and_write_kv(**rope_arguments())
    kernels.attend(**attend_arguments())
    for arguments in (rope_arguments(), attend_arguments()):
        caches = {name: np.zeros((5, 2, 2, 8), np.int8) for name in ("k_cache", "v_cache")}  # 6 codes and a scale
        operation = kernels.attend if "out_TX" in arguments else kernels.rope_and_write_kv
        operation(**(arguments | caches))


WRONG_HEADS = [
    {"num_heads": 0},
    {"num_heads": -4},
    {"num_heads": 5},
    {"num_kv_heads": 0},
    {"k_cache": floats(5, 2, 2, 7), "v_cache": floats(5, 2, 2, 7)},
    {"k_cache": floats(5, 3, 2, 6)},
    {"k_cache": floats(5, 2, 12)},
    {"k_cache": np.zeros((5, 2, 2, 6), np.int16)},
    {"k_cache": floats(5, 2, 4, 6)[:, :, ::2]},
    {"v_cache": floats(4, 2, 2, 6)},
    {"v_cache": np.zeros((5, 2, 2, 6), np.float16)},
    {"qkv_TW": floats(3, 47)},
    *({name: np.zeros((5, 2, 2, width), np.int8) for name in ("k_cache", "v_cache")} for width in (1, 2, 6, 9, 19)),
]


@pytest.mark.parametrize(
    "changes",
    [
        *WRONG_HEADS,
        {"q_norm_H": floats(5)},
        {"k_norm_H": np.zeros(6)},
        {"cos_T_half": floats(3, 6)},
        {"sin_T_half": floats(2, 3)},
        {"slot_mapping": np.array([0, 10, 5])},
        {"slot_mapping": np.array([0, -1, 5])},
        {"slot_mapping": np.array([0, 2**62, 5])},
        {"slot_mapping": np.array([0, 9])},
        {"slot_mapping": np.array([0, 9, 5], np.int32)},
    ],
)
def test_rope_arguments_that_do_not_fit_are_refused(changes, kernels):
    with pytest.raises(ValueError, match="rope_and_write_kv: "):
        kernels.rope_and_write_kv(**(rope_arguments() | changes))


@pytest.mark.parametrize(
    "changes",
    [
        *WRONG_HEADS,
        {"out_TX": floats(3, 23)},
        {"query_start": np.array([0, 3], np.int32)},
        {"query_start": np.array([0, 1, 3])},
        {"query_start": np.array([1, 1, 3], np.int32)},
        {"query_start": np.array([0, 1, 2], np.int32)},
        {"query_start": np.array([0, 1, 4], np.int32)},
        {"query_start": np.array([0, 4, 3], np.int32)},
        {"query_start": np.array([0, -1, 3], np.int32)},
        {"kv_len": np.array([4, 1], np.int32)},
        {"kv_len": np.array([0, 6], np.int32)},
        {"kv_len": np.array([4, 7], np.int32)},
        {"kv_len": np.array([4, -6], np.int32)},
        {"kv_len": np.array([4], np.int32)},
        {"block_table": np.array([[5, 0, 0], [1, 2, 3]], np.int32)},
        {"block_table": np.array([[4, 0, 0], [1, 2, -1]], np.int32)},
        {"block_table": np.array([[4, 0], [1, 2]], np.int32)},
        {"block_table": np.array([4, 0, 0, 1, 2, 3], np.int32)},
    ],
)
def test_attention_arguments_that_do_not_fit_are_refused(changes, kernels):
    with pytest.raises(ValueError, match="attend: "):
        kernels.attend(**(attend_arguments() | changes))


def test_blocks_beyond_a_sequences_length_are_not_looked_at(kernels):
    table = np.array([[4, 0, -7], [1, 2, 3]], np.int32)
    kernels.attend(**(attend_arguments() | {"block_table": table}))


def test_an_array_that_must_be_written_cannot_be_read_only():
    arguments = attend_arguments()
    arguments["out_TX"].flags.writeable = False
    with pytest.raises((TypeError, ValueError)):
        load_kernels(1).attend(**arguments)


def test_an_instruction_set_that_does_not_exist_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"`mmx`; it can run .*scalar"):
        load_kernels(1, "mmx")
