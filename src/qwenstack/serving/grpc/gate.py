"""The gate before the methods: who may call, what is read, how a call ends. Every call of the server passes here.

It is the one generic handler of the server, so that no method can be added beside it. On the wire all shapes of methods
are alike, streams of messages in both directions; that is how the gate sees them, and why nothing is read of a caller
who is refused.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Protocol

import grpc
import grpc.aio

from qwenstack.core.loop_turns import LoopTurns
from qwenstack.logs import RequestContext, request_context
from qwenstack.serving.audit import RequestAudit
from qwenstack.serving.config import ServeConfig
from qwenstack.serving.connection import LEAST_BYTES_A_SECOND, Lifetime, run_while_serving
from qwenstack.serving.errors import HttpError
from qwenstack.serving.failure_log import log_failure
from qwenstack.serving.grpc.method import Call, Method
from qwenstack.serving.grpc.places import Places
from qwenstack.serving.grpc.status import answer_status
from qwenstack.serving.identity import Access, Callers, Identity, refuse_caller
from qwenstack.serving.limiter import Limiter
from qwenstack.serving.metrics import Metrics
from qwenstack.serving.request_log import Outcome, client_label
from qwenstack.serving.request_notes import RequestNotes

REQUEST_ID_NAME = "x-request-id"
"""In trailing metadata: the server's id of the call. From a client: a label for the log, by which nothing is found."""
PUBLIC_MESSAGE_TIMEOUT_S = 1.0
"""A call that anybody may make has its one short message with it, or right behind it."""
_UNMATCHED = "unmatched"
_SINGLE_NAMES = frozenset({"authorization", "x-api-key"})
"""Metadata that may come once: of two keys, two readers could believe different ones."""


