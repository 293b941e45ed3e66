"""What the two kinds of model files say about a tokenizer, checked, as one set of parts.

Callers pass metadata that they read; nothing is opened here. All of it is untrusted: types and ranges are checked
before use, and every error is a `ModelFormatError` that names the key.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import SupportsIndex, cast

from qwenstack.core.errors import ModelFormatError
from qwenstack.tokenizer.encoder import PRE_TOKENIZERS, Encoder
from qwenstack.tokenizer.vocabulary import MAX_TOKENS, AddedToken, Vocabulary

# GGUF's `tokenizer.ggml.token_type`; 2 (unknown) and 6 (byte) belong to SentencePiece vocabularies.
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5

# GGUF converters call these six control tokens because of how they look; the checkpoints say `"special": false`.
_TEXT_IN_QWEN = frozenset(
    {"<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"}
)

_END_OF_TURN = ("<|im_end|>", "<|endoftext|>")
"""Where a vocabulary has these they end an answer, whatever else the file names."""

_BUILTIN_TEMPLATES = {"<think>": "qwen3", "<tool_call>": "qwen2.5", "<gh_stars>": "smollm2", "<|im_start|>": "chatml"}
"""By the first added token of these that a vocabulary has; its model was trained with that format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerParts:
    """A tokenizer before it is put together."""

    vocabulary: Vocabulary
    build_encoder: Callable[[], Encoder]
    """Takes a good third of a second for 152,000 tokens, so it waits until text is to be encoded."""
    eos_token_ids: frozenset[int]
    bos_token_id: int | None
    """Set only where the model wants it before each text."""
    chat_template: str | None
    text_end_ids: tuple[int, ...] = ()
    """What the file says is to stand behind each text; only models that embed want it."""


