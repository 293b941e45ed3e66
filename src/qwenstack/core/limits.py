"""How much one caller may ask for: words that settings, the database and the server share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated

from qwenstack.core.config_value import Between
from qwenstack.core.errors import ConfigError

MAX_LIMIT = 10**12
"""More than any machine does in a day, and few enough digits for every database."""
_Count = Annotated[int, Between(low=1, high=MAX_LIMIT)] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a caller may use; None: no limit.

    Raises:
        ConfigError: a limit is no whole number from 1 on.
    """

    requests_per_minute: _Count = None
    """Requests of any kind that need a key, in a minute."""
    tokens_per_minute: _Count = None
    """Tokens of prompts and answers in a minute."""
    concurrent_requests: _Count = None
    """Answers that are waited for at the same time, streams included."""
    tokens_per_day: _Count = None
    """Tokens of prompts and answers between midnights, UTC."""

    def __post_init__(self) -> None:
        """Check every limit once."""
        for name, value in self.given().items():
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_LIMIT:
                raise ConfigError(f"The limit `{name}` is {value!r}; it must be a whole number from 1 to {MAX_LIMIT}.")

    def given(self) -> dict[str, object]:
        """Return the limits that there are, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def over(self, defaults: Limits) -> Limits:
        """Return these, and the defaults where there are none."""
        return Limits(**{**asdict(defaults), **self.given()})  # pyright: ignore[reportArgumentType]: checked above


LIMIT_NAMES: tuple[str, ...] = tuple(field.name for field in fields(Limits))
NO_LIMITS = Limits()


def read_limits(values: Mapping[str, object]) -> Limits:
    """Return limits from a document.

    Raises:
        ConfigError: a name is none of a limit, or a value is no limit.
    """
    for name in values:
        if name not in LIMIT_NAMES:
            raise ConfigError(f"{name[:40]!r} is no limit; there are {', '.join(LIMIT_NAMES)}.")
    return Limits(**values)  # pyright: ignore[reportArgumentType]: checked by `Limits` itself
