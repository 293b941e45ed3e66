"""Databases to try things on: a PostgreSQL server of the test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.postgres import PostgresServer, find_postgres


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server that runs."""
    binaries = find_postgres()
    if binaries is None:
        pytest.skip("no PostgreSQL server here; Debian's package is `postgresql`")
    server = PostgresServer(binaries, tmp_path_factory.mktemp("postgres"))
    server.start()
    try:
        yield server
    finally:
        server.stop()
