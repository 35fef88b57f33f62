"""The process around the calls: full disks, signals, two processes at once, records that failed."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass

import pytest

from tests.faults.api import CONCURRENCY, GROUP_ROWS, Api, ApiRun
from tests.faults.conftest import wait_until


def full_disk_everywhere(api: Api, num_records: int, step: int) -> tuple[int, int]:
    """Let no file grow beyond a limit that rises by `step` bytes; gives the stops and the answers paid for twice."""
    api.teacher.begin(latency=0.002)
    run, stops = api.run(num_records), 0
    while (result := run.generate(file_size=400 + stops * step)).code:
        assert result.code == 1, result.stderr
        assert "may not grow that large" in result.error and str(run.dir) in result.error
        stops += 1
    repaid = sum(api.teacher.log().paid.values()) - num_records
    assert repaid <= stops * (CONCURRENCY + GROUP_ROWS)
    run.assert_complete()
    return stops, repaid


def test_a_disk_that_is_full_at_every_write_in_turn_loses_no_answer(api: Api) -> None:
    stops, _ = full_disk_everywhere(api, 200, step=900)
    assert stops >= 20


@dataclass
class Stop:
    """One signal: how it ended, after how long, and answers that were asked for twice."""

    code: int
    seconds: float
    repaid: int


def stopped(api: Api, number: int, latency: float, num_records: int = 120, second: bool = False) -> Stop:
    """Stop a run in its middle with a signal, then let the same command go on."""
    api.teacher.begin(latency=latency)
    run = api.run(num_records, timeout=60)
    process = run.start("generate")
    wait_until(lambda: api.teacher.count()["num_calls"] >= 2 * CONCURRENCY if latency < 5 else asked(api))
    process.send(number)
    if second:
        time.sleep(0.2)
        process.send(number)
    started = time.monotonic()
    result = process.wait()
    seconds = time.monotonic() - started
    if not second:
        assert result.error == f"error: stopped by signal {number}"
        assert result.stderr.splitlines()[-1].startswith("to go on: llmdistill generate ")
    num_on_disk = len(run.journalled())
    before = sum(api.teacher.log().paid.values())
    api.teacher.begin()
    run.generate().ok()
    run.assert_complete()
    assert api.teacher.count()["num_calls"] == num_records - num_on_disk
    return Stop(result.code, seconds, before - num_on_disk)


def asked(api: Api) -> bool:
    return api.teacher.count()["num_calls"] >= CONCURRENCY


def test_answers_that_arrive_soon_after_a_signal_are_kept(api: Api) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        stop = stopped(api, number, latency=1.0)
        assert (stop.code, stop.repaid) == (128 + number, 0) and stop.seconds < 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_does_not_wait_for_slow_answers(api: Api, number: int) -> None:
    stop = stopped(api, number, latency=30.0)
    assert stop.code == 128 + number and stop.seconds < 5 and stop.repaid <= CONCURRENCY


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_at_once(api: Api, number: int) -> None:
    stop = stopped(api, number, latency=30.0, second=True)
    assert stop.code == 128 + number and stop.seconds < 2 and stop.repaid <= CONCURRENCY


def signals(api: Api, num: int) -> dict[str, list[Stop]]:
    """Many signals of each kind."""
    kinds = {"SIGINT": (signal.SIGINT, False), "SIGTERM": (signal.SIGTERM, False), "twice": (signal.SIGINT, True)}
    return {
        name: [stopped(api, number, latency=0.2 + 0.05 * index, second=second) for index in range(num)]
        for name, (number, second) in kinds.items()
    }


WAITING = {
    "for the time the server named": {"kind": "status", "status": 429, "headers": {"Retry-After": "100"}},
    "after a failure": {"kind": "status", "status": 500},
}


@pytest.mark.parametrize("name", WAITING)
def test_a_signal_ends_a_run_that_waits(api: Api, name: str) -> None:
    api.teacher.begin(rules=[{**WAITING[name], "skip": 20}])
    run = api.run(60)
    process = run.start("generate")
    wait_until(lambda: api.teacher.count()["num_calls"] >= 30 if "after" in name else asked(api))
    time.sleep(0.5)
    process.send(signal.SIGINT)
    started = time.monotonic()
    assert process.wait().code == 130 and time.monotonic() - started < 5
    api.teacher.begin()
    run.generate().ok()
    run.assert_complete()


def races(api: Api, num: int, num_records: int = 60) -> int:
    """Start two processes at once on one run, many times; gives the answers paid for twice."""
    repaid = 0
    for _ in range(num):
        api.teacher.begin(latency=0.02)
        run = api.run(num_records)
        codes = [process.wait().code for process in [run.start("generate") for _ in range(2)]]
        assert 0 in codes and set(codes) <= {0, 75}
        run.assert_complete()
        repaid += sum(api.teacher.log().paid.values()) - num_records
    assert repaid == 0
    return repaid


def test_two_processes_on_one_run_ask_nothing_twice(api: Api) -> None:
    races(api, 4)


def with_failures(api: Api) -> ApiRun:
    api.teacher.begin(rules=[{"kind": "empty_choices", "match": "Question 3"}])
    run = api.run(40)
    run.generate().ok()
    return run


def test_records_without_an_answer_are_failed_and_asked_for_again_only_when_told(api: Api) -> None:
    run = with_failures(api)
    counts = run.manifest("generate")["counts"]
    assert (counts["input"], counts["kept"], counts["rejected"], counts["failed"]) == (40, 29, 0, 11)
    assert {row["reject"]["reason"] for row in run.rejects().values()} == {"failed"}
    api.teacher.begin()
    assert "done already" in run.generate().ok().stderr
    assert api.teacher.count()["num_calls"] == 0
    run.generate(flags=("--retry-failed",)).ok()
    assert api.teacher.count()["num_calls"] == 11
    run.assert_complete()
    api.teacher.begin()
    run.generate(flags=("--retry-failed",)).ok()
    assert api.teacher.count()["num_calls"] == 0


def test_a_kill_while_failed_records_are_asked_for_again_loses_nothing(api: Api) -> None:
    run = with_failures(api)
    api.teacher.begin(latency=0.05)
    for point in ("engine.after_answer:3", "journal.after_sync:1", "stage.between_files:2", "stage.before_manifest"):
        assert run.generate(flags=("--retry-failed",), failpoint=point).code == 137, point
    run.generate(flags=("--retry-failed",)).ok()
    run.assert_complete()
