"""Run a journal again, step for step, and compare every answer.

Requests arrive, leave and change adapters before the same steps as then, so the same sequences meet in the same
batches. What an answer must be does not depend on that; what goes wrong often does.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

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

    Answers whose request was admitted in an earlier file are left out.

    Raises:
        RequestError: a request that was taken then is refused now.
        EngineError: an adapter is not the one it was.
    """
    found = _Ends()
    engine = Engine(model, journal=found)
    expected = _expected_ends(records)
    step = session.step
    for record in records:
        if isinstance(record, Finished):
            continue
        while step < record.step and engine.has_work:
            engine.step()
            step += 1
        step = max(step, record.step)  # nothing ran in between, or less than then
        _feed(engine, record)
    while engine.has_work and any(len(found.ends[answer]) < len(ends) for answer, ends in expected.items()):
        engine.step()
    differences = tuple(_compare(expected, found.ends))
    num_expected = sum(map(len, expected.values()))
    admitted = [record.request_id for record in records if isinstance(record, Admitted)]
    aborted = [record.request_id for record in records if isinstance(record, Aborted)]
    over = {record.request_id for record in records if isinstance(record, Finished | Aborted)}
    return SessionReport(
        num_steps=engine.stats().num_steps,
        num_requests=len(admitted),
        num_equal=num_expected - len(differences),
        num_aborted=len(aborted),
        num_lost=sum(request_id not in over for request_id in admitted),
        differences=differences,
    )


class _Ends(Silent):
    """A journal that keeps only how answers ended."""

    def __init__(self) -> None:
        self.ends: defaultdict[_Answer, list[Finished]] = defaultdict(list)

    def finished(
        self, step: int, request_id: str, index: int, token_ids: Sequence[int], finish_reason: FinishReason
    ) -> None:
        end = Finished(step, request_id, index, finish_reason, len(token_ids), token_digest(token_ids))
        self.ends[(request_id, index)].append(end)


def _expected_ends(records: Iterable[Record]) -> dict[_Answer, list[Finished]]:
    expected: defaultdict[_Answer, list[Finished]] = defaultdict(list)
    admitted: set[str] = set()
    for record in records:
        if isinstance(record, Admitted):
            admitted.add(record.request_id)
        elif isinstance(record, Finished) and record.request_id in admitted:
            expected[(record.request_id, record.index)].append(record)
    return expected


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


def _compare(
    expected: dict[_Answer, list[Finished]], found: defaultdict[_Answer, list[Finished]]
) -> Iterator[Difference]:
    """Yield what differs, in the order in which the answers ended then."""
    pairs: list[tuple[Finished, Finished | None]] = []
    for answer, ends in expected.items():
        for number, end in enumerate(ends):
            pairs.append((end, found[answer][number] if number < len(found[answer]) else None))
    for then, now in sorted(pairs, key=lambda pair: pair[0].step):
        if now is None or (now.digest, now.finish_reason) != (then.digest, then.finish_reason):
            yield Difference(request_id=then.request_id, index=then.index, expected=then, found=now)
