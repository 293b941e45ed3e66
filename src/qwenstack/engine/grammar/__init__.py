"""Grammar-constrained decoding: which token may come next, for JSON schemas, patterns, grammars, tools and Python.

`Grammar` → `lark_source` → `checker` (a process) → `GrammarCompiler` → `TokenConstraint`, one for each answer.
"""

from __future__ import annotations

from qwenstack.engine.grammar.compiler import GrammarCompiler
from qwenstack.engine.grammar.constraint import TokenConstraint

__all__ = ["GrammarCompiler", "TokenConstraint"]
