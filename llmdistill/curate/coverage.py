"""What a selection stands for: how well the chosen cover the pool, beside random choices of equal size.

All vectors are rows of length 1 (or 0, which are like nothing), perhaps memory-mapped; no [N, N] matrix is held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from llmdistill.curate.blocks import nearest

_MOST_SIZES = 24
_MOST_MEASURED = 20_000
_MOST_PRODUCTS = 100_000_000
"""Dot products of one curve; from 5,000 chosen on fewer rows of the pool are measured."""
_LEAST_MEASURED = 1_000
_MOST_PAIRS = 10_000_000_000
_ROWS = 2_048
_CHOSEN = 2_048
_DECIMALS = 6


@dataclass(frozen=True)
class Band:
    """What several random choices gave at each size."""

    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Coverage:
    """How well the first n chosen cover the pool, for each n of `sizes`.

    Attributes:
        coverage: mean over the pool of (1 + cosine) / 2 with the most similar chosen row, 0 to 1: the value that
            facility location makes large.
        radius: Euclidean distance of the worst covered row from its nearest chosen one, sqrt(2 - 2 cosine), 0 to 2:
            what k-center makes small.
        random_coverage, random_radius: the same of `num_random` random choices of equal size.
        num_pool: rows of the pool.
        num_measured: rows that were measured; a random sample where it is less.
    """

    sizes: list[int]
    coverage: list[float]
    radius: list[float]
    random_coverage: Band
    random_radius: Band
    num_pool: int
    num_measured: int
    num_random: int

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for the manifest."""
        return asdict(self)


def coverage_curve(vectors: np.ndarray, chosen: np.ndarray, seed: int, num_random: int = 5) -> Coverage:
    """Measure the chosen rows, given in order of rank, and `num_random` random choices.

    Each chosen row is compared with the measured rows once, whatever the number of sizes.

    Args:
        vectors: [N, d] unit rows.
        chosen: [n] rows, n <= N.
        seed: of the random choices, and of the sample that is measured where the pool is large.
    """
    chosen = np.asarray(chosen, dtype=np.int64)
    rng = np.random.default_rng(seed)
    measured = _measured(vectors, len(chosen), rng)
    sizes = _sizes(len(chosen))
    coverage, radius = _curve(vectors, measured, chosen, sizes)
    draws = [rng.choice(len(vectors), len(chosen), replace=False) for _ in range(num_random)]
    drawn = np.array([_curve(vectors, measured, draw, sizes) for draw in draws]).reshape(num_random, 2, len(sizes))
    return Coverage(
        sizes,
        _rounded(coverage),
        _rounded(radius),
        random_coverage=_band(drawn[:, 0]),
        random_radius=_band(drawn[:, 1]),
        num_pool=len(vectors),
        num_measured=len(measured),
        num_random=num_random,
    )


def _measured(vectors: np.ndarray, num_chosen: int, rng: np.random.Generator) -> np.ndarray:
    most = min(_MOST_MEASURED, max(_LEAST_MEASURED, _MOST_PRODUCTS // max(1, num_chosen)))
    if len(vectors) <= most:
        return vectors
    return vectors[np.sort(rng.choice(len(vectors), most, replace=False))]


def _sizes(most: int) -> list[int]:
    """Whole numbers from 1 to `most`, each about the same factor over the one before."""
    if most == 0:
        return []
    return [int(size) for size in np.unique(np.geomspace(1, most, _MOST_SIZES).round())]


def _curve(vectors: np.ndarray, measured: np.ndarray, order: np.ndarray, sizes: list[int]) -> np.ndarray:
    """[2, sizes]: coverage and radius of the first rows of `order`."""
    best = np.full(len(measured), -np.inf)
    found = []
    for start, stop in pairwise([0, *sizes]):
        for first in range(start, stop, _CHOSEN):
            others = vectors[order[first : min(first + _CHOSEN, stop)]]
            best = np.maximum(best, nearest(measured, others)[0])
        cosines = np.clip(best, -1, 1)
        found.append((np.mean((1 + cosines) / 2), np.sqrt(2 - 2 * cosines.min())))
    return np.array(found).reshape(-1, 2).T


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), _DECIMALS) for value in values]


