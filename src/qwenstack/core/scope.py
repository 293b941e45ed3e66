"""What an API key may be for: a word that commands, the database and the server share."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

Scope: TypeAlias = Literal["inference", "metrics", "admin"]
"""Use the models; read the metrics; administer the server."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
DEFAULT_ROLES = tuple(f"qwenstack:{scope}={scope}" for scope in SCOPES)
"""Which word in a token of an identity provider gives which scope, where the operator says nothing else."""
