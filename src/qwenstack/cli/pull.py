"""`qwenstack pull`: fetch a model, check it, keep it."""

from __future__ import annotations

import sys

from qwenstack.cli.loading import fetch_model
from qwenstack.cli.options import AsJson, Assignments, ModelArgument
from qwenstack.cli.output import print_json
from qwenstack.cli.settings import load_settings


def pull(model: ModelArgument = None, /, *, as_json: AsJson = False, assignments: Assignments = ()) -> None:
    """Fetch a model, verify it and keep it in the cache.

    A download that was stopped goes on where it ended.
    """
    settings = load_settings(assignments, {"model": model}).value
    pulled = fetch_model(settings)
    if as_json:
        print_json(
            {"name": pulled.name, "path": str(pulled.path), "sha256": pulled.sha256, "bytes": pulled.bytes},
        )
    else:
        sys.stdout.write(f"{pulled.path}\n")
