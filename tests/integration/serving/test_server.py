"""The server as a process and as a socket: ports, signals, and what raw bytes get."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop
from starlette.types import Receive, Scope, Send
from toy_llm import ToyLLM

from qwenstack.core.errors import ConfigError
from qwenstack.serving import ServeConfig, create_app, open_socket, serve_app

Serve = Callable[..., contextlib.AbstractContextManager[str]]

SCRIPT = """
import asyncio, contextlib, sys
from toy_llm import ToyLLM
from qwenstack.serving import ServeConfig, create_app, run_server
config = ServeConfig(port=0, shutdown_timeout_s=1)
llm = ToyLLM(endless=True, step_s=0.002)
app = create_app(llm, config)
own_lifespan = app.router.lifespan_context

@contextlib.asynccontextmanager
async def slowly_closed(app):
    async with own_lifespan(app):
        yield
    await asyncio.sleep(float(sys.argv[1]))

app.router.lifespan_context = slowly_closed
run_server(app, config, on_ready=lambda urls: print(*urls, flush=True))
print("closed", llm.num_open, flush=True)
"""


@pytest.fixture
def closing_s() -> float:
    """How long the model takes to stop."""
    return 0.0


@pytest.fixture
def process(closing_s: float) -> Iterator[subprocess.Popen[str]]:
    toy = Path(__file__).parents[2] / "unit" / "serving"
    path = os.pathsep.join([str(toy), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(closing_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def address_of(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host.strip("[]"), int(port)


def exchange(url: str, data: bytes, *, timeout_s: float = 5) -> bytes:
    """Send raw bytes, and return what comes back until the server closes or falls silent."""
    with socket.create_connection(address_of(url), timeout=timeout_s) as connection:
        answer = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError, BrokenPipeError):
            connection.sendall(data)
            while chunk := connection.recv(65_536):
                answer += chunk
        return answer


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_open_stream_and_the_server_within_two_seconds(
    process: subprocess.Popen[str], number: signal.Signals
) -> None:
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    body = b'{"prompt": "x", "stream": true, "max_tokens": 500}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(address_of(url), timeout=5) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert b"200 OK" in connection.recv(65_536)
        begun = time.monotonic()
        process.send_signal(number)
        rest = b""
        while chunk := connection.recv(65_536):
            rest += chunk
        # From the signal until the server has returned; how fast a busy machine ends a process is not its doing.
        assert process.stdout.readline() == "closed 0\n"
        assert time.monotonic() - begun < 2
        assert process.wait(10) == 0
    assert b"shutting down" in rest
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("closing_s", [60.0])
def test_a_second_signal_ends_the_server_at_once(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.7)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "closed 0\n"
    assert process.wait(10) == 0


def test_a_taken_port_is_named_with_the_flag() -> None:
    with contextlib.closing(open_socket(ServeConfig(port=0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port}.*--port"):
            open_socket(ServeConfig(port=port))


def test_a_host_that_is_not_ours_is_named() -> None:
    for host in ("203.0.113.7", "no-such-host.invalid"):
        with pytest.raises(ConfigError, match=host.replace(".", r"\.")):
            open_socket(ServeConfig(host=host, api_keys=("sk-some-key",)))


def test_localhost_is_reached_over_ipv4() -> None:
    with contextlib.closing(open_socket(ServeConfig(host="localhost", port=0))) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("host", [b"a/?x=", b"evil.example", b"localhost, evil.example", b""])
def test_sec_13_a_strange_host_is_refused_before_the_router(url: str, host: bytes) -> None:
    answer = exchange(url, b"GET /v1/models HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403")
    assert b"toy/echo" not in answer


@pytest.mark.parametrize(
    "target",
    [b"http://evil.example/v1/models", b"/v1/models?x=1", b"/v1/../v1/models", b"/v1/%6dodels", b"//v1/models"],
)
def test_sec_13_the_key_is_asked_for_however_the_path_is_written(serve: Serve, target: bytes) -> None:
    with serve(api_keys=("sk-right-key",)) as url:
        answer = exchange(url, b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
        b"Content-Length: 2\r\nContent-Length: 3\r\n",
        b"Content-Length: +2\r\n",
        b"Content-Length: 9999999999999999999\r\n",
        b"Content-Length : 2\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"X: a\r\n b: c\r\nContent-Length: 2\n\n",
    ],
)
def test_sec_21_ambiguous_framing_is_refused(url: str, head: bytes) -> None:
    start = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = exchange(url, start + head + b"\r\n{}GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", timeout_s=1)
    assert b"HTTP/1.1 400" in answer[:12] or answer == b""
    assert b"alive" not in answer


STREAMING = (
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 28\r\n\r\n"
    b'{"prompt":"x","stream":true}'
)


def test_sec_21_a_bad_request_behind_a_good_one_does_not_get_its_answer(url: str) -> None:
    answer = exchange(url, STREAMING + b"GET /livez HTTP/9.9\r\nA b: c\r\n\r\n")
    assert answer == b"" or answer.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 400" not in answer.partition(b"[DONE]")[0]


@pytest.mark.parametrize("rest", [b"garbage\r\n\r\n", b"GET /livez HTTP/1.1\r\nX: y"])
def test_sec_21_nothing_is_written_into_an_answer_that_is_on_its_way(llm: ToyLLM, serve: Serve, rest: bytes) -> None:
    llm.step_s = 0.1
    with serve(header_timeout_s=0.3) as url, socket.create_connection(address_of(url), timeout=5) as connection:
        connection.sendall(STREAMING)
        answer = connection.recv(65_536)
        connection.sendall(rest)
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(65_536):
                answer += chunk
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1 or answer.rfind(b"HTTP/1.1") > answer.index(b"[DONE]\n\n\r\n0\r\n\r\n")


def chunked(*trailers: bytes, headers: bytes = b"") -> tuple[bytes, bytes]:
    """Return a request up to its body, and the body with what follows it."""
    head = (
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\nConnection: close\r\n" + headers + b"\r\n"
    )
    body = b'{"content":"x"}'
    fields = b"".join(trailer + b"\r\n" for trailer in trailers)
    return head, b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, fields)


RIGHT_KEY = b"Authorization: Bearer sk-right-key"


def test_sec_21_a_trailer_is_no_header(serve: Serve) -> None:
    with serve(api_keys=("sk-right-key",)) as url:
        assert exchange(url, b"".join(chunked(headers=RIGHT_KEY + b"\r\n"))).startswith(b"HTTP/1.1 200")
        assert exchange(url, b"".join(chunked(RIGHT_KEY))).startswith(b"HTTP/1.1 401")
        assert exchange(url, b"".join(chunked(b"X: y", RIGHT_KEY, b"X: y"))).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("num_early", [0, 20, 30, 60], ids=["the body", "the last chunk", "a trailer", "its value"])
def test_sec_21_a_trailer_does_no_harm_wherever_the_bytes_are_cut(serve: Serve, num_early: int) -> None:
    trailers = (b"Origin: https://evil.example", b"Host: evil.example", b"Expect: 100-continue", b"X: y")
    head, rest = chunked(*trailers, headers=RIGHT_KEY + b"\r\n")
    with serve(api_keys=("sk-right-key",)) as url:
        assert exchange(url, head + rest).startswith(b"HTTP/1.1 200")
        with socket.create_connection(address_of(url), timeout=5) as connection:
            connection.sendall(head + rest[:num_early])
            time.sleep(0.1)  # so that the server reads each by itself
            connection.sendall(rest[num_early:])
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200")


def test_sec_21_a_trailer_is_no_header_of_the_next_request(serve: Serve) -> None:
    first = b"".join(chunked(b"X: y", RIGHT_KEY, headers=RIGHT_KEY + b"\r\n"))
    with serve(api_keys=("sk-right-key",)) as url:
        answer = exchange(url, first.replace(b"Connection: close\r\n", b"") + b"".join(chunked()))
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200", b"401"]


def test_sec_21_trailers_have_the_limits_of_headers(serve: Serve) -> None:
    with serve(max_header_bytes=4096) as url:
        assert exchange(url, b"".join(chunked(b"X: " + b"a" * 3000))).startswith(b"HTTP/1.1 200")
        assert exchange(url, b"".join(chunked(b"X: " + b"a" * 5000))).startswith(b"HTTP/1.1 400")
        assert exchange(url, b"".join(chunked(*[b"X: y"] * 101))).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("flood", [b"X: " + b"a" * 8000, b"X" * 8000], ids=["value", "name"])
def test_sec_21_a_trailer_without_end_is_cut(serve: Serve, flood: bytes) -> None:
    head, rest = chunked()
    with serve(max_header_bytes=4096) as url, socket.create_connection(address_of(url), timeout=5) as connection:
        connection.sendall(head + rest[:-2])
        time.sleep(0.1)  # so that the server reads each by itself
        connection.sendall(flood)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 431")


def test_sec_22_a_long_chunk_does_not_count_as_trailers(serve: Serve) -> None:
    head, _ = chunked()
    body = b'{"content":"' + b"a" * 20_000 + b'"}'
    with serve(max_header_bytes=4096) as url, socket.create_connection(address_of(url), timeout=5) as connection:
        for piece in (head, b"%x\r\n" % len(body), body[:10_000], body[10_000:], b"\r\n0\r\n", b"X: y\r\n\r\n"):
            connection.sendall(piece)
            time.sleep(0.05)  # so that the server reads each by itself
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("version", [b"0.9", b"1.2", b"2.0", b"9.9"])
def test_sec_21_other_versions_of_http_are_refused(url: str, version: bytes) -> None:
    answer = exchange(url, b"GET /livez HTTP/" + version + b"\r\nHost: localhost\r\n\r\n", timeout_s=1)
    assert answer.startswith(b"HTTP/1.1 400")


def test_a_request_after_one_that_asked_for_another_protocol_is_not_left_waiting(url: str) -> None:
    upgrading = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    answer = exchange(url, upgrading + b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", timeout_s=10)
    assert answer.count(b"alive") == 1
    assert b"\r\nconnection: close\r\n" in answer.lower()


def test_a_bad_body_gets_its_refusal_behind_the_answers_before_it(url: str) -> None:
    good = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    bad = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"
    bad = bad.replace(b"Transfer", b"Content-Type: application/json\r\nTransfer")
    answer = exchange(url, good + good + bad)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200", b"200", b"400"]
    assert exchange(url, bad).startswith(b"HTTP/1.1 400")


def test_an_answer_ends_when_the_client_leaves_though_another_request_was_behind_it(llm: ToyLLM, serve: Serve) -> None:
    llm.endless, llm.step_s = True, 0.05
    with serve() as url:
        with socket.create_connection(address_of(url), timeout=5) as connection:
            connection.sendall(STREAMING + b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
        deadline = time.monotonic() + 5
        while llm.num_open and time.monotonic() < deadline:
            time.sleep(0.01)
        assert llm.num_open == 0


def test_sec_22_a_client_that_does_not_read_is_cut(llm: ToyLLM, serve: Serve) -> None:
    llm.endless = True
    llm.card = replace(llm.card, max_model_len=1 << 20)
    with serve(send_timeout_s=0.3) as url, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(address_of(url))
        connection.sendall(STREAMING.replace(b"h: 28", b"h: 48").replace(b"true", b'true,"max_tokens":900000'))
        deadline = time.monotonic() + 20
        while llm.num_open == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert llm.num_open == 1
        while llm.num_open and time.monotonic() < deadline:
            time.sleep(0.05)
        assert llm.num_open == 0


def test_sec_22_headers_without_end_are_cut(serve: Serve) -> None:
    with serve(max_header_bytes=4096, header_timeout_s=0.3) as url:
        start = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
        assert b"200" in exchange(url, start + b"X: " + b"a" * 3000 + b"\r\nConnection: close\r\n\r\n")[:12]
        for flood in (b"X: " + b"a" * 100_000, b"X: a\r\n" * 20_000, b"X-" + b"a" * 100_000 + b": b\r\n\r\n"):
            assert exchange(url, start + flood)[:12] in {b"HTTP/1.1 431", b"HTTP/1.1 400", b""}
        assert exchange(url, b"GET /" + b"a" * 100_000)[:12] in {b"HTTP/1.1 431", b""}
        assert exchange(url, start + b"X: a\r\n" * 101 + b"\r\n")[:12] == b"HTTP/1.1 400"
        begun = time.monotonic()
        assert exchange(url, start).startswith(b"HTTP/1.1 408")
        assert exchange(url, b"") == b""
        assert time.monotonic() - begun < 2


def test_sec_22_a_chunked_body_is_cut_at_the_limit(serve: Serve) -> None:
    with serve(max_body_bytes=10_000) as url:
        start = (
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        answer = exchange(url, start + b"1\r\n \r\n" * 12_000)
        assert answer.startswith(b"HTTP/1.1 413")


ALIVE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
LONG_BODY = b'{"content":"' + b"a" * 40_000 + b'"}'
LONG_HEAD = (
    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(LONG_BODY)
)


@pytest.mark.parametrize("num_early", [0, 30], ids=["begun after the answer", "begun behind the body"])
def test_sec_22_a_body_does_not_count_as_headers_of_the_next_request(url: str, num_early: int) -> None:
    with socket.create_connection(address_of(url), timeout=10) as connection:
        answers = b""
        for piece in (LONG_HEAD, LONG_BODY + ALIVE[:num_early], ALIVE[num_early:40], ALIVE[40:]):
            connection.sendall(piece)
            time.sleep(0.2)  # so that the server reads each by itself
        while chunk := connection.recv(65_536):
            answers += chunk
    assert re.findall(rb"HTTP/1\.1 (\d+)", answers) == [b"200", b"200"]


@pytest.mark.parametrize(
    ("request_bytes", "piece"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\r\n"),
        (LONG_HEAD.replace(b"localhost", b"elsewhere"), b" "),
    ],
    ids=["empty lines", "a body that is answered already"],
)
def test_sec_22_what_belongs_to_no_open_request_keeps_no_connection(
    serve: Serve, request_bytes: bytes, piece: bytes
) -> None:
    with serve(header_timeout_s=0.5) as url, socket.create_connection(address_of(url), timeout=10) as connection:
        connection.sendall(request_bytes)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 ")
        connection.settimeout(0.1)
        deadline = time.monotonic() + 20
        is_open = True
        with contextlib.suppress(ConnectionError):
            while is_open and time.monotonic() < deadline:
                connection.sendall(piece)
                with contextlib.suppress(TimeoutError):
                    is_open = connection.recv(65_536) != b""
        assert time.monotonic() < deadline


def test_an_empty_line_between_requests_is_no_harm(serve: Serve) -> None:
    with serve(header_timeout_s=0.5) as url, socket.create_connection(address_of(url), timeout=10) as connection:
        connection.sendall(ALIVE.replace(b"Connection: close\r\n", b""))
        answer = b""
        while b"alive" not in answer:
            answer += connection.recv(65_536)
        connection.sendall(b"\r\n")
        time.sleep(0.2)
        connection.sendall(STREAMING)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200")


def test_two_requests_on_one_connection_are_both_answered(url: str) -> None:
    first = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert exchange(url, first + last).count(b'{"status":"alive"}') == 2


def test_no_header_tells_what_software_answers(url: str) -> None:
    answer = exchange(url, b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").lower()
    assert b"\r\nserver:" not in answer


class NotesTurns:
    """An application that notes in which turn of the event loop each of its requests begins."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.state = app.state
        self.turn = 0
        self.begun: list[int] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.begun.append(self.turn)
        await self._app(scope, receive, send)

    def count_turns(self) -> None:
        self.turn += 1
        asyncio.get_running_loop().call_soon(self.count_turns)


def test_a_burst_of_connections_is_taken_in_a_few_turns_of_the_loop() -> None:
    config, burst = ServeConfig(port=0), 48
    app = NotesTurns(create_app(ToyLLM(), config))

    async def serve_burst(listener: socket.socket) -> None:
        app.count_turns()
        serving = asyncio.ensure_future(serve_app(app, config, listener=listener))  # type: ignore[arg-type]
        async with asyncio.timeout(30):
            while len(app.begun) < burst:
                await asyncio.sleep(0.001)
        app.state.lifetime.stop()
        await serving

    with open_socket(config) as listener, contextlib.ExitStack() as clients:
        for _ in range(burst):
            client = clients.enter_context(socket.create_connection(listener.getsockname(), timeout=5))
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve_burst(listener))
    assert app.begun[-1] - app.begun[0] <= burst / 4, "libuv by itself takes one connection in a turn"
