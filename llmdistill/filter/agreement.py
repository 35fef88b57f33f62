"""How far a judge agrees with people: statistics of scores against labels, each with a 95 % interval.

A statistic takes columns of values and `weights` [draws, rows], how often each row counts in each draw, and gives
one value per draw. A bootstrap draw is such a row of weights, so that the values are sorted once for all draws.
What is not defined, such as a correlation with a constant, is nan.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
Statistic = Callable[..., Floats]

NUM_DRAWS = 2_000
_BLOCK_CELLS = 4_000_000
"""Draws times rows that are in memory at a time."""

_NO_VARIANCE = 1e-12
"""A variance below this share of the mean square is rounding."""

_Z = 1.959963984540054
"""97.5 % quantile of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval; nan where it is not defined."""

    value: float
    low: float
    high: float


UNDEFINED = Estimate(math.nan, math.nan, math.nan)


def wilson(successes: int, total: int) -> Estimate:
    """A proportion with its score interval (Wilson 1927; Brown, Cai and DasGupta 2001, section 3.1.1)."""
    if total == 0:
        return UNDEFINED
    share = successes / total
    scale = 1 + _Z**2 / total
    middle = (share + _Z**2 / (2 * total)) / scale
    half = _Z * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2)) / scale
    # At the ends the interval ends exactly there; rounding must not move it past the value.
    return Estimate(share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)))


def estimate(statistic: Statistic, *columns: Floats, num_draws: int = NUM_DRAWS, seed: int = 0) -> Estimate:
    """A statistic with its percentile bootstrap interval over rows (Efron and Tibshirani 1993, chapter 13).

    Draws in which the statistic is not defined are left out. An interval without width says that no row speaks
    against the value, not that it is certain.

    Args:
        columns: one value per row each, of equal length.
    """
    num_rows = len(columns[0])
    if num_rows == 0:
        return UNDEFINED
    value = float(statistic(*columns, np.ones((1, num_rows)))[0])
    if math.isnan(value):
        return UNDEFINED
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_CELLS // num_rows)
    chances = np.full(num_rows, 1 / num_rows)
    drawn = [
        statistic(*columns, rng.multinomial(num_rows, chances, size=min(block, num_draws - start)).astype(np.float64))
        for start in range(0, num_draws, block)
    ]
    low, high = np.nanquantile(np.concatenate(drawn), [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def kappa(first: Floats, second: Floats, weights: Floats) -> Floats:
    """Cohen's kappa of two columns of 0 and 1 (Cohen 1960): agreement beyond that of independent raters.

    nan when both are constant and equal.
    """
    total = weights.sum(1)
    agree = weights @ (first == second).astype(np.float64)
    ones_first, ones_second = weights @ first, weights @ second
    chance = ones_first * ones_second + (total - ones_first) * (total - ones_second)
    return _ratio(total * agree - chance, total**2 - chance)


def quadratic_kappa(first: Floats, second: Floats, weights: Floats) -> Floats:
    """Cohen's kappa with quadratic weights, of scores on one scale (Cohen 1968).

    With quadratic weights it is one minus the mean squared difference over that of independent raters (Fleiss and
    Cohen 1973), which needs no categories: expected scores such as 3.7 are taken as they are.
    """
    total = weights.sum(1)
    middle = first.mean()
    first, second = first - middle, second - middle
    observed = weights @ (first - second) ** 2 / total
    by_chance = (weights @ (first**2 + second**2)) / total - 2 * (weights @ first) * (weights @ second) / total**2
    size = (weights @ (first**2 + second**2)) / total
    return 1 - _ratio(observed, np.where(by_chance > _NO_VARIANCE * size, by_chance, 0.0))


def spearman(first: Floats, second: Floats, weights: Floats) -> Floats:
    """Spearman's rank correlation, equal values sharing their mean rank (Kendall and Gibbons 1990, section 3.8)."""
    return _correlation(_doubled_ranks(first, weights), _doubled_ranks(second, weights), weights)


def partial_spearman(first: Floats, second: Floats, given: Floats, weights: Floats) -> Floats:
    """Spearman's correlation of two columns after the rank of a third is taken out of both.

    Where the third has two values, that is the rank correlation within its classes, pooled. nan when one column is
    determined by the third.
    """
    columns = [_doubled_ranks(column, weights) for column in (first, second, given)]
    pair = _correlation(columns[0], columns[1], weights)
    # A third column that is constant takes nothing out.
    of_given = [np.nan_to_num(_correlation(column, columns[2], weights)) for column in columns[:2]]
    left = (1 - of_given[0] ** 2) * (1 - of_given[1] ** 2)
    return _ratio(pair - of_given[0] * of_given[1], np.sqrt(np.where(left > _NO_VARIANCE, left, 0.0)))