def parts_from_gguf(metadata: Mapping[str, object]) -> TokenizerParts:
    """Read GGUF metadata.

    Raises:
        ModelFormatError: a key is missing or damaged, or the tokenizer is of a kind not known here.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ModelFormatError(
            f"The file's tokenizer is {kind!r} (`tokenizer.ggml.model`); only 'gpt2', byte-level BPE, is read here."
        )
    pre = metadata.get("tokenizer.ggml.pre")
    if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
        raise ModelFormatError(
            f"The file's pre-tokenizer is {pre!r} (`tokenizer.ggml.pre`); "
            f"the known ones are {', '.join(map(repr, sorted(PRE_TOKENIZERS)))}."
        )
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    types = _token_types(metadata, len(tokens))
    merges = _strings(metadata, "tokenizer.ggml.merges")
    words = [token if kind == _NORMAL else "" for token, kind in zip(tokens, types, strict=True)]
    added = [
        AddedToken(
            id=index, text=token, is_special=kind == _CONTROL and not (pre == "qwen2" and token in _TEXT_IN_QWEN)
        )
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    vocabulary = Vocabulary(words, added)

    def build_encoder() -> Encoder:
        id_of_word = {word: index for index, word in enumerate(words) if word}
        return Encoder.from_merges(id_of_word, merges, pre=pre)

    wants_bos = metadata.get("tokenizer.ggml.add_bos_token") is True
    named_eos = [_token_id(metadata, f"tokenizer.ggml.{name}_token_id", vocabulary) for name in ("eos", "eot")]
    wants_eos = metadata.get("tokenizer.ggml.add_eos_token") is True
    return TokenizerParts(
        vocabulary=vocabulary,
        build_encoder=build_encoder,
        eos_token_ids=_eos_token_ids(named_eos, vocabulary),
        bos_token_id=_token_id(metadata, "tokenizer.ggml.bos_token_id", vocabulary) if wants_bos else None,
        chat_template=_chat_template(metadata.get("tokenizer.chat_template"), vocabulary),
        text_end_ids=tuple(each for each in named_eos[:1] if each is not None) if wants_eos else (),
    )


def parts_from_hf(tokenizer_json: str, config: Mapping[str, object], chat_template: str | None) -> TokenizerParts:
    """Read `tokenizer.json` and what belongs to it.

    Raises:
        ModelFormatError: `tokenizer.json` is damaged or not byte-level BPE.
    """
    try:
        description = _object(json.loads(tokenizer_json), "tokenizer.json")
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"`tokenizer.json` is not JSON: {error}.") from error
    model = _object(description.get("model"), "model")
    if model.get("type", "BPE") != "BPE" or "ByteLevel" not in json.dumps(description.get("decoder")):
        raise ModelFormatError(
            f"`tokenizer.json` has a model of type {model.get('type')!r}; only byte-level BPE is read here."
        )
    added = list(_added_tokens(description, config))
    taken = {token.id for token in added}
    id_of_token = {token: _id(index, token) for token, index in _object(model.get("vocab"), "vocab").items()}
    id_of_word = {token: index for token, index in id_of_token.items() if index not in taken}
    vocabulary = Vocabulary(_words_by_id(id_of_word), added)
    bos, eos = (_token_named(config.get(f"{name}_token"), vocabulary) for name in ("bos", "eos"))
    return TokenizerParts(
        vocabulary=vocabulary,
        build_encoder=lambda: Encoder.from_tokenizer_json(description, id_of_word),
        eos_token_ids=_eos_token_ids([eos], vocabulary),
        bos_token_id=bos if config.get("add_bos_token") is True else None,
        chat_template=_chat_template(chat_template or _default_template(config.get("chat_template")), vocabulary),
        text_end_ids=tuple(_text_end_ids(description.get("post_processor"), vocabulary)),
    )


def _text_end_ids(processor: object, vocabulary: Vocabulary) -> Iterator[int]:
    """Yield what a post-processor writes behind a single text: `$A <|endoftext|>` in Qwen3-Embedding."""
    fields = _object(processor or {}, "post_processor")
    parts = [fields, *(_object(part, "processors") for part in _list(fields.get("processors")))]
    for part in parts:
        if part.get("type") != "TemplateProcessing":
            continue
        pieces = [_object(piece, "single") for piece in _list(part.get("single"))]
        text_at = next((at for at, piece in enumerate(pieces) if "Sequence" in piece), len(pieces))
        for piece in pieces[text_at + 1 :]:
            yield _end_token(_object(piece.get("SpecialToken"), "SpecialToken").get("id"), vocabulary)


def _end_token(text: object, vocabulary: Vocabulary) -> int:
    token_id = vocabulary.id_of_added(text) if isinstance(text, str) else None
    if token_id is None:
        raise ModelFormatError(f"`tokenizer.json` wants {text!r:.64} behind each text and has no such added token.")
    return token_id


def _words_by_id(id_of_word: Mapping[str, int]) -> list[str]:
    words = [""] * (1 + max(id_of_word.values(), default=-1))
    for word, index in id_of_word.items():
        words[index] = word
    return words


def _added_tokens(description: Mapping[str, object], config: Mapping[str, object]) -> Iterator[AddedToken]:
    """Yield the added tokens of `tokenizer.json`, then those that only `tokenizer_config.json` has."""
    listed: object = description.get("added_tokens")
    if not isinstance(listed, (list, type(None))):
        raise ModelFormatError("`tokenizer.json` has `added_tokens` that are not a list.")
    entries = [_object(entry, "added_tokens") for entry in cast("list[object]", listed or [])]
    for index, fields in _object(config.get("added_tokens_decoder") or {}, "added_tokens_decoder").items():
        is_number = index.isdecimal() and len(index) <= len(str(MAX_TOKENS))
        entries.append({**_object(fields, "added_tokens_decoder"), "id": int(index) if is_number else None})
    seen: set[str] = set()
    for entry in entries:
        text = entry.get("content")
        if not isinstance(text, str):
            raise ModelFormatError(f"An added token of the tokenizer is {entry!r}, without a text as `content`.")
        if entry.get("lstrip") or entry.get("rstrip") or entry.get("single_word"):
            raise ModelFormatError(
                f"The added token {text!r} has `lstrip`, `rstrip` or `single_word` set, which is not supported."
            )
        if text not in seen:
            seen.add(text)
            yield AddedToken(id=_id(entry.get("id"), text), text=text, is_special=bool(entry.get("special")))


def _token_named(value: object, vocabulary: Vocabulary) -> int | None:
    """Return the id of a token that a config names as text or as `{"content": text}`."""
    if isinstance(value, dict):
        value = cast("dict[str, object]", value).get("content")
    return vocabulary.id_of_added(value) if isinstance(value, str) else None


def _eos_token_ids(named: Iterable[int | None], vocabulary: Vocabulary) -> frozenset[int]:
    candidates = [*named, *map(vocabulary.id_of_added, _END_OF_TURN)]
    return frozenset(token_id for token_id in candidates if token_id is not None)


def _default_template(value: object) -> str | None:
    """Return the template of a config: text, or a list of named ones of which `default` counts."""
    if isinstance(value, list):
        named = cast("list[dict[str, object]]", value)
        value = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
    return value if isinstance(value, str) else None


def _chat_template(own: object, vocabulary: Vocabulary) -> str | None:
    """Return the model's own template, else the one that was trained with such a vocabulary, else None."""
    if isinstance(own, str) and own:
        return own
    for telling_token, name in _BUILTIN_TEMPLATES.items():
        if "<|im_start|>" in vocabulary.added_tokens and telling_token in vocabulary.added_tokens:
            return builtin_template(name)
    return None


