"""Each row once, small: nothing may be lost, wrong or left behind. How fast it went is printed, not judged."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "serving"))

from reliability.rows import ROWS
from reliability.verdict import RowSkipped


@pytest.mark.parametrize("row", list(ROWS))
def test_the_server_keeps_its_promise(row: str) -> None:
    try:
        verdict = asyncio.run(ROWS[row].judge("ci"))
    except RowSkipped as reason:
        pytest.skip(str(reason))
    print(json.dumps(verdict.as_json()))
    assert verdict.wrongs == [], verdict.findings.figures
