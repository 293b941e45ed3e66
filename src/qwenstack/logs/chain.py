"""From log records to lines: what is added, what is taken out, and how it looks."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO

from qwenstack.logs.context import current_request
from qwenstack.logs.failure import describe_failure
from qwenstack.logs.redaction import Redactor

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, ProcessorReturnValue, WrappedLogger

_OUR_LOGGERS = "qwenstack"
_COMMANDS = "qwenstack.cli."
_OUTER_LEVEL = logging.WARNING
"""For loggers of others: what they say in ordinary times is about their inside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """How the lines look and which are written."""

    format: Literal["text", "json"] = "text"
    """`text` for people; `json` for programs, one object a line."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that a line of ours must be to be written."""


@contextlib.contextmanager
def logging_to(
    stream: TextIO | None = None, config: LogConfig = LogConfig(), *, secrets: Iterable[str] = ()
) -> Generator[None]:
    """Send everything that this process logs to a stream within the block, and leave all as it was behind.

    Args:
        stream: where to; None: standard error.
        config: how.
        secrets: values that are hidden wherever they stand.
    """
    root, ours = logging.getLogger(), logging.getLogger(_OUR_LOGGERS)
    before = (root.handlers[:], root.level, ours.level)
    handler = _LineHandler(stream or sys.stderr)
    handler.setFormatter(_LateFormatter(config, Redactor(secrets), on_terminal=handler.stream.isatty()))
    root.handlers[:] = [handler]
    root.setLevel(_OUTER_LEVEL)
    ours.setLevel(config.level.upper())
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        root.handlers[:], root.level, ours.level = before[0], before[1], before[2]
        handler.close()


class _LineHandler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Say nothing: the library would print the record's arguments, and a closed pipe is no reason to fail."""


class _LateFormatter(logging.Formatter):
    """Loads structlog with the first line: an engine that has nothing to say starts 0.1 s earlier without it."""

    def __init__(self, config: LogConfig, redactor: Redactor, *, on_terminal: bool) -> None:
        super().__init__()
        self._config = config
        self._redactor = redactor
        self._on_terminal = on_terminal
        self._formatter: logging.Formatter | None = None

    def format(self, record: logging.LogRecord) -> str:
        self._formatter = self._formatter or _build(self._config, self._redactor, on_terminal=self._on_terminal)
        return self._formatter.format(record)


def _build(config: LogConfig, redactor: Redactor, *, on_terminal: bool) -> logging.Formatter:
    import structlog

    render: Processor
    if config.format == "json":
        render = structlog.processors.JSONRenderer(ensure_ascii=False)
    else:
        render = structlog.dev.ConsoleRenderer(
            colors=on_terminal, pad_event_to=0, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
        )
        render = _speaking(render) if on_terminal else render
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=(
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_request,
            _add_facts,
            _place_failure,
        ),
        processors=(structlog.stdlib.ProcessorFormatter.remove_processors_meta, _Clean(redactor), render),
    )


def _speaking(render: Processor) -> Processor:
    """Write what a command says to the person before the terminal as the sentence that it is."""

    def speak_or_render(logger: WrappedLogger, name: str, event: EventDict) -> ProcessorReturnValue:
        is_said = event["level"] == "info" and event["logger"].startswith(_COMMANDS)
        return str(event["event"]) if is_said else render(logger, name, event)

    return speak_or_render


def _add_request(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    request = current_request()
    if request is not None:
        event.update(request.fields())
    return event


def _add_facts(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Add `extra` of our own loggers; what others put there is theirs (uvicorn: the message with ANSI colours)."""
    record: logging.LogRecord = event["_record"]
    if record.name.partition(".")[0] == _OUR_LOGGERS:
        given = {name: value for name, value in vars(record).items() if name not in _RECORD_FIELDS}
        event.update(given)
    return event


_RECORD_FIELDS = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime"})


def _place_failure(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Write a failure's kind and place; of asyncio's own reports, which show errors and tasks, the headline."""
    failure = event.pop("exc_info", None)
    event.pop("stack_info", None)
    if failure is not None and failure[1] is not None:
        event["exception"] = describe_failure(failure[1])
    if event["logger"] == "asyncio":
        event["event"] = str(event["event"]).partition("\n")[0]
    return event


class _Clean:
    """Take out secrets and what a terminal would obey."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        failure = event.pop("exception", None)
        cleaned: EventDict = {
            name: value if name in {"level", "timestamp"} else self._redactor.field(name, value)
            for name, value in event.items()
        }
        if failure is not None:
            cleaned["exception"] = self._redactor.lines(failure)
        return cleaned
