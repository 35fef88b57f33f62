"""A canary key through the error paths of every command: it is in no file and in no byte of the output."""

from __future__ import annotations

import json
import re
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.engines.loopback import Answer, Loopback, Seen, chat, serving
from tests.faults.api import Api, ApiRun
from tests.faults.conftest import Result, wait_until

KEY = f"sk-canary/{secrets.token_hex(14)}+{secrets.token_hex(4)}"
"""Random, and with characters that JSON may escape."""

NAME = "CANARY_KEY"
NUM_RECORDS = 4


@dataclass
class Room:
    """A run, whose teacher is given the key, and everything its commands have said."""

    api: Api
    server: Loopback | None = None
    said: list[Result] = field(default_factory=list)
    written: set[Path] = field(default_factory=set)
    run: ApiRun = None  # type: ignore[assignment]

    def begin(self, num_records: int = NUM_RECORDS, **api: Any) -> None:
        """A new run, against the loopback server if there is one."""
        address = {"base_url": self.server.url} if self.server else {}
        self.run = self.api.run(num_records, **{"api_key_env": NAME, "patience": 20, **address, **api})

    def do(
        self, command: str, *settings: str, env: dict[str, str] | None = None, key: str = KEY, **options: Any
    ) -> Result:
        """One command, with the key in its environment."""
        found = self.run.do(command, *settings, env={NAME: key, "OPENAI_API_KEY": key, **(env or {})}, **options)
        self.said.append(found)
        return found

    def add_to_pipeline(self, **sections: Any) -> None:
        """What the user writes into the pipeline file himself, the key by mistake."""
        values = json.loads(self.run.pipeline.read_text())
        for name, more in sections.items():
            values[name] = {**values[name], **more} if isinstance(more, dict) and name in values else more
        self.run.pipeline.write_text(json.dumps(values))
        self.written.add(self.run.pipeline)

    def assert_unseen(self) -> None:
        """Nothing that was printed or written holds the key, in any of the forms it takes in JSON, a URL or HTML."""
        assert self.said
        for result in self.said:
            assert_without(result.stdout.encode(), "stdout")
            assert_without(result.stderr.encode(), "stderr")
        files = [path for path in self.run.folder.rglob("*") if path.is_file() and path not in self.written]
        assert files
        for path in files:
            assert_without(str(path.name).encode(), "a file's name")
            assert_without(path.read_bytes(), str(path))
            if path.suffix == ".parquet":
                assert_without(json.dumps(pq.read_table(path).to_pylist(), default=str).encode(), str(path))


def forms(key: str) -> list[str]:
    """The key as it is, as JSON or a URL would write it, and its random parts alone."""
    escaped = key.replace("/", r"\/")
    return [key, escaped, key.replace("/", "%2F").replace("+", "%2B"), *re.findall(r"[0-9a-f]{8,}", key)]


def assert_without(data: bytes, where: str) -> None:
    for form in forms(KEY):
        assert form.encode() not in data, f"the key is in {where}"


Case = Callable[[Room], None]
CASES: dict[str, Case] = {}


def case(name: str) -> Callable[[Case], Case]:
    def add(function: Case) -> Case:
        assert name not in CASES
        CASES[name] = function
        return function

    return add


@contextmanager
def answering(room: Room, reply: Callable[[Seen], Answer]) -> Iterator[None]:
    """The room's teacher answers so."""
    with serving(reply) as server:
        room.server = server
        yield
        assert any(seen.headers.get("authorization") == f"Bearer {KEY}" for seen in server.seen), "it was never sent"


def at_first(bad: Answer | Callable[[Seen], Answer], num: int = 3) -> Callable[[Seen], Answer]:
    """A bad answer to the first calls, good ones later."""
    left = [num]

    def reply(seen: Seen) -> Answer:
        left[0] -= 1
        if left[0] >= 0:
            return bad if isinstance(bad, Answer) else bad(seen)
        return Answer(200, chat("A good answer."))

    return reply


def echo(status: int) -> Callable[[Seen], Answer]:
    """An error that repeats the headers of the request."""
    return lambda seen: Answer(status, {"error": {"message": f"bad request: {seen.headers}", "code": KEY}})


STOPPING = [302, 400, 401, 402, 403, 404, 405, 407, 422]
PASSING = [408, 413, 429, 500, 502, 503, 529]


def repeated_in_an_error(room: Room, status: int) -> None:
    num = 30 if status in (400, 422) else NUM_RECORDS
    with answering(room, echo(status) if status in STOPPING else at_first(echo(status))):
        room.begin(num)
        assert room.do("generate").code == (1 if status in STOPPING else 0)


