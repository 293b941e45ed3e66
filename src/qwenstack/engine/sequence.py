"""One answer in the making: its tokens, its blocks, and how far it has been computed."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from qwenstack.core.outputs import TokenLogprob
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.answer import AnswerStream, Release
from qwenstack.engine.cache_key import child_key
from qwenstack.engine.grammar import TokenConstraint
from qwenstack.engine.sampler import TokenHistory
from qwenstack.kernels import ActivationBits
from qwenstack.models import LoraAdapter


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
    arrival_step: int
    constraint: TokenConstraint | None = None
    """What its grammar allows next."""
    leader: Sequence | None = None
    """Another answer to the same prompt, whose prefix this one waits to share."""
    priority: int = 0
    """Urgency with which it was admitted."""
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
    num_cached_tokens: int | None = None
    """Prompt tokens that were not computed again; None until the first admission."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """Collected while the prompt is read; None once delivered, or where nobody asked."""
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
    def waits_for_leader(self) -> bool:
        """Whether to be admitted now would compute what another answer to the same prompt is computing."""
        return self.leader is not None and self.leader.is_reading

    @property
    def shares_prefix(self) -> bool:
        """Whether it may use cached keys and values; scores of a prompt need every row computed."""
        return self.options.prefix_cache and self.params.prompt_logprobs is None

    @property
    def active_constraint(self) -> TokenConstraint | None:
        """The grammar, where it has a say: not while the model thinks."""
        return None if self.answer.is_thinking else self.constraint

    def foreseen_token_ids(self, limit: int) -> list[int]:
        """Return at most `limit` tokens that are (nearly) bound to follow: forced ones, or a grammar's only way."""
        forced_ids = self.answer.forced_token_ids()
        if forced_ids:
            return list(forced_ids[:limit])
        constraint = self.active_constraint
        return [] if constraint is None else constraint.forced_token_ids(limit)

    def push(self, token_id: int, logprob: TokenLogprob | None) -> Release:
        """Add a chosen token to the answer, and return what may be shown for it."""
        constraint = self.active_constraint
        if constraint is not None and token_id not in self.answer.ids_beside_grammar:
            constraint.accept(token_id)
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
