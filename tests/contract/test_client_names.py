"""What programs may import from `qwenstack.client` and call on its clients; to take a name away breaks them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import qwenstack.client
from qwenstack.client import AdminClient, Client
from qwenstack.client.endpoint import Group

SNAPSHOT = Path(__file__).with_suffix(".snapshot.txt")


def groups() -> Iterator[tuple[str, Group[Any]]]:
    for label, kind in {"client": Client, "admin": AdminClient}.items():
        with kind("http://127.0.0.1:1") as client:
            for name, group in vars(client).items():
                if isinstance(group, Group):
                    yield f"{label}.{name}", group


def calls() -> dict[str, Any]:
    return {
        f"{name}.{call}": getattr(group, call)
        for name, group in groups()
        for call in dir(type(group))
        if not call.startswith("_") and call != "transport"
    }


def test_the_public_names_are_those_of_the_snapshot() -> None:
    text = "\n".join([*sorted(qwenstack.client.__all__), *sorted(calls())]) + "\n"
    if os.environ.get("QWENSTACK_UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(text)
    assert text == SNAPSHOT.read_text(), "QWENSTACK_UPDATE_SNAPSHOTS=1 writes it anew; read the difference"


def test_every_public_name_is_there_and_described() -> None:
    for name in qwenstack.client.__all__:
        assert getattr(qwenstack.client, name).__doc__, name
    for name, call in calls().items():
        assert call.__doc__, name
