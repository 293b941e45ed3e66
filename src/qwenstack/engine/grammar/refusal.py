"""Why a grammar is not taken, before it is known whose request it belongs to."""

from __future__ import annotations


class GrammarRefusal(Exception):  # noqa: N818 - a refusal is what it is called everywhere
    """A caller's grammar is wrong, too large or cannot be expressed; becomes a `RequestError` with this sentence."""
