"""The tests behind the drift report: against their definitions, false alarms counted, real differences found."""

from __future__ import annotations

import itertools
import json
import time

import numpy as np
import pytest

from llmdistill.curate.embed import tfidf
from llmdistill.refresh.two_samples import (
    Result,
    holm,
    mean_difference,
    mean_interval,
    mmd,
    ranks_test,
    shares_test,
    shift_test,
)
from tests.tiny import PROMPTS, REPO

GSM8K = REPO / "data" / "gsm8k" / "train-first-600.jsonl"


def texts_of(path, key: str) -> list[str]:
    return [json.loads(line)[key] for line in path.read_text("utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def real() -> tuple[np.ndarray, np.ndarray]:
    """Vectors of instructions and of school mathematics, made together as drift makes them."""
    instructions, mathematics = texts_of(PROMPTS, "prompt"), texts_of(GSM8K, "question")
    vectors = tfidf([*instructions, *mathematics])
    return vectors[: len(instructions)], vectors[len(instructions) :]


def mmd_by_definition(first: np.ndarray, second: np.ndarray) -> float:
    """Gretton et al. 2012, equation 3, pair by pair."""
    rows = np.concatenate([first, second]).astype(np.float64)
    squared = [float(((a - b) ** 2).sum()) for a, b in itertools.combinations(rows, 2)]
    width = float(np.median(squared))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / (2 * width)))

    def inside(rows: np.ndarray) -> float:
        return sum(kernel(a, b) for a, b in itertools.permutations(rows, 2)) / (len(rows) * (len(rows) - 1))

    between = sum(kernel(a, b) for a in first for b in second) / (len(first) * len(second))
    return inside(first.astype(np.float64)) + inside(second.astype(np.float64)) - 2 * between


@pytest.mark.parametrize("sizes", [(2, 2), (7, 12), (30, 9)], ids=["least", "few", "more-new"])
def test_mmd_is_its_definition(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(sizes[0], 5)), rng.normal(0.3, 1.2, size=(sizes[1], 5))
    assert mmd(first, second, permutations=9).value == pytest.approx(mmd_by_definition(first, second), abs=2e-6)


def test_mmds_p_value_is_that_of_all_divisions() -> None:
    """5 + 4 rows can be divided in 126 ways; the drawn p comes near the exact one."""
    rng = np.random.default_rng(3)
    rows = np.concatenate([rng.normal(size=(5, 3)), rng.normal(0.9, 1, size=(4, 3))])
    found = mmd(rows[:5], rows[5:], permutations=9_999)
    values = []
    for chosen in itertools.combinations(range(9), 5):
        rest = [row for row in range(9) if row not in chosen]
        values.append(mmd_by_definition(rows[list(chosen)], rows[rest]))
    exact = float(np.mean(np.array(values) >= found.value - 1e-6))
    assert 0.01 < exact < 0.5 and found.p == pytest.approx(exact, abs=0.02)


def test_two_samples_of_one_distribution_seldom_seem_to_differ(real: tuple[np.ndarray, np.ndarray]) -> None:
    """500 draws of 40 and 120 real prompts each: 5 % false alarms lie within 3.1 % to 6.9 % in 95 of 100 cases."""
    rng = np.random.default_rng(0)
    alarms = 0
    for number in range(500):
        rows = rng.permutation(real[0])
        alarms += mmd(rows[:120], rows[120:160], seed=number, permutations=99).p <= 0.05
    assert 0.025 <= alarms / 500 <= 0.075


def test_twenty_questions_of_another_kind_are_told_apart(real: tuple[np.ndarray, np.ndarray]) -> None:
    instructions, mathematics = real
    for start in range(0, 600, 20):
        assert mmd(instructions, mathematics[start : start + 20]).p == 0.001


def test_a_fifth_of_another_kind_among_many_new_prompts_is_found(real: tuple[np.ndarray, np.ndarray]) -> None:
    instructions, mathematics = np.random.default_rng(0).permutation(real[0]), real[1]
    mixed = np.concatenate([instructions[:160], mathematics[:40]])
    assert mmd(instructions[200:], mixed).p <= 0.05
    assert mmd(instructions[200:], instructions[:200]).p > 0.05


