"""The OpenAPI document: the framework's, with the shapes of streamed events added."""

from __future__ import annotations

from typing import cast

from fastapi import FastAPI
from pydantic import TypeAdapter

from qwenstack.serving.wire.chat import ChatCompletionChunk
from qwenstack.serving.wire.completions import CompletionChunk
from qwenstack.serving.wire.responses import ResponseEvent

API_VERSION = "1.0.0"
"""Of the HTTP interface, not of the package: a client that worked goes on working within a major number."""

API_DESCRIPTION = """
A Qwen model behind OpenAI's API. Point any OpenAI client at `/v1`.

- `model` is the id from `/v1/models`, or `default`.
- Values that a request leaves out come from the model's own recommendation.
- A field that is not listed here is refused, never ignored. Some are accepted and ignored, because common clients send
  them; their descriptions say so.
- Functions given in `tools` are shown to the model. Its calls come back in `tool_calls`, its thinking in
  `reasoning_content`.
- Every error has the body `{"error": {"message", "type", "param", "code"}}`; `param` names the field.
- Every answer has an `X-Request-Id`, which the server chooses and its log uses.
"""

_REFS = "#/components/schemas/{model}"


def build_openapi(app: FastAPI) -> dict[str, object]:
    """Build the document."""
    document = cast("dict[str, dict[str, dict[str, object]]]", app.openapi())
    schemas = document["components"]["schemas"]
    for shape in (ChatCompletionChunk, CompletionChunk, ResponseEvent):
        schema = cast("dict[str, object]", TypeAdapter(shape).json_schema(ref_template=_REFS, mode="serialization"))
        schemas.update(cast("dict[str, object]", schema.pop("$defs", {})))
        schemas[shape.__name__] = schema
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    return cast("dict[str, object]", document)
