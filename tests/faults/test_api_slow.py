"""Servers that are slow, silent, late, or answer twice: the deadline of each call holds, and nothing is mixed up."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.faults.api import Api, Log

SLOW = {
    "hang": {"kind": "hang"},
    "a byte a second": {"kind": "drip"},
    "headers a byte a second": {"kind": "slow_header"},
}
"""Ways never to come to an end; each would take ten minutes or more."""

THROUGHPUT = 0.9
"""What is left for the others, of what they had without the slow ones."""


def seconds_of_others(log: Log) -> float:
    """From the first call to the last good answer to a question that was not slow before."""
    slow = {call.key for call in log.calls if call.kind != "ok"}
    others = [call for call in log.calls if call.key not in slow]
    return max(call.answered for call in others) - min(call.arrived for call in log.calls)


def beside_slow_calls(api: Api, rule: dict[str, Any], num_records: int = 2_000, num_slow: int = 10) -> float:
    """Throughput of the other records while some are slow, of the throughput with none that is."""
    seconds = []
    for rules in ([], [{**rule, "first": num_slow}]):
        api.teacher.begin(latency=0.2, jitter=0.6, rules=rules)
        run = api.run(num_records, max_concurrency=200, timeout=8)
        run.generate().ok()
        run.assert_complete()
        log = api.teacher.log()
        again = Counter(call.key for call in log.calls if call.kind == "ok")
        assert len(log.calls) <= num_records + (num_slow if rules else 0), again.most_common(3)
        seconds.append(seconds_of_others(log))
    share = seconds[0] / seconds[1]
    assert share >= THROUGHPUT
    return share


@pytest.mark.parametrize("name", SLOW)
def test_ten_slow_calls_do_not_slow_the_others(api: Api, name: str) -> None:
    beside_slow_calls(api, SLOW[name])


def test_a_record_that_always_hangs_is_given_up_and_the_run_ends(api: Api) -> None:
    api.teacher.begin(rules=[{"kind": "hang", "match": "Question 7:"}])
    run = api.run(20, timeout=0.3)
    run.generate(timeout=100).ok()
    counts = run.manifest("generate")["counts"]
    assert (counts["kept"], counts["rejected"], counts["failed"]) == (19, 0, 1)
    (row,) = run.rejects().values()
    assert row["reject"]["reason"] == "failed" and "timeout" in row["reject"]["detail"]
    assert api.teacher.count()["num_calls"] <= 19 + 6


ODD = {
    "after the deadline": {"kind": "late", "share": 0.1, "times": 1, "delay": 1.1},
    "twice at once": {"kind": "duplicate", "share": 0.2},
    "twice, a little later": {"kind": "duplicate", "share": 0.2, "delay": 0.0002},
    "twice, when the next is asked": {"kind": "duplicate", "share": 0.2, "delay": 0.002},
}
"""Replies that come when nobody waits for them any more, or already for another."""


def untimely(api: Api, rules: list[dict[str, Any]], num_records: int) -> int:
    """Replies too late or too many; gives the number of calls."""
    api.teacher.begin(latency=0.005, rules=rules)
    run = api.run(num_records, timeout=1)
    run.generate().ok()
    run.assert_complete()
    return api.teacher.count()["num_calls"]


@pytest.mark.parametrize("name", ODD)
def test_late_and_doubled_replies_give_each_record_its_own_answer_once(api: Api, name: str) -> None:
    assert untimely(api, [ODD[name]], 500) <= 500 * 1.6


def test_answers_in_any_order_go_to_their_own_records(api: Api) -> None:
    rules = [{"kind": "late", "share": 0.2, "delay": delay} for delay in (0.01, 0.05, 0.1, 0.2)]
    api.teacher.begin(rules=rules)
    run = api.run(400, max_concurrency=64)
    run.generate().ok()
    run.assert_complete()
    assert api.teacher.count()["num_calls"] == 400


def test_equal_answers_of_a_server_without_ids_are_all_taken(api: Api) -> None:
    api.teacher.begin(rules=[{"kind": "constant"}])
    run = api.run(100)
    run.generate().ok()
    assert [row["completion"][-1]["content"] for row in run.kept()] == ["4"] * 100
    assert api.teacher.count()["num_calls"] == 100
