"""Kernels with a stopwatch: how long each operation took on which weights, and how many bytes it had to read.

They wrap other kernels and compute nothing themselves, so a model that is loaded without them pays nothing for them.
Names of places come from the weights that are packed: a model packs what it multiplies with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from qwenstack.kernels.protocol import ActivationBits, Expert, Kernels, PackedLinear, RawWeight

_PLACES = {
    frozenset({"q_proj", "k_proj", "v_proj"}): "qkv",
    frozenset({"attn_q", "attn_k", "attn_v"}): "qkv",
    frozenset({"o_proj"}): "output",
    frozenset({"attn_output"}): "output",
    frozenset({"gate_proj", "up_proj"}): "gate/up",
    frozenset({"ffn_gate", "ffn_up"}): "gate/up",
    frozenset({"ffn_gate_exps", "ffn_up_exps"}): "gate/up",
    frozenset({"down_proj"}): "down",
    frozenset({"ffn_down"}): "down",
    frozenset({"ffn_down_exps"}): "down",
    frozenset({"gate"}): "router",
    frozenset({"ffn_gate_inp"}): "router",
    frozenset({"lm_head"}): "head",
    frozenset({"embed_tokens"}): "head",  # where the head shares the embedding's weights
    frozenset({"output"}): "head",
    frozenset({"token_embd"}): "head",
}
"""What the weights that are stacked in one product are called here: Hugging Face's names, GGUF's names."""


@dataclass(slots=True)
class KernelTally:
    """What one operation in one place came to."""

    num_calls: int = 0
    seconds: float = 0.0
    bytes_read: int = 0
    """Weights, and keys and values; not activations, which stay in the processor's caches."""


class ProfiledKernels:
    """Other kernels, timed: an attribute that is an operation there is the same operation here.

    `ProfiledKernels(kernels).as_kernels()` is what a model is loaded with.
    """

    def __init__(self, kernels: Kernels, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """Wrap kernels whose operations take their weights as `PackedLinear`s that `pack` made."""
        self._kernels = kernels
        self._clock = clock
        self._places: dict[int, str] = {}
        self._packed: list[PackedLinear] = []
        """Kept, so that no two ever have the same identity."""
        self._tallies: dict[str, KernelTally] = {}
        self._views: dict[ActivationBits, ProfiledKernels] = {}

    def as_kernels(self) -> Kernels:
        """Return this as what it behaves like: operations are looked up by name when they are called."""
        return cast("Kernels", self)

    @property
    def name(self) -> str:
        """The implementation that is wrapped."""
        return self._kernels.name

    def with_activation_bits(self, activation_bits: ActivationBits) -> Kernels:
        """See `Kernels.with_activation_bits`; what the view computes is measured here too."""
        if activation_bits not in self._views:
            view = ProfiledKernels(self._kernels.with_activation_bits(activation_bits), clock=self._clock)
            view._places, view._tallies, view._views = self._places, self._tallies, self._views
            self._views[activation_bits] = view
        return self._views[activation_bits].as_kernels()

    def pack(self, weights: Sequence[RawWeight], bias: np.ndarray | None = None) -> PackedLinear:
        """See `Kernels.pack`; remembers what the weights are called."""
        packed = self._kernels.pack(weights, bias)
        self._packed.append(packed)
        self._places[id(packed)] = _place(weights)
        return packed

    def add_experts(
        self,
        x_TD: np.ndarray,
        experts: Sequence[Expert],
        chosen_Tk: np.ndarray,
        weights_Tk: np.ndarray,
        out_TD: np.ndarray,
    ) -> None:
        """See `Kernels.add_experts`; only the experts that some token chose are read."""
        start = self._clock()
        self._kernels.add_experts(x_TD, experts, chosen_Tk, weights_Tk, out_TD)
        seconds = self._clock() - start
        read = [packed for index in np.unique(chosen_Tk) for packed in experts[int(index)]]
        self._add("add_experts", read, seconds, 0)

    def record_layers(self, *_: object, **__: object) -> None:
        """See `Kernels.record_layers`: operations that are measured run one by one."""

    def take_tallies(self) -> Mapping[str, KernelTally]:
        """Return what was measured since the last call, by operation and place, such as `linear down`."""
        tallies = dict(self._tallies)
        self._tallies.clear()  # the views add to the same ones
        return tallies

    def __getattr__(self, operation: str) -> object:
        compute: object = getattr(self._kernels, operation)
        if not callable(compute):
            return compute

        def timed(*args: object, **options: object) -> object:
            packed = [value for value in (*args, *options.values()) if id(value) in self._places]
            start = self._clock()
            result = compute(*args, **options)
            seconds = self._clock() - start
            self._add(operation, packed, seconds, _cache_bytes(options))
            return result

        self.__dict__[operation] = timed  # found without `__getattr__` from now on
        return timed

    def _add(self, operation: str, packed: Iterable[object], seconds: float, num_bytes: int) -> None:
        weights = cast("list[PackedLinear]", list(packed))
        label = " ".join([operation, *dict.fromkeys(self._places[id(weight)] for weight in weights)])
        tally = self._tallies.setdefault(label, KernelTally())
        tally.num_calls += 1
        tally.seconds += seconds
        tally.bytes_read += num_bytes + sum(weight.num_bytes for weight in weights)


def _place(weights: Sequence[RawWeight]) -> str:
    """Return how the product with these weights is called, from the second last part of their names."""
    names = [str(getattr(weight, "name", "")) for weight in weights]
    parts = [name.rpartition(".")[0].rpartition(".")[2] for name in names]
    return _PLACES.get(frozenset(parts), "+".join(dict.fromkeys(part for part in parts if part)) or "unnamed")


def _cache_bytes(options: Mapping[str, object]) -> int:
    """Return the keys and values that attention reads: those of every position, once for all queries of a sequence."""
    kv_len, k_cache = options.get("kv_len"), options.get("k_cache")
    if not isinstance(kv_len, np.ndarray) or not isinstance(k_cache, np.ndarray):
        return 0
    shape = cast("tuple[int, int, int, int]", k_cache.shape)
    _, num_kv_heads, _, head_dim = shape
    return int(kv_len.sum()) * 2 * num_kv_heads * head_dim * k_cache.itemsize
