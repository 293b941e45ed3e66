"""The lines of a log: what is in them, what never is, and that nobody can forge one."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
import unicodedata
import warnings
from collections.abc import Callable
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.logs import LogConfig, Redactor, RequestContext, logging_to, request_context

CANARY = "canary-7f3a"
KEY = "qs-abcdefghijklmnop.0123456789abcdefghijABCDEFGHIJ_-0123456789abc"
ours = logging.getLogger("qwenstack.part")
theirs = logging.getLogger("uvicorn.error")


def written(log: Callable[[], Any], *, secrets: list[str] | None = None, **config: Any) -> str:
    stream = io.StringIO()
    with logging_to(stream, LogConfig(**config), secrets=secrets or []):
        log()
    return stream.getvalue()


def objects(log: Callable[[], Any], **config: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written(log, format="json", **config).splitlines()]


def test_a_json_line_has_the_request_and_the_facts() -> None:
    def log() -> None:
        context = RequestContext(request_id="r1", tenant="team-a", key_id="k1", client_request_id="mine")
        with request_context(context):
            ours.info("hello %s", "world", extra={"ms": 1.5, "route": "/v1/models"})
        ours.warning("outside")

    inside, outside = objects(log)
    assert inside.pop("timestamp").endswith("Z")
    assert inside == {
        "event": "hello world",
        "level": "info",
        "logger": "qwenstack.part",
        "request_id": "r1",
        "tenant": "team-a",
        "key_id": "k1",
        "client_request_id": "mine",
        "ms": 1.5,
        "route": "/v1/models",
    }
    assert set(outside) == {"event", "level", "logger", "timestamp"}


def test_a_text_line_has_the_same_and_no_colours_where_it_is_no_terminal() -> None:
    def log() -> None:
        with request_context(RequestContext(request_id="r1")):
            ours.warning("hello", extra={"ms": 2})

    (line,) = written(log).splitlines()
    for part in ("warning", "hello", "request_id=r1", "ms=2", "[qwenstack.part]"):
        assert part in line
    assert "\x1b" not in line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_to_a_terminal_a_command_speaks_in_sentences_and_all_else_in_lines_of_a_log() -> None:
    command, stream = logging.getLogger("qwenstack.cli.serve"), Terminal()
    with logging_to(stream):
        command.info("Loading %s ...", "a-model\x1b[2J")
        command.warning("This is odd.")
        ours.info("loaded")
    said, warned, logged = stream.getvalue().splitlines()
    assert said == "Loading a-model\\x1b[2J ..."
    assert all("Z" in line and "qwenstack." in line for line in (warned, logged))


def test_tasks_and_threads_of_a_request_say_so_and_others_do_not() -> None:
    async def both() -> None:
        async def serve(name: str) -> None:
            with request_context(RequestContext(request_id=name)):
                await asyncio.sleep(0)
                await asyncio.to_thread(ours.info, f"thread of {name}")
                await asyncio.create_task(speak(f"task of {name}"))

        async def speak(text: str) -> None:
            ours.info(text)

        await asyncio.gather(serve("a"), serve("b"))

    lines = objects(lambda: asyncio.run(both()))
    assert len(lines) == 4
    assert all(line["event"].endswith(f"of {line['request_id']}") for line in lines)


def test_levels_hold_for_ours_and_others_are_heard_from_warnings_on() -> None:
    def log() -> None:
        ours.debug("d")
        ours.info("i")
        theirs.info("other")
        theirs.warning("w")

    def events(level: str) -> list[str]:
        return [line["event"] for line in objects(log, level=level)]

    assert events("debug") == ["d", "i", "w"]
    assert events("info") == ["i", "w"]
    assert events("error") == ["w"]


def test_everything_is_as_before_when_the_block_ends() -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.getLogger("qwenstack").level
    with logging_to(io.StringIO(), LogConfig(level="debug")):
        assert root.handlers != before[0]
    assert (root.handlers, root.level, logging.getLogger("qwenstack").level) == before


@pytest.mark.parametrize("form", ["text", "json"])
def test_sec_24_a_failure_is_kind_and_place_without_what_it_says(form: Literal["text", "json"]) -> None:
    def log() -> None:
        try:
            try:
                raise KeyError(CANARY)
            except KeyError as error:
                raise ValueError(CANARY) from error
        except ValueError:
            ours.exception("failed")

    text = written(log, format=form)
    assert CANARY not in text
    for part in ("ValueError", "KeyError", "test_chain.py", "raise ValueError"):
        assert part in text


def test_sec_24_what_asyncio_says_of_a_lost_task_does_not_show_its_error() -> None:
    async def lose() -> None:
        loop = asyncio.get_running_loop()
        loop.call_exception_handler(
            {"message": "Task exception was never retrieved", "exception": ValueError(CANARY), "task": CANARY}
        )

    text = written(lambda: asyncio.run(lose()))
    assert "never retrieved" in text
    assert CANARY not in text


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    "said",
    [
        f"Authorization: Bearer {CANARY}",
        f"authorization=Basic {CANARY}",
        f"X-Api-Key: {CANARY}",
        f"{{'x-api-key': '{CANARY}'}}",
        f'"api_key":"{CANARY}"',
        f"key {KEY.replace('0123456789', CANARY)}",
        f"GET /v1/models?prompt={CANARY}&x=1",
        f"https://host/path?{CANARY}",
        f"postgresql://me:{CANARY}@host/db",
        f"hf_{CANARY.replace('-', '')}{CANARY}",
        f"password={CANARY}",
        "the configured " + CANARY,
    ],
)
def test_sec_24_secrets_are_hidden_wherever_they_stand(said: str, form: Literal["text", "json"]) -> None:
    def log() -> None:
        ours.error("%s", said, extra={"detail": said})
        theirs.error(said)

    text = written(log, format=form, secrets=[CANARY] if said.startswith("the configured") else [])
    assert CANARY not in text
    assert "7f3a" not in text
    assert text.count("[hidden]") >= 3


@pytest.mark.parametrize("name", ["authorization", "X-Api-Key", "prompt", "messages", "content", "token"])
def test_sec_24_some_fields_are_never_written(name: str) -> None:
    (line,) = objects(lambda: ours.error("x", extra={name: CANARY}))
    assert line[name] == "[hidden]"


def test_sec_24_others_cannot_add_fields_and_bad_records_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    def log() -> None:
        theirs.error("plain", extra={"color_message": CANARY})
        ours.error("%d", CANARY)  # cannot be formatted: the library would print the arguments
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("a warning is a line too", stacklevel=1)

    first, second = objects(log)
    assert first["event"] == "plain"
    assert "a warning is a line too" in second["event"]
    assert CANARY not in capfd.readouterr().err


def test_ordinary_sentences_and_words_are_left_alone() -> None:
    redactor = Redactor(["off", "long-enough-secret"])
    for text in ("Is it there? Yes.", "storage is off", "token 5 of 9 tokens", "模型已加载。", "a@b.example", "(why?)"):
        assert redactor.field("event", text) == text
    assert redactor.field("ms", 1.5) == 1.5
    assert redactor.field("event", "x long-enough-secret y") == "x [hidden] y"


@given(st.text(max_size=200), st.sampled_from(["text", "json"]))
def test_sec_24_no_text_begins_a_line_of_its_own_or_steers_a_terminal(text: str, form: Literal["text", "json"]) -> None:
    out = written(lambda: ours.error("%s", text, extra={"detail": text}), format=form)
    assert out.endswith("\n")
    assert len(out.split("\n")) == 2
    assert not any(unicodedata.category(sign) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for sign in out[:-1])


def test_sec_24_lines_of_a_traceback_are_set_in() -> None:
    def log() -> None:
        try:
            exec(compile("raise ValueError", "2026-01-01 [info] forged\n2026-01-01 [info] forged", "exec"))
        except ValueError:
            ours.exception("failed")

    first, *rest = written(log).splitlines()
    assert "failed" in first
    assert rest
    assert all(line.startswith("    ") for line in rest)


def test_a_text_without_end_is_cut() -> None:
    (line,) = objects(lambda: ours.error("%s", "x" * 1_000_000))
    assert len(line["event"]) < 40_000
    assert "more characters" in line["event"]


def test_a_closed_stream_ends_nothing() -> None:
    stream = io.StringIO()
    with logging_to(stream):
        stream.close()
        thread = threading.Thread(target=ours.error, args=("x",))
        thread.start()
        thread.join(10)
        ours.error("nobody hears")
