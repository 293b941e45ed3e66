"""A tokenizer that can be read at a glance: bytes, and the marks of thinking and tool calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwenstack.tokenizer import ChatMarkers, Marks

MARKERS = ChatMarkers(
    thinking=Marks("<think>", "</think>"), tool_call=Marks("<tool_call>", "</tool_call>"), tool_format="hermes"
)
ADDED = ["<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"]
EOS, THINK, THINK_END, CALL, CALL_END = range(256, 261)


@dataclass
class ByteTokenizer:
    """One token a byte, and one for each mark; further tokens stand for the texts given."""

    markers: ChatMarkers = MARKERS
    words: Sequence[bytes] = ()
    has_marks: bool = True
    special: frozenset[int] = frozenset({EOS})
    bos_token_id: int | None = None
    eos_token_ids = frozenset({EOS})

    @property
    def chat_markers(self) -> ChatMarkers:
        return self.markers

    def token_bytes(self, token_id: int) -> bytes:
        if token_id < 256:
            return bytes([token_id])
        return ADDED[token_id - 256].encode() if token_id < 261 else self.words[token_id - 261]

    def is_special(self, token_id: int) -> bool:
        return token_id in self.special

    def id_of_added(self, text: str) -> int | None:
        return 256 + ADDED.index(text) if self.has_marks and text in ADDED else None

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        ids: list[int] = [] if self.bos_token_id is None else [self.bos_token_id]
        while text:
            mark = next((mark for mark in ADDED if text.startswith(mark)), None) if parse_special else None
            token_id = self.id_of_added(mark) if mark else None
            ids += [*text[0].encode()] if token_id is None else [token_id]
            text = text[1:] if mark is None or token_id is None else text[len(mark) :]
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return b"".join(map(self.token_bytes, token_ids)).decode(errors="replace")
