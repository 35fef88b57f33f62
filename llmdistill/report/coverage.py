"""How well the chosen records cover the pool, beside random choices of equal size: read back, and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmdistill.run.manifest import Manifest

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Curve:
    """One measure of the first n chosen, and of random choices of equal size: [sizes] each."""

    chosen: Floats
    mean: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class CoverageView:
    """How well the chosen cover the pool, read back from the manifest."""

    sizes: Floats
    coverage: Curve
    radius: Curve
    num_pool: int
    num_measured: int
    num_random: int


def coverage_of(manifest: Manifest | None) -> CoverageView | None:
    """The coverage in the metrics of `curate`; None where there is none, or it is not whole."""
    stored = manifest.metrics.get("coverage") if manifest else None
    if not isinstance(stored, Mapping):
        return None
    try:
        sizes = _series(stored["sizes"], 0)
        coverage, radius = (_curve(stored, name, len(sizes)) for name in ("coverage", "radius"))
        num_pool, num_measured, num_random = (int(stored[f"num_{name}"]) for name in ("pool", "measured", "random"))
    except (KeyError, TypeError, ValueError):
        return None
    if not len(sizes) or not num_random:
        return None
    return CoverageView(sizes, coverage, radius, num_pool, num_measured, num_random)


def _curve(stored: Mapping[str, Any], name: str, num: int) -> Curve:
    band = stored[f"random_{name}"]
    return Curve(_series(stored[name], num), *(_series(band[part], num) for part in ("mean", "low", "high")))


def _series(values: Sequence[float], num: int) -> Floats:
    """The numbers; a ValueError when there are not `num` (0: any number) finite ones."""
    found = np.array(values, dtype=float)
    if found.ndim != 1 or not np.isfinite(found).all() or (num and len(found) != num):
        raise ValueError("these are not the numbers of a curve")
    return found


def coverage_words(view: CoverageView) -> list[str]:
    """What the coverage shows, in sentences."""
    size = int(view.sizes[-1])
    pool = f"the {view.num_pool:,} records of the pool"
    if view.num_measured < view.num_pool:
        pool = f"a random {view.num_measured:,} of {pool}"
    if size >= view.num_pool:
        return ["Every record of the pool was chosen, so there is no random choice of the same size to compare with."]
    nearest = "the 1 chosen" if size == 1 else f"the nearest of the {size:,} chosen"
    covered, worst = view.coverage, view.radius
    return [
        f"On average over {pool}, {nearest} has a similarity of {covered.chosen[-1]:.3f} ((1 + cosine) / 2; 1 at "
        f"most). Where as many are chosen at random it is {_drawn(covered, view.num_random, 3)}: "
        f"{_standing(covered, higher=True)}.{_as_good_as(view)}",
        f"The record that is covered worst lies {worst.chosen[-1]:.2f} from {nearest} (Euclidean distance of unit "
        f"vectors; 2 at most). At random it is {_drawn(worst, view.num_random, 2)}: {_standing(worst, higher=False)}.",
    ]


def _drawn(curve: Curve, num_random: int, digits: int) -> str:
    mean, low, high = (f"{values[-1]:.{digits}f}" for values in (curve.mean, curve.low, curve.high))
    return mean if num_random == 1 else f"{mean} ({low} to {high} in {num_random} draws)"


def _standing(curve: Curve, *, higher: bool) -> str:
    """Where the chosen stand among the random draws, of a number that is better when higher, or when lower."""
    value, low, high = curve.chosen[-1], curve.low[-1], curve.high[-1]
    if low <= value <= high:
        return "the choice is no different from the draws"
    better = (value > high) == higher
    return "the choice is better than every draw" if better else "the choice is worse than every draw"


def _as_good_as(view: CoverageView) -> str:
    """From how few chosen on the coverage is that of the whole random choice."""
    size, curve = int(view.sizes[-1]), view.coverage
    enough = view.sizes[curve.chosen >= curve.mean[-1]]
    if not len(enough) or enough[0] >= size:
        return ""
    return f" With number {int(enough[0]):,} already the chosen are as good as {size:,} random ones."
