"""Continuous batching: requests join and leave at every step, and each token comes out as soon as it is chosen.

`Engine` is synchronous and single-threaded: `add_request`, `abort`, `step`. Who calls it, a loop in this process or a
worker behind a socket, is not its business.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence as SequenceOf
from itertools import islice

import numpy as np

from qwenstack.core.errors import CapacityError, RequestError
from qwenstack.core.outputs import OutputDelta
from qwenstack.core.protocols import EngineStats
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.answer import AnswerStream, Release
from qwenstack.engine.batch import build_batch
from qwenstack.engine.block_pool import BlockPool
from qwenstack.engine.loading import LoadedModel
from qwenstack.engine.sampler import TokenHistory, choose_token, token_logprob, uniform_number
from qwenstack.engine.scheduler import Plan, plan
from qwenstack.engine.sequence import Sequence

_MAX_SCORED_PROMPT = 32_768
"""Scores of a prompt come in one delta, about 340 bytes a token with 20 alternatives: 11 MB, a sixth of a frame."""
_LOGIT_ROWS = 32
"""Rows of prompt logits held at a time: 32 x 152k float32 are 19 MB."""


class Engine:
    """Generates many answers at once on one loaded model."""

    def __init__(self, model: LoadedModel) -> None:
        """Take over a loaded model and its empty cache."""
        self.model = model
        self._pool = BlockPool(model.kv_cache.num_blocks)
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}
        self._next_key = 0
        self._num_steps = 0
        self._num_preemptions = 0
        self._prompt_tokens = 0
        self._generation_tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._running or self._waiting)

    def add_request(self, request_id: str, prompt_token_ids: SequenceOf[int], params: SamplingParams) -> None:
        """Queue a request; its deltas come out of later steps.

        Raises:
            RequestError: the prompt is empty, too long, or holds an id outside the vocabulary.
            CapacityError: the queue is full.
        """
        max_tokens = self._check(prompt_token_ids, params)
        config = self.model.config
        places = config.max_num_waiting + config.max_num_seqs
        if params.n > places:
            raise RequestError(f"`n` is {params.n}; this server takes {places} answers in all.", param="n")
        if params.n > places - len(self._running) - len(self._waiting):
            raise CapacityError(f"{len(self._waiting)} answers are waiting already; try again in a moment.")
        seed = params.seed if params.seed is not None else secrets.randbits(62)
        prompt_ids = np.unique(np.asarray(prompt_token_ids, np.int64))
        for index in range(params.n):
            self._waiting.append(
                Sequence(
                    key=self._next_key,
                    request_id=request_id,
                    index=index,
                    prompt_token_ids=prompt_token_ids,
                    params=params,
                    seed=seed,
                    history=TokenHistory(prompt_ids),
                    answer=AnswerStream(
                        self.model.tokenizer, params, max_tokens=max_tokens, prompt_token_ids=prompt_token_ids
                    ),
                    prompt_logprobs=[None] if params.prompt_logprobs is not None and index == 0 else None,
                )
            )
            self._next_key += 1

    def abort(self, request_id: str) -> bool:
        """Forget a request in whatever state it is; its blocks are free at once. Unknown ids are fine."""
        running = [sequence for sequence in self._running.values() if sequence.request_id == request_id]
        for sequence in running:
            self._retire(sequence)
        num_waiting = len(self._waiting)
        self._waiting = deque(sequence for sequence in self._waiting if sequence.request_id != request_id)
        return bool(running) or len(self._waiting) < num_waiting

    def step(self) -> list[OutputDelta]:
        """Compute the next tokens of as many sequences as fit, and return what is new.

        A failure of the computation ends the sequences of this step with an error; the engine goes on.
        """
        config = self.model.config
        decision = plan(
            [sequence.view() for sequence in self._running.values()],
            [sequence.view() for sequence in islice(self._waiting, config.max_num_seqs)],  # no more can be admitted
            num_free_blocks=self._pool.num_free,
            block_size=config.block_size,
            token_budget=config.max_num_batched_tokens,
            max_num_seqs=config.max_num_seqs,
        )
        self._apply(decision)
        self._num_steps += 1
        work = [(self._running[chunk.key], chunk.num_tokens) for chunk in decision.chunks]
        if not work:
            return []
        try:
            ready = self._compute(work)
        except Exception as error:  # noqa: BLE001 - whatever broke this batch must not end the others' service
            return [self._fail(sequence, error) for sequence, _ in work]
        return [self._advance(sequence, logits_V) for sequence, logits_V in ready]

    def stats(self) -> EngineStats:
        """Return counters and what is held now."""
        return EngineStats(
            num_requests_running=len(self._running),
            num_requests_waiting=len(self._waiting),
            num_blocks_total=self._pool.num_blocks,
            num_blocks_free=self._pool.num_free,
            num_preemptions=self._num_preemptions,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            prefix_cache_queries=0,
            prefix_cache_hits=0,
            num_steps=self._num_steps,
        )

    def check_integrity(self) -> None:
        """Compare the block pool with what the sequences own.

        Raises:
            EngineError: a block is lost or has two owners.
        """
        self._pool.check_integrity(sequence.blocks for sequence in self._running.values())

    def _check(self, prompt_token_ids: SequenceOf[int], params: SamplingParams) -> int:
        """Return how many tokens the answer may have, or refuse the request."""
        num_prompt, limit = len(prompt_token_ids), self.model.card.max_model_len
        if num_prompt == 0:
            raise RequestError("The prompt is empty; give at least one token.", param="prompt", code="invalid_value")
        if num_prompt >= limit:
            raise RequestError(
                f"The prompt has {num_prompt} tokens; this model's context holds {limit}, with the answer. Shorten it.",
                param="messages",
                code="context_length_exceeded",
            )
        vocab_size = self.model.card.vocab_size
        highest, lowest = max(prompt_token_ids), min(prompt_token_ids)
        if lowest < 0 or highest >= vocab_size:
            wrong = lowest if lowest < 0 else highest
            raise RequestError(
                f"Token id {wrong} is not in the vocabulary; ids lie between 0 and {vocab_size - 1}.",
                param="prompt",
                code="invalid_value",
            )
        if params.prompt_logprobs is not None and num_prompt > _MAX_SCORED_PROMPT:
            raise RequestError(
                f"The prompt has {num_prompt} tokens; prompts of at most {_MAX_SCORED_PROMPT} can be scored at once.",
                param="logprobs",
                code="invalid_value",
            )
        self._check_named_ids(params)
        room = limit - num_prompt
        if params.max_tokens is not None and params.max_tokens > room:
            raise RequestError(
                f"The prompt has {num_prompt} tokens and `max_tokens` is {params.max_tokens}, together more than the "
                f"{limit} of this model's context. Ask for at most {room}, or leave `max_tokens` out.",
                param="max_tokens",
                code="context_length_exceeded",
            )
        return room if params.max_tokens is None else params.max_tokens

    def _check_named_ids(self, params: SamplingParams) -> None:
        vocab_size = self.model.card.vocab_size
        for name, ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            for token_id in ids:
                if not 0 <= token_id < vocab_size:
                    raise RequestError(
                        f"`{name}` names token id {token_id}; ids lie between 0 and {vocab_size - 1}.",
                        param=name,
                        code="invalid_value",
                    )

    def _apply(self, decision: Plan) -> None:
        for key in sorted(decision.preempted, reverse=True):
            sequence = self._running.pop(key)
            self._release_blocks(sequence)
            sequence.num_computed_tokens = 0
            self._waiting.appendleft(sequence)
            self._num_preemptions += 1
        for key in decision.admitted:
            sequence = self._waiting.popleft()
            assert sequence.key == key
            self._running[key] = sequence
        for chunk in decision.chunks:
            self._running[chunk.key].blocks.extend(self._pool.allocate(chunk.num_new_blocks))

    def _compute(self, work: SequenceOf[tuple[Sequence, int]]) -> list[tuple[Sequence, np.ndarray]]:
        """Run one forward pass; return the sequences that are up to date, each with the logits of its next token."""
        batch = build_batch(work, self.model.config.block_size)
        x_TD = self.model.decoder.forward(batch, self.model.kv_cache)
        ready: list[Sequence] = []
        rows: list[int] = []
        for (sequence, count), start in zip(work, batch.query_start.tolist(), strict=False):
            self._score_prompt(sequence, x_TD[start : start + count])
            self._prompt_tokens += max(min(count, len(sequence.prompt_token_ids) - sequence.num_computed_tokens), 0)
            sequence.num_computed_tokens += count
            if sequence.num_computed_tokens == sequence.num_tokens:
                ready.append(sequence)
                rows.append(start + count - 1)
        if not ready:
            return []
        logits_RV = self.model.decoder.logits(x_TD[rows])[:, : self.model.card.vocab_size]
        return list(zip(ready, logits_RV, strict=True))

    def _advance(self, sequence: Sequence, logits_V: np.ndarray) -> OutputDelta:
        """Choose the next token of a sequence; what goes wrong here is that sequence's alone."""
        if not np.isfinite(logits_V.max()):
            return self._fail(sequence, ArithmeticError("the model gave logits that are not numbers"))
        try:
            released = self._choose(sequence, logits_V)
        except Exception as error:  # noqa: BLE001 - one request's choices must not end the others' service
            return self._fail(sequence, error)
        if released.finish_reason is not None:
            self._retire(sequence)
        prompt_logprobs, sequence.prompt_logprobs = sequence.prompt_logprobs, None
        return OutputDelta(
            request_id=sequence.request_id,
            index=sequence.index,
            text=released.text,
            reasoning_text=released.reasoning_text,
            tool_calls=released.tool_calls,
            token_ids=released.token_ids,
            logprobs=None if sequence.params.logprobs is None else released.logprobs,
            num_generated_tokens=released.num_generated_tokens,
            num_reasoning_tokens=released.num_reasoning_tokens,
            finish_reason=released.finish_reason,
            stop_reason=released.stop_reason,
            prompt_logprobs=prompt_logprobs,
        )

    def _choose(self, sequence: Sequence, logits_V: np.ndarray) -> Release:
        params = sequence.params
        forced_ids = sequence.answer.forced_token_ids()
        if forced_ids:
            token_id = forced_ids[0]
        else:
            token_id = choose_token(
                logits_V,
                params,
                sequence.history,
                forbidden_ids=sequence.answer.forbidden_ids,
                uniform=uniform_number(sequence.seed, sequence.index, len(sequence.output_token_ids)),
            )
        logprob = None if params.logprobs is None else token_logprob(logits_V, token_id, params.logprobs)
        sequence.output_token_ids.append(token_id)
        sequence.history.add(token_id)
        self._generation_tokens += 1
        return sequence.answer.push(token_id, logprob)

    def _score_prompt(self, sequence: Sequence, x_TD: np.ndarray) -> None:
        """Score the prompt tokens that follow the rows just computed, a few rows of logits at a time."""
        scored, num_top = sequence.prompt_logprobs, sequence.params.prompt_logprobs
        if scored is None or num_top is None:
            return
        first_row = sequence.num_computed_tokens
        end = min(first_row + len(x_TD) + 1, len(sequence.prompt_token_ids))
        for start in range(len(scored), end, _LOGIT_ROWS):
            stop = min(start + _LOGIT_ROWS, end)
            logits_RV = self.model.decoder.logits(x_TD[start - 1 - first_row : stop - 1 - first_row])
            targets = sequence.prompt_token_ids[start:stop]
            for logits_V, target in zip(logits_RV[:, : self.model.card.vocab_size], targets, strict=True):
                scored.append(token_logprob(logits_V, target, num_top))

    def _fail(self, sequence: Sequence, error: Exception) -> OutputDelta:
        self._retire(sequence)
        return OutputDelta(
            request_id=sequence.request_id,
            index=sequence.index,
            finish_reason="error",
            error=f"{type(error).__name__}: {error}",
        )

    def _retire(self, sequence: Sequence) -> None:
        del self._running[sequence.key]
        self._release_blocks(sequence)

    def _release_blocks(self, sequence: Sequence) -> None:
        self._pool.release(sequence.blocks)
        sequence.blocks = []
