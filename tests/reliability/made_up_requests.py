"""Which of schemathesis's requests are not what it takes them for; it loads this by `SCHEMATHESIS_HOOKS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import schemathesis
from schemathesis import HookContext


@schemathesis.hook
def filter_body(context: HookContext, body: Any) -> bool:
    """Leave out forms with a field that is an empty list: it becomes no part at all, and the form a right one."""
    types = context.operation.schema.get_request_payload_content_types(context.operation)
    return "multipart/form-data" not in types or is_sent_as_it_is(body)


def is_sent_as_it_is(form: object) -> bool:
    """Whether each field of a form becomes at least one part."""
    return not isinstance(form, Mapping) or [] not in form.values()
