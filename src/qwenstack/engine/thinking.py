"""How long an answer may think, and what ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qwenstack.engine.output_parser import Phase
from qwenstack.tokenizer import Marks, Tokenizer

CLOSING_SENTENCE = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now.\n"
)
"""Written before the closing mark where the budget ends. Source: Qwen3 technical report, arXiv:2505.09388, section 4.3,
with the line ends of Qwen's own guide to thinking budgets; the report prints a full stop behind the mark, which no chat
template writes there."""
EMPTY_THOUGHT = "\n"
"""Written instead where nothing was thought: after the template's `<think>` and line end this makes the empty block by
which templates themselves switch thinking off."""
AFTER_THINKING = "\n\n"
"""As chat templates write it between the closing mark and the answer."""

_MAX_CHARACTER_TOKENS = 3
"""A character of UTF-8 has at most so many bytes after its first, each a token at worst."""


def phase_after_prompt(tokenizer: Tokenizer, prompt_token_ids: Sequence[int], marks: Marks | None) -> Phase:
    """Return how the answer begins: templates may open thinking in the prompt, or open and close it.

    Only what follows the last end of a turn counts, so that no earlier turn can say anything about this one.
    """
    if marks is None:
        return "answer"
    start = len(prompt_token_ids)
    while start > 0 and prompt_token_ids[start - 1] not in tokenizer.eos_token_ids:
        start -= 1
    text = tokenizer.decode(prompt_token_ids[start:], skip_special_tokens=False)
    opened, closed = text.rfind(marks.open), text.rfind(marks.close)
    if opened == closed:  # neither is there
        return "undecided"
    return "thinking" if opened > closed else "answer"


def closing_token_ids(tokenizer: Tokenizer, marks: Marks, *, sentence: str) -> tuple[int, ...]:
    """Return the tokens that end thinking: a sentence, the closing mark, and the line ends behind it.

    The mark is its own token where the vocabulary has it.
    """
    ids = tokenizer.encode(sentence + marks.close + AFTER_THINKING, parse_special=True)
    return tuple(ids if tokenizer.bos_token_id is None else ids[1:])


class ThinkingBudget:
    """Counts one answer's thinking, and says when it has to end and how."""

    def __init__(self, limit: int | None, closing_ids: Callable[[str], tuple[int, ...]]) -> None:
        """Allow `limit` tokens; `closing_ids` encodes a closing sentence once it is needed."""
        self._limit = limit
        self._closing_ids = closing_ids
        self._is_spent = False
        self.num_tokens = 0
        """Tokens thought so far, closing sentence included; marks do not count."""
        self.forced_ids: tuple[int, ...] = ()
        """Tokens that have to come next."""

    def note(self, token_id: int, *, is_thought: bool) -> None:
        """Take account of a token that came; `is_thought`: it stands within thinking, before and after it."""
        self.num_tokens += is_thought
        if self.forced_ids:
            self.forced_ids = self.forced_ids[1:] if token_id == self.forced_ids[0] else ()

    def check(self, *, is_thinking: bool, is_inside_character: bool) -> None:
        """Close thinking where its budget is spent, at the end of a character; only once in an answer."""
        if self._limit is None or self._is_spent or not is_thinking or self.num_tokens < self._limit:
            return
        if is_inside_character and self.num_tokens < self._limit + _MAX_CHARACTER_TOKENS:
            return
        self._is_spent = True
        self.forced_ids = self._closing_ids(CLOSING_SENTENCE if self.num_tokens else EMPTY_THOUGHT)
