"""The Batch API: whenever the client is killed and whatever the server does, nothing is submitted twice or lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from llmdistill.engines.chat import payload
from llmdistill.engines.endpoint import Endpoint
from tests.faults.batch_client import request, settings
from tests.faults.batch_server import KEY, answer_to
from tests.tiny import REPO

KILLED_AT_FAILPOINT = 137
FAILPOINTS = (
    "after_input",
    "after_upload_before_record",
    "after_upload_recorded",
    "after_create_before_record",
    "after_create_recorded",
    "after_poll",
    "before_fetched_recorded",
    "after_fetch",
)


def python(*arguments: Any, stderr: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "BATCH_KEY": KEY}
    environment.pop("LLMDISTILL_FAILPOINT", None)
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=REPO,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=open(stderr, "w"),  # noqa: SIM115
        text=True,
    )


@pytest.fixture(scope="session")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """Where the clients come from."""
    process = python("tests.faults.batch_client", stderr=tmp_path_factory.mktemp("batch") / "client.txt")
    assert process.stdout.readline(), "the client cannot be imported"
    yield process
    process.stdin.close()
    process.wait(timeout=30)


@dataclass
class World:
    """A server, a run directory, and the clients that come and go."""

    forker: subprocess.Popen[str]
    folder: Path
    log: Path
    port: int
    api: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    budget: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def tell(self, **order: Any) -> None:
        """Set what the server does from now on."""
        data = json.dumps(order).encode()
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{self.port}/control", data)).read()

    def report(self, what: str = "control") -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{what}") as reply:
            return json.load(reply)

    def wait_for_calls(self, count: int, seconds: float) -> None:
        """Wait until the server has had this many more calls, or this long."""
        deadline, goal = time.monotonic() + seconds, self.report("calls") + count
        while self.report("calls") < goal and time.monotonic() < deadline:
            time.sleep(0.005)

    def _ask(self, **order: Any) -> dict[str, Any]:
        self.forker.stdin.write(json.dumps(order, default=str) + "\n")
        self.forker.stdin.flush()
        return json.loads(self.forker.stdout.readline())

    def start(self, count: int, failpoint: str = "") -> int:
        api = {"base_url": self.url, "api_key_env": "BATCH_KEY", "poll_seconds": 1, "timeout": 10, "patience": 30}
        env = {"LLMDISTILL_FAILPOINT": failpoint, **self.env}
        order = {"folder": self.folder, "numbers": [0, count], "api": api | self.api, "env": env}
        order["budget"] = self.budget
        return self._ask(do="start", output=self.folder / "output.txt", **order)["pid"]

    def wait(self, pid: int) -> int:
        return self._ask(do="wait", pid=pid, timeout=60)["code"]

    def run(self, count: int, failpoint: str = "") -> int:
        """Exit code of one client."""
        return self.wait(self.start(count, failpoint))

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text()

    def journal(self) -> dict[str, dict[str, Any]]:
        rows = [json.loads(line) for line in (self.folder / "journal.jsonl").read_bytes().split(b"\n")[:-1]]
        found = {row["key"]: row for row in rows}
        assert len(found) == len(rows), "a completion is in the journal twice"
        return found

    def submissions(self) -> Counter[str]:
        """How often each request was in a batch that the server made."""
        lines = self.log.read_text().splitlines()
        return Counter(line.split()[2] for line in lines)

    def expected(self, number: int) -> str:
        return answer_to(payload(request(number), settings(self.api), Endpoint(self.url)))

    def check(self, count: int, most: int = 1) -> None:
        """Each request has its own answer, and was submitted at least once and at most `most` times."""
        journal, submissions = self.journal(), self.submissions()
        assert len(journal) == count
        for number in range(count):
            assert journal[f"r{number}"]["text"] == self.expected(number)
        assert set(submissions) == {self.expected(number) for number in range(count)}
        assert max(submissions.values()) <= most, f"{sum(n > most for n in submissions.values())} submitted too often"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The provider's port."""
    stderr = tmp_path_factory.mktemp("server") / "stderr.txt"
    process = python("tests.faults.batch_server", stderr=stderr)
    yield int(process.stdout.readline())
    process.stdin.close()
    process.wait(timeout=30)
    assert "AssertionError" not in stderr.read_text(), "the server was sent what no provider takes"


