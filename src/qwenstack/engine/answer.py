"""From tokens to what the caller sees: text, ids and log-probabilities released together and cut together.

    ids ─▶ StreamingDetokenizer ─▶ OutputParser ─▶ StopStrings ─▶ Release
                                   (where asked)   (the answer's text only)

A token is released when all its text is. Text is held back only while it may be the beginning of a stop string, of a
mark or of a tool call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qwenstack.core.errors import RequestError
from qwenstack.core.outputs import FinishReason, TokenLogprob, ToolCallDelta
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.guards import REPETITION, RepetitionGuard
from qwenstack.engine.output_parser import OutputParser, Piece
from qwenstack.engine.thinking import ThinkingBudget, closing_token_ids, phase_after_prompt
from qwenstack.engine.tool_call_syntax import ToolSignatures
from qwenstack.tokenizer import ChatMarkers, StopStrings, StreamingDetokenizer, Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What one token let go, and whether the answer is over; field by field what `OutputDelta` has."""

    text: str = ""
    reasoning_text: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    num_generated_tokens: int = 1
    num_reasoning_tokens: int = 0
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
    """One answer on its way out.

    Raises:
        RequestError: tool calls are to be read and the model has no format for them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        *,
        max_tokens: int,
        prompt_token_ids: Sequence[int] = (),
        repetition_window: int = 0,
    ) -> None:
        """Begin an answer of at most `max_tokens` tokens to a prompt, which may have opened thinking already.

        `repetition_window` is `RepetitionGuard`'s.
        """
        self._guard = RepetitionGuard(0 if params.ignore_eos else repetition_window)
        self._params = params
        self._end_ids = frozenset(params.stop_token_ids)
        self._eos_ids = frozenset[int]() if params.ignore_eos else tokenizer.eos_token_ids
        self._max_tokens = max_tokens
        self._detokenizer = StreamingDetokenizer(tokenizer, skip_special_tokens=params.skip_special_tokens)
        self._stops = _StopFilter(params)
        self._structure = _Structure(tokenizer, params, prompt_token_ids) if _reads_structure(params) else None
        self._splits = params.output_format != "text"
        self._held: deque[_HeldToken] = deque()
        self._num_tokens = 0
        self._num_chars = 0
        self._num_settled = 0
        """Characters of the whole text, marks included, whose fate is known and told."""

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

    @property
    def is_thinking(self) -> bool:
        """Whether the next token stands within thinking; a grammar holds only outside."""
        return self._structure is not None and self._structure.parser.is_thinking

    @property
    def ids_beside_grammar(self) -> tuple[int, ...]:
        """Ids that may be chosen whatever the grammar says: the mark that opens thinking, where the answer begins.

        A grammar is told nothing of a token chosen by this permission.
        """
        return () if self._structure is None or not self._splits else self._structure.opening_ids

    def forced_token_ids(self) -> Sequence[int]:
        """Return what has to come next, unsampled, each token pushed like any other; nothing where all is free.

        Not empty once the thinking budget is spent and until the last of these tokens is pushed.
        """
        return () if self._structure is None else self._structure.budget.forced_ids

    def push(self, token_id: int, logprob: TokenLogprob | None) -> Release:
        """Take the next token and return what may be shown now."""
        self._num_tokens += 1
        repeats = self._guard.push(token_id) and self._num_tokens >= self._params.min_tokens
        ends = token_id in self._eos_ids or token_id in self._end_ids
        text = self._detokenizer.push(token_id)
        num_thoughts = 0
        pieces: list[Piece] = []
        if self._structure is not None:
            if self._splits:
                text = self._structure.hidden_marks.get(token_id, text)
            pieces, is_thought = self._structure.push(
                token_id, text, is_inside_character=self._detokenizer.is_inside_character
            )
            num_thoughts = int(is_thought)
        self._hold(token_id, logprob, text)
        if not self._splits:
            pieces = [Piece(kind="answer", text=text, end=self._num_chars)]
        shown = self._show(pieces)
        if self._stops.matched is not None:
            shown = self._release(shown, "stop", self._stops.matched)
        elif ends:
            shown = self._finish(shown, "stop", None if token_id in self._eos_ids else token_id)
        elif self._num_tokens >= self._max_tokens:
            shown = self._finish(shown, "length", None)
        elif repeats:
            shown = self._finish(shown, "length", REPETITION)
        else:
            shown = self._release(shown, None, None)
        return replace(shown, num_reasoning_tokens=num_thoughts)

    def _hold(self, token_id: int, logprob: TokenLogprob | None, text: str) -> None:
        start = self._num_chars
        self._num_chars += len(text)
        self._held.append(_HeldToken(token_id, logprob, start, self._num_chars))

    def _show(self, pieces: Sequence[Piece], *, is_last: bool = False) -> Release:
        """Pass the answer's text through the stop strings, and settle how far the whole text is told."""
        text, reasoning_text = "", ""
        calls: list[ToolCallDelta] = []
        is_watching = self._num_tokens >= self._params.min_tokens
        for piece in pieces:
            if piece.kind == "answer":
                text += self._stops.push(piece.text) if is_watching else piece.text
            elif piece.kind == "thinking":
                reasoning_text += piece.text
            elif piece.call is not None:
                text += self._stops.finish()
                calls.append(piece.call)
            if self._stops.matched is not None:
                self._num_settled = piece.end - self._stops.num_held
                break
        else:
            text += self._stops.finish() if is_last else ""
            parsed = self._structure.parser.num_settled if self._splits and self._structure else self._num_chars
            self._num_settled = parsed - self._stops.num_held
        return Release(text=text, reasoning_text=reasoning_text, tool_calls=tuple(calls))

    def _finish(self, shown: Release, reason: FinishReason, stop_reason: int | str | None) -> Release:
        """Let go of the rest: bytes of an unfinished character, and all that waited for more text."""
        tail = self._detokenizer.finish()
        self._num_chars += len(tail)
        pieces = [Piece(kind="answer", text=tail, end=self._num_chars)] if tail else []
        if self._structure is not None and self._splits:
            pieces = [*self._structure.parser.push(tail), *self._structure.parser.finish()]
        rest = self._show(pieces, is_last=True)
        shown = replace(
            shown,
            text=shown.text + rest.text,
            reasoning_text=shown.reasoning_text + rest.reasoning_text,
            tool_calls=shown.tool_calls + rest.tool_calls,
        )
        if self._stops.matched is not None:
            return self._release(shown, "stop", self._stops.matched)
        return self._release(shown, reason, stop_reason)

    def _release(self, shown: Release, reason: FinishReason | None, stop_reason: int | str | None) -> Release:
        ready: list[_HeldToken] = []
        cut_by_string = reason == "stop" and isinstance(stop_reason, str)
        while self._held:
            token = self._held[0]
            if cut_by_string:
                if token.start >= self._num_settled:
                    break
            elif token.end > self._num_settled and reason is None:
                break
            ready.append(self._held.popleft())
        return replace(
            shown,
            token_ids=tuple(token.token_id for token in ready),
            logprobs=tuple(token.logprob for token in ready if token.logprob is not None),
            finish_reason=reason,
            stop_reason=stop_reason,
        )