for _status in [*STOPPING, *PASSING]:
    CASES[f"the server repeats it in an error {_status}"] = lambda room, status=_status: repeated_in_an_error(
        room, status
    )

BODIES: dict[str, Any] = {
    "the answer": chat(f"Your key is {KEY}."),
    "the answer, escaped": json.dumps(chat(f"Your key is {KEY}.")).replace("/", r"\/").encode(),
    "the answer, in code points": json.dumps(chat("#")).replace("#", "".join(f"\\u{ord(c):04X}" for c in KEY)).encode(),
    "an answer in parts": chat([{"type": "text", "text": f"Your key is {KEY}."}]),
    "the finish reason": chat("An answer.", finish_reason=KEY),
    "a refusal": {"choices": [{"message": {"content": None, "refusal": f"No, {KEY}."}}], "id": "1"},
    "the thoughts": {"choices": [{"message": {"content": "x", "reasoning_content": f"{KEY}"}}], "id": "1"},
    "an error inside": {"error": {"message": f"invalid key {KEY}"}},
    "a page": f"<html>Bearer {KEY}</html>".encode(),
    "cut JSON": json.dumps(chat(KEY))[:-30].encode(),
    "the usage": {**chat("An answer."), "usage": {"prompt_tokens": KEY}},
    "a field nobody knows": {**chat("An answer."), KEY: KEY},
}


def repeated_in_a_reply(room: Room, body: Any) -> None:
    with answering(room, at_first(Answer(200, body), num=2)):
        room.begin()
        room.do("generate").ok()
        room.do("inspect", flags=("--stage", "generate", "--json"))
        room.do("inspect", flags=("--stage", "generate", "--rejects"))


for _name, _body in BODIES.items():
    CASES[f"the server repeats it in {_name}"] = lambda room, body=_body: repeated_in_a_reply(room, body)


def repeated_in_a_header(room: Room, status: int, name: str) -> None:
    with answering(room, at_first(Answer(status, chat("An answer."), {name: KEY}), num=2)):
        room.begin()
        room.do("generate")


HEADERS = [(429, "Retry-After"), (503, "retry-after-ms"), (307, "Location"), (401, "WWW-Authenticate")]
HEADERS += [(200, "Content-Encoding"), (200, "Content-Type"), (200, "Set-Cookie")]
for _status, _name in HEADERS:
    CASES[f"the server repeats it in {_name} with {_status}"] = lambda room, status=_status, name=_name: (
        repeated_in_a_header(room, status, name)
    )


@case("a reply that is never good")
def _(room: Room) -> None:
    with answering(room, lambda seen: Answer(200, f"{seen.headers}{secrets.token_hex(4)}".encode())):
        room.begin(1)
        room.do("generate").ok()
        assert room.run.manifest("generate")["counts"]["failed"] == 1
        room.do("inspect", flags=("--stage", "generate", "--rejects", "--json")).ok()


@case("nobody listens")
def _(room: Room) -> None:
    with socket.socket() as handle:
        handle.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{handle.getsockname()[1]}/v1"
        room.begin(base_url=address, patience=0.5)
        assert room.do("generate").code == 75


@case("a server without TLS behind https")
def _(room: Room) -> None:
    room.begin(base_url=room.api.teacher.url.replace("http:", "https:"), patience=0.5)
    assert room.do("generate").code == 75


@case("timeouts")
def _(room: Room) -> None:
    room.api.teacher.begin(rules=[{"kind": "hang", "times": 1}])
    room.begin(timeout=0.5)
    room.do("generate").ok()


@case("resets")
def _(room: Room) -> None:
    room.api.teacher.begin(rules=[{"kind": "reset", "times": 1}])
    room.begin()
    room.do("generate").ok()


@case("a wait that is too long")
def _(room: Room) -> None:
    room.api.teacher.begin(rules=[{"kind": "status", "status": 429, "headers": {"Retry-After": "9999"}}])
    room.begin()
    assert room.do("generate").code == 75


def stopped(room: Room, number: int) -> None:
    room.api.teacher.begin(rules=[{"kind": "hang", "skip": 2}])
    room.begin()
    process = room.run.start("generate", env={NAME: KEY})
    wait_until(lambda: room.api.teacher.count()["num_calls"] >= NUM_RECORDS)
    process.send(number)
    room.said.append(process.wait())


for _number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
    CASES[f"a {_number.name} while calls are in flight"] = lambda room, number=_number: stopped(room, number)

POINTS = ["engine.after_answer:2", "journal.after_write:1", "stage.before_manifest"]
for _point in POINTS:
    CASES[f"a kill at {_point}"] = lambda room, point=_point: killed(room, point)


def killed(room: Room, point: str) -> None:
    room.begin()
    assert room.do("generate", failpoint=point).code == 137


