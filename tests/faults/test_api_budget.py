"""A budget is kept to the last call, and reaching it costs nothing that is there."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from tests.faults.api import CONCURRENCY, Api, ApiRun
from tests.faults.conftest import wait_until
from tests.faults.fake_teacher import COMPLETION_TOKENS

PRICE = "teacher.price={input: 0, output: 125000}"
"""An answer of eight tokens costs one dollar; one that is not there yet could cost `MOST`."""

MOST = 32 * 0.125
NUM_RECORDS = 80


@dataclass
class Budgets:
    """What budgets did, in dollars."""

    num: int = 0
    most_over: float = 0.0
    most_left: float = 0.0


def spent(run: ApiRun) -> int:
    """Dollars that the teacher has earned."""
    return sum(run.teacher.log().paid.values())


def stop_at(api: Api, limit: float) -> tuple[float, float]:
    """Run until the budget is reached, twice; then raise it. Gives dollars over and dollars left."""
    api.teacher.begin(latency=0.01)
    run = api.run(NUM_RECORDS)
    result = run.generate(PRICE, flags=("--max-cost", str(limit)))
    assert result.code == 4, result.stderr
    assert "budget" in result.error
    paid = spent(run)
    assert len(run.journalled()) == paid
    assert run.generate(PRICE, flags=("--max-cost", str(limit))).code == 4
    assert spent(run) == paid
    run.generate(PRICE, flags=("--max-cost", str(NUM_RECORDS + MOST))).ok()
    assert spent(run) == NUM_RECORDS
    run.assert_complete()
    assert run.manifest("generate")["usage"]["cost"] == pytest.approx(NUM_RECORDS)
    return paid - limit, limit - paid


def budgets(api: Api, num: int) -> Budgets:
    """Many budgets that end somewhere in the run."""
    rng, found = random.Random(4), Budgets(num, -1e9)
    for _ in range(num):
        over, left = stop_at(api, round(rng.uniform(0.0, NUM_RECORDS - 1), 2))
        found.most_over, found.most_left = max(found.most_over, over), max(found.most_left, left)
    assert found.most_over <= 0 and found.most_left <= MOST
    return found


def test_no_budget_is_exceeded_and_none_is_left_unused(api: Api) -> None:
    budgets(api, 6)


@pytest.mark.parametrize("limit", [0, 500, 700])
def test_a_budget_of_tokens_is_kept(api: Api, limit: int) -> None:
    api.teacher.begin()
    run = api.run(NUM_RECORDS)
    result = run.generate(flags=("--max-tokens", str(limit)))
    assert result.code == 4 and "budget" in result.error
    rows = run.journalled().values()
    used = sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)
    assert used <= limit and len(rows) == sum(api.teacher.log().paid.values())
    assert len(rows) * COMPLETION_TOKENS <= limit
    run.generate().ok()
    run.assert_complete()


def test_a_budget_covers_what_earlier_processes_spent_and_kills_cost_at_most_the_calls_in_flight(api: Api) -> None:
    api.teacher.begin(latency=0.05)
    run = api.run(NUM_RECORDS)
    limit, kills = 60, 0
    for wanted in (10, 25, 40):
        process = run.start("generate", PRICE, f"budget.max_cost={limit}")
        wait_until(lambda wanted=wanted: api.teacher.count()["num_answers"] >= wanted)
        process.send()
        kills += process.wait().code == -9
    assert kills == 3
    assert run.generate(PRICE, f"budget.max_cost={limit}").code == 4
    assert spent(run) <= limit + kills * (CONCURRENCY + 32)
    assert len(run.journalled()) <= limit


@pytest.mark.parametrize("kind", ["truncated_json", "chunks_that_stop"])
def test_failures_count_with_what_they_could_have_cost(api: Api, kind: str) -> None:
    """A reply that was cut off may have been charged for."""
    api.teacher.begin(rules=[{"kind": kind, "share": 0.5}])
    run = api.run(NUM_RECORDS)
    result = run.generate(PRICE, flags=("--max-cost", "60"), timeout=200)
    assert result.code == 4, result.stderr
    log = api.teacher.log()
    assert len(log.calls) <= 60, "each call is worth a dollar, whether its answer could be read or not"
