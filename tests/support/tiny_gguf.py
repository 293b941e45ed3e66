"""Tiny random models as quantised GGUF files, with a vocabulary of single bytes: the real engine in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from qwenstack.tokenizer.vocabulary import letters_of_bytes

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
MERGED = "ab"
"""The one word of two bytes: a file without merges is no byte-level BPE."""
VOCAB_SIZE = 257 + len(CONTROL) + len(WORDS) + 5
"""The last five rows are padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyShape:
    """The sizes of a tiny model, and how its matrices are stored."""

    arch: str
    weight_types: tuple[gguf.GGMLQuantizationType, ...]
    """Matrices take them in turn."""
    hidden_size: int = 64
    intermediate_size: int = 96
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    context_length: int = 2048


QWEN3_Q8 = TinyShape(
    arch="qwen3", weight_types=(gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0), head_dim=24
)
QWEN2_Q5 = TinyShape(
    arch="qwen2",
    weight_types=(gguf.GGMLQuantizationType.Q5_0, gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0),
    num_heads=3,
    num_kv_heads=1,
)


def write_tiny_gguf(path: Path, shape: TinyShape, *, seed: int = 5, chat_template: str | None = None) -> Path:
    """Write a random model of this shape; without a template of its own it gets the one of its vocabulary."""
    writer = gguf.GGUFWriter(path, shape.arch)
    _write_sizes(writer, shape)
    _write_vocabulary(writer)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    rng = np.random.default_rng(seed)
    turn = 0
    for name, size in _tensors(shape):
        if len(size) == 1:
            offset = 1.0 if "norm" in name else 0.0
            writer.add_tensor(name, (offset + 0.3 * rng.normal(size=size)).astype(np.float32))
            continue
        # twice the usual deviation: a peaked distribution would answer every prompt with the same token
        values = (2.0 * rng.normal(size=size) / size[1] ** 0.5).astype(np.float32)
        weight_type = shape.weight_types[turn % len(shape.weight_types)]
        turn += 1
        if size[1] % 32:
            writer.add_tensor(name, values.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, weight_type), raw_dtype=weight_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(shape: TinyShape) -> list[tuple[str, tuple[int, ...]]]:
    q_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    width, inner = shape.hidden_size, shape.intermediate_size
    tensors: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (VOCAB_SIZE, width)),
        ("output_norm.weight", (width,)),
        ("output.weight", (VOCAB_SIZE, width)),
    ]
    for layer in range(shape.num_layers):
        in_layer: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (width,),
            "attn_q.weight": (q_size, width),
            "attn_k.weight": (kv_size, width),
            "attn_v.weight": (kv_size, width),
            "attn_output.weight": (width, q_size),
            "ffn_norm.weight": (width,),
            "ffn_gate.weight": (inner, width),
            "ffn_up.weight": (inner, width),
            "ffn_down.weight": (width, inner),
        }
        if shape.arch == "qwen2":
            in_layer |= {"attn_q.bias": (q_size,), "attn_k.bias": (kv_size,), "attn_v.bias": (kv_size,)}
        if shape.arch == "qwen3":
            in_layer |= {"attn_q_norm.weight": (shape.head_dim,), "attn_k_norm.weight": (shape.head_dim,)}
        tensors.extend((f"blk.{layer}.{name}", size) for name, size in in_layer.items())
    return tensors


def _write_sizes(writer: gguf.GGUFWriter, shape: TinyShape) -> None:
    writer.add_block_count(shape.num_layers)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)


def _write_vocabulary(writer: gguf.GGUFWriter) -> None:
    num_padding = VOCAB_SIZE - 257 - len(CONTROL) - len(WORDS)
    tokens = [*letters_of_bytes(), MERGED, *CONTROL, *WORDS, *(f"[PAD{at}]" for at in range(num_padding))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 257 + [3] * len(CONTROL) + [4] * len(WORDS) + [5] * num_padding)
    writer.add_token_merges([" ".join(MERGED)])
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
