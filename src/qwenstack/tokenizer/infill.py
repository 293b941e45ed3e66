"""Prompts for filling a gap in a file, in the form that Qwen2.5-Coder is trained on.

    <|repo_name|>NAME                                             these lines with other files only
    <|file_sep|>PATH
    TEXT                                                          both for each of them
    <|file_sep|>PATH                                              of the file with the gap
    <|fim_prefix|>PREFIX<|fim_suffix|>SUFFIX<|fim_middle|>

Source: Qwen2.5-Coder technical report, arXiv:2409.12186.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwenstack.core.errors import RequestError
from qwenstack.core.infill import Gap, InfillPrompt

GAP_MARKS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
_FILE_MARKS = ("<|repo_name|>", "<|file_sep|>")
_PADDING = "<|fim_pad|>"
_REPOSITORY, _FILE = "project", "file"
"""Names where the request has none."""
_PREFIX_SHARE = 0.75
"""Of the place for the text around the gap: what stands before it says more about what comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InfillWriter:
    """Writes prompts for one model."""

    encode: Callable[[str], Sequence[int]]
    """Turns plain text into ids, without control tokens."""
    id_of_mark: Callable[[str], int | None]

    def write(self, gap: Gap, *, max_tokens: int) -> InfillPrompt:
        """Write a prompt of at most `max_tokens`; where there is more, what is far from the gap is left out.

        Raises:
            RequestError: the model has no marks for gaps, or there is no place for its marks.
        """
        before, between, end = (self._mark(name) for name in GAP_MARKS)
        room = max_tokens - len(GAP_MARKS)
        if room < 1:
            raise RequestError("There is no place for a prompt; ask for fewer tokens.", code="context_length_exceeded")
        prefix, suffix = self.encode(gap.prefix), self.encode(gap.suffix)
        most_before, most_after = _shares(len(prefix), len(suffix), room)
        kept_prefix = prefix[len(prefix) - most_before :]
        kept_suffix = suffix[:most_after]
        room -= len(kept_prefix) + len(kept_suffix)
        context, num_left_out = self._write_context(gap, room)
        return InfillPrompt(
            token_ids=[*context, before, *kept_prefix, between, *kept_suffix, end],
            stop_token_ids=self._stop_ids(),
            is_cut=num_left_out > 0 or most_before < len(prefix) or most_after < len(suffix),
        )

    def _write_context(self, gap: Gap, room: int) -> tuple[list[int], int]:
        """Return other files as far as there is room, the last ones first, and how many were left out."""
        marks = [self.id_of_mark(name) for name in _FILE_MARKS]
        repository, separator = marks
        if not gap.context or repository is None or separator is None:
            return [], len(gap.context)
        head = [repository, *self.encode(f"{_REPOSITORY}\n")]
        tail = [separator, *self.encode(f"{_FILE}\n")]
        room -= len(head) + len(tail)
        files: list[list[int]] = []
        for file in reversed(gap.context):
            written = [separator, *self.encode(f"{file.path}\n{file.text}\n")]
            room -= len(written)
            if room < 0:
                break
            files.insert(0, written)
        if not files:
            return [], len(gap.context)
        return [*head, *(token for file in files for token in file), *tail], len(gap.context) - len(files)

    def _mark(self, name: str) -> int:
        token_id = self.id_of_mark(name)
        if token_id is None:
            raise RequestError(
                "This model cannot fill gaps: its vocabulary has no marks for them. Serve a model for code, such as "
                "qwen2.5-coder-0.5b.",
                code="infill_not_supported",
            )
        return token_id

    def _stop_ids(self) -> list[int]:
        ids = (self.id_of_mark(name) for name in (*GAP_MARKS, _PADDING, *_FILE_MARKS))
        return [token_id for token_id in ids if token_id is not None]


def _shares(num_before: int, num_after: int, room: int) -> tuple[int, int]:
    """Share the room between what stands before the gap and after it; what one does not need the other gets."""
    for_before = max(int(room * _PREFIX_SHARE), room - num_after)
    kept_before = min(num_before, for_before)
    return kept_before, min(num_after, room - kept_before)
