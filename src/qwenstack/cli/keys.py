"""`qwenstack keys`: who may use the server."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, cast

from cyclopts import App, Parameter

from qwenstack.cli.durations import seconds_of
from qwenstack.cli.options import AsJson, Assignments
from qwenstack.cli.output import print_json, print_table
from qwenstack.cli.settings import load_settings
from qwenstack.cli.storage import COMMAND_LINE_ACTOR, open_storage
from qwenstack.core.errors import ConfigError, RequestError
from qwenstack.core.limits import NO_LIMITS, Limits
from qwenstack.core.scope import Scope

if TYPE_CHECKING:
    from qwenstack.storage import ApiKey

keys = App(name="keys", help="Make, list, limit and revoke the API keys of the server.")


LimitOptions = Annotated[Limits, Parameter(name="*")]
"""What a key may use; where nothing is said, what the settings under `limits` say."""


@keys.command
def create(
    name: str,
    /,
    *,
    tenant: str = "default",
    scope: Annotated[tuple[Scope, ...], Parameter(negative="")] = ("inference",),
    model: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    expires_in: str | None = None,
    limits: LimitOptions = NO_LIMITS,
    as_json: AsJson = False,
    assignments: Assignments = (),
) -> None:
    """Make a key and show it, this once.

    From the first key on the server asks everybody for one, and one that runs notices within a second.

    Parameters
    ----------
    name
        What the key is for.
    tenant
        Whose it is; requests of one tenant share cached prompts and take their turns together.
    scope
        What it opens: the models, the metrics, the administration.
    model
        A model that it may use, given once for each; default: all.
    expires_in
        How long it is good, such as 90d, 12h or 30m; default: until it is revoked.
    """
    from qwenstack.storage import ApiKeys

    lifetime_s = None if expires_in is None else _seconds_of(expires_in)
    with open_storage(load_settings(assignments).value.storage) as database:
        api_keys = ApiKeys(database)
        is_first = not api_keys.all()
        try:
            made = api_keys.create(
                name=name,
                tenant=tenant,
                actor=COMMAND_LINE_ACTOR,
                scopes=scope,
                models=model or None,
                lifetime_s=lifetime_s,
                limits=limits,
            )
        except RequestError as error:
            raise ConfigError(str(error)) from error
    if is_first:
        sys.stderr.write("This is the first key: from now on the server asks everybody for one, for good.\n")
    if as_json:
        print_json({**_row_of(made.key), "key": made.text})
        return
    sys.stderr.write(
        f"Key {made.key.id} ({made.key.name}) of {made.key.tenant}. It is shown this once; only its hash is kept.\n"
    )
    sys.stdout.write(f"{made.text}\n")


@keys.command(name="list")
def list_keys(*, as_json: AsJson = False, assignments: Assignments = ()) -> None:
    """List all keys, the newest first; their texts are known to nobody here."""
    from qwenstack.storage import ApiKeys

    with open_storage(load_settings(assignments).value.storage) as database:
        rows = [_row_of(key) for key in ApiKeys(database).all()]
    if as_json:
        print_json(rows)
        return
    if not rows:
        sys.stderr.write("There are no keys. 'qwenstack keys create NAME' makes one.\n")
        return
    columns = ("id", "name", "tenant", "scopes", "models", "limits", "created", "expires", "state")
    print_table(
        [column.upper() for column in columns],
        [[_cell(row[column]) for column in columns] for row in rows],
    )


@keys.command
def revoke(key_id: str, /, *, assignments: Assignments = ()) -> None:
    """Close a key for good; a server that runs refuses it within a second.

    Parameters
    ----------
    key_id
        Its id, as 'qwenstack keys list' shows it, or the key itself.
    """
    from qwenstack.storage import ApiKeys

    found = _id_of(key_id)
    with open_storage(load_settings(assignments).value.storage) as database:
        if not ApiKeys(database).revoke(found, actor=COMMAND_LINE_ACTOR):
            raise _no_open_key(key_id)
    sys.stdout.write(f"revoked {found}\n")


@keys.command
def limit(key_id: str, /, *, limits: LimitOptions = NO_LIMITS, assignments: Assignments = ()) -> None:
    """Say anew what a key may use; a limit that is not named goes back to the settings'.

    Parameters
    ----------
    key_id
        Its id, as 'qwenstack keys list' shows it, or the key itself.
    """
    from qwenstack.storage import ApiKeys

    found = _id_of(key_id)
    with open_storage(load_settings(assignments).value.storage) as database:
        if not ApiKeys(database).limit(found, limits, actor=COMMAND_LINE_ACTOR):
            raise _no_open_key(key_id)
    sys.stdout.write(f"limited {found}: {_limits_cell(limits.given()) or 'as the settings say'}\n")


@keys.command
def usage(*, days: int = 7, as_json: AsJson = False, assignments: Assignments = ()) -> None:
    """Show the tokens that each key used, the newest day first.

    Parameters
    ----------
    days
        How many days, today included; a day ends at midnight, UTC.
    """
    from qwenstack.storage.usage import MAX_DAYS, UsageRecords

    if not 1 <= days <= MAX_DAYS:
        raise ConfigError(f"`--days` is {days}; it must be between 1 and {MAX_DAYS}.")
    with open_storage(load_settings(assignments).value.storage) as database:
        found = UsageRecords(database).of_last_days(days, now_s=time.time())
    rows = [{**key._asdict(), **asdict(used)} for key, used in found]
    if as_json:
        print_json(rows)
        return
    if not rows:
        sys.stderr.write("Nothing was used.\n")
        return
    columns = ("day", "account", "tenant", "requests", "prompt_tokens", "completion_tokens")
    print_table([column.upper() for column in columns], [[_cell(row[column]) for column in columns] for row in rows])


def _id_of(text: str) -> str:
    found = re.fullmatch(r"(?:qs-)?([a-z2-7]{16})(?:\..*)?", text)
    if found is None:
        raise _no_open_key(text)
    return found[1]


def _no_open_key(key_id: str) -> ConfigError:
    return ConfigError(f"No open key has the id {key_id[:20]!r}; 'qwenstack keys list' shows them.")


def _seconds_of(text: str) -> float:
    lifetime_s = seconds_of(text)
    if lifetime_s is None:
        raise ConfigError(f"`--expires-in` is {text!r}; give a number with s, m, h or d, such as 90d.")
    return lifetime_s


def _row_of(key: ApiKey) -> dict[str, object]:
    now_ms = time.time() * 1000
    is_expired = key.expires_at_ms is not None and now_ms >= key.expires_at_ms
    return {
        "id": key.id,
        "name": key.name,
        "tenant": key.tenant,
        "scopes": sorted(key.scopes),
        "models": None if key.models is None else sorted(key.models),
        "limits": key.limits.given(),
        "created": _time_of(key.created_at_ms),
        "expires": None if key.expires_at_ms is None else _time_of(key.expires_at_ms),
        "state": "revoked" if key.revoked_at_ms is not None else "expired" if is_expired else "open",
    }


def _time_of(at_ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_ms / 1000))


def _limits_cell(limits: Mapping[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in limits.items())


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return _limits_cell(cast("dict[str, object]", value)) or "-"
    if isinstance(value, list):
        return " ".join(str(one) for one in cast("list[object]", value))
    return "-" if value is None else str(value)
