"""Which servers are alive: what one has begun is its own, and free for others soon after it died."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from qwenstack.storage.database import Database
from qwenstack.storage.schema import servers


class ServerLease:
    """One server's claim to be alive. Clocks of machines that share a database must agree within seconds."""

    def __init__(self, database: Database, *, lease_s: float, clock: Callable[[], float] = time.time) -> None:
        """Choose an id; the claim begins with the first `renew`."""
        self.id = secrets.token_hex(16)
        self.lease_s = lease_s
        self._database = database
        self._clock = clock

    def renew(self) -> None:
        """Be alive for `lease_s` from now, and forget servers that are long dead.

        Raises:
            StorageError: the database cannot be written to.
        """
        now_ms = int(self._clock() * 1000)
        until_ms = now_ms + int(self.lease_s * 1000)

        def write(connection: Connection) -> None:
            renewed = connection.execute(update(servers).where(servers.c.id == self.id).values(alive_until_ms=until_ms))
            if renewed.rowcount == 0:
                connection.execute(insert(servers).values(id=self.id, alive_until_ms=until_ms))
            connection.execute(delete(servers).where(servers.c.alive_until_ms < now_ms))

        self._database.write(write)

    def release(self) -> None:
        """Be dead at once.

        Raises:
            StorageError: the database cannot be written to.
        """
        self._database.write(lambda connection: connection.execute(delete(servers).where(servers.c.id == self.id)))


def is_alive(owner: ColumnElement[str], now_ms: int) -> ColumnElement[bool]:
    """Make the condition that a column names a server that is alive."""
    return owner.in_(select(servers.c.id).where(servers.c.alive_until_ms >= now_ms))
