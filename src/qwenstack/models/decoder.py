"""The forward pass of Qwen2, Qwen2.5, Qwen3, Qwen3-MoE and Llama, over the kernels.

This file is the model: read `Decoder.forward` from the top. It knows shapes, order and weight names; how a product is
computed is the kernels' business, which tokens run when is the engine's.

Shapes: T new tokens of all sequences in a row, D model width, F feed-forward width, N query and K key/value heads of
width H, W = (N + 2K)·H, E experts, V vocabulary rows, R rows whose logits are wanted.
Source: Qwen3 technical report, arXiv:2505.09388, section 2; order and names of `modeling_qwen3.py` in transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwenstack.core.errors import ModelFormatError
from qwenstack.hub.stored_tensor import StoredTensor
from qwenstack.kernels import (
    ActivationBits,
    DenseLayer,
    Expert,
    Kernels,
    LayerLora,
    PackedLinear,
    RecordedLayers,
    dequantize,
)
from qwenstack.models.batch import KVCache, PackedBatch
from qwenstack.models.config import ExpertsConfig, ModelConfig
from qwenstack.models.lora import AdapterSpans
from qwenstack.models.rope import Rotary
from qwenstack.models.weights import WeightReader


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseMLP:
    """The feed-forward network of a dense layer."""

    norm_D: np.ndarray
    gate_up: PackedLinear
    down: PackedLinear

    def add_to(self, x_TD: np.ndarray, kernels: Kernels, eps: float, lora: LayerLora) -> None:
        """Add down(silu(gate(norm(x))) · up(norm(x))) to x."""
        hidden_TF = np.empty((len(x_TD), self.gate_up.out_features // 2), np.float32)
        if rows := lora.get("gate_up"):
            gate_up_TG = np.empty((len(x_TD), self.gate_up.out_features), np.float32)
            kernels.linear(x_TD, self.gate_up, gate_up_TG, norm_weight=self.norm_D, eps=eps)
            kernels.add_lora(x_TD, rows, gate_up_TG, norm_weight=self.norm_D, eps=eps)
            kernels.silu_times(gate_up_TG, hidden_TF)
        else:
            kernels.gate_up_silu(x_TD, self.gate_up, hidden_TF, norm_weight=self.norm_D, eps=eps)
        kernels.linear(hidden_TF, self.down, x_TD, accumulate=True)
        if rows := lora.get("down"):
            kernels.add_lora(hidden_TF, rows, x_TD)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseMLP:
    """The mixture of experts of a sparse layer: each token goes through the few experts that the router likes best."""

    norm_D: np.ndarray
    router: PackedLinear
    experts: Sequence[Expert]
    config: ExpertsConfig

    def add_to(self, x_TD: np.ndarray, kernels: Kernels, eps: float, lora: LayerLora) -> None:
        """Add the weighted answers of each token's experts to x; no adapter changes them."""
        assert not {"gate_up", "down"} & lora.keys()
        h_TD = np.empty_like(x_TD)
        kernels.rms_norm(x_TD, self.norm_D, eps, h_TD)
        logits_TE = np.empty((len(x_TD), len(self.experts)), np.float32)
        kernels.linear(h_TD, self.router, logits_TE)
        weights_Tk, chosen_Tk = route(logits_TE, self.config)
        kernels.add_experts(h_TD, self.experts, chosen_Tk, weights_Tk, x_TD)


