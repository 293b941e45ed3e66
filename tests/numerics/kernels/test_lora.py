"""Low-rank changes: the numpy twin, a dense matrix in float64, and the promises that every kernel makes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qwenstack.core.weight_type import WeightType
from qwenstack.kernels import Kernels, dequantize, load_kernels

ROUNDING = 2e-6
"""Float32 sums of a few hundred terms of either sign, relative to the largest result."""
WIDTH, OUT = 70, 100
FLOATS = (WeightType.F32, WeightType.F16, WeightType.BF16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    down: object
    up: object
    scale: float
    first_column: int


@pytest.fixture
def make_changes(make_weight):
    """A factory of one adapter's factors: two matrices of unequal rank, with unchanged columns between and after."""

    def make(weight_type: WeightType, seed: int, ranks: tuple[int, int] = (5, 18)) -> list[Change]:
        homes = ((0, 33), (40, 50))
        return [
            Change(
                down=make_weight(weight_type, rank, WIDTH, seed=seed + 10 * place),
                up=make_weight(weight_type, rows, rank, seed=seed + 10 * place + 5),
                scale=0.3 + place + 0.1 * seed,
                first_column=column,
            )
            for place, (rank, (column, rows)) in enumerate(zip(ranks, homes, strict=True))
        ]

    return make


def exact(x: np.ndarray, changes: list[Change], out: np.ndarray) -> np.ndarray:
    """The definition, as dense matrices in float64."""
    result = out.astype(np.float64)
    for change in changes:
        down, up = (dequantize(m.data, m.weight_type).astype(np.float64) for m in (change.down, change.up))
        result[:, change.first_column : change.first_column + len(up)] += change.scale * (x @ (up @ down).T)
    return result


