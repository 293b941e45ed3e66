"""The places of a server for calls, and who holds them: nobody can take all of them, however much they may use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from qwenstack.core.errors import CapacityError
from qwenstack.serving.errors import RateLimitError
from qwenstack.serving.identity import Access, Identity
from qwenstack.serving.limiter import ANOTHER_ENDS_S

MAX_CALLS = 1024
"""Open at the same time in all; more are refused with RESOURCE_EXHAUSTED before anything of them is read."""
MAX_CALLS_OF_ONE = MAX_CALLS // 4
"""Open at the same time of one tenant; and in all of those that anybody may make, watchers among them."""
_PUBLIC_LINE = ""


class Places:
    """Counts the calls that are open, by whose they are."""

    def __init__(self) -> None:
        """Begin with every place free."""
        self._num_open = Counter[str]()

    @contextmanager
    def hold(self, identity: Identity, access: Access) -> Generator[None]:
        """Hold a place in this block: one of the tenant's or, where anybody may call, one of everybody's.

        Raises:
            CapacityError: callers without a key hold all that are theirs.
            RateLimitError: the tenant holds all that it may.
        """
        line = _PUBLIC_LINE if access is Access.PUBLIC else identity.line
        # Where nobody needs a key, nobody can be told from others: they have all that is left.
        is_open_to_all = access is not Access.PUBLIC and identity.may(access) and not identity.is_known
        if self._num_open[line] >= (MAX_CALLS if is_open_to_all else MAX_CALLS_OF_ONE):
            raise _refusal(access)
        self._num_open[line] += 1
        try:
            yield
        finally:
            self._num_open[line] -= 1
            if self._num_open[line] == 0:
                del self._num_open[line]


def _refusal(access: Access) -> Exception:
    if access is Access.PUBLIC:
        return CapacityError(f"{MAX_CALLS_OF_ONE} calls without a key are open already. Try again later.")
    text = f"{MAX_CALLS_OF_ONE} of your calls are open, as many as a tenant may have. Try again when one has ended."
    return RateLimitError(text, kind="concurrency", retry_after_s=ANOTHER_ENDS_S)
