"""Whatever a body says, the answer is a success or a refusal that names the field; never a failure of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_llm import ToyLLM

from qwenstack.serving import ServeConfig, create_app
from qwenstack.serving.wire.chat import ChatCompletionRequest
from qwenstack.serving.wire.completions import CompletionRequest

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS = (
    st.none() | st.booleans() | st.integers(-3, 30) | st.integers() | TEXT
    | st.floats(allow_nan=False, allow_infinity=False)
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXT | VALUES},
    optional={"tool_calls": VALUES, "name": VALUES, "reasoning_content": VALUES},
)


def bodies(model: type, **required: st.SearchStrategy) -> st.SearchStrategy[dict]:
    fields = st.dictionaries(st.sampled_from(sorted(model.model_fields)) | TEXT, VALUES, max_size=4)
    return st.builds(lambda base, more: base | more, st.fixed_dictionaries(required), fields)


Post = Callable[[str, dict], httpx.Response]


@pytest.fixture(scope="module")
def post() -> Iterator[Post]:
    """Post to one application, in one event loop."""
    client = httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(ToyLLM(), ServeConfig())), base_url="http://localhost"
    )
    with asyncio.Runner() as runner:
        yield lambda path, body: runner.run(client.post(path, json=body))
        runner.run(client.aclose())


def check(response: httpx.Response) -> None:
    assert response.status_code in {200, 400, 404}, response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"]


@given(body=bodies(ChatCompletionRequest, messages=st.lists(MESSAGE, max_size=3)))
@settings(deadline=None, max_examples=200)
def test_no_chat_body_makes_the_server_fail(post: Post, body: dict) -> None:
    check(post("/v1/chat/completions", body))


@given(body=bodies(CompletionRequest, prompt=TEXT | VALUES))
@settings(deadline=None, max_examples=200)
def test_no_completion_body_makes_the_server_fail(post: Post, body: dict) -> None:
    check(post("/v1/completions", body))
