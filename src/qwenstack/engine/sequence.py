"""One answer in the making: its tokens, its blocks, and how far it has been computed."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import numpy as np

from qwenstack.core.outputs import TokenLogprob
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.answer import AnswerStream, Release
from qwenstack.engine.cache_key import child_key
from qwenstack.engine.grammar import TokenConstraint
from qwenstack.engine.sampler import TokenHistory
from qwenstack.engine.scheduler import Rank
from qwenstack.kernels import ActivationBits
from qwenstack.models import LoraAdapter

_JOINED_TOKENS = 16
"""Each delta wakes a task of the server for 25 us (lab notes, "A turn of the loop"); who leaves pays for those told."""


@dataclass(frozen=True, slots=True)
class SayOfGrammar:
    """What a grammar says of one token; a `sampler.Restriction`."""

    constraint: TokenConstraint
    ids_beside: tuple[int, ...]
    """Allowed besides, and of no interest to the grammar: the mark that opens thinking."""

    @property
    def must_end(self) -> bool:
        """Whether nothing but an end token may come."""
        return self.constraint.must_end

    def count_fence_as_end(self, logits_V: np.ndarray) -> np.ndarray:
        """See `TokenConstraint.count_fence_as_end`."""
        return self.constraint.count_fence_as_end(logits_V)

    def allows(self, token_id: int) -> bool:
        """Whether this token may come."""
        return token_id in self.ids_beside or self.constraint.allows(token_id)

    def mask(self, logits_V: np.ndarray) -> np.ndarray:
        """Return a copy with minus infinity for each token that may not."""
        masked_V = self.constraint.mask_logits(logits_V)
        masked_V[list(self.ids_beside)] = logits_V[list(self.ids_beside)]
        return masked_V

    def accept(self, token_id: int) -> None:
        """Tell the grammar which token came."""
        if token_id not in self.ids_beside:
            self.constraint.accept(token_id)


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """The engine owns it from arrival to its last delta."""

    key: int
    request_id: str
    index: int
    prompt_token_ids: SequenceOf[int]
    params: SamplingParams
    options: RequestOptions
    seed: int
    history: TokenHistory
    answer: AnswerStream
    adapter: LoraAdapter | None
    activation_bits: ActivationBits
    """How finely it is computed, fixed when it arrived."""
    root_key: bytes
    """What its first block's key is chained to: all that decides keys and values besides the tokens."""
    rank: Rank
    """Who goes before whom, from its arrival to its end."""
    grammar_key: int | None = None
    """Names the compilation that it waits for."""
    constraint: TokenConstraint | None = None
    """What its grammar allows next."""
    leader: Sequence | None = None
    """Another answer to the same prompt, whose prefix this one waits to share."""
    output_token_ids: list[int] = field(default_factory=list[int])
    blocks: list[int] = field(default_factory=list[int])
    num_computed_tokens: int = 0
    num_known_blocks: int = 0
    """Full blocks that were offered to the prefix cache."""
    is_sound: bool = True
    """Whether all that was computed are numbers."""
    num_stored_blocks: int = 0
    """Blocks behind the computed ones that can be read from the disk."""
    known_length: int | None = None
    """Blocks from the first on that were in memory or on the disk when it was first looked for; None: not yet."""
    num_cached_tokens: int = 0
    """Prompt tokens that were not computed again."""
    is_first_reading: bool = True
    """Whether it was never preempted; afterwards it finds in the cache what it computed itself."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """Collected while the prompt is read; None once delivered, or where nobody asked."""
    untold: list[Release] = field(default_factory=list[Release])
    """What its tokens let go since its last delta."""
    has_told: bool = False
    """Whether there was a delta."""
    _block_keys: list[bytes] = field(default_factory=list[bytes])

    @property
    def num_tokens(self) -> int:
        """Prompt and answer so far."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def is_decoding(self) -> bool:
        """Whether only its newest token is to be computed."""
        return self.num_tokens - self.num_computed_tokens == 1

    @property
    def is_reading(self) -> bool:
        """Whether its prompt is not computed yet."""
        return self.num_computed_tokens < len(self.prompt_token_ids)

    @property
    def is_to_tell(self) -> bool:
        """Whether there is enough for a delta."""
        return len(self.untold) >= (1 if self.options.stream or not self.has_told else _JOINED_TOKENS)

    @property
    def waits_for_leader(self) -> bool:
        """Whether to be admitted now would compute what another answer to the same prompt is computing."""
        return self.leader is not None and self.leader.is_reading

    @property
    def shares_prefix(self) -> bool:
        """Whether it may use cached keys and values; scores of a prompt need every row computed."""
        return self.options.prefix_cache and self.prompt_logprobs is None

    @property
    def say_of_grammar(self) -> SayOfGrammar | None:
        """What its grammar has to say of the next token; nothing while the model thinks or a token has to come."""
        if self.constraint is None or self.answer.is_thinking or self.answer.forced_token_ids():
            return None
        return SayOfGrammar(self.constraint, tuple(self.answer.ids_beside_grammar))

    def foreseen_token_ids(self, limit: int) -> list[int]:
        """Return at most `limit` tokens that are (nearly) bound to follow: forced ones, or a grammar's only way."""
        forced_ids = self.answer.forced_token_ids()
        if forced_ids:
            return list(forced_ids[:limit])
        say = self.say_of_grammar
        return [] if say is None else say.constraint.forced_token_ids(limit)

    def push(self, token_id: int, logprob: TokenLogprob | None, say: SayOfGrammar | None) -> Release:
        """Add a token to the answer that was chosen by the grammar's say, and return what may be shown for it."""
        if say is not None:
            say.accept(token_id)
        self.output_token_ids.append(token_id)
        self.history.add(token_id)
        return self.answer.push(token_id, logprob)

    def tokens(self, start: int, stop: int) -> list[int]:
        """Return the token ids of positions `start … stop - 1`."""
        num_prompt = len(self.prompt_token_ids)
        if start >= num_prompt:
            return self.output_token_ids[start - num_prompt : stop - num_prompt]
        return [*self.prompt_token_ids[start:stop], *self.output_token_ids[: max(stop - num_prompt, 0)]]

    def block_key(self, number: int, block_size: int) -> bytes:
        """Return the key of the full block with this number."""
        while len(self._block_keys) <= number:
            at = len(self._block_keys)
            parent = self._block_keys[-1] if at else self.root_key
            self._block_keys.append(child_key(parent, self.block_tokens(at, block_size)))
        return self._block_keys[number]

    def block_tokens(self, number: int, block_size: int) -> tuple[int, ...]:
        """Return the tokens of the full block with this number."""
        return tuple(self.tokens(number * block_size, (number + 1) * block_size))

    def chain(self, block_size: int, first: int = 0) -> Iterator[tuple[bytes, tuple[int, ...]]]:
        """Yield key and tokens of its full blocks from number `first` on, without the one that holds the last token.

        At least one token of a text is always computed: its logits are wanted.
        """
        for number in range(first, (self.num_tokens - 1) // block_size):
            yield self.block_key(number, block_size), self.block_tokens(number, block_size)
