"""The process that tries untrusted grammars first, where a runaway can be killed.

It builds the vocabulary once and forks a child for each grammar, so that a child which is killed costs nothing but
itself. Started by `qwenstack.engine.grammar.checker_process` as `python -m qwenstack.engine.grammar.checker`; ends when
its standard input closes.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path

from qwenstack.core.errors import RequestError
from qwenstack.core.grammar import Grammar
from qwenstack.engine.grammar.constraint import MatcherVocabulary, TokenConstraint
from qwenstack.engine.grammar.lark_source import lark_of
from qwenstack.engine.grammar.limits import CHECK_MEMORY_BYTES, CHECK_TIMEOUT_S, MAX_COMPILED_BYTES
from qwenstack.engine.grammar.refusal import GrammarRefusal
from qwenstack.engine.grammar.token_table import matcher_vocabulary
from qwenstack.engine.grammar.wire import (
    Check,
    Reply,
    Unusable,
    Usable,
    UseTable,
    read_frame,
    reply_decoder,
    request_decoder,
    write_frame,
)
from qwenstack.tokenizer import ToolFormat

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


def main() -> None:
    """Answer checks until the other side closes the pipe."""
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    with contextlib.suppress(EOFError, BrokenPipeError):
        first = request_decoder.decode(read_frame(requests))
        assert isinstance(first, UseTable), "the first message brings the vocabulary"
        table = first.table
        vocabulary = MatcherVocabulary(
            matcher_vocabulary(table), frozenset(table.eos_token_ids), table.usable_words_with_markers
        )
        write_frame(replies, Usable())
        while True:
            request = request_decoder.decode(read_frame(requests))
            assert isinstance(request, Check), "the vocabulary comes once"
            write_frame(replies, _check_in_child(request.grammar, vocabulary, table.tool_format))


def _check_in_child(grammar: Grammar, vocabulary: MatcherVocabulary, tool_format: ToolFormat) -> Reply:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            _limit_child()
            with os.fdopen(writing, "wb") as pipe:
                write_frame(pipe, _check(grammar, vocabulary, tool_format))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        body = _read_until(pipe.fileno(), time.monotonic() + CHECK_TIMEOUT_S)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if body is None:
        return Unusable(f"The grammar takes longer than {CHECK_TIMEOUT_S * 1000:.0f} ms to compile.", is_certain=False)
    if not body:
        return Unusable("The grammar needs too much memory to compile.")
    return reply_decoder.decode(body[4:])


def _read_until(fd: int, deadline: float) -> bytes | None:
    """Return all that a child writes until it closes the pipe; None if that is not before the deadline."""
    received = bytearray()
    while True:
        readable, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            return None
        piece = os.read(fd, 1 << 16)
        if not piece:
            return bytes(received)
        received += piece


def _limit_child() -> None:
    """Bound memory and processor time, in case this process dies before it can kill the child."""
    resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statm = Path("/proc/self/statm")
    if statm.exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + CHECK_MEMORY_BYTES, used + CHECK_MEMORY_BYTES))
    # Messages of a library that aborts are of no use to anyone.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _check(grammar: Grammar, vocabulary: MatcherVocabulary, tool_format: ToolFormat) -> Reply:
    """Translate, compile, and compute the first mask."""
    before = _own_bytes()
    try:
        lark = lark_of(grammar, tool_format)
        constraint = TokenConstraint(lark, vocabulary, grammar)
        constraint.allowed_words()
    except (GrammarRefusal, RequestError) as error:
        return Unusable(str(error))
    except MemoryError:
        return Unusable("The grammar needs too much memory to compile.")
    memory_bytes = _own_bytes() - before
    if memory_bytes > MAX_COMPILED_BYTES:
        return Unusable(
            f"The grammar takes {memory_bytes >> 20} MiB when compiled; at most {MAX_COMPILED_BYTES >> 20} are allowed."
        )
    return Usable(lark, memory_bytes)


def _own_bytes() -> int:
    """Return the memory of this process that no file stands behind; where the system does not tell, its peak of all."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next((line for line in status.read_text().splitlines() if line.startswith("RssAnon:")), None)
        if line is not None:
            return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT


if __name__ == "__main__":
    main()
