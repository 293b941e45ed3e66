"""What a set of kernels must offer; models and tests know the implementations only by these protocols.

Shapes: T new tokens of all sequences in a row, B sequences, D input and O output features of a matrix, F feed-forward
width, N query and K key/value heads of width H, W = (N + 2K)·H, X = N·H, C blocks. All arrays are C-contiguous.

Promises of every implementation: a row's result does not depend on the other rows, on T or on the number of threads;
wrong shapes, types, layouts and out-of-range indices raise `ValueError` that names the operation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np

from qwenstack.core.weight_type import WeightType

Isa: TypeAlias = Literal["avx512", "avx2", "neon", "scalar"]
"""Instruction sets that the C++ kernels are built for; all give the same bits."""
ActivationBits: TypeAlias = Literal[8, 16]
"""How finely activations are rounded where they meet quantised weights."""


class RawWeight(Protocol):
    """A matrix as a file stores it."""

    @property
    def weight_type(self) -> WeightType:
        """How the values are stored."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """`(out_features, in_features)`."""
        ...

    @property
    def data(self) -> np.ndarray:
        """`[out_features, row_bytes]` uint8."""
        ...


class PackedLinear(Protocol):
    """One or more matrices of equal `in_features`, stacked and laid out for one implementation of `Kernels`."""

    @property
    def in_features(self) -> int:
        """D, the width of an input row."""
        ...

    @property
    def out_features(self) -> int:
        """O, the rows of all stacked matrices together."""
        ...

    @property
    def num_bytes(self) -> int:
        """Memory that the packed weights take."""
        ...


Expert: TypeAlias = tuple[PackedLinear, PackedLinear]
"""One expert's gate and up matrix, packed together, and its down matrix."""


class LoraMatrix(Protocol):
    """The low-rank change of one of the stacked matrices: `scale · up @ down`."""

    @property
    def down(self) -> RawWeight:
        """`(rank, in_features)`, a float type; PEFT's A."""
        ...

    @property
    def up(self) -> RawWeight:
        """`(out_features, rank)`, a float type; PEFT's B."""
        ...

    @property
    def scale(self) -> float:
        """What the product of both is multiplied by."""
        ...

    @property
    def first_column(self) -> int:
        """Where the matrix's outputs begin among those of all stacked matrices."""
        ...


class PackedLora(Protocol):
    """One adapter's changes of the stacked matrices of one layer, laid out for one implementation of `Kernels`."""

    @property
    def in_features(self) -> int:
        """D, the width of an input row."""
        ...

    @property
    def out_features(self) -> int:
        """O, the rows of all stacked matrices together, changed or not."""
        ...

    @property
    def num_bytes(self) -> int:
        """Memory that the packed factors take."""
        ...


LoraRows: TypeAlias = tuple[int, int, PackedLora]
"""Rows of a batch, from the first to before the second number, and what changes them."""


