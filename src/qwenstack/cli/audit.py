"""`qwenstack audit`: who did what with the server."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from datetime import datetime
from typing import Annotated

from cyclopts import App, Parameter, validators

from qwenstack.cli.durations import seconds_of
from qwenstack.cli.options import AsJson, Assignments
from qwenstack.cli.output import print_json, print_table
from qwenstack.cli.settings import load_settings
from qwenstack.cli.storage import COMMAND_LINE_ACTOR, open_storage
from qwenstack.core.errors import ConfigError, QwenStackError

audit = App(name="audit", help="Read, check or shorten the log of who did what with the server.")


@audit.command
def show(
    *,
    limit: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=100_000))] = 50,
    as_json: AsJson = False,
    assignments: Assignments = (),
) -> None:
    """Show the newest entries, the newest first.

    Parameters
    ----------
    limit
        Entries, at most.
    """
    from qwenstack.storage import AuditLog

    with open_storage(load_settings(assignments).value.storage, may_create=False) as database:
        entries = AuditLog(database).newest(limit)
    if as_json:
        print_json([entry.document() for entry in entries])
        return
    rows = [
        [
            str(entry.seq),
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(entry.at_ms / 1000)),
            entry.record.actor,
            entry.record.action,
            entry.record.subject,
            entry.record.outcome,
        ]
        for entry in entries
    ]
    print_table(["SEQ", "TIME", "ACTOR", "ACTION", "SUBJECT", "OUTCOME"], rows)


@audit.command
def verify(*, expect: str | None = None, as_json: AsJson = False, assignments: Assignments = ()) -> None:
    """Compute the chain of hashes again: an entry that was changed, removed or moved breaks it.

    The hash it prints stands for all entries so far. Kept elsewhere and given later, it also tells when the newest ones
    were cut off.

    Parameters
    ----------
    expect
        A hash that was printed before: one of the entries must have it.
    """
    from qwenstack.storage import AuditLog

    if expect is not None and not re.fullmatch(r"[0-9a-f]{64}", expect):
        raise ConfigError(f"`--expect` is {expect[:80]!r}; give the 64 hexadecimal digits that 'audit verify' printed.")
    with open_storage(load_settings(assignments).value.storage, may_create=False) as database:
        result = AuditLog(database).verify(None if expect is None else bytes.fromhex(expect))
    if as_json:
        print_json(
            {
                "entries": result.num_entries,
                "hash": result.last_hash.hex(),
                "broken_at": result.broken_at,
                "has_expected": result.has_expected,
                "pruned_through": result.pruned_through,
            }
        )
    if result.broken_at is not None:
        raise QwenStackError(f"The audit log is not what was written: entry {result.broken_at} is missing or changed.")
    if not result.has_expected:
        raise QwenStackError(
            f"No entry has the hash {expect}: the newest entries were cut off, or all were replaced, or 'audit prune' "
            "removed that one."
        )
    if not as_json:
        after = f" after entry {result.pruned_through}" if result.pruned_through else ""
        sys.stdout.write(f"{result.num_entries} entries{after} are whole; the last hash is {result.last_hash.hex()}\n")


@audit.command
def prune(*, before: str, as_json: AsJson = False, assignments: Assignments = ()) -> None:
    """Remove the oldest entries; the log says how far, and stays one that can be checked.

    Parameters
    ----------
    before
        A day, such as 2026-01-31 (in UTC), or an age, such as 90d: what is older is removed.
    """
    from qwenstack.storage import AuditLog

    before_ms = _instant_of(before, now_s=time.time())
    with open_storage(load_settings(assignments).value.storage, may_create=False) as database:
        num_removed = AuditLog(database).prune(before_ms, actor=COMMAND_LINE_ACTOR)
    if as_json:
        print_json({"removed": num_removed})
        return
    sys.stdout.write(f"removed {num_removed} entries\n")


def _instant_of(text: str, *, now_s: float) -> int:
    """Return the milliseconds since 1970 of a day or an age."""
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        with contextlib.suppress(ValueError):
            return int(datetime.fromisoformat(f"{text}T00:00:00+00:00").timestamp() * 1000)
    age_s = seconds_of(text)
    if age_s is None:
        raise ConfigError(f"`--before` is {text[:40]!r}; give a day, such as 2026-01-31, or an age, such as 90d.")
    return int((now_s - age_s) * 1000)
