"""What may come next in one answer, as a mask over the logits."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from qwenstack.core.errors import EngineError, RequestError
from qwenstack.core.grammar import Grammar
from qwenstack.engine.grammar.failure import explain_failure
from qwenstack.engine.grammar.limits import parser_limits

_SPARSE = 4
"""Where fewer than one word in four of a mask differs from all or nothing, single ids are written, not a whole row."""
_ALL = np.uint32(0xFFFFFFFF)
_BANNED = np.float32(-np.inf)
_FORCED_BYTES_A_TOKEN = 16
"""More of a forced text is not looked at; few tokens are longer."""


@dataclass(frozen=True)
class MatcherVocabulary:
    """A model's vocabulary in the matcher's form, and which ids a grammar may use."""

    tokens: LLTokenizer
    eos_token_ids: frozenset[int]
    usable_words: np.ndarray
    """`[W]` uint32, bit i of word w for id 32 w + i; read only. End tokens are among them."""

    fence_ids: tuple[int, ...] = ()
    """The ids that begin a Markdown fence."""

    def is_usable(self, token_id: int) -> bool:
        """Whether a grammar may use an id at all."""
        word, bit = divmod(token_id, 32)
        return word < len(self.usable_words) and bool(int(self.usable_words[word]) >> bit & 1)

    @cached_property
    def inner_words(self) -> np.ndarray:
        """The same without the end tokens."""
        words = self.usable_words.copy()
        for token_id in self.eos_token_ids:
            words[token_id // 32] &= ~np.uint32(1 << token_id % 32)
        return words


class Share:
    """Lives as long as any constraint of one compilation; whoever counts memory holds it weakly."""

    __slots__ = ("__weakref__",)


class TokenConstraint:
    """One answer's place in its grammar; depends on nothing but the tokens accepted so far.

    Raises:
        RequestError: the grammar cannot be compiled.
    """

    def __init__(self, lark: str, vocabulary: MatcherVocabulary, grammar: Grammar) -> None:
        """Compile; takes up to half a second and releases the GIL meanwhile. Use `clone` for each answer.

        Args:
            lark: the grammar in the matcher's notation.
            vocabulary: what texts are made of.
            grammar: the same as its caller wrote it, for errors.
        """
        self.share = Share()
        """What was compiled, which all clones hold together."""
        self._vocabulary = vocabulary
        self._grammar = grammar
        self._matcher = LLMatcher(vocabulary.tokens, lark, log_level=0, limits=parser_limits(is_own=grammar.is_own))
        self._words = np.empty(len(vocabulary.usable_words), np.uint32)
        self._ended = False
        self._forced = b""
        """Text that must follow, as far as it was asked for."""
        self._raise_if_failed()

    def clone(self) -> TokenConstraint:
        """Return an independent constraint at the same place; takes microseconds."""
        twin = copy(self)
        twin.__dict__.update(_matcher=self._matcher.deep_copy(), _words=np.empty_like(self._words))
        return twin

    @property
    def is_complete(self) -> bool:
        """Whether the text may end here."""
        return self._ended or self._matcher.is_accepting()

    @property
    def must_end(self) -> bool:
        """Whether nothing but an end token may follow, whatever `min_tokens` or `ignore_eos` say."""
        return self._ended or self._matcher.is_stopped()

    def allows(self, token_id: int) -> bool:
        """Whether a token may come next; takes microseconds where the mask of a language such as Python takes ms.

        Raises:
            RequestError: the grammar is too complex at this place.
        """
        if token_id in self._vocabulary.eos_token_ids:
            return self.is_complete
        if self._ended or not self._vocabulary.is_usable(token_id):
            return False
        is_allowed = self._matcher.validate_tokens([token_id]) == 1
        self._raise_if_failed(token_id)
        return is_allowed

    def count_fence_as_end(self, logits_V: np.ndarray) -> np.ndarray:
        """Return the logits with an end token as likely as the Markdown fence that closes a whole program.

        Chat models write programs between fences. Forbidden as it is, the closing one would leave them no way to say
        that they are done, and they go on. Only Python's grammar has such an end. A fence that it allows is none, such
        as one in a comment.

        Shapes: `logits_V` `[V]` float32, read only.

        Raises:
            RequestError: the grammar is too complex at this place.
        """
        fence_ids = self._vocabulary.fence_ids
        if self._grammar.kind != "python" or not fence_ids or self._ended or not self._matcher.is_accepting():
            return logits_V
        fence_id = max(fence_ids, key=logits_V.item)
        end_id = max(sorted(self._vocabulary.eos_token_ids), key=logits_V.item)
        if logits_V[fence_id] <= logits_V[end_id] or self.allows(fence_id):
            return logits_V
        counted_V = logits_V.copy()
        counted_V[end_id] = logits_V[fence_id]
        return counted_V

    def mask_logits(self, logits_V: np.ndarray) -> np.ndarray:
        """Return a copy with minus infinity for each token that may not come next.

        Shapes: `logits_V` `[V]` float32, read only; rows from the vocabulary's end on are padding and never allowed.

        Raises:
            RequestError: the grammar is too complex at this place, or leaves no token at all.
        """
        words = self.allowed_words()
        masked_V = _masked(logits_V, words)
        if len(logits_V) > 32 * len(words):
            masked_V[32 * len(words) :] = _BANNED
        return masked_V

    def allowed_words(self) -> np.ndarray:
        """Return the mask itself, `[W]` uint32, bit i of word w for id 32 w + i; valid until the next call.

        Raises:
            RequestError: the grammar is too complex at this place, or leaves no token at all.
        """
        words = self._words
        try:
            self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        except ValueError:
            self._raise_if_failed()
            raise
        self._raise_if_failed()
        # A grammar may name an end token itself; it comes nowhere but at the end.
        usable = self._vocabulary.usable_words if self._matcher.is_accepting() else self._vocabulary.inner_words
        np.bitwise_and(words, usable, out=words)
        if not words.any():
            raise RequestError(
                "The grammar leaves no token that could come next; it asks for a control token or contradicts itself.",
                param="grammar",
                code="grammar_dead_end",
            )
        return words

    def accept(self, token_id: int) -> None:
        """Move on by a token that was chosen; tokens after the end are of no interest.

        Raises:
            RequestError: the grammar is too complex at this place.
            EngineError: the mask did not allow the token.
        """
        if self._ended:
            return
        if self._forced:  # long forced texts are walked through once, not at every token
            piece = self._vocabulary.tokens.decode_bytes([token_id])
            self._forced = self._forced[len(piece) :] if piece and self._forced.startswith(piece) else b""
        if token_id in self._vocabulary.eos_token_ids and self._matcher.is_accepting():
            self._ended = True
            return
        if not self._matcher.consume_token(token_id):
            self._raise_if_failed(token_id)

    def forced_token_ids(self, limit: int) -> list[int]:
        """Return at most `limit` tokens of the text that must follow, cut by longest match: a guess for drafts."""
        if self._ended or limit <= 0:
            return []
        if not self._forced:
            self._forced = bytes(self._matcher.compute_ff_bytes())
        text = self._forced[: _FORCED_BYTES_A_TOKEN * limit].decode(errors="ignore")
        return self._vocabulary.tokens.greedy_tokenize(text)[:limit] if text else []

    def _raise_if_failed(self, token_id: int | None = None) -> None:
        if not self._matcher.is_error():
            return
        message = self._matcher.get_error()
        if token_id is not None and "satisfy the grammar" in message:
            first_line = message.strip().split("\n")[0][:300]
            raise EngineError(f"Token {token_id} was chosen, which the grammar's mask does not allow: {first_line}")
        raise RequestError(explain_failure(message, self._grammar), param="grammar", code="invalid_grammar")


def _masked(logits_V: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Write whichever set of ids is smaller, those that stay or those that go."""
    limit = len(words) // _SPARSE
    some = np.flatnonzero(words)
    if len(some) < limit:
        masked_V = np.full(len(logits_V), _BANNED, np.float32)
        ids = _ids_of(words, some)
        ids = ids[ids < len(logits_V)]
        masked_V[ids] = logits_V[ids]
        return masked_V
    not_all = np.flatnonzero(words != _ALL)
    if len(not_all) < limit:
        masked_V = logits_V.astype(np.float32)
        ids = _ids_of(~words, not_all)
        masked_V[ids[ids < len(logits_V)]] = _BANNED
        return masked_V
    allowed = np.unpackbits(words.view(np.uint8), bitorder="little").view(bool)[: len(logits_V)]
    masked_V = np.full(len(logits_V), _BANNED, np.float32)
    np.copyto(masked_V[: len(allowed)], logits_V[: len(allowed)], where=allowed)
    return masked_V


def _ids_of(words: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the ids whose bits are set in the words at these places."""
    bits = np.unpackbits(words[places].view(np.uint8), bitorder="little").reshape(-1, 32)
    rows, columns = np.nonzero(bits)
    return places[rows] * 32 + columns
