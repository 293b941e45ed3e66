"""From tokens to what the caller sees: text, ids and log-probabilities released together and cut together.

A token is released when all its text is; text is held back only while it may be the beginning of a stop string.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from qwenstack.core.outputs import FinishReason, TokenLogprob
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.guards import REPETITION, RepetitionGuard
from qwenstack.tokenizer import StopStrings, StreamingDetokenizer, Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What one token let go, and whether the answer is over."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


@dataclass(frozen=True, slots=True)
class _HeldToken:
    token_id: int
    logprob: TokenLogprob | None
    start: int
    """Characters of the answer before this token's own."""
    end: int


class AnswerStream:
    """One answer on its way out."""

    def __init__(
        self, tokenizer: Tokenizer, params: SamplingParams, *, max_tokens: int, repetition_window: int = 0
    ) -> None:
        """Begin an answer of at most `max_tokens` tokens; `repetition_window` is `RepetitionGuard`'s."""
        self._guard = RepetitionGuard(0 if params.ignore_eos else repetition_window)
        self._params = params
        self._end_ids = frozenset(params.stop_token_ids)
        self._eos_ids = frozenset[int]() if params.ignore_eos else tokenizer.eos_token_ids
        self._max_tokens = max_tokens
        self._detokenizer = StreamingDetokenizer(tokenizer, skip_special_tokens=params.skip_special_tokens)
        self._stops: StopStrings | None = None
        if params.stop:
            self._stops = StopStrings(params.stop, include_in_output=params.include_stop_str_in_output)
        self._held: deque[_HeldToken] = deque()
        self._num_tokens = 0
        self._num_chars = 0
        self._num_released_chars = 0

    @property
    def num_tokens_left(self) -> int:
        """Tokens that the answer may still have."""
        return self._max_tokens - self._num_tokens

    @property
    def forbidden_ids(self) -> tuple[int, ...]:
        """Ids that must not be chosen next: every end token until `min_tokens` are there."""
        if self._num_tokens >= self._params.min_tokens:
            return ()
        return tuple(sorted(self._eos_ids | self._end_ids))

    def push(self, token_id: int, logprob: TokenLogprob | None) -> Release:
        """Take the next token and return what may be shown now."""
        self._num_tokens += 1
        repeats = self._guard.push(token_id)
        ends = token_id in self._eos_ids or token_id in self._end_ids
        text = self._detokenizer.push(token_id)
        self._hold(token_id, logprob, text)
        released, matched = self._filter(text)
        if matched is not None:
            return self._release(released, "stop", matched)
        if ends:
            reason = None if token_id in self._eos_ids else token_id
            return self._finish(released, "stop", reason)
        if self._num_tokens >= self._max_tokens:
            return self._finish(released, "length", None)
        if repeats:
            return self._finish(released, "length", REPETITION)
        return self._release(released, None, None)

    def _hold(self, token_id: int, logprob: TokenLogprob | None, text: str) -> None:
        start = self._num_chars
        self._num_chars += len(text)
        self._held.append(_HeldToken(token_id, logprob, start, self._num_chars))

    def _filter(self, text: str) -> tuple[str, str | None]:
        """Pass text through the stop strings, once `min_tokens` are there."""
        if self._stops is None or self._num_tokens < self._params.min_tokens:
            return text, None
        released = self._stops.push(text)
        return released, self._stops.matched

    def _finish(self, released: str, reason: FinishReason, stop_reason: int | str | None) -> Release:
        """Let go of the rest: bytes of an unfinished character, and what might have become a stop string."""
        tail = self._detokenizer.finish()
        if tail:
            self._num_chars += len(tail)
            text, matched = self._filter(tail)
            released += text
            if matched is not None:
                return self._release(released, "stop", matched)
        if self._stops is not None:
            released += self._stops.finish()
        return self._release(released, reason, stop_reason)

    def _release(self, text: str, reason: FinishReason | None, stop_reason: int | str | None) -> Release:
        self._num_released_chars += len(text)
        ready: list[_HeldToken] = []
        cut_by_string = reason == "stop" and isinstance(stop_reason, str)
        while self._held:
            token = self._held[0]
            if cut_by_string:
                if token.start >= self._num_released_chars:
                    break
            elif token.end > self._num_released_chars and reason is None:
                break
            ready.append(self._held.popleft())
        return Release(
            text=text,
            token_ids=tuple(token.token_id for token in ready),
            logprobs=tuple(token.logprob for token in ready if token.logprob is not None),
            finish_reason=reason,
            stop_reason=stop_reason,
        )
