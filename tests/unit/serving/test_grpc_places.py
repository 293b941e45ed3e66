"""Places for calls: a tenant has its share, and who cannot be told from others has what there is."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from qwenstack.core.errors import CapacityError
from qwenstack.serving.errors import RateLimitError
from qwenstack.serving.grpc.places import MAX_CALLS, MAX_CALLS_OF_ONE, Places
from qwenstack.serving.identity import STRANGER, Access, Identity, KeyRing

ANYBODY = KeyRing().identify(None, now_ms=0)
TENANT = Identity(tenant="a", accesses=frozenset({Access.INFERENCE}))


@pytest.mark.parametrize(
    ("caller", "access", "most", "refusal"),
    [
        (TENANT, Access.INFERENCE, MAX_CALLS_OF_ONE, RateLimitError),
        (TENANT, Access.PUBLIC, MAX_CALLS_OF_ONE, CapacityError),
        (STRANGER, Access.INFERENCE, MAX_CALLS_OF_ONE, RateLimitError),
        (ANYBODY, Access.INFERENCE, MAX_CALLS, RateLimitError),
    ],
)
def test_sec_22_so_many_calls_are_open_and_the_next_when_one_has_ended(
    caller: Identity, access: Access, most: int, refusal: type[Exception]
) -> None:
    places = Places()
    with ExitStack() as held:
        for _ in range(most):
            held.enter_context(places.hold(caller, access))
        with pytest.raises(refusal), places.hold(caller, access):
            pass
        with places.hold(Identity(tenant="b", accesses=frozenset({Access.INFERENCE})), Access.INFERENCE):
            pass  # another's is there
    with places.hold(caller, access):
        pass
