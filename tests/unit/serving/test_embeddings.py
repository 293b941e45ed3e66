"""`/v1/embeddings` and Ollama's two over a model whose vectors can be worked out by hand."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import threading
from array import array
from collections.abc import AsyncGenerator, Iterator, MutableMapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar
from unittest.mock import AsyncMock

import httpx
import msgspec
import numpy as np
import pytest
from starlette.requests import ClientDisconnect
from toy_embedder import CARD, ToyEmbedder, letters_of
from toy_llm import ToyLLM

from qwenstack.core.embedding import EmbeddingInput, Vector
from qwenstack.core.errors import CapacityError, EngineError, RequestError
from qwenstack.core.limits import NO_LIMITS
from qwenstack.serving import ServeConfig, create_app
from qwenstack.serving.connection import PiecedResponse
from qwenstack.serving.embedding_service import MAX_INPUTS, MAX_REQUESTS, EmbeddingJob, EmbeddingService
from qwenstack.serving.grpc.embeddings import EmbeddingRpc
from qwenstack.serving.grpc.method import Call
from qwenstack.serving.grpc.v1.embeddings_pb2 import EmbedRequest
from qwenstack.serving.identity import Access, Identity
from qwenstack.serving.limiter import Limiter
from qwenstack.serving.metrics import Metrics
from qwenstack.serving.usage import MemoryRecords, UsageLedger
from qwenstack.serving.wire import pieces
from qwenstack.serving.wire.embeddings import write_embeddings
from qwenstack.serving.wire.pieces import encode_in_pieces

pytestmark = pytest.mark.anyio
OURS = Identity(tenant="ours", accesses=frozenset(Access))


def service_of(embedder: ToyEmbedder) -> EmbeddingService:
    ledger = UsageLedger(MemoryRecords())
    return EmbeddingService(embedder, Metrics("x"), Limiter(NO_LIMITS, ledger, count_refusal=lambda _: None))


@pytest.fixture
def embedder() -> ToyEmbedder:
    return ToyEmbedder()


@pytest.fixture
async def client(embedder: ToyEmbedder) -> AsyncGenerator[httpx.AsyncClient]:
    app = create_app(ToyLLM(), ServeConfig(), embedder=embedder)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
        yield client


def close_to(vector: list[float]) -> object:
    return pytest.approx(vector, abs=1e-6)


async def test_texts_become_vectors_in_their_order(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/embeddings", json={"input": ["abc", "hhh"], "model": CARD.id})).json()
    assert [entry["index"] for entry in answer["data"]] == [0, 1]
    assert answer["data"][0]["embedding"] == close_to(letters_of("abc"))
    assert answer["data"][1]["embedding"] == close_to(letters_of("hhh"))
    assert answer["model"] == CARD.id
    assert answer["usage"] == {"prompt_tokens": 6, "total_tokens": 6}


@pytest.mark.parametrize("given", ["abc", [97, 98, 99], [[97, 98, 99]], ["abc"]])
async def test_a_text_may_come_in_each_of_openais_four_forms(client: httpx.AsyncClient, given: object) -> None:
    (entry,) = (await client.post("/v1/embeddings", json={"input": given})).json()["data"]
    assert entry["embedding"] == close_to(letters_of("abc"))


async def test_base64_holds_the_same_float32_numbers(client: httpx.AsyncClient) -> None:
    body = {"input": "abbccc"}
    numbers = (await client.post("/v1/embeddings", json=body)).json()["data"][0]["embedding"]
    coded = (await client.post("/v1/embeddings", json=body | {"encoding_format": "base64"})).json()["data"][0]
    assert np.frombuffer(base64.b64decode(coded["embedding"]), "<f4").tolist() == numbers


class WatchedVector(array):  # type: ignore[type-arg]
    """A vector that notes which threads read it."""

    readers: ClassVar[set[int]] = set()

    def tolist(self) -> list[float]:
        self.readers.add(threading.get_ident())
        return super().tolist()

    def tobytes(self) -> bytes:
        self.readers.add(threading.get_ident())
        return super().tobytes()

    def __iter__(self) -> Iterator[float]:
        self.readers.add(threading.get_ident())
        return super().__iter__()


@pytest.fixture
def watched(embedder: ToyEmbedder, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Have the model give watched vectors, and return who reads them."""
    number = iter(range(10**9))

    async def embed(inputs: Sequence[EmbeddingInput], *, tenant: str = "") -> list[Vector]:
        return [WatchedVector("f", [next(number) / 3] * 8) for _ in inputs]

    monkeypatch.setattr(embedder, "embed", embed)
    WatchedVector.readers.clear()
    return WatchedVector.readers


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/embeddings", {}),
        ("/v1/embeddings", {"encoding_format": "base64"}),
        ("/api/embed", {"model": "default"}),
    ],
)
async def test_vectors_are_written_outside_the_event_loop(
    client: httpx.AsyncClient, watched: set[int], path: str, fields: dict[str, object]
) -> None:
    answer = await client.post(path, json={"input": ["a", "b", "c"], **fields})
    assert answer.status_code == 200
    assert watched
    assert threading.get_ident() not in watched


