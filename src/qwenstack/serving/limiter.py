"""Holds each caller to its limits: before a request waits for anything, its share is taken or it is refused.

Tokens are taken for the whole answer before it is made, and what it did not need is given back when it ends. So callers
that ask for much at once are held back, not those who were promised room.

Everything is in memory and of this server; tokens of the day are the database's, and so of all servers (`usage`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from qwenstack.core.errors import RequestError
from qwenstack.core.limits import NO_LIMITS, Limits
from qwenstack.serving.bucket import Bucket
from qwenstack.serving.errors import LimitKind, RateLimitError
from qwenstack.serving.identity import Identity
from qwenstack.serving.usage import UsageLedger

ASSUMED_ANSWER_TOKENS = 512
"""Taken for an answer whose request sets no limit; most chat answers are shorter, and what is longer is owed."""
ANOTHER_ENDS_S = 1.0
"""When to come back while too many answers run: nobody knows; a short one has ended then."""
MOST_IDLE_ACCOUNTS = 10_000
"""Of callers who are let in; tokens of an identity provider can name any number of them."""

Headers = Sequence[tuple[bytes, bytes]]


class Limiter:
    """Everybody's accounts."""

    def __init__(
        self,
        defaults: Limits,
        ledger: UsageLedger,
        *,
        count_refusal: Callable[[LimitKind], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Hold callers to their own limits, and to `defaults` where they have none; tell of each that is refused."""
        self._defaults = defaults
        self._ledger = ledger
        self._count_refusal = count_refusal
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    def take_request(self, caller: Identity) -> None:
        """Count a request.

        Raises:
            RateLimitError: there were as many as there may be.
        """
        account, now_s = self._account(caller), self._clock()
        if (bucket := account.requests) is not None:
            wait_s = bucket.wait_s(1, now_s)
            if wait_s > 0:
                text = f"This API key may send {bucket.per_minute} requests a minute. Try again in {wait_s:.3g} s."
                raise self._refuse(text, kind="requests", retry_after_s=wait_s)
            bucket.take(1, now_s)

    @contextmanager
    def reading(self, caller: Identity, *, for_answer: bool = True) -> Generator[None]:
        """Hold a place among the caller's answers while a text is read.

        Args:
            caller: who asks.
            for_answer: whether tokens will be reserved for an answer to it, so that there have to be some.

        Raises:
            RateLimitError: there is no room for it now.
            RequestError: there never will be.
        """
        account = self._account(caller)
        self._check_concurrency(account)
        if for_answer:
            self._check_has_tokens(account, caller)
        account.running += 1
        try:
            yield
        finally:
            account.running -= 1

    def check(self, caller: Identity, *, prompt_tokens: int, answer_tokens: int) -> None:
        """Refuse what `reserve` would refuse now.

        Raises:
            RateLimitError: there is no room for it now.
            RequestError: there never will be.
        """
        account = self._account(caller)
        advice = "ask for a shorter answer" if answer_tokens else "send less at once"
        self._check_concurrency(account)
        self._check_tokens(account, caller, prompt_tokens + answer_tokens, advice)

    def reserve(self, caller: Identity, *, prompt_tokens: int, answer_tokens: int) -> Reservation:
        """Take what an answer may need; the reservation is to be used in a `with` block, which settles it.

        Args:
            caller: who asks.
            prompt_tokens: of all prompts together.
            answer_tokens: as many as the answers can have, or are assumed to.

        Raises:
            RateLimitError: there is no room for it now.
            RequestError: there never will be.
        """
        self.check(caller, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens)
        account, demand = self._account(caller), prompt_tokens + answer_tokens
        if account.tokens is not None:
            account.tokens.take(demand, self._clock())
        account.running += 1
        account.reserved += demand
        return Reservation(self, account, caller, demand)

    def headers(self, caller: Identity) -> Headers:
        """Return OpenAI's headers about the limits that a caller has; none where it has none."""
        if self._defaults == NO_LIMITS and caller.limits == NO_LIMITS:
            return ()
        account, now_s = self._account(caller), self._clock()
        headers: list[tuple[bytes, bytes]] = []
        for name, bucket in (("requests", account.requests), ("tokens", account.tokens)):
            if bucket is not None:
                left, full_in_s = max(0, int(bucket.level(now_s))), bucket.wait_s(bucket.per_minute, now_s)
                headers += [
                    (f"x-ratelimit-limit-{name}".encode(), str(bucket.per_minute).encode()),
                    (f"x-ratelimit-remaining-{name}".encode(), str(left).encode()),
                    (f"x-ratelimit-reset-{name}".encode(), f"{full_in_s:.3f}s".encode()),
                ]
        return headers

    def settle(self, reservation: Reservation) -> None:
        """Give back what was not used, and count what was."""
        account, caller = reservation.account, reservation.caller
        account.running -= 1
        account.reserved -= reservation.demand
        if account.tokens is not None:
            account.tokens.take(reservation.used - reservation.demand, self._clock())
        if reservation.used:
            self._ledger.note(
                caller, prompt_tokens=reservation.prompt_tokens, completion_tokens=reservation.completion_tokens
            )

    def _check_concurrency(self, account: _Account) -> None:
        most = account.limits.concurrent_requests
        if most is not None and account.running >= most:
            text = f"This API key may wait for {most} answers at a time. Try again when one has ended."
            raise self._refuse(text, kind="concurrency", retry_after_s=ANOTHER_ENDS_S)

    def _check_has_tokens(self, account: _Account, caller: Identity) -> None:
        self._check_budget(account, caller, 1, "ask whoever made the key for more")
        wait_s = 0.0 if account.tokens is None else account.tokens.wait_s(1, self._clock())
        if wait_s > 0:
            text = f"This API key has used its tokens of this minute. Try again in {wait_s:.3g} s."
            raise self._refuse(text, kind="tokens", retry_after_s=wait_s)

    def _check_tokens(self, account: _Account, caller: Identity, demand: int, advice: str) -> None:
        self._check_budget(account, caller, demand, advice)
        if (bucket := account.tokens) is None:
            return
        _check_size(demand, bucket.per_minute, "a minute", advice)
        wait_s = bucket.wait_s(demand, self._clock())
        if wait_s > 0:
            text = (
                f"This API key may use {bucket.per_minute} tokens a minute, and this request may need {demand}. "
                f"Try again in {wait_s:.3g} s, or {advice}."
            )
            raise self._refuse(text, kind="tokens", retry_after_s=wait_s)

    def _check_budget(self, account: _Account, caller: Identity, demand: int, advice: str) -> None:
        most = account.limits.tokens_per_day
        if most is None:
            return
        _check_size(demand, most, "a day", advice)
        used = self._ledger.tokens_today(caller) + account.reserved
        if used + demand > most:
            text = (
                f"This API key may use {most} tokens a day, {used} are used, and this request may need {demand}. "
                f"Try again after midnight UTC, or {advice}."
            )
            raise self._refuse(text, kind="budget", retry_after_s=self._ledger.seconds_left_today)

    def _refuse(self, text: str, *, kind: LimitKind, retry_after_s: float) -> RateLimitError:
        self._count_refusal(kind)
        return RateLimitError(text, kind=kind, retry_after_s=retry_after_s)

    def _account(self, caller: Identity) -> _Account:
        account = self._accounts.get(caller.account)
        limits = self._defaults if caller.limits == NO_LIMITS else caller.limits.over(self._defaults)
        if account is None:
            self._forget_idle_accounts()
            account = self._accounts[caller.account] = _Account()
        if account.limits != limits:
            account.change(limits, now_s=self._clock())
        return account

    def _forget_idle_accounts(self) -> None:
        """Drop accounts that say nothing: a new one would be the same."""
        if len(self._accounts) >= MOST_IDLE_ACCOUNTS:
            now_s = self._clock()
            self._accounts = {name: account for name, account in self._accounts.items() if not account.is_idle(now_s)}


class Reservation:
    """What was taken for one request; tells at the end what of it was used."""

    def __init__(self, limiter: Limiter, account: _Account, caller: Identity, demand: int) -> None:
        """Hold a demand that the limiter has taken."""
        self._limiter = limiter
        self.account = account
        self.caller = caller
        self.demand = demand
        self.prompt_tokens = 0
        self.completion_tokens = 0

    @property
    def used(self) -> int:
        """Tokens used until now."""
        return self.prompt_tokens + self.completion_tokens

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Settle, however the request ended."""
        self._limiter.settle(self)


class _Account:
    """What one caller has left."""

    def __init__(self) -> None:
        self.limits = NO_LIMITS
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.running = 0
        self.reserved = 0

    def change(self, limits: Limits, *, now_s: float) -> None:
        """Hold to these limits from now on."""
        self.requests = _resized(self.requests, limits.requests_per_minute, now_s)
        self.tokens = _resized(self.tokens, limits.tokens_per_minute, now_s)
        self.limits = limits

    def is_idle(self, now_s: float) -> bool:
        """Whether nothing runs and every bucket is full."""
        buckets = [bucket for bucket in (self.requests, self.tokens) if bucket is not None]
        return self.running == 0 and all(bucket.wait_s(bucket.per_minute, now_s) == 0 for bucket in buckets)


def _resized(bucket: Bucket | None, per_minute: int | None, now_s: float) -> Bucket | None:
    if per_minute is None:
        return None
    if bucket is None:
        return Bucket(per_minute, now_s=now_s)
    bucket.resize(per_minute, now_s)
    return bucket


def _check_size(demand: int, most: int, period: str, advice: str) -> None:
    if demand > most:
        text = (
            f"This request may need {demand} tokens, and this API key may use {most} {period}, so there will never be "
            f"room for it: {advice}."
        )
        raise RequestError(text, code="request_too_large")
