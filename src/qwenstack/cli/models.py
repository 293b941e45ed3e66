"""`qwenstack models`: which models can be had by name, and which are here already."""

from __future__ import annotations

from qwenstack.cli.loading import model_cache
from qwenstack.cli.options import AsJson, Assignments
from qwenstack.cli.output import print_json, print_table
from qwenstack.cli.settings import load_settings


def models(*, as_json: AsJson = False, assignments: Assignments = ()) -> None:
    """List the models that can be had by name, and those that are here already."""
    from qwenstack.hub.registry import KNOWN_MODELS

    cached = {model.name for model in model_cache(load_settings(assignments).value.hub).models()}
    if as_json:
        print_json(
            [
                {
                    "name": entry.name,
                    "description": entry.description,
                    "bytes": entry.bytes,
                    "cached": entry.name in cached,
                }
                for entry in KNOWN_MODELS.values()
            ]
        )
        return
    print_table(
        ("NAME", "SIZE", "HERE", "DESCRIPTION"),
        [
            (entry.name, f"{entry.bytes / 1e6:,.0f} MB", "yes" if entry.name in cached else "", entry.description)
            for entry in KNOWN_MODELS.values()
        ],
    )
