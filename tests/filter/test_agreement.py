"""The statistics of agreement are those of the libraries that define them, and their intervals cover."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from llmdistill.filter.agreement import (
    Cut,
    Floats,
    auc,
    choose,
    cross_validated,
    cuts,
    estimate,
    kappa,
    partial_spearman,
    quadratic_kappa,
    spearman,
    wilson,
)

NUM_INSTANCES = 200


def once(statistic: Callable[..., Floats], *columns: np.ndarray) -> float:
    return float(statistic(*map(as_floats, columns), np.ones((1, len(columns[0]))))[0])


def as_floats(column: np.ndarray) -> Floats:
    return np.asarray(column, dtype=np.float64)


def quietly(function: Callable[..., float], *arguments: object, **options: object) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(function(*arguments, **options))


def spearman_reference(first: np.ndarray, second: np.ndarray) -> float:
    return quietly(lambda: stats.spearmanr(first, second).statistic)


def auc_reference(scores: np.ndarray, good: np.ndarray) -> float:
    return quietly(roc_auc_score, good, scores) if 0 < good.sum() < len(good) else math.nan


def partial_reference(first: np.ndarray, second: np.ndarray, given: np.ndarray) -> float:
    """Pearson's correlation of what least squares leaves of the ranks."""
    known = np.column_stack([np.ones(len(given)), stats.rankdata(given)])
    left = []
    for column in (first, second):
        ranks = stats.rankdata(column)
        residual = ranks - known @ np.linalg.lstsq(known, ranks, rcond=None)[0]
        if np.abs(residual).max() < 1e-9:
            return math.nan
        left.append(residual)
    return quietly(np.corrcoef(left[0], left[1]).__getitem__, (0, 1))


