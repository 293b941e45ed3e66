"""`qwenstack config`: what the settings are, and who set them."""

from __future__ import annotations

from typing import cast

from cyclopts import App

from qwenstack.cli.options import AsJson, Assignments
from qwenstack.cli.output import print_json, print_table
from qwenstack.cli.settings import Settings, load_settings
from qwenstack.core.config import Resolved, settings_of, values_of

config = App(name="config", help="Show the settings.")


@config.command
def show(*, as_json: AsJson = False, assignments: Assignments = ()) -> None:
    """List every setting with its value and where that came from.

    Later places win: defaults, your config.toml, ./qwenstack.toml, QWENSTACK_... variables, the command line.
    """
    rows = rows_of(load_settings(assignments))
    if as_json:
        print_json([{"key": key, "value": value, "origin": origin} for key, value, origin in rows])
    else:
        print_table(("KEY", "VALUE", "ORIGIN"), [(key, _shown(value), origin) for key, value, origin in rows])


def rows_of(resolved: Resolved[Settings]) -> list[tuple[str, object, str]]:
    """Return key, value as JSON knows it, and origin of every setting; secrets are masked."""
    settings = settings_of(Settings)
    return [
        (key, _plain(value, is_secret=settings[key].is_secret), resolved.origins[key])
        for key, value in values_of(resolved.value).items()
    ]


def _plain(value: object, *, is_secret: bool) -> object:
    if isinstance(value, tuple):
        return ["***" if is_secret else str(item) for item in cast("tuple[object, ...]", value)]
    if value is None or isinstance(value, bool | int | float):
        return value
    return "***" if is_secret else str(value)


def _shown(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case list():
            return ",".join(cast("list[str]", value))
        case _:
            return str(value)