@pytest.fixture
def world(forker: subprocess.Popen[str], server: int, tmp_path: Path) -> Iterator[World]:
    world = World(forker, tmp_path, tmp_path / "server.log", server)
    world.tell(log=str(world.log))
    yield world
    assert KEY not in "".join(path.read_text("latin-1") for path in tmp_path.rglob("*") if path.is_file())


def test_ten_thousand_requests_survive_kills_at_random_moments(world: World) -> None:
    world.api = {"batch_requests": 700}
    world.tell(seconds=[0.5, 4.0])
    rng, kills, code = random.Random(6), 0, None
    while code != 0:
        pid = world.start(10_000)
        if kills < 12:
            world.wait_for_calls(1, seconds=10)
            world.wait_for_calls(rng.randint(0, 15), seconds=1)
            time.sleep(rng.uniform(0.0, 0.1))
            os.kill(pid, signal.SIGKILL)
        code = world.wait(pid)
        assert code in (0, -signal.SIGKILL), world.output
        kills += code != 0
    assert kills >= 5
    world.check(10_000)


def test_a_kill_at_every_boundary_submits_nothing_twice(world: World) -> None:
    world.api = {"batch_requests": 40}
    world.tell(listed=-1)
    for count, point in enumerate(FAILPOINTS):
        assert world.run(400, f"batch.{point}:{1 + count % 3}") == KILLED_AT_FAILPOINT, point
    assert world.run(400) == 0, world.output
    world.check(400)


@pytest.mark.parametrize("fault", ["reset:after", "503:after", "500", "late", "garbage:after", "429"])
def test_a_batch_whose_making_seemed_to_fail_is_made_once(world: World, fault: str) -> None:
    world.tell(calls={"create": ["ok", fault]}, seconds=[2.2, 2.4])
    world.api = {"batch_requests": 10}
    assert world.run(30) == 0, world.output
    world.check(30)
    assert len(world.report()["batches"]) == 3


def test_an_upload_that_seemed_to_fail_leaves_no_second_file(world: World) -> None:
    world.tell(calls={"upload": ["reset:after"]})
    assert world.run(5) == 0, world.output
    world.check(5)
    assert world.report()["files"] == 2


def test_calls_that_fail_now_and_then_cost_nothing(world: World) -> None:
    faults = ["500", "reset", "ok", "429", "503:after", "garbage"]
    world.tell(calls={kind: list(faults) for kind in ("retrieve", "list", "content", "upload")})
    world.api = {"batch_requests": 10}
    assert world.run(30) == 0, world.output
    world.check(30)


def test_a_file_that_comes_cut_short_is_fetched_again_not_paid_again(world: World) -> None:
    world.tell(calls={"content": ["cut", "cut"]})
    assert world.run(20) == 0, world.output
    world.check(20)


@pytest.mark.parametrize("outcome", ["expired", "cancelled", "failed"])
def test_what_a_batch_left_undone_goes_into_another(world: World, outcome: str) -> None:
    world.tell(outcomes=[outcome, outcome])
    assert world.run(20) == 0, world.output
    world.check(20, most=3)
    assert max(world.report()["answered"].values()) == 1


def test_what_no_batch_answers_is_given_up_and_owed_again(world: World) -> None:
    world.tell(outcomes=["failed"] * 3)
    assert world.run(4) == 0, world.output
    assert {row["finish_reason"] for row in world.journal().values()} == {"failed"}
    assert all("it broke" in row["error"] for row in world.journal().values())
    (world.folder / "journal.jsonl").unlink()
    assert world.run(4) == 0, world.output
    world.check(4, most=4)


def test_lines_of_every_kind_end_as_they_should(world: World) -> None:
    fates = {
        1: "429",
        2: "500",
        3: "400",
        4: "too_long",
        5: "error",
        6: "empty",
        7: "damaged",
        8: "missing",
        9: "twice",
    }
    fates |= {10: "unknown"}
    world.tell(lines={f"question {number}.": [fate] for number, fate in fates.items()})
    assert world.run(12) == 0, world.output
    journal = world.journal()
    assert len(journal) == 12
    assert journal["r3"]["finish_reason"] == "refused" and "HTTP 400" in journal["r3"]["error"]
    assert journal["r4"]["finish_reason"] == "too_long"
    for number in (0, 1, 2, 5, 6, 7, 8, 9, 10, 11):
        assert journal[f"r{number}"]["text"] == world.expected(number)
    assert journal["r6"]["num_lost"] == 1
    assert world.submissions()[world.expected(9)] == 1
    assert world.submissions()[world.expected(3)] == 1


