"""The gate's intervals against definitions, other software, and the truth of simulated data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, bootstrap, multinomial, norm, t

from llmdistill.refresh.intervals import bootstrap_interval, percentile_ends, score, score_interval


def made(seed: int, num: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Differences of sums over tokens, skewed as those of likelihoods are, around 0.1 a token."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(5, 200, num).astype(float)
    return tokens * (0.1 + 3 * (generator.exponential(size=num) - 1) / np.sqrt(tokens)), tokens


def by_definition(differences, tokens, confidence: float, seed: int, resamples: int) -> tuple[float, float]:
    """The interval written out draw by draw."""
    num = len(tokens)
    ratio = sum(differences) / sum(tokens)

    def error(rows: list[int], about: float) -> float:
        return math.sqrt(sum((differences[i] - about * tokens[i]) ** 2 for i in rows)) / sum(tokens[i] for i in rows)

    shifts, ratios = [], []
    for draw in np.random.default_rng(seed).integers(0, num, (resamples, num)).tolist():
        drawn = sum(differences[i] for i in draw) / sum(tokens[i] for i in draw)
        shifts.append(drawn - ratio)
        if len(set(draw)) > 1:  # one record again and again has no spread
            ratios.append((drawn - ratio) / error(draw, drawn))
    wider = norm.cdf(math.sqrt(num / (num - 1)) * t.ppf((1 - confidence) / 2, num - 1))
    tail, own = (1 - confidence) / 2, error(list(range(num)), ratio)
    low = min(np.quantile(shifts, wider), -np.quantile(ratios, 1 - tail) * own)
    high = max(np.quantile(shifts, 1 - wider), -np.quantile(ratios, tail) * own)
    return ratio + low, ratio + high


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("num", [2, 7, 40])
def test_the_bootstrap_is_its_definition(num: int, confidence: float) -> None:
    differences, tokens = made(num, num)
    wanted = by_definition(differences.tolist(), tokens.tolist(), confidence, seed=3, resamples=300)
    assert bootstrap_interval(differences, tokens, confidence, 3, 300) == pytest.approx(wanted, rel=1e-9)


def test_more_draws_than_fit_at_once_are_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    differences, tokens = made(0)
    whole = bootstrap_interval(differences, tokens, 0.95, seed=1, resamples=500)
    monkeypatch.setattr("llmdistill.refresh.intervals._DRAWN_AT_ONCE", 64 * len(tokens))
    assert bootstrap_interval(differences, tokens, 0.95, seed=1, resamples=500) == pytest.approx(whole, rel=1e-12)


def test_the_percentile_ends_are_those_of_scipy_further_out() -> None:
    differences, tokens = made(5, 60)
    wider = norm.cdf(math.sqrt(60 / 59) * t.ppf(0.025, 59))

    def ratio(values, weights, axis: int = -1):
        return values.sum(axis) / weights.sum(axis)

    theirs = bootstrap(
        (differences, tokens),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        confidence_level=1 - 2 * wider,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    draws = np.random.default_rng(1).integers(0, 60, (20_000, 60))
    shifts = differences[draws].sum(1) / tokens[draws].sum(1) - differences.sum() / tokens.sum()
    mine = np.array(percentile_ends(shifts, 60, 0.95)) + differences.sum() / tokens.sum()
    assert mine == pytest.approx([theirs.low, theirs.high], abs=0.03 * (theirs.high - theirs.low))


def test_equal_models_differ_by_exactly_nothing() -> None:
    assert bootstrap_interval(np.zeros(30), made(0, 30)[1], 0.95) == (0.0, 0.0)


def test_the_bootstrap_does_not_depend_on_the_order_of_models() -> None:
    differences, tokens = made(2)
    low, high = bootstrap_interval(differences, tokens, 0.95, seed=4)
    assert bootstrap_interval(-differences, tokens, 0.95, seed=4) == pytest.approx((-high, -low), rel=1e-9)


def test_the_bootstrap_at_95_percent_holds_the_truth_of_400_skewed_data_sets_in_93_to_97_percent() -> None:
    held = 0
    for seed in range(400):
        low, high = bootstrap_interval(*made(1000 + seed), 0.95, seed=seed, resamples=1000)
        held += low <= 0.1 <= high
    assert 0.93 <= held / 400 <= 0.97


def test_the_score_interval_is_that_of_propcis_in_r() -> None:
    """`scoreci.mp(25, 28, 618, 0.90)` of PropCIs 0.3-0, to the four digits that are published."""
    assert score_interval(28, 25, 618, 0.90) == pytest.approx((-0.0148, 0.0247), abs=5e-5)


@pytest.mark.parametrize(("gained", "lost", "num"), [(3, 9, 40), (0, 4, 25), (20, 11, 300), (1, 0, 20)])
@pytest.mark.parametrize("difference", [-0.3, -0.02, 0.1, 0.25])
def test_the_score_is_its_definition(gained: int, lost: int, num: int, difference: float) -> None:
    def minus_likelihood(share: float) -> float:
        up, same = share + difference, 1 - 2 * share - difference
        counts = ((gained, up), (lost, share), (num - gained - lost, same))
        return -sum(count * math.log(max(value, 1e-300)) for count, value in counts if count)

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    share = minimize_scalar(minus_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    variance = (2 * share + difference - difference**2) / num
    wanted = ((gained - lost) / num - difference) / math.sqrt(variance)
    assert score(difference, gained, lost, num) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(("gained", "lost"), [(3, 9), (1, 12), (30, 20)])
def test_the_score_at_0_is_mcnemars(gained: int, lost: int) -> None:
    assert score(0.0, gained, lost, 200) == pytest.approx((gained - lost) / math.sqrt(gained + lost))
    exact = binomtest(min(gained, lost), gained + lost).pvalue
    low, high = score_interval(gained, lost, 200, 0.95)
    assert (low <= 0 <= high) == (exact > 0.05)


def newcombe(both: int, gained: int, lost: int, neither: int) -> tuple[float, float]:
    """Method 10 of Newcombe, Statistics in Medicine 17 (1998): 2635-2650, another known paired interval."""
    num, z = both + gained + lost + neither, float(norm.ppf(0.975))

    def wilson(successes: int) -> tuple[float, float, float]:
        share = successes / num
        middle = (share + z * z / (2 * num)) / (1 + z * z / num)
        half = z * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num)) / (1 + z * z / num)
        return share, middle - half, middle + half

    (one, low1, high1), (two, low2, high2) = wilson(both + gained), wilson(both + lost)
    product = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    numerator = both * neither - gained * lost
    phi = 0.0 if not product else max(numerator - num / 2, 0.0 if numerator > 0 else numerator) / math.sqrt(product)
    down = math.sqrt((one - low1) ** 2 - 2 * phi * (one - low1) * (high2 - two) + (high2 - two) ** 2)
    up = math.sqrt((two - low2) ** 2 - 2 * phi * (two - low2) * (high1 - one) + (high1 - one) ** 2)
    return one - two - down, one - two + up


@pytest.mark.parametrize("table", [(60, 12, 20, 48), (150, 5, 5, 40), (20, 8, 1, 11)])
def test_the_score_interval_agrees_with_newcombes(table: tuple[int, int, int, int]) -> None:
    found = score_interval(table[1], table[2], sum(table), 0.95)
    assert found == pytest.approx(newcombe(*table), abs=0.025)


def held_by_score_intervals(num: int, gained: float, lost: float) -> float:
    """In which share of all data sets, weighed by their chance, the interval at 95 % holds the truth."""
    held = 0.0
    for up in range(num + 1):
        for down in range(num + 1 - up):
            chance = multinomial.pmf([up, down, num - up - down], num, [gained, lost, 1 - gained - lost])
            if chance > 1e-6:
                low, high = score_interval(up, down, num, 0.95)
                held += chance * (low <= gained - lost <= high)
    return held


@pytest.mark.parametrize(("gained", "lost"), [(0.1, 0.1), (0.05, 0.15), (0.3, 0.2)])
@pytest.mark.parametrize("num", [40, 120])
def test_the_score_interval_at_95_percent_holds_the_truth_in_93_to_97_percent(num, gained, lost) -> None:
    assert 0.93 <= held_by_score_intervals(num, gained, lost) <= 0.97


@pytest.mark.parametrize(("gained", "lost"), [(0.0, 0.05), (0.01, 0.03), (0.02, 0.1)])
def test_it_holds_it_where_hardly_a_record_tells_the_models_apart(gained: float, lost: float) -> None:
    assert held_by_score_intervals(20, gained, lost) >= 0.95


@pytest.mark.parametrize("num", [1, 2, 20])
def test_every_score_interval_holds_its_estimate_and_stays_within_bounds(num: int) -> None:
    for gained in range(num + 1):
        for lost in range(num + 1 - gained):
            low, high = score_interval(gained, lost, num, 0.95)
            assert -1 <= low <= (gained - lost) / num <= high <= 1
            assert score_interval(lost, gained, num, 0.95) == pytest.approx((-high, -low), abs=1e-9)


def test_answers_that_are_all_alike_say_little_when_they_are_few() -> None:
    low, high = score_interval(0, 0, 20, 0.95)
    assert low == pytest.approx(-high) and high > 0.1
    assert score_interval(0, 0, 1000, 0.95)[1] < 0.005