def builtin_template(name: str) -> str:
    """Return a template that comes with this package: `qwen3`, `qwen2.5`, `smollm2` or `chatml`."""
    return (resources.files("qwenstack.tokenizer") / "templates" / f"{name}.jinja").read_text("utf-8")


def _object(value: object, name: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ModelFormatError(f"The tokenizer's {name!r} is not an object of JSON.")
    return cast("dict[str, object]", value)


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


def _id(value: object, token: str) -> int:
    if not isinstance(value, int) or not 0 <= value < MAX_TOKENS:
        raise ModelFormatError(
            f"The token {token!r} has the id {value!r}; it must be a number from 0 to {MAX_TOKENS - 1}."
        )
    return value


def _strings(metadata: Mapping[str, object], key: str) -> Sequence[str]:
    value = metadata.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ModelFormatError(f"The file has no list {key!r} of strings.")
    strings = cast("Sequence[object]", value)
    if len(strings) > MAX_TOKENS:
        raise ModelFormatError(f"{key!r} has {len(strings)} entries; at most {MAX_TOKENS} are accepted.")
    if not all(isinstance(item, str) for item in strings):
        raise ModelFormatError(f"{key!r} has entries that are not strings.")
    return cast("Sequence[str]", strings)


def _token_types(metadata: Mapping[str, object], num_tokens: int) -> list[int]:
    """Return the type of each token; the list may be any sequence of integers, numpy's too."""
    key = "tokenizer.ggml.token_type"
    value = metadata.get(key)
    types = list(cast("Iterable[object]", value)) if isinstance(value, Iterable) else []
    if len(types) != num_tokens:
        raise ModelFormatError(f"{key!r} has {len(types)} entries for {num_tokens} tokens.")
    try:
        types = list(map(operator.index, cast("list[SupportsIndex]", types)))
    except TypeError:
        raise ModelFormatError(f"{key!r} has entries that are not whole numbers.") from None
    if unknown := set(types) - {_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED}:
        raise ModelFormatError(f"{key!r} has the type {min(unknown)}; a byte-level vocabulary has 1, 3, 4 and 5.")
    return types


def _token_id(metadata: Mapping[str, object], key: str, vocabulary: Vocabulary) -> int | None:
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < vocabulary.size:
        raise ModelFormatError(f"{key!r} is {value!r}; it must be a token id below {vocabulary.size}.")
    return value
