"""How a model marks thinking and tool calls in its answers, read from its own chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

ToolFormat = Literal["hermes", "qwen_xml"]
"""What stands between the marks of a tool call. `hermes`: a JSON object with `name` and `arguments` (Qwen2.5, Qwen3);
`qwen_xml`: `<function=NAME>` with a `<parameter=KEY>` for each argument (Qwen3-Coder)."""


class Marks(NamedTuple):
    """The texts that open and close a part of an answer."""

    open: str
    close: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMarkers:
    """One model's marks; None for what its template does not know."""

    thinking: Marks | None = None
    tool_call: Marks | None = None
    tool_format: ToolFormat | None = None
    """Set exactly where `tool_call` is."""


_THINKING = Marks("<think>", "</think>")
_TOOL_CALL = Marks("<tool_call>", "</tool_call>")
_XML_FUNCTION = "<function="


def read_chat_markers(template_source: str | None) -> ChatMarkers:
    """Read the marks that a chat template writes itself: the model was trained on what it writes.

    A vocabulary is no such witness: Qwen3-Coder's has `<think>` and the model never thinks.
    """
    source = template_source or ""
    thinking = _THINKING if _THINKING.close in source else None
    if _TOOL_CALL.open not in source:
        return ChatMarkers(thinking=thinking)
    return ChatMarkers(
        thinking=thinking, tool_call=_TOOL_CALL, tool_format="qwen_xml" if _XML_FUNCTION in source else "hermes"
    )
