"""What the parser takes for calls in an answer."""

from __future__ import annotations

import json

from qwenstack.engine.output_parser import OutputParser
from qwenstack.engine.tool_call_syntax import ToolSignatures
from qwenstack.tokenizer import ChatMarkers, Marks, ToolFormat


def read_calls(text: str, tools: object, tool_format: ToolFormat) -> tuple[str, list[tuple[str, object]]]:
    """Return the text of an answer and its calls, name and arguments, by a model that was offered these tools."""
    parser = OutputParser(
        ChatMarkers(tool_call=Marks("<tool_call>", "</tool_call>"), tool_format=tool_format),
        phase="answer",
        tools=ToolSignatures.from_tools(json.dumps(tools)),
    )
    answer = ""
    calls: list[tuple[str, str]] = []
    for piece in [*parser.push(text), *parser.finish()]:
        answer += piece.text
        if piece.call is None:
            continue
        if piece.call.name is not None:
            calls.append((piece.call.name, ""))
        name, arguments = calls[piece.call.index]
        calls[piece.call.index] = (name, arguments + piece.call.arguments)
    return answer, [(name, json.loads(arguments)) for name, arguments in calls]
