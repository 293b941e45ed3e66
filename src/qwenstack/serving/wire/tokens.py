"""Texts and tokens: what vLLM's and llama.cpp's clients ask of a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, cast

from pydantic import Field
from typing_extensions import TypedDict

from qwenstack.core.errors import RequestError
from qwenstack.core.messages import Message
from qwenstack.serving.service import DEFAULT_MODEL_NAME
from qwenstack.serving.wire.chat import MAX_MESSAGES, ChatMessageRequest, ChatTemplateKwargs, Tool
from qwenstack.serving.wire.sampling import WireModel
from qwenstack.serving.wire.tools import MAX_TOOLS

MAX_TOKEN_IDS = 1 << 20

Messages = Annotated[list[ChatMessageRequest], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class ConversationFields(WireModel):
    """A conversation, and what its template is told."""

    model: str = DEFAULT_MODEL_NAME
    """The id from `/v1/models`, or `default`."""
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True)
    """Functions that are shown to the model."""
    chat_template_kwargs: ChatTemplateKwargs | None = None
    """What the chat template is told."""

    def to_tools(self) -> list[Mapping[str, object]] | None:
        """Return the tools as the template reads them."""
        tools = [tool.as_function() for tool in self.tools or ()]
        return tools or None

    @property
    def wants_thinking(self) -> bool | None:
        """What the request says about thinking."""
        return self.chat_template_kwargs.enable_thinking if self.chat_template_kwargs else None


class ApplyTemplateRequest(ConversationFields):
    """A conversation to write as the model reads it."""

    messages: Messages

    def to_messages(self) -> list[Message]:
        """Translate into the words of the core."""
        return [message.to_message(index) for index, message in enumerate(self.messages)]


class ApplyTemplateResponse(TypedDict):
    """The conversation as the model reads it."""

    prompt: str


class TokenizeRequest(ConversationFields):
    """A text, or a conversation, to turn into tokens."""

    prompt: str | None = None
    """A text; literal control tokens in it stay text."""
    content: str | None = None
    """llama.cpp's name of `prompt`."""
    messages: Messages | None = None
    """A conversation, instead of a text."""
    with_pieces: bool | None = None
    """Return each token with its text."""
    add_special: bool | None = None
    """Accepted and ignored: what the model wants before each text is there."""
    add_special_tokens: bool | None = None
    """Accepted and ignored, as `add_special`."""

    def source(self) -> str | list[Message]:
        """Return the text, or the conversation.

        Raises:
            RequestError: there is not exactly one of them.
        """
        given = [value for value in (self.prompt, self.content, self.messages) if value is not None]
        if len(given) != 1:
            text = "Give one of `prompt`, `content` and `messages`."
            raise RequestError(text, param="prompt", code="invalid_value")
        if self.messages is None:
            return cast("str", given[0])
        return [message.to_message(index) for index, message in enumerate(self.messages)]


class TokenPiece(TypedDict):
    """A token and its text."""

    id: int
    piece: str | list[int]
    """Its bytes, where they are no text."""


class TokenizeResponse(TypedDict):
    """The tokens of a text."""

    tokens: list[int] | list[TokenPiece]
    count: int
    max_model_len: int


class DetokenizeRequest(WireModel):
    """Tokens to turn into text."""

    tokens: list[Annotated[int, Field(ge=0)]] = Field(max_length=MAX_TOKEN_IDS, fail_fast=True)
    model: str = DEFAULT_MODEL_NAME
    """The id from `/v1/models`, or `default`."""


class DetokenizeResponse(TypedDict):
    """The text of tokens."""

    content: str


def write_piece(token_id: int, value: bytes) -> TokenPiece:
    """Write a token with its text."""
    try:
        return {"id": token_id, "piece": value.decode()}
    except UnicodeDecodeError:
        return {"id": token_id, "piece": list(value)}
