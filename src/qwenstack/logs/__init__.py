"""How every process of ours logs: one chain, from the standard library's loggers to lines on standard error.

Modules log with `logging.getLogger(__name__)` and give further facts in `extra`; `logging_to` says, once in a process,
how the lines look. What a request is called is added to everything that is logged while it is served
(`request_context`). Secrets, and whatever a caller wrote, are taken out on the way (`Redactor`).
"""

from qwenstack.logs.chain import LogConfig, logging_to
from qwenstack.logs.context import RequestContext, current_request, request_context
from qwenstack.logs.failure import describe_failure
from qwenstack.logs.redaction import Redactor

__all__ = [
    "LogConfig",
    "Redactor",
    "RequestContext",
    "current_request",
    "describe_failure",
    "logging_to",
    "request_context",
]
