"""A budget is never exceeded by calls that take at most what they could, whatever their order."""

from __future__ import annotations

import json
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdistill.config import Budget
from llmdistill.errors import BudgetError
from llmdistill.run.budget import Purse, Spend, spent_in

amounts = st.integers(0, 300)
steps = st.lists(st.tuples(st.sampled_from(["ask", "answer"]), amounts, amounts, st.floats(0, 1)), max_size=120)


@settings(max_examples=400, deadline=None)
@given(max_tokens=st.none() | st.integers(0, 2000), max_cost=st.none() | st.floats(0, 20), steps=steps)
def test_no_order_of_calls_and_answers_exceeds_it(max_tokens, max_cost, steps):
    purse = Purse(Budget(max_tokens=max_tokens, max_cost=max_cost))
    in_flight: list[Spend] = []
    taken = Spend()
    for action, tokens, cents, part in steps:
        most = Spend(tokens, cents / 100)
        if action == "ask" and purse.reserve(most):
            in_flight.append(most)
        elif action == "answer" and in_flight:
            bound = in_flight.pop(0)
            took = Spend(int(bound.tokens * part), bound.cost * part)
            purse.settle(bound, took)
            taken += took
        worst = sum(in_flight, taken)
        assert max_tokens is None or worst.tokens <= max_tokens
        assert max_cost is None or worst.cost <= max_cost + 1e-6
    assert purse.spent.tokens == taken.tokens and purse.spent.cost == pytest.approx(taken.cost)


@given(limit=st.integers(0, 1000), call=st.integers(1, 100))
def test_nothing_is_held_back_that_would_fit(limit, call):
    purse, num = Purse(Budget(max_tokens=limit)), 0
    while purse.reserve(Spend(call)):
        purse.settle(Spend(call), Spend(call))
        num += 1
    assert num == limit // call
    with pytest.raises(BudgetError, match=f"{num * call:,} of {limit:,} tokens"):
        purse.check(Spend(call))


def test_what_an_answer_did_not_take_is_there_for_the_next():
    purse = Purse(Budget(max_tokens=100))
    assert purse.reserve(Spend(60)) and not purse.reserve(Spend(60))
    purse.settle(Spend(60), Spend(10))
    assert purse.reserve(Spend(60)) and purse.spent == Spend(10)


def test_what_earlier_processes_spent_counts():
    purse = Purse(Budget(max_cost=1.0), Spend(0, 0.9))
    assert not purse.reserve(Spend(0, 0.2)) and purse.reserve(Spend(0, 0.1))


def test_without_limits_everything_passes():
    purse = Purse(Budget())
    assert purse.unlimited and all(purse.reserve(Spend(10**12, 1e12)) for _ in range(10))


def test_a_limit_of_zero_lets_only_what_is_free_through():
    purse = Purse(Budget(max_cost=0.0))
    assert not purse.unlimited and purse.reserve(Spend(1000, 0.0)) and not purse.reserve(Spend(1, 1e-9))


def test_cents_add_up():
    """A thousand times a tenth of a cent is a dollar, however floats add up."""
    purse = Purse(Budget(max_cost=1.0))
    for _ in range(1000):
        assert purse.reserve(Spend(0, 0.001))
        purse.settle(Spend(0, 0.001), Spend(0, 0.001))
    assert not purse.reserve(Spend(0, 0.001))


def test_threads_together_do_not_exceed_it():
    purse = Purse(Budget(max_tokens=1000))
    admitted: list[int] = []

    def spend() -> None:
        while purse.reserve(Spend(3)):
            admitted.append(3)
            purse.settle(Spend(3), Spend(3))

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(admitted) == purse.spent.tokens <= 1000


def test_the_message_says_what_is_spent_and_what_the_next_call_could_take():
    purse = Purse(Budget(max_cost=2.0, max_tokens=5000), Spend(4000, 1.5))
    with pytest.raises(BudgetError) as caught:
        purse.check(Spend(2000, 1.0))
    assert caught.value.exit_code == 4
    for part in ("$1.5000 of $2.0000", "4,000 of 5,000 tokens", "2,000 tokens", "raise the limit"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b"5", b"null", b'{"prompt_tokens": "many"}', b'{"cost": {}}', b"\xff\x00", b"[" * 100_000],
    ids=lambda line: line[:20].decode("latin-1"),
)
def test_a_damaged_journal_line_counts_nothing_and_ends_nothing(tmp_path, line):
    folder = tmp_path / "generate" / "journal"
    folder.mkdir(parents=True)
    good = json.dumps({"key": "a", "prompt_tokens": 7, "completion_tokens": 5, "cost": 0.5}).encode()
    free = json.dumps({"key": "b", "completion_tokens": 1, "cost": None}).encode()
    (folder / "x.jsonl").write_bytes(b"\n".join([good, line, free, b""]))
    assert spent_in(tmp_path) == Spend(13, 0.5)


def test_every_journal_of_every_stage_counts(tmp_path):
    for stage in ("generate", "filter"):
        for name in ("a", "b"):
            path = tmp_path / stage / "journal" / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"key": "k", "prompt_tokens": 10}) + "\n")
    assert spent_in(tmp_path) == Spend(40, 0.0) and spent_in(tmp_path / "none") == Spend()
