"""The one retry layer: what a failed call means, and how long to wait before the next.

A failure is one of three: retry it, reject the record (this request will never be answered), or stop
the run (no request will be). Waits are drawn with full jitter (delay uniform between 0 and a bound that
doubles), so that calls which failed together do not come back together.
"""

from __future__ import annotations

import email.utils
import json
import math
import random
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["retry", "reject", "stop"]

_OVERLOADED = {502, 503, 504, 529}
_CONGESTED = {429, 503, 529}
_RETRIED = {408, 409, 425, 429, 500} | _OVERLOADED
_STOPS = {401, 402, 403, 404, 405, 407}
_TOO_LONG = re.compile(
    r"context[ _](length|window|size)|maximum (model |input |prompt )?length|max_model_len|too many (input )?tokens"
    r"|maximum number of tokens|inputs`? tokens \+ `?max_new_tokens|reduce the length"
    r"|(prompt|input|request)[^.]{0,40} too (long|large)",
    re.IGNORECASE,
)
_NO_MONEY = re.compile(
    r"insufficient[ _](quota|balance|funds|credit)|billing[ _]hard[ _]limit|credit balance is too low", re.IGNORECASE
)
_NEVER_FITS = re.compile(r"request too large", re.IGNORECASE)
_MODERATED = re.compile(r"moderation|content[ _](filter|policy)|flagged|safety", re.IGNORECASE)
REFUSALS_TO_STOP = 20
"""A server that refuses this many requests and has answered none refuses the settings, not the records."""

_LONGEST_DETAIL = 300
_NOT_LOOKED_AT = {"rate_limit", "overloaded", "unreachable"}


@dataclass(frozen=True)
class Verdict:
    """What a failed call means.

    Attributes:
        reason: one or two words for tables: rate_limit, overloaded, server_error, timeout, connection_lost,
            unreachable, malformed_reply, too_long, refused, no_access, no_money, redirect.
        detail: the server's own words, on one line.
        congestion: whether the server had too much to do, so that fewer calls should be in flight.
    """

    kind: Kind
    reason: str
    detail: str = ""
    congestion: bool = False

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class TransportError(Exception):
    """A call brought no reply that can be read; `reason` as in `Verdict`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def classify(status: int | None, body: bytes | None = None, error: BaseException | None = None) -> Verdict:
    """What a failed call means, from its HTTP status and body, or from the error that kept it from having any."""
    if status is None:
        return _classify_error(error)
    detail = server_words(status, body or b"")
    if 200 <= status < 300:
        return Verdict("retry", "malformed_reply", detail)
    if status in (400, 429) and _NO_MONEY.search(detail):
        return Verdict("stop", "no_money", detail)
    if status == 429 and _NEVER_FITS.search(detail):
        return Verdict("reject", "too_long", detail)
    if status in _RETRIED or status >= 500:
        reason = "rate_limit" if status == 429 else "overloaded" if status in _OVERLOADED else "server_error"
        return Verdict("retry", reason, detail, congestion=status in _CONGESTED)
    if 300 <= status < 400:
        return Verdict("stop", "redirect", detail)
    if status == 403 and _MODERATED.search(detail):
        return Verdict("reject", "refused", detail)
    if status in _STOPS:
        return Verdict("stop", "no_money" if status == 402 else "no_access", detail)
    return Verdict("reject", "too_long" if status == 413 or _TOO_LONG.search(detail) else "refused", detail)


def _classify_error(error: BaseException | None) -> Verdict:
    if _caused_by(error, ssl.SSLCertVerificationError):
        return Verdict("stop", "no_access", f"the server's certificate cannot be trusted ({_short(error)})")
    if isinstance(error, TransportError):
        congestion = error.reason in ("timeout", "unreachable")
        return Verdict("retry", error.reason, error.detail, congestion)
    if isinstance(error, TimeoutError):
        return Verdict("retry", "timeout", _short(error), congestion=True)
    return Verdict("retry", "unreachable", _short(error), congestion=True)


def _caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False


def _short(error: BaseException | None) -> str:
    return " ".join(str(error or "").split())[:_LONGEST_DETAIL]


def server_words(status: int, body: bytes) -> str:
    """`HTTP 429: ...` with the server's message, on one line."""
    text = body[:4096].decode("utf-8", "replace")
    try:
        found = json.loads(body) if len(body) < 65_536 else {}
        error = found.get("error", found)
        message = error if isinstance(error, str) else error.get("message") or error.get("detail") or text
        code = "" if isinstance(error, str) else error.get("code") or ""
        text = f"{message} ({code})" if isinstance(code, str) and code and code not in str(message) else str(message)
    except (ValueError, AttributeError, RecursionError):
        pass
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_LONGEST_DETAIL]
    return f"HTTP {status}: {text}" if text else f"HTTP {status}"


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds a server asks to wait, from `Retry-After` (seconds or a date) or `retry-after-ms`; None when it does not.

    Args:
        headers: with names in any case.
        now: seconds since the epoch; a `Date` header of the server's own is preferred, clocks differ.
    """
    named = {name.lower(): value.strip() for name, value in headers.items()}
    milliseconds = _seconds(named.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    value = named.get("retry-after", "")
    if not value:
        return None
    seconds = _seconds(value)
    if seconds is not None:
        return seconds
    then, date = _epoch(value), _epoch(named.get("date", ""))
    return None if then is None else max(0.0, then - (now if date is None else date))


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _epoch(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError, OSError):
        return None


@dataclass(frozen=True)
class Backoff:
    """Full jitter: uniform between 0 and `min(longest, first * 2 ** attempt)`, in seconds."""

    first: float = 0.5
    longest: float = 30.0

    def delay(self, attempt: int) -> float:
        """Seconds to wait before attempt number `attempt + 1`, the first attempt being number 0."""
        return random.uniform(0.0, min(self.longest, self.first * 2.0 ** min(attempt, 30)))


@dataclass
class Attempts:
    """How often one request has failed, and whether it may be tried again.

    A server that is busy or away has not looked at the request: that is not counted, but borne for `patience`
    seconds. What may have been charged for is tried less often than what was not; a request for which the
    server is overloaded again and again while it answers others is tried longest. Where a budget has room for
    one call only, `may_repeat` is False and none is repeated that may have been charged for.
    """

    started: float
    patience: float
    may_repeat: bool = True
    failures: int = 0
    timeouts: int = 0
    malformed: int = 0
    overloads: int = 0

    max_failures = 12
    max_timeouts = 6
    max_malformed = 4
    max_overloads = 30

    def used_up(self, verdict: Verdict, now: float, answers_others: bool) -> bool:
        """Note a failure at a monotonic time; True when there is to be no other attempt."""
        if verdict.reason in _NOT_LOOKED_AT:
            impatient = now - self.started > self.patience
            self.overloads += answers_others and verdict.reason != "unreachable"
            often = self.overloads >= self.max_overloads and (impatient or verdict.reason == "overloaded")
            return often or (impatient and not answers_others)
        self.failures += 1
        self.timeouts += verdict.reason == "timeout"
        self.malformed += verdict.reason == "malformed_reply"
        return (
            (self.num_lost > 0 and not self.may_repeat)
            or self.failures >= self.max_failures
            or self.timeouts >= self.max_timeouts
            or self.malformed >= self.max_malformed
        )

    @property
    def num_lost(self) -> int:
        """Calls that may have been charged for."""
        return self.timeouts + self.malformed
