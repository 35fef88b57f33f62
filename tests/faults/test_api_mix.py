"""Servers that fail often, refuse everything for a while, or go away: every record is answered, without a rush."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytest

from tests.faults.api import Api, ApiRun, Log

MIX = [
    {"kind": "status", "status": 429, "share": 0.06},
    {"kind": "status", "status": 500, "share": 0.06},
    {"kind": "status", "status": 503, "share": 0.06},
    {"kind": "reset", "share": 0.06},
    {"kind": "hang", "share": 0.06},
]
"""Thirty percent of all calls fail, each in one of five ways."""

MOST_CALLS = 1.6
"""Calls per record; 1 / 0.7 = 1.43 is what the mix needs."""

MOST_RUSH = 1.5
"""Highest rate after an outage, of the rate before it."""

WINDOW = 0.5


@dataclass
class Finished:
    """A run that ended well: calls per record, seconds, and what the teacher saw."""

    calls_per_record: float
    seconds: float
    log: Log


def finish(run: ApiRun) -> Finished:
    """Run to the end and see that nothing is missing."""
    started = time.monotonic()
    run.generate(timeout=500).ok()
    seconds = time.monotonic() - started
    run.assert_complete()
    log = run.teacher.log()
    return Finished(len(log.calls) / len(run.questions), seconds, log)


def mixed_faults(api: Api, num_records: int, seed: int) -> Finished:
    """Thirty percent of failures."""
    api.teacher.begin(latency=0.01, seed=seed, rules=MIX)
    found = finish(api.run(num_records, timeout=0.5, max_concurrency=32))
    assert found.calls_per_record <= MOST_CALLS
    return found


def rush_after(log: Log, began: float, ended: float) -> float:
    """Highest rate of calls after an outage, of the rate before it."""
    before = sorted(call.arrived for call in log.calls if call.arrived < began)
    steady = (len(before) - 1) / (before[-1] - before[0])
    return max(log.rates(WINDOW, since=ended)) / steady


def outage(api: Api, num_records: int, rule: dict[str, Any], seconds: float, after: int, latency: float = 0.1) -> float:
    """Everything fails for a while in the middle of a run; gives how much of a rush there was afterwards."""
    api.teacher.begin(latency=latency, rules=[{**rule, "skip": after, "seconds": seconds}])
    log = finish(api.run(num_records, max_concurrency=32, patience=seconds + 60)).log
    first = next(call.arrived for call in log.calls if call.kind == rule["kind"])
    rush = rush_after(log, first, first + seconds)
    assert rush <= MOST_RUSH
    return rush


def absence(api: Api, num_records: int, seconds: float) -> float:
    """The server goes away in the middle of a run and comes back; gives how much of a rush there was afterwards."""
    api.teacher.begin(latency=0.1)
    run = api.run(num_records, max_concurrency=32, patience=seconds + 60)
    process = run.start("generate")
    while api.teacher.count()["num_calls"] < num_records // 3:
        time.sleep(0.01)
    gone = time.monotonic()
    api.teacher.go_down(seconds)
    process.wait(timeout=seconds + 200).ok()
    run.assert_complete()
    rush = rush_after(api.teacher.log(), gone, gone + seconds)
    assert rush <= MOST_RUSH
    return rush


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_with_thirty_percent_of_failures_every_record_is_answered_for_few_calls(api: Api, seed: int) -> None:
    mixed_faults(api, 400, seed)


REFUSALS = {
    "429": {"kind": "status", "status": 429},
    "429 after 2": {"kind": "status", "status": 429, "headers": {"Retry-After": "2"}},
    "503": {"kind": "status", "status": 503},
    "529": {"kind": "status", "status": 529},
    "500": {"kind": "status", "status": 500},
    "reset": {"kind": "reset"},
    "close": {"kind": "close"},
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_server_that_refuses_everything_for_a_while_is_not_rushed_afterwards(api: Api, name: str) -> None:
    outage(api, 700, REFUSALS[name], seconds=1.5, after=350)


def test_a_server_that_goes_away_and_comes_back_needs_nobody(api: Api) -> None:
    absence(api, 1_000, seconds=4.0)


def test_a_server_that_refuses_everything_at_first_is_answered_by_later(api: Api) -> None:
    api.teacher.begin(rules=[{"kind": "status", "status": 429, "seconds": 3.0}])
    found = finish(api.run(200))
    assert found.calls_per_record < 3


def test_a_server_that_takes_few_calls_at_once_is_given_few(api: Api) -> None:
    api.teacher.begin(latency=0.05, max_in_flight=8)
    found = finish(api.run(600, max_concurrency=64))
    assert found.calls_per_record < MOST_CALLS
    late = found.log.calls[len(found.log.calls) // 2 :]
    assert sum(call.kind != "ok" for call in late) / len(late) < 0.3


def test_concurrency_grows_back_after_an_outage(api: Api) -> None:
    api.teacher.begin(latency=0.05, rules=[{"kind": "status", "status": 429, "skip": 100, "seconds": 1.0}])
    log = finish(api.run(2_000, max_concurrency=32)).log
    tail = sorted(call.arrived for call in log.calls)[-400:]
    one_at_a_time = 1 / 0.05
    assert 399 / (tail[-1] - tail[0]) > 5 * one_at_a_time, "of 32 at best; what this machine can do is not asked"


def test_two_servers_share_the_work_and_one_of_them_may_go(api: Api) -> None:
    from tests.faults.api import fake_teacher

    with fake_teacher(latency=0.05) as other:
        api.teacher.begin(latency=0.05)
        run = api.run(600, base_url=[api.teacher.url, other.url], max_concurrency=8)
        process = run.start("generate")
        while min(teacher.count()["num_calls"] for teacher in (api.teacher, other)) < 50:
            time.sleep(0.01)
        api.teacher.go_down(3.0)
        process.wait().ok()
        run.assert_complete()
        counts = [len(teacher.log().calls) for teacher in (api.teacher, other)]
        assert min(counts) >= 50 and sum(counts) <= 600 * MOST_CALLS
