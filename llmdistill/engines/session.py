"""One stream of requests to the servers of one model: the thread, its event loop and its calls.

At most `api.max_concurrency` requests per server have been taken and are not yet answered, and no new one is
taken while more answers than that wait to be read: a kill while the reader waits for its disk costs few. Whoever
reads `answers` gets each one as it arrives, and is alone in the main thread with the signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from llmdistill.config import Model
from llmdistill.engines.base import Completion, Request
from llmdistill.engines.chat import MalformedReply, answer_bound, parse_reply, payload, prompt_bound, read_reply
from llmdistill.engines.endpoint import Endpoint
from llmdistill.engines.http import Http, Reply
from llmdistill.engines.limits import Gate, Pool
from llmdistill.engines.retry import REFUSALS_TO_STOP, Attempts, Backoff, TransportError, Verdict, classify, retry_after
from llmdistill.errors import LlmdistillError, ServerError, TryLaterError
from llmdistill.run.progress import PLAIN_SECONDS, say

_PATH = "/chat/completions"

GRACE_SECONDS = 3.0
"""How long answers in flight are waited for when the run has to stop."""

_OPTIONAL = {"logprobs": ("logprobs",), "schema": ("response_format", "json_schema", "schema", "structured")}
"""Features that some servers lack, and the words by which they say so."""

_LOOK_SECONDS = 0.2

_UNREAD_SECONDS = 0.005

_LONGEST_WAIT = 1e8
"""Three years, so that there is a date to name."""


class _Start(NamedTuple):
    """When a call began, and how many the server had answered by then."""

    time: float
    num_answered: int


class Session:
    """One stream of requests. `start` it, read its `answers`, `close` it.

    Attributes:
        problem: why the stream ended before its requests did.
    """

    def __init__(self, settings: Model, endpoints: list[Endpoint], requests: Iterator[Request]) -> None:
        self.settings, self.endpoints, self._requests = settings, endpoints, requests
        self.problem: Exception | None = None
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._ready: list[Completion] = []
        self._unread: deque[Completion] = deque()
        self._refused: list[Completion] = []
        self._flushing = self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="llmdistill-api")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._asking = True
        self._without: frozenset[str] = frozenset()
        self._last_answer = self._last_said = time.monotonic()
        self._num_answered = 0
        self._backoff = Backoff()
        self._pool: Pool | None = None

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def answers(self, until: float | None = None) -> Iterator[Completion]:
        """Answers, until there are no more or this time has come.

        A signal may come at any instant, so an answer is taken out only once it has been read.
        """
        while True:
            over = self._over
            while self._unread:
                try:
                    yield self._unread[0]
                finally:
                    self._unread.popleft()
            if over:
                return
            try:
                self._news.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
            except queue.Empty:
                return

    def stop_asking(self) -> None:
        """Take no new request, and try none again."""
        self._asking = False

    def close(self) -> None:
        """End all calls; what they were about to bring is lost."""
        self.stop_asking()
        loop, main = self._loop, self._main
        if loop is not None and main is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has just ended by itself
                loop.call_soon_threadsafe(main.cancel)
        self._thread.join()

    def status(self) -> str:
        """Calls in flight and rate-limit hits."""
        gates = self._pool.gates if self._pool else []
        limited = sum(gate.num_limited for gate in gates)
        in_flight = f"{sum(gate.in_flight for gate in gates):,} in flight"
        return f"{in_flight}, {limited:,} rate-limit hits" if limited else in_flight

    def _run(self) -> None:
        try:
            asyncio.run(self._ask_all())
        except asyncio.CancelledError:
            pass
        except Exception as error:
            self.problem = self.problem or error
        finally:
            if self.problem is None:
                self._ready += self._refused
            self._flush()
            self._over = True
            self._news.put(None)

    async def _ask_all(self) -> None:
        self._loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
        api = self.settings.api
        self._pool = Pool(self.endpoints, api)
        async with Http(api.timeout, api.max_reply_bytes) as http:
            tasks: set[asyncio.Task[None]] = set()
            tasks.add(asyncio.create_task(self._feed(http, api.max_concurrency * len(self.endpoints), tasks)))
            try:
                await self._finish(tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _finish(self, tasks: set[asyncio.Task[None]]) -> None:
        """Wait for all tasks; when the run has to stop, only for calls in flight, and not for long."""
        assert self._pool is not None
        stopped = None
        while tasks:
            done, _ = await asyncio.wait(tasks, timeout=_LOOK_SECONDS)
            tasks -= done
            if self._asking:
                continue
            stopped = stopped or time.monotonic()
            idle = not any(gate.in_flight for gate in self._pool.gates)
            if idle or time.monotonic() - stopped > GRACE_SECONDS:
                return

    async def _feed(self, http: Http, most: int, tasks: set[asyncio.Task[None]]) -> None:
        """Take requests as there is room for them, in flight and among the answers not yet read."""
        room = asyncio.Semaphore(most)
        while self._asking:
            await room.acquire()
            while self._asking and len(self._unread) > most:
                await asyncio.sleep(_UNREAD_SECONDS)
            request = self._next_request() if self._asking else None
            if request is None:
                return
            task = asyncio.create_task(self._answer(http, request, room))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    def _next_request(self) -> Request | None:
        try:
            return next(self._requests, None)
        except Exception as error:
            self._stop(error)
            return None

    def _stop(self, problem: Exception) -> None:
        self.problem = self.problem or problem
        self.stop_asking()

    async def _answer(self, http: Http, request: Request, room: asyncio.Semaphore) -> None:
        """One request, until it is answered, refused, or given up."""
        try:
            completion = await self._attempts(http, request)
            if completion is not None:
                self._hand_over(completion)
        except Exception as error:
            self._stop(error)
        finally:
            room.release()

    def _hand_over(self, completion: Completion) -> None:
        """Give an answer to the reader, together with the others of this turn of the loop: threads switch less.

        Refusals wait for the first answer: until then they may be the settings' fault, not the records'.
        """
        if completion.finish_reason == "refused" and not self._num_answered:
            self._refused.append(completion)
            return
        self._ready += [*self._refused, completion]
        self._refused.clear()
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._ready:
            self._unread += self._ready
            self._news.put(None)
            self._ready = []

    async def _attempts(self, http: Http, request: Request) -> Completion | None:
        assert self._pool is not None
        attempts = Attempts(time.monotonic(), self.settings.api.patience, request.may_repeat)
        bound = prompt_bound(request) + answer_bound(request, self.settings)
        attempt = 0
        while self._asking:
            gate = await self._pool.enter(bound)
            num_answered = self._num_answered
            used = bound
            try:
                found = await self._call(http, gate, request)
                used = found.prompt_tokens + found.completion_tokens if isinstance(found, Completion) else bound
            finally:
                self._pool.leave(gate, max(0, bound - used))
            if isinstance(found, Completion):
                return self._with_losses(found, attempts)
            verdict, wait = found
            if verdict.kind != "retry":
                return self._ended(request, verdict, gate, attempts)
            if self._out_of_patience(verdict, gate):
                return None
            if attempts.used_up(verdict, time.monotonic(), self._num_answered > num_answered):
                return _without_answer(request, "failed", verdict, attempts)
            await asyncio.sleep(max(wait or 0.0, self._backoff.delay(attempt)))
            attempt += 1
        return None

    async def _call(self, http: Http, gate: Gate, request: Request) -> Completion | tuple[Verdict, float | None]:
        """One call: an answer, or what went wrong and how long the server wants us to wait."""
        started = _Start(time.monotonic(), gate.num_answered)
        without = self._without
        body = json.dumps(payload(request, self.settings, gate.endpoint, without)).encode("ascii")
        try:
            reply = await http.call(gate.endpoint, _PATH, body)
        except TransportError as error:
            return self._failed(gate, started, classify(None, error=error)), None
        if reply.status != 200:
            verdict = self._failed(gate, started, classify(reply.status, reply.body))
            return (self._learn(verdict, request) or verdict), self._asked_to_wait(gate, reply)
        try:
            completion = read_reply(parse_reply(reply.body), request)
        except MalformedReply as error:
            return self._failed(gate, started, Verdict("retry", "malformed_reply", str(error))), None
        gate.answered()
        self._last_answer = time.monotonic()
        self._num_answered += 1
        return completion

    def _failed(self, gate: Gate, started: _Start, verdict: Verdict) -> Verdict:
        """Note a failure. A call that hangs while others are answered does not mean that there are too many."""
        answered_meanwhile = gate.num_answered - started.num_answered
        hangs_alone = verdict.reason == "timeout" and answered_meanwhile >= gate.in_flight
        if verdict.congestion and not hangs_alone:
            gate.congested(started.time, time.monotonic())
        if verdict.reason == "unreachable":
            gate.block(time.monotonic() + self._backoff.delay(gate.num_away))
            gate.num_away += 1
        return verdict

    def _learn(self, verdict: Verdict, request: Request) -> Verdict | None:
        """A server that refuses an optional feature is asked without it from now on."""
        if verdict.kind != "reject":
            return None
        asked = {"logprobs": bool(request.choices or request.top_logprobs), "schema": request.schema is not None}
        for feature, words in _OPTIONAL.items():
            if asked[feature] and any(word in verdict.detail.lower() for word in words):
                self._without |= {feature}
                return Verdict("retry", "unsupported", verdict.detail)
        return None

    def _asked_to_wait(self, gate: Gate, reply: Reply) -> float | None:
        """Obey `Retry-After`: nobody calls this server before then, and this request a little later."""
        if reply.status not in (429, 503, 529):
            return None
        seconds = retry_after(reply.headers, time.time())
        if seconds is None:
            return None
        now, seconds = time.monotonic(), min(seconds, _LONGEST_WAIT)
        gate.block(now + seconds)
        assert self._pool is not None
        if all(other.blocked_for(now) > self.settings.api.max_retry_after for other in self._pool.gates):
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() + seconds))
            message = f"the server asks to wait {seconds:,.0f} s, until {when}"
            advice = "run the same command again then, or raise api.max_retry_after"
            self._stop(TryLaterError(message, where=gate.endpoint.host, do=advice))
        return seconds + self._backoff.delay(0)

    def _out_of_patience(self, verdict: Verdict, gate: Gate) -> bool:
        """Whether nothing has been answered for too long; says so every ten seconds before that."""
        now = time.monotonic()
        silent, patience = now - self._last_answer, self.settings.api.patience
        message = f"no answer for {silent:,.0f} s ({verdict.reason.replace('_', ' ')}: {verdict.detail})"
        if silent <= patience:
            if now - max(self._last_answer, self._last_said) >= PLAIN_SECONDS:
                self._last_said = now
                say(f"{gate.endpoint.host}: {message}; trying for {patience - silent:,.0f} s more")
            return False
        advice = "run the same command again when the server is back; it goes on where it stopped"
        self._stop(TryLaterError(message, where=gate.endpoint.host, do=advice))
        return True

    def _ended(self, request: Request, verdict: Verdict, gate: Gate, attempts: Attempts) -> Completion | None:
        """What a refusal that will not change means: for this record, or for all."""
        if verdict.kind == "reject":
            if self._num_answered or len(self._refused) < REFUSALS_TO_STOP - 1 or verdict.reason != "refused":
                return _without_answer(request, verdict.reason, verdict, attempts)
        self._stop(refusal(verdict, gate.endpoint, self.settings))
        return None

    def _with_losses(self, completion: Completion, attempts: Attempts) -> Completion:
        return replace(completion, num_lost=attempts.num_lost) if attempts.num_lost else completion


def _without_answer(request: Request, finish_reason: str, verdict: Verdict, attempts: Attempts) -> Completion:
    return Completion(request.id, finish_reason=finish_reason, error=str(verdict), num_lost=attempts.num_lost)


def refusal(verdict: Verdict, endpoint: Endpoint, settings: Model) -> LlmdistillError:
    """One line for what keeps the server from answering anything."""
    advice = {
        "no_access": "check the key, the model's name and api.base_url",
        "no_money": "top up the account, or use another key; the same command then goes on",
        "redirect": "set api.base_url to the address it points to; a key is not sent to another host",
        "refused": "check the model's name and what is sent to it (generate settings, api.extra)",
    }
    what = f"the server refuses {settings.model}: {verdict.detail}"
    return ServerError(what, where=endpoint.host, do=advice.get(verdict.reason))
