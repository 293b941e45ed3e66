"""A call as a value: what is sent and how the answer is read. Who sends it, and how, is not its business."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar
from urllib.parse import quote

import msgspec

from qwenstack.client.errors import UnreadableAnswerError

Result = TypeVar("Result")
Event = TypeVar("Event")
Taken = TypeVar("Taken", contravariant=True)
Final = TypeVar("Final", covariant=True)


@dataclass(frozen=True, slots=True)
class Upload:
    """A file to send."""

    name: str
    """What the server is told."""
    content: bytes | Path
    """A path is opened for each attempt and sent as it is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[Result]):
    """One exchange with the server."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    """From the server's root; what is not fixed in it went through `segment`."""
    read: Callable[[bytes], Result]
    """Makes the result of the answer's body."""
    body: Mapping[str, object] | None = None
    """Sent as JSON."""
    files: Mapping[str, Upload] | None = None
    """By field; sent as a form, in which `body` are the other fields."""
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    is_repeatable: bool = True
    """Whether it may be sent again when nobody knows what became of it: it makes nothing that stays, and takes nothing
    away that would then be missing."""


class Collector(Protocol[Taken, Final]):
    """Puts a stream together."""

    is_complete: bool
    """Whether the last event was seen to be the last; a stream may also say `[DONE]`."""

    def add(self, event: Taken) -> str:
        """Take the next event; return what it adds to the (first) answer's text."""
        ...

    def result(self) -> Final:
        """Return the whole."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamCall(Generic[Event, Final]):
    """An exchange whose answer comes in pieces."""

    call: Call[None]
    read_event: Callable[[bytes], Event]
    collector: Callable[[], Collector[Event, Final]]


def reader(kind: type[Result]) -> Callable[[bytes], Result]:
    """Make a function that reads JSON as a type of ours; fields that this version does not know are passed over."""
    decoder = msgspec.json.Decoder(kind)

    def read(body: bytes) -> Result:
        try:
            return decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise UnreadableAnswerError(f"The answer is no {kind.__name__}: {error}.") from error

    return read


def get(path: str, kind: type[Result], **query: object) -> Call[Result]:
    """Describe reading something; a query's None says nothing."""
    return Call(method="GET", path=path, read=reader(kind), query=_written(query))


def post(path: str, kind: type[Result], body: Mapping[str, object], *, is_repeatable: bool = True) -> Call[Result]:
    """Describe sending something; a None in the body says nothing."""
    return Call(method="POST", path=path, read=reader(kind), body=given(body), is_repeatable=is_repeatable)


def delete(path: str, kind: type[Result], *, is_repeatable: bool = False) -> Call[Result]:
    """Describe taking something away; asked again, most of the server knows nothing of what it took away before."""
    return Call(method="DELETE", path=path, read=reader(kind), is_repeatable=is_repeatable)


def streamed(
    whole: Call[Any], read_event: Callable[[bytes], Event], collector: Callable[[], Collector[Event, Final]]
) -> StreamCall[Event, Final]:
    """Describe the same call with its answer in pieces, and the token counts at its end."""
    body = {**(whole.body or {}), "stream": True}
    call: Call[None] = replace(whole, body=body, read=_nothing)
    return StreamCall(call=call, read_event=read_event, collector=collector)


def given(fields: Mapping[str, object]) -> dict[str, object]:
    """Return what is said."""
    return {name: value for name, value in fields.items() if value is not None}


def segment(text: str) -> str:
    """Return a name as one step of a path, whatever is in it."""
    return quote(text, safe="")


def _written(query: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in query.items() if value is not None}


def _nothing(_: bytes) -> None:
    return None
