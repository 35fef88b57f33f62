"""Greedy maximisation of coverage: sum over all rows of the cosine to the nearest chosen row.

All gains are kept up to date: choosing a candidate changes them only through the rows that it is nearer to than what
was chosen before. Such a row is looked at a few times in all (about ln k times for k chosen, not k times), so the
whole costs a few products of all rows with all candidates instead of one for each that is chosen. And of such a row
only the candidates matter that it is nearer to than what is chosen: as soon as these few fit in memory they alone are
kept (`Nearer`), and what follows costs next to nothing.
"""

from __future__ import annotations

import numpy as np

from llmdistill.curate import blocks

_ROWS = 64
_COLUMNS = 2048
_PRODUCT_ROWS = 256
_UNCOVERED = -1.0
_SAMPLE = 256
_ENTRY_BYTES = 12
_NEARER_BYTES = 800_000_000
_NEARER_SHARE = 0.03
"""Lists take several times as long for an entry as a block does."""


class Cosines:
    """Cosines of rows with candidates, made anew each time."""

    rows_at_once = _PRODUCT_ROWS

    def __init__(self, vectors: np.ndarray, points: np.ndarray) -> None:
        self.vectors, self.points = vectors, points

    def of_candidate(self, candidate: int) -> np.ndarray:
        """[N] with all rows."""
        product: np.ndarray = self.vectors @ self.points[candidate]
        return product

    def block(self, rows: np.ndarray | slice, columns: slice) -> np.ndarray:
        """[rows, columns], an array of its own."""
        vectors = self.vectors[rows] if isinstance(rows, slice) else blocks.gather(self.vectors, rows)
        product: np.ndarray = vectors @ self.points[columns].T
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

    def block(self, rows: np.ndarray | slice, columns: slice) -> np.ndarray:
        """[rows, columns], an array of its own; a view for a slice of rows."""
        block: np.ndarray = self.held[rows, columns]
        return block


class Nearer:
    """For each row the candidates that it is nearer to than to what is chosen, with their cosines.

    Entries of row i are those from `starts[i]` to `starts[i + 1]`.
    """

    def __init__(self, cosines: Cosines | HeldCosines, covered: np.ndarray, num: int, workers: blocks.Workers) -> None:
        self.num = num

        def work(start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            rows = slice(start, min(start + _PRODUCT_ROWS, len(covered)))
            block = cosines.block(rows, slice(0, num))
            above = block > covered[rows, None]
            lengths, places = np.count_nonzero(above, axis=1), np.flatnonzero(above)
            candidates = places - np.repeat(num * np.arange(len(block)), lengths)
            return lengths, candidates, block.ravel()[places]

        lengths, candidates, values = zip(*workers.map(work, range(0, len(covered), _PRODUCT_ROWS)), strict=True)
        self.starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        self.candidates, self.values = np.concatenate(candidates), np.concatenate(values)

    def gains(self, covered: np.ndarray) -> np.ndarray:
        """[C] float64: what choosing each candidate adds to the sum of the rows' cosines."""
        above = np.maximum(self.values - np.repeat(covered, np.diff(self.starts)), 0)
        return np.bincount(self.candidates, above, self.num)

    def lost(self, rows: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """[C] float64: what every gain had between `low` and `high` of the cosines of these rows (at least one)."""
        starts, ends = self.starts[rows], self.starts[rows + 1]
        slices = [slice(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        low, high = (np.repeat(bound, ends - starts) for bound in (low, high))
        between = np.concatenate([self.values[some] for some in slices])
        np.minimum(np.maximum(between, low, out=between), high, out=between)
        candidates = np.concatenate([self.candidates[some] for some in slices])
        return np.bincount(candidates, between - low, self.num)

    def shrink(self, covered: np.ndarray) -> None:
        """Forget the candidates that a row is no longer nearer to."""
        kept = self.values > np.repeat(covered, np.diff(self.starts))
        self.starts = np.concatenate([[0], np.cumsum(kept)])[self.starts]
        self.candidates, self.values = self.candidates[kept], self.values[kept]


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
        self.nearer: Nearer | None = None
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
        self._lower_gains(rows, low, high)
        self.covered[rows] = high
        if len(self.chosen).bit_count() == 1:
            self._keep_nearer()
        return float((high - low).sum(dtype=np.float64))

    def _lower_gains(self, rows: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        """Take from every gain what it had between `low` and `high` of these rows' cosines."""
        if not len(rows):
            return
        if self.nearer is not None:
            self.full -= self.nearer.lost(rows, low, high)
            return
        step = self.cosines.rows_at_once
        before = float(low.sum(dtype=np.float64))

        def work(start: int) -> None:
            columns = slice(start, start + _COLUMNS)
            reached = np.zeros(len(self.full[columns]))
            for first in range(0, len(rows), step):
                some = slice(first, first + step)
                block = self.cosines.block(rows[some], columns)
                np.maximum(block, low[some, None], out=block)  # twice as fast as np.clip, which broadcasts slowly
                np.minimum(block, high[some, None], out=block)
                reached += block.sum(0)
            self.full[columns] -= reached - before

        self.workers.map(work, range(0, len(self.full), _COLUMNS))
        self.lookups += float(len(rows)) * len(self.full)

    def _keep_nearer(self) -> None:
        """As the chosen double in number: keep what is nearer alone, once it fits; then forget what no longer is."""
        if self.nearer is not None:
            self.nearer.shrink(self.covered)
            return
        num = len(self.covered)
        rows = np.arange(0, num, max(1, num // _SAMPLE))
        share = float((self.cosines.block(rows, slice(0, len(self.full))) > self.covered[rows, None]).mean())
        if share <= min(_NEARER_SHARE, _NEARER_BYTES / (num * len(self.full) * _ENTRY_BYTES)):
            self.nearer = Nearer(self.cosines, self.covered, len(self.full), self.workers)
            self.full = self.nearer.gains(self.covered)
            self.lookups += float(num) * len(self.full)
