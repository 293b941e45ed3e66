"""What a request may say, checked at the door."""

from __future__ import annotations

import pytest

from qwenstack.core.errors import RequestError
from qwenstack.core.grammar import Grammar
from qwenstack.core.sampling_params import SamplingParams


def test_a_grammar_that_is_none_is_refused_with_an_example() -> None:
    with pytest.raises(RequestError, match="kind='regex'"):
        SamplingParams(grammar="[a-z]+")  # pyright: ignore[reportArgumentType]
    with pytest.raises(RequestError, match=r"json\.dumps"):
        Grammar(kind="json_schema", source={"type": "object"})  # pyright: ignore[reportArgumentType]
