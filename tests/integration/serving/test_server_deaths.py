"""What a server keeps for its tenants is as it was, or says what became of it, after `kill -9` of the process."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai.types import Batch
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


NUM_LINES = 1000
NUM_KILLS = 3


def test_a_batch_of_a_thousand_lines_survives_three_deaths_and_answers_each_line_once(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    url = f"sqlite:///{tmp_path / 'q.db'}"
    lines = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            # Every tenth is wrong, and its answer is an error.
            "body": {
                "messages": [{"role": "user", "content": str(number)}],
                "temperature": 9 if number % 10 == 9 else 0,
            },
        }
        for number in range(NUM_LINES)
    ]
    written = "\n".join(json.dumps(line) for line in lines).encode()
    batch_id, ends = "", sorted(rng.sample(range(50, NUM_LINES - 50), NUM_KILLS))
    for end in ends:
        with server(url) as client:
            if not batch_id:
                file = client.files.create(file=("lines.jsonl", written), purpose="batch")
                batch_id = client.batches.create(
                    input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
                ).id
            reach(client, batch_id, end)
    with server(url) as client:
        batch = reach(client, batch_id, NUM_LINES)
        while batch.status != "completed":
            time.sleep(0.1)
            batch = client.batches.retrieve(batch_id)
            assert batch.status in {"in_progress", "finalizing", "completed"}
        assert batch.request_counts is not None
        assert batch.request_counts.to_dict() == {"total": NUM_LINES, "completed": 900, "failed": 100}
        assert batch.output_file_id is not None
        assert batch.error_file_id is not None
        answers, errors = (
            [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
            for file_id in (batch.output_file_id, batch.error_file_id)
        )
    assert [line["custom_id"] for line in answers] == [f"line-{n}" for n in range(NUM_LINES) if n % 10 != 9]
    for line in answers:
        text = line["response"]["body"]["choices"][0]["message"]["content"]
        assert text == f"echo: [user] {line['custom_id'].removeprefix('line-')}"
    assert [line["custom_id"] for line in errors] == [f"line-{n}" for n in range(9, NUM_LINES, 10)]
    assert {line["response"]["status_code"] for line in errors} == {400}
    assert len({line["id"] for line in [*answers, *errors]}) == NUM_LINES


def reach(client: openai.OpenAI, batch_id: str, num_lines: int) -> Batch:
    """Wait until so many lines are answered."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        batch = client.batches.retrieve(batch_id)
        counts = batch.request_counts
        if counts is not None and counts.completed + counts.failed >= num_lines:
            return batch
        time.sleep(0.02)
    pytest.fail("the batch does not go on")
