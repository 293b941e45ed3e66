"""What files say about tokenizers, whole and damaged."""

from __future__ import annotations

import json
import random
import time
from array import array
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from qwenstack.core.errors import ModelFormatError, QwenStackError
from qwenstack.core.messages import Message
from qwenstack.hub.gguf import open_gguf
from qwenstack.tokenizer import Tokenizer

PREFIX = "tokenizer.ggml."
NO_WORDS = '{"model": {"vocab": {}}, "decoder": "ByteLevel", "added_tokens": '


def hf_description(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The same tokenizer as `tokenizer.json` has it."""
    tokens, types = metadata[f"{PREFIX}tokens"], metadata[f"{PREFIX}token_type"]
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    regex = words + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level,
        "post_processor": byte_level,
        "added_tokens": [
            {
                "id": index,
                "content": token,
                "special": kind == 3,
                "lstrip": False,
                "rstrip": False,
                "single_word": False,
            }
            for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind in (3, 4)
        ],
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(tokens) if types[index] == 1},
            "merges": metadata[f"{PREFIX}merges"],
            "unk_token": "<|endoftext|>",
        },
    }


def test_both_kinds_of_file_give_the_same_tokenizer(tiny: Tokenizer, tiny_metadata: Mapping[str, Any]) -> None:
    config = {"eos_token": {"content": "<|im_end|>"}, "chat_template": "{{ messages[0].content }}!"}
    other = Tokenizer.from_hf(json.dumps(hf_description(tiny_metadata)), config)
    text = "Don't say 你好 12345 <|im_end|><think>\n\n  é"
    assert other.encode(text) == tiny.encode(text)
    assert other.encode(text, parse_special=True) == tiny.encode(text, parse_special=True)
    assert other.eos_token_ids == tiny.eos_token_ids
    assert other.vocab_size == tiny.vocab_size
    assert all(other.token_bytes(index) == tiny.token_bytes(index) for index in range(tiny.vocab_size))
    assert other.apply_chat_template([Message(role="user", content="hi")]) == "hi!"


def test_a_template_file_comes_before_the_config_and_lists_have_a_default(tiny_metadata: Mapping[str, Any]) -> None:
    description = json.dumps(hf_description(tiny_metadata))
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]
    hi = [Message(role="user", content="hi")]
    assert Tokenizer.from_hf(description, {"chat_template": named}).apply_chat_template(hi) == "yes"
    assert Tokenizer.from_hf(description, {"chat_template": named}, "file").apply_chat_template(hi) == "file"


def test_padding_rows_stand_for_nothing(tiny: Tokenizer) -> None:
    beyond = [tiny.vocab_size, tiny.vocab_size + 7, tiny.vocab_size + 100_000, -1]
    assert [tiny.token_bytes(token_id) for token_id in beyond] == [b""] * 4
    assert tiny.decode(beyond, skip_special_tokens=False) == ""
    assert "[PAD" not in tiny.decode(range(tiny.vocab_size + 8), skip_special_tokens=False)


def test_tokens_know_their_bytes_and_whether_they_are_special(tiny: Tokenizer) -> None:
    end, think, fim = (tiny.id_of_added(text) for text in ("<|im_end|>", "<think>", "<|fim_prefix|>"))
    assert end is not None
    assert think is not None
    assert fim is not None
    assert (tiny.token_bytes(end), tiny.token_bytes(think)) == (b"<|im_end|>", b"<think>")
    assert [tiny.is_special(token_id) for token_id in (end, think, fim, 0)] == [True, False, False, False]
    assert tiny.id_of_added("<|nothing|>") is None
    assert {tiny.token_bytes(tiny.encode(chr(code))[0]) for code in range(128)} == {
        bytes([code]) for code in range(128)
    }


def test_a_model_that_wants_a_first_token_gets_it(tiny_metadata: Mapping[str, Any]) -> None:
    start = tiny_metadata[f"{PREFIX}tokens"].index("<|endoftext|>")
    wants = {f"{PREFIX}add_bos_token": True, f"{PREFIX}bos_token_id": start}
    tokenizer = Tokenizer.from_gguf({**tiny_metadata, **wants})
    assert tokenizer.encode("a")[0] == start
    assert start not in tokenizer.encode_chat([Message(role="user", content="a")])


def test_number_lists_of_any_kind_are_read(tiny: Tokenizer, tiny_metadata: Mapping[str, Any]) -> None:
    import numpy as np

    for convert in (array, np.asarray, tuple):
        types = convert("i", tiny_metadata[f"{PREFIX}token_type"]) if convert is array else None
        types = convert(tiny_metadata[f"{PREFIX}token_type"]) if types is None else types
        tokenizer = Tokenizer.from_gguf({**tiny_metadata, f"{PREFIX}token_type": types})
        assert tokenizer.encode("hi") == tiny.encode("hi")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "llama"}, "tokenizer is 'llama'.*only 'gpt2'"),
        ({"pre": "tekken"}, "pre-tokenizer is 'tekken'.*'qwen2', 'smollm'"),
        ({"pre": None}, "pre-tokenizer is None"),
        ({"tokens": None}, "no list 'tokenizer.ggml.tokens'"),
        ({"tokens": "abc"}, "no list 'tokenizer.ggml.tokens'"),
        ({"tokens": [1, 2]}, "not strings"),
        ({"token_type": [1, 2]}, "2 entries for"),
        ({"token_type": None}, "0 entries for"),
        ({"merges": None}, "no list 'tokenizer.ggml.merges'"),
        ({"eos_token_id": 10**6}, "eos_token_id' is 1000000; it must be a token id below"),
        ({"eos_token_id": "x"}, "eos_token_id' is 'x'"),
    ],
)
def test_a_damaged_gguf_tokenizer_is_named(
    changes: dict[str, object], reason: str, tiny_metadata: Mapping[str, Any]
) -> None:
    damaged = {**tiny_metadata, **{f"{PREFIX}{key}": value for key, value in changes.items()}}
    with pytest.raises(ModelFormatError, match=reason):
        Tokenizer.from_gguf(damaged)


def test_damage_inside_the_lists_is_named(tiny_metadata: Mapping[str, Any]) -> None:
    tokens, types = tiny_metadata[f"{PREFIX}tokens"], tiny_metadata[f"{PREFIX}token_type"]
    with pytest.raises(ModelFormatError, match=r"Token 5 of the vocabulary is 'a b'.*byte-level alphabet"):
        Tokenizer.from_gguf({**tiny_metadata, f"{PREFIX}tokens": [*tokens[:5], "a b", *tokens[6:]]})
    with pytest.raises(ModelFormatError, match="the type 6"):
        Tokenizer.from_gguf({**tiny_metadata, f"{PREFIX}token_type": [6, *types[1:]]})
    with pytest.raises(ModelFormatError, match="not whole numbers"):
        Tokenizer.from_gguf({**tiny_metadata, f"{PREFIX}token_type": ["1", *types[1:]]})
    twice = [*tokens[:-9], "<think>", *tokens[-8:]]
    with pytest.raises(ModelFormatError, match="'<think>' twice"):
        Tokenizer.from_gguf({**tiny_metadata, f"{PREFIX}tokens": twice})
    with pytest.raises(ModelFormatError, match="merges do not fit"):
        Tokenizer.from_gguf({**tiny_metadata, f"{PREFIX}merges": ["zzzz yyyy"]}).encode("a")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "'tokenizer.json' is not an object"),
        ("{}", "'model' is not an object"),
        ('{"model": {"type": "Unigram", "vocab": {}}}', "type 'Unigram'"),
        ('{"model": {"vocab": {}}, "decoder": {"type": "Metaspace"}}', "only byte-level BPE"),
        ('{"model": {"vocab": {"a": 99999999999}}, "decoder": {"type": "ByteLevel"}}', "has the id 99999999999"),
        ('{"model": {"vocab": {"a": -1}}, "decoder": {"type": "ByteLevel"}}', "has the id -1"),
        (NO_WORDS + '[{"id": 1}]}', "without a text"),
        (NO_WORDS + '[{"id": 1, "content": "<"}]}', "shorter than 2"),
        (NO_WORDS + '[{"id": 1, "content": "<\\ud800>"}]}', "not valid Unicode"),
        (NO_WORDS + '[{"id": 1, "content": "<a>"}, {"id": 1, "content": "<b>"}]}', "or its id 1"),
        (NO_WORDS + '[{"id": 1, "content": "<a>", "lstrip": true}]}', "not supported"),
    ],
)
def test_a_damaged_tokenizer_json_is_named(text: str, reason: str) -> None:
    with pytest.raises(ModelFormatError, match=reason):
        Tokenizer.from_hf(text)


def test_sec_33_a_word_with_a_control_tokens_id_is_no_word(tiny_metadata: Mapping[str, Any]) -> None:
    description = hf_description(tiny_metadata)
    end = tiny_metadata[f"{PREFIX}tokens"].index("<|im_end|>")
    description["model"]["vocab"]["Z"] = end
    tokenizer = Tokenizer.from_hf(json.dumps(description))
    assert end not in tokenizer.encode("ZZ")
    assert tokenizer.token_bytes(end) == b"<|im_end|>"


def test_a_pattern_that_backtracks_for_ever_is_a_typed_error(tiny_metadata: Mapping[str, Any]) -> None:
    description = hf_description(tiny_metadata)
    description["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"(?:a|a|b?)*c"}
    tokenizer = Tokenizer.from_hf(json.dumps(description))
    with suppress(ModelFormatError):
        assert tokenizer.decode(tokenizer.encode("a" * 40)) == "a" * 40


@pytest.mark.parametrize("seed", range(10))
def test_random_damage_gives_typed_errors_only(tiny_metadata: Mapping[str, Any], seed: int) -> None:
    rng = random.Random(seed)
    junk = [None, 0, -1, 2**70, 1.5, True, "", "<", "Ġ", [], {}, [None], {"a": []}, ["a b c"], "\ud800", [[["x"]]]]

    def damage(value: Any) -> Any:
        if isinstance(value, dict) and value and rng.random() < 0.9:
            key = rng.choice(list(value))
            return {**value, key: damage(value[key])}
        if isinstance(value, list) and value and rng.random() < 0.9:
            index = rng.randrange(len(value))
            return [*value[:index], damage(value[index]), *value[index + 1 :]]
        return rng.choice(junk)

    for _ in range(40):
        key = rng.choice(list(tiny_metadata))
        damaged_metadata = {**tiny_metadata, key: damage(tiny_metadata[key])}
        damaged_json = json.dumps(damage(hf_description(tiny_metadata)))
        with suppress(QwenStackError):
            use(Tokenizer.from_gguf(damaged_metadata))
        with suppress(QwenStackError):
            use(Tokenizer.from_hf(damaged_json))


def use(tokenizer: Tokenizer) -> None:
    tokenizer.decode(tokenizer.encode("Don't 你好 12<|im_end|>", parse_special=True))
    tokenizer.encode_chat([Message(role="user", content="hi")])


@pytest.mark.weights
def test_the_vocabulary_is_read_at_once_and_the_encoder_only_when_needed(coder_gguf: Path) -> None:
    """The engine's process needs bytes of ids only; limits are five times what an idle core takes."""
    metadata = open_gguf(coder_gguf).metadata
    start = time.thread_time()
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.token_bytes(108386) == "你好".encode()
    assert time.thread_time() - start < 0.5
    start = time.process_time()
    tokenizer.encode("a")
    assert time.process_time() - start < 1.5


@pytest.mark.weights
def test_fill_in_tokens_of_qwen_stay_in_the_text_as_its_own_config_says(coder_gguf: Path) -> None:
    tokenizer = Tokenizer.from_gguf(open_gguf(coder_gguf).metadata)
    special = [token_id for token_id in range(tokenizer.vocab_size) if tokenizer.is_special(token_id)]
    assert special == list(range(151643, 151657))
    assert tokenizer.decode([151659, 151643, 9707]) == "<|fim_prefix|>Hello"