async def test_vectors_are_written_outside_the_event_loop_over_grpc(embedder: ToyEmbedder, watched: set[int]) -> None:
    rpc = EmbeddingRpc(service_of(embedder))
    call = Call(identity=OURS, request_id="r")
    answer = await rpc.embed(EmbedRequest(input=["a", "b"]), call)
    assert len(answer.embeddings) == 2
    assert watched
    assert threading.get_ident() not in watched


async def test_an_answer_of_many_vectors_comes_in_pieces_that_make_one_document(
    embedder: ToyEmbedder, watched: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1000)
    made = await service_of(embedder).embed(EmbeddingJob(inputs=["a"] * 99), model="default", caller=OURS)
    whole = write_embeddings(made, None)
    cut = encode_in_pieces(whole, "data")
    assert len(cut) > 5
    assert max(map(len, cut)) < 2000
    assert json.loads(b"".join(cut)) == json.loads(msgspec.json.encode(whole))
    sent: list[Any] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await PiecedResponse(cut)({"type": "http"}, AsyncMock(), send)
    assert dict(sent[0]["headers"])[b"content-length"] == str(sum(map(len, cut))).encode()
    assert [(part["body"], part["more_body"]) for part in sent[1:]] == [(piece, piece is not cut[-1]) for piece in cut]
    assert encode_in_pieces({"data": [], "more": 1}, "data") == [b'{"data":[],"more":1}']


async def test_a_client_that_takes_a_piece_now_and_then_is_cut_off() -> None:
    answer, taken = PiecedResponse([b"x"] * 100, grace_s=0.2), 0

    async def send(_: MutableMapping[str, Any]) -> None:
        nonlocal taken
        taken += 1
        await asyncio.sleep(0.05)

    with pytest.raises(ClientDisconnect):
        await answer({"type": "http"}, AsyncMock(), send)
    assert 0 < taken < 100


async def test_a_shortened_vector_is_the_beginning_scaled_to_length_one(client: httpx.AsyncClient) -> None:
    short = (await client.post("/v1/embeddings", json={"input": "abcdef", "dimensions": 4})).json()
    vector = short["data"][0]["embedding"]
    head = letters_of("abcdef")[:4]
    length = math.sqrt(sum(number * number for number in head))
    assert vector == close_to([number / length for number in head])


@pytest.mark.parametrize("dimensions", [1, 3, 9])
async def test_a_length_that_the_model_was_not_trained_for_is_refused(
    client: httpx.AsyncClient, dimensions: int
) -> None:
    answer = await client.post("/v1/embeddings", json={"input": "x", "dimensions": dimensions})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == f"`dimensions` is {dimensions}; toy/letters gives 4 to 8."


async def test_a_text_that_is_too_long_is_refused_by_its_place_and_cut_only_on_demand(
    client: httpx.AsyncClient, embedder: ToyEmbedder
) -> None:
    body = {"input": ["a", "b" * 17]}
    answer = await client.post("/v1/embeddings", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "input")
    assert error["message"].startswith("`input[1]` has 17 tokens; toy/letters reads 16.")
    assert embedder.seen == []
    cut = (await client.post("/v1/embeddings", json=body | {"truncate": True})).json()
    assert cut["usage"]["prompt_tokens"] == 17
    assert embedder.seen[-1].content == "b" * 16


