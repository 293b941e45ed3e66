"""What every wire asks of the embedding model: check a request, count it, embed it, shorten the vectors.

A wire translates its own words into an `EmbeddingJob` and an `Embeddings` back; nothing here knows how it travelled.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from qwenstack.core.embedding import EmbeddingInput, InputType, Vector, shorten
from qwenstack.core.errors import CapacityError, RequestError
from qwenstack.core.protocols import Embedder, EmbedderCard
from qwenstack.serving.errors import ForbiddenModelError, UnknownModelError
from qwenstack.serving.identity import Identity
from qwenstack.serving.limiter import Limiter
from qwenstack.serving.metrics import EmbeddingTimer, Metrics
from qwenstack.serving.service import DEFAULT_MODEL_NAME, LATEST

MAX_INPUTS = 2048
"""Of one request; OpenAI's number."""
MAX_REQUEST_TOKENS = 300_000
"""Of all inputs together; OpenAI's number."""
MAX_REQUESTS = 64
"""Embedded or waiting at a time; more are refused."""
_MAX_REQUESTS_OF_TENANT = 48
"""The rest is for others. The nameless tenant of a server without keys may have all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingJob:
    """What is to be embedded, and how."""

    inputs: Sequence[str | Sequence[int]]
    """Texts, or token ids where the model takes them."""
    input_type: InputType | None = None
    """What the texts are to the model; None: as each says itself, or the model's first type."""
    dimensions: int | None = None
    """Numbers of a vector; None: all that the model gives."""
    truncate: bool = False
    """Leave out the end of what is too long, instead of refusing it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """What came of a job."""

    model: str
    vectors: Sequence[Vector]
    """One for each input, of length one."""
    num_tokens: int
    """Tokens that were computed."""


class EmbeddingService:
    """The embedding model as the wires see it; without one it refuses every request with the reason."""

    def __init__(self, embedder: Embedder | None, metrics: Metrics, limiter: Limiter) -> None:
        """Serve a model, or none, as much as `limiter` lets through."""
        self._embedder = embedder
        self._metrics = metrics
        self._limiter = limiter
        self._places = _Places()

    @property
    def card(self) -> EmbedderCard | None:
        """What clients are told; None where nothing is embedded here."""
        return None if self._embedder is None else self._embedder.card

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._embedder is not None and self._embedder.is_loaded

    def is_named(self, model: str) -> bool:
        """Whether this is the id of the model that embeds."""
        return self.card is not None and model in {self.card.id, self.card.id + LATEST}

    def card_for(self, caller: Identity) -> EmbedderCard | None:
        """Return the model that somebody may use."""
        card = self.card
        return card if card is not None and _may_use(card, caller) else None

    def check_model(self, model: str, caller: Identity) -> EmbedderCard:
        """Return the model that a request names; `default` is a name of it too.

        Raises:
            UnknownModelError: it is none that embeds here.
            ForbiddenModelError: the caller may not use it.
        """
        card = self.card
        if card is None:
            text = "This server embeds nothing: it was started with `--embedding-model off`."
            raise UnknownModelError(text, param="model", code="model_not_found")
        if not self.is_named(model) and model not in {DEFAULT_MODEL_NAME, DEFAULT_MODEL_NAME + LATEST}:
            known = f"it is {card.id!r} that does" if _may_use(card, caller) else "none does for this API key"
            text = f"The model {model[:200]!r} does not embed texts here; {known}."
            raise UnknownModelError(text, param="model", code="model_not_found")
        if not _may_use(card, caller):
            text = f"This API key is not for the model {model[:200]!r}."
            raise ForbiddenModelError(text, param="model", code="model_not_allowed")
        return card

    async def embed(self, job: EmbeddingJob, *, model: str, caller: Identity) -> Embeddings:
        """Embed the inputs of a job; all of them, or none where one is refused.

        Raises:
            RequestError: as `check_model`; an input is too long, empty or no text; or the job asks for what the model
                does not give.
            RateLimitError: the caller has used what it may.
            CapacityError: too many others are waiting.
            EngineError: the model failed.
        """
        card = self.check_model(model, caller)
        _check_job(job, card)
        assert self._embedder is not None, "there is a card"
        if not job.inputs:
            return Embeddings(model=card.id, vectors=(), num_tokens=0)
        with self._places.take(caller.tenant), EmbeddingTimer(self._metrics, card.id) as timer:
            with self._limiter.reading(caller):
                inputs = await self._embedder.prepare(
                    job.inputs, input_type=job.input_type, truncate=job.truncate, tenant=caller.tenant
                )
            num_tokens = _count(inputs, card)
            with self._limiter.reserve(caller, prompt_tokens=num_tokens, answer_tokens=0) as reservation:
                try:
                    vectors = await self._embedder.embed(inputs, tenant=caller.tenant)
                except asyncio.CancelledError:
                    reservation.prompt_tokens = num_tokens  # whoever leaves has had them read all the same
                    raise
                reservation.prompt_tokens = num_tokens
            timer.finish(num_tokens)
        dimensions = card.dimensions if job.dimensions is None else job.dimensions
        if dimensions < card.dimensions:
            vectors = await asyncio.to_thread(_shortened, vectors, dimensions)
        return Embeddings(model=card.id, vectors=vectors, num_tokens=num_tokens)


class _Places:
    """Requests that are embedded or wait, by tenant."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    @contextmanager
    def take(self, tenant: str) -> Generator[None]:
        """Hold a place.

        Raises:
            CapacityError: there is none, or the tenant has its share.
        """
        limit = _MAX_REQUESTS_OF_TENANT if tenant else MAX_REQUESTS
        if self._taken.total() >= MAX_REQUESTS or self._taken[tenant] >= limit:
            text = f"{self._taken.total()} requests for embeddings are waiting already; try again in a moment."
            raise CapacityError(text)
        self._taken[tenant] += 1
        try:
            yield
        finally:
            self._taken[tenant] -= 1
            self._taken += Counter()  # drops those who have none


