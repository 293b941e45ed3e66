"""Run a journal again, step for step, and compare every answer.

Requests arrive, leave and change adapters before the same steps as then, so the same sequences meet in the same
batches. What an answer must be does not depend on that; what goes wrong often does.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

from qwenstack.core.errors import EngineError
from qwenstack.core.outputs import FinishReason
from qwenstack.engine.engine import Engine
from qwenstack.engine.hooks import Silent
from qwenstack.engine.journal import (
    Aborted,
    AdapterLoaded,
    AdapterUnloaded,
    Admitted,
    Finished,
    Record,
    Session,
    token_digest,
)
from qwenstack.engine.loading import LoadedModel

_Answer = tuple[str, int]
"""Request id and index; an id may be used again once its request is over."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """An answer that did not come out as it did then."""

    request_id: str
    index: int
    expected: Finished
    found: Finished | None
    """None: it did not end at all."""

    def __str__(self) -> str:
        """Say what differs in one sentence."""
        then = f"{self.expected.num_tokens} tokens, {self.expected.finish_reason}"
        now = "no end" if self.found is None else f"{self.found.num_tokens} tokens, {self.found.finish_reason}"
        which = f"Answer {self.index} of request {self.request_id!r}, which ended in step {self.expected.step},"
        return f"{which} differs: {then}, digest {self.expected.digest[:12]} then; {now}" + (
            f", digest {self.found.digest[:12]} now." if self.found is not None else " now."
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionReport:
    """What came of one session."""

    num_steps: int
    num_requests: int
    num_equal: int
    """Answers with the tokens and the end that they had then."""
    num_aborted: int
    """Requests that were given up."""
    num_lost: int
    """Requests that never ended: the process died, or the file ends before."""
    num_left_out: int
    """Answers to requests that an earlier file holds."""
    differences: tuple[Difference, ...]


def split_sessions(records: Iterable[Record]) -> Iterator[tuple[Session, list[Record]]]:
    """Yield each session with its records."""
    session: Session | None = None
    body: list[Record] = []
    for record in records:
        if isinstance(record, Session):
            if session is not None:
                yield session, body
            session, body = record, []
        else:
            body.append(record)
    if session is not None:
        yield session, body


def replay_session(model: LoadedModel, session: Session, records: Sequence[Record]) -> SessionReport:
    """Run the records of one session on an engine of its own.

    Answers whose request was admitted in an earlier file are left out. Nothing is guessed and no prefix is taken from
    the disk: answers are the same bit for bit without.

    Raises:
        RequestError: a request that was taken then is refused now.
        EngineError: an adapter is not the one it was.
    """
    found, expected = _Ends(), _Ends()
    engine = Engine(model, journal=found)
    known: set[str] = set()
    step, num_left_out = session.step, 0
    for record in records:
        if isinstance(record, Finished):
            if record.request_id in known:
                expected.add(record)
            else:
                num_left_out += 1
            continue
        while engine.has_work and (step < record.step or _is_early(record, expected, found)):
            engine.step()
            step += 1
        step = max(step, record.step)  # nothing ran in between, or less than then
        _feed(engine, record)
        if isinstance(record, Admitted):
            known.add(record.request_id)
    while engine.has_work and not found.has_all(expected):
        engine.step()
    engine.close()
    differences = tuple(_compare(expected, found))
    admitted = [record.request_id for record in records if isinstance(record, Admitted)]
    aborted = [record.request_id for record in records if isinstance(record, Aborted)]
    over = {record.request_id for record in records if isinstance(record, Finished | Aborted)}
    return SessionReport(
        num_steps=engine.stats().num_steps,
        num_requests=len(admitted),
        num_equal=len(expected) - len(differences),
        num_aborted=len(aborted),
        num_lost=sum(request_id not in over for request_id in admitted),
        num_left_out=num_left_out,
        differences=differences,
    )


class _Ends(Silent):
    """How answers ended; also a journal that keeps nothing else."""

    def __init__(self) -> None:
        self._ends: defaultdict[_Answer, list[Finished]] = defaultdict(list)

    def __len__(self) -> int:
        return sum(map(len, self._ends.values()))

    def finished(
        self, step: int, request_id: str, index: int, token_ids: Sequence[int], finish_reason: FinishReason
    ) -> None:
        self.add(Finished(step, request_id, index, finish_reason, len(token_ids), token_digest(token_ids)))

    def add(self, end: Finished) -> None:
        self._ends[(end.request_id, end.index)].append(end)

    def has_all(self, others: _Ends, request_id: str | None = None) -> bool:
        """Whether as many ends are here as in `others`, of one request or of all."""
        return all(
            len(self._ends[answer]) >= len(ends)
            for answer, ends in others._ends.items()
            if request_id in (None, answer[0])
        )

    def pairs_with(self, others: _Ends) -> Iterator[tuple[Finished, Finished | None]]:
        """Yield each end with the one of `others`, in the order of the steps here."""
        pairs = [
            pair for answer, ends in self._ends.items() for pair in zip_longest(ends, others._ends[answer][: len(ends)])
        ]
        yield from sorted(pairs, key=lambda pair: pair[0].step)


def _is_early(record: Record, expected: _Ends, found: _Ends) -> bool:
    """Whether a request would be given up before those of its answers ended that had ended then.

    With another number of blocks answers may come later; to cut one off would look like a difference.
    """
    return isinstance(record, Aborted) and not found.has_all(expected, record.request_id)


def _feed(engine: Engine, record: Record) -> None:
    match record:
        case Admitted():
            params = dataclasses.replace(record.params, seed=record.seed)
            engine.add_request(record.request_id, record.prompt_token_ids, params, record.options)
        case Aborted():
            engine.abort(record.request_id)
        case AdapterLoaded():
            engine.load_adapter(record.name, record.path)
            _require_digest(engine, record)
        case AdapterUnloaded():
            engine.unload_adapter(record.name)
        case Session() | Finished():
            raise AssertionError("these are not fed")


def _require_digest(engine: Engine, record: AdapterLoaded) -> None:
    (digest,) = (adapter.digest for adapter in engine.adapters() if adapter.name == record.name)
    if digest != record.digest:
        raise EngineError(
            f"The adapter {record.name!r} at {str(record.path)!r} is not the one of the journal: its digest is "
            f"{digest[:12]}, then it was {record.digest[:12]}."
        )


def _compare(expected: _Ends, found: _Ends) -> Iterator[Difference]:
    for then, now in expected.pairs_with(found):
        if now is None or (now.digest, now.finish_reason) != (then.digest, then.finish_reason):
            yield Difference(request_id=then.request_id, index=then.index, expected=then, found=now)
