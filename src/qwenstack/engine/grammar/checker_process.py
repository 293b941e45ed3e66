"""The engine's handle on the process that checks grammars: started when first needed, again when it died."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from typing import BinaryIO, cast

from qwenstack.core.errors import CapacityError, EngineError
from qwenstack.core.grammar import Grammar
from qwenstack.engine.grammar.limits import CHECK_TIMEOUT_S
from qwenstack.engine.grammar.token_table import TokenTable
from qwenstack.engine.grammar.wire import Check, Reply, UseTable, read_frame, reply_decoder, write_frame

_START_TIMEOUT_S = 30.0
"""Half a second on an idle machine; one that takes longer than this is not going to come."""
_REPLY_TIMEOUT_S = CHECK_TIMEOUT_S + 5.0
"""The process keeps the limit itself; one that does not answer at all has no processor to run on."""
_KEPT_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "VIRTUAL_ENV")
"""What Python needs to start; keys and tokens are none of the checker's business."""


class CheckerProcess:
    """Belongs to one thread."""

    def __init__(self, table: TokenTable) -> None:
        """Keep the vocabulary for each start."""
        self._table = table
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process if it does not run; `check` waits until it is ready."""
        if self._process is not None:
            return
        environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
        self._process = subprocess.Popen(
            # -P: a `numpy.py` in the user's current folder, which may be a strange checkpoint's, is not numpy.
            [sys.executable, "-P", "-m", "qwenstack.engine.grammar.checker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        write_frame(self._requests, UseTable(self._table))
        self._is_ready = False

    def check(self, grammar: Grammar) -> Reply:
        """Try a grammar.

        Raises:
            EngineError: the process died; the next call starts another.
            CapacityError: it did not answer: the machine is too busy for it.
        """
        try:
            self.start()
            if not self._is_ready:
                self._read(_START_TIMEOUT_S)
                self._is_ready = True
            write_frame(self._requests, Check(grammar))
            return self._read(_REPLY_TIMEOUT_S)
        except TimeoutError as error:
            self.stop()
            text = "The machine is too busy to check the grammar; try again in a moment."
            raise CapacityError(text) from error
        except (EOFError, OSError) as error:
            self.stop()
            raise EngineError("The process that checks grammars died; send the request again.") from error

    def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):  # what it never read goes with it
                        stream.close()

    def _read(self, timeout_s: float) -> Reply:
        replies = self._replies
        readable, _, _ = select.select([replies], [], [], timeout_s)
        if not readable:
            raise TimeoutError
        return reply_decoder.decode(read_frame(replies))

    @property
    def _requests(self) -> BinaryIO:
        assert self._process is not None, "started above"
        return cast("BinaryIO", self._process.stdin)

    @property
    def _replies(self) -> BinaryIO:
        assert self._process is not None, "started above"
        return cast("BinaryIO", self._process.stdout)
