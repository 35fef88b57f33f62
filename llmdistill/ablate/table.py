"""The table of an ablation: means over seeds, and how sure it is that a variant differs from the baseline.

A student's value m(s) under seed s is the sum over the held-out prompts divided by the sum of their tokens. The
difference between a variant and the baseline is the mean over seeds of d(s) = m_variant(s) - m_baseline(s), where both
have the same seed and the same prompts. Two things could have come out otherwise, the prompts and the seeds, so the
95 % interval is made of the 2.5 % and 97.5 % quantiles of 2,000 draws of

    mean over s of d*(s)  +  t * sd(d) / sqrt(number of seeds)

d* is d on prompts drawn anew with replacement, the same ones for both and for every seed: a paired bootstrap (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993). The seeds are too few to be drawn anew: of three, a bootstrap's
95 % interval is no wider than from the lowest to the highest, which misses the truth in 1 of 4 cases. In its place t is
drawn from Student's distribution with (number of seeds - 1) degrees of freedom; sd(d) is the standard deviation of the
d(s). With one seed there is no interval. Each interval is for its own comparison: of many variants that do not differ,
one in twenty seems to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmdistill.ablate.measure import Measurement
from llmdistill.config import UNTRAINED, Ablation

UNITS = {
    "ce": "nats per token, lower is better",
    "kl": "nats per token, lower is better",
    "top1": "share of tokens, higher is better",
}
_DRAWS = 2_000
_BLOCK = 500

Results = Mapping[tuple[str, int], Measurement]
"""Measurements by variant and seed."""


def table_of(ablation: Ablation, size: int | None, untrained: Measurement, done: Results) -> dict[str, Any]:
    """The result so far, best mean first; variants of which no training is done have no row.

    Args:
        size: how many records each variant was to choose.
    """
    found = {
        variant: {seed: done[variant, seed] for seed in ablation.seeds if (variant, seed) in done}
        for variant in ablation.vary
    }
    found = {variant: by_seed for variant, by_seed in found.items() if by_seed}
    baseline = found.get(ablation.baseline, {})
    rows = [_row(variant, by_seed, baseline, ablation, size) for variant, by_seed in found.items()]
    rows.append(_row(UNTRAINED, dict.fromkeys(ablation.seeds, untrained), baseline, ablation, None))
    sign = -1 if ablation.sum_name == "top1" else 1
    return {
        "measure": ablation.measure,
        "unit": UNITS[ablation.sum_name],
        "baseline": ablation.baseline,
        "held_out": len(untrained.sums),
        "size": size,
        "finished": len(done),
        "planned": ablation.num_trainings,
        "rows": sorted(rows, key=lambda row: (sign * row["mean"], row["variant"])),
    }


def _row(
    variant: str,
    by_seed: Mapping[int, Measurement],
    baseline: Mapping[int, Measurement],
    ablation: Ablation,
    size: int | None,
) -> dict[str, Any]:
    name = ablation.sum_name
    own = [mean_of(found, name) for found in by_seed.values()]
    is_student = variant != UNTRAINED
    row: dict[str, Any] = {
        "variant": variant,
        "seeds": list(by_seed) if is_student else [],
        **_facts(list(by_seed.values()) if is_student else []),
        "by_seed": own if is_student else [],
        "also": {other: _spread(other, by_seed) for other in _others(name, by_seed)},
        "mean": float(np.mean(own)),
        "low": min(own),
        "high": max(own),
        "sd": float(np.std(own, ddof=1)) if is_student and len(own) > 1 else None,
        "difference": None,
        "difference_low": None,
        "difference_high": None,
        "better": None,
        "note": _note(list(by_seed.values()), size) if is_student else "",
    }
    shared = [seed for seed in by_seed if seed in baseline]
    if variant != ablation.baseline and shared:
        row |= compare([by_seed[seed] for seed in shared], [baseline[seed] for seed in shared], name)
    return row


def _others(name: str, by_seed: Mapping[int, Measurement]) -> list[str]:
    """What else was summed over the same tokens."""
    known = next(iter(next(iter(by_seed.values())).sums.values()))
    return [other for other in UNITS if other in known and other != name]


def _spread(name: str, by_seed: Mapping[int, Measurement]) -> dict[str, float | None]:
    values = [mean_of(found, name) for found in by_seed.values()]
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def _facts(found: Sequence[Measurement]) -> dict[str, float | None]:
    """Means over seeds of what a variant was trained on."""
    names = ("chosen", "trained", "target_tokens", "seconds")
    return {name: float(np.mean([getattr(one, name) for one in found])) if found else None for name in names}


def _note(found: Sequence[Measurement], size: int | None) -> str:
    """What makes a variant's sets unequal to the others'."""
    chosen, trained = ({getattr(one, name) for one in found} for name in ("chosen", "trained"))
    notes = []
    if size is not None and chosen != {size}:
        notes.append(f"chose {_span(chosen)} of {size:,} wanted")
    if any(one.trained != one.chosen for one in found):
        notes.append(f"{_span(trained)} of them could be trained on")
    return "; ".join(notes)


def _span(numbers: set[Any]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def mean_of(found: Measurement, name: str) -> float:
    """Mean over all tokens measured on."""
    return sum(sums[name] for sums in found.sums.values()) / sum(sums["tokens"] for sums in found.sums.values())


def compare(
    variant: Sequence[Measurement], baseline: Sequence[Measurement], name: str, seed: int = 0
) -> dict[str, Any]:
    """The difference to the baseline with its 95 % interval, see above.

    Args:
        variant: measurements under the seeds in turn; `baseline` has the same seeds.
        name: what is compared: `ce`, `kl` or `top1`.
    """
    ids = sorted(baseline[0].sums)
    values = np.array([[[one.sums[id_][name] for id_ in ids] for one in group] for group in (variant, baseline)])
    tokens = np.array([[[one.sums[id_]["tokens"] for id_ in ids] for one in group] for group in (variant, baseline)])
    means = values.sum(-1) / tokens.sum(-1)
    by_seed = means[0] - means[1]
    found: dict[str, Any] = {"difference": float(by_seed.mean())}
    if len(by_seed) < 2:
        return found
    rng = np.random.default_rng(seed)
    draws = _over_prompts(values, tokens, rng) + _over_seeds(by_seed, rng)
    low, high = (float(end) for end in np.quantile(draws, [0.025, 0.975]))
    is_better = None if low <= 0.0 <= high else (low > 0.0 if name == "top1" else high < 0.0)
    return found | {"difference_low": low, "difference_high": high, "better": is_better}


def _over_prompts(values: np.ndarray, tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[draws] mean difference over seeds on prompts drawn anew; `values` and `tokens` are [2, seeds, prompts]."""
    num = values.shape[-1]
    drawn = []
    for _ in range(_DRAWS // _BLOCK):
        times = rng.multinomial(num, np.full(num, 1 / num), size=_BLOCK).T.astype(np.float64)
        means = (values @ times) / np.maximum(tokens @ times, 1.0)
        drawn.append((means[0] - means[1]).mean(0))
    return np.concatenate(drawn)


def _over_seeds(by_seed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[draws] how far the mean over seeds may be from the mean over all seeds there could be."""
    num = len(by_seed)
    return rng.standard_t(num - 1, _DRAWS) * by_seed.std(ddof=1) / np.sqrt(num)
