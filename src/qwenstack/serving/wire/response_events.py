"""Writes an answer as OpenAI's events of a response, and the response as it grows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal, cast

import msgspec

from qwenstack.core.outputs import OutputDelta, ToolCallDelta
from qwenstack.serving.service import UsageTally
from qwenstack.serving.wire.response_items import new_item_id
from qwenstack.serving.wire.responses import (
    OutputItem,
    ResponseError,
    ResponseEvent,
    ResponseObject,
    ResponseStatus,
    write_response_usage,
)
from qwenstack.serving.wire.tools import new_call_id

Kind = Literal["message", "reasoning", "function_call"]
_PREFIXES: Mapping[Kind, str] = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
_PART_TYPES: Mapping[Kind, str] = {"message": "output_text", "reasoning": "reasoning_text"}


def encode_response_event(event: ResponseEvent) -> bytes:
    """Encode one event, named by its type."""
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))


class ResponseWriter:
    """Turns what the engine says into events; items open, grow and close, one at a time.

    What an event holds is never changed afterwards, so events may be kept.
    """

    def __init__(self, response: ResponseObject) -> None:
        """Start with a response that has no output yet."""
        self._response = response.copy()
        self._num_events = 0
        self._output: list[OutputItem] = []
        self._open: _OpenItem | None = None

    @property
    def response(self) -> ResponseObject:
        """The response as it is now, with the items that are finished."""
        response = self._response.copy()
        response["output"] = list(self._output)
        return response

    @property
    def is_over(self) -> bool:
        """Whether the response has come to its end."""
        return self._response["status"] != "in_progress"

    def begin(self) -> list[ResponseEvent]:
        """Return the first events."""
        return [self._event(f"response.{word}", response=self.response) for word in ("created", "in_progress")]

    def write(self, delta: OutputDelta) -> list[ResponseEvent]:
        """Return the events that a step's news make.

        A step may bring the end of a call and what follows it: the open item comes first.
        """
        events: list[ResponseEvent] = []
        new = list(delta.tool_calls)
        while new and self._open is not None and new[0].index == self._open.call_index:
            events += self._write_call(new.pop(0))
        if delta.reasoning_text:
            events += self._write_text("reasoning", delta.reasoning_text)
        if delta.text:
            events += self._write_text("message", delta.text)
        for call in new:
            events += self._write_call(call)
        return events

    def finish(self, tally: UsageTally, *, is_cut: bool) -> list[ResponseEvent]:
        """Return the events that end the answer; `is_cut`: because it reached the limit of its length."""
        status: ResponseStatus = "incomplete" if is_cut else "completed"
        events = [] if self._open or self._output else self._switch("message")
        events += self._close(status)
        self._response["incomplete_details"] = {"reason": "max_output_tokens"} if is_cut else None
        self._response["usage"] = write_response_usage(tally)
        return [*events, self._end(status)]

    def fail(self, error: ResponseError) -> list[ResponseEvent]:
        """Return the event that ends an answer which came to no good end."""
        self._response["error"] = error
        return [self._end("failed")]

    def cancel(self) -> ResponseObject:
        """Return the response as somebody stopped it."""
        self._response = end_response(self._response, "cancelled")
        return self.response

    def _end(self, status: ResponseStatus) -> ResponseEvent:
        self._response = end_response(self._response, status)
        return self._event(f"response.{status}", response=self.response)

    def _write_text(self, kind: Kind, text: str) -> list[ResponseEvent]:
        events = self._switch(kind)
        assert self._open is not None
        self._open.pieces.append(text)
        kind_of_event = f"response.{_PART_TYPES[kind]}.delta"
        events.append(self._item_event(kind_of_event, content_index=0, delta=text, **_logprobs(kind)))
        return events

    def _write_call(self, call: ToolCallDelta) -> list[ResponseEvent]:
        events = self._switch("function_call", call)
        assert self._open is not None
        if call.arguments:
            self._open.pieces.append(call.arguments)
            events.append(self._item_event("response.function_call_arguments.delta", delta=call.arguments))
        return events

    def _switch(self, kind: Kind, call: ToolCallDelta | None = None) -> list[ResponseEvent]:
        """Let an item of this kind, or of this call, be the open one."""
        call_index = None if call is None else call.index
        if self._open is not None and (self._open.kind, self._open.call_index) == (kind, call_index):
            return []
        events = self._close("completed")
        self._open = _OpenItem(kind, call)
        item = self._open.item("in_progress", with_content=False)
        events.append(self._event("response.output_item.added", output_index=len(self._output), item=item))
        if call is None:
            part = _part(kind, "")
            events.append(self._item_event("response.content_part.added", content_index=0, part=part))
        return events

    def _close(self, status: ResponseStatus) -> list[ResponseEvent]:
        """End the open item, if there is one."""
        if self._open is None:
            return []
        kind, text = self._open.kind, "".join(self._open.pieces)
        if kind == "function_call":
            name = self._open.name
            events = [self._item_event("response.function_call_arguments.done", name=name, arguments=text)]
        else:
            kind_of_event = f"response.{_PART_TYPES[kind]}.done"
            events = [
                self._item_event(kind_of_event, content_index=0, text=text, **_logprobs(kind)),
                self._item_event("response.content_part.done", content_index=0, part=_part(kind, text)),
            ]
        item = self._open.item(status)
        events.append(self._event("response.output_item.done", output_index=len(self._output), item=item))
        self._output.append(item)
        self._open = None
        return events

    def _item_event(self, kind: str, **fields: object) -> ResponseEvent:
        assert self._open is not None
        return self._event(kind, item_id=self._open.id, output_index=len(self._output), **fields)

    def _event(self, kind: str, **fields: object) -> ResponseEvent:
        event = {"type": kind, "sequence_number": self._num_events, **fields}
        self._num_events += 1
        return cast("ResponseEvent", event)


class _OpenItem:
    """The item that is growing."""

    def __init__(self, kind: Kind, call: ToolCallDelta | None) -> None:
        self.kind: Kind = kind
        self.id = new_item_id(_PREFIXES[kind])
        self.call_index = None if call is None else call.index
        self.name = "" if call is None else call.name or ""
        self.pieces: list[str] = []
        self._call_id = new_call_id()

    def item(self, status: str, *, with_content: bool = True) -> OutputItem:
        text = "".join(self.pieces)
        item: OutputItem = {"id": self.id, "type": self.kind, "status": status}
        content = [_part(self.kind, text)] if with_content and self.kind != "function_call" else []
        match self.kind:
            case "message":
                return item | {"role": "assistant", "content": content}
            case "reasoning":
                return item | {"summary": [], "content": content}
            case "function_call":
                return item | {"call_id": self._call_id, "name": self.name, "arguments": text}


def end_response(response: ResponseObject, status: ResponseStatus) -> ResponseObject:
    """Return a response with its end."""
    ended = response.copy()
    ended["status"], ended["completed_at"] = status, int(time.time()) if status == "completed" else None
    return ended


def _part(kind: Kind, text: str) -> dict[str, object]:
    part: dict[str, object] = {"type": _PART_TYPES[kind], "text": text}
    if kind == "message":
        part["annotations"] = list[object]()
    return part | _logprobs(kind)


def _logprobs(kind: Kind) -> dict[str, object]:
    """Return the list that texts of messages come with; it is empty, since this wire does not ask for any."""
    return {"logprobs": list[object]()} if kind == "message" else {}
