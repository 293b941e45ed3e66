"""What a server keeps for its tenants is as it was, or says what became of it, after `kill -9` of the process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai.types.responses import Response

SCRIPT = """
import sys
from toy_llm import ToyLLM
from qwenstack.serving import ServeConfig, create_app, run_server
from qwenstack.storage import open_database
config = ServeConfig(port=0, lease_s=1)
app = create_app(ToyLLM(step_s=float(sys.argv[2])), config, database=open_database(sys.argv[1]))
run_server(app, config, on_ready=lambda urls: print(*urls, flush=True))
"""


@contextlib.contextmanager
def server(url: str, *, step_s: float = 0.0) -> Iterator[openai.OpenAI]:
    """Run a server process, which is killed when the block ends."""
    support = [Path(__file__).parents[2] / "unit" / "serving", Path(__file__).parents[2]]
    path = os.pathsep.join([*map(str, support), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, url, str(step_s)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    ) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            with openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0, timeout=60) as client:
                yield client
        finally:
            process.kill()


def ended(client: openai.OpenAI, response_id: str) -> Response:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        response = client.responses.retrieve(response_id)
        if response.status != "in_progress":
            return response
        time.sleep(0.1)
    pytest.fail("the response never came to an end")


def test_a_background_response_of_a_killed_server_has_failed_and_the_others_are_whole(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'q.db'}"
    with server(url, step_s=0.2) as client:
        whole = client.responses.create(model="default", input="x", max_output_tokens=2)
        begun = client.responses.create(model="default", input="y", background=True)
        assert client.responses.retrieve(begun.id).status == "in_progress"
    with server(url) as client:
        failed = ended(client, begun.id)
        assert (failed.status, failed.output) == ("failed", [])
        assert failed.error is not None
        assert (failed.error.code, failed.error.type) == ("server_error", "server_restarted")
        assert client.responses.retrieve(whole.id) == whole
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve("resp_" + "0" * 32)
