"""What an answer must look like: a grammar as the caller wrote it, not yet compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from qwenstack.core.errors import RequestError

GrammarKind = Literal["json_schema", "json_object", "regex", "ebnf", "choice", "python", "tools"]
"""`json_schema`: a JSON schema; `json_object`: any JSON object; `regex`: the whole text matches; `ebnf`: Lark's
notation or GBNF; `choice`: one of a JSON list of texts; `python`: text that parses as Python; `tools`: OpenAI's list of
tools, whose calls get arguments that fit their schemas, text around them free."""
MAX_GRAMMAR_CHARS = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """One constraint on the text of an answer, after its thinking.

    Raises:
        RequestError: the kind is unknown, or the source too long.
    """

    kind: GrammarKind
    source: str = ""
    """The schema as JSON, the pattern, the grammar's text, the list; empty where the kind says all."""
    required_tool: str | None = None
    """With `tools`: `"*"` demands a call, a name a call of that function; None leaves the choice to the model."""
    parallel_tool_calls: bool = True
    """With `tools`: whether an answer may hold several calls."""

    @property
    def is_own(self) -> bool:
        """Whether it is written in this package, so that there is nothing to check."""
        return self.kind in {"python", "json_object"}

    def __post_init__(self) -> None:
        """Refuse what no grammar compiler should see."""
        if self.kind not in get_args(GrammarKind):
            raise RequestError(
                f"The grammar's kind is {self.kind!r}; it must be one of {', '.join(get_args(GrammarKind))}.",
                param="grammar",
                code="invalid_value",
            )
        if not isinstance(self.source, str):  # pyright: ignore[reportUnnecessaryIsInstance]: callers need not be typed
            raise RequestError(
                f"The grammar's source is {type(self.source).__name__}; it must be text, such as `json.dumps(schema)`.",
                param="grammar",
                code="invalid_value",
            )
        if len(self.source) > MAX_GRAMMAR_CHARS:
            raise RequestError(
                f"The grammar has {len(self.source)} characters; at most {MAX_GRAMMAR_CHARS} are taken.",
                param="grammar",
                code="invalid_value",
            )
