"""What no log may hold: keys, passwords, queries of addresses; and what no terminal may be sent by a stranger."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

HIDDEN = "[hidden]"
MIN_SECRET_CHARS = 8
"""Shorter values are words such as `off`; to hide them everywhere would spoil lines and protect nothing."""
MAX_TEXT_CHARS = 32 << 10
"""One text of a line; the longest traceback of a deep stack has about half of this."""

_SECRET_NAMES = frozenset(
    {
        "authorization",
        "proxy_authorization",
        "x_api_key",
        "api_key",
        "api_keys",
        "cookie",
        "set_cookie",
        "password",
        "secret",
        "token",
        "hf_token",
        "prompt",
        "messages",
        "content",
        "body",
        "query",
    }
)
"""Fields whose values are never written, whatever they hold."""

# Each finds its secret in one pass: nothing in them repeats within a repetition.
_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\bqsa?-[\w.-]{8,}"), f"qs-{HIDDEN}"),
    (re.compile(r"\bhf_[\w-]{8,}"), f"hf_{HIDDEN}"),
    (re.compile(r"\b(bearer|basic)\s+[^\s\"',]+", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (
        re.compile(
            r"\b(authorization|x-api-key|api[_-]key|cookie|password|secret|token)([\"']?\s?[:=]\s?[\"']?)[^\s\"',;}]+",
            re.IGNORECASE,
        ),
        rf"\1\2{HIDDEN}",
    ),
    (re.compile(r"://[^\s/@]{1,512}@"), f"://{HIDDEN}@"),
    (re.compile(r"(?<=[^\s(\"'])\?(?=[^\s)\"'])[^\s\"'<>]+"), f"?{HIDDEN}"),
)
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Control signs (ANSI escapes begin with one), signs that turn the direction of text, halves of signs, line ends."""


class Redactor:
    """Takes out of texts what a log may not hold."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """Also hide these values, wherever they stand."""
        known = sorted({secret for secret in secrets if len(secret) >= MIN_SECRET_CHARS}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def field(self, name: str, value: object) -> object:
        """Return a field's value as it may be written; numbers stay numbers."""
        if name.lower().replace("-", "_") in _SECRET_NAMES:
            return HIDDEN
        if value is None or isinstance(value, bool | int | float):
            return value
        return neutralise(self.text(value if isinstance(value, str) else str(value)))

    def text(self, text: str) -> str:
        """Return a text without secrets, and not longer than a line may be."""
        if len(text) > MAX_TEXT_CHARS:
            text = f"{text[:MAX_TEXT_CHARS]} [{len(text) - MAX_TEXT_CHARS} more characters]"
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        for pattern, replacement in _RULES:
            text = pattern.sub(replacement, text)
        return text

    def lines(self, text: str) -> str:
        """Return a text of several lines, each cleaned and set in, so that none can pass for a line of the log."""
        return "\n".join(f"    {neutralise(line)}" for line in self.text(text).split("\n"))


def neutralise(text: str) -> str:
    """Write out line ends, escapes and what else would not be seen as a sign of its own, as Python's `repr` does."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_written_out(sign) if unicodedata.category(sign) in _UNSAFE_CATEGORIES else sign for sign in text)


def _written_out(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")
