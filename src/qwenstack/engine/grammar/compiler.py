"""Grammars compiled beside the engine's loop, for one engine.

`begin` → a thread: known? → the checker's process (killable, 500 ms) → compile (releases the GIL) → `poll`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from qwenstack.core.errors import CapacityError, EngineError, QwenStackError, RequestError
from qwenstack.core.grammar import Grammar
from qwenstack.engine.grammar.checker_process import CheckerProcess
from qwenstack.engine.grammar.constraint import MatcherVocabulary, Share, TokenConstraint
from qwenstack.engine.grammar.lark_source import lark_of
from qwenstack.engine.grammar.limits import CACHE_BYTES, HELD_BYTES, MAX_PENDING
from qwenstack.engine.grammar.token_table import TokenTable, matcher_vocabulary, token_table
from qwenstack.engine.grammar.wire import Unusable, Usable
from qwenstack.tokenizer import Tokenizer

_ENTRY_BYTES = 64 << 10
"""Charged for each grammar beside twice what was measured, which does not see pages that were free before."""
_OWN_BYTES = 5 << 20
"""What Python's grammar holds when compiled: 4.3 MB, the mean of 20, 2026-11-25."""
logger = logging.getLogger(__name__)

Compiled = TokenConstraint | QwenStackError


@dataclass(frozen=True, slots=True)
class _Job:
    key: int
    grammar: Grammar


