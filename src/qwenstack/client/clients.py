"""The two clients: `Client` waits, `AsyncClient` is awaited; what they can do is the same."""

from __future__ import annotations

import os
from typing import Generic, Self, TypeVar

import httpx

from qwenstack.client.batches import Batches
from qwenstack.client.chat import Chat
from qwenstack.client.completions import Completions, Tokenizer
from qwenstack.client.config import DEFAULT_TIMEOUT_S, ClientConfig
from qwenstack.client.embeddings import EmbeddingCalls
from qwenstack.client.files import Files
from qwenstack.client.models import Models
from qwenstack.client.responses import Responses
from qwenstack.client.retry import RetryPolicy
from qwenstack.client.transport import AsyncTransport, Transport

TransportT = TypeVar("TransportT", Transport, AsyncTransport)


class _Groups(Generic[TransportT]):
    """What can be asked for."""

    def __init__(self, transport: TransportT) -> None:
        self._transport = transport
        self.chat = Chat(transport)
        self.completions = Completions(transport)
        self.responses = Responses(transport)
        self.embeddings = EmbeddingCalls(transport)
        self.files = Files(transport)
        self.batches = Batches(transport)
        self.models = Models(transport)
        self.tokens = Tokenizer(transport)


class Client(_Groups[Transport]):
    """Asks a server and waits for its answers; may be shared by threads."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: RetryPolicy = RetryPolicy(),
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            base_url: the server's address; else `QWENSTACK_BASE_URL`, `OPENAI_BASE_URL`, http://127.0.0.1:8000.
            api_key: else `QWENSTACK_API_KEY`, `OPENAI_API_KEY`, or none.
            timeout_s: how long the server may be silent.
            retries: how patient to be.
            transport: what carries the bytes, instead of the network.

        Raises:
            ConfigError: an address or a key cannot be one.
        """
        config = ClientConfig.read(os.environ, base_url=base_url, api_key=api_key, timeout_s=timeout_s)
        self._http = httpx.Client(
            base_url=config.base_url, headers=config.headers, timeout=config.timeout, transport=transport
        )
        super().__init__(Transport(self._http, retries))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()


class AsyncClient(_Groups[AsyncTransport]):
    """Asks a server from an event loop."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: RetryPolicy = RetryPolicy(),
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Prepare; the arguments are those of `Client`.

        Raises:
            ConfigError: an address or a key cannot be one.
        """
        config = ClientConfig.read(os.environ, base_url=base_url, api_key=api_key, timeout_s=timeout_s)
        self._http = httpx.AsyncClient(
            base_url=config.base_url, headers=config.headers, timeout=config.timeout, transport=transport
        )
        super().__init__(AsyncTransport(self._http, retries))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()