@case("a bug between two answers, with a traceback")
def _(room: Room) -> None:
    room.begin()
    result = room.do("generate", failpoint="engine.after_answer:no number", env={"PYTHONASYNCIODEBUG": "1"})
    assert "Traceback" in result.stderr and result.code == 1


@case("a damaged journal and a damaged manifest")
def _(room: Room) -> None:
    room.begin()
    room.do("generate").ok()
    (room.run.dir / "generate" / "manifest.json").write_text("{")
    assert room.do("filter").code == 1
    (path,) = (room.run.dir / "generate" / "journal").glob("*.jsonl")
    path.write_bytes(b'{"key": 5}\n' + path.read_bytes())
    room.do("generate")


@case("a budget that is reached")
def _(room: Room) -> None:
    room.begin()
    assert room.do("generate", flags=("--max-tokens", "1")).code == 4


@case("a full disk")
def _(room: Room) -> None:
    room.begin()
    assert room.do("generate", file_size=600).code == 1


MISTAKES = {
    "as the variable's name": ("teacher.api.api_key_env={}",),
    "as an unknown key of the API": ("teacher.api.api_key={}",),
    "as an unknown key of the teacher": ("teacher.api_key={}",),
    "as an unknown key of everything": ("api_key={}",),
    "in a section that is written inline": ("teacher.api={{api_key: '{}'}}",),
    "in the extra fields of each request": ("teacher.api.extra.api_key={}",),
    "in the extra headers of each request": ("teacher.api.extra={{headers: {{Authorization: 'Bearer {}'}}}}",),
    "as the user in the address": ("teacher.api.base_url=https://{}@example.com/v1",),
    "as the password in the address": ("teacher.api.base_url=https://me:{}@example.com/v1",),
    "in the query of the address": ("teacher.api.base_url=https://example.com/v1?api-key={}",),
    "in one of several addresses": ("teacher.api.base_url=['http://127.0.0.1:1/v1', 'http://{}@127.0.0.1/v1']",),
    "as a number": ("teacher.api.timeout={}", "teacher.api.token={}"),
    "without an equals sign": ("teacher.api.api_key:{}",),
}
PLAIN = KEY.replace("/", "0").replace("+", "1").replace("sk-canary", "sk-proj-canary")
"""The same random digits in the shape that keys have."""


def mistaken(room: Room, settings: tuple[str, ...], key: str) -> None:
    room.begin()
    for command in ("generate", "plan", "report"):
        assert room.do(command, *(setting.format(key) for setting in settings)).code == 2


for _name, _settings in MISTAKES.items():
    CASES[f"the user gives it {_name}"] = lambda room, settings=_settings: mistaken(room, settings, PLAIN)

SECTIONS = {
    "as the variable's name": {"api": {"api_key_env": PLAIN}},
    "as an unknown key": {"api": {"api_key": KEY}},
    "in the address": {"api": {"base_url": f"https://u:{PLAIN}@example.com/v1"}},
    "in the extra fields": {"api": {"extra": {"api_key": KEY}}},
    "as the model's name": {"model": PLAIN},
    "as the device": {"device": PLAIN},
    "as a price": {"price": PLAIN},
}


def written(room: Room, teacher: dict[str, Any]) -> None:
    room.begin()
    room.add_to_pipeline(teacher=teacher)
    for command, flags in (("generate", ()), ("plan", ("--json",)), ("inspect", ())):
        assert room.do(command, flags=flags).code == 2


for _name, _teacher in SECTIONS.items():
    CASES[f"the pipeline file holds it {_name}"] = lambda room, teacher=_teacher: written(room, teacher)


@case("the pipeline file is broken where it stands")
def _(room: Room) -> None:
    room.begin()
    room.written.add(room.run.pipeline)
    for line in (f"api_key: *{PLAIN}", f"{PLAIN}: 1\n{PLAIN}: 2", f"x: !{PLAIN} 1", f"x: [{PLAIN}", f"{PLAIN}: 1"):
        room.run.pipeline.write_text(f"name: x\n{line}\n")
        assert room.do("generate").code == 2


@case("the address in the environment holds it")
def _(room: Room) -> None:
    room.begin(base_url=None)
    for address in (f"https://{PLAIN}@example.com/v1", f"https://example.com/v1?key={PLAIN}", f"http://[{PLAIN}"):
        assert room.do("generate", env={"OPENAI_BASE_URL": address}).code == 2


@case("it must not go over plain http to another machine")
def _(room: Room) -> None:
    room.begin(base_url="http://192.0.2.1/v1")
    assert room.do("generate").code == 2