@pytest.mark.parametrize(("word", "type_"), [("query", "query"), ("passage", "passage"), ("document", "passage")])
async def test_a_text_may_be_said_to_be_a_query_or_a_passage(
    client: httpx.AsyncClient, embedder: ToyEmbedder, word: str, type_: str
) -> None:
    await client.post("/v1/embeddings", json={"input": "x", "input_type": word})
    assert embedder.seen[-1].input_type == type_


async def test_a_type_that_the_model_does_not_know_is_refused(embedder: ToyEmbedder) -> None:
    embedder.card = replace(CARD, input_types=("passage",))
    service = service_of(embedder)
    with pytest.raises(RequestError, match="Write it there"):
        await service.embed(EmbeddingJob(inputs=["a"], input_type="query"), model="default", caller=OURS)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"input": ["x"] * (MAX_INPUTS + 1)}, "`input`"),
        ({"input": []}, "`input`"),
        ({"input": [[]]}, "`input[0]`"),
        ({"input": [-1]}, "`input[0]`"),
        ({"input": "x", "encoding_format": "hex"}, "`encoding_format`"),
        ({"input": "x", "extra": 1}, "`extra` is not a field"),
        ({}, "`input` is missing"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(client: httpx.AsyncClient, body: dict, sentence: str) -> None:
    answer = await client.post("/v1/embeddings", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(sentence)


async def test_all_texts_together_are_bounded(embedder: ToyEmbedder) -> None:
    embedder.card = replace(CARD, max_tokens=200)
    service = service_of(embedder)
    with pytest.raises(RequestError, match="`input` has 300800 tokens in all; one request takes 300000"):
        await service.embed(EmbeddingJob(inputs=["a" * 188] * 1600), model="default", caller=OURS)


async def test_another_model_is_not_found_and_the_one_there_is_named(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/embeddings", json={"input": "x", "model": "toy/echo"})
    assert answer.status_code == 404
    assert "it is 'toy/letters' that does" in answer.json()["error"]["message"]
    chat = {"model": CARD.id, "messages": [{"role": "user", "content": "hello"}]}
    assert (await client.post("/v1/chat/completions", json=chat)).status_code == 404


async def test_the_model_is_listed_with_the_others(client: httpx.AsyncClient) -> None:
    models = (await client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in models] == ["toy/echo", CARD.id]
    assert models[1]["dimensions"] == 8
    assert (await client.get(f"/v1/models/{CARD.id}")).json() == models[1]


async def test_without_a_model_the_reason_is_told() -> None:
    app = create_app(ToyLLM(), ServeConfig())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        answer = await client.post("/v1/embeddings", json={"input": "x"})
        assert answer.status_code == 404
        assert "--embedding-model off" in answer.json()["error"]["message"]
        assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["toy/echo"]


async def test_a_failure_of_the_model_tells_the_request_id_and_no_more(
    client: httpx.AsyncClient, embedder: ToyEmbedder
) -> None:
    embedder.error = EngineError("secret path")
    answer = await client.post("/v1/embeddings", json={"input": "x"})
    assert answer.status_code == 500
    assert "secret" not in answer.text


async def test_sec_22_requests_that_wait_are_bounded_and_one_tenant_leaves_room_for_others(
    embedder: ToyEmbedder,
) -> None:
    embedder.step_s = 60
    service = service_of(embedder)
    job = EmbeddingJob(inputs=["a"])
    theirs = Identity(tenant="theirs", accesses=frozenset(Access))
    waiting = [asyncio.ensure_future(service.embed(job, model="default", caller=OURS)) for _ in range(48)]
    await asyncio.sleep(0)
    with pytest.raises(CapacityError):
        await service.embed(job, model="default", caller=OURS)
    waiting += [
        asyncio.ensure_future(service.embed(job, model="default", caller=theirs)) for _ in range(MAX_REQUESTS - 48)
    ]
    await asyncio.sleep(0)
    with pytest.raises(CapacityError):
        await service.embed(job, model="default", caller=theirs)
    for each in waiting:
        each.cancel()
    await asyncio.wait(waiting)
    embedder.step_s = 0
    assert embedder.num_open == 0
    assert (await service.embed(job, model="default", caller=OURS)).num_tokens == 1


async def test_requests_and_tokens_are_counted_by_model(client: httpx.AsyncClient, embedder: ToyEmbedder) -> None:
    await client.post("/v1/embeddings", json={"input": ["abc", "de"]})
    embedder.error = EngineError("broken")
    await client.post("/v1/embeddings", json={"input": "x"})
    page = (await client.get("/metrics")).text
    assert 'vllm:request_prompt_tokens_sum{model_name="toy/letters"} 5.0' in page
    assert 'vllm:request_prompt_tokens_count{model_name="toy/letters"} 1.0' in page
    assert 'vllm:request_success_total{finished_reason="stop",model_name="toy/letters"} 1.0' in page
    assert 'vllm:request_success_total{finished_reason="error",model_name="toy/letters"} 1.0' in page
    assert 'vllm:e2e_request_latency_seconds_count{model_name="toy/letters"} 2.0' in page


async def test_ollamas_wire_gives_the_same_vectors(client: httpx.AsyncClient) -> None:
    body = {"model": f"{CARD.id}:latest", "input": ["abc", "h"], "keep_alive": "5m"}
    answer = (await client.post("/api/embed", json=body)).json()
    assert answer["model"] == CARD.id
    assert [close_to(letters_of(text)) for text in ("abc", "h")] == answer["embeddings"]
    assert answer["prompt_eval_count"] == 4
    one = (await client.post("/api/embeddings", json={"model": "default", "prompt": "abc"})).json()
    assert one["embedding"] == answer["embeddings"][0]


async def test_options_that_langchain_sends_empty_are_none(client: httpx.AsyncClient) -> None:
    names = "mirostat mirostat_eta mirostat_tau num_ctx num_gpu num_thread repeat_last_n repeat_penalty temperature"
    options = dict.fromkeys([*names.split(), "stop", "tfs_z", "top_k", "top_p"])
    for path, body in (("/api/embed", {"input": ["a"]}), ("/api/generate", {"prompt": "a", "stream": False})):
        for chosen in (options, {"mirostat": 0, "tfs_z": 1.0, "typical_p": 1, "repeat_last_n": -1}):
            answer = await client.post(path, json={"model": "default", **body, "options": chosen})
            assert answer.status_code == 200
        refused = await client.post(path, json={"model": "default", **body, "options": {"mirostat": 2}})
        assert refused.status_code == 400


async def test_ollamas_wire_describes_the_model(client: httpx.AsyncClient, embedder: ToyEmbedder) -> None:
    names = [model["name"] for model in (await client.get("/api/tags")).json()["models"]]
    assert names == ["toy/echo:latest", f"{CARD.id}:latest"]
    shown = (await client.post("/api/show", json={"model": f"{CARD.id}:latest"})).json()
    assert shown["capabilities"] == ["embedding"]
    assert shown["model_info"] == {"general.basename": CARD.id, "general.parameter_count": 8}
    assert "template" not in shown
    for loaded in ([], [f"{CARD.id}:latest"]):
        running = [model["name"] for model in (await client.get("/api/ps")).json()["models"]]
        assert running == ["toy/echo:latest", *loaded]
        await client.post("/api/embed", json={"model": "default", "input": "a"})


async def test_ollamas_wire_says_that_the_model_is_there_where_nothing_is_asked(client: httpx.AsyncClient) -> None:
    assert (await client.post("/api/embed", json={"model": "default"})).json()["embeddings"] == []
    assert (await client.post("/api/embeddings", json={"model": "default"})).json() == {"embedding": []}


async def test_ollamas_wire_too_cuts_only_on_demand(client: httpx.AsyncClient) -> None:
    body = {"model": "default", "input": "a" * 20}
    assert (await client.post("/api/embed", json=body)).status_code == 400
    assert (await client.post("/api/embed", json=body | {"truncate": True})).json()["prompt_eval_count"] == 16