def auc(scores: Floats, good: Floats, weights: Floats) -> Floats:
    """Chance that a good answer scores above a bad one, ties half (Mann and Whitney 1947; Hanley and McNeil 1982).

    nan when all are good or all are bad. `good` holds 0 and 1.
    """
    of_good, of_bad = weights * good, weights * (1 - good)
    groups = _Groups(scores)
    counts = groups.sums(of_bad)
    wins = groups.spread(2 * (np.cumsum(counts, 1) - counts) + counts)
    return _ratio((of_good * wins).sum(1), 2 * of_good.sum(1) * of_bad.sum(1))


class _Groups:
    """Rows with equal values, in the order of the values."""

    def __init__(self, values: Floats) -> None:
        self._order = np.argsort(values, kind="stable")
        distinct, starts, inverse = np.unique(values[self._order], return_index=True, return_inverse=True)
        self._starts = starts
        self._group_of = np.empty(len(values), dtype=np.intp)
        self._group_of[self._order] = inverse

    def sums(self, weights: Floats) -> Floats:
        """[draws, groups] weight of each group."""
        return np.add.reduceat(weights[:, self._order], self._starts, axis=1)

    def spread(self, by_group: Floats) -> Floats:
        """[draws, rows] each row's value of its group."""
        return by_group[:, self._group_of]


def _doubled_ranks(values: Floats, weights: Floats) -> Floats:
    """[draws, rows] twice the mean rank of each row in each draw; doubled ranks are whole, so sums are exact."""
    groups = _Groups(values)
    counts = groups.sums(weights)
    return groups.spread(2 * (np.cumsum(counts, 1) - counts) + counts + 1)


def _correlation(first: Floats, second: Floats, weights: Floats) -> Floats:
    """Pearson's correlation of [draws, rows] columns."""
    total = weights.sum(1)

    def covariance(left: Floats, right: Floats) -> Floats:
        products = total * (weights * left * right).sum(1)
        found = products - (weights * left).sum(1) * (weights * right).sum(1)
        return np.where(np.abs(found) > _NO_VARIANCE * products, found, 0.0)

    variances = covariance(first, first) * covariance(second, second)
    return np.clip(_ratio(covariance(first, second), np.sqrt(variances)), -1.0, 1.0)


def _ratio(above: Floats, below: Floats) -> Floats:
    """The quotient, nan where it is not defined."""
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


@dataclass(frozen=True, slots=True)
class Cut:
    """What a threshold keeps: answers that score at least that, and how many of them are good."""

    threshold: float
    kept: int
    good: int

    @property
    def precision(self) -> float:
        """Share of the kept answers that are good."""
        return self.good / self.kept


def cuts(scores: Floats, good: Floats, min_kept: int = 1) -> list[Cut]:
    """What each observed score would keep as a threshold, the lowest first, where it keeps at least `min_kept`."""
    values, starts = np.unique(np.sort(scores), return_index=True)
    goods = np.cumsum(good[np.argsort(scores, kind="stable")][::-1])[::-1]
    found = [
        Cut(float(value), len(scores) - int(start), int(goods[start]))
        for value, start in zip(values, starts, strict=True)
    ]
    return [cut for cut in found if cut.kept >= min_kept]


def choose(scores: Floats, good: Floats, precision: float, min_kept: int = 5) -> Cut | None:
    """The lowest threshold that keeps `min_kept` answers or more and reaches `precision`; None when none does."""
    return next((cut for cut in cuts(scores, good, min_kept) if cut.precision >= precision), None)


def cross_validated(
    scores: Floats, good: Floats, precision: float, min_kept: int = 5, num_folds: int = 5, seed: int = 0
) -> tuple[int, int]:
    """(good, kept) answers, summed over folds, where each fold's threshold is chosen on the other folds.

    A threshold chosen and measured on the same answers looks better than it is; this does not. Folds have equal
    shares of good answers. A fold for which the others give no threshold keeps nothing.
    """
    fold_of = _folds(good, num_folds, seed)
    num_good = num_kept = 0
    for fold in range(num_folds):
        here = fold_of == fold
        cut = choose(scores[~here], good[~here], precision, min_kept)
        if cut is not None:
            kept = here & (scores >= cut.threshold)
            num_good, num_kept = num_good + int(good[kept].sum()), num_kept + int(kept.sum())
    return num_good, num_kept


def _folds(good: Floats, num_folds: int, seed: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """The fold of each row: each class shuffled and dealt out."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(good))
    dealt = shuffled[np.argsort(good[shuffled], kind="stable")]
    fold_of = np.empty(len(good), dtype=np.intp)
    fold_of[dealt] = np.arange(len(good)) % num_folds
    return fold_of
