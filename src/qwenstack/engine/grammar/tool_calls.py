"""The calls of tools in an answer, in the form that the model is trained on, with free text around.

A call is three lines: `<tool_call>`, then with most models (Hermes)
`{"name": "get_weather", "arguments": {"city": "Paris"}}`, with others `xml_calls`, and `</tool_call>`. Small models of
the first kind leave the marks out and begin their answer with the JSON, or with a code block that holds it. The parser
reads that as a call, so it is one here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager

from qwenstack.engine.grammar.json_schema import WHITESPACE, Json, check_schema, parse_json, schema_lark
from qwenstack.engine.grammar.limits import MAX_TOOLS
from qwenstack.engine.grammar.refusal import GrammarRefusal
from qwenstack.engine.grammar.token_table import TOOL_CALL_BEGIN, TOOL_CALL_END
from qwenstack.engine.grammar.xml_calls import function_lark, text_rules
from qwenstack.tokenizer import ToolFormat

_NAME = re.compile(r"[a-zA-Z0-9_.\-]{1,64}")
"""OpenAI's form of function names, and dots, which tool servers use."""
_BLANKS = r"[ \t\r\n]*"
_FENCE = "```"
_NO_PARAMETERS: Json = {"type": "object", "properties": {}, "additionalProperties": False}


def tools_lark(
    source: str, required_tool: str | None, tool_format: ToolFormat, *, parallel_tool_calls: bool = True
) -> str:
    """Return the grammar of an answer that may call, or with `required_tool` must call, functions.

    The rules of the functions (or of their arguments) are its first lines, in the order of `function_names`.

    Raises:
        GrammarRefusal: the list or one of its schemas is wrong, or no function has the required name.
    """
    functions = _allowed_functions(source, required_tool)
    rules = _xml_rules(functions) if tool_format == "qwen_xml" else _hermes_rules(functions)
    begin, end = json.dumps(TOOL_CALL_BEGIN), json.dumps(TOOL_CALL_END)
    calls = " | ".join(f"function_{index}" for index in range(len(functions)))
    rules += [f"function: {calls}", f"rest_of_call: /\\n?/ function /\\n?/ {end}"]
    if required_tool is not None:
        more = f'("\\n" {begin} rest_of_call)*' if required_tool == "*" and parallel_tool_calls else ""
        rules += [f"start: {begin} rest_of_call {more}"]
    elif tool_format == "qwen_xml":
        rules += _text_rules()
        rules += [f"start: (text_and_begin rest_of_call){'*' if parallel_tool_calls else '?'} TEXT"]
    else:
        rules += _text_rules() + _bare_call_rules(list(functions), are_parallel=parallel_tool_calls)
    return "\n".join(rules) + "\n"


def _xml_rules(functions: Mapping[str, Json]) -> list[str]:
    least_lengths: set[int] = set()
    rules: list[str] = []
    for index, (name, parameters) in enumerate(functions.items()):
        with _blamed_on(name):
            rules.append(f"function_{index}: {function_lark(name, parameters, least_lengths)}")
    return rules + text_rules(least_lengths)


def _hermes_rules(functions: Mapping[str, Json]) -> list[str]:
    arguments: list[str] = []
    calls: list[str] = []
    for index, (name, parameters) in enumerate(functions.items()):
        with _blamed_on(name):
            arguments.append(f"arguments_{index}: {schema_lark(_objects_of(parameters))}")
        calls.append(f"function_{index}: /{_head_pattern(name, f'({WHITESPACE})?')}/ rest_of_function_{index}")
        calls.append(f"rest_of_function_{index}: /({WHITESPACE})?/ arguments_{index} /({WHITESPACE})?\\}}/")
    return arguments + calls


def _objects_of(parameters: Json) -> Json:
    """Return the checked schema of those objects that fit; nothing else is read as the arguments of a call."""
    root = "#/$defs/arguments"
    return {"type": "object", "$ref": root, "$defs": {"arguments": check_schema(parameters, root=root, depth=1)}}


def _text_rules() -> list[str]:
    """Return the text around calls: up to a mark, and after the last one."""
    begin = re.escape(TOOL_CALL_BEGIN)
    return [
        f"text_and_begin[lazy]: /(?s:.*){begin}/",
        f"TEXT: /(?s:.*)/ & ~/(?s:.*){begin}(?s:.*)/",
    ]


def _bare_call_rules(names: list[str], *, are_parallel: bool) -> list[str]:
    """Return the start of an answer whose calls have marks, or have none and come first.

    Lexemes are as long as they can be, so the head of a bare call is a single one, and free text may not begin with it.
    """
    begin = re.escape(TOOL_CALL_BEGIN)
    opening = f"{_BLANKS}({_FENCE}(json)?{_BLANKS})?"
    between = f"[ \\t\\r\\n}}]*({_FENCE})?{opening}"
    any_head = _head_pattern("|".join(map(re.escape, names)), _BLANKS, is_pattern=True)
    first_text = f"~/{opening}{any_head}(?s:.*)/"
    firsts = " | ".join(
        f"/{opening}{_head_pattern(name, _BLANKS)}/ rest_of_function_{i}" for i, name in enumerate(names)
    )
    nexts = " | ".join(
        f"/{between}{_head_pattern(name, _BLANKS)}/ rest_of_function_{i}" for i, name in enumerate(names)
    )
    marked = "(text_and_begin rest_of_call)*" if are_parallel else ""
    return [
        f"FIRST_TEXT: TEXT & {first_text}",
        f"FIRST_TEXT_AND_BEGIN: /(?s:.*){begin}/ & {first_text}",
        "first_text_and_begin[lazy]: FIRST_TEXT_AND_BEGIN",
        f"TEXT_AFTER: TEXT & ~/{between}{any_head}(?s:.*)/",
        f"first_bare: {firsts}",
        f"next_bare: {nexts}",
        f"with_marks: first_text_and_begin rest_of_call {marked} TEXT",
        f"start: FIRST_TEXT | with_marks | first_bare {'next_bare*' if are_parallel else ''} TEXT_AFTER",
    ]


def _head_pattern(name: str, blanks: str, *, is_pattern: bool = False) -> str:
    """Return a call's JSON up to its arguments."""
    written = name if is_pattern else re.escape(name)
    parts = (r"\{", '"name"', ":", f'"({written})"', ",", '"arguments"', ":")
    return blanks.join(parts)


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


@contextmanager
def _blamed_on(name: str) -> Generator[None]:
    """Say of which tool the parameters are refused."""
    try:
        yield
    except GrammarRefusal as refusal:
        raise GrammarRefusal(f"The parameters of the tool {name!r} cannot be used. {refusal}") from None
