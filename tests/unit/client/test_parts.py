"""Events out of bytes, settings out of an environment, and the public names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenstack.client import UnreadableAnswerError
from qwenstack.client.call import reader, segment
from qwenstack.client.config import ADMINISTRATION, ClientConfig
from qwenstack.client.event_stream import MAX_EVENT_BYTES, EventReader
from qwenstack.client.types import ChatCompletion
from qwenstack.core.errors import ConfigError

STREAM = (
    b': comment\n\ndata: {"a": 1}\n\nevent: x\r\ndata: one\r\ndata:two\r\nid: 7\r\n\r\n'
    b"data: \xe4\xbd\xa0\n\ndata: [DONE]\n\n"
)
EVENTS = [b'{"a": 1}', b"one\ntwo", "你".encode(), b"[DONE]"]


@given(st.lists(st.integers(1, 30), min_size=1))
def test_however_bytes_arrive_the_events_are_the_same(sizes: list[int]) -> None:
    reader, events, at, number = EventReader(), [], 0, 0
    while at < len(STREAM):
        size = sizes[number % len(sizes)]
        events += reader.feed(STREAM[at : at + size])
        at, number = at + size, number + 1
    assert events == EVENTS


@pytest.mark.parametrize("chunk", [b"x" * (1 << 20), b"data: " + b"x" * (1 << 20) + b"\n"])
def test_an_event_without_end_is_refused(chunk: bytes) -> None:
    events = EventReader()
    for _ in range(MAX_EVENT_BYTES // len(chunk) - 1):
        assert events.feed(chunk) == []
    with pytest.raises(UnreadableAnswerError):
        events.feed(chunk * 2)


def test_an_answer_of_another_kind_is_told() -> None:
    with pytest.raises(UnreadableAnswerError, match="ChatCompletion"):
        reader(ChatCompletion)(b'{"id": 5}')


def test_no_name_leaves_its_step_of_the_path() -> None:
    assert segment("a/../b?c#d%2f\n你") == "a%2F..%2Fb%3Fc%23d%252f%0A%E4%BD%A0"


def test_arguments_come_first_then_our_variables_then_openais() -> None:
    environ = {
        "OPENAI_BASE_URL": "http://theirs:1/v1",
        "OPENAI_API_KEY": "their-key",
        "QWENSTACK_BASE_URL": "http://ours:2/",
        "QWENSTACK_API_KEY": "",
    }
    config = ClientConfig.read(environ)
    assert (config.base_url, config.api_key) == ("http://ours:2", "their-key")
    config = ClientConfig.read(environ, base_url="https://given/v1/", api_key="given")
    assert (config.base_url, config.api_key) == ("https://given", "given")
    assert "given" not in repr(config).replace("https://given", "")
    config = ClientConfig.read({})
    assert (config.base_url, config.api_key, "Authorization" in config.headers) == (
        "http://127.0.0.1:8000",
        None,
        False,
    )


def test_neither_key_goes_through_the_others_door() -> None:
    public = {"QWENSTACK_API_KEY": "public", "OPENAI_API_KEY": "theirs", "QWENSTACK_BASE_URL": "http://ours:2"}
    config = ClientConfig.read(public, door=ADMINISTRATION)
    assert (config.base_url, config.api_key) == ("http://127.0.0.1:8001", None)
    admin = {"QWENSTACK_ADMIN_KEY": "admin", "QWENSTACK_ADMIN_URL": "http://ours:3/"}
    config = ClientConfig.read(admin)
    assert (config.base_url, config.api_key) == ("http://127.0.0.1:8000", None)
    config = ClientConfig.read(admin | public, door=ADMINISTRATION)
    assert (config.base_url, config.api_key) == ("http://ours:3", "admin")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"base_url": "localhost:8000"}, "base_url"),
        ({"api_key": "a\r\nHost: evil"}, "api_key"),
        ({"api_key": "钥匙"}, "api_key"),
        ({"timeout_s": 0}, "timeout_s"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        ClientConfig.read({}, **fields)  # type: ignore[arg-type]
    assert "evil" not in str(raised.value)
