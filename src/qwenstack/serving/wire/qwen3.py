"""The smallest wire: a prompt in, a text out."""

from __future__ import annotations

from pydantic import Field
from typing_extensions import TypedDict

from qwenstack.serving.wire.sampling import MAX_TOKENS, WireModel

DEFAULT_MAX_LENGTH = 256


class GenerateRequest(WireModel):
    """One message to the model."""

    prompt: str = Field(min_length=1)
    """What the user says."""
    max_length: int = Field(DEFAULT_MAX_LENGTH, ge=1, le=MAX_TOKENS)
    """New tokens at most."""


class GenerateResponse(TypedDict):
    """The model's answer."""

    output: str
