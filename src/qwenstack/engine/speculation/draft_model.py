"""Drafts of a small model that speaks the same vocabulary.

The draft model has a KV cache of its own and always computes the text that was really chosen: what it reads is the
prompt and the answer so far, what it adds are its own likeliest tokens, and where the answer took another turn, the
positions after it are written again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

import numpy as np

from qwenstack.core.errors import CapacityError, ConfigError
from qwenstack.engine.loading import LoadedModel, load_tokenizer
from qwenstack.engine.memory import available_memory_bytes
from qwenstack.engine.scheduler import blocks_for
from qwenstack.engine.speculation.cost import StepCost
from qwenstack.engine.speculation.speculator import DraftRequest
from qwenstack.engine.speculation.switch import Switch
from qwenstack.hub.checkpoint import open_checkpoint
from qwenstack.models import Decoder, KVCache, ModelConfig, PackedBatch, WeightReader, kv_bytes_per_token, read_config
from qwenstack.tokenizer import Tokenizer

_ADVICE = "Take a draft model of the same family and generation."
_MAX_DRAFTS = 8
"""Beyond, even a draft that is right nine times of ten is kept for less than half of its length."""
_MAX_CATCH_UP = 256
"""Tokens of prompts that one step reads beside drafting, so that the answers' streams do not stall."""
_FIRST_PAUSE = 64
_LONGEST_PAUSE = 1024
"""Tokens before drafting is tried again where it did not pay; twice as many each time."""
_PRIOR_HITS, _PRIOR_TRIALS = 3.0, 4.0
"""What is believed of a draft token before any was seen: Leviathan et al. 2023 report acceptance of 0.6 to 0.9."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftModel:
    """A loaded model that drafts for another one."""

    decoder: Decoder
    kv_cache: KVCache
    vocab_size: int
    """Ids that the model it drafts for knows."""
    relative_size: float
    """Parameters in shares of the other model's: decoding waits for weights, so that is also a step's relative time."""


def load_draft_model(path: Path, target: LoadedModel, *, num_blocks: int | None = None) -> DraftModel:
    """Open a draft model on the kernels of the model it drafts for.

    Args:
        path: a `.gguf` file or a checkpoint folder.
        target: the model that answers.
        num_blocks: size of the draft's KV cache; None: as many blocks as the target has, so that none is ever lacking.

    Raises:
        ConfigError: the vocabularies differ.
        CapacityError: it does not fit into memory beside the other one.
        CheckpointError: the model is missing, damaged or of a kind that is not read here.
    """
    checkpoint = open_checkpoint(path)
    check_same_vocabulary(target.tokenizer, load_tokenizer(checkpoint))
    config = read_config(checkpoint)
    if config.vocab_size < target.card.vocab_size:
        raise ConfigError(
            f"The draft model has {config.vocab_size} token embeddings, {target.card.id} needs "
            f"{target.card.vocab_size}. {_ADVICE}"
        )
    reader = WeightReader(checkpoint, config)
    return DraftModel(
        kv_cache=_allocate_cache(config, reader, target.kv_cache, num_blocks),
        decoder=Decoder(config, reader, target.decoder.kernels),
        vocab_size=target.card.vocab_size,
        relative_size=config.num_parameters / target.decoder.config.num_parameters,
    )


def _allocate_cache(config: ModelConfig, reader: WeightReader, like: KVCache, num_blocks: int | None) -> KVCache:
    dtype = like.layers[0][0].dtype
    num_blocks = like.num_blocks if num_blocks is None else num_blocks
    cache_bytes = num_blocks * like.block_size * kv_bytes_per_token(config, dtype)
    free_bytes = available_memory_bytes()
    if reader.num_bytes + cache_bytes > free_bytes:
        raise CapacityError(
            f"The draft model needs {reader.num_bytes / 1e9:.1f} GB for its weights and {cache_bytes / 1e9:.1f} GB for "
            f"its cache; {free_bytes / 1e9:.1f} GB are free. Set a smaller `kv_cache_memory_bytes`, or do without it."
        )
    return KVCache.allocate(config, num_blocks=num_blocks, block_size=like.block_size, dtype=dtype)


def check_same_vocabulary(target: Tokenizer, draft: Tokenizer) -> None:
    """Make sure that every id means the same to both models.

    Raises:
        ConfigError: it does not; the message names the first difference.
    """
    if target.vocab_size != draft.vocab_size:
        raise ConfigError(
            f"The draft model knows {draft.vocab_size} tokens, the model it drafts for {target.vocab_size}. {_ADVICE}"
        )
    if target.eos_token_ids != draft.eos_token_ids:
        raise ConfigError(
            f"The draft model ends an answer with the tokens {sorted(draft.eos_token_ids)}, "
            f"the model it drafts for with {sorted(target.eos_token_ids)}. {_ADVICE}"
        )
    for token_id in range(target.vocab_size):
        ours, theirs = target.token_bytes(token_id), draft.token_bytes(token_id)
        if ours != theirs:
            raise ConfigError(
                f"Token {token_id} is {theirs!r} to the draft model and {ours!r} to the model it drafts for. {_ADVICE}"
            )


@dataclass(slots=True, kw_only=True)
class _Answer:
    """What the draft model has computed of one sequence, and how its drafts fared."""

    blocks: list[int] = field(default_factory=list[int])
    num_computed_tokens: int = 0
    """Positions that have keys and values, drafts included until they are compared."""
    num_tokens: int = 0
    """Length of the text when it was last drafted on."""
    drafts: list[int] = field(default_factory=list[int])
    hits: float = _PRIOR_HITS
    trials: float = _PRIOR_TRIALS
    switch: Switch = field(default_factory=Switch)
    pause: int = _FIRST_PAUSE
    resume_at: int = 0
    """Length of the text from which on drafts are given."""

    def learn(self, request: DraftRequest, cost: StepCost) -> None:
        """Compare the last drafts with what was chosen, and keep what was computed of the text that is."""
        num_new = request.num_tokens - self.num_tokens
        hits = _common_prefix(self.drafts, request.tokens(self.num_tokens, self.num_tokens + len(self.drafts)))
        # The newest token is computed again if need be: its row gives the first draft.
        self.num_computed_tokens = min(self.num_computed_tokens, self.num_tokens + hits, request.num_tokens - 1)
        if self.drafts and num_new:
            self.hits += hits
            self.trials += min(hits + 1, len(self.drafts))
            self._judge(self.switch.after(num_new, cost.of(1 + len(self.drafts))), request.num_tokens)
        self.num_tokens = request.num_tokens
        self.drafts = []

    def _judge(self, switch: Switch, num_tokens: int) -> None:
        self.switch = switch
        if not switch.is_on:
            self.switch = Switch()
            self.resume_at = num_tokens + self.pause
            self.pause = min(2 * self.pause, _LONGEST_PAUSE)


class DraftModelSpeculator:
    """Drafts for all sequences together, in as many small forward passes as the longest draft has tokens."""

    def __init__(self, model: DraftModel, *, cost: StepCost | None = None) -> None:
        """Take over a draft model and its empty cache.

        Args:
            model: the draft model.
            cost: of a draft, its row in the other model's step and its own step together; None: from the sizes.
        """
        self._model = model
        self._cost = cost or StepCost(per_row=min(StepCost().per_row + model.relative_size, 1.0))
        self._free = list(range(model.kv_cache.num_blocks))
        self._answers: dict[int, _Answer] = {}

    @property
    def num_free_blocks(self) -> int:
        """Blocks of the draft model's cache that no sequence holds."""
        return len(self._free)

    def propose(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        """Return each sequence's likeliest continuation; none where the prompt is not read yet or blocks lack."""
        lengths = [self._next_length(request, num_running=len(requests)) for request in requests]
        drafting = self._catch_up([pair for pair in zip(requests, lengths, strict=True) if pair[1]])
        while drafting := [(answer, length) for answer, length in drafting if len(answer.drafts) < length]:
            self._compute([(answer, answer.drafts[-1:]) for answer, _ in drafting])
        return [list(self._answers[request.key].drafts) for request in requests]

    def forget(self, key: int) -> None:
        """Give a sequence's blocks back."""
        answer = self._answers.pop(key, None)
        if answer is not None:
            self._free.extend(answer.blocks)

    def _next_length(self, request: DraftRequest, *, num_running: int) -> int:
        """Learn from the last step, then decide how many drafts pay."""
        answer = self._answers.setdefault(request.key, _Answer())
        answer.learn(request, self._cost)
        if request.num_tokens < answer.resume_at:
            return 0
        chances = repeat(answer.hits / answer.trials, _MAX_DRAFTS)
        return self._cost.draft_length(chances, num_running=num_running, limit=request.limit)

    def _catch_up(self, requests: Sequence[tuple[DraftRequest, int]]) -> list[tuple[_Answer, int]]:
        """Compute what is missing of the texts, in pieces; return the answers that are up to date, one draft each."""
        budget = _MAX_CATCH_UP
        work: list[tuple[_Answer, list[int]]] = []
        up_to_date: list[tuple[_Answer, int]] = []
        for request, length in requests:
            answer = self._answers[request.key]
            start = answer.num_computed_tokens
            stop = min(request.num_tokens, start + budget)
            if start == stop or not self._reserve(answer, stop + length):
                continue
            work.append((answer, request.tokens(start, stop)))
            budget -= stop - start
            if stop == request.num_tokens:
                up_to_date.append((answer, length))
        if work:
            self._compute(work)
        for answer, _ in work:
            if answer.num_computed_tokens < answer.num_tokens:
                answer.drafts = []  # in the middle of a prompt the next token is known
        return up_to_date

    def _compute(self, work: Sequence[tuple[_Answer, list[int]]]) -> None:
        """Run one forward pass over the next tokens of each answer, and note the likeliest token after them."""
        batch = _pack(work, self._model.kv_cache.block_size)
        x_TD = self._model.decoder.forward(batch, self._model.kv_cache)
        logits_RV = self._model.decoder.logits(x_TD[batch.query_start[1:] - 1])
        likeliest = logits_RV[:, : self._model.vocab_size].argmax(axis=1)
        for (answer, token_ids), token_id in zip(work, likeliest.tolist(), strict=True):
            answer.num_computed_tokens += len(token_ids)
            answer.drafts.append(token_id)

    def _reserve(self, answer: _Answer, num_tokens: int) -> bool:
        """Give an answer the blocks for this many tokens, if there are enough."""
        count = blocks_for(num_tokens, self._model.kv_cache.block_size) - len(answer.blocks)
        if count > len(self._free):
            return False
        answer.blocks.extend(self._free.pop() for _ in range(count))
        return True


def _pack(work: Sequence[tuple[_Answer, list[int]]], block_size: int) -> PackedBatch:
    """Put the next tokens of each answer one after the other."""
    counts = np.array([len(token_ids) for _, token_ids in work], np.int32)
    first = np.array([answer.num_computed_tokens for answer, _ in work], np.int32)
    block_table = np.zeros((len(work), max(len(answer.blocks) for answer, _ in work)), np.int32)
    for row, (answer, _) in enumerate(work):
        block_table[row, : len(answer.blocks)] = answer.blocks
    query_start = np.concatenate([np.zeros(1, np.int32), np.cumsum(counts, dtype=np.int32)])
    positions = np.arange(query_start[-1], dtype=np.int64) + np.repeat(first - query_start[:-1], counts)
    blocks = block_table[np.repeat(np.arange(len(work)), counts), positions // block_size]
    return PackedBatch(
        token_ids=np.concatenate([np.array(token_ids, np.int64) for _, token_ids in work]),
        positions=positions,
        slot_mapping=blocks.astype(np.int64) * block_size + positions % block_size,
        query_start=query_start,
        kv_len=first + counts,
        block_table=block_table,
    )


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens the two have in common at their beginning."""
    for length, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return length
    return min(len(first), len(second))
