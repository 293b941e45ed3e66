"""The toy model and an in-process client for it."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from toy_llm import ToyLLM

from qwenstack.serving import ServeConfig, create_app


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def llm() -> ToyLLM:
    return ToyLLM()


@pytest.fixture
async def client(llm: ToyLLM) -> AsyncGenerator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(llm, ServeConfig())), base_url="http://127.0.0.1:8000"
    ) as client:
        yield client
