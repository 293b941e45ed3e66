"""What an error becomes over gRPC: a code for every status, a message that fits, words that metadata can carry."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from grpc import StatusCode

import qwenstack.serving
from qwenstack.core.errors import RequestError
from qwenstack.serving.errors import HttpError
from qwenstack.serving.grpc.status import MAX_MESSAGE_CHARS, answer_status


def test_every_status_that_the_server_gives_has_a_code() -> None:
    folder = Path(qwenstack.serving.__file__).parent
    text = "".join(path.read_text() for path in folder.rglob("*.py"))
    statuses = {int(status) for status in re.findall(r"(?:HttpError\(|_answer\(|return |status=)\s*(\d{3})\b", text)}
    assert {400, 401, 403, 404, 408, 413, 422, 500, 503} <= statuses
    # What only the head of an HTTP request can bring about; and answers that are no errors.
    for status in statuses - {200, 204, 405, 415, 421, 431, 499}:
        code = answer_status(HttpError(status, "Text.", code="c"), request_id="r").code
        assert (code is StatusCode.INTERNAL) == (status == 500), status


@pytest.mark.parametrize("sign", ["x", "量"])
def test_a_long_message_is_cut_so_that_clients_read_it(sign: str) -> None:
    answer = answer_status(RequestError(sign * 5_000), request_id="r")
    assert len(answer.message) == MAX_MESSAGE_CHARS
    assert answer.message.endswith("…")
    assert len("".join(f"%{byte:02x}" for byte in answer.message.encode())) < 8 * 1024


def test_words_that_metadata_cannot_carry_are_left_out() -> None:
    for param in ("字段", "a\nb", "a\0b", ""):
        answer = answer_status(RequestError("Text.", param=param, code="c"), request_id="r")
        assert answer.metadata == {"error-code": "c"}
