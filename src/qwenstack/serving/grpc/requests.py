"""From messages of the contract to the requests that HTTP has, whose checks and limits so hold here too.

Field names are the same in both, so a refusal names the field as the caller knows it. Lists are cut one item above
their limit before anything is made of them: the check then refuses them, and two megabytes of empty items cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TypeVar

from google.protobuf.message import Message as ProtoMessage
from pydantic import ValidationError

from qwenstack.core.errors import RequestError
from qwenstack.core.sampling_params import MAX_LOGIT_BIAS, MAX_STOP_STRINGS
from qwenstack.serving.embedding_service import MAX_INPUTS
from qwenstack.serving.grpc.v1.embeddings_pb2 import INPUT_TYPE_PASSAGE, INPUT_TYPE_QUERY, EmbedRequest
from qwenstack.serving.grpc.v1.generation_pb2 import GenerateRequest, ResponseFormat, ToolChoice
from qwenstack.serving.grpc.v1.messages_pb2 import (
    ROLE_ASSISTANT,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_USER,
    Message,
    Tool,
    ToolCall,
)
from qwenstack.serving.grpc.v1.tokens_pb2 import TokenizeRequest
from qwenstack.serving.strict_json import parse_json_object
from qwenstack.serving.wire import tokens as token_wire
from qwenstack.serving.wire.chat import MAX_MESSAGES, ChatCompletionRequest
from qwenstack.serving.wire.completions import CompletionRequest
from qwenstack.serving.wire.embeddings import EmbeddingRequest
from qwenstack.serving.wire.sampling import WireModel
from qwenstack.serving.wire.tools import MAX_TOOLS
from qwenstack.serving.wire.validation import ValidationFailure

Item = TypeVar("Item")
Wire = TypeVar("Wire", bound=WireModel)
Fields = dict[str, object]

# Optional scalars of the same name and meaning in both.
_SAMPLING_FIELDS = (
    "max_tokens",
    "min_tokens",
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "ignore_eos",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "priority",
    "cache_prompt",
)
_CHAT_FIELDS = ("parallel_tool_calls", "enable_thinking", "thinking_budget")
_ONLY_WITH_MESSAGES = ("tool_choice", "response_format", *_CHAT_FIELDS)

_ROLES: Mapping[int, str] = {
    ROLE_SYSTEM: "system",
    ROLE_USER: "user",
    ROLE_ASSISTANT: "assistant",
    ROLE_TOOL: "tool",
}
_MODES: Mapping[int, str] = {
    ToolChoice.MODE_NONE: "none",
    ToolChoice.MODE_AUTO: "auto",
    ToolChoice.MODE_REQUIRED: "required",
}
_INPUT_TYPES: Mapping[int, str] = {INPUT_TYPE_QUERY: "query", INPUT_TYPE_PASSAGE: "passage"}


def read_generation(request: GenerateRequest) -> ChatCompletionRequest | CompletionRequest:
    """Return what a request asks for: to go on with a conversation, or with a text.

    Raises:
        RequestError: it asks for both, or for neither, or a field is wrong.
        ValidationFailure: a value is outside its range.
    """
    if not _is_conversation(request):
        _refuse_beside_prompt(request)
        fields = _sampling_of(request) | {"prompt": request.prompt}
        if request.HasField("logprobs"):
            fields["logprobs"] = request.logprobs
        return _checked(CompletionRequest, fields)
    fields = _sampling_of(request) | _conversation_of(request) | _present(request, _CHAT_FIELDS)
    if request.HasField("tool_choice"):
        fields["tool_choice"] = _tool_choice(request.tool_choice)
    if request.HasField("response_format"):
        fields["response_format"] = _response_format(request.response_format)
    if request.HasField("logprobs"):
        fields |= {"logprobs": True, "top_logprobs": request.logprobs}
    return _checked(ChatCompletionRequest, fields)


def read_tokenization(request: TokenizeRequest) -> token_wire.TokenizeRequest:
    """Return what is to be turned into tokens.

    Raises:
        RequestError: it is not one of a text and a conversation, or a field is wrong.
        ValidationFailure: a value is outside its range.
    """
    fields: Fields = {"model": request.model} if request.model else {}
    if not _is_conversation(request):
        _refuse_beside_prompt(request)
        return _checked(token_wire.TokenizeRequest, fields | {"prompt": request.prompt})
    fields |= _conversation_of(request)
    if request.HasField("enable_thinking"):
        fields["chat_template_kwargs"] = {"enable_thinking": request.enable_thinking}
    return _checked(token_wire.TokenizeRequest, fields)


def read_embedding(request: EmbedRequest) -> EmbeddingRequest:
    """Return what is to be embedded.

    Raises:
        RequestError: the type is unknown.
        ValidationFailure: a value is outside its range.
    """
    fields = _present(request, ("dimensions",)) | {"input": _cut(request.input, MAX_INPUTS)}
    if request.model:
        fields["model"] = request.model
    if request.input_type:
        if request.input_type not in _INPUT_TYPES:
            raise _unknown("input_type", request.input_type, "INPUT_TYPE_QUERY or INPUT_TYPE_PASSAGE")
        fields["input_type"] = _INPUT_TYPES[request.input_type]
    return _checked(EmbeddingRequest, fields | {"truncate": request.truncate})


def _is_conversation(request: GenerateRequest | TokenizeRequest) -> bool:
    if bool(request.messages) == request.HasField("prompt"):
        raise RequestError("Give one of `messages` and `prompt`.", param="messages", code="invalid_value")
    return bool(request.messages)


def _refuse_beside_prompt(request: GenerateRequest | TokenizeRequest) -> None:
    known = request.DESCRIPTOR.fields_by_name
    given = [name for name in _ONLY_WITH_MESSAGES if name in known and request.HasField(name)]
    if request.tools:
        given.append("tools")
    if given:
        text = f"`{given[0]}` needs a conversation in `messages`, and there is a `prompt`; leave one of them out."
        raise RequestError(text, param=given[0], code="unsupported_parameter")


def _sampling_of(request: GenerateRequest) -> Fields:
    fields = _present(request, _SAMPLING_FIELDS)
    if request.model:
        fields["model"] = request.model
    if request.stop:
        fields["stop"] = _cut(request.stop, MAX_STOP_STRINGS)
    if request.stop_token_ids:
        fields["stop_token_ids"] = _cut(request.stop_token_ids, MAX_LOGIT_BIAS)
    if request.logit_bias:
        biases = _cut(request.logit_bias.items(), MAX_LOGIT_BIAS)
        fields["logit_bias"] = {str(token_id): bias for token_id, bias in biases}
    return fields


def _conversation_of(request: GenerateRequest | TokenizeRequest) -> Fields:
    messages = _cut(request.messages, MAX_MESSAGES)
    fields: Fields = {"messages": [_message(message, f"messages[{at}]") for at, message in enumerate(messages)]}
    if request.tools:
        tools = _cut(request.tools, MAX_TOOLS)
        fields["tools"] = [_tool(tool, f"tools[{at}].function.parameters") for at, tool in enumerate(tools)]
    return fields


def _message(message: Message, where: str) -> Fields:
    role = _ROLES.get(message.role)
    if role is None:
        names = "ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT or ROLE_TOOL"
        raise _unknown(f"{where}.role", message.role, names)
    fields = _present(message, ("content", "reasoning_content", "tool_call_id"))
    if message.tool_calls:
        fields["tool_calls"] = [_tool_call(call) for call in _cut(message.tool_calls, MAX_TOOLS)]
    return fields | {"role": role}


def _tool_call(call: ToolCall) -> Fields:
    return {"id": call.id, "function": {"name": call.function.name, "arguments": call.function.arguments}}


def _tool(tool: Tool, where: str) -> Fields:
    function = _present(tool.function, ("description",)) | {"name": tool.function.name}
    if tool.function.HasField("parameters"):
        function["parameters"] = parse_json_object(tool.function.parameters, where)
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice) -> object:
    if choice.WhichOneof("choice") == "function":
        return {"type": "function", "function": {"name": choice.function}}
    if choice.mode not in _MODES:
        raise _unknown("tool_choice.mode", choice.mode, "MODE_NONE, MODE_AUTO or MODE_REQUIRED")
    return _MODES[choice.mode]


def _response_format(text_format: ResponseFormat) -> Fields:
    if text_format.HasField("json_schema") != (text_format.type == ResponseFormat.TYPE_JSON_SCHEMA):
        text = "`response_format.json_schema` and TYPE_JSON_SCHEMA need each other."
        raise RequestError(text, param="response_format.json_schema", code="invalid_value")
    match text_format.type:
        case ResponseFormat.TYPE_TEXT:
            return {"type": "text"}
        case ResponseFormat.TYPE_JSON_OBJECT:
            return {"type": "json_object"}
        case ResponseFormat.TYPE_JSON_SCHEMA:
            schema = parse_json_object(text_format.json_schema, "response_format.json_schema")
            return {"type": "json_schema", "json_schema": {"schema": schema}}
        case _:
            names = "TYPE_TEXT, TYPE_JSON_OBJECT or TYPE_JSON_SCHEMA"
            raise _unknown("response_format.type", text_format.type, names)


def _present(message: ProtoMessage, names: Iterable[str]) -> Fields:
    """Return those of the optional fields that the caller set."""
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def _cut(items: Iterable[Item], limit: int) -> list[Item]:
    return list(islice(items, limit + 1))


def _unknown(param: str, value: int, names: str) -> RequestError:
    return RequestError(f"`{param}` is {value}; it must be {names}.", param=param, code="invalid_value")


def _checked(wire: type[Wire], fields: Fields) -> Wire:
    try:
        return wire.model_validate(fields)
    except ValidationError as error:
        # As the framework reports the same about a body of JSON.
        complaints = [
            {**complaint, "loc": ("body", *complaint["loc"])} for complaint in error.errors(include_url=False)
        ]
        raise ValidationFailure(complaints, body=fields) from None
