"""How two samples differ: tests whose p-values hold for any distribution, and effects in plain units.

Every function takes arrays and gives floats; none knows what was measured. What is drawn at random is seeded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    Floats = np.ndarray[Any, np.dtype[np.float64]]

CONFIDENCE = 0.95
PERMUTATIONS = 999
_TABLES = 9_999
_FLIPS = 9_999
_BLOCK = 256
"""Permutations that are worked on at once."""
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Result:
    """A statistic, and how often chance alone gives one as large."""

    value: float
    p: float


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean or a difference of means, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def mmd(first: np.ndarray, second: np.ndarray, seed: int = 0, permutations: int = PERMUTATIONS) -> Result:
    """Maximum mean discrepancy with a permutation test: whether two samples of vectors have one distribution.

    The value is the unbiased estimate of MMD^2 (Gretton et al., JMLR 13, 2012, eq. 3), which is below 0 now and then.
    The kernel is exp(-|x - y|^2 / (2 s^2)), where s is the median distance of two rows of both samples together. All
    permutations are products of one kernel matrix with columns of zeros and ones.

    Args:
        first: [m, d] rows; m at least 2.
        second: [n, d] rows; n at least 2.
    """
    num, total = len(first), len(first) + len(second)
    kernel = _kernel(np.concatenate([first, second]))
    # What all pairs share takes nothing from the estimate but digits.
    kernel -= np.float32(kernel.sum(dtype=np.float64) / (total * (total - 1)))
    np.fill_diagonal(kernel, 0.0)
    rows = kernel.sum(1, dtype=np.float64)
    members = np.zeros((total, 1), dtype=np.float32)
    members[:num] = 1.0
    value = _estimates(kernel, rows, members)[0]
    rng = np.random.default_rng(seed)
    drawn = [
        _estimates(kernel, rows, _permuted(rng, num, total, min(_BLOCK, permutations - start)))
        for start in range(0, permutations, _BLOCK)
    ]
    return Result(float(value), _share_as_large(np.concatenate(drawn), value))


def _kernel(rows: np.ndarray) -> np.ndarray:
    """[N, N] float32 kernel matrix, zero on its diagonal."""
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    squares = np.square(rows).sum(1)
    squared = rows @ rows.T
    squared *= -2.0
    squared += squares[:, None]
    squared += squares
    np.maximum(squared, 0.0, out=squared)
    apart = squared[~np.eye(len(rows), dtype=bool)]
    width = float(np.median(apart)) or float(apart.mean()) or 1.0
    squared /= -2.0 * width
    kernel = np.exp(squared, out=squared)
    np.fill_diagonal(kernel, 0.0)
    return kernel


def _permuted(rng: np.random.Generator, num: int, total: int, count: int) -> np.ndarray:
    """[total, count] columns with `num` ones each, at random places."""
    members = np.zeros((total, count), dtype=np.float32)
    for column in range(count):
        members[rng.permutation(total)[:num], column] = 1.0
    return members


def _estimates(kernel: np.ndarray, rows: Floats, members: np.ndarray) -> Floats:
    """MMD^2 for each column of `members`, whose ones say which rows are the first sample."""
    num = int(members[:, 0].sum())
    rest = len(kernel) - num
    inside = np.einsum("ij,ij->j", members, kernel @ members, dtype=np.float64)
    touching = rows @ members
    between = touching - inside
    outside = rows.sum() - touching - between
    return np.asarray(
        inside / (num * (num - 1)) + outside / (rest * (rest - 1)) - 2.0 * between / (num * rest), dtype=np.float64
    )


def _share_as_large(drawn: Floats, value: float) -> float:
    """p-value of a Monte-Carlo test; what was found counts as one of the draws, so it is never 0."""
    return float((1 + (drawn >= value - _ROUNDING * max(1.0, abs(value))).sum()) / (1 + len(drawn)))


def shares_test(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Result:
    """Pearson's chi-square of two rows of counts, [categories] each; p from tables with the same margins.

    So it holds for categories that hardly ever occur, of which a new script or a new topic is one.
    """
    totals = first + second
    first, second, totals = (counts[totals > 0].astype(np.int64) for counts in (first, second, totals))
    if len(totals) < 2 or not first.sum() or not second.sum():
        return Result(0.0, 1.0)
    size = int(second.sum())
    expected = totals * (size / totals.sum())
    other = totals * (1.0 - size / totals.sum())

    def statistic(counts: np.ndarray) -> np.ndarray:
        apart = np.square(counts - expected)
        return np.asarray((apart / expected + apart / other).sum(-1))

    value = float(statistic(second))
    drawn = np.random.default_rng(seed).multivariate_hypergeometric(totals, size, size=_TABLES, method="marginals")
    return Result(value, _share_as_large(statistic(drawn), value))


def ranks_test(first: Floats, second: Floats) -> Result:
    """Mann-Whitney with correction for ties; the value is P(second > first), ties counted half: 0.5 is no effect."""
    from scipy.stats import mannwhitneyu

    if np.unique(np.concatenate([first[:1], second])).size == 1 and np.all(first == first[0]):
        return Result(0.5, 1.0)
    found = mannwhitneyu(second, first, method="asymptotic")
    return Result(float(found.statistic) / (len(first) * len(second)), float(found.pvalue))


def shift_test(differences: Floats, seed: int = 0) -> Result:
    """Whether paired differences have the mean 0: the share of random signs under which it is as far from it."""
    changed = differences[differences != 0]
    value = float(differences.mean())
    if not len(changed):
        return Result(0.0, 1.0)
    signs = np.random.default_rng(seed).integers(0, 2, (_FLIPS, len(changed)), dtype=np.int8) * 2 - 1
    sums = np.abs(signs @ changed)
    return Result(value, _share_as_large(sums, abs(float(changed.sum()))))


def mean_difference(first: Floats, second: Floats) -> Interval:
    """mean(second) - mean(first) with Welch's interval (Biometrika 34, 1947)."""
    from scipy.stats import t

    value = float(second.mean() - first.mean())
    if min(len(first), len(second)) < 2:
        return Interval(value, value, value)
    parts = np.array([sample.var(ddof=1) / len(sample) for sample in (first, second)])
    if not parts.any():
        return Interval(value, value, value)
    freedom = parts.sum() ** 2 / np.sum(parts**2 / [len(first) - 1, len(second) - 1])
    reach = float(t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(parts.sum()))
    return Interval(value, value - reach, value + reach)


def mean_interval(values: Floats) -> Interval:
    """Mean of a sample with Student's interval."""
    from scipy.stats import t

    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, mean, mean)
    reach = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - reach, mean + reach)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values that may be held against one threshold together (Holm, Scand. J. Statist. 6, 1979)."""
    adjusted, least = {}, 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: (item[1], item[0]))):
        least = max(least, min(1.0, (len(p_values) - place) * p))
        adjusted[name] = least
    return {name: adjusted[name] for name in p_values}