def route(logits_TE: np.ndarray, config: ExpertsConfig) -> tuple[np.ndarray, np.ndarray]:
    """Choose each token's experts and their weights: softmax over all, the k largest, divided by their sum.

    Shapes: logits `[T, E]` float32; weights `[T, k]` float32 and expert indices `[T, k]` int64, largest first.
    """
    exp_TE = np.exp(logits_TE - logits_TE.max(axis=1, keepdims=True))
    probability_TE = exp_TE / exp_TE.sum(axis=1, keepdims=True)
    ranked_TE = np.argsort(-probability_TE, axis=1, kind="stable")
    chosen_Tk = np.ascontiguousarray(ranked_TE[:, : config.num_experts_per_tok])
    weights_Tk = np.take_along_axis(probability_TE, chosen_Tk, axis=1)
    if config.norm_topk_prob:
        weights_Tk = weights_Tk / weights_Tk.sum(axis=1, keepdims=True)
    return weights_Tk, chosen_Tk


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The weights of one decoder layer, packed for the kernels."""

    input_norm_D: np.ndarray
    qkv: PackedLinear
    q_norm_H: np.ndarray | None
    k_norm_H: np.ndarray | None
    output: PackedLinear
    mlp: DenseMLP | SparseMLP

    def as_dense(self) -> DenseLayer | None:
        """Return what `Kernels.record_layers` takes, if the layer has no experts."""
        if isinstance(self.mlp, SparseMLP):
            return None
        return DenseLayer(
            input_norm_D=self.input_norm_D,
            qkv=self.qkv,
            q_norm_H=self.q_norm_H,
            k_norm_H=self.k_norm_H,
            output=self.output,
            mlp_norm_D=self.mlp.norm_D,
            gate_up=self.mlp.gate_up,
            down=self.mlp.down,
        )


class Decoder:
    """A loaded model: token ids in, logits out; keys and values live in the cache that the caller passes."""

    def __init__(self, config: ModelConfig, reader: WeightReader, kernels: Kernels, *, has_head: bool = True) -> None:
        """Pack every weight for the kernels; without a head it gives no logits.

        Raises:
            ModelFormatError: a tensor is missing, has another shape, or a type that its place does not allow.
        """
        self.config = config
        self.kernels = kernels
        self._rotary = Rotary(config.head_dim, config.rope_theta, config.rope_scaling)
        self._embedding = reader.stored_matrix("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        self._layers = tuple(_load_layer(config, index, reader, kernels) for index in range(config.num_hidden_layers))
        self._norm_D = reader.vector("model.norm.weight", config.hidden_size)
        self._head = _load_head(config, reader, kernels) if has_head else None
        self._recording: tuple[KVCache, RecordedLayers | None] | None = None
        reader.release_pages()

    def forward(self, batch: PackedBatch, kv_cache: KVCache) -> np.ndarray:
        """Run the new tokens through all layers; their keys and values are in `kv_cache` afterwards.

        Shapes: result `[T, D]` float32, before the final norm.
        """
        x_TD = self._embed(batch.token_ids)
        cos_TH, sin_TH = self._rotary.at(batch.positions)
        lora = AdapterSpans.of(batch.query_start, batch.adapters).in_layers(len(self._layers))
        recorded = self._recorded_for(kv_cache)
        if recorded is None:
            self._run_layers(x_TD, cos_TH, sin_TH, batch, kv_cache, lora)
        else:
            recorded.run(
                x_TD,
                cos_T_half=cos_TH,
                sin_T_half=sin_TH,
                slot_mapping=batch.slot_mapping,
                query_start=batch.query_start,
                kv_len=batch.kv_len,
                block_table=batch.block_table,
                lora=lora,
                activation_bits=batch.activation_bits or self.kernels.activation_bits,
            )
        return x_TD

    def _run_layers(
        self,
        x_TD: np.ndarray,
        cos_TH: np.ndarray,
        sin_TH: np.ndarray,
        batch: PackedBatch,
        kv_cache: KVCache,
        lora: Sequence[LayerLora],
    ) -> None:
        """Run x through the layers, operation by operation; what `RecordedLayers.run` gives must be equal to it."""
        config, kernels = self.config, self._kernels_at(batch.activation_bits)
        qkv_TW = np.empty((len(x_TD), config.q_size + 2 * config.kv_size), np.float32)
        attended_TQ = np.empty((len(x_TD), config.q_size), np.float32)
        for index, (layer, (k_cache, v_cache)) in enumerate(zip(self._layers, kv_cache.layers, strict=True)):
            layer_lora: LayerLora = lora[index] if lora else {}
            kernels.linear(x_TD, layer.qkv, qkv_TW, norm_weight=layer.input_norm_D, eps=config.rms_norm_eps)
            if rows := layer_lora.get("qkv"):
                kernels.add_lora(x_TD, rows, qkv_TW, norm_weight=layer.input_norm_D, eps=config.rms_norm_eps)
            kernels.rope_and_write_kv(
                qkv_TW,
                num_heads=config.num_attention_heads,
                num_kv_heads=config.num_key_value_heads,
                q_norm_H=layer.q_norm_H,
                k_norm_H=layer.k_norm_H,
                eps=config.rms_norm_eps,
                cos_T_half=cos_TH,
                sin_T_half=sin_TH,
                slot_mapping=batch.slot_mapping,
                k_cache=k_cache,
                v_cache=v_cache,
            )
            kernels.attend(
                qkv_TW,
                num_heads=config.num_attention_heads,
                num_kv_heads=config.num_key_value_heads,
                k_cache=k_cache,
                v_cache=v_cache,
                query_start=batch.query_start,
                kv_len=batch.kv_len,
                block_table=batch.block_table,
                scale=config.attention_scale,
                out_TX=attended_TQ,
            )
            kernels.linear(attended_TQ, layer.output, x_TD, accumulate=True)
            if rows := layer_lora.get("output"):
                kernels.add_lora(attended_TQ, rows, x_TD)
            layer.mlp.add_to(x_TD, kernels, config.rms_norm_eps, layer_lora)

    def logits(
        self, x_RD: np.ndarray, activation_bits: ActivationBits | None = None, *, out_RV: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the logits `[R, V]` float32 of rows that `forward` gave for a batch of the same activation bits.

        They are written into `out_RV`, if there is one.
        """
        assert self._head is not None, "loaded with a head"
        logits_RV = np.empty((len(x_RD), self.config.vocab_size), np.float32) if out_RV is None else out_RV
        self._kernels_at(activation_bits).linear(
            np.ascontiguousarray(x_RD), self._head, logits_RV, norm_weight=self._norm_D, eps=self.config.rms_norm_eps
        )
        return logits_RV

    def final_norm(self, x_RD: np.ndarray) -> np.ndarray:
        """Return rows that `forward` gave behind the final norm, as models that embed want them, `[R, D]` float32."""
        hidden_RD = np.empty((len(x_RD), self.config.hidden_size), np.float32)
        self.kernels.rms_norm(np.ascontiguousarray(x_RD), self._norm_D, self.config.rms_norm_eps, hidden_RD)
        return hidden_RD

    def _recorded_for(self, kv_cache: KVCache) -> RecordedLayers | None:
        if self._recording is None or self._recording[0] is not kv_cache:
            self._recording = kv_cache, self._record(kv_cache)
        return self._recording[1]

    def _record(self, kv_cache: KVCache) -> RecordedLayers | None:
        layers = [dense for layer in self._layers if (dense := layer.as_dense())]
        if len(layers) < len(self._layers):
            return None
        return self.kernels.record_layers(
            layers,
            kv_cache.layers,
            num_heads=self.config.num_attention_heads,
            num_kv_heads=self.config.num_key_value_heads,
            eps=self.config.rms_norm_eps,
            scale=self.config.attention_scale,
        )

    def _kernels_at(self, activation_bits: ActivationBits | None) -> Kernels:
        return self.kernels if activation_bits is None else self.kernels.with_activation_bits(activation_bits)

    def _embed(self, token_ids: np.ndarray) -> np.ndarray:
        return dequantize(self._embedding.data[token_ids], self._embedding.weight_type)