@case("it holds characters that no key has")
def _(room: Room) -> None:
    room.begin()
    for key in (f"{KEY}\r\nX-Evil: 1", f"{KEY}\u00e9"):
        result = room.do("generate", key=key)
        assert result.code == 2 and "characters that no key has" in result.error


@case("plan, plan --json, plan --sample, with answers and refusals")
def _(room: Room) -> None:
    with answering(room, at_first(echo(500))):
        room.begin()
        for flags in ((), ("--json",), ("--sample", "2"), ("--sample", "2", "--json")):
            room.do("plan", flags=flags).ok()
    with answering(room, echo(401)):
        room.begin()
        assert room.do("plan", flags=("--sample", "2")).code == 1


@case("doctor")
def _(room: Room) -> None:
    with serving(echo(401)) as server:
        room.server = server
        room.begin()
        for flags in ((), ("--json",)):
            process = room.api.zygote.start("doctor", room.run.pipeline, *flags, cwd=room.run.folder, env={NAME: KEY})
            room.said.append(process.wait())


@case("a judge that repeats it")
def _(room: Room) -> None:
    room.begin()
    room.do("generate").ok()
    with answering(room, at_first(echo(500), num=2)):
        judge = {"model": "judge", "engine": "openai", "api": {"base_url": room.server.url, "api_key_env": NAME}}
        room.add_to_pipeline(filter={"judge": {"model": judge}})
        room.written.clear()
        room.do("filter", flags=("--json",))
    with answering(room, echo(401)):
        judge["api"]["base_url"] = room.server.url
        room.add_to_pipeline(filter={"judge": {"model": {**judge, "model": "other"}}})
        room.written.clear()
        assert room.do("filter", fresh=True).code == 1


class BatchServer:
    """Just enough of the Files and Batch API, repeating the key in all it says."""

    def __init__(self, fails: dict[str, int]) -> None:
        self.fails, self.ids = fails, list[str]()

    def __call__(self, seen: Seen) -> Answer:
        path = seen.path.removeprefix("/v1").partition("?")[0]
        for part, status in self.fails.items():
            if path.startswith(part):
                return echo(status)(seen)
        if path == "/files" and isinstance(seen.body, bytes) and seen.body:
            self.ids = [found.decode() for found in re.findall(rb'"custom_id": ?"([^"]+)"', seen.body)]
            return Answer(200, {"id": "file-1", "object": "file", "filename": KEY, "purpose": "batch"})
        if path == "/batches/b-1" or (path == "/batches" and isinstance(seen.body, dict)):
            counts = {"total": len(self.ids), "completed": len(self.ids), "failed": 0}
            files = {"output_file_id": "file-2", "input_file_id": "file-1"}
            return Answer(200, {"id": "b-1", "status": "completed", "request_counts": counts, KEY: KEY, **files})
        if path.endswith("/content"):
            return Answer(200, b"".join(self._line(id_) for id_ in self.ids))
        return Answer(200, {"object": "list", "data": [], "has_more": False})

    def _line(self, id_: str) -> bytes:
        body = chat(f"The key is {KEY}.")
        row = {"id": KEY, "custom_id": id_, "response": {"status_code": 200, "body": body}, "error": None}
        return json.dumps(row).encode() + b"\n"


def batched(room: Room, fails: dict[str, int]) -> None:
    with answering(room, BatchServer(fails)):
        room.begin(batch=True, poll_seconds=1)
        result = room.do("generate", env={"OPENAI_LOG": "debug"})
        assert result.code == (1 if fails else 0), result.stderr


FAILS: list[dict[str, int]] = [{}, {"/files": 401}, {"/files": 400}, {"/batches": 403}, {"/files/file-2": 404}]
for _fails in FAILS:
    CASES[f"a batch API that repeats it, {_fails or 'all well'}"] = lambda room, fails=_fails: batched(room, fails)


@case("a whole run with its report and cards")
def _(room: Room) -> None:
    with answering(room, lambda _: Answer(200, chat(f"The key {KEY}, said {secrets.token_hex(8)} times."))):
        room.begin(24)
        small = ("prompts.held_out=0.25", "train.epochs=1", "train.device=cpu", "curate.near_duplicates=null")
        more = ("filter.checks.language=false", "filter.checks.repetition=false", "curate.decontaminate=null")
        result = room.do("run", *small, *more, flags=("--json",), timeout=300)
        assert result.code == 0, result.stderr
        assert (room.run.dir / "report" / "index.html").is_file()
        for flags in (("--stage", "curate", "--json"), ("--stage", "curate", "--side-by-side")):
            room.do("inspect", *small, *more, flags=flags).ok()


def test_there_are_forty_paths() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES)
def test_the_key_is_seen_nowhere_when(api: Api, name: str) -> None:
    room = Room(api)
    CASES[name](room)
    room.assert_unseen()
