"""LoRA adapters beside a decoder: packed for the kernels and added row by row, or merged into the weights for good.

Served beside the weights, each sequence of a batch may have its own adapter, and none is slower to change than a name.
Merged, a model has one adapter and costs nothing more to run, but a quantised matrix becomes a float16 one.

Source: Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwenstack.core.errors import ModelFormatError
from qwenstack.core.weight_type import WeightType
from qwenstack.hub.peft import LoraFactors, PeftAdapter, read_adapter
from qwenstack.hub.stored_tensor import StoredTensor
from qwenstack.kernels import Kernels, LayerLora, LoraRows, PackedLora, Place, dequantize
from qwenstack.kernels.dequantize import float32_to_bfloat16
from qwenstack.models.config import ModelConfig
from qwenstack.models.weights import WeightReader

_MODULE = re.compile(r"model\.layers\.(\d{1,4})\.([a-z0-9_.]+)")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoraAdapter:
    """An adapter that the kernels can apply; it may serve any number of sequences at a time."""

    digest: str
    """SHA-256 of its files: what a cache of keys and values must know it by."""
    max_rank: int
    num_bytes: int
    layers: tuple[Mapping[Place, PackedLora], ...]
    """For each layer the products that change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpans:
    """Which rows of a batch have an adapter: first row, end, adapter; ascending and disjoint."""

    spans: tuple[tuple[int, int, LoraAdapter], ...]

    @classmethod
    def of(cls, query_start: np.ndarray, adapters: Sequence[LoraAdapter | None]) -> AdapterSpans:
        """Join neighbouring sequences of one adapter.

        Shapes: `query_start` `[B+1]`, and B adapters, or none at all for a batch without.
        """
        assert not adapters or len(adapters) == len(query_start) - 1
        spans: list[tuple[int, int, LoraAdapter]] = []
        for adapter, first, end in zip(adapters, query_start[:-1].tolist(), query_start[1:].tolist(), strict=False):
            if adapter is None:
                continue
            if spans and spans[-1][1] == first and spans[-1][2] is adapter:
                first = spans.pop()[0]
            spans.append((first, end, adapter))
        return cls(spans=tuple(spans))

    def in_layers(self, num_layers: int) -> list[LayerLora]:
        """Return the rows to change in each product of each layer; an empty list if there are none."""
        return [self._in_layer(index) for index in range(num_layers)] if self.spans else []

    def _in_layer(self, index: int) -> LayerLora:
        rows: defaultdict[Place, list[LoraRows]] = defaultdict(list)
        for first, end, adapter in self.spans:
            for place, packed in adapter.layers[index].items():
                rows[place].append((first, end, packed))
        return rows


def load_adapter(
    path: Path, config: ModelConfig, kernels: Kernels, *, factor_type: WeightType | None = None
) -> LoraAdapter:
    """Read a PEFT folder and pack it for the kernels.

    Args:
        path: the folder.
        config: the model that the adapter was trained for.
        kernels: those of the decoder that will run it.
        factor_type: a float type to store the factors in; None keeps the file's. A step reads every factor of every
            adapter in its batch: over quantised weights float16 is as good as float32 and twice as fast.

    Raises:
        ModelFormatError: as `read_adapter`, or the adapter is for another model, or for parts that take none.
    """
    adapter = read_adapter(path)
    layers: list[defaultdict[Place, list[_PlacedFactors]]] = [
        defaultdict(list) for _ in range(config.num_hidden_layers)
    ]
    for module, factors in adapter.factors.items():
        index, home = _find_home(adapter, module, config)
        stored = _in_type(adapter, module, factors, factor_type)
        layers[index][home.place].append(
            _PlacedFactors(down=stored.down, up=stored.up, scale=stored.scale, first_column=home.first_column)
        )
    widths = _out_features(config)
    packed: tuple[Mapping[Place, PackedLora], ...] = tuple(
        {
            place: kernels.pack_lora(sorted(matrices, key=lambda matrix: matrix.first_column), widths[place])
            for place, matrices in layer.items()
        }
        for layer in layers
    )
    return LoraAdapter(
        digest=adapter.digest,
        max_rank=max(factors.rank for factors in adapter.factors.values()),
        num_bytes=sum(lora.num_bytes for layer in packed for lora in layer.values()),
        layers=packed,
    )


