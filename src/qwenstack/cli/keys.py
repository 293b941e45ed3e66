"""`qwenstack keys`: who may use the server."""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING, Annotated, cast

from cyclopts import App, Parameter

from qwenstack.cli.options import AsJson, Assignments
from qwenstack.cli.output import print_json, print_table
from qwenstack.cli.settings import load_settings
from qwenstack.cli.storage import COMMAND_LINE_ACTOR, open_storage
from qwenstack.core.errors import ConfigError, RequestError
from qwenstack.core.scope import Scope

if TYPE_CHECKING:
    from qwenstack.storage import ApiKey

keys = App(name="keys", help="Make, list and revoke the API keys of the server.")

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LIFETIME = re.compile(r"(\d{1,9})([smhd])")


@keys.command
def create(
    name: str,
    /,
    *,
    tenant: str = "default",
    scope: Annotated[tuple[Scope, ...], Parameter(negative="")] = ("inference",),
    model: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    expires_in: str | None = None,
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
        try:
            made = ApiKeys(database).create(
                name=name,
                tenant=tenant,
                actor=COMMAND_LINE_ACTOR,
                scopes=scope,
                models=model or None,
                lifetime_s=lifetime_s,
            )
        except RequestError as error:
            raise ConfigError(str(error)) from error
    if as_json:
        print_json({**_row_of(made.key), "key": made.text})
        return
    sys.stderr.write(f"Key {made.key.id} of {made.key.tenant}. It is shown this once; only its hash is kept.\n")
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
    columns = ("id", "name", "tenant", "scopes", "models", "created", "expires", "state")
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

    found = re.fullmatch(r"(?:qs-)?([a-z2-7]{16})(?:\..*)?", key_id)
    with open_storage(load_settings(assignments).value.storage) as database:
        if found is None or not ApiKeys(database).revoke(found[1], actor=COMMAND_LINE_ACTOR):
            raise ConfigError(f"No open key has the id {key_id[:20]!r}; 'qwenstack keys list' shows them.")
    sys.stdout.write(f"revoked {found[1]}\n")


def _seconds_of(text: str) -> float:
    found = _LIFETIME.fullmatch(text)
    if found is None or int(found[1]) == 0:
        raise ConfigError(f"`--expires-in` is {text!r}; give a number with s, m, h or d, such as 90d.")
    return int(found[1]) * _SECONDS[found[2]]


def _row_of(key: ApiKey) -> dict[str, object]:
    now_ms = time.time() * 1000
    is_expired = key.expires_at_ms is not None and now_ms >= key.expires_at_ms
    return {
        "id": key.id,
        "name": key.name,
        "tenant": key.tenant,
        "scopes": sorted(key.scopes),
        "models": None if key.models is None else sorted(key.models),
        "created": _time_of(key.created_at_ms),
        "expires": None if key.expires_at_ms is None else _time_of(key.expires_at_ms),
        "state": "revoked" if key.revoked_at_ms is not None else "expired" if is_expired else "open",
    }


def _time_of(at_ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_ms / 1000))


def _cell(value: object) -> str:
    if isinstance(value, list):
        return " ".join(str(one) for one in cast("list[object]", value))
    return "-" if value is None else str(value)
