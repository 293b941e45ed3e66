"""One set of weight names, Hugging Face's, whatever the file: GGUF tensors are renamed and put in the same order.

Two things differ in GGUF beyond names. Llama's query and key rows are stored for interleaved rotary embedding and are
put back into halves here; experts are stacked in one three-dimensional tensor and are cut apart here. Neither changes
a stored value: quantised rows move as whole rows.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping

import numpy as np

from qwenstack.core.errors import ModelFormatError
from qwenstack.core.weight_type import WeightType
from qwenstack.hub.checkpoint import Checkpoint
from qwenstack.hub.mapped_file import release_pages
from qwenstack.hub.stored_tensor import StoredTensor, stored_bytes
from qwenstack.kernels import dequantize
from qwenstack.models.config import ModelConfig
from qwenstack.models.weight_format import WeightFormat, convert, loaded_type

_TOP_LEVEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
}
_STACKED_EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
_LAYER_NAME = re.compile(r"blk\.(\d{1,4})\.([a-z_]{1,32})\.(weight|bias)")


def read_config(checkpoint: Checkpoint) -> ModelConfig:
    """Return the model's shape.

    Raises:
        ModelFormatError: the metadata are incomplete, or ask for what the decoder does not compute.
    """
    if checkpoint.format == "gguf":
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        return ModelConfig.from_gguf(checkpoint.metadata, shapes)
    return ModelConfig.from_hf(checkpoint.config)


class WeightReader:
    """The tensors of a checkpoint by Hugging Face's names, each with the shape that the configuration demands.

    Only matrices that are multiplied come in the format asked for: norms, biases, the embedding and routers stay as
    the file has them.
    """

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, weight_format: WeightFormat = "stored") -> None:
        """Rename what is there; nothing is copied but Llama's query and key rows.

        Raises:
            ModelFormatError: there are no tensors, or one has a shape that its name does not allow.
        """
        is_gguf = checkpoint.format == "gguf"
        self._tensors = dict(_hf_named(checkpoint.tensors, config) if is_gguf else _with_prefix(checkpoint.tensors))
        self._read: list[StoredTensor] = []
        if not self._tensors:
            raise ModelFormatError(f"{str(checkpoint.path)!r} holds no tensors of a model.")
        self.weight_format: WeightFormat = weight_format

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """The tensors as the file has them."""
        return self._tensors

    def matrix(self, name: str, out_features: int, in_features: int) -> StoredTensor:
        """Return a matrix in the format asked for.

        Raises:
            ModelFormatError: it is missing or has another shape.
        """
        return convert(self._get(name, (out_features, in_features)), self.weight_format)

    def stored_matrix(self, name: str, out_features: int, in_features: int) -> StoredTensor:
        """Return a matrix as the file has it: one that is looked up, or so small and decisive as a router.

        Raises:
            ModelFormatError: it is missing or has another shape.
        """
        return self._get(name, (out_features, in_features))

    def vector(self, name: str, size: int) -> np.ndarray:
        """Return a vector (a norm's weights, a bias) as float32 `[size]`.

        Raises:
            ModelFormatError: it is missing or has another shape.
        """
        tensor = self._get(name, (size,))
        return dequantize(tensor.data, tensor.weight_type).reshape(size)

    def _get(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ModelFormatError(f"The checkpoint has no tensor `{name}`.")
        if tuple(tensor.shape) != shape:
            raise ModelFormatError(
                f"Tensor `{name}` has shape {list(tensor.shape)}; the configuration asks {list(shape)}."
            )
        self._read.append(tensor)
        return tensor

    def release_pages(self) -> None:
        """Give back the memory of the file's pages that were read so far, once their contents are packed.

        Without it a model takes its size twice until the system wants the pages back.
        """
        for tensor in self._read:
            release_pages(tensor.data)
        self._read.clear()

    @property
    def prevailing_type(self) -> WeightType:
        """The type that most bytes of the weights have once they are loaded."""
        sizes: dict[WeightType, int] = {}
        for weight_type, num_bytes in self.loaded_sizes():
            sizes[weight_type] = sizes.get(weight_type, 0) + num_bytes
        return max(sizes, key=lambda weight_type: sizes[weight_type])

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors once they are loaded."""
        return sum(num_bytes for _, num_bytes in self.loaded_sizes())

    def loaded_sizes(self) -> Iterator[tuple[WeightType, int]]:
        """Return the type and the bytes of each tensor once it is loaded."""
        for tensor, weight_type in self._loaded_types():
            yield weight_type, _num_bytes(tensor, weight_type)

    @property
    def conversion_bytes(self) -> int:
        """Bytes of the largest matrix that is converted: it exists beside its packed form for a moment."""
        converted = [
            _num_bytes(tensor, weight_type)
            for tensor, weight_type in self._loaded_types()
            if weight_type is not tensor.weight_type
        ]
        return max(converted, default=0)

    def _loaded_types(self) -> Iterator[tuple[StoredTensor, WeightType]]:
        for name, tensor in self._tensors.items():
            weight_type = self._type_before_loading(name, tensor)
            if len(tensor.shape) == 2:
                weight_type = loaded_type(weight_type, tensor.shape[1], self.weight_format)
            yield tensor, weight_type

    def _type_before_loading(self, name: str, tensor: StoredTensor) -> WeightType:  # noqa: ARG002 - for those who merge
        return tensor.weight_type


def _num_bytes(tensor: StoredTensor, weight_type: WeightType) -> int:
    return tensor.data.nbytes if weight_type is tensor.weight_type else stored_bytes(weight_type, tensor.shape)


def _with_prefix(tensors: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    """Put `model.` before the names where a model was saved without its head, as Qwen3-Embedding was."""
    if "embed_tokens.weight" not in tensors:
        return tensors
    return {name if name.startswith("lm_head.") else f"model.{name}": tensor for name, tensor in tensors.items()}


def _hf_named(tensors: Mapping[str, StoredTensor], config: ModelConfig) -> Iterator[tuple[str, StoredTensor]]:
    for gguf_name, tensor in tensors.items():
        if gguf_name in _TOP_LEVEL:
            yield _TOP_LEVEL[gguf_name], tensor
            continue
        match = _LAYER_NAME.fullmatch(gguf_name)
        if match is None:
            continue
        layer, part, kind = match.groups()
        if part in _STACKED_EXPERTS:
            for expert, matrix in enumerate(_unstack(tensor)):
                yield f"model.layers.{layer}.mlp.experts.{expert}.{_STACKED_EXPERTS[part]}.{kind}", matrix
        elif part in _IN_LAYER:
            if config.model_type == "llama" and part in ("attn_q", "attn_k"):
                tensor = _rows_in_halves(tensor, config.head_dim)
            yield f"model.layers.{layer}.{_IN_LAYER[part]}.{kind}", tensor


def _unstack(tensor: StoredTensor) -> Iterator[StoredTensor]:
    if len(tensor.shape) != 3:
        raise ModelFormatError(
            f"Tensor `{tensor.name}` has shape {list(tensor.shape)}; stacked experts have three sizes."
        )
    num_experts, out_features, in_features = tensor.shape
    rows = tensor.data.reshape(num_experts, out_features, -1)
    for expert in range(num_experts):
        yield dataclasses.replace(tensor, shape=(out_features, in_features), data=rows[expert])


def _rows_in_halves(tensor: StoredTensor, head_dim: int) -> StoredTensor:
    """Undo the row order of GGUF's Llama files: row 2i+j of a head there is row i + j·head_dim/2 here."""
    rows = tensor.data.reshape(tensor.shape[0], -1)
    if rows.shape[0] % head_dim:
        raise ModelFormatError(f"Tensor `{tensor.name}` has {rows.shape[0]} rows, not a multiple of {head_dim}.")
    halves = rows.reshape(-1, head_dim // 2, 2, rows.shape[1]).swapaxes(1, 2)
    copied = np.ascontiguousarray(halves).reshape(tensor.data.shape)
    release_pages(tensor.data)
    return dataclasses.replace(tensor, data=copied)
