"""Records that mean the same: a row too similar to a better one that is kept is dropped (SemDeDup, arXiv 2303.09540).

Greedy in the given order, as near duplicates are: SemDeDup's own rule drops both ends of a chain.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from llmdistill.curate.blocks import nearest
from llmdistill.curate.duplicates import Match

EXACT_PRODUCTS = 4e12
"""Multiplications up to which every row is compared with every kept one: about a minute on two cores."""

CLUSTER_ROWS = 20_000
"""Mean number of rows in a cluster of a larger pool."""

_BLOCK = 1024
_KEPT_BLOCK = 8192
_ROUNDING = 1e-5
"""Bounds the error of a float32 product of unit rows; what is this near to deciding is worked out in float64."""
_AS_ONE = 1e-6
"""How far below the threshold still counts: the length of a float32 row is not exactly 1."""
_SAMPLE = 50_000
_ROUNDS = 10


def semantic_duplicates(vectors: np.ndarray, threshold: float) -> list[Match | None]:
    """For each row of `vectors` [N, d], the earlier kept row it is most similar to; None when it is to be kept.

    Greedy in the given order, so put the better rows first. A row that is zero or not finite equals nothing. What
    `how` calls `clusters` compares rows within a cluster only, and misses copies that a border divides.

    Args:
        vectors: rows of unit length.
        threshold: cosine, 0 to 1, from which two rows count as one.
    """
    usable = np.flatnonzero(_usable(vectors))
    kept_by = np.full(len(vectors), -1, dtype=np.int64)
    similarity = np.zeros(len(vectors))
    groups = [usable] if how(*vectors.shape) == "exact" else _clusters(vectors, usable)
    for rows in groups:
        originals, found = _greedy(vectors, rows, threshold)
        matched = originals >= 0
        kept_by[rows[matched]] = rows[originals[matched]]
        similarity[rows] = found
    return [
        Match(int(original), float(found)) if original >= 0 else None
        for original, found in zip(kept_by, similarity, strict=True)
    ]


def how(num_rows: int, width: int) -> Literal["exact", "clusters"]:
    """Whether so many rows are all compared with each other, or only within clusters."""
    return "exact" if num_rows * num_rows / 2 * width <= EXACT_PRODUCTS else "clusters"


def _usable(vectors: np.ndarray) -> np.ndarray:
    usable = np.zeros(len(vectors), dtype=bool)
    for start in range(0, len(vectors), _KEPT_BLOCK):
        block = vectors[start : start + _KEPT_BLOCK]
        usable[start : start + _KEPT_BLOCK] = np.isfinite(block).all(1) & block.any(1)
    return usable


def _greedy(vectors: np.ndarray, rows: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """For each of `rows` the position in `rows` of the kept one it is most similar to, or -1, and that cosine."""
    wanted = threshold - _AS_ONE
    kept = _Kept(len(rows), vectors.shape[1])
    originals = np.full(len(rows), -1, dtype=np.int64)
    similarity = np.zeros(len(rows))
    for start in range(0, len(rows), _BLOCK):
        block = np.ascontiguousarray(vectors[rows[start : start + _BLOCK]], dtype=np.float32)
        earlier = kept.most_similar(block, wanted)
        inside = np.tril(block @ block.T >= wanted - _ROUNDING, -1)
        stays = np.zeros(len(block), dtype=bool)
        for row in range(len(block)):
            position, cosine = earlier.get(row, (-1, -1.0))
            others = np.flatnonzero(inside[row, :row] & stays[:row])
            if len(others):
                cosines = block[others].astype(np.float64) @ block[row].astype(np.float64)
                if cosines.max() > cosine:
                    position, cosine = start + int(others[cosines.argmax()]), float(cosines.max())
            stays[row] = cosine < wanted
            if not stays[row]:
                originals[start + row], similarity[start + row] = position, min(1.0, cosine)
        kept.add(block[stays], start + np.flatnonzero(stays))
    return originals, similarity


class _Kept:
    """The rows kept so far."""

    def __init__(self, most: int, width: int) -> None:
        self._vectors = np.empty((most, width), dtype=np.float32)
        self._positions = np.empty(most, dtype=np.int64)
        self._count = 0

    def add(self, vectors: np.ndarray, positions: np.ndarray) -> None:
        """Keep rows, with where they stand in the pool."""
        end = self._count + len(vectors)
        self._vectors[self._count : end], self._positions[self._count : end] = vectors, positions
        self._count = end

    def most_similar(self, block: np.ndarray, wanted: float) -> dict[int, tuple[int, float]]:
        """For each row of `block` that has one of `wanted` cosine or nearly: its position and the exact cosine."""
        best: dict[int, tuple[int, float]] = {}
        for row, column in self._candidates(block, wanted - _ROUNDING):
            cosine = float(block[row].astype(np.float64) @ self._vectors[column].astype(np.float64))
            if cosine > best.get(row, (-1, -1.0))[1]:
                best[row] = int(self._positions[column]), cosine
        return best

    def _candidates(self, block: np.ndarray, at_least: float) -> Iterator[tuple[int, int]]:
        """Kept rows that may be a row's most similar one; the earlier ones first."""
        for start in range(0, self._count, _KEPT_BLOCK):
            products = block @ self._vectors[start : min(start + _KEPT_BLOCK, self._count)].T
            highest = products.max(1)
            for row in np.flatnonzero(highest >= at_least):
                for column in np.flatnonzero(products[row] >= max(at_least, highest[row] - _ROUNDING)):
                    yield int(row), start + int(column)


def _clusters(vectors: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """`rows` in groups of those nearest to a centre of spherical k-means, each in the given order."""
    number = max(2, round(len(rows) / CLUSTER_ROWS))
    sample = np.asarray(vectors[np.sort(np.random.default_rng(0).permutation(rows)[:_SAMPLE])])
    centres = sample[:number]
    for _ in range(_ROUNDS):
        _, label = nearest(sample, centres)
        sums = np.stack([sample[label == number].sum(0, dtype=np.float64) for number in range(len(centres))])
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 0, sums / np.where(lengths > 0, lengths, 1), centres).astype(vectors.dtype)
    _, label = nearest(vectors, centres)
    return [found for number in range(len(centres)) if len(found := rows[label[rows] == number])]
