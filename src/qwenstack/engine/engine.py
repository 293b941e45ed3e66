"""Continuous batching: requests join and leave at every step, and each token comes out as soon as it is chosen.

`Engine` is synchronous and single-threaded: `add_request`, `abort`, `step`. Who calls it, a loop in this process or a
worker behind a socket, is not its business. A step is told in `Engine.step`: guess, plan, apply, compute, choose.

Whatever happens around a request, it gets the tokens that it would get alone: rows of a batch do not influence each
other, cached blocks hold the bits that computing them again would give, and a guess counts only where it is the token
that is chosen anyway.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import numpy as np

from qwenstack.core.errors import CapacityError, RequestError
from qwenstack.core.outputs import FinishReason, OutputDelta, failed_delta
from qwenstack.core.protocols import AdapterInfo, EngineStats
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.answer import AnswerStream, Release
from qwenstack.engine.batch import Work, build_batch
from qwenstack.engine.grammar import GrammarCompiler, TokenConstraint
from qwenstack.engine.guards import REPETITION
from qwenstack.engine.hooks import SILENT, Journal, StepClock, StepRecorder
from qwenstack.engine.kv_blocks import BlockStore, KVBlocks
from qwenstack.engine.loading import LoadedModel
from qwenstack.engine.prefix_roots import PrefixRoots
from qwenstack.engine.request_check import check_request
from qwenstack.engine.sampler import TokenHistory, choose_token, token_logprob, uniform_number
from qwenstack.engine.scheduler import Plan, RunningView, WaitingView, plan
from qwenstack.engine.sequence import Sequence
from qwenstack.engine.speculation import DraftRequest, Speculator
from qwenstack.engine.waiting_queue import ServedTokens, WaitingQueue, due_step
from qwenstack.kernels import ActivationBits
from qwenstack.models import LoraAdapter

logger = logging.getLogger(__name__)

_LOGIT_ROWS = 32
"""Rows of prompt logits held at a time: 32 x 152k float32 are 19 MB."""
_NO_OPTIONS = RequestOptions()
_KEPT_LOGIT_ROWS = 32
"""Rows of logits whose memory is kept for the next step (19 MB): to get and clear new pages costs 2 ms for 16 rows."""
_LARGEST_SHARE_OF_QUEUE = 0.75
"""Of the places to wait; the rest is for other tenants. The nameless tenant of a server without keys may have all."""
_COMPILE_WAIT_S = 0.05
"""How long a step with nothing else to do waits for a grammar, so that whoever calls steps can do other things too."""

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
    disk_hits: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    repetition_stops: int = 0
    out_of_memory: int = 0


class Engine:
    """Generates many answers at once on one loaded model."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        roots: PrefixRoots | None = None,
        store: BlockStore | None = None,
        speculator: Speculator | None = None,
        grammars: GrammarCompiler | None = None,
        journal: Journal = SILENT,
        recorder: StepRecorder = SILENT,
        clock: StepClock = SILENT,
    ) -> None:
        """Take over a loaded model and its empty cache.

        Args:
            model: what computes.
            roots: names of cached prefixes that other processes give too; None: names of this engine alone.
            store: where cached blocks outlive the memory; needs `roots`.
            speculator: guesses tokens ahead; None: nobody does.
            grammars: compiles what answers must look like; None: it is made when first needed.
            journal: is told what comes and goes.
            recorder: is told who is computed.
            clock: measures the parts of a step.
        """
        assert store is None or roots is not None, "blocks of a name that no other process gives are no use on a disk"
        self.model = model
        self._roots = roots or PrefixRoots.of_one_process()
        self._blocks = KVBlocks(model.kv_cache, store)
        self._speculator = speculator
        self._adapters = model.adapters
        self._grammars = grammars or GrammarCompiler(model.tokenizer)
        self._journal, self._recorder, self._clock = journal, recorder, clock
        self._compiling: dict[int, list[Sequence]] = {}
        self._waiting = WaitingQueue()
        self._running: dict[int, Sequence] = {}
        self._requests: dict[str, list[Sequence]] = {}
        self._served = ServedTokens()
        self._next_key = 0
        self._counts = _Counts()
        self._logits_memory_RV: np.ndarray | None = None

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._requests)

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
        self._check_places(params.n, options.tenant)
        if not self.model.config.enable_prefix_caching:
            options = replace(options, prefix_cache=False)
        seed = params.seed if params.seed is not None else secrets.randbits(62)
        prompt_ids = np.unique(np.asarray(prompt_token_ids, np.int64))
        activation_bits = self.model.precision.choose(len(prompt_token_ids))
        answers: list[Sequence] = []
        for index in range(params.n):
            answer = AnswerStream(
                self.model.tokenizer,
                params,
                max_tokens=max_tokens,
                prompt_token_ids=prompt_token_ids,
                repetition_window=self.model.config.repetition_window,
            )
            adapter = self._adapter_of(options)
            answers.append(
                Sequence(
                    key=self._next_key + index,
                    request_id=request_id,
                    index=index,
                    prompt_token_ids=prompt_token_ids,
                    params=params,
                    options=options,
                    seed=seed,
                    history=TokenHistory(prompt_ids),
                    answer=answer,
                    adapter=adapter,
                    activation_bits=activation_bits,
                    root_key=self._roots.of(options.tenant, adapter.digest if adapter else None, activation_bits),
                    rank=(due_step(self._counts.steps, options.priority), self._next_key + index),
                    leader=answers[0] if answers and options.prefix_cache else None,
                    prompt_logprobs=[None] if params.prompt_logprobs is not None and index == 0 else None,
                )
            )
        self._take_in(answers)
        self._journal.admitted(self._counts.steps, request_id, prompt_token_ids, params, options, seed)

    def abort(self, request_id: str) -> bool:
        """Forget a request in whatever state it is; its blocks are free at once. Unknown ids are fine."""
        answers = tuple(self._requests.get(request_id, ()))
        for sequence in answers:
            self._retire(sequence)
        if answers:
            self._journal.aborted(self._counts.steps, request_id)
        return bool(answers)

    def step(self) -> list[OutputDelta]:
        """Compute the next tokens of as many sequences as fit, and return what is new.

        A failure of the computation ends the sequences of this step with an error; the engine goes on.
        """
        self._clock.enter("plan")
        self._counts.steps += 1
        deltas = self._take_compiled()
        drafts = self._guess()
        decision = self._plan(drafts)
        self._clock.enter("apply")
        self._apply(decision)
        work = [
            Work(self._running[chunk.key], chunk.num_tokens, tuple(drafts.get(chunk.key, ())[: chunk.num_drafts]))
            for chunk in decision.chunks
        ]
        self._recorder.computing([item.sequence.request_id for item in work])
        for batch in _batches(work):
            deltas.extend(self._run(batch))
        self._clock.leave()
        if self._compiling and not (self._running or self._waiting):
            self._grammars.wait_for_one(_COMPILE_WAIT_S)
        return deltas

    def load_adapter(self, name: str, path: Path) -> None:
        """Load a PEFT folder; later requests may name it.

        Raises:
            ConfigError: the name cannot be one.
            ModelFormatError: the folder holds no adapter for this model.
            CapacityError: there are too many adapters.
        """
        if self._adapters is None:
            raise CapacityError("This engine was started without room for adapters.")
        self._adapters.load(name, path)
        self._journal.adapter_loaded(self._counts.steps, name, path, self._adapters.get(name).digest)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; requests that use it run to their end.

        Raises:
            RequestError: there is none of that name.
        """
        if self._adapters is None:
            raise _no_adapter(name)
        self._adapters.unload(name)
        self._journal.adapter_unloaded(self._counts.steps, name)

    def adapters(self) -> list[AdapterInfo]:
        """Return the adapters that requests may name."""
        return [] if self._adapters is None else self._adapters.infos()

    def warm_up(self) -> None:
        """Make what the first request with a grammar would wait for: a second, half of which stops all streams."""
        self._grammars.warm_up()

    def close(self) -> None:
        """Stop what runs beside the engine; what the disk has not taken yet is lost."""
        self._grammars.close()
        self._blocks.close()

    def stats(self) -> EngineStats:
        """Return counters and what is held now."""
        return EngineStats(
            num_requests_running=len(self._running),
            num_requests_waiting=self._num_waiting,
            num_blocks_total=self._blocks.num_total,
            num_blocks_free=self._blocks.num_available,
            num_preemptions=self._counts.preemptions,
            prompt_tokens=self._counts.prompt_tokens,
            generation_tokens=self._counts.generation_tokens,
            prefix_cache_queries=self._counts.cache_queries,
            prefix_cache_hits=self._counts.cache_hits,
            num_steps=self._counts.steps,
            prefix_cache_disk_hits=self._counts.disk_hits,
            num_draft_tokens=self._counts.draft_tokens,
            num_accepted_tokens=self._counts.accepted_tokens,
            num_repetition_stops=self._counts.repetition_stops,
            num_out_of_memory=self._counts.out_of_memory,
        )

    def check_integrity(self) -> None:
        """Compare blocks, cache and sequences with each other.

        Raises:
            EngineError: a block is lost or has another number of holders than it should.
        """
        self._blocks.check_integrity(self._running.values())

    @property
    def _num_waiting(self) -> int:
        return len(self._waiting) + sum(map(len, self._compiling.values()))

    def _check_places(self, num_answers: int, tenant: str) -> None:
        config = self.model.config
        places = config.max_num_waiting + config.max_num_seqs
        if num_answers > places:
            raise RequestError(f"`n` is {num_answers}; this server takes {places} answers in all.", param="n")
        if num_answers > places - len(self._running) - self._num_waiting:
            raise CapacityError(f"{self._num_waiting} answers are waiting already; try again in a moment.")
        own_limit = int(config.max_num_waiting * _LARGEST_SHARE_OF_QUEUE)
        if tenant and self._waiting.count_of(tenant) + num_answers > max(own_limit, 1):
            raise CapacityError(f"{own_limit} of your answers are waiting already; try again in a moment.")

    def _adapter_of(self, options: RequestOptions) -> LoraAdapter | None:
        if options.adapter is None:
            return None
        if self._adapters is None:
            raise _no_adapter(options.adapter)
        return self._adapters.get(options.adapter)

    def _take_in(self, answers: list[Sequence]) -> None:
        """Queue the answers of a request, those with a grammar behind its compilation; all of them or none."""
        self._next_key += len(answers)
        grammar, key = answers[0].params.grammar, answers[0].key
        if grammar is not None:
            self._grammars.begin(key, grammar)
            self._compiling[key] = list(answers)
        for sequence in answers:
            if grammar is None:
                self._waiting.append(sequence)
            else:
                sequence.grammar_key = key
            self._served.arrive(sequence.options.tenant)
            if sequence.adapter is not None and self._adapters is not None:
                self._adapters.hold(sequence.adapter)
        self._requests[answers[0].request_id] = answers

    def _take_compiled(self) -> list[OutputDelta]:
        """Queue those whose grammar is ready; return the ends of those whose grammar cannot be used."""
        failed: list[OutputDelta] = []
        if not self._compiling:
            return failed
        for key, compiled in self._grammars.poll():
            for sequence in tuple(self._compiling.get(key, ())):
                if isinstance(compiled, TokenConstraint):
                    self._stop_compiling(sequence)
                    sequence.constraint = compiled.clone()
                    self._waiting.append(sequence)
                else:
                    failed.extend(self._fail(sequence, compiled))
        return failed

    def _stop_compiling(self, sequence: Sequence) -> None:
        """Take a sequence out of those that wait for a grammar; with the last of a request nobody needs it any more."""
        assert sequence.grammar_key is not None
        waiting = self._compiling[sequence.grammar_key]
        waiting.remove(sequence)
        if not waiting:
            del self._compiling[sequence.grammar_key]
            self._grammars.cancel(sequence.grammar_key)
        sequence.grammar_key = None

    # ---- deciding ----

    def _guess(self) -> dict[int, list[int]]:
        """Return what probably follows in those that decode, by key: what must follow, or what a guess says."""
        drafts: dict[int, list[int]] = {}
        requests: list[DraftRequest] = []
        for sequence in self._running.values():
            if not sequence.is_decoding:
                continue
            most = min(sequence.answer.num_tokens_left - 1, self.model.config.num_speculative_tokens)
            limit = most if sequence.options.speculation else 0
            must_follow = sequence.foreseen_token_ids(limit) if limit else []
            if must_follow:
                drafts[sequence.key] = must_follow
                limit = 0
            requests.append(
                DraftRequest(
                    key=sequence.key,
                    prompt_token_ids=sequence.prompt_token_ids,
                    output_token_ids=sequence.output_token_ids,
                    limit=limit,
                )
            )
        return self._propose(requests) | drafts

    def _propose(self, requests: SequenceOf[DraftRequest]) -> dict[int, list[int]]:
        if self._speculator is None:
            return {}
        try:
            guesses = self._speculator.propose(requests)
        except Exception:
            logger.exception("Speculation failed and is off from now on; answers are the same without it.")
            self._speculator = None
            return {}
        return {request.key: guess for request, guess in zip(requests, guesses, strict=True) if guess}

    def _plan(self, drafts: dict[int, list[int]]) -> Plan:
        config = self.model.config
        num_free = config.max_num_seqs - len(self._running)
        seats = Counter(sequence.options.tenant for sequence in self._running.values())
        candidates = self._waiting.first(max(num_free, 1), served=self._served.by_tenant, seats=seats)
        return plan(
            [self._view_running(sequence, len(drafts.get(sequence.key, ()))) for sequence in self._running.values()],
            (self._view_waiting(sequence) for sequence in candidates),
            num_free_blocks=self._blocks.num_available,
            block_size=config.block_size,
            token_budget=config.max_num_batched_tokens,
            max_num_seqs=config.max_num_seqs,
        )

    def _view_running(self, sequence: Sequence, num_drafts: int) -> RunningView:
        return RunningView(
            key=sequence.key,
            rank=sequence.rank,
            tenant=sequence.options.tenant,
            num_tokens=sequence.num_tokens,
            num_computed_tokens=sequence.num_computed_tokens,
            num_blocks=len(sequence.blocks),
            num_own_blocks=self._blocks.count_own(sequence),
            num_stored_blocks=sequence.num_stored_blocks,
            num_drafts=num_drafts,
        )

    def _view_waiting(self, sequence: Sequence) -> WaitingView:
        found = self._blocks.find(sequence)
        return WaitingView(
            key=sequence.key,
            rank=sequence.rank,
            tenant=sequence.options.tenant,
            num_tokens=sequence.num_tokens,
            num_found_blocks=len(found.blocks),
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
            num_tokens = self._blocks.restore(sequence, restore.num_blocks)
            self._counts.disk_hits += num_tokens
            self._note_cached(sequence, num_tokens)
        for chunk in decision.chunks:
            self._blocks.give(self._running[chunk.key], chunk.num_new_blocks)

    def _preempt(self, sequence: Sequence) -> None:
        del self._running[sequence.key]
        self._blocks.release(sequence)
        sequence.is_first_reading = False
        self._waiting.append(sequence)
        self._counts.preemptions += 1

    def _seat(self, sequence: Sequence) -> None:
        self._running[sequence.key] = sequence
        self._blocks.seat(sequence)
        if sequence.is_first_reading:
            self._counts.cache_queries += sequence.num_tokens
        self._note_cached(sequence, sequence.num_computed_tokens)

    def _note_cached(self, sequence: Sequence, num_tokens: int) -> None:
        if sequence.is_first_reading:
            sequence.num_cached_tokens += num_tokens
            self._counts.cache_hits += num_tokens

    # ---- computing ----

    def _run(self, work: SequenceOf[Work]) -> list[OutputDelta]:
        """Compute one batch and choose its tokens."""
        try:
            computed = self._compute(work)
        except Exception as error:  # noqa: BLE001 - whatever broke this batch must not end the others' service
            return [delta for item in work for delta in self._fail(item.sequence, error)]
        self._clock.enter("choose")
        return [delta for item, logits_RV in computed for delta in self._advance(item, logits_RV)]

    def _compute(self, work: SequenceOf[Work]) -> list[tuple[Work, np.ndarray]]:
        """Run one forward pass.

        Returns each sequence that is up to date with the logits of its next token, then those after each of its drafts.
        """
        self._clock.enter("build_batch")
        batch = build_batch(work, self._blocks.block_size)
        self._clock.enter("forward")
        x_TD = self.model.decoder.forward(batch, self.model.kv_cache)
        self._clock.enter("logits")
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
        logits_RV = self._logits(x_TD[rows], work[0].sequence.activation_bits)
        ends = np.cumsum([1 + len(item.drafts) for item in ready])
        return list(zip(ready, np.split(logits_RV, ends[:-1]), strict=True))

    def _logits(self, x_RD: np.ndarray, activation_bits: ActivationBits) -> np.ndarray:
        """Return the logits of the vocabulary's own rows, until the next call; those beyond are padding."""
        memory_RV = self._logits_memory_RV
        out_RV = memory_RV[: len(x_RD)] if memory_RV is not None and len(x_RD) <= len(memory_RV) else None
        logits_RV = self.model.decoder.logits(x_RD, activation_bits, out_RV=out_RV)
        if out_RV is None and len(logits_RV) <= _KEPT_LOGIT_ROWS:
            self._logits_memory_RV = logits_RV
        return logits_RV[:, : self.model.card.vocab_size]

    def _score_prompt(self, sequence: Sequence, x_TD: np.ndarray) -> None:
        """Score the prompt tokens that follow the rows just computed, a few rows of logits at a time."""
        scored, num_top = sequence.prompt_logprobs, sequence.params.prompt_logprobs
        if scored is None or num_top is None:
            return
        first_row = sequence.num_computed_tokens
        end = min(first_row + len(x_TD) + 1, len(sequence.prompt_token_ids))
        for start in range(len(scored), end, _LOGIT_ROWS):
            stop = min(start + _LOGIT_ROWS, end)
            logits_RV = self._logits(x_TD[start - 1 - first_row : stop - 1 - first_row], sequence.activation_bits)
            targets = sequence.prompt_token_ids[start:stop]
            for logits_V, target in zip(logits_RV, targets, strict=True):
                scored.append(token_logprob(logits_V, target, num_top))

    # ---- choosing ----

    def _advance(self, work: Work, logits_RV: np.ndarray) -> list[OutputDelta]:
        """Choose the next tokens of a sequence; what goes wrong here is that sequence's alone.

        What was chosen before it went wrong is told first, as it would be without guesses.
        """
        sequence, failure = work.sequence, None
        try:
            self._choose_all(work, logits_RV)
            self._blocks.trim(sequence)
            self._blocks.note_computed(sequence)
        except Exception as error:  # noqa: BLE001 - one request's choices must not end the others' service
            failure = error
        if failure is not None:
            return self._fail(sequence, failure)
        finish = sequence.untold[-1].finish_reason
        deltas = [self._tell(sequence, finish)] if finish is not None or sequence.is_to_tell else []
        if finish is not None:
            self._end(sequence, finish)
            self._counts.repetition_stops += (finish, deltas[-1].stop_reason) == ("length", REPETITION)
        return deltas

    def _choose_all(self, work: Work, logits_RV: np.ndarray) -> None:
        """Choose token after token, as long as each is the one that was guessed, and keep what each lets go."""
        sequence, releases, num_accepted = work.sequence, work.sequence.untold, 0
        for row, logits_V in enumerate(logits_RV):
            if not np.isfinite(logits_V.max()):
                raise ArithmeticError("the model gave logits that are not numbers")
            releases.append(_choose(sequence, logits_V))
            self._counts.generation_tokens += 1
            if releases[-1].finish_reason is not None or work.drafts[row : row + 1] != (sequence.output_token_ids[-1],):
                break
            num_accepted += 1
        sequence.num_computed_tokens += num_accepted
        self._counts.draft_tokens += len(work.drafts)
        self._counts.accepted_tokens += num_accepted

    def _tell(self, sequence: Sequence, finish: FinishReason | None) -> OutputDelta:
        """Join what the tokens since the last delta let go."""
        releases, sequence.untold, sequence.has_told = sequence.untold, [], True
        prompt_logprobs, sequence.prompt_logprobs = sequence.prompt_logprobs, None
        return OutputDelta(
            request_id=sequence.request_id,
            index=sequence.index,
            text="".join(release.text for release in releases),
            reasoning_text="".join(release.reasoning_text for release in releases),
            tool_calls=_joined(release.tool_calls for release in releases),
            token_ids=_joined(release.token_ids for release in releases),
            logprobs=None if sequence.params.logprobs is None else _joined(release.logprobs for release in releases),
            num_generated_tokens=sum(release.num_generated_tokens for release in releases),
            num_reasoning_tokens=sum(release.num_reasoning_tokens for release in releases),
            finish_reason=finish,
            stop_reason=releases[-1].stop_reason if finish is not None else None,
            num_cached_tokens=sequence.num_cached_tokens,
            prompt_logprobs=prompt_logprobs,
        )

    # ---- ending ----

    def _fail(self, sequence: Sequence, error: Exception) -> list[OutputDelta]:
        """End a sequence with an error, behind what was chosen before."""
        told = [self._tell(sequence, None)] if sequence.untold else []
        self._counts.out_of_memory += isinstance(error, CapacityError | MemoryError)
        if not isinstance(error, CapacityError | RequestError):
            logger.error("An answer failed.", exc_info=error, extra={"engine_request_id": sequence.request_id})
        self._end(sequence, "error")
        return [*told, failed_delta(sequence.request_id, sequence.index, error)]

    def _end(self, sequence: Sequence, finish_reason: FinishReason) -> None:
        self._retire(sequence)
        self._journal.finished(
            self._counts.steps - 1, sequence.request_id, sequence.index, sequence.output_token_ids, finish_reason
        )

    def _retire(self, sequence: Sequence) -> None:
        """Take a sequence out of whatever state it is in, and back all that it holds."""
        if sequence.grammar_key is not None:
            self._stop_compiling(sequence)
        elif self._running.pop(sequence.key, None) is None:
            self._waiting.take(sequence.key)
        self._blocks.release(sequence)
        answers = self._requests[sequence.request_id]
        answers.remove(sequence)
        for other in answers:
            other.leader = None if other.leader is sequence else other.leader
        if not answers:
            del self._requests[sequence.request_id]
        self._served.leave(sequence.options.tenant)
        if self._adapters is not None and sequence.adapter is not None:
            self._adapters.release(sequence.adapter)
        if self._speculator is not None:
            self._speculator.forget(sequence.key)


