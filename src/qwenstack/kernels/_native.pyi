from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

# Norm before attention, qkv, norms of query and key heads, output; norm before the network, gate and up, down.
LayerWeights: TypeAlias = tuple[
    np.ndarray,
    PackedLinear,
    np.ndarray | None,
    np.ndarray | None,
    PackedLinear,
    np.ndarray,
    PackedLinear,
    PackedLinear,
]

def supported_isas() -> list[str]: ...

class PackedLinear:
    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...

class PackedLora:
    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...

LoraRows: TypeAlias = tuple[int, int, PackedLora]

class DecoderLayers: ...

class Context:
    def __init__(self, num_threads: int, isa: str) -> None: ...
    def pack(self, matrices: list[tuple[int, int, int, np.ndarray]], bias: np.ndarray | None) -> PackedLinear: ...
    def linear(
        self,
        x: np.ndarray,
        packed: PackedLinear,
        out: np.ndarray,
        norm_weight: np.ndarray | None,
        eps: float,
        accumulate: bool,
        has_16_bit_activations: bool,
    ) -> None: ...
    def gate_up_silu(
        self,
        x: np.ndarray,
        packed: PackedLinear,
        out: np.ndarray,
        norm_weight: np.ndarray | None,
        eps: float,
        has_16_bit_activations: bool,
    ) -> None: ...
    def add_experts(
        self,
        x: np.ndarray,
        experts: Sequence[tuple[PackedLinear, PackedLinear]],
        chosen: np.ndarray,
        weights: np.ndarray,
        out: np.ndarray,
        has_16_bit_activations: bool,
    ) -> None: ...
    def silu_times(self, gate_up: np.ndarray, out: np.ndarray) -> None: ...
    def pack_lora(
        self,
        matrices: list[tuple[tuple[int, int, int, np.ndarray], tuple[int, int, int, np.ndarray], float, int]],
        out_features: int,
    ) -> PackedLora: ...
    def add_lora(
        self,
        x: np.ndarray,
        rows: tuple[tuple[int, int, PackedLora], ...],
        out: np.ndarray,
        norm_weight: np.ndarray | None,
        eps: float,
    ) -> None: ...
    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float, out: np.ndarray) -> None: ...
    def rope_and_write_kv(
        self,
        qkv: np.ndarray,
        num_heads: int,
        num_kv_heads: int,
        q_norm: np.ndarray | None,
        k_norm: np.ndarray | None,
        eps: float,
        cos: np.ndarray,
        sin: np.ndarray,
        slot_mapping: np.ndarray,
        k_cache: np.ndarray,
        v_cache: np.ndarray,
    ) -> None: ...
    def attend(
        self,
        qkv: np.ndarray,
        num_heads: int,
        num_kv_heads: int,
        k_cache: np.ndarray,
        v_cache: np.ndarray,
        query_start: np.ndarray,
        kv_len: np.ndarray,
        block_table: np.ndarray,
        scale: float,
        out: np.ndarray,
    ) -> None: ...
    def record_layers(
        self,
        layers: tuple[LayerWeights, ...],
        caches: tuple[tuple[np.ndarray, np.ndarray], ...],
        num_heads: int,
        num_kv_heads: int,
        eps: float,
        scale: float,
    ) -> DecoderLayers: ...
    def run_layers(
        self,
        layers: DecoderLayers,
        x: np.ndarray,
        cos: np.ndarray,
        sin: np.ndarray,
        slot_mapping: np.ndarray,
        query_start: np.ndarray,
        kv_len: np.ndarray,
        block_table: np.ndarray,
        lora: list[tuple[Sequence[LoraRows], ...]],
        has_16_bit_activations: bool,
    ) -> None: ...
