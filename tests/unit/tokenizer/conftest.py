"""A small tokenizer with Qwen3's added tokens, trained here, and texts of every kind."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from qwenstack.tokenizer import Tokenizer

QWEN3_ADDED = {
    **{
        f"<|{name}|>": 3 for name in ("endoftext", "im_start", "im_end", "object_ref_start", "vision_pad", "fim_prefix")
    },
    **dict.fromkeys(("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"), 4),
}
"""Text → GGUF token type: 3 is control, 4 is user-defined."""

CORPUS = (
    "The quick brown fox jumps over the lazy dog. Don't you think it's fine? I'LL say so, we've seen 12345 of them.\n"
    "def add(a, b):\n    return a + b  # adds\n\nuser assistant system tool think call response im start end\n"
    "你好，世界。请用中文解释快速排序算法，谢谢！今天天气很好，我们去公园散步。\n"
    '{"name": "get_weather", "arguments": {"city": "北京"}}\n'
)


@pytest.fixture(scope="session")
def tiny_metadata() -> Mapping[str, object]:
    """GGUF metadata of a byte-level BPE vocabulary of about 400 words, Qwen3's added tokens and 8 rows of padding."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=450, initial_alphabet=alphabet, show_progress=False, min_frequency=1)
    bpe.train_from_iterator([CORPUS], trainer)
    words = sorted(bpe.get_vocab(), key=bpe.get_vocab().__getitem__)
    merges = json.loads(bpe.to_str())["model"]["merges"]
    num_padding = 8
    tokens = [*words, *QWEN3_ADDED, *(f"[PAD{index}]" for index in range(num_padding))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(words) + [*QWEN3_ADDED.values()] + [5] * num_padding,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
    }


@pytest.fixture(scope="session")
def tiny(tiny_metadata: Mapping[str, object]) -> Tokenizer:
    """The tokenizer of that metadata."""
    return Tokenizer.from_gguf(tiny_metadata)


@pytest.fixture(scope="session")
def official_template() -> Callable[[str], str]:
    """Read an official template by name."""
    folder = Path(__file__).parents[2] / "data" / "templates"
    return lambda name: (folder / f"{name}.jinja").read_bytes().decode()


PIECES = [
    *("def f(x):\n    return x\n", "for i in range(10):", "{}", "==", "//", "#include <stdio.h>", "\t\t", "\r\n", "'s"),
    *("'LL", "don't", "naïve", "cafe\u0301", "ﬁ", "ｆｕｌｌ", "한국어", "हिन्दी", "שלום", "مرحبا", "١٢٣", "½", "Ⅷ", "²"),
    *(
        "你好，世界",
        "人工智能",
        "「」",
        "。",
        "　",
        "👩‍👩‍👧",
        "👍🏽",
        "🇨🇳",
        "❤️",
        "<|im_start|>",
        "<think>",
        "</think>",
        "<|",
    ),
    *("<|endoftext|", "im_end|>", "\u200d", "\u202e", "\ufeff", "\u2028", "\u0085", "\u00a0", "\u212a", "\x00", "\x1b"),
]


BLOCKS = [
    *((0x4E00, 0x9FFF), (0x20, 0x7E), (0x20, 0x7E), (0, 0x24F), (0x300, 0x36F), (0x1F300, 0x1FAFF), (0x590, 0x8FF)),
    *((0x3040, 0x30FF), (0xAC00, 0xD7A3), (0xE000, 0xFFFF), (0, 0xD7FF), (0x10000, 0x10FFFF)),
]


def _random_part(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(PIECES)
    if kind < 0.5:
        return rng.choice((" ", "\n", "1", "a", "中", ", "))
    return chr(rng.randint(*rng.choice(BLOCKS)))


@pytest.fixture(scope="session")
def random_texts() -> Callable[[int], list[str]]:
    """Make texts of Chinese, English, emoji, code and broken Unicode; the same ones in each run."""

    def make(count: int) -> list[str]:
        rng = random.Random(20_26)
        texts = [space * length for space in (" ", "\n", "\t ", "7", "é", "中") for length in (1, 2, 5, 64, 500)]
        while len(texts) < count:
            texts.append("".join(_random_part(rng) for _ in range(rng.randint(1, 24))))
        return texts

    return make
