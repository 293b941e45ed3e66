"""A client of qwenstack's server for Python programs.

    with Client() as client:
        print(client.chat.create([{"role": "user", "content": "Hello!"}]).text)

Each call is described once, as a value (`call`), in the module of its group; `Client` and `AsyncClient` differ only in
who sends it, and so do `AdminClient` and `AsyncAdminClient`. It knows nothing of the server's code.
"""

from qwenstack.client.administration import (
    Adapter,
    ApiKey,
    AuditEntry,
    AuditVerification,
    DayOfUse,
    KeyLimits,
    NewApiKey,
)
from qwenstack.client.batches import Batch, BatchAnswer
from qwenstack.client.clients import AdminClient, AsyncAdminClient, AsyncClient, Client
from qwenstack.client.embeddings import Embeddings
from qwenstack.client.errors import (
    AuthenticationError,
    BadRequestError,
    BatchError,
    ClientError,
    ConflictError,
    ConnectionFailedError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    StatusError,
    TimedOutError,
    UnreadableAnswerError,
)
from qwenstack.client.files import StoredFile
from qwenstack.client.responses import Response, ResponseEvent
from qwenstack.client.retry import RetryPolicy
from qwenstack.client.transport import AsyncStream, Stream
from qwenstack.client.types import (
    ChatChunk,
    ChatCompletion,
    Completion,
    FunctionCall,
    Message,
    Model,
    ToolCall,
    Usage,
)

__all__ = [
    "Adapter",
    "AdminClient",
    "ApiKey",
    "AsyncAdminClient",
    "AsyncClient",
    "AsyncStream",
    "AuditEntry",
    "AuditVerification",
    "AuthenticationError",
    "BadRequestError",
    "Batch",
    "BatchAnswer",
    "BatchError",
    "ChatChunk",
    "ChatCompletion",
    "Client",
    "ClientError",
    "Completion",
    "ConflictError",
    "ConnectionFailedError",
    "DayOfUse",
    "Embeddings",
    "FunctionCall",
    "KeyLimits",
    "Message",
    "Model",
    "NewApiKey",
    "NotFoundError",
    "OverloadedError",
    "PermissionDeniedError",
    "RateLimitError",
    "Response",
    "ResponseEvent",
    "RetryPolicy",
    "ServerError",
    "StatusError",
    "StoredFile",
    "Stream",
    "TimedOutError",
    "ToolCall",
    "UnreadableAnswerError",
    "Usage",
]