def _band(values: np.ndarray) -> Band:
    """Of values [draws, sizes]."""
    if not len(values):
        return Band([], [], [])
    return Band(_rounded(values.mean(0)), _rounded(values.min(0)), _rounded(values.max(0)))


def nearest_chosen(vectors: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row the most similar chosen row other than itself: (row [N] int64, cosine [N] float64).

    Of equals it is the one chosen first. Where there is none the row is -1 and the cosine NaN; so it is for all when
    there are more than 10^10 pairs (e.g. a million rows that are all kept), which would take hours.
    """
    chosen = np.asarray(chosen, dtype=np.int64)
    rows = np.full(len(vectors), -1, dtype=np.int64)
    cosines = np.full(len(vectors), np.nan)
    if not len(chosen) or len(vectors) * len(chosen) > _MOST_PAIRS:
        return rows, cosines
    ranks = np.full(len(vectors), -1, dtype=np.int64)
    ranks[chosen] = np.arange(len(chosen))
    centres = np.asarray(vectors[chosen])
    for start in range(0, len(vectors), _ROWS):
        stop = min(start + _ROWS, len(vectors))
        best, similarity = _most_similar(vectors[start:stop], centres, ranks[start:stop])
        found = best >= 0
        rows[start:stop][found] = chosen[best[found]]
        cosines[start:stop][found] = np.clip(similarity[found], -1, 1)
    return rows, cosines


def _most_similar(block: np.ndarray, centres: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row the best of the centres but the one of its own rank: (its rank, or -1; dot product)."""
    best = np.full(len(block), -1, dtype=np.int64)
    similarity = np.full(len(block), -np.inf)
    for first in range(0, len(centres), _CHOSEN):
        products = block @ centres[first : first + _CHOSEN].T
        own = np.flatnonzero((ranks >= first) & (ranks < first + products.shape[1]))
        products[own, ranks[own] - first] = -np.inf
        columns = products.argmax(1)
        values = products[np.arange(len(block)), columns]
        better = values > similarity
        best[better], similarity[better] = first + columns[better], values[better]
    return best, similarity


def plane(vectors: np.ndarray) -> np.ndarray:
    """[N, 2] float64: each row's place along the first two principal components.

    From the [d, d] covariance, so a pool on disk is never held whole. An axis points to where the largest of its
    coefficients is positive. Where there is no second axis, all rows lie at 0 of it.
    """
    num, size = vectors.shape
    places = np.zeros((num, 2))
    if num == 0 or size == 0:
        return places
    mean = sum((block.sum(0) for block in _blocks(vectors)), np.zeros(size)) / num
    axes = _axes(vectors, mean)
    start = 0
    for block in _blocks(vectors):
        places[start : start + len(block), : axes.shape[1]] = (block - mean) @ axes
        start += len(block)
    return np.round(places, _DECIMALS)


def _axes(vectors: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """[d, 1 or 2] the directions of most variance, the first of them first."""
    size = len(mean)
    scatter = np.zeros((size, size))
    for block in _blocks(vectors):
        centred = block - mean
        scatter += centred.T @ centred
    axes = np.linalg.eigh(scatter).eigenvectors[:, :-3:-1]
    largest = np.abs(axes).argmax(0)
    return axes * np.where(axes[largest, np.arange(axes.shape[1])] < 0, -1.0, 1.0)


def _blocks(vectors: np.ndarray) -> Iterator[np.ndarray]:
    """The rows in float64, some at a time."""
    for start in range(0, len(vectors), _ROWS):
        yield np.asarray(vectors[start : start + _ROWS], dtype=np.float64)
