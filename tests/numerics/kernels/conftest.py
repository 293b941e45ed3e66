"""Random weights of every storage type, and every implementation of the kernels on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from qwenstack.core.weight_type import WeightType
from qwenstack.kernels import Kernels, load_kernels, supported_isas
from qwenstack.kernels.dequantize import FLOAT16_OFFSETS


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A matrix as a file would store it."""

    weight_type: WeightType
    shape: tuple[int, int]
    data: np.ndarray


MakeWeight = Callable[..., Weight]


@pytest.fixture
def make_weight() -> MakeWeight:
    """A factory `(weight_type, rows, columns, seed=0)` of random matrices: every bit pattern but wild scales."""

    def make(weight_type: WeightType, rows: int, columns: int, seed: int = 0) -> Weight:
        rng = np.random.default_rng(seed)
        if weight_type.is_float:
            values = rng.normal(size=(rows, columns)).astype(np.float32)
            if weight_type is WeightType.BF16:
                stored = (values.view(np.uint32) >> 16).astype(np.uint16)
            else:
                stored = values.astype(np.float32 if weight_type is WeightType.F32 else np.float16)
            data = stored.view(np.uint8).reshape(rows, -1)
        else:
            data = rng.integers(0, 256, (rows, weight_type.row_bytes(columns)), np.uint8)
            blocks = data.reshape(-1, weight_type.block_bytes)
            for offset in FLOAT16_OFFSETS[weight_type]:
                scales = rng.normal(scale=0.05, size=(len(blocks), 1)).astype(np.float16)
                blocks[:, offset : offset + 2] = scales.view(np.uint8)
        return Weight(weight_type=weight_type, shape=(rows, columns), data=data)

    return make


@pytest.fixture(scope="session")
def native() -> dict[str, Kernels]:
    """The C++ kernels of each instruction set that this processor runs, on two threads."""
    return {isa: load_kernels(2, isa) for isa in supported_isas()}


@pytest.fixture(scope="session", params=["reference", *supported_isas()])
def kernels(request: pytest.FixtureRequest, native: dict[str, Kernels]) -> Kernels:
    """Each implementation in turn."""
    return native.get(request.param) or load_kernels(1, "reference")