def _batches(work: SequenceOf[Work]) -> Iterator[list[Work]]:
    """Yield what one forward pass can compute: one precision each, equal adapters side by side."""

    def precision(item: Work) -> int:
        return item.sequence.activation_bits

    def adapter(item: Work) -> str:
        return item.sequence.adapter.digest if item.sequence.adapter else ""

    for _, batch in groupby(sorted(work, key=precision), key=precision):
        yield sorted(batch, key=adapter)


def _choose(sequence: Sequence, logits_V: np.ndarray) -> Release:
    """Add the next token to an answer: the one that has to come, else the one that is drawn."""
    params, answer, say = sequence.params, sequence.answer, sequence.say_of_grammar
    forced_ids = answer.forced_token_ids()
    if forced_ids:
        token_id = forced_ids[0]
    else:
        token_id = choose_token(
            logits_V if say is None else say.count_fence_as_end(logits_V),
            params,
            sequence.history,
            forbidden_ids=() if say is not None and say.must_end else answer.forbidden_ids,
            uniform=uniform_number(sequence.seed, sequence.index, len(sequence.output_token_ids)),
            restriction=say,
        )
    logprob = None if params.logprobs is None else token_logprob(logits_V, token_id, params.logprobs)
    return sequence.push(token_id, logprob, say)


def _no_adapter(name: str) -> RequestError:
    return RequestError(f"There is no adapter {name[:64]!r} here.", param="model", code="model_not_found")


def _joined(parts: Iterable[SequenceOf[Item]]) -> tuple[Item, ...]:
    return tuple(item for part in parts for item in part)
