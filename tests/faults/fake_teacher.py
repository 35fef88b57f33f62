"""A teacher that misbehaves as told: an HTTP server on 127.0.0.1, in a process of its own.

    python -m tests.faults.fake_teacher '{"latency": 0.01}'

prints `{"port": ..., "control": ...}`. Chat completions are asked for at `port`. The other port takes a new
scenario (POST /control) or a time to be gone (POST /down) and tells what happened (GET /log, GET /count).
An answer is a hash of the question, so that a lost, doubled or swapped one is seen.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

from tests.faults.fake_shapes import CLOSES, SHAPES, as_json, http

CHUNK = 1 << 18
COMPLETION_TOKENS = 8
"""Tokens of every answer."""


def key_of(messages: list[dict[str, str]]) -> str:
    """What the teacher tells requests apart by: a hash of the conversation."""
    text = json.dumps([[message["role"], message["content"].strip()] for message in messages])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def answer_to(messages: list[dict[str, str]]) -> str:
    """The one right answer."""
    return f"The answer is {key_of(messages)}."


@dataclass
class Rule:
    """One way to misbehave. Rules share one draw per call, so their shares add up.

    Attributes:
        kind: "status", "reset", "close", "hang", "drip", "slow_header", "late", "duplicate", "constant", "echo",
            or a name of `SHAPES`.
        share: of the calls; with `sticky`, of the questions.
        times: only that many first calls of each question.
        first: only that many first calls in all.
        skip: not before that many calls in all.
        seconds: only so long, counted from the first call it is for.
        match: only questions that contain this.
        headers: of a "status" reply; a value `date:+2` becomes the HTTP date two seconds from then.
        delay: seconds before a bad reply; for "late" beyond the latency, for "drip" between two bytes,
            for "duplicate" between the two.
    """

    kind: str
    share: float = 1.0
    sticky: bool = False
    times: int | None = None
    first: int | None = None
    skip: int = 0
    seconds: float | None = None
    match: str = ""
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    delay: float = 0.0
    started: float = 0.0

    def is_for(self, attempt: int, num_calls: int, question: str, now: float) -> bool:
        """Whether the rule is in force for a call."""
        if num_calls <= self.skip or (self.first is not None and num_calls > self.first):
            return False
        if (self.times is not None and attempt > self.times) or self.match not in question:
            return False
        self.started = self.started or now
        return self.seconds is None or now - self.started < self.seconds


@dataclass
class Scenario:
    """How the teacher behaves: `latency` seconds and up to `jitter` more for each answer.

    `max_in_flight` is how many calls it takes at once, the others get 429.
    """

    latency: float = 0.0
    jitter: float = 0.0
    seed: int = 0
    rules: list[Rule] = field(default_factory=list)
    max_in_flight: int | None = None
    finish_reason: str = "stop"
    keep_log: bool = True


def scenario_from(values: dict[str, Any]) -> Scenario:
    rules = [Rule(**rule) for rule in values.get("rules", [])]
    return Scenario(**{**values, "rules": rules})


class Teacher:
    """What the teacher does, and what it remembers of it."""

    def __init__(self, scenario: Scenario) -> None:
        self.loop = asyncio.get_running_loop()
        self.connections: set[Connection] = set()
        self.server: asyncio.Server | None = None
        self.port = 0
        self.begin(scenario)

    def begin(self, scenario: Scenario) -> None:
        """Forget everything and behave so from now on."""
        self.scenario = scenario
        self.calls: list[list[Any]] = []
        self.attempts: Counter[str] = Counter()
        self.num_calls = self.num_answers = self.in_flight = self.peak = self.num_authorised = 0
        for connection in self.connections:
            connection.pending = 0

    async def open(self) -> None:
        """Listen, on the same port as before."""
        self.server = await self.loop.create_server(
            lambda: Connection(self, self.handle), "127.0.0.1", self.port, backlog=4096
        )
        self.port = self.server.sockets[0].getsockname()[1]

    async def go_down(self, seconds: float) -> None:
        """Be gone for a while: nobody listens, every connection is reset."""
        self.server.close()
        for connection in list(self.connections):
            if connection.handle == self.handle:
                connection.reset()
        await asyncio.sleep(seconds)
        await self.open()

    def obey(self, connection: Connection, head: bytes, body: bytes) -> None:
        """Answer one request of whoever controls the teacher."""
        path, answer = head.split(b" ", 2)[1], self.count
        if path == b"/control":
            self.begin(scenario_from(json.loads(body)))
        elif path == b"/down":
            self.going_down = self.loop.create_task(self.go_down(json.loads(body)["seconds"]))
        elif path == b"/log":
            answer = self.log
        connection.write(http(as_json(answer())))

    def handle(self, connection: Connection, head: bytes, body: bytes) -> None:
        """Answer one request, some time."""
        if head.startswith(b"GET"):
            connection.write(http(as_json({"object": "list", "data": [{"id": "fake", "object": "model"}]})))
            return
        now = time.monotonic()
        request = json.loads(body)
        messages = request["messages"]
        key = key_of(messages)
        self.num_calls += 1
        self.num_authorised += b"\r\nauthorization:" in head.lower()
        self.attempts[key] += 1
        rule = self._rule_for(key, messages[-1]["content"], now)
        call = [now, key, rule.kind if rule else "ok", 0.0]
        if self.scenario.keep_log:
            self.calls.append(call)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        connection.pending += 1
        reply = self._reply_to(request, messages)
        self.loop.call_later(self._delay(rule, key), self._answer, connection, rule, reply, call, head)

    def _rule_for(self, key: str, question: str, now: float) -> Rule | None:
        if self.scenario.max_in_flight is not None and self.in_flight >= self.scenario.max_in_flight:
            return Rule("status", status=429)
        if not self.scenario.rules:
            return None
        attempt, low = self.attempts[key], 0.0
        for rule in self.scenario.rules:
            if rule.is_for(attempt, self.num_calls, question, now):
                low += rule.share
                if self._draw(key, 0 if rule.sticky else attempt) < low:
                    return rule
        return None

    def _draw(self, key: str, attempt: int) -> float:
        text = f"{self.scenario.seed} {key} {attempt}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48

    def _delay(self, rule: Rule | None, key: str) -> float:
        usual = self.scenario.latency
        if self.scenario.jitter:
            usual += self.scenario.jitter * self._draw(key, -1)
        if rule is None or rule.kind in ("duplicate", "drip"):
            return usual
        return rule.delay + (usual if rule.kind == "late" else 0.0)

    def _reply_to(self, request: dict[str, Any], messages: list[dict[str, str]]) -> dict[str, Any]:
        prompt_tokens = sum(len(message["content"].split()) for message in messages)
        message = {"role": "assistant", "content": answer_to(messages)}
        return {
            "id": f"chatcmpl-{self.num_calls}",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": request.get("model", "fake"),
            "choices": [{"index": 0, "message": message, "finish_reason": self.scenario.finish_reason}],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": COMPLETION_TOKENS,
                "total_tokens": prompt_tokens + COMPLETION_TOKENS,
            },
        }

    def _answer(
        self, connection: Connection, rule: Rule | None, reply: dict[str, Any], call: list[Any], head: bytes
    ) -> None:
        kind = rule.kind if rule else "ok"
        if kind == "hang" or connection.transport.is_closing():
            return
        if connection.pending:
            connection.pending -= 1
            self.in_flight -= 1
        call[3] = time.monotonic()
        if kind in ("ok", "late"):
            self.num_answers += 1
            connection.write(http(as_json(reply)))
        elif kind in SHAPES:
            connection.stream(SHAPES[kind](reply), close=kind in CLOSES)
        else:
            getattr(self, f"_{kind}")(connection, rule, reply, head)

    def _status(self, connection: Connection, rule: Rule, _: dict[str, Any], __: bytes) -> None:
        body = {"error": {"message": f"told to say {rule.status}"}} if rule.body is None else rule.body
        data = body.encode() if isinstance(body, str) else as_json(body)
        headers = [f"{name}: {_dated(value)}" for name, value in rule.headers.items()]
        connection.write(http(data, f"{rule.status} {_phrase(rule.status)}", "application/json", *headers))

    def _echo(self, connection: Connection, rule: Rule, _: dict[str, Any], head: bytes) -> None:
        """Repeat the request's headers, the key among them, in an error."""
        body = {"error": {"message": f"bad headers: {head.decode('latin-1')}"}}
        connection.write(http(as_json(body), f"{rule.status} {_phrase(rule.status)}"))

    def _constant(self, connection: Connection, *_: object) -> None:
        """Say the same to everyone, without an id."""
        message = {"role": "assistant", "content": "4"}
        connection.write(http(as_json({"choices": [{"message": message, "finish_reason": "stop"}]})))

    def _reset(self, connection: Connection, *_: object) -> None:
        connection.reset()

    def _close(self, connection: Connection, *_: object) -> None:
        connection.transport.close()

    def _drip(self, connection: Connection, rule: Rule, reply: dict[str, Any], _: bytes) -> None:
        data = http(as_json(reply))
        head = data.index(b"\r\n\r\n") + 4
        connection.write(data[:head])
        connection.drip(data[head:], rule.delay or 1.0)

    def _slow_header(self, connection: Connection, rule: Rule, reply: dict[str, Any], _: bytes) -> None:
        connection.drip(http(as_json(reply)), rule.delay or 1.0)

    def _duplicate(self, connection: Connection, rule: Rule, reply: dict[str, Any], _: bytes) -> None:
        self.num_answers += 2
        data = http(as_json(reply))
        if rule.delay:
            connection.write(data)
            self.loop.call_later(rule.delay, connection.write, data)
        else:
            connection.write(data * 2)

    def log(self) -> dict[str, Any]:
        """What happened since the scenario began; times are of the monotonic clock, in seconds."""
        return {"calls": self.calls, **self.count()}

    def count(self) -> dict[str, Any]:
        return {
            "num_calls": self.num_calls,
            "num_answers": self.num_answers,
            "in_flight": self.in_flight,
            "peak": self.peak,
            "num_authorised": self.num_authorised,
            "num_connections": len(self.connections),
        }


