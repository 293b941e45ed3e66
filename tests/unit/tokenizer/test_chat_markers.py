from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from qwenstack.tokenizer import ChatMarkers, Marks, Tokenizer

THINKING, TOOL_CALL = Marks("<think>", "</think>"), Marks("<tool_call>", "</tool_call>")


@pytest.mark.parametrize(
    ("template", "markers"),
    [
        ("qwen3", ChatMarkers(thinking=THINKING, tool_call=TOOL_CALL, tool_format="hermes")),
        ("qwen2.5", ChatMarkers(tool_call=TOOL_CALL, tool_format="hermes")),
        ("smollm2", ChatMarkers()),
        ("xml_tools", ChatMarkers(thinking=THINKING, tool_call=TOOL_CALL, tool_format="qwen_xml")),
    ],
)
def test_the_marks_are_those_that_the_template_writes(
    tiny_metadata: Mapping[str, object],
    official_template: Callable[[str], str],
    template: str,
    markers: ChatMarkers,
) -> None:
    metadata = {**tiny_metadata, "tokenizer.chat_template": official_template(template)}
    assert Tokenizer.from_gguf(metadata).chat_markers == markers