def instances(seed: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(scores, good, another column): small and large, tied and not, some with constant columns."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(NUM_INSTANCES):
        size = int(rng.integers(2, 9)) if number % 2 else int(rng.integers(10, 120))
        levels = int(rng.choice([1, 2, 5, 1000]))
        scores = rng.integers(0, levels, size) * 0.37 + rng.choice([-1e3, 0.0, 1.0])
        good = rng.integers(0, 2, size) if number % 7 else np.full(size, number % 2)
        found.append((scores, good, rng.integers(0, 40, size) + 5 * good))
    return found


def same(own: float, reference: float) -> bool:
    return math.isnan(own) and math.isnan(reference) or own == pytest.approx(reference, abs=1e-9)


def check(statistic: Callable[..., Floats], reference: Callable[..., float], cases: list[tuple[np.ndarray, ...]]):
    """Equal on all instances, undefined ones among them, and on resampled rows given as weights."""
    rng = np.random.default_rng(1)
    undefined = 0
    for columns in cases:
        expected = reference(*columns)
        undefined += math.isnan(expected)
        assert same(once(statistic, *columns), expected), columns
        rows = rng.integers(0, len(columns[0]), len(columns[0]))
        weights = np.bincount(rows, minlength=len(rows))[None].astype(float)
        drawn = float(statistic(*map(as_floats, columns), weights)[0])
        assert same(drawn, reference(*(column[rows] for column in columns))), (columns, rows)
    assert 0 < undefined < len(cases) / 2


def test_spearman_is_that_of_scipy():
    check(spearman, spearman_reference, [(scores, other) for scores, _, other in instances(2)])


def test_auc_is_that_of_sklearn():
    check(auc, auc_reference, [(scores, good) for scores, good, _ in instances(3)])


def test_kappa_is_that_of_sklearn():
    cases = [(good, (scores > np.median(scores)).astype(int)) for scores, good, _ in instances(4)]
    check(kappa, lambda a, b: quietly(cohen_kappa_score, a, b), cases)


def test_quadratic_kappa_of_whole_scores_is_that_of_sklearn():
    rng = np.random.default_rng(5)
    cases = []
    for number in range(NUM_INSTANCES):
        first = rng.integers(1, 6, int(rng.integers(2, 60)))
        noise = rng.integers(-1, 2, len(first)) * (number % 5 > 0)
        constant = np.full(len(first), 3)
        cases.append((constant, constant) if number % 20 == 0 else (first, np.clip(first + noise, 1, 5)))
    scale = [1, 2, 3, 4, 5]
    check(quadratic_kappa, lambda a, b: quietly(cohen_kappa_score, a, b, labels=scale, weights="quadratic"), cases)


def test_length_bias_is_the_correlation_of_the_ranks_residuals():
    check(partial_spearman, partial_reference, [(scores, other, good) for scores, good, other in instances(6)])


def test_length_bias_does_not_mistake_quality_for_length():
    rng = np.random.default_rng(7)
    good = rng.integers(0, 2, 4000).astype(float)
    score, length = good + rng.normal(size=4000), 3 * good + rng.normal(size=4000)
    assert once(spearman, score, length) > 0.3
    assert abs(once(partial_spearman, score, length, good)) < 0.05
    assert once(partial_spearman, score + length, length, good) > 0.4


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("total", [1, 7, 60, 5000])
def test_wilson_is_that_of_scipy(share, total):
    successes = round(share * total)
    reference = stats.binomtest(successes, total).proportion_ci(0.95, "wilson")
    own = wilson(successes, total)
    assert (own.low, own.high) == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert 0.0 <= own.low <= own.value <= own.high <= 1.0


def test_nothing_has_no_proportion_and_no_estimate():
    assert math.isnan(wilson(0, 0).value)
    assert math.isnan(estimate(spearman, np.empty(0), np.empty(0)).value)
    assert math.isnan(estimate(auc, np.arange(5.0), np.ones(5)).low)


def test_an_interval_is_the_same_each_time_and_however_much_fits_into_memory(monkeypatch):
    rng = np.random.default_rng(8)
    first, second = rng.normal(size=(2, 50))
    whole = estimate(spearman, first, second)
    monkeypatch.setattr("llmdistill.filter.agreement._BLOCK_CELLS", 700)
    assert estimate(spearman, first, second) == whole
    assert whole.low < whole.value < whole.high


def test_the_interval_of_a_mean_is_as_wide_as_its_standard_error_says():
    values = np.random.default_rng(13).normal(size=400)
    found = estimate(lambda column, weights: weights @ column / weights.sum(1), values)
    assert (found.high - found.low) / (2 * 1.96 * values.std() / 20) == pytest.approx(1, abs=0.08)
    assert found.value == pytest.approx(values.mean())


def sample(rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """(score, good, length) of 80 answers from a known distribution, in which scores are tied."""
    good = (rng.random(80) < 0.6).astype(float)
    score = np.round(good + rng.normal(size=80), 1)
    return score, good, good + 0.4 * score + rng.normal(size=80)


MEASURES: dict[str, Callable[..., Floats]] = {
    "auc": lambda score, good, length, weights: auc(score, good, weights),
    "spearman": lambda score, good, length, weights: spearman(score, length, weights),
    "kappa": lambda score, good, length, weights: kappa((score >= 0.5).astype(float), good, weights),
    "length bias": lambda score, good, length, weights: partial_spearman(score, length, good, weights),
}


@pytest.mark.parametrize("name", MEASURES)
def test_bootstrap_intervals_cover_the_true_value_about_95_times_in_100(name):
    rng = np.random.default_rng(9)
    population = [np.concatenate(columns) for columns in zip(*(sample(rng) for _ in range(1000)), strict=True)]
    truth = once(MEASURES[name], *population)
    covered = 0
    for number in range(200):
        found = estimate(MEASURES[name], *sample(rng), num_draws=200, seed=number)
        covered += found.low <= truth <= found.high
    assert 0.89 <= covered / 200 <= 0.99  # three standard errors around 0.94


def test_cuts_are_what_each_threshold_keeps():
    rng = np.random.default_rng(10)
    for _ in range(100):
        scores, good = rng.integers(0, 6, 30).astype(float), rng.integers(0, 2, 30).astype(float)
        expected = [
            Cut(float(value), int((scores >= value).sum()), int(good[scores >= value].sum()))
            for value in np.unique(scores)
        ]
        assert cuts(scores, good) == expected
        assert cuts(scores, good, min_kept=9) == [cut for cut in expected if cut.kept >= 9]


def test_the_lowest_threshold_that_is_precise_enough_is_chosen():
    scores = np.array([1, 2, 3, 3, 4, 4, 5, 5, 5, 5], dtype=float)
    good = np.array([0, 0, 1, 0, 1, 1, 1, 1, 1, 0], dtype=float)
    assert choose(scores, good, 0.75) == Cut(3.0, 8, 6)
    assert choose(scores, good, 0.8) == Cut(4.0, 6, 5)
    assert choose(scores, good, 0.9) is None
    assert choose(scores, good, 0.0) == Cut(1.0, 10, 6)


def test_a_threshold_keeps_at_least_five_answers():
    scores, good = np.arange(10.0), (np.arange(10) >= 6).astype(float)
    assert choose(scores, good, 1.0) is None
    assert choose(scores, good, 1.0, min_kept=4) == Cut(6.0, 4, 4)


def test_cross_validation_shows_a_threshold_found_by_chance():
    rng = np.random.default_rng(11)
    in_sample, folds = [], np.zeros(2)
    for number in range(200):
        scores, good = rng.random(40), rng.permutation(40) % 2.0
        cut = choose(scores, good, 0.7)
        if cut is not None:
            in_sample.append(cut.precision)
            folds += cross_validated(scores, good, 0.7, seed=number)
    assert np.mean(in_sample) >= 0.7
    assert folds[0] / folds[1] < 0.6


def test_cross_validation_of_a_real_threshold_reaches_its_precision():
    rng = np.random.default_rng(12)
    scores = rng.random(2000)
    good = (rng.random(2000) < scores).astype(float)
    num_good, num_kept = cross_validated(scores, good, 0.8)
    assert num_good / num_kept == pytest.approx(0.8, abs=0.03)
    assert num_kept == pytest.approx(choose(scores, good, 0.8).kept, abs=150)


def test_cross_validation_keeps_nothing_where_no_threshold_is_found():
    assert cross_validated(np.arange(20.0), np.zeros(20), 0.5) == (0, 0)