def test_equal_rows_are_no_difference() -> None:
    assert mmd(np.ones((30, 4)), np.ones((20, 4))).p == 1.0
    half = np.repeat(np.eye(4), 10, axis=0)
    assert mmd(half, half).p > 0.5


def test_mmd_of_the_largest_samples_takes_seconds_not_minutes() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4_000, 64)).astype(np.float32)
    started = time.process_time()
    mmd(rows[:2_000], rows[2_000:])
    assert time.process_time() - started < 20


def test_chi_square_of_frequent_categories_is_scipys() -> None:
    from scipy.stats import chi2_contingency

    first, second = np.array([300, 220, 480]), np.array([45, 20, 55])
    theirs, found = chi2_contingency([first, second], correction=False), shares_test(first, second)
    assert found.value == pytest.approx(theirs.statistic) and found.p == pytest.approx(theirs.pvalue, abs=0.015)


def test_a_category_that_never_was_is_found_and_chance_is_not() -> None:
    """A chi-square distribution does not hold for a script that one of 5,000 old prompts is written in."""
    rare = np.array([4_999, 1])
    assert shares_test(rare, np.array([15, 5])).p < 0.001
    rng = np.random.default_rng(0)
    shares = [0.93, 0.04, 0.02, 0.01]
    alarms = [
        shares_test(rng.multinomial(400, shares), rng.multinomial(30, shares), number).p <= 0.05
        for number in range(500)
    ]
    assert np.mean(alarms) <= 0.07


@pytest.mark.parametrize("old, new", [([0, 0], [3, 4]), ([5, 0], [9, 0]), ([0, 0], [0, 0])], ids=["none", "one", "no"])
def test_nothing_to_compare_is_no_difference(old: list[int], new: list[int]) -> None:
    assert shares_test(np.array(old), np.array(new)) == Result(0.0, 1.0)


def test_ranks_are_the_share_of_pairs() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(1, 6, 50).astype(float), rng.integers(2, 6, 30).astype(float)
    pairs = [(b > a) + 0.5 * (b == a) for a in first for b in second]
    assert ranks_test(first, second).value == pytest.approx(np.mean(pairs))
    assert ranks_test(np.full(40, 3.0), np.full(20, 3.0)) == Result(0.5, 1.0)


def test_shifts_p_value_is_that_of_all_signs() -> None:
    differences = np.array([-1.0, -1.0, -0.5, 0.0, 0.0, -2.0, 0.5, -1.0])
    changed = differences[differences != 0]
    sums = [abs(np.dot(signs, changed)) for signs in itertools.product((-1, 1), repeat=len(changed))]
    exact = np.mean(np.array(sums) >= abs(changed.sum()) - 1e-9)
    assert shift_test(differences).p == pytest.approx(exact, abs=0.02)
    assert shift_test(np.zeros(30)) == Result(0.0, 1.0)


def test_intervals_hold_the_truth_in_95_of_100_draws() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(400):
        first, second = rng.normal(3, 1, 200), rng.normal(3.4, 2, 30)
        found, alone = mean_difference(first, second), mean_interval(second)
        held.append((found.low <= 0.4 <= found.high, alone.low <= 3.4 <= alone.high))
    assert np.all(np.abs(np.mean(held, axis=0) - 0.95) < 0.03)


def test_the_interval_of_a_difference_is_welchs() -> None:
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(0)
    first, second = rng.normal(3, 1, 200), rng.normal(3.4, 2, 30)
    theirs, found = ttest_ind(second, first, equal_var=False).confidence_interval(0.95), mean_difference(first, second)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))


def test_an_interval_of_equal_values_is_a_point() -> None:
    found = mean_difference(np.full(30, 4.0), np.full(20, 3.0))
    assert (found.value, found.low, found.high) == (-1.0, -1.0, -1.0)


def test_holm_is_holms() -> None:
    found = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.9})
    assert found == pytest.approx({"a": 0.09, "b": 0.04, "c": 0.09, "d": 0.9})
    assert list(found) == ["a", "b", "c", "d"] and holm({}) == {}