def tools_not_supported() -> RequestError:
    """Return what to raise for tools that a model's chat template cannot show, or whose calls cannot be read."""
    return RequestError(
        "This model's chat template has no format for tool calls that is read here. Leave `tools` out, or use a model "
        "that was trained on them, such as Qwen2.5 or Qwen3.",
        param="tools",
        code="tools_not_supported",
    )


def _reads_structure(params: SamplingParams) -> bool:
    """Whether anything asks where thinking is: the format, the budget, or a grammar, which holds only outside."""
    return params.output_format != "text" or params.thinking_budget is not None or params.grammar is not None


class _Structure:
    """Where in its thinking, answering and calling an answer is."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, prompt_token_ids: Sequence[int]) -> None:
        markers = tokenizer.chat_markers
        if params.output_format == "chat" and markers.tool_format is None:
            raise tools_not_supported()
        marks = markers.thinking
        reads_calls = params.output_format == "chat"
        if not reads_calls:
            markers = ChatMarkers(thinking=marks)
        phase = phase_after_prompt(tokenizer, prompt_token_ids, marks)
        self.parser = OutputParser(
            markers,
            phase=phase,
            tools=_signatures(params),
            is_calls_only=reads_calls and params.grammar is not None and params.grammar.required_tool is not None,
        )
        self.budget = ThinkingBudget(
            params.thinking_budget,
            lambda sentence: () if marks is None else closing_token_ids(tokenizer, marks, sentence=sentence),
        )
        self.budget.check(is_thinking=self.parser.is_thinking, is_inside_character=False)
        self._opening_ids = _id_of(tokenizer, marks.open if marks else None)
        self.hidden_marks = _hidden_marks(tokenizer, markers) if params.skip_special_tokens else {}
        """Marks that the detokenizer leaves out; they are marks all the same."""

    @property
    def opening_ids(self) -> tuple[int, ...]:
        """The mark that opens thinking, while it may come next."""
        return self._opening_ids if self.parser.may_think else ()

    def push(self, token_id: int, text: str, *, is_inside_character: bool) -> tuple[list[Piece], bool]:
        """Take a token and its text; return what that decides, and whether the token is a thought."""
        was_thinking = self.parser.is_thinking
        pieces = self.parser.push(self.hidden_marks.get(token_id, text))
        is_thinking = self.parser.is_thinking
        is_thought = was_thinking and is_thinking
        self.budget.note(token_id, is_thought=is_thought)
        self.budget.check(is_thinking=is_thinking, is_inside_character=is_inside_character)
        return pieces, is_thought


def _signatures(params: SamplingParams) -> ToolSignatures | None:
    if params.grammar is None or params.grammar.kind != "tools":
        return None
    return ToolSignatures.from_tools(params.grammar.source)


def _id_of(tokenizer: Tokenizer, mark: str | None) -> tuple[int, ...]:
    token_id = None if mark is None else tokenizer.id_of_added(mark)
    return () if token_id is None else (token_id,)


def _hidden_marks(tokenizer: Tokenizer, markers: ChatMarkers) -> dict[int, str]:
    """Return the text of each mark that the vocabulary calls a control token."""
    marks = [*(markers.thinking or ()), *(markers.tool_call or ())]
    return {token_id: mark for mark in marks for token_id in _id_of(tokenizer, mark) if tokenizer.is_special(token_id)}


class _StopFilter:
    """Watches one answer's text for stop strings; a tool call parts the text, and no stop string spans it."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._strings = self._new_strings()
        self._num_watched = 0

    @property
    def matched(self) -> str | None:
        """The stop string that was found."""
        return None if self._strings is None else self._strings.matched

    @property
    def num_held(self) -> int:
        """Characters watched and not released; after a match, those that never will be."""
        return 0 if self._strings is None else self._num_watched - self._strings.num_released

    def push(self, text: str) -> str:
        """Take the next text; return what certainly comes before any stop string."""
        if self._strings is None:
            return text
        self._num_watched += len(text)
        return self._strings.push(text)

    def finish(self) -> str:
        """Return what was held back, where the text ends or a tool call follows; what comes later is watched anew."""
        if self._strings is None:
            return ""
        rest = self._strings.finish()
        self._strings, self._num_watched = self._new_strings(), 0
        return rest

    def _new_strings(self) -> StopStrings | None:
        if not self._params.stop:
            return None
        return StopStrings(self._params.stop, include_in_output=self._params.include_stop_str_in_output)