def test_a_full_queue_is_waited_for(world: World) -> None:
    world.api = {"batch_requests": 10}
    world.tell(most_running=2, seconds=[0.3, 0.6])
    assert world.run(60) == 0, world.output
    world.check(60)


def test_batches_turned_away_are_made_smaller_and_later(world: World) -> None:
    world.tell(outcomes=["turned away", "turned away"])
    assert world.run(40) == 0, world.output
    world.check(40, most=3)
    assert [batch["request_counts"]["total"] for batch in world.report()["batches"]] == [40, 20, 20, 20]


def test_answers_are_given_again_without_the_server(world: World) -> None:
    assert world.run(50, "journal.after_write:1") == KILLED_AT_FAILPOINT
    calls = world.report()["calls"]
    assert world.run(50) == 0, world.output
    assert world.report()["calls"] == calls
    world.check(50)


def test_a_journal_that_lost_rows_has_them_again_for_nothing(world: World) -> None:
    assert world.run(20) == 0, world.output
    lines = (world.folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (world.folder / "journal.jsonl").write_bytes(b"".join(lines[:7]))
    assert world.run(20) == 0, world.output
    world.check(20)


def test_a_server_that_refuses_everything_stops_the_run_and_is_asked_again_later(world: World) -> None:
    world.tell(lines={"question": "400"})
    assert world.run(30) == 1
    assert "HTTP 400" in world.output and not world.journal()
    world.tell(lines={})
    assert world.run(30) == 0, world.output
    world.check(30, most=2)


@pytest.mark.parametrize("fault", ["401", "403", "404", "400", "redirect"])
def test_a_refusal_is_not_retried(world: World, fault: str) -> None:
    world.tell(calls={"upload": [fault]})
    assert world.run(5) == 1
    assert world.output.count("error: ") == 1 and "Traceback" not in world.output
    calls = world.report()["calls"]
    assert calls["upload"] == 1 and "stolen" not in calls
    assert world.run(5) == 0, world.output
    world.check(5)


def test_a_server_that_stays_away_ends_in_try_later(world: World) -> None:
    world.api = {"patience": 0}
    world.tell(calls={"upload": ["503"], "retrieve": ["ok", "503"]})
    for _ in range(2):
        assert world.run(5) == 75
    assert world.output.count("run the same command again") == 2
    assert world.run(5) == 0, world.output
    world.check(5)


def test_replies_that_are_endless_or_huge_do_no_harm(world: World) -> None:
    world.api = {"timeout": 1, "max_reply_bytes": 1_000_000}
    world.tell(calls={"upload": ["slow"], "retrieve": ["slow", "huge", "gzip"], "content": ["slow", "gzip"]})
    assert world.run(5) == 0, world.output
    world.check(5)


def test_the_batch_of_another_run_is_not_taken_for_ours(world: World) -> None:
    assert world.run(5) == 0
    other = replace(world, folder=world.folder / "other")
    other.folder.mkdir()
    assert other.run(5, "batch.after_upload_recorded") == KILLED_AT_FAILPOINT
    assert other.run(5) == 0, other.output
    other.check(5, most=2)
    assert len(world.report()["batches"]) == 2


def test_what_a_budget_allows_is_answered_before_the_run_stops(world: World) -> None:
    world.budget = 7
    assert world.run(10) == 4
    world.check(7)
    world.budget = None
    assert world.run(10) == 0, world.output
    world.check(10)


def test_a_key_that_a_server_repeats_is_shown_nowhere(world: World) -> None:
    world.api = {"patience": 0}
    for kind, status in (("upload", 400), ("upload", 500), ("retrieve", 500), ("content", 403)):
        world.tell(calls={kind: [f"echo:{status}"]})
        assert world.run(5) in (1, 75)
    assert world.run(5) == 0, world.output
    world.tell(calls={}, lines={"question 11.": ["401"], "question 12.": ["500"]}, outcomes=["turned away"])
    world.api = {}
    world.run(25)
    world.tell(calls={"create": ["echo:401"]})
    assert world.run(30) == 1
    assert world.output.count("***") > 5


def test_no_key_of_the_environment_goes_to_a_server_without_one(world: World) -> None:
    world.api, world.env = (
        {"api_key_env": None},
        {"OPENAI_API_KEY": "sk-not-for-you", "OPENAI_ADMIN_KEY": "sk-nor-this"},
    )
    world.tell(key=False)
    assert world.run(5) == 0, world.output
    assert set(world.report()["headers"]) == {None}