class CallContext(Protocol):
    """What the gate uses of grpcio's context."""

    async def send_initial_metadata(self, metadata: Sequence[tuple[str, str]]) -> None:
        """Say that the call has an answer."""
        ...

    async def write(self, message: bytes) -> None:
        """Send a message; waits while the client does not read."""
        ...

    async def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Sequence[tuple[str, str]]) -> None:
        """End the call with an error, by raising; waits while the client does not read what was sent before."""
        ...

    def set_trailing_metadata(self, trailing_metadata: Sequence[tuple[str, str]]) -> None:
        """Say what is sent when the call ends well."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CallHead:
    """What is known of a call before any message is read."""

    path: str
    metadata: Mapping[str, str]
    """Names of interest alone."""
    repeated: str | None = None
    """A name that came twice and may not."""

    @classmethod
    def from_details(cls, details: grpc.HandlerCallDetails) -> CallHead:
        """Read what grpcio tells of a call."""
        metadata: dict[str, str] = {}
        repeated: str | None = None
        for name, value in details.invocation_metadata or ():
            if name in {*_SINGLE_NAMES, REQUEST_ID_NAME} and isinstance(value, str):
                repeated = name if name in metadata and name in _SINGLE_NAMES else repeated
                metadata[name] = value.strip()
        return cls(path=str(details.method), metadata=metadata, repeated=repeated)

    @property
    def api_key(self) -> str | None:
        """The key in `authorization: Bearer KEY`; where there is none, in `x-api-key`."""
        scheme, _, token = self.metadata.get("authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else self.metadata.get("x-api-key")


class Gate(grpc.GenericRpcHandler):
    """Judges each call, runs it while its caller waits and the server lives, and signs its end."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        *,
        callers: Callers,
        limiter: Limiter,
        metrics: Metrics,
        audit: RequestAudit,
        lifetime: Lifetime,
        turns: LoopTurns,
        config: ServeConfig,
    ) -> None:
        """Guard methods by their paths."""
        self._methods = methods
        self._callers = callers
        self._limiter = limiter
        self._metrics = metrics
        self._notes = RequestNotes(audit, logs_requests=config.log_requests)
        self._lifetime = lifetime
        self._turns = turns
        self._message_timeout_s = config.body_timeout_s
        self._send_timeout_s = config.send_timeout_s
        self._places = Places()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Take a call, whatever its method."""
        head = CallHead.from_details(handler_call_details)

        async def handle(requests: AsyncIterator[bytes], context: CallContext) -> None:
            try:
                await self._handle(head, requests, context)
            except grpc.aio.InternalError:  # what was being sent has nobody to go to
                raise asyncio.CancelledError from None

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _handle(self, head: CallHead, requests: AsyncIterator[bytes], context: CallContext) -> None:
        request_id = secrets.token_hex(16)
        method = self._methods.get(head.path)
        # What is no method is nobody's: it needs a key, so that strangers learn nothing about what exists.
        access = method.access if method is not None else Access.INFERENCE
        identity = await self._callers.identify(head.api_key, now_ms=time.time() * 1000, request_id=request_id)
        signature = ((REQUEST_ID_NAME, request_id),)
        code = grpc.StatusCode.CANCELLED  # unless it comes to another end
        started_at = time.perf_counter()
        label = client_label(head.metadata.get(REQUEST_ID_NAME, ""))
        with (
            request_context(
                RequestContext(
                    request_id=request_id, tenant=identity.tenant, key_id=identity.key_id, client_request_id=label
                )
            ),
            ExitStack() as place,  # given back when the end is told: to grpcio the call is open until then
        ):
            try:
                place.enter_context(self._places.hold(identity, access))
                await self._turns.wait(identity.line)
                method = self._admit(head, method, access, identity)
                call = Call(identity=identity, request_id=request_id)
                await run_while_serving(self._answer(method, requests, call, context), self._lifetime)
                context.set_trailing_metadata(signature)
                code = grpc.StatusCode.OK
            except grpc.aio.InternalError:
                raise
            except Exception as error:  # noqa: BLE001 - nothing that a call causes may end without a status of ours
                answer = answer_status(error, request_id=request_id)
                if answer.is_our_fault:
                    log_failure(error, request_id)
                code = answer.code
                await context.abort(answer.code, answer.message, (*signature, *answer.metadata.items()))
            finally:
                outcome = Outcome(
                    method="gRPC",
                    route=_UNMATCHED if method is None else method.path,
                    access=access,
                    status=code.name,
                    duration_s=time.perf_counter() - started_at,
                )
                self._metrics.count_grpc(outcome)
                self._notes.note(outcome, identity, request_id)

    def _admit(self, head: CallHead, method: Method | None, access: Access, identity: Identity) -> Method:
        """Let a call in, or raise why not; all that a call is charged with belongs here."""
        if head.repeated is not None:
            raise HttpError(400, f"The metadata `{head.repeated}` came more than once.", code="repeated_header")
        refusal = refuse_caller(identity, access)
        if refusal is not None:
            raise refusal
        if method is None:
            raise HttpError(501, "There is no such method; reflection lists those there are.", code="not_found")
        if access is Access.INFERENCE:
            self._limiter.take_request(identity)
        return method

    async def _answer(self, method: Method, requests: AsyncIterator[bytes], call: Call, context: CallContext) -> None:
        timeout_s = self._message_timeout_s
        if method.access is Access.PUBLIC:
            timeout_s = min(timeout_s, PUBLIC_MESSAGE_TIMEOUT_S)
        async with (
            aclosing(_in_time(requests, timeout_s)) as messages,
            aclosing(self._in_turn(messages, call.identity)) as pieces,
            aclosing(method.answer(pieces, call)) as answers,
        ):
            await self._send(answers, context)

    async def _send(self, answers: AsyncIterator[bytes], context: CallContext) -> None:
        has_begun = False
        async for answer in answers:
            if not has_begun:  # before the message, not with it: grpcio ends no call while its first one is unread
                await context.send_initial_metadata(())
                has_begun = True
            await _write_in_time(answer, context, self._send_timeout_s)

    async def _in_turn(self, messages: AsyncIterator[bytes], identity: Identity) -> AsyncGenerator[bytes]:
        """Wait for a turn behind each message: those of many calls that were open may come together."""
        async for message in messages:
            await self._turns.wait(identity.line)
            yield message


async def _in_time(requests: AsyncIterator[bytes], timeout_s: float) -> AsyncGenerator[bytes]:
    """Read a caller's messages; each has to come soon after it is waited for."""
    while (message := await _read_in_time(requests, timeout_s)) is not None:
        yield message


async def _read_in_time(requests: AsyncIterator[bytes], timeout_s: float) -> bytes | None:
    """Read a message; None where the caller says that there is none. Who falls silent may be in the middle of it."""
    try:
        async with asyncio.timeout(timeout_s):
            return await anext(requests, None)
    except TimeoutError:
        text = f"The message did not come within {timeout_s:g} s."
        raise HttpError(408, text, code="body_timeout") from None


async def _write_in_time(message: bytes, context: CallContext, timeout_s: float) -> None:
    """Send a message to a caller who reads; a long one may take longer."""
    timeout_s += len(message) / LEAST_BYTES_A_SECOND
    try:
        async with asyncio.timeout(timeout_s):
            await context.write(message)
    except TimeoutError:
        text = f"The answer was not read within {timeout_s:.3g} s."
        raise HttpError(408, text, code="send_timeout") from None
