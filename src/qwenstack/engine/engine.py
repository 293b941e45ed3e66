"""Continuous batching: requests join and leave at every step, and each token comes out as soon as it is chosen.

`Engine` is synchronous and single-threaded: `add_request`, `abort`, `step`. Who calls it, a loop in this process or a
worker behind a socket, is not its business. A step is told in `Engine.step`: guess, plan, apply, compute, choose.

Whatever happens around a request, it gets the tokens that it would get alone: rows of a batch do not influence each
other, cached blocks hold the bits that computing them again would give, and a guess counts only where it is the token
that is chosen anyway.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from qwenstack.core.errors import CapacityError, RequestError
from qwenstack.core.outputs import OutputDelta
from qwenstack.core.protocols import EngineStats
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.answer import AnswerStream, Release
from qwenstack.engine.batch import Work, build_batch
from qwenstack.engine.kv_blocks import BlockStore, KVBlocks
from qwenstack.engine.loading import LoadedModel
from qwenstack.engine.request_check import check_request
from qwenstack.engine.sampler import TokenHistory, choose_token, token_logprob, uniform_number
from qwenstack.engine.scheduler import Plan, SequenceView, plan
from qwenstack.engine.sequence import Sequence
from qwenstack.engine.speculation import DraftRequest, Speculator
from qwenstack.engine.waiting_queue import ServedTokens, WaitingQueue, aged_priority

_LOGIT_ROWS = 32
"""Rows of prompt logits held at a time: 32 x 152k float32 are 19 MB."""
_NO_OPTIONS = RequestOptions()

Item = TypeVar("Item")


@dataclass(slots=True)
class _Counts:
    """What `EngineStats` reports of the past."""

    steps: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    cache_queries: int = 0
    cache_hits: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0


class Engine:
    """Generates many answers at once on one loaded model."""

    def __init__(
        self, model: LoadedModel, *, speculator: Speculator | None = None, store: BlockStore | None = None
    ) -> None:
        """Take over a loaded model and its empty cache."""
        self.model = model
        self._blocks = KVBlocks(model.kv_cache, store)
        self._speculator = speculator
        self._waiting = WaitingQueue()
        self._running: dict[int, Sequence] = {}
        self._requests: dict[str, list[Sequence]] = {}
        self._served = ServedTokens()
        self._next_key = 0
        self._counts = _Counts()

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._running or self._waiting)

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: SequenceOf[int],
        params: SamplingParams,
        options: RequestOptions = _NO_OPTIONS,
    ) -> None:
        """Queue a request; its deltas come out of later steps.

        Raises:
            RequestError: the prompt is empty, too long, or holds an id outside the vocabulary; or a request of this
                name is here already.
            CapacityError: the queue is full.
        """
        max_tokens = check_request(prompt_token_ids, params, self.model.card)
        if request_id in self._requests:
            raise RequestError(f"A request {request_id!r} is running already.", code="duplicate_request")
        self._check_places(params.n)
        seed = params.seed if params.seed is not None else secrets.randbits(62)
        prompt_ids = np.unique(np.asarray(prompt_token_ids, np.int64))
        answers: list[Sequence] = []
        for index in range(params.n):
            sequence = Sequence(
                key=self._next_key,
                request_id=request_id,
                index=index,
                prompt_token_ids=prompt_token_ids,
                params=params,
                options=options,
                seed=seed,
                history=TokenHistory(prompt_ids),
                answer=AnswerStream(self.model.tokenizer, params, max_tokens=max_tokens),
                root_key=self._root_key(options),
                arrival_step=self._counts.steps,
                leader=answers[0] if answers and options.prefix_cache else None,
                prompt_logprobs=[None] if params.prompt_logprobs is not None and index == 0 else None,
            )
            self._next_key += 1
            answers.append(sequence)
            self._waiting.append(sequence)
            self._served.arrive(options.tenant)
        self._requests[request_id] = answers

    def abort(self, request_id: str) -> bool:
        """Forget a request in whatever state it is; its blocks are free at once. Unknown ids are fine."""
        answers = tuple(self._requests.get(request_id, ()))
        for sequence in answers:
            self._retire(sequence)
        return bool(answers)

    def step(self) -> list[OutputDelta]:
        """Compute the next tokens of as many sequences as fit, and return what is new.

        A failure of the computation ends the sequences of this step with an error; the engine goes on.
        """
        drafts = self._guess()
        decision = self._plan(drafts)
        self._apply(decision)
        self._counts.steps += 1
        work = [
            Work(self._running[chunk.key], chunk.num_tokens, tuple(drafts.get(chunk.key, ())[: chunk.num_drafts]))
            for chunk in decision.chunks
        ]
        if not work:
            return []
        try:
            computed = self._compute(work)
        except Exception as error:  # noqa: BLE001 - whatever broke this batch must not end the others' service
            return [self._fail(item.sequence, error) for item in work]
        return [self._advance(item, logits_RV) for item, logits_RV in computed]

    def stats(self) -> EngineStats:
        """Return counters and what is held now."""
        return EngineStats(
            num_requests_running=len(self._running),
            num_requests_waiting=len(self._waiting),
            num_blocks_total=self._blocks.num_total,
            num_blocks_free=self._blocks.num_available,
            num_preemptions=self._counts.preemptions,
            prompt_tokens=self._counts.prompt_tokens,
            generation_tokens=self._counts.generation_tokens,
            prefix_cache_queries=self._counts.cache_queries,
            prefix_cache_hits=self._counts.cache_hits,
            num_steps=self._counts.steps,
        )

    def check_integrity(self) -> None:
        """Compare blocks, cache and sequences with each other.

        Raises:
            EngineError: a block is lost or has another number of holders than it should.
        """
        self._blocks.check_integrity(self._running.values())

    def _check_places(self, num_answers: int) -> None:
        config = self.model.config
        places = config.max_num_waiting + config.max_num_seqs
        if num_answers > places:
            raise RequestError(f"`n` is {num_answers}; this server takes {places} answers in all.", param="n")
        if num_answers > places - len(self._running) - len(self._waiting):
            raise CapacityError(f"{len(self._waiting)} answers are waiting already; try again in a moment.")

    def _root_key(self, options: RequestOptions) -> bytes:
        return options.tenant.encode()

    # ---- deciding ----

    def _guess(self) -> dict[int, list[int]]:
        """Return guesses of the next tokens of those that decode, by key."""
        if self._speculator is None:
            return {}
        requests = [
            DraftRequest(
                key=sequence.key,
                prompt_token_ids=sequence.prompt_token_ids,
                output_token_ids=sequence.output_token_ids,
                limit=limit,
            )
            for sequence in self._running.values()
            if sequence.is_decoding
            and sequence.options.speculation
            and (limit := sequence.answer.num_tokens_left - 1) > 0
        ]
        guesses = self._speculator.propose(requests)
        return {request.key: guess for request, guess in zip(requests, guesses, strict=True)}

    def _plan(self, drafts: dict[int, list[int]]) -> Plan:
        config = self.model.config
        seats = config.max_num_seqs - len(self._running)
        candidates = self._waiting.first(max(seats, 1), step=self._counts.steps, served=self._served.by_tenant)
        return plan(
            [self._view_running(sequence, len(drafts.get(sequence.key, ()))) for sequence in self._running.values()],
            [self._view_waiting(sequence) for sequence in candidates if not sequence.waits_for_leader],
            num_free_blocks=self._blocks.num_available,
            block_size=config.block_size,
            token_budget=config.max_num_batched_tokens,
            max_num_seqs=config.max_num_seqs,
        )

    def _view_running(self, sequence: Sequence, num_drafts: int) -> SequenceView:
        return SequenceView(
            key=sequence.key,
            priority=sequence.priority,
            tenant=sequence.options.tenant,
            num_tokens=sequence.num_tokens,
            num_computed_tokens=sequence.num_computed_tokens,
            num_blocks=len(sequence.blocks),
            num_own_blocks=self._blocks.count_own(sequence),
            num_stored_blocks=sequence.num_stored_blocks,
            num_drafts=num_drafts,
        )

    def _view_waiting(self, sequence: Sequence) -> SequenceView:
        found = self._blocks.find(sequence)
        return SequenceView(
            key=sequence.key,
            priority=aged_priority(sequence, self._counts.steps),
            tenant=sequence.options.tenant,
            num_tokens=sequence.num_tokens,
            num_computed_tokens=len(found.blocks) * self._blocks.block_size,
            num_blocks=len(found.blocks),
            num_idle_blocks=found.num_idle,
            num_stored_blocks=found.num_stored,
        )

    # ---- applying ----

    def _apply(self, decision: Plan) -> None:
        for key in decision.preempted:
            self._preempt(self._running[key])
        for key in decision.admitted:  # all hold what they found before anybody is given blocks, which reuses idle ones
            self._seat(self._waiting.take(key))
        for restore in decision.restores:
            sequence = self._running[restore.key]
            self._note_cached(sequence, self._blocks.restore(sequence, restore.num_blocks))
        for chunk in decision.chunks:
            self._blocks.give(self._running[chunk.key], chunk.num_new_blocks)

    def _preempt(self, sequence: Sequence) -> None:
        del self._running[sequence.key]
        self._blocks.release(sequence)
        self._waiting.append(sequence)
        self._counts.preemptions += 1

    def _seat(self, sequence: Sequence) -> None:
        sequence.priority = aged_priority(sequence, self._counts.steps)
        self._running[sequence.key] = sequence
        self._blocks.seat(sequence)
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = 0
            self._counts.cache_queries += sequence.num_tokens
            self._note_cached(sequence, sequence.num_computed_tokens)

    def _note_cached(self, sequence: Sequence, num_tokens: int) -> None:
        """Count what was found before the first token came; later only a preempted sequence finds itself again."""
        if not sequence.output_token_ids and sequence.num_cached_tokens is not None:
            sequence.num_cached_tokens += num_tokens
            self._counts.cache_hits += num_tokens

    # ---- computing ----

    def _compute(self, work: SequenceOf[Work]) -> list[tuple[Work, np.ndarray]]:
        """Run one forward pass.

        Returns each sequence that is up to date with the logits of its next token, then those after each of its drafts.
        """
        batch = build_batch(work, self._blocks.block_size)
        x_TD = self.model.decoder.forward(batch, self.model.kv_cache)
        ready: list[Work] = []
        rows: list[int] = []
        for item, start in zip(work, batch.query_start.tolist(), strict=False):
            sequence, end = item.sequence, start + item.num_tokens
            self._score_prompt(sequence, x_TD[start:end])
            num_prompt = len(sequence.prompt_token_ids) - sequence.num_computed_tokens
            self._counts.prompt_tokens += max(min(item.num_tokens, num_prompt), 0)
            self._served.charge(sequence.options.tenant, item.num_rows)
            sequence.num_computed_tokens += item.num_tokens
            sequence.is_sound = bool(np.isfinite(x_TD[end - 1]).all())  # it looks at all before it
            self._blocks.note_computed(sequence)
            if sequence.num_computed_tokens == sequence.num_tokens:
                ready.append(item)
                rows.extend(range(end - 1, end + len(item.drafts)))
        if not ready:
            return []
        logits_RV = self.model.decoder.logits(x_TD[rows])[:, : self.model.card.vocab_size]
        ends = np.cumsum([1 + len(item.drafts) for item in ready])
        return list(zip(ready, np.split(logits_RV, ends[:-1]), strict=True))

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

    # ---- choosing ----

    def _advance(self, work: Work, logits_RV: np.ndarray) -> OutputDelta:
        """Choose the next tokens of a sequence; what goes wrong here is that sequence's alone."""
        sequence = work.sequence
        try:
            releases = self._choose_all(work, logits_RV)
        except Exception as error:  # noqa: BLE001 - one request's choices must not end the others' service
            return self._fail(sequence, error)
        self._blocks.trim(sequence)
        self._blocks.note_computed(sequence)
        last = releases[-1]
        if last.finish_reason is not None:
            self._retire(sequence)
        prompt_logprobs, sequence.prompt_logprobs = sequence.prompt_logprobs, None
        return OutputDelta(
            request_id=sequence.request_id,
            index=sequence.index,
            text="".join(release.text for release in releases),
            token_ids=_joined(release.token_ids for release in releases),
            logprobs=None if sequence.params.logprobs is None else _joined(release.logprobs for release in releases),
            finish_reason=last.finish_reason,
            stop_reason=last.stop_reason,
            num_cached_tokens=sequence.num_cached_tokens or 0,
            prompt_logprobs=prompt_logprobs,
        )

    def _choose_all(self, work: Work, logits_RV: np.ndarray) -> list[Release]:
        """Choose token after token, as long as each is the one that was guessed."""
        sequence, num_accepted = work.sequence, 0
        releases: list[Release] = []
        for row, logits_V in enumerate(logits_RV):
            if not np.isfinite(logits_V.max()):
                raise ArithmeticError("the model gave logits that are not numbers")
            token_id, release = self._choose(sequence, logits_V)
            releases.append(release)
            if release.finish_reason is not None or row == len(work.drafts) or token_id != work.drafts[row]:
                break
            num_accepted += 1
        sequence.num_computed_tokens += num_accepted
        if work.drafts and self._speculator is not None:
            self._counts.draft_tokens += len(work.drafts)
            self._counts.accepted_tokens += num_accepted
            self._speculator.observe(sequence.key, num_drafts=len(work.drafts), num_accepted=num_accepted)
        return releases

    def _choose(self, sequence: Sequence, logits_V: np.ndarray) -> tuple[int, Release]:
        params = sequence.params
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
        self._counts.generation_tokens += 1
        return token_id, sequence.answer.push(token_id, logprob)

    # ---- ending ----

    def _fail(self, sequence: Sequence, error: Exception) -> OutputDelta:
        self._retire(sequence)
        return OutputDelta(
            request_id=sequence.request_id,
            index=sequence.index,
            finish_reason="error",
            error=f"{type(error).__name__}: {error}",
        )

    def _retire(self, sequence: Sequence) -> None:
        if self._running.pop(sequence.key, None) is None:
            self._waiting.take(sequence.key)
        self._blocks.release(sequence)
        answers = self._requests[sequence.request_id]
        answers.remove(sequence)
        for other in answers:
            other.leader = None if other.leader is sequence else other.leader
        if not answers:
            del self._requests[sequence.request_id]
        self._served.leave(sequence.options.tenant)
        if self._speculator is not None:
            self._speculator.forget(sequence.key)


def _joined(parts: Iterable[SequenceOf[Item]]) -> tuple[Item, ...]:
    return tuple(item for part in parts for item in part)
