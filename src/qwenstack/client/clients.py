"""The clients: for each of a server's two applications one that waits and one that is awaited."""

from __future__ import annotations

import os
from typing import ClassVar, Generic, Self, TypeVar

import httpx

from qwenstack.client.administration import Adapters, Audit, Keys, UsageCalls
from qwenstack.client.batches import Batches
from qwenstack.client.chat import Chat
from qwenstack.client.completions import Completions, Tokenizer
from qwenstack.client.config import ADMINISTRATION, DEFAULT_TIMEOUT_S, PUBLIC, ClientConfig, Door
from qwenstack.client.embeddings import EmbeddingCalls
from qwenstack.client.files import Files
from qwenstack.client.models import Models
from qwenstack.client.responses import Responses
from qwenstack.client.retry import RetryPolicy
from qwenstack.client.transport import AsyncTransport, Transport

TransportT = TypeVar("TransportT", Transport, AsyncTransport)


class _Calls(Generic[TransportT]):
    """What can be asked for."""

    door: ClassVar[Door]
    """Of whom."""

    def __init__(self, transport: TransportT) -> None:
        self._transport = transport


class _PublicCalls(_Calls[TransportT]):
    door = PUBLIC

    def __init__(self, transport: TransportT) -> None:
        super().__init__(transport)
        self.chat = Chat(transport)
        self.completions = Completions(transport)
        self.responses = Responses(transport)
        self.embeddings = EmbeddingCalls(transport)
        self.files = Files(transport)
        self.batches = Batches(transport)
        self.models = Models(transport)
        self.tokens = Tokenizer(transport)


class _AdminCalls(_Calls[TransportT]):
    door = ADMINISTRATION

    def __init__(self, transport: TransportT) -> None:
        super().__init__(transport)
        self.keys = Keys(transport)
        self.usage = UsageCalls(transport)
        self.adapters = Adapters(transport)
        self.audit = Audit(transport)


class _Waiting(_Calls[Transport]):
    """Sends and waits; its subclasses also say what, and come after it."""

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
            base_url: the server's address; else what the environment says, else on this machine.
            api_key: else what the environment says, or none.
            timeout_s: how long the server may be silent.
            retries: how patient to be.
            transport: what carries the bytes, instead of the network.

        Raises:
            ConfigError: an address or a key cannot be one.
        """
        config = ClientConfig.read(os.environ, door=self.door, base_url=base_url, api_key=api_key, timeout_s=timeout_s)
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


class _Awaited(_Calls[AsyncTransport]):
    """Sends on an event loop; its subclasses also say what, and come after it."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: RetryPolicy = RetryPolicy(),
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Prepare; the arguments are those of the client that waits.

        Raises:
            ConfigError: an address or a key cannot be one.
        """
        config = ClientConfig.read(os.environ, door=self.door, base_url=base_url, api_key=api_key, timeout_s=timeout_s)
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


class Client(_Waiting, _PublicCalls[Transport]):
    """Asks a server and waits for its answers; may be shared by threads.

    The environment's names are `QWENSTACK_BASE_URL` and `QWENSTACK_API_KEY`, then `OPENAI_BASE_URL` and
    `OPENAI_API_KEY`; without any it asks http://127.0.0.1:8000.
    """


class AsyncClient(_Awaited, _PublicCalls[AsyncTransport]):
    """Asks a server from an event loop; the environment's names are those of `Client`."""


class AdminClient(_Waiting, _AdminCalls[Transport]):
    """Asks a server's administration and waits for its answers; may be shared by threads.

    The environment's names are `QWENSTACK_ADMIN_URL` and `QWENSTACK_ADMIN_KEY`; without them it asks
    http://127.0.0.1:8001.
    """


class AsyncAdminClient(_Awaited, _AdminCalls[AsyncTransport]):
    """Asks a server's administration from an event loop; the environment's names are those of `AdminClient`."""
