"""Prompts for gaps: the marks, what is kept where not everything fits, and what no text can forge."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.core.errors import RequestError
from qwenstack.core.infill import ContextFile, Gap
from qwenstack.tokenizer import Tokenizer
from qwenstack.tokenizer.infill import InfillWriter

MARKS = {
    name: 1000 + number
    for number, name in enumerate(
        ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"]
    )
}
NAMES = {number: name for name, number in MARKS.items()}


def writer(marks: dict[str, int] = MARKS) -> InfillWriter:
    return InfillWriter(encode=lambda text: list(text.encode()), id_of_mark=marks.get)


def readable(token_ids: object) -> str:
    return "".join(NAMES.get(token, chr(token)) for token in token_ids)  # type: ignore[attr-defined]


def test_a_gap_stands_between_its_marks():
    written = writer().write(Gap(prefix="a = ", suffix="\nb"), max_tokens=100)
    assert readable(written.token_ids) == "<|fim_prefix|>a = <|fim_suffix|>\nb<|fim_middle|>"
    assert set(written.stop_token_ids) == set(MARKS.values())
    assert not written.is_cut


def test_other_files_come_first_with_their_names():
    files = [ContextFile(path="a.py", text="A"), ContextFile(path="b.py", text="B")]
    written = writer().write(Gap(prefix="p", suffix="s", context=files), max_tokens=1000)
    assert readable(written.token_ids) == (
        "<|repo_name|>project\n<|file_sep|>a.py\nA\n<|file_sep|>b.py\nB\n<|file_sep|>file\n"
        "<|fim_prefix|>p<|fim_suffix|>s<|fim_middle|>"
    )
    # What is most important is last: it stays longest.
    fewer = writer().write(Gap(prefix="p", suffix="s", context=files), max_tokens=len(written.token_ids) - 1)
    assert readable(fewer.token_ids) == (
        "<|repo_name|>project\n<|file_sep|>b.py\nB\n<|file_sep|>file\n<|fim_prefix|>p<|fim_suffix|>s<|fim_middle|>"
    )
    assert fewer.is_cut


def test_models_without_marks_for_files_leave_them_out():
    marks = {name: number for name, number in MARKS.items() if "fim" in name}
    written = writer(marks).write(Gap(prefix="p", context=[ContextFile(path="a", text="A")]), max_tokens=100)
    assert readable(written.token_ids) == "<|fim_prefix|>p<|fim_suffix|><|fim_middle|>"
    assert written.is_cut


@pytest.mark.parametrize("missing", ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"])
def test_models_without_marks_for_gaps_say_so(missing):
    marks = {name: number for name, number in MARKS.items() if name != missing}
    with pytest.raises(RequestError, match="cannot fill gaps"):
        writer(marks).write(Gap(prefix="p"), max_tokens=100)
    with pytest.raises(RequestError, match="no place"):
        writer().write(Gap(prefix="p"), max_tokens=3)


@given(
    num_prefix=st.integers(0, 60),
    num_suffix=st.integers(0, 60),
    files=st.lists(st.integers(0, 30), max_size=4),
    max_tokens=st.integers(4, 150),
)
def test_what_is_kept_is_what_is_near_and_no_place_is_wasted(num_prefix, num_suffix, files, max_tokens):
    prefix = "".join(chr(97 + number % 26) for number in range(num_prefix))
    suffix = "".join(chr(65 + number % 26) for number in range(num_suffix))
    context = [ContextFile(path=str(number), text="." * length) for number, length in enumerate(files)]
    written = writer().write(Gap(prefix=prefix, suffix=suffix, context=context), max_tokens=max_tokens)
    assert len(written.token_ids) <= max_tokens
    head, _, rest = readable(written.token_ids).partition("<|fim_prefix|>")
    before, _, rest = rest.partition("<|fim_suffix|>")
    after, _, end = rest.partition("<|fim_middle|>")
    assert end == ""
    assert prefix.endswith(before)
    assert suffix.startswith(after)
    room = max_tokens - 3
    assert len(before) + len(after) == min(room, num_prefix + num_suffix)
    if before != prefix:
        assert len(before) >= int(room * 0.75)
    kept_files = [number for number in range(len(files)) if f"<|file_sep|>{number}\n" in head]
    assert kept_files == list(range(len(files)))[len(files) - len(kept_files) :]
    assert written.is_cut == (before != prefix or after != suffix or len(kept_files) < len(files))


def test_a_model_has_all_marks_or_fills_no_gaps(tiny_metadata):
    tokens, types = list(tiny_metadata["tokenizer.ggml.tokens"]), list(tiny_metadata["tokenizer.ggml.token_type"])
    for number, name in enumerate(("suffix", "middle")):
        assert not Tokenizer.from_gguf(tiny_metadata | told(tokens, types)).fills_gaps
        at = tokens.index(f"[PAD{number}]")
        tokens[at], types[at] = f"<|fim_{name}|>", 3
    assert Tokenizer.from_gguf(tiny_metadata | told(tokens, types)).fills_gaps


def told(tokens, types):
    return {"tokenizer.ggml.tokens": list(tokens), "tokenizer.ggml.token_type": list(types)}
