"""What a grammar may cost; every number of the package that bounds an untrusted caller is here."""

from __future__ import annotations

from llguidance import LLParserLimits

CHECK_TIMEOUT_S = 0.45
"""For translating, compiling and one mask in the checker; with the way there and back a refusal comes within 500 ms."""
CHECK_MEMORY_BYTES = 256 << 20
"""What the check of one grammar may allocate."""
MAX_COMPILED_BYTES = 32 << 20
"""What one compiled grammar may hold."""
CACHE_BYTES = 64 << 20
"""All compiled grammars that are kept for the next caller; one that takes over half of it is not kept."""
HELD_BYTES = 256 << 20
"""All compiled grammars, those of the cache and those that answers hold, waiting or running."""
MAX_PENDING = 64
"""Grammars that wait for their check; each takes at most half a second."""
MAX_SCHEMA_DEPTH = 32
MAX_SCHEMA_NODES = 10_000
MAX_CHOICES = 1_000
MAX_TOOLS = 128
"""OpenAI's limit."""
MAX_REPEAT = 10_000
"""In GBNF's `{m,n}`."""


def parser_limits(*, is_own: bool) -> LLParserLimits:
    """Return what the parser may spend, in its own units; the comments give milliseconds by its documentation.

    A mask that would need more fails, and with it the one request that asked for it.

    Args:
        is_own: for a grammar that is written here; Python's needs more at the start of an expression.
    """
    return LLParserLimits(
        max_items_in_row=2_000,
        initial_lexer_fuel=1_000_000,  # 20 ms
        step_lexer_fuel=200_000,  # 14 ms
        step_max_items=1_000_000 if is_own else 200_000,  # 50 and 10 ms
        max_lexer_states=20_000,  # 20 to 40 MB, the largest part of a compiled grammar
        max_grammar_size=200_000,
        verbose_errors=False,
    )