def _dated(value: str) -> str:
    return formatdate(time.time() + float(value[5:]), usegmt=True) if value.startswith("date:") else value


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in set(HTTPStatus) else "Unknown"


class Connection(asyncio.Protocol):
    """One connection; requests on it come one after the other."""

    def __init__(self, teacher: Teacher, handle: Callable[[Connection, bytes, bytes], None]) -> None:
        self.teacher, self.handle, self.buffer, self.pending = teacher, handle, b"", 0
        self.writable = asyncio.Event()
        self.writable.set()
        self.tasks: list[asyncio.Task[None]] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.teacher.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.teacher.connections.discard(self)
        self.teacher.in_flight -= self.pending
        self.pending = 0
        self.writable.set()
        for task in self.tasks:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end]
            lower = head.lower()
            place = lower.find(b"\r\ncontent-length:")
            length = int(lower[place + 17 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            self.handle(self, head, body)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)

    def reset(self) -> None:
        """End the connection with a RST."""
        handle = self.transport.get_extra_info("socket")
        if handle is not None and handle.fileno() >= 0:
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def stream(self, data: bytes, close: bool) -> None:
        """Write much without keeping a copy of it."""
        if len(data) > CHUNK:
            self.tasks.append(self.teacher.loop.create_task(self._stream(memoryview(data), CHUNK, 0.0)))
            return
        self.write(data)
        if close:
            self.transport.close()

    def drip(self, data: bytes, seconds: float) -> None:
        """Write one byte, wait, write the next."""
        self.tasks.append(self.teacher.loop.create_task(self._stream(memoryview(data), 1, seconds)))

    async def _stream(self, data: memoryview, size: int, seconds: float) -> None:
        for start in range(0, len(data), size):
            await self.writable.wait()
            if self.transport.is_closing():
                return
            self.transport.write(bytes(data[start : start + size]))
            await asyncio.sleep(seconds)


async def serve(values: dict[str, Any]) -> None:
    teacher = Teacher(scenario_from(values))
    await teacher.open()
    control = await teacher.loop.create_server(lambda: Connection(teacher, teacher.obey), "127.0.0.1", 0)
    print(json.dumps({"port": teacher.port, "control": control.sockets[0].getsockname()[1]}), flush=True)
    gc.freeze()
    await teacher.loop.run_in_executor(None, sys.stdin.read)  # until whoever started this is gone


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}))
