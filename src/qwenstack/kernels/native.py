"""The C++ kernels behind the `Kernels` protocol.

All arithmetic and the checks of arrays are in the extension module `_native`, whose sources are in `csrc/`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import get_args

import numpy as np

from qwenstack.kernels import _native
from qwenstack.kernels.checks import check_pack, check_pack_lora
from qwenstack.kernels.protocol import (
    ActivationBits,
    DenseLayer,
    Expert,
    Isa,
    Kernels,
    LayerLora,
    LoraMatrix,
    LoraRows,
    PackedLinear,
    PackedLora,
    Place,
    RawWeight,
    RecordedLayers,
)


class NativeKernels:
    """`Kernels` in C++ on an own pool of threads; the calling thread is one of them.

    One operation runs at a time; a second caller waits.

    Args:
        num_threads: threads that share the work, 1 to 256.
        isa: the instruction set; None takes the best that the processor has. All give the same bits.
        activation_bits: 8 rounds the activations that meet quantised weights to int8; 16 also keeps, rounded again,
            what that took away, at twice the work.

    Raises:
        ValueError: `num_threads` is out of range, or the processor lacks the instruction set.
    """

    def __init__(self, num_threads: int, isa: Isa | None = None, *, activation_bits: ActivationBits = 8) -> None:
        """Start the threads."""
        self.isa: Isa = isa if isa is not None else supported_isas()[0]
        self.num_threads = num_threads
        self.activation_bits: ActivationBits = activation_bits
        self._context = _native.Context(num_threads, self.isa)

    @property
    def name(self) -> str:
        """The implementation and its instruction set."""
        return f"native ({self.isa}, {self.num_threads} threads)"

    def with_activation_bits(self, activation_bits: ActivationBits) -> Kernels:
        """See `Kernels.with_activation_bits`."""
        kernels = copy.copy(self)
        kernels.activation_bits = activation_bits
        return kernels

    def pack(self, weights: Sequence[RawWeight], bias: np.ndarray | None = None) -> PackedLinear:
        """See `Kernels.pack`."""
        check_pack(weights, bias)
        return self._context.pack([_matrix(weight) for weight in weights], bias)

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
        """See `Kernels.linear`."""
        has_16_bits = self.activation_bits == 16
        self._context.linear(x_TD, _own(packed, "linear"), out_TO, norm_weight, eps, accumulate, has_16_bits)

    def gate_up_silu(
        self,
        x_TD: np.ndarray,
        packed: PackedLinear,
        out_TF: np.ndarray,
        *,
        norm_weight: np.ndarray | None = None,
        eps: float = 0.0,
    ) -> None:
        """See `Kernels.gate_up_silu`."""
        has_16_bits = self.activation_bits == 16
        self._context.gate_up_silu(x_TD, _own(packed, "gate_up_silu"), out_TF, norm_weight, eps, has_16_bits)

    def add_experts(
        self,
        x_TD: np.ndarray,
        experts: Sequence[Expert],
        chosen_Tk: np.ndarray,
        weights_Tk: np.ndarray,
        out_TD: np.ndarray,
    ) -> None:
        """See `Kernels.add_experts`."""
        own = [(_own(gate_up, "add_experts"), _own(down, "add_experts")) for gate_up, down in experts]
        self._context.add_experts(x_TD, own, chosen_Tk, weights_Tk, out_TD, self.activation_bits == 16)

    def silu_times(self, gate_up_TG: np.ndarray, out_TF: np.ndarray) -> None:
        """See `Kernels.silu_times`."""
        self._context.silu_times(gate_up_TG, out_TF)

    def pack_lora(self, matrices: Sequence[LoraMatrix], out_features: int) -> PackedLora:
        """See `Kernels.pack_lora`."""
        check_pack_lora(matrices, out_features)
        factors = [(_matrix(matrix.down), _matrix(matrix.up), matrix.scale, matrix.first_column) for matrix in matrices]
        return self._context.pack_lora(factors, out_features)

    def add_lora(
        self,
        x_TD: np.ndarray,
        rows: Sequence[LoraRows],
        out_TO: np.ndarray,
        *,
        norm_weight: np.ndarray | None = None,
        eps: float = 0.0,
    ) -> None:
        """See `Kernels.add_lora`."""
        self._context.add_lora(x_TD, _own_rows(rows), out_TO, norm_weight, eps)

    def rms_norm(self, x_TD: np.ndarray, weight_D: np.ndarray, eps: float, out_TD: np.ndarray) -> None:
        """See `Kernels.rms_norm`."""
        self._context.rms_norm(x_TD, weight_D, eps, out_TD)

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
        """See `Kernels.rope_and_write_kv`."""
        self._context.rope_and_write_kv(
            qkv_TW,
            num_heads,
            num_kv_heads,
            q_norm_H,
            k_norm_H,
            eps,
            cos_T_half,
            sin_T_half,
            slot_mapping,
            k_cache,
            v_cache,
        )

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
        """See `Kernels.attend`."""
        self._context.attend(
            qkv_TW, num_heads, num_kv_heads, k_cache, v_cache, query_start, kv_len, block_table, scale, out_TX
        )

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
        """See `Kernels.record_layers`."""
        weights = tuple(map(_layer, layers))
        recorded = self._context.record_layers(weights, tuple(caches), num_heads, num_kv_heads, eps, scale)
        return NativeLayers(self._context, recorded)


class NativeLayers:
    """`RecordedLayers` in C++."""

    def __init__(self, context: _native.Context, layers: _native.DecoderLayers) -> None:
        """Join the layers with the threads that run them."""
        self._context = context
        self._layers = layers

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
        """See `RecordedLayers.run`."""
        self._context.run_layers(
            self._layers,
            x_TD,
            cos_T_half,
            sin_T_half,
            slot_mapping,
            query_start,
            kv_len,
            block_table,
            [tuple(_own_rows(layer.get(place, ())) for place in get_args(Place)) for layer in lora],
            activation_bits == 16,
        )


def supported_isas() -> tuple[Isa, ...]:
    """Return the instruction sets that were built and that this processor has, the fastest first."""
    names = _native.supported_isas()
    return tuple(isa for isa in get_args(Isa) if isa in names)


def _own(packed: PackedLinear, operation: str) -> _native.PackedLinear:
    if not isinstance(packed, _native.PackedLinear):
        raise ValueError(f"{operation}: the weights were packed by other kernels ({type(packed).__name__}).")
    return packed


def _own_rows(rows: Sequence[LoraRows]) -> tuple[_native.LoraRows, ...]:
    return tuple((first, end, _own_lora(lora)) for first, end, lora in rows)


def _own_lora(packed: PackedLora) -> _native.PackedLora:
    if not isinstance(packed, _native.PackedLora):
        raise ValueError(f"add_lora: the factors were packed by other kernels ({type(packed).__name__}).")
    return packed


def _matrix(weight: RawWeight) -> tuple[int, int, int, np.ndarray]:
    return weight.weight_type.gguf_id, weight.shape[0], weight.shape[1], weight.data


def _layer(layer: DenseLayer) -> _native.LayerWeights:
    qkv, output, gate_up, down = (
        _own(packed, "record_layers") for packed in (layer.qkv, layer.output, layer.gate_up, layer.down)
    )
    return layer.input_norm_D, qkv, layer.q_norm_H, layer.k_norm_H, output, layer.mlp_norm_D, gate_up, down
