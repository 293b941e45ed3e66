"""What is served."""

from __future__ import annotations

from typing import TypeVar

from qwenstack.client.call import Call, get, segment
from qwenstack.client.endpoint import Endpoint, Group
from qwenstack.client.transport import AsyncTransport, Transport
from qwenstack.client.types import Model, ModelList

TransportT = TypeVar("TransportT", bound=Transport | AsyncTransport, covariant=True)


def describe_list() -> Call[ModelList]:
    """List what this key may use."""
    return get("/v1/models", ModelList)


def describe_retrieve(model: str) -> Call[Model]:
    """Describe one model; `default` is one."""
    return get(f"/v1/models/{segment(model)}", Model)


class Models(Group[TransportT]):
    """What is served."""

    list = Endpoint(describe_list)
    retrieve = Endpoint(describe_retrieve)