class GrammarCompiler:
    """Turns grammars into constraints without holding up whoever asks; its methods are called from one thread.

    Nothing is built before the first `begin` or `warm_up`: no process, no thread, no vocabulary.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        cache_bytes: int = CACHE_BYTES,
        held_bytes: int = HELD_BYTES,
        max_pending: int = MAX_PENDING,
    ) -> None:
        """Remember the vocabulary's owner.

        Args:
            tokenizer: has the vocabulary.
            cache_bytes: memory for compiled grammars that are kept for the next caller.
            held_bytes: memory for all of them, those in use included.
            max_pending: different grammars that may wait.
        """
        self._tokenizer = tokenizer
        self._max_pending = max_pending
        self._cache = _Cache(cache_bytes)
        self._held_bytes = held_bytes
        self._held: WeakKeyDictionary[Share, int] = WeakKeyDictionary()
        """What each compilation takes that the cache or an answer still holds."""
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._running: _Job | None = None
        self._done: deque[tuple[int, Compiled]] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False

    def warm_up(self) -> None:
        """Build the vocabulary and start the checker now, beside the caller; the first grammar then need not wait."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="grammar", daemon=True)
            self._thread.start()

    def begin(self, key: int, grammar: Grammar) -> None:
        """Ask for a constraint; `poll` returns it under this key, at once if the grammar was compiled before.

        Raises:
            CapacityError: too many grammars wait already.
        """
        known = self._cache.get(grammar)
        with self._changed:
            if known is not None:
                self._done.append((key, known))
                self._changed.notify_all()
                return
            pending = {job.grammar for job in self._jobs}
            if grammar not in pending and len(pending) >= self._max_pending:
                raise CapacityError(f"{self._max_pending} grammars are waiting to be compiled; try again in a moment.")
            self._jobs.append(_Job(key, grammar))
            self._changed.notify_all()
        self.warm_up()

    @property
    def has_pending(self) -> bool:
        """Whether a key was begun and not returned by `poll` yet."""
        with self._changed:
            return bool(self._jobs or self._running or self._done)

    def poll(self) -> list[tuple[int, Compiled]]:
        """Return what is ready: constraints, and errors to be raised for their requests."""
        with self._changed:
            ready = list(self._done)
            self._done.clear()
        return ready

    def wait_for_one(self, timeout_s: float | None = None) -> None:
        """Wait until `poll` has something, nothing is pending, or the time is up."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self._done and (self._jobs or self._running):
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return
                self._changed.wait(left)

    def cancel(self, key: int) -> None:
        """Forget a key, wherever it is."""
        with self._changed:
            self._jobs = deque(job for job in self._jobs if job.key != key)
            self._done = deque(entry for entry in self._done if entry[0] != key)
            if self._running is not None and self._running.key == key:
                self._running = None

    def close(self) -> None:
        """Stop thread and process."""
        with self._changed:
            self._closed = True
            self._jobs.clear()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _work(self) -> None:
        """Run on the thread; whatever ends it, nobody waits for ever."""
        try:
            self._take_jobs()
        except BaseException:  # the matcher's panics are no `Exception`
            logger.exception("Grammars cannot be compiled; the next one is tried anew.")
        finally:
            with self._changed:
                left = [*([self._running] if self._running is not None else ()), *self._jobs]
                error = EngineError("The compiler of grammars failed; send the request again.")
                self._done.extend((job.key, error) for job in left)
                self._jobs.clear()
                self._running = self._thread = None
                self._changed.notify_all()

    def _take_jobs(self) -> None:
        """Build once, then take job after job."""
        table = token_table(self._tokenizer)
        checker = CheckerProcess(table)
        try:
            vocabularies = _Vocabularies(table)
            while (job := self._next_job()) is not None:
                result = self._compile(job.grammar, checker, vocabularies)
                with self._changed:
                    if self._running is job:
                        self._done.append((job.key, result))
                    self._running = None
                    self._changed.notify_all()
        finally:
            checker.stop()

    def _next_job(self) -> _Job | None:
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            self._running = self._jobs.popleft()
            return self._running

    def _compile(self, grammar: Grammar, checker: CheckerProcess, vocabularies: _Vocabularies) -> Compiled:
        known = self._cache.get(grammar)
        if known is not None:
            return known
        try:
            # What is written here needs no check.
            checked = Usable(lark_of(grammar), _OWN_BYTES) if grammar.is_own else checker.check(grammar)
            if isinstance(checked, Unusable):
                refusal = _refusal(checked.reason)
                if checked.is_certain:
                    self._cache.put(grammar, refusal, _ENTRY_BYTES)
                return refusal
            num_bytes = 2 * checked.memory_bytes + _ENTRY_BYTES
            if sum(self._held.values()) + num_bytes > self._held_bytes:
                return CapacityError("Answers under way hold all the memory for grammars; try again in a moment.")
            constraint = TokenConstraint(checked.lark, vocabularies.of(grammar), grammar)
            self._held[constraint.share] = num_bytes
            self._cache.put(grammar, constraint, num_bytes)
            return constraint.clone()
        except QwenStackError as error:
            return error


def _refusal(reason: str) -> RequestError:
    return RequestError(reason, param="grammar", code="invalid_grammar")


class _Vocabularies:
    """The matcher's vocabulary, built once, with the ids that each kind of grammar may use."""

    def __init__(self, table: TokenTable) -> None:
        tokens = matcher_vocabulary(table)
        eos_token_ids = frozenset(table.eos_token_ids)
        self._usual = MatcherVocabulary(tokens, eos_token_ids, table.usable_words, table.fence_ids)
        self._with_markers = MatcherVocabulary(tokens, eos_token_ids, table.usable_words_with_markers)

    def of(self, grammar: Grammar) -> MatcherVocabulary:
        return self._with_markers if grammar.kind == "tools" else self._usual


class _Cache:
    """Compiled grammars and refusals by content, least recently used first, bounded in bytes; safe between threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._used_bytes = 0
        self._entries: OrderedDict[Grammar, tuple[Compiled, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, grammar: Grammar) -> Compiled | None:
        """Return a constraint of its own for each caller, or the refusal."""
        with self._lock:
            entry = self._entries.get(grammar)
            if entry is None:
                return None
            self._entries.move_to_end(grammar)
            compiled, _ = entry
            return compiled.clone() if isinstance(compiled, TokenConstraint) else _refusal(str(compiled))

    def put(self, grammar: Grammar, compiled: Compiled, memory_bytes: int) -> None:
        with self._lock:
            size = memory_bytes + len(grammar.source)
            if size > self._max_bytes // 2:
                return
            _, previous = self._entries.pop(grammar, (None, 0))
            self._entries[grammar] = compiled, size
            self._used_bytes += size - previous
            while self._used_bytes > self._max_bytes:
                _, (_, oldest) = self._entries.popitem(last=False)
                self._used_bytes -= oldest
