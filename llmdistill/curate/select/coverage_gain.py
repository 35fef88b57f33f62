"""Greedy maximisation of coverage: sum over all rows of the cosine to the nearest chosen row.

All gains are kept up to date: choosing a candidate changes them only through the rows that it is nearer to than what
was chosen before. Such a row is looked at a few times in all (about ln k times for k chosen, not k times), so the
whole costs a few products of all rows with all candidates instead of one for each that is chosen.
"""

from __future__ import annotations

import numpy as np

from llmdistill.curate import blocks

_ROWS = 64
_COLUMNS = 2048
_PRODUCT_ROWS = 256
_UNCOVERED = -1.0


class Cosines:
    """Cosines of rows with candidates, made anew each time."""

    rows_at_once = _PRODUCT_ROWS

    def __init__(self, vectors: np.ndarray, points: np.ndarray) -> None:
        self.vectors, self.points = vectors, points

    def of_candidate(self, candidate: int) -> np.ndarray:
        """[N] with all rows."""
        product: np.ndarray = self.vectors @ self.points[candidate]
        return product

    def block(self, rows: np.ndarray, columns: slice) -> np.ndarray:
        """[rows, columns], an array of its own."""
        product: np.ndarray = blocks.gather(self.vectors, rows) @ self.points[columns].T
        return product


class HeldCosines:
    """All cosines held in memory, where the candidates are the rows."""

    rows_at_once = _ROWS

    def __init__(self, vectors: np.ndarray, workers: blocks.Workers) -> None:
        num = len(vectors)
        self.held = np.empty((num, num), dtype=vectors.dtype)

        def work(start: int) -> None:
            rows = slice(start, start + blocks.ROWS)
            np.matmul(vectors[rows], vectors.T, out=self.held[rows])

        workers.map(work, range(0, num, blocks.ROWS))

    def of_candidate(self, candidate: int) -> np.ndarray:
        """[N] with all rows."""
        row: np.ndarray = self.held[candidate]
        return row

    def block(self, rows: np.ndarray, columns: slice) -> np.ndarray:
        """[rows, columns], an array of its own."""
        block: np.ndarray = self.held[rows, columns]
        return block


class Greedy:
    """Chooses candidates one after the other by `scale * (gain of the sum of cosines) + bonus`.

    Attributes:
        covered: [N] cosine to the nearest chosen row, -1 before there is one.
        full: [C] float64, the gain of every candidate (of the sum of cosines).
        lookups: cosines of a row with a candidate that were looked at.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        points: np.ndarray,
        bonus: np.ndarray,
        scale: float,
        cosines: Cosines | HeldCosines,
        workers: blocks.Workers,
    ) -> None:
        num, kind = len(vectors), vectors.dtype
        self.bonus, self.scale, self.cosines, self.workers = bonus, scale, cosines, workers
        self.covered = np.full(num, _UNCOVERED, dtype=kind)
        # While nothing is covered the gain of a candidate is linear in it: one product with the sum of all rows.
        self.full = num + blocks.dot(points, blocks.total(vectors))
        self.open = np.ones(len(points), dtype=bool)
        self.margin = 16 * float(np.finfo(kind).eps) * scale * np.sqrt(num) + 4 * float(np.finfo(np.float64).eps)
        self.lookups = 0.0
        self.chosen: list[int] = []
        self.gains: list[float] = []

    def add(self, candidate: int) -> None:
        """Choose a candidate regardless of its gain."""
        self._take(candidate)
        self.gains.append(np.nan)

    def choose(self) -> None:
        """Choose the candidate with the largest gain; of those equal within rounding the lowest."""
        values = np.where(self.open, self.scale * np.maximum(self.full, 0) + self.bonus, blocks.CHOSEN)
        best = int(np.argmax(values >= values.max() - self.margin))
        self.gains.append(self.scale * self._take(best) + float(self.bonus[best]))

    def _take(self, candidate: int) -> float:
        """Choose a candidate; gives by how much the sum of cosines grew."""
        self.open[candidate] = False
        self.chosen.append(candidate)
        products = self.cosines.of_candidate(candidate)
        rows = np.flatnonzero(products > self.covered)
        low, high = self.covered[rows], products[rows]
        self._lower_gains(rows, low, high - low)
        self.covered[rows] = high
        return float((high - low).sum(dtype=np.float64))

    def _lower_gains(self, rows: np.ndarray, low: np.ndarray, width: np.ndarray) -> None:
        """Take from every gain what it had between `low` and `low + width` of these rows' cosines."""
        step = self.cosines.rows_at_once

        def work(start: int) -> None:
            columns = slice(start, start + _COLUMNS)
            lost = np.zeros(len(self.full[columns]))
            for first in range(0, len(rows), step):
                some = slice(first, first + step)
                block = self.cosines.block(rows[some], columns)
                block -= low[some, None]
                np.maximum(block, 0, out=block)  # twice as fast as np.clip, which knows no broadcasting by rows
                np.minimum(block, width[some, None], out=block)
                lost += block.sum(0)
            self.full[columns] -= lost

        if len(rows):
            self.workers.map(work, range(0, len(self.full), _COLUMNS))
        self.lookups += float(len(rows)) * len(self.full)