def random_rows(count: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


@pytest.mark.parametrize("weight_type", FLOATS, ids=lambda weight_type: weight_type.name)
@pytest.mark.parametrize("with_norm", [False, True])
def test_only_rows_with_an_adapter_change_and_by_its_dense_product(weight_type, with_norm, make_changes, kernels):
    x, out = random_rows(90, WIDTH), random_rows(90, OUT, seed=1)
    norm = np.abs(random_rows(1, WIDTH, seed=2))[0] if with_norm else None
    first, second = make_changes(weight_type, 0), make_changes(weight_type, 1, ranks=(16, 1))
    expected = out.astype(np.float64)
    seen = x.astype(np.float64)
    if norm is not None:
        seen = seen / np.sqrt(np.mean(seen**2, axis=1, keepdims=True) + 1e-5) * norm
    expected[2:3] = exact(seen[2:3], first, out[2:3])
    expected[3:80] = exact(seen[3:80], second, out[3:80])
    packed = [kernels.pack_lora(changes, OUT) for changes in (first, second)]
    kernels.add_lora(x, [(2, 3, packed[0]), (3, 80, packed[1])], result := out.copy(), norm_weight=norm, eps=1e-5)
    assert np.array_equal(result[:2], out[:2])
    assert np.array_equal(result[80:], out[80:])
    assert np.array_equal(result[:, 33:40], out[:, 33:40])
    assert np.abs(result - expected).max() <= ROUNDING * np.abs(expected).max()


@pytest.mark.parametrize("weight_type", FLOATS, ids=lambda weight_type: weight_type.name)
def test_a_row_gives_the_same_bits_beside_any_neighbours(weight_type, make_changes, kernels):
    x = random_rows(80, WIDTH)
    mine, other = (kernels.pack_lora(make_changes(weight_type, seed), OUT) for seed in (0, 1))
    kernels.add_lora(x, [(0, 70, mine), (70, 80, other)], together := np.zeros((80, OUT), np.float32))
    for first, end, adapter in ((0, 1, mine), (17, 70, mine), (69, 70, mine), (70, 80, other), (79, 80, other)):
        rows = [(0, end - first, adapter)]
        kernels.add_lora(x[first:end].copy(), rows, alone := np.zeros((end - first, OUT), np.float32))
        assert np.array_equal(alone, together[first:end])


@pytest.mark.parametrize("weight_type", FLOATS, ids=lambda weight_type: weight_type.name)
def test_threads_and_instruction_sets_give_the_same_bits(weight_type, make_changes, native):
    x = random_rows(75, WIDTH)
    results = []
    for kernels in (*native.values(), load_kernels(1), load_kernels(3)):
        packed = kernels.pack_lora(make_changes(weight_type, 3), OUT)
        kernels.add_lora(x, [(1, 74, packed)], out := np.zeros((75, OUT), np.float32))
        results.append(out)
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("rows_of_each", [1, 8, 9])
def test_many_adapters_give_the_bits_of_each_alone(rows_of_each, make_changes, kernels):
    """Enough of them for two threads to take whole adapters; nine rows each go in parts again."""
    count = 9
    packed = [kernels.pack_lora(make_changes(WeightType.F16, seed), OUT) for seed in range(count)]
    x = random_rows(count * rows_of_each, WIDTH)
    rows = [(i * rows_of_each, (i + 1) * rows_of_each, own) for i, own in enumerate(packed)]
    kernels.add_lora(x, rows, together := np.zeros((len(x), OUT), np.float32))
    for first, end, own in rows:
        alone = np.zeros((rows_of_each, OUT), np.float32)
        kernels.add_lora(x[first:end].copy(), [(0, rows_of_each, own)], alone)
        assert np.array_equal(alone, together[first:end])
        assert alone.any()


@pytest.mark.parametrize("most", [9, 65, 130])
def test_one_long_prompt_among_many_adapters_that_decode(most, make_changes, kernels):
    packed = [kernels.pack_lora(make_changes(WeightType.F16, seed), OUT) for seed in range(12)]
    x = random_rows(most + 11, WIDTH)
    rows = [(0, most, packed[0]), *((most + i, most + i + 1, own) for i, own in enumerate(packed[1:]))]
    kernels.add_lora(x, rows, together := np.zeros((len(x), OUT), np.float32))
    for first, end, own in rows:
        for row in range(first, end):
            kernels.add_lora(x[row : row + 1], [(0, 1, own)], alone := np.zeros((1, OUT), np.float32))
            assert np.array_equal(alone[0], together[row])


def test_adapters_that_shared_pages_with_a_freed_one_stay_whole(make_changes, kernels):
    x = random_rows(3, WIDTH)

    def change(packed):
        kernels.add_lora(x, [(0, 3, packed)], out := np.zeros((3, OUT), np.float32))
        return out

    packed = {seed: kernels.pack_lora(make_changes(WeightType.F32, seed), OUT) for seed in range(40)}
    expected = {seed: change(own) for seed, own in packed.items()}
    for seed in range(0, 40, 3):
        del packed[seed]
    newer = [kernels.pack_lora(make_changes(WeightType.F32, 100 + seed), OUT) for seed in range(40)]
    assert all(np.array_equal(change(own), expected[seed]) for seed, own in packed.items())
    assert len({change(own).tobytes() for own in newer}) == 40


@pytest.mark.parametrize("activation_bits", [8, 16])
@pytest.mark.parametrize("weight_type", [WeightType.Q5_0, WeightType.Q6_K, WeightType.F16], ids=lambda t: t.name)
@pytest.mark.parametrize("isa", ["reference", "scalar", "auto"])
def test_gate_up_silu_is_linear_and_then_silu_times_to_the_bit(isa, weight_type, activation_bits, make_weight):
    """So that rows without an adapter may take either way."""
    kernels: Kernels = load_kernels(2, isa, activation_bits=activation_bits)
    packed = kernels.pack([make_weight(weight_type, 52, 256, seed=seed) for seed in (0, 1)])
    x, norm = random_rows(19, 256), np.abs(random_rows(1, 256, seed=3))[0]
    kernels.gate_up_silu(x, packed, fused := np.zeros((19, 52), np.float32), norm_weight=norm, eps=1e-6)
    kernels.linear(x, packed, gate_up := np.zeros((19, 104), np.float32), norm_weight=norm, eps=1e-6)
    kernels.silu_times(gate_up, apart := np.zeros((19, 52), np.float32))
    assert np.array_equal(fused, apart)
    assert np.abs(fused).max() > 0


def broken(changes: list[Change], **replaced: object) -> list[Change]:
    return [changes[0], dataclasses.replace(changes[1], **replaced)]


def test_factors_that_do_not_fit_are_refused(make_changes, make_weight, kernels):
    good = make_changes(WeightType.F32, 0)
    for bad in (
        [],
        broken(good, up=make_weight(WeightType.F32, 50, 17)),
        broken(good, down=make_weight(WeightType.F32, 18, WIDTH + 1)),
        broken(good, down=make_weight(WeightType.Q8_0, 18, 96)),
        broken(good, first_column=32),
        broken(good, first_column=OUT - 49),
        broken(good, first_column=1 << 40),
        broken(good, down=dataclasses.replace(good[1].down, shape=(18, WIDTH, 1))),
        broken(good, up=dataclasses.replace(good[1].up, data=good[1].up.data[::2])),
    ):
        with pytest.raises(ValueError, match="pack_lora: "):
            kernels.pack_lora(bad, OUT)


@pytest.mark.parametrize("rows", [(3, 2), (-1, 2), (0, 9), (1, 3)], ids=str)
def test_rows_beyond_the_batch_or_twice_are_refused(rows, make_changes, kernels):
    packed = kernels.pack_lora(make_changes(WeightType.F32, 0), OUT)
    out = np.zeros((8, OUT), np.float32)
    with pytest.raises(ValueError, match="add_lora: rows"):
        kernels.add_lora(random_rows(8, WIDTH), [(0, 2, packed), (*rows, packed)], out)
    assert not out.any()


def test_arrays_and_adapters_of_other_sizes_are_refused(make_changes, make_weight, kernels):
    packed = kernels.pack_lora(make_changes(WeightType.F32, 0), OUT)
    wider = kernels.pack_lora(make_changes(WeightType.F32, 0), OUT + 1)
    x, out = random_rows(4, WIDTH), np.zeros((4, OUT), np.float32)
    for arguments, options in (
        ((random_rows(4, WIDTH + 1), [(0, 1, packed)], out), {}),
        ((x, [(0, 1, packed)], np.zeros((4, OUT + 1), np.float32)), {}),
        ((x, [(0, 1, packed)], np.zeros((3, OUT), np.float32)), {}),
        ((x, [(0, 1, packed)], out), {"norm_weight": np.zeros(WIDTH - 1, np.float32)}),
        ((x, [(0, 1, packed), (1, 2, wider)], out), {}),
    ):
        with pytest.raises(ValueError, match="add_lora: "):
            kernels.add_lora(*arguments, **options)
    with pytest.raises(ValueError, match="silu_times: "):
        kernels.silu_times(np.zeros((2, 7), np.float32), np.zeros((2, 3), np.float32))


def test_factors_packed_by_other_kernels_are_refused(make_changes):
    native, reference = load_kernels(1), load_kernels(1, "reference")
    for user, packer in ((native, reference), (reference, native)):
        packed = packer.pack_lora(make_changes(WeightType.F32, 0), OUT)
        with pytest.raises(ValueError, match=r"add_lora: .*other kernels"):
            user.add_lora(random_rows(2, WIDTH), [(0, 1, packed)], np.zeros((2, OUT), np.float32))
