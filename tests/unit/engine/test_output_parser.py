"""The parser against a reader of whole texts that was written on its own, and cases worked out by hand."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwenstack.engine.output_parser import OutputParser, Phase
from qwenstack.engine.tool_call_syntax import ToolSignatures
from qwenstack.tokenizer import ChatMarkers, Marks

THINKING, TOOL_CALL = Marks("<think>", "</think>"), Marks("<tool_call>", "</tool_call>")
HERMES = ChatMarkers(thinking=THINKING, tool_call=TOOL_CALL, tool_format="hermes")
XML = ChatMarkers(thinking=THINKING, tool_call=TOOL_CALL, tool_format="qwen_xml")
THINKING_ONLY = ChatMarkers(thinking=THINKING)
TYPES = ToolSignatures({"f": frozenset({"text"})})

MAX_EXAMPLES = int(os.environ.get("QWENSTACK_PARSER_CASES", "200"))
"""`make test-long` sets 20,000."""


CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


@dataclass
class Parsed:
    thinking: str = ""
    answer: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)


def parse(
    pieces: list[str], markers: ChatMarkers, phase: Phase = "undecided", *, is_calls_only: bool = False
) -> Parsed:
    """Push the pieces, and check on the way what always holds."""
    parser = OutputParser(markers, phase=phase, tools=TYPES, is_calls_only=is_calls_only)
    parsed = Parsed()
    num_pushed = 0
    for piece in [*pieces, None]:
        out = parser.finish() if piece is None else parser.push(piece)
        num_pushed += len(piece or "")
        assert parser.num_settled <= num_pushed
        for part in out:
            if part.kind == "thinking":
                assert not parsed.answer
                assert not parsed.calls
                parsed.thinking += part.text
            elif part.kind == "answer":
                parsed.answer += part.text
            else:
                assert part.call is not None
                if part.call.name is not None:
                    assert part.call.index == len(parsed.calls)
                    parsed.calls.append((part.call.name, ""))
                name, arguments = parsed.calls[part.call.index]
                parsed.calls[part.call.index] = (name, arguments + part.call.arguments)
    assert parser.num_settled == num_pushed
    return parsed


# The reference: regular expressions over the whole text, from left to right.

_BLANK = r"[ \t\r\n]*"
_HERMES_HEAD = re.compile(
    rf'<tool_call>{_BLANK}\{{{_BLANK}"name"{_BLANK}:{_BLANK}("(?:[^"\\\x00-\x1f]|\\[^\n])*"){_BLANK},{_BLANK}'
    rf'"arguments"{_BLANK}:{_BLANK}(?=\{{)'
)
_BARE_HEAD = re.compile(
    rf'{_BLANK}(```(?:json)?{_BLANK})?\{{{_BLANK}"name"{_BLANK}:{_BLANK}"f"{_BLANK},{_BLANK}'
    rf'"arguments"{_BLANK}:{_BLANK}(?=\{{)'
)
_XML_HEAD = re.compile(rf"<tool_call>{_BLANK}<function=([^<>\n]*)>")
_PARAMETER = re.compile(rf"{_BLANK}<parameter=([^<>\n]*)>(.*?)</parameter>", re.DOTALL)
_OPEN_PARAMETER = re.compile(rf"{_BLANK}<parameter=([^<>\n]*)>(.*)\Z", re.DOTALL)
_SMALLEST_HEADS = {"hermes": '{"name":"f","arguments":{', "qwen_xml": "<function=f>"}


def read_whole(text: str, markers: ChatMarkers, phase: Phase = "undecided") -> Parsed:
    parsed = Parsed()
    begins_after_mark = False
    opened = re.match(rf"{_BLANK}<think>", text)
    if phase == "thinking" or (phase == "undecided" and opened):
        thought, mark, text = text[opened.end() if opened and phase == "undecided" else 0 :].partition("</think>")
        parsed.thinking = thought.strip("\n")
        begins_after_mark = bool(mark)
    read_opening(text, markers, parsed, begins_after_mark)
    return parsed


def read_opening(
    text: str, markers: ChatMarkers, parsed: Parsed, begins_after_mark: bool, is_in_block: bool = False
) -> None:
    """Read calls without marks, which stand where an answer begins, and what is behind them."""
    found = _BARE_HEAD.match(text) if markers.tool_format == "hermes" else None
    if found is None:
        read_answer(text, markers, parsed, begins_after_mark)
        return
    is_in_block = is_in_block or bool(found.group(1))
    closing = "```" if is_in_block else "</tool_call>"
    arguments, rest, is_closed = read_hermes_arguments(text[found.end() :], closing=closing)
    parsed.calls.append(("f", arguments))
    rest = rest.lstrip(" \t\r\n}")
    if is_closed and rest.startswith("</tool_call>") and closing == "</tool_call>" and rest != closing:
        read_answer(rest.removeprefix(closing), markers, parsed, True)
    elif is_closed and not closing.startswith(rest):
        read_opening(rest.removeprefix(closing), markers, parsed, True, is_in_block and not rest.startswith(closing))


def read_answer(text: str, markers: ChatMarkers, parsed: Parsed, begins_after_mark: bool) -> None:
    head = _HERMES_HEAD if markers.tool_format == "hermes" else _XML_HEAD
    found = next((m for m in head.finditer(text) if name_of(m, markers)), None) if markers.tool_call else None
    end = unfinished_call(text, markers) if found is None else found.start()
    content = text if end is None else text[:end].rstrip("\n")
    parsed.answer += content.lstrip("\n") if begins_after_mark else content
    if found is None:
        return
    read = read_hermes_arguments if markers.tool_format == "hermes" else read_xml_arguments
    arguments, rest, is_closed = read(text[found.end() :], name_of(found, markers))
    parsed.calls.append((name_of(found, markers), arguments))
    if not is_closed:
        return
    rest = rest.lstrip(" \t\r\n}" if markers.tool_format == "hermes" else " \t\r\n")
    if "</tool_call>".startswith(rest):
        return
    read_answer(rest.removeprefix("</tool_call>"), markers, parsed, True)


def unfinished_call(text: str, markers: ChatMarkers) -> int | None:
    """Return where the first mark stands that some further text would make the opening of a call."""
    if markers.tool_format is None:
        return None
    head = _HERMES_HEAD if markers.tool_format == "hermes" else _XML_HEAD
    smallest = _SMALLEST_HEADS[markers.tool_format]
    for mark in re.finditer("<tool_call>", text):
        for at in range(len(smallest)):
            found = head.match(text + smallest[at:], mark.start())
            if found and (found.end(1) > len(text) or name_of(found, markers)):
                return mark.start()
    return None


def name_of(found: re.Match[str], markers: ChatMarkers) -> str:
    if markers.tool_format == "qwen_xml":
        return found.group(1).strip()
    try:
        name = json.loads(found.group(1))
        name.encode()
    except ValueError:
        return ""
    return name


def read_hermes_arguments(text: str, _: str = "", *, closing: str = "</tool_call>") -> tuple[str, str, bool]:
    depth = 0
    for token in re.finditer(rf'"(?:[^"\\\n]|\\[^\n])*["\n]?\\?\n?|{closing}|[{{}}\[\]]', text):
        if token.group() == closing:
            return text[: token.start()], text[token.start() :], True
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(token.group(), 0)
        if depth == 0:
            return text[: token.end()], text[token.end() :], True
    return text, "", False


def read_xml_arguments(text: str, function: str) -> tuple[str, str, bool]:
    written: list[str] = []
    while (found := _PARAMETER.match(text)) and found.group(1).strip():
        key, value = found.group(1).strip(), found.group(2).removeprefix("\n").removesuffix("\n")
        written.append(f"{json.dumps(key, ensure_ascii=False)}: {write_value(function, key, value)}")
        text = text[found.end() :]
    start = "{" + ", ".join(written)
    cut = _OPEN_PARAMETER.match(text)
    if cut and cut.group(1).strip():
        key, value = cut.group(1).strip(), cut.group(2)
        start += (", " if written else "") + json.dumps(key, ensure_ascii=False) + ": "
        if (function, key) != ("f", "text") and not value:
            return start, "", False
        return start + json.dumps(value.removeprefix("\n"), ensure_ascii=False)[:-1], "", False
    rest = text.lstrip(" \t\r\n")
    heads = ("</function>", "</tool_call>", "<parameter=")
    is_cut = re.fullmatch(r"<parameter=[^<>\n]*", rest) or any(h.startswith(rest) and h != rest for h in heads)
    if is_cut:
        return (start if written else ""), "", False
    return start + "}", rest.removeprefix("</function>"), True


def write_value(function: str, key: str, value: str) -> str:
    if (function, key) != ("f", "text"):
        try:
            json.loads(value, parse_constant=lambda name: 1 / 0)
        except (ValueError, ZeroDivisionError):
            pass
        else:
            return value.strip()
    return json.dumps(value, ensure_ascii=False)


FRAGMENTS = [
    *(
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<tool",
        "_call>",
        "</",
        "<",
        ">",
        "\n",
        "\n\n",
        " ",
        "<th",
    ),
    *(
        '{"name": "f", "arguments": {',
        '{"name": "查\\u5929", "arguments": {}}',
        '"name"',
        ": ",
        ", ",
        '"',
        "\\",
        "{",
        "}",
    ),
    *(
        '"a": 1',
        '"b": "x</tool_call>"',
        '"c": [1, {"d": null}]',
        '"\\ud800"',
        "}}",
        "}}\n</tool_call>",
        "[",
        "]",
        "好",
        "😀",
    ),
    *(
        "<function=f>",
        "<function=",
        "<function=g>\n",
        "</function>",
        "<parameter=text>",
        "<parameter=n>",
        "</parameter>",
    ),
    *("```", "```json\n", "\n```", "json", '{"name": "f", "arguments": ', '"f"'),
    *("<parameter=", "\n</parameter>\n", "\n</function>\n</tool_call>", "12", "true", "NaN", "text", "\r\n", "\t"),
]
GOOD = [
    '{"name": "f", "arguments": {"a": "1"}}',
    '```json\n{\n  "name": "f",\n  "arguments": {"a": [{}]}\n}\n```\n',
    '<tool_call>\n{"name": "f", "arguments": {"a": "1"}}\n</tool_call>',
    "<tool_call>\n<function=f>\n<parameter=text>\na\nb\n</parameter>\n<parameter=n>1</parameter></function></tool_call>",
    "<think>\nhm\n</think>\n\n",
]
texts = st.lists(st.sampled_from(FRAGMENTS + GOOD) | st.text(max_size=3), max_size=14).map("".join)
cuts = st.lists(st.integers(1, 7), min_size=1, max_size=8)


def cut(text: str, sizes: list[int]) -> list[str]:
    pieces: list[str] = []
    while text:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[:size])
        text = text[size:]
    return pieces


@settings(max_examples=MAX_EXAMPLES, deadline=None)
@given(
    text=texts,
    sizes=cuts,
    markers=st.sampled_from([HERMES, XML, THINKING_ONLY]),
    phase=st.sampled_from(["undecided", "thinking", "answer"]),
)
@example(text='<tool_call><tool_call>{"name": "f", "arguments": {}}', sizes=[1], markers=HERMES, phase="answer")
@example(text="<tool_call><function=f><parameter=n></parameter></function>x", sizes=[1], markers=XML, phase="answer")
def test_any_cutting_gives_what_the_whole_text_says(
    text: str, sizes: list[int], markers: ChatMarkers, phase: Phase
) -> None:
    expected = read_whole(text, markers, phase)
    assert parse([text], markers, phase) == expected
    assert parse(cut(text, sizes), markers, phase) == expected
    assert parse(list(text), markers, phase) == expected


@settings(max_examples=MAX_EXAMPLES, deadline=None)
@given(
    calls=st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
            st.dictionaries(
                st.text(max_size=5),
                st.recursive(
                    st.none()
                    | st.booleans()
                    | st.integers()
                    | st.floats(allow_nan=False, allow_infinity=False)
                    | st.text(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
                    max_leaves=6,
                ),
                max_size=4,
            ),
        ),
        min_size=1,
        max_size=3,
    ),
    sizes=cuts,
    indent=st.sampled_from([None, 2]),
)
def test_every_hermes_call_comes_back_as_it_was_written(
    calls: list[tuple[str, dict[str, object]]], sizes: list[int], indent: int | None
) -> None:
    written = [json.dumps({"name": name, "arguments": given}, indent=indent) for name, given in calls]
    text = "Let me see.\n" + "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in written)
    parsed = parse(cut(text, sizes), HERMES)
    assert parsed.answer == "Let me see."
    assert [(name, json.loads(arguments)) for name, arguments in parsed.calls] == calls


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("<think>\nLet me see.\n</think>\n\n42", "Let me see.", "42"),
        ("\n<think>a\n\nb</think>c", "a\n\nb", "c"),
        ("<think>\n\n</think>\n\nhi", "", "hi"),
        ("<think>no end", "no end", ""),
        ("<think>a<think>b</think>c</think>", "a<think>b", "c</think>"),
        ("In HTML, <think> is no tag.", "", "In HTML, <think> is no tag."),
        ("a</think>b", "", "a</think>b"),
        ("<thinking>x", "", "<thinking>x"),
        ("  plain\n", "", "  plain\n"),
        ("<th", "", "<th"),
        ("<think>almost</thin", "almost</thin", ""),
    ],
)
def test_thinking_is_what_stands_in_the_first_block(text: str, thinking: str, answer: str) -> None:
    for pieces in ([text], list(text)):
        assert parse(pieces, HERMES) == Parsed(thinking, answer)


def test_a_prompt_that_opened_thinking_needs_no_opening_mark() -> None:
    assert parse(list("\nhm\n</think>\n\nyes"), HERMES, "thinking") == Parsed("hm", "yes")
    assert parse(list("<think>no</think>"), HERMES, "answer") == Parsed("", "<think>no</think>")


@pytest.mark.parametrize(
    ("text", "answer", "calls"),
    [
        ('{"name": "f", "arguments": {"a": 1}}', "", [("f", '{"a": 1}')]),
        ('\n```json\n{\n  "name": "f",\n  "arguments": {\n    "a": 1\n  }\n}\n```', "", [("f", '{\n    "a": 1\n  }')]),
        ('```\n{"name": "f", "arguments": {}}\n```\nDone.', "Done.", [("f", "{}")]),
        (
            '```json\n{"name": "f", "arguments": {}}\n{"name": "f", "arguments": {"a": 1}}```',
            "",
            [("f", "{}"), ("f", '{"a": 1}')],
        ),
        ('{"name": "f", "arguments": {}}\n```json\n{"name": "f", "arguments": {}}\n```\nx', "x", [("f", "{}")] * 2),
        ('{"name": "f", "arguments": {}}\n</tool_call>', "", [("f", "{}")]),
        (
            '{"name": "f", "arguments": {}} {"name": "g", "arguments": {}}',
            '{"name": "g", "arguments": {}}',
            [("f", "{}")],
        ),
        (
            '{"name": "f", "arguments": {}}</tool_call>\n{"name": "f", "arguments": {}}',
            '{"name": "f", "arguments": {}}',
            [("f", "{}")],
        ),
        ('```{"name": "f", "arguments": {"a": "```"}}', "", [("f", '{"a": "```"}')]),
        ('```{"name": "f", "arguments": {"a": 1``` and so on', " and so on", [("f", '{"a": 1')]),
    ],
)
def test_an_answer_may_begin_with_calls_that_have_no_marks(
    text: str, answer: str, calls: list[tuple[str, str]]
) -> None:
    for pieces in ([text], list(text)):
        assert parse(pieces, HERMES) == Parsed("", answer, calls)
    for pieces in ([f"<think>hm</think>\n\n{text}"], list(f"<think>hm</think>\n\n{text}")):
        assert parse(pieces, HERMES) == Parsed("hm", answer, calls)


def test_without_tools_an_answer_in_json_is_text() -> None:
    parser = OutputParser(HERMES, phase="answer")
    text = '{"name": "f", "arguments": {}}'
    assert "".join(piece.text for piece in [*parser.push(text), *parser.finish()]) == text


@pytest.mark.parametrize(
    ("text", "answer", "calls"),
    [
        (f"Sure.\n\n{CALL}", "Sure.", [("f", '{"a": 1}')]),
        (f"{CALL}\n{CALL}\ndone", "done", [("f", '{"a": 1}')] * 2),
        ('<tool_call>{"name":"f","arguments":{}}</tool_call>', "", [("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>', "", [("f", '{"a": 1}')]),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}', "", [("f", '{"a": 1}')]),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}}\n thanks', "thanks", [("f", '{"a": 1}')]),
        ('<tool_call>{"name": "f", "arguments": {"a": "1', "", [("f", '{"a": "1')]),
        ('<tool_call>{"name": "f", "arguments": {"a": oops</tool_call>after', "after", [("f", '{"a": oops')]),
        (
            '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>',
            "",
            [("f", '{"a": "</tool_call>"}')],
        ),
        ('<tool_call>{"name": "f", "arguments": {"a": "open\n}}</tool_call>x', "x", [("f", '{"a": "open\n}')]),
    ],
)
def test_hermes_calls_are_read_also_where_their_end_is_careless(
    text: str, answer: str, calls: list[tuple[str, str]]
) -> None:
    for pieces in ([text], list(text)):
        assert parse(pieces, HERMES) == Parsed("", answer, calls)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>maybe</tool_call>",
        '<tool_call>{"name": "f"}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>',
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}, "name": "f"}</tool_call>',
        "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>",
        '{"name": "g", "arguments": {}}',
        '{"name": "\\u0066", "arguments": {}}',
        '{"name": "f", "age": 7}',
        '```json\n{"name": "g", "arguments": {}}\n```',
        '```python\n{"name": "f", "arguments": {}}\n```',
        'Look: {"name": "f", "arguments": {}}',
        "`code`",
        "``",
        "```js",
        '```json\n{"na',
        "<tool_call",
        '<tool_call>{"name": "' + "x" * 2000 + '", "arguments": {}}</tool_call>',
    ],
)
def test_what_is_no_call_is_text(text: str) -> None:
    for pieces in ([text], list(text)):
        assert parse(pieces, HERMES) == Parsed("", text)


@pytest.mark.parametrize(
    ("markers", "opening"),
    [
        (HERMES, "<tool_call>"),
        (HERMES, "<tool_call>\n"),
        (HERMES, '<tool_call>\n{"na'),
        (HERMES, '<tool_call>\n{"name": "get_wea'),
        (HERMES, '<tool_call>\n{"name": "f", "arguments": '),
        (XML, "<tool_call>\n<func"),
        (XML, "<tool_call>\n<function=get_wea"),
    ],
)
def test_the_opening_of_a_call_that_the_end_cuts_off_is_no_text(markers: ChatMarkers, opening: str) -> None:
    for text, answer in ((opening, ""), (f"a < b\n\n{opening}", "a < b")):
        for pieces in ([text], list(text)):
            assert parse(pieces, markers) == Parsed("", answer)
    after_a_call = f"{CALL}\n{opening}" if markers is HERMES else f"{xml_call('')}\n{opening}"
    assert parse([after_a_call], markers).answer == ""


@pytest.mark.parametrize("text", ["", "<", "<tool_", f"{CALL}\n", f"{CALL}\n<tool"])
def test_an_answer_of_calls_alone_has_no_text(text: str) -> None:
    calls = parse([text], HERMES).calls
    for pieces in ([text], list(text)):
        assert parse(pieces, HERMES, is_calls_only=True) == Parsed("", "", calls)
    assert parse(list("<think>hm</think>\n<to"), HERMES, is_calls_only=True) == Parsed("hm", "")


def test_text_is_not_kept_waiting_for_a_call_that_cannot_come() -> None:
    parser = OutputParser(HERMES, phase="answer")
    assert "".join(piece.text for piece in parser.push("<tool_call>so")) == "<tool_call>so"
    parser = OutputParser(HERMES, phase="answer")
    pieces = parser.push('<tool_call>{"name": "' + "x" * 2000)
    assert "".join(piece.text for piece in pieces).endswith("x" * 2000)


def test_a_call_streams_its_name_first_and_then_its_arguments() -> None:
    parser = OutputParser(HERMES, phase="answer")
    assert parser.push('<tool_call>\n{"name": "weather", "arguments": ') == []
    deltas = [piece.call for text in ("{", '"city": ', '"北', '京"}', "}\n</tool_call>") for piece in parser.push(text)]
    assert [(delta.name, delta.arguments) for delta in deltas if delta] == [
        ("weather", "{"),
        (None, '"city": '),
        (None, '"北'),
        (None, '京"}'),
    ]


def xml_call(inside: str) -> str:
    return f"<tool_call>\n<function=f>\n{inside}</function>\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "answer", "arguments"),
    [
        (xml_call("<parameter=text>\n12\n</parameter>\n"), "", '{"text": "12"}'),
        (xml_call("<parameter=n>\n12\n</parameter>\n"), "", '{"n": 12}'),
        (xml_call("<parameter=n>\nnot json\n</parameter>\n"), "", '{"n": "not json"}'),
        (xml_call("<parameter=n>NaN</parameter>"), "", '{"n": "NaN"}'),
        (
            xml_call('<parameter=text>\nif a < b:\n\tp("</b>")\n\n</parameter>\n<parameter=n>[1,\n2]</parameter>'),
            "",
            '{"text": "if a < b:\\n\\tp(\\"</b>\\")\\n", "n": [1,\n2]}',
        ),
        (xml_call(""), "", "{}"),
        ("<tool_call><function=f></tool_call>!", "!", "{}"),
        (xml_call("<parameter=n>1</parameter>why"), "why</function>\n</tool_call>", '{"n": 1}'),
        ("<tool_call><function=f><parameter=text>cut of", "", '{"text": "cut of'),
        ("<tool_call><function=f><parameter=n>[1", "", '{"n": "[1'),
        ("<tool_call><function=f><parameter=n>1</parameter><param", "", '{"n": 1'),
    ],
)
def test_arguments_in_xml_become_json(text: str, answer: str, arguments: str) -> None:
    for pieces in ([text], list(text)):
        assert parse(pieces, XML) == Parsed("", answer, [("f", arguments)])


def test_an_argument_known_to_be_text_streams_while_it_is_written() -> None:
    parser = OutputParser(XML, phase="answer", tools=TYPES)
    parser.push("<tool_call><function=f><parameter=text>\n")
    (piece,) = parser.push('say "hi"')
    assert piece.call is not None
    assert piece.call.arguments == 'say \\"hi\\"'


def test_the_types_of_parameters_come_from_the_tools() -> None:
    properties = {
        "a": {"type": "string"},
        "b": {"type": "integer"},
        "c": {"enum": ["x", "y"]},
        "d": {"enum": [1]},
        "e": {},
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": properties}}}
    types = ToolSignatures.from_tools(json.dumps([tool, {"function": {"name": "bare"}}, 5]))
    assert [name for name in properties if types.is_text("f", name)] == ["a", "c"]
    assert not types.is_text("bare", "a")
    for source in ("", "{", "5", "[" * 100_000):
        assert not ToolSignatures.from_tools(source).is_text("f", "a")
