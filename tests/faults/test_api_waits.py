"""A server says when to come back: nobody comes earlier, and nonsense is not obeyed."""

from __future__ import annotations

import time

import pytest

from tests.faults.api import Api, Log, fake_teacher

SENT_ALREADY = 0.15
"""Seconds in which a call may still arrive that was sent before the answer was read."""

FORMS = {
    "2": ({"Retry-After": "2"}, 2.0),
    "1.5": ({"Retry-After": "1.5"}, 1.5),
    "a date": ({"Retry-After": "date:+3"}, 1.9),
    "milliseconds": ({"retry-after-ms": "1500", "Retry-After": "2"}, 1.5),
    "spaces": ({"Retry-After": "  2  "}, 2.0),
}
"""What the server says, and the seconds in which nobody may call it."""

NONSENSE = ["soon", "-5", "", "date:-100", "NaN", "inf", "1e400", "0x10", "Wed, 99 Foo 2026 99:99:99 GMT", "2;3"]


def calls_too_early(log: Log, seconds: float) -> int:
    """Calls that came although the server had asked everybody to wait."""
    refused = [call.answered for call in log.calls if call.kind == "status"]
    return sum(
        any(moment + SENT_ALREADY < call.arrived < moment + seconds - 0.02 for moment in refused) for call in log.calls
    )


def refused_until(api: Api, num_records: int, headers: dict[str, str], seconds: float, status: int = 429) -> int:
    """Refuse all calls of the first half second, naming a time; gives how many came too early."""
    api.teacher.begin(rules=[{"kind": "status", "status": status, "headers": headers, "seconds": 0.5}])
    run = api.run(num_records)
    run.generate().ok()
    run.assert_complete()
    return calls_too_early(api.teacher.log(), seconds)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", FORMS)
def test_nobody_calls_before_the_time_that_the_server_named(api: Api, form: str, status: int) -> None:
    assert refused_until(api, 200, *FORMS[form], status=status) == 0


def test_only_the_server_that_asked_for_it_is_left_alone(api: Api) -> None:
    with fake_teacher(latency=0.05) as other:
        rule = {"kind": "status", "status": 429, "headers": {"Retry-After": "3"}, "seconds": 0.5}
        api.teacher.begin(latency=0.05, rules=[rule])
        run = api.run(400, base_url=[api.teacher.url, other.url], max_concurrency=8)
        run.generate().ok()
        run.assert_complete()
        assert calls_too_early(api.teacher.log(), 3.0) == 0
        first = api.teacher.log().calls[0].arrived
        assert sum(first + 0.5 < call.arrived < first + 2.5 for call in other.log().calls) > 100


@pytest.mark.parametrize("value", NONSENSE)
def test_a_nonsensical_time_is_ignored(api: Api, value: str) -> None:
    rule = {"kind": "status", "status": 429, "headers": {"Retry-After": value}, "first": 5}
    api.teacher.begin(rules=[rule])
    run = api.run(40)
    run.generate(timeout=30).ok()
    run.assert_complete()


@pytest.mark.parametrize("value", ["600", "date:+600", "99999999999", "1e30", "date:+99999999"])
def test_a_time_too_far_away_stops_the_run_saying_when_to_go_on(api: Api, value: str) -> None:
    api.teacher.begin(rules=[{"kind": "status", "status": 429, "headers": {"Retry-After": value}, "skip": 50}])
    run = api.run(200)
    result = run.generate(timeout=30)
    assert result.code == 75, result.stderr
    assert "asks to wait" in result.error and ", until " in result.error
    assert api.teacher.count()["num_calls"] <= 50 + 16
    num_on_disk = len(run.journalled())
    assert num_on_disk >= 50 - 16
    api.teacher.begin()
    run.generate().ok()
    assert api.teacher.count()["num_calls"] == 200 - num_on_disk
    run.assert_complete()


def test_the_longest_wait_is_a_setting(api: Api) -> None:
    rule = {"kind": "status", "status": 429, "headers": {"Retry-After": "2"}, "first": 1}
    api.teacher.begin(rules=[rule])
    run = api.run(20, max_retry_after=1)
    assert run.generate().code == 75
    api.teacher.begin(rules=[rule])
    run.generate("teacher.api.max_retry_after=2").ok()
    run.assert_complete()


SILENT = {
    "429": {"kind": "status", "status": 429},
    "503": {"kind": "status", "status": 503},
    "reset": {"kind": "reset"},
    "hang": {"kind": "hang"},
}


@pytest.mark.parametrize("name", SILENT)
def test_a_server_that_never_answers_stops_the_run_when_patience_ends(api: Api, name: str) -> None:
    api.teacher.begin(rules=[{**SILENT[name], "skip": 30}])
    run = api.run(100, patience=2, timeout=1)
    started = time.monotonic()
    result = run.generate(timeout=60)
    assert result.code == 75, result.stderr
    assert "no answer for" in result.error and time.monotonic() - started < 45
    api.teacher.begin()
    run.generate().ok()
    run.assert_complete()


def test_a_server_that_is_not_there_stops_the_run_when_patience_ends(api: Api) -> None:
    with fake_teacher() as other:
        url = other.url
    run = api.run(20, base_url=url, patience=2)
    result = run.generate(timeout=60)
    assert result.code == 75 and "127.0.0.1" in result.error
