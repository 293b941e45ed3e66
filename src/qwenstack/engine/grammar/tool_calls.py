"""The calls of tools in an answer, in the form that the model is trained on, with free text around.

A call is three lines: `<tool_call>`, then with most models (Hermes)
`{"name": "get_weather", "arguments": {"city": "Paris"}}`, with others `xml_calls`, and `</tool_call>`.
"""

from __future__ import annotations

import json
import re

from qwenstack.engine.grammar.json_schema import Json, check_schema, parse_json, schema_lark
from qwenstack.engine.grammar.limits import MAX_TOOLS
from qwenstack.engine.grammar.refusal import GrammarRefusal
from qwenstack.engine.grammar.token_table import TOOL_CALL_BEGIN, TOOL_CALL_END
from qwenstack.engine.grammar.xml_calls import function_lark, text_rules
from qwenstack.tokenizer import ToolFormat

_NAME = re.compile(r"[a-zA-Z0-9_.\-]{1,64}")
"""OpenAI's form of function names, and dots, which tool servers use."""
_NO_PARAMETERS: Json = {"type": "object", "properties": {}, "additionalProperties": False}


def tools_lark(
    source: str, required_tool: str | None, tool_format: ToolFormat, *, parallel_tool_calls: bool = True
) -> str:
    """Return the grammar of an answer that may call, or with `required_tool` must call, functions.

    The rules of the functions are its first lines, in the order of `function_names`.

    Raises:
        GrammarRefusal: the list or one of its schemas is wrong, or no function has the required name.
    """
    functions = _allowed_functions(source, required_tool)
    names = [f"function_{index}" for index in range(len(functions))]
    least_lengths: set[int] = set()
    rules = [
        f"{rule}: {_function_lark(name, parameters, tool_format, least_lengths)}"
        for rule, (name, parameters) in zip(names, functions.items(), strict=True)
    ]
    if tool_format == "qwen_xml":
        rules += text_rules(least_lengths)
    begin, end = json.dumps(TOOL_CALL_BEGIN), json.dumps(TOOL_CALL_END)
    rules += [f"function: {' | '.join(names)}", f"rest_of_call: /\\n?/ function /\\n?/ {end}"]
    if required_tool is None:
        rules += [
            f"start: (text_and_begin rest_of_call){'*' if parallel_tool_calls else '?'} TEXT",
            f"text_and_begin[lazy]: /(?s:.*){re.escape(TOOL_CALL_BEGIN)}/",
            f"TEXT: /(?s:.*)/ & ~/(?s:.*){re.escape(TOOL_CALL_BEGIN)}(?s:.*)/",
        ]
    else:
        more = f'("\\n" {begin} rest_of_call)*' if required_tool == "*" and parallel_tool_calls else ""
        rules += [f"start: {begin} rest_of_call {more}"]
    return "\n".join(rules) + "\n"


def function_names(source: str, required_tool: str | None) -> list[str]:
    """Return the functions that may be called, in the order of the first rules of their grammar, each on one line.

    Raises:
        GrammarRefusal: as for `tools_lark`.
    """
    return list(_allowed_functions(source, required_tool))


def _allowed_functions(source: str, required_tool: str | None) -> dict[str, Json]:
    functions = _functions(source)
    if required_tool is None or required_tool == "*":
        return functions
    if required_tool not in functions:
        raise GrammarRefusal(f"`tool_choice` names {required_tool!r}; the tools are {', '.join(functions)}.")
    return {required_tool: functions[required_tool]}


def _functions(source: str) -> dict[str, Json]:
    """Return the schema of each function's parameters, by the function's name."""
    tools = parse_json(source, "The list of tools")
    if not isinstance(tools, list) or not 0 < len(tools) <= MAX_TOOLS:
        raise GrammarRefusal(f"`tools` must be a list of 1 to {MAX_TOOLS} functions.")
    functions: dict[str, Json] = {}
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not _NAME.fullmatch(name):
            raise GrammarRefusal(
                f"A tool is {json.dumps(tool)[:100]}; it must be `{{'type': 'function', 'function': {{'name': ...}}}}` "
                "with a name of 1 to 64 letters, digits, `_`, `-` and `.`."
            )
        if name in functions:
            raise GrammarRefusal(f"Two tools have the name {name!r}.")
        parameters = function.get("parameters")
        functions[name] = _NO_PARAMETERS if parameters is None else parameters
    return functions


def _function_lark(name: str, parameters: Json, tool_format: ToolFormat, least_lengths: set[int]) -> str:
    try:
        if tool_format == "qwen_xml":
            return function_lark(name, parameters, least_lengths)
        arguments = check_schema(parameters, root="#/properties/arguments", depth=1)
    except GrammarRefusal as refusal:
        raise GrammarRefusal(f"The parameters of the tool {name!r} cannot be used. {refusal}") from None
    return schema_lark(
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": arguments},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
    )
