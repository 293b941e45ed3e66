"""How the engine treats a request: who asks, how urgent it is, what may be shared.

`SamplingParams` beside it say what is generated.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwenstack.core.errors import RequestError

MAX_PRIORITY = 10
MAX_NAME_CHARS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """Treatment of one request. Only `adapter` changes what is generated.

    Raises:
        RequestError: a value is outside its range; `param` names the field.
    """

    tenant: str = ""
    """Who asks; set by the server, never by the client. Tenants share the machine evenly and no cached prefix."""
    priority: int = 0
    """Lower runs earlier, as in vLLM; a level counts as having arrived 500 steps earlier or later."""
    prefix_cache: bool = True
    """Whether keys and values of earlier requests may be used, and these be kept for later ones."""
    speculation: bool = True
    """Whether several tokens may be guessed and checked in one step; never changes the result."""
    adapter: str | None = None
    """Name of a loaded LoRA adapter; None: the model as it is."""
    stream: bool = True
    """Whether each step tells at once what it added; else, after the first token, 16 tokens are told together."""

    def __post_init__(self) -> None:
        """Check every range once."""
        if isinstance(self.priority, bool) or not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise RequestError(
                f"`priority` is {self.priority!r}; it must lie between {-MAX_PRIORITY} and {MAX_PRIORITY}.",
                param="priority",
                code="invalid_value",
            )
        for name in ("tenant", "adapter"):
            value: str | None = getattr(self, name)
            if value is not None and len(value) > MAX_NAME_CHARS:
                raise RequestError(
                    f"`{name}` has {len(value)} characters; at most {MAX_NAME_CHARS} are taken.",
                    param=name,
                    code="invalid_value",
                )