def _load_head(config: ModelConfig, reader: WeightReader, kernels: Kernels) -> PackedLinear:
    name = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return _pack(kernels, [reader.matrix(name, config.vocab_size, config.hidden_size)])


def _load_layer(config: ModelConfig, index: int, reader: WeightReader, kernels: Kernels) -> Layer:
    prefix = f"model.layers.{index}"
    attention = f"{prefix}.self_attn"
    width = config.hidden_size
    qkv_sizes = {"q": config.q_size, "k": config.kv_size, "v": config.kv_size}
    qkv_bias = o_bias = None
    if config.qkv_bias:
        biases = [reader.vector(f"{attention}.{name}_proj.bias", size) for name, size in qkv_sizes.items()]
        qkv_bias = np.concatenate(biases)
    if config.o_bias:
        o_bias = reader.vector(f"{attention}.o_proj.bias", width)
    load_mlp = _load_sparse if config.is_sparse(index) else _load_dense
    layer = Layer(
        input_norm_D=reader.vector(f"{prefix}.input_layernorm.weight", width),
        qkv=_pack(
            kernels,
            [reader.matrix(f"{attention}.{name}_proj.weight", size, width) for name, size in qkv_sizes.items()],
            qkv_bias,
        ),
        q_norm_H=reader.vector(f"{attention}.q_norm.weight", config.head_dim) if config.qk_norm else None,
        k_norm_H=reader.vector(f"{attention}.k_norm.weight", config.head_dim) if config.qk_norm else None,
        output=_pack(kernels, [reader.matrix(f"{attention}.o_proj.weight", width, config.q_size)], o_bias),
        mlp=load_mlp(config, prefix, reader, kernels),
    )
    reader.release_pages()
    return layer


def _load_dense(config: ModelConfig, prefix: str, reader: WeightReader, kernels: Kernels) -> DenseMLP:
    gate_up, down = _load_gate_up_down(config, f"{prefix}.mlp", config.intermediate_size, reader, kernels)
    return DenseMLP(
        norm_D=reader.vector(f"{prefix}.post_attention_layernorm.weight", config.hidden_size),
        gate_up=gate_up,
        down=down,
    )


def _load_sparse(config: ModelConfig, prefix: str, reader: WeightReader, kernels: Kernels) -> SparseMLP:
    assert config.experts is not None
    experts: list[Expert] = []
    for index in range(config.experts.num_experts):
        name = f"{prefix}.mlp.experts.{index}"
        gate_up, down = _load_gate_up_down(config, name, config.experts.moe_intermediate_size, reader, kernels)
        experts.append((gate_up, down))
    router = reader.stored_matrix(f"{prefix}.mlp.gate.weight", config.experts.num_experts, config.hidden_size)
    return SparseMLP(
        norm_D=reader.vector(f"{prefix}.post_attention_layernorm.weight", config.hidden_size),
        router=_pack(kernels, [router]),
        experts=experts,
        config=config.experts,
    )


def _load_gate_up_down(
    config: ModelConfig, name: str, size: int, reader: WeightReader, kernels: Kernels
) -> tuple[PackedLinear, PackedLinear]:
    gate = reader.matrix(f"{name}.gate_proj.weight", size, config.hidden_size)
    up = reader.matrix(f"{name}.up_proj.weight", size, config.hidden_size)
    down = reader.matrix(f"{name}.down_proj.weight", config.hidden_size, size)
    return _pack(kernels, [gate, up]), _pack(kernels, [down])


def _pack(kernels: Kernels, tensors: Sequence[StoredTensor], bias: np.ndarray | None = None) -> PackedLinear:
    try:
        return kernels.pack(tensors, bias)
    except ValueError as error:
        names = ", ".join(f"`{tensor.name}`" for tensor in tensors)
        raise ModelFormatError(f"Tensors {names} cannot be used here: {error}") from error
