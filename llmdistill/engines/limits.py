"""How many calls may be in flight, and when the next may start.

Per endpoint: a concurrency limit that adapts (additive increase, multiplicative decrease; Chiu and Jain 1989,
Computer Networks and ISDN Systems 17), requests and tokens per minute as token buckets, and the time before
which the server has asked not to be called. All times are of the monotonic clock.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence

from llmdistill.config import Api
from llmdistill.engines.endpoint import Endpoint

_ROUNDS_TO_FULL = 32
"""Round trips in which the limit grows from nothing to its maximum."""


class Bucket:
    """A rate per minute with one second's burst. It may run into debt, so a single large call always fits.

    Args:
        per_minute: the rate; None is no limit.
    """

    def __init__(self, per_minute: int | None, now: float) -> None:
        self.rate = math.inf if per_minute is None else per_minute / 60
        self.level = self._burst = max(1.0, self.rate)
        self._filled = now

    def wait(self, now: float) -> float:
        """Seconds until something may be taken."""
        if math.isinf(self.rate):
            return 0.0
        self.level = min(self._burst, self.level + (now - self._filled) * self.rate)
        self._filled = now
        return 0.0 if self.level > 0 else (1e-3 - self.level) / self.rate

    def take(self, amount: float) -> None:
        """Take an amount; a negative one gives back."""
        if not math.isinf(self.rate):
            self.level -= amount


class Gate:
    """The limits of one endpoint.

    Attributes:
        limit: calls that may be in flight, rounded down.
        in_flight: calls that are.
        num_answered: calls that brought an answer.
        num_limited: replies that said there were too many.
        num_away: calls in a row that did not reach the server.
    """

    def __init__(self, endpoint: Endpoint, api: Api, now: float) -> None:
        self.endpoint = endpoint
        self.in_flight = self.num_answered = 0
        self.num_limited = self.num_away = 0
        self.limit = self._most = float(api.max_concurrency)
        self._step = max(1.0, self._most / _ROUNDS_TO_FULL)
        self._blocked_until = self._decreased = now
        self._requests, self._tokens = Bucket(api.requests_per_minute, now), Bucket(api.tokens_per_minute, now)

    def wait(self, now: float) -> float:
        """Seconds until a call may start; infinite when one must end first."""
        if self.in_flight >= int(self.limit):
            return math.inf
        return max(self._blocked_until - now, self._requests.wait(now), self._tokens.wait(now))

    def start(self, tokens: int) -> None:
        """A call starts that may take this many tokens."""
        self.in_flight += 1
        self._requests.take(1)
        self._tokens.take(tokens)

    def end(self, unused_tokens: int = 0) -> None:
        """A call has ended, having taken fewer tokens than it might have."""
        self.in_flight -= 1
        self._tokens.take(-unused_tokens)

    def answered(self) -> None:
        """Additive increase: one step a round trip, that is, per `limit` answers."""
        self.num_answered += 1
        self.num_away = 0
        self.limit = min(self._most, self.limit + self._step / self.limit)

    def congested(self, started: float, now: float) -> None:
        """Multiplicative decrease, once for all calls that were in flight together."""
        self.num_limited += 1
        if started >= self._decreased:
            self.limit = max(1.0, self.limit / 2)
            self._decreased = now

    def block(self, until: float) -> None:
        """Nothing starts before this time."""
        self._blocked_until = max(self._blocked_until, until)

    def blocked_for(self, now: float) -> float:
        """Seconds until the server may be called again, as far as it has asked for that."""
        return max(0.0, self._blocked_until - now)


class Pool:
    """The gates of all endpoints; calls go where there is most room. Belongs to one event loop."""

    def __init__(self, endpoints: Sequence[Endpoint], api: Api) -> None:
        now = time.monotonic()
        self.gates = [Gate(endpoint, api, now) for endpoint in endpoints]
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self, tokens: int) -> Gate:
        """Wait until a call may start, and start it."""
        while True:
            now = time.monotonic()
            gate = min(self.gates, key=lambda gate: (gate.wait(now), gate.in_flight / gate.limit))
            wait = gate.wait(now)
            if wait <= 0:
                gate.start(tokens)
                self._wake()
                return gate
            await self._pause(wait)

    async def _pause(self, seconds: float) -> None:
        """Sleep until woken, or until this time has passed."""
        woken = asyncio.get_running_loop().create_future()
        self._waiting.append(woken)
        try:
            async with asyncio.timeout(None if math.isinf(seconds) else seconds):
                await woken
        except TimeoutError:
            pass
        finally:
            if not woken.done():
                self._waiting.remove(woken)

    def leave(self, gate: Gate, unused_tokens: int = 0) -> None:
        """A call has ended; somebody waiting may go."""
        gate.end(unused_tokens)
        self._wake()

    def _wake(self) -> None:
        if any(gate.in_flight < int(gate.limit) for gate in self.gates):
            while self._waiting:
                woken = self._waiting.popleft()
                if not woken.done():
                    woken.set_result(None)
                    return
