"""What a batch's files become, without a server."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from qwenstack.client import Batch, BatchAnswer, BatchError, ChatCompletion, Client, OverloadedError

ANSWER = {"id": "1", "choices": [{"message": {"role": "assistant", "content": "好"}}]}
OUTPUT = [
    {"custom_id": f"{n}", "response": {"status_code": 200, "request_id": "r", "body": ANSWER}, "error": None}
    for n in range(3)
]
FAILED = [
    {"custom_id": "busy", "response": {"status_code": 503, "request_id": "r9", "body": {"error": {"message": "full"}}}},
    {"custom_id": "late", "response": None, "error": {"code": "batch_expired", "message": "too late"}},
]
FILES = {"out": OUTPUT, "err": FAILED}


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def client() -> Client:
    def answer(request: httpx.Request) -> httpx.Response:
        steps = request.url.path.split("/")
        if "batches" in steps:
            batch = {"id": "b", "status": "expired", "output_file_id": "out", "error_file_id": "err"}
            return httpx.Response(200, json=batch)
        return httpx.Response(200, text="".join(json.dumps(line) + "\n" for line in FILES[steps[3]]))

    return Client(transport=httpx.MockTransport(answer))


def test_answers_come_as_in_their_files_and_those_that_failed_last(client: Client, temporary: Path) -> None:
    answers = {answer.custom_id: answer for answer in client.batches.answers("b")}
    assert list(answers) == ["0", "1", "2", "busy", "late"]
    assert [answer.is_success for answer in answers.values()] == [True] * 3 + [False] * 2
    assert answers["0"].read(ChatCompletion).text == "好"
    with pytest.raises(OverloadedError, match="full") as overloaded:
        answers["busy"].read(ChatCompletion)
    assert overloaded.value.request_id == "r9"
    with pytest.raises(BatchError, match="too late") as late:
        answers["late"].read(ChatCompletion)
    assert late.value.code == "batch_expired"
    assert list(temporary.iterdir()) == []


def test_who_stops_reading_early_leaves_no_file_behind(client: Client, temporary: Path) -> None:
    answers = client.batches.answers("b")
    assert next(answers).custom_id == "0"
    assert list(temporary.rglob("answers.jsonl"))
    answers.close()
    assert list(temporary.iterdir()) == []


def test_requests_that_fail_while_they_are_written_are_not_sent(client: Client, temporary: Path) -> None:
    def requests() -> Iterator[tuple[str, dict[str, object]]]:
        yield "1", {"messages": []}
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        next(client.batches.run(requests()))
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "is_over"),
    [
        ("validating", False),
        ("in_progress", False),
        ("finalizing", False),
        ("cancelling", False),
        ("completed", True),
        ("failed", True),
        ("expired", True),
        ("cancelled", True),
    ],
)
def test_a_batch_is_over_when_nothing_more_comes(status: str, is_over: bool) -> None:
    assert Batch(id="b", status=status).is_over == is_over


def test_a_request_without_an_answer_is_an_error_when_it_is_read() -> None:
    with pytest.raises(BatchError):
        BatchAnswer(custom_id="1").read(ChatCompletion)
