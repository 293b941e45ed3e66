"""The Python blocks of the client's page run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from toy_llm import ToyLLM

from qwenstack.serving import ServeConfig
from qwenstack.storage import open_database

PAGE = Path(__file__).parents[3] / "docs" / "clients" / "python.md"
ADMIN_KEY = "qsa-the-key-of-the-file-on-this-machine"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_an_example_runs_and_prints(
    number: int,
    serve_at: Any,
    llm: ToyLLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    block = BLOCKS[number]
    if "tools=" in block:
        llm.says = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    (tmp_path / "adapters" / "legal").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QWENSTACK_ADMIN_KEY", ADMIN_KEY)
    config = ServeConfig(admin_keys=(ADMIN_KEY,), adapters_folder=tmp_path / "adapters")
    database = open_database(f"sqlite:///{tmp_path / 'q.db'}")
    with serve_at(llm, config, database, has_administration=True) as (url, admin_url):
        monkeypatch.setenv("QWENSTACK_BASE_URL", url)
        monkeypatch.setenv("QWENSTACK_ADMIN_URL", admin_url)
        exec(compile(block, f"{PAGE.name}:{number}", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()