class MergedReader(WeightReader):
    """The tensors of a checkpoint with an adapter added to them: W + scale · up @ down, computed in float32.

    A float matrix keeps its type. A quantised one becomes float16, because rounding the sum to a few bits again would
    lose much of what was trained: 2 bytes a weight in the place of 0.6 to 1.1, in the matrices that change. Matrices
    are made when they are asked for, one at a time.
    """

    def __init__(self, base: WeightReader, adapter: PeftAdapter, config: ModelConfig) -> None:
        """Check that the adapter fits.

        Raises:
            ModelFormatError: the adapter is for another model, or for parts that take none.
        """
        self._tensors = dict(base.tensors)
        self._read = []
        self.weight_format = base.weight_format
        self._adapter = adapter
        for module in adapter.factors:
            _find_home(adapter, module, config)

    def _get(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        """Return a tensor, changed if the adapter changes it.

        Raises:
            ModelFormatError: it is missing or has another shape, or the sum does not fit its type.
        """
        stored = super()._get(name, shape)
        factors = self._adapter.factors.get(name.removesuffix(".weight"))
        if factors is None:
            return stored
        delta = _floats(factors.up) @ _floats(factors.down) * np.float32(factors.scale)
        merged = dequantize(stored.data, stored.weight_type) + delta
        return _stored_as(stored, merged, _merged_type(stored.weight_type), f"Merging {str(self._adapter.path)!r}")

    def _type_before_loading(self, name: str, tensor: StoredTensor) -> WeightType:
        is_changed = name.removesuffix(".weight") in self._adapter.factors
        return _merged_type(tensor.weight_type) if is_changed else tensor.weight_type


def merge_adapter(path: Path, reader: WeightReader, config: ModelConfig) -> MergedReader:
    """Return the checkpoint's tensors with the PEFT adapter of a folder added.

    Raises:
        ModelFormatError: as `read_adapter` and `MergedReader`.
    """
    return MergedReader(reader, read_adapter(path), config)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _PlacedFactors:
    """A matrix's factors and its place in a product: what `Kernels.pack_lora` takes."""

    down: StoredTensor
    up: StoredTensor
    scale: float
    first_column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Home:
    """Where a module of a layer is computed."""

    place: Place
    first_column: int
    out_features: int
    in_features: int


def _homes(config: ModelConfig) -> Mapping[str, _Home]:
    width, ffn, q, kv = config.hidden_size, config.intermediate_size, config.q_size, config.kv_size
    return {
        "self_attn.q_proj": _Home(place="qkv", first_column=0, out_features=q, in_features=width),
        "self_attn.k_proj": _Home(place="qkv", first_column=q, out_features=kv, in_features=width),
        "self_attn.v_proj": _Home(place="qkv", first_column=q + kv, out_features=kv, in_features=width),
        "self_attn.o_proj": _Home(place="output", first_column=0, out_features=width, in_features=q),
        "mlp.gate_proj": _Home(place="gate_up", first_column=0, out_features=ffn, in_features=width),
        "mlp.up_proj": _Home(place="gate_up", first_column=ffn, out_features=ffn, in_features=width),
        "mlp.down_proj": _Home(place="down", first_column=0, out_features=width, in_features=ffn),
    }


def module_shapes(config: ModelConfig) -> Mapping[str, tuple[int, int]]:
    """Return the modules of a dense layer that take an adapter, with their `(out_features, in_features)`."""
    return {module: (home.out_features, home.in_features) for module, home in _homes(config).items()}


def _out_features(config: ModelConfig) -> Mapping[Place, int]:
    return {
        "qkv": config.q_size + 2 * config.kv_size,
        "output": config.hidden_size,
        "gate_up": 2 * config.intermediate_size,
        "down": config.hidden_size,
    }


def _find_home(adapter: PeftAdapter, module: str, config: ModelConfig) -> tuple[int, _Home]:
    """Return the layer and the place of a module, whose factors must have its sizes."""
    path = str(adapter.path)
    match = _MODULE.fullmatch(module)
    home = _homes(config).get(match[2]) if match else None
    if match is None or home is None:
        if match is not None and match[2].startswith("mlp."):
            raise ModelFormatError(
                f"The adapter {path!r} changes {module!r}; experts and their routers take no adapters here. "
                "Train one whose 'target_modules' are the projections of the attention."
            )
        raise ModelFormatError(
            f"The adapter {path!r} changes {module!r}; only the linear layers inside the decoder layers take adapters: "
            f"{', '.join(_homes(config))}."
        )
    index = int(match[1])
    if index >= config.num_hidden_layers:
        raise ModelFormatError(
            f"The adapter {path!r} changes {module!r}; this model has {config.num_hidden_layers} layers. "
            "Take the adapter of this model."
        )
    if match[2].startswith("mlp.") and config.is_sparse(index):
        raise ModelFormatError(f"The adapter {path!r} changes {module!r}, which is a mixture of experts in this model.")
    factors = adapter.factors[module]
    sizes = [factors.up.shape[0], factors.down.shape[1]]
    if sizes != [home.out_features, home.in_features]:
        raise ModelFormatError(
            f"The adapter {path!r} changes {module!r} as a matrix of {sizes}; this model's has "
            f"{[home.out_features, home.in_features]}. It was trained for another model."
        )
    return index, home


def _in_type(adapter: PeftAdapter, module: str, factors: LoraFactors, factor_type: WeightType | None) -> LoraFactors:
    converted: dict[str, StoredTensor] = {}
    for name, factor in (("down", factors.down), ("up", factors.up)):
        source = f"The adapter {str(adapter.path)!r}, {module!r}"
        converted[name] = _stored_as(factor, _floats(factor), factor_type or factor.weight_type, source)
    return dataclasses.replace(factors, **converted)


def _floats(factor: StoredTensor) -> np.ndarray:
    return dequantize(factor.data, factor.weight_type)


def _merged_type(weight_type: WeightType) -> WeightType:
    return weight_type if weight_type.is_float else WeightType.F16


def _stored_as(tensor: StoredTensor, values: np.ndarray, weight_type: WeightType, source: str) -> StoredTensor:
    """Store float32 values as a float type.

    Raises:
        ModelFormatError: some are not finite, or not in this type.
    """
    with np.errstate(over="ignore"):
        stored = {
            WeightType.F32: lambda: values,
            WeightType.F16: lambda: values.astype(np.float16),
            WeightType.BF16: lambda: float32_to_bfloat16(values),
        }[weight_type]()
    is_finite = np.isfinite(stored if weight_type is not WeightType.BF16 else values)
    if not is_finite.all():
        raise ModelFormatError(
            f"{source}: {np.count_nonzero(~is_finite)} values are not finite as {weight_type.name}; "
            "the adapter is damaged or its training has diverged."
        )
    data = np.ascontiguousarray(stored).view(np.uint8).reshape(values.shape[0], -1)
    return dataclasses.replace(tensor, weight_type=weight_type, data=data)
