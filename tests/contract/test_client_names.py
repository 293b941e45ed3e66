"""What programs may import from `qwenstack.client` and call on its clients; to take a name away breaks them."""

from __future__ import annotations

import os
from pathlib import Path

import qwenstack.client
from qwenstack.client.endpoint import Group

SNAPSHOT = Path(__file__).with_suffix(".snapshot.txt")


def names() -> list[str]:
    client = qwenstack.client.Client("http://127.0.0.1:1")
    groups = {name: value for name, value in vars(client).items() if isinstance(value, Group)}
    calls = [
        f"client.{name}.{call}"
        for name, group in groups.items()
        for call in dir(type(group))
        if not call.startswith("_") and call != "transport"
    ]
    client.close()
    return [*sorted(qwenstack.client.__all__), *sorted(calls)]


def test_the_public_names_are_those_of_the_snapshot() -> None:
    text = "\n".join(names()) + "\n"
    if os.environ.get("QWENSTACK_UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(text)
    assert text == SNAPSHOT.read_text(), "QWENSTACK_UPDATE_SNAPSHOTS=1 writes it anew; read the difference"


def test_every_public_name_is_there_and_described() -> None:
    for name in qwenstack.client.__all__:
        assert getattr(qwenstack.client, name).__doc__, name
    for name in names():
        if name.startswith("client."):
            _, group, call = name.split(".")
            client = qwenstack.client.Client("http://127.0.0.1:1")
            assert getattr(getattr(client, group), call).__doc__, name
            client.close()
