"""Log-probabilities in OpenAI's two formats: a list of objects for chat, parallel lists for completions."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

from typing_extensions import TypedDict

from qwenstack.core.outputs import TokenLogprob

MIN_LOGPROB = -9999.0
"""Written for a probability of zero, which JSON has no number for."""

TokenBytes = Callable[[int], bytes]


class TopLogprob(TypedDict):
    """A token that could have stood here."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TypedDict):
    """The token that stands here, and the likeliest in its place."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """Log-probabilities of an answer."""

    content: list[ChatTokenLogprob]
    refusal: None


class CompletionLogprobs(TypedDict):
    """Log-probabilities of a text, one entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Where each token starts in the returned `text`, in characters."""


def write_chat_logprobs(logprobs: Sequence[TokenLogprob], token_bytes: TokenBytes) -> ChatLogprobs:
    """Write log-probabilities in the chat format."""
    content: list[ChatTokenLogprob] = []
    for entry in logprobs:
        top = [_top_logprob(token_id, logprob, token_bytes) for token_id, logprob in entry.top]
        content.append({**_top_logprob(entry.token_id, entry.logprob, token_bytes), "top_logprobs": top})
    return {"content": content, "refusal": None}


class CompletionLogprobsWriter:
    """Writes the logprobs of one text piece by piece; offsets go on where the last piece ended."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        """Start at the beginning of the text."""
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def write(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob | None]) -> CompletionLogprobs:
        """Write one entry for each token; a token without a log-probability is the first of a prompt."""
        written: CompletionLogprobs = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token_id, entry in zip(token_ids, logprobs, strict=True):
            data = self._token_bytes(token_id)
            written["tokens"].append(token_text(data))
            written["token_logprobs"].append(None if entry is None else max(entry.logprob, MIN_LOGPROB))
            written["top_logprobs"].append(None if entry is None else self._top_logprobs(entry))
            written["text_offset"].append(self._offset)
            self._offset += len(self._decoder.decode(data))
        return written

    def _top_logprobs(self, entry: TokenLogprob) -> dict[str, float]:
        return {token_text(self._token_bytes(token_id)): max(logprob, MIN_LOGPROB) for token_id, logprob in entry.top}


def token_text(data: bytes) -> str:
    """Return a token's text; a piece of a character, which is no text, is written as its bytes, as OpenAI does."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _top_logprob(token_id: int, logprob: float, token_bytes: TokenBytes) -> TopLogprob:
    data = token_bytes(token_id)
    return {"token": token_text(data), "logprob": max(logprob, MIN_LOGPROB), "bytes": list(data)}