Place: TypeAlias = Literal["qkv", "output", "gate_up", "down"]
"""The products of a layer; stacked matrices are one product."""
LayerLora: TypeAlias = Mapping[Place, Sequence[LoraRows]]
"""The rows of a batch that an adapter changes, in each product of one layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseLayer:
    """The weights of one decoder layer without experts; norms are float32."""

    input_norm_D: np.ndarray
    qkv: PackedLinear
    q_norm_H: np.ndarray | None
    k_norm_H: np.ndarray | None
    output: PackedLinear
    mlp_norm_D: np.ndarray
    gate_up: PackedLinear
    """Packed from two matrices of equal size."""
    down: PackedLinear


class RecordedLayers(Protocol):
    """All layers of a decoder, tied to the caches of their keys and values."""

    def run(
        self,
        x_TD: np.ndarray,
        *,
        cos_T_half: np.ndarray,
        sin_T_half: np.ndarray,
        slot_mapping: np.ndarray,
        query_start: np.ndarray,
        kv_len: np.ndarray,
        block_table: np.ndarray,
        lora: Sequence[LayerLora],
        activation_bits: ActivationBits,
    ) -> None:
        """Run x through all layers, in its place: to the bit what the operations give one by one.

        `lora` is empty, or has what adapters change in each layer.

        Shapes: as in `rope_and_write_kv` and `attend`.
        """
        ...


class Kernels(Protocol):
    """The operations of a decoder layer."""

    @property
    def activation_bits(self) -> ActivationBits:
        """How finely activations are rounded."""
        ...

    @property
    def name(self) -> str:
        """The implementation and its instruction set, as `doctor` prints it."""
        ...

    def with_activation_bits(self, activation_bits: ActivationBits) -> Kernels:
        """Return the same kernels, sharing threads and packed weights, that round activations this finely.

        8 rounds the activations that meet quantised weights to int8; 16 also keeps, rounded again, what that took
        away. It costs nothing: each forward pass may choose.
        """
        ...

    def pack(self, weights: Sequence[RawWeight], bias: np.ndarray | None = None) -> PackedLinear:
        """Stack matrices (q, k, v; gate, up) for `linear`; their types may differ.

        Quantised matrices keep their codes and are multiplied with activations rounded to int8 in groups of 32; float
        matrices keep their type and are multiplied in float32.

        Shapes: `bias` `[O]` float32.

        Raises:
            ValueError: input widths differ, the width is no whole number of blocks, or the bytes do not fit the shape.
        """
        ...

    def linear(
        self,
        x_TD: np.ndarray,
        packed: PackedLinear,
        out_TO: np.ndarray,
        *,
        norm_weight: np.ndarray | None = None,
        eps: float = 0.0,
        accumulate: bool = False,
    ) -> None:
        """Write `norm(x) @ W.T + bias` to `out_TO`, or add it there.

        Shapes: `x_TD`, `out_TO` and `norm_weight` `[D]` float32. Without `norm_weight` x is taken as it is.
        """
        ...

    def gate_up_silu(
        self,
        x_TD: np.ndarray,
        packed: PackedLinear,
        out_TF: np.ndarray,
        *,
        norm_weight: np.ndarray | None = None,
        eps: float = 0.0,
    ) -> None:
        """Write `silu(gate(norm(x))) · up(norm(x))`; `packed` was made of two matrices, gate and up."""
        ...

    def silu_times(self, gate_up_TG: np.ndarray, out_TF: np.ndarray) -> None:
        """Write `silu(gate) · up`, what `gate_up_silu` does after its products, to the bit.

        Shapes: `gate_up_TG` `[T, 2F]` float32, in each row the F gates first.
        """
        ...

    def add_experts(
        self,
        x_TD: np.ndarray,
        experts: Sequence[Expert],
        chosen_Tk: np.ndarray,
        weights_Tk: np.ndarray,
        out_TD: np.ndarray,
    ) -> None:
        """Add `weight · down(silu(gate(x)) · up(x))` of each of a token's experts, in the order of the experts.

        A token's sum does not depend on the other tokens.

        Shapes: `x_TD` and `out_TD` float32, not the same array; `chosen_Tk` int64, each an index of `experts`;
            `weights_Tk` float32.
        """
        ...

    def pack_lora(self, matrices: Sequence[LoraMatrix], out_features: int) -> PackedLora:
        """Copy an adapter's factors into the layout that `add_lora` reads; matrices in the order of their columns."""
        ...

    def add_lora(
        self,
        x_TD: np.ndarray,
        rows: Sequence[LoraRows],
        out_TO: np.ndarray,
        *,
        norm_weight: np.ndarray | None = None,
        eps: float = 0.0,
    ) -> None:
        """Add `up @ (scale · down @ norm(x))` to the rows that have an adapter; the others stay as they are.

        Sums are float32 and activations are never rounded. `rows` are disjoint and ascending.

        Source: Hu et al. 2021, arXiv:2106.09685, section 4.1; many adapters in one batch as in Chen et al. 2023,
            arXiv:2310.18547.
        """
        ...

    def rms_norm(self, x_TD: np.ndarray, weight_D: np.ndarray, eps: float, out_TD: np.ndarray) -> None:
        """Write `x / sqrt(mean(x²) + eps) · weight`; `out_TD` may be `x_TD` itself."""
        ...

    def rope_and_write_kv(
        self,
        qkv_TW: np.ndarray,
        *,
        num_heads: int,
        num_kv_heads: int,
        q_norm_H: np.ndarray | None,
        k_norm_H: np.ndarray | None,
        eps: float,
        cos_T_half: np.ndarray,
        sin_T_half: np.ndarray,
        slot_mapping: np.ndarray,
        k_cache: np.ndarray,
        v_cache: np.ndarray,
    ) -> None:
        """Turn queries and keys to their positions, in halves, and put keys and values into the cache.

        Shapes: `qkv_TW` float32, whose queries are replaced and whose keys and values are only read; cosines and
            sines `[T, H/2]` float32; `slot_mapping` `[T]` int64, block · block_size + offset, each slot at most once;
            caches `[C, K, block_size, H]` float32, float16, or uint16 that holds bfloat16, or int8 whose rows are
            wider (`kv_rows.row_width`). With `q_norm_H` or `k_norm_H` each head is RMS-normalised first.
        """
        ...

    def attend(
        self,
        qkv_TW: np.ndarray,
        *,
        num_heads: int,
        num_kv_heads: int,
        k_cache: np.ndarray,
        v_cache: np.ndarray,
        query_start: np.ndarray,
        kv_len: np.ndarray,
        block_table: np.ndarray,
        scale: float,
        out_TX: np.ndarray,
    ) -> None:
        """Causal grouped-query attention over the blocks of each sequence.

        Shapes: sequence b's queries are the rows `query_start[b]:query_start[b+1]` of `qkv_TW` (`query_start` `[B+1]`
            int32) and the last of its `kv_len[b]` positions (`[B]` int32), whose keys and values live in the blocks
            `block_table[b]` (`[B, C]` int32); `out_TX` `[T, N·H]` float32.

        Source: Ainslie et al. 2023, arXiv:2305.13245, §2.2; blocks as in Kwon et al. 2023, arXiv:2309.06180, §4.1.
        """
        ...

    def record_layers(
        self,
        layers: Sequence[DenseLayer],
        caches: Sequence[tuple[np.ndarray, np.ndarray]],
        *,
        num_heads: int,
        num_kv_heads: int,
        eps: float,
        scale: float,
    ) -> RecordedLayers | None:
        """Join all layers into one operation, which saves the time between theirs; None: these kernels have no such.

        Shapes: for each layer its keys and values, as in `attend`. What is passed is kept alive, not copied.
        """
        ...
