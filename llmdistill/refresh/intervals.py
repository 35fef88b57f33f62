"""How far two models on the same records may truly be apart: intervals of paired differences.

Sums over tokens are resampled, since a mean over tokens has no simple distribution; shares of right answers are not,
since a bootstrap of answers that are all alike has no width at all, however few they are.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 10_000
_DRAWN_AT_ONCE = 4_000_000


def bootstrap_interval(
    differences: Floats, weights: Floats, confidence: float, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Interval of `sum(differences) / sum(weights)`: records are drawn anew with replacement, each with its weight.

    One draw holds for both models, so what a record is like for either cancels. The ends are those of the expanded
    percentile interval (Hesterberg, What Teachers Should Know about the Bootstrap, arXiv 1411.5279; in The American
    Statistician 69, 2015): quantiles of the resampled ratio as far out as a t interval is wider than a normal one. A
    plain percentile interval, and BCa too, is too narrow for few records, by sqrt((n - 1) / n) and for the missing
    tails of t. On 4,000 simulated sets of 20 records with skewed differences the nominal 95 % covered 93.3 %
    expanded, 90.7 % plain and 90.8 % BCa.

    Args:
        differences: [records] of the new student's sum over tokens less the champion's.
        weights: [records] of tokens.
        resamples: draws of as many records as there are.

    Returns:
        Both ends, the lower one first. Where all differences are 0 both are 0.
    """
    from scipy.stats import norm, t

    num = len(differences)
    tail = norm.cdf(math.sqrt(num / (num - 1)) * t.ppf((1 - confidence) / 2, num - 1))
    generator = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    rows = max(1, _DRAWN_AT_ONCE // num)
    for start in range(0, resamples, rows):
        drawn = generator.integers(0, num, (min(rows, resamples - start), num))
        ratios[start : start + rows] = differences[drawn].sum(1) / weights[drawn].sum(1)
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float(low), float(high)


def score_interval(gained: int, lost: int, num: int, confidence: float) -> tuple[float, float]:
    """Interval of the difference of two shares on the same records (Tango, Statistics in Medicine 17, 1998: 891-908).

    All differences that a score test does not refuse; at 0 it is McNemar's test. It keeps a width where no record
    tells the models apart: 20 records on which both are right say little about the next 200, and a bootstrap of
    them, with no width, would let a student pass that is wrong on every tenth.

    Args:
        gained: records on which only the new student is right.
        lost: records on which only the champion is.
        num: all records.

    Returns:
        Both ends, the lower one first.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    wanted = float(norm.ppf((1 + confidence) / 2))
    estimate = (gained - lost) / num

    def beyond(difference: float) -> float:
        return abs(score(difference, gained, lost, num)) - wanted

    edge = 1 - 1e-12
    low = -1.0 if estimate <= -edge else brentq(beyond, -edge, estimate, xtol=1e-12)
    high = 1.0 if estimate >= edge else brentq(beyond, estimate, edge, xtol=1e-12)
    return float(low), float(high)


def score(difference: float, gained: int, lost: int, num: int) -> float:
    """Tango's statistic (equation 8): how many standard errors the estimate lies above a supposed difference.

    The standard error is that under the supposed difference, with the likeliest share of lost records.
    """
    above = gained - lost - num * difference
    if above == 0:
        return 0.0
    linear = (2 * num - gained + lost) * difference - gained - lost
    constant = -lost * difference * (1 - difference)
    share = (math.sqrt(max(linear**2 - 8 * num * constant, 0.0)) - linear) / (4 * num)
    variance = num * (2 * share + difference * (1 - difference))
    return above / math.sqrt(max(variance, 1e-300))