def _shortened(vectors: Sequence[Vector], dimensions: int) -> list[Vector]:
    return [shorten(vector, dimensions) for vector in vectors]


def _may_use(card: EmbedderCard, caller: Identity) -> bool:
    return caller.models is None or card.id in caller.models


def _check_job(job: EmbeddingJob, card: EmbedderCard) -> None:
    """Refuse what the model does not give.

    Raises:
        RequestError: it asks for that.
    """
    if len(job.inputs) > MAX_INPUTS:
        text = f"`input` has {len(job.inputs)} texts; one request takes {MAX_INPUTS}. Send several requests."
        raise RequestError(text, param="input", code="invalid_value")
    if job.dimensions is not None and not card.min_dimensions <= job.dimensions <= card.dimensions:
        allowed = (
            f"only {card.dimensions}; leave the field out"
            if card.min_dimensions == card.dimensions
            else f"{card.min_dimensions} to {card.dimensions}"
        )
        text = f"`dimensions` is {job.dimensions}; {card.id} gives {allowed}."
        raise RequestError(text, param="dimensions", code="invalid_value")
    if job.input_type is not None and job.input_type not in card.input_types:
        text = (
            f"`input_type` is {job.input_type!r}; {card.id} reads its instruction in the text itself. Write it there, "
            "and leave the field out."
        )
        raise RequestError(text, param="input_type", code="invalid_value")


def _count(inputs: Sequence[EmbeddingInput], card: EmbedderCard) -> int:
    """Return the tokens of all inputs.

    Raises:
        RequestError: one input has too many, or all together.
    """
    for index, each in enumerate(inputs):
        if each.num_tokens > card.max_tokens:
            text = (
                f"`input[{index}]` has {each.num_tokens} tokens; {card.id} reads {card.max_tokens}. Send it in parts, "
                "or set `truncate` to leave out its end."
            )
            raise RequestError(text, param="input", code="context_length_exceeded")
    num_tokens = sum(each.num_tokens for each in inputs)
    if num_tokens > MAX_REQUEST_TOKENS:
        text = f"`input` has {num_tokens} tokens in all; one request takes {MAX_REQUEST_TOKENS}. Send several requests."
        raise RequestError(text, param="input", code="invalid_value")
    return num_tokens
