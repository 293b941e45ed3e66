"""What an API key may be for: a word that commands, the database and the server share."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

Scope: TypeAlias = Literal["inference", "metrics"]
"""Use the models; read the metrics."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
