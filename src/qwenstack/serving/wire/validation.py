"""Turn the framework's list of complaints into one sentence that names the field, its value and the limit."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar, cast

from fastapi.exceptions import RequestValidationError as ValidationFailure
from pydantic import BaseModel, ValidationError

from qwenstack.core.errors import RequestError

__all__ = ["ValidationFailure", "describe_failure", "read_body"]

ModelT = TypeVar("ModelT", bound=BaseModel)


def read_body(model: type[ModelT], document: object) -> ModelT:
    """Read a body that did not come over HTTP as one that did.

    Raises:
        ValidationFailure: it is wrong.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        complaints = [{**complaint, "loc": ("body", *complaint["loc"])} for complaint in error.errors()]
        raise ValidationFailure(complaints, body=document) from None


class _ShortRepr(reprlib.Repr):
    """Shows enough of a value to recognise it; bodies can be megabytes."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80
        self.maxlong = 40
        self.maxlist = self.maxdict = 4
        self.maxlevel = 2

    def repr_NoneType(self, x: None, level: int) -> str:  # noqa: ARG002, N802 - found by the type's name
        return "null"


_UNKNOWN_TAG = re.compile(
    r"Input tag (?P<value>'.*') found using '(?P<field>\w+)' does not match any of the expected tags: (?P<known>.*)",
    re.DOTALL,
)
_OBJECT = re.compile(r"Input should be a valid dictionary( or (object to extract fields from|instance of \w+))?")


def describe_failure(failure: ValidationFailure) -> RequestError:
    """Describe the most specific complaint.

    A value that fits none of several types brings a complaint for each. One about a value comes before one about a
    type, which may not be the type that was meant, and a deep one before a shallow one.
    """
    body = cast("object", failure.body)
    complaints = [_read(complaint, body) for complaint in cast("Sequence[Mapping[str, object]]", failure.errors())]
    return _describe(max(complaints, key=lambda complaint: (not complaint.kind.endswith("_type"), complaint.depth)))


class _Complaint(NamedTuple):
    kind: str
    message: str
    param: str
    value: object
    depth: int


def _read(complaint: Mapping[str, object], body: object) -> _Complaint:
    """Follow a complaint's location through the body, leaving out the steps that only name a type."""
    kind, message = str(complaint["type"]), str(complaint["msg"])
    place, *steps = cast("Sequence[str | int]", complaint["loc"])
    if place != "body":  # a value of the address: it has a name and no parts
        return _Complaint(kind, message, str(steps[-1]), complaint.get("input"), 0)
    path, value, depth = "", body, 0
    for position, step in enumerate(steps, 1):
        if isinstance(step, int) and isinstance(value, list):
            items = cast("list[object]", value)
            path, value, depth = f"{path}[{step}]", items[step] if step < len(items) else None, depth + 1
        elif isinstance(step, str) and isinstance(value, dict):
            fields = cast("dict[str, object]", value)
            if step in fields or (kind == "missing" and position == len(steps)):
                path, value, depth = f"{path}.{step}" if path else step, fields.get(step), depth + 1
    return _Complaint(kind, message, path, value, depth)


def _describe(complaint: _Complaint) -> RequestError:
    kind, message, param, value, _ = complaint
    match kind:
        case "missing":
            return RequestError(f"`{param}` is missing.", param=param, code="missing_required_parameter")
        case "extra_forbidden":
            text = f"`{param}` is not a field of this API. Leave it out, or see /openapi.json for the fields there are."
            return RequestError(text, param=param, code="unknown_parameter")
        case "none_required":
            return RequestError(
                f"`{param}` is not supported here; leave it out.", param=param, code="unsupported_parameter"
            )
        case _:
            limit = _in_plain_words(message)
            subject = f"`{param}`" if param else "The body"
            return RequestError(
                f"{subject} is {_ShortRepr().repr(value)}; {_lower_first(limit)}.",
                param=param or None,
                code="invalid_value",
            )


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _in_plain_words(message: str) -> str:
    """Say without the validator's own terms what is expected."""
    if _OBJECT.fullmatch(message):
        return "it must be a JSON object"
    tag = _UNKNOWN_TAG.fullmatch(message)
    if tag is None:
        return message.replace("Input should", "it must", 1).replace(" after validation", "")
    return f"its `{tag['field']}` {_ShortRepr().repr(tag['value'][1:-1])} must be one of {tag['known']}"
