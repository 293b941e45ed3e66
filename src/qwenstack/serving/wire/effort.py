"""How much a model is to think, where a wire has words for it in the place of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_BUDGETS: Mapping[Effort, int] = {"minimal": 256, "low": 1024, "medium": 4096}
"""Tokens of thinking for an effort: ours, four times as many from each to the next. Above, the context is the limit."""


def thinks_at(effort: Effort | None) -> bool | None:
    """Return whether the model is to think; None where nothing is said."""
    return None if effort is None else effort != "none"


def budget_of(effort: Effort | None) -> int | None:
    """Return the tokens of thinking; None where they have no limit of their own."""
    return None if effort is None else _BUDGETS.get(effort)
