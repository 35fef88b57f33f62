"""Greedy maximisation of coverage: sum over all rows of the cosine to the nearest chosen row.

A candidate's gain only shrinks, so an old one bounds the new one (Minoux 1978). The candidates with the largest bounds
form a pool whose gains are kept up to date with every row chosen among them, as long as the best of the pool is not
below the largest bound outside. A gain is brought up to date over those rows alone whose nearest chosen row changed
since it was last computed.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from llmdistill.curate import blocks

_POOL = 512
_PANEL_BYTES = 200 << 20
_LEAST = 16
_PIECE = 256
_COLUMNS = 1024
_KEPT_BYTES = 64 << 20
_UNCOVERED = -1.0
_START = -1


class _Similarities(Protocol):
    """Cosines of candidates with all rows."""

    def panel(self, which: np.ndarray) -> np.ndarray:
        """[which, N] cosines of the candidates `which` (their numbers, ascending)."""

    def sums(self, which: np.ndarray, low: np.ndarray, high: np.ndarray | None) -> np.ndarray:
        """[which] sums over all rows of what exceeds `low` [N], and of that no more than up to `high` [N]."""


def _above(cosines: np.ndarray, low: np.ndarray, width: np.ndarray | None) -> np.ndarray:
    """What of `cosines` is above `low`, up to `width`; in place."""
    cosines -= low
    np.maximum(cosines, 0, out=cosines)
    if width is not None:
        np.minimum(cosines, width, out=cosines)
    return cosines


class Products:
    """Cosines made anew each time, block by block."""

    def __init__(self, vectors: np.ndarray, points: np.ndarray, workers: blocks.Workers) -> None:
        self.vectors, self.points, self.workers = vectors, points, workers

    def panel(self, which: np.ndarray) -> np.ndarray:
        """See `_Similarities`."""
        points = blocks.gather(self.points, which)
        out = np.empty((len(which), len(self.vectors)), dtype=self.vectors.dtype)

        def work(start: int) -> None:
            np.matmul(points, self.vectors[start : start + _COLUMNS].T, out=out[:, start : start + _COLUMNS])

        self.workers.map(work, range(0, len(self.vectors), _COLUMNS))
        return out

    def sums(self, which: np.ndarray, low: np.ndarray, high: np.ndarray | None) -> np.ndarray:
        """See `_Similarities`."""
        columns = np.arange(len(low)) if high is None else np.flatnonzero(high > low)
        vectors = self.vectors
        if high is not None and len(columns) * vectors.itemsize * vectors.shape[1] <= _KEPT_BYTES:
            vectors, low, high = blocks.gather(vectors, columns), low[columns], high[columns]
            columns = np.arange(len(columns))

        def work(piece: np.ndarray) -> np.ndarray:
            points = blocks.gather(self.points, piece)
            total = np.zeros(len(piece))
            for some in blocks.split(columns, _COLUMNS):
                cosines = points @ blocks.gather(vectors, some).T
                total += _above(cosines, low[some], None if high is None else high[some] - low[some]).sum(1)
            return total

        return np.concatenate(self.workers.map(work, blocks.split(which, _PIECE)))


class Cached:
    """All cosines held in memory: every row is a candidate."""

    def __init__(self, vectors: np.ndarray, workers: blocks.Workers) -> None:
        self.workers = workers
        num = len(vectors)
        self.cosines = np.empty((num, num), dtype=vectors.dtype)

        def work(start: int) -> None:
            stop = start + _COLUMNS
            for other in range(start, num, _COLUMNS):
                products = vectors[start:stop] @ vectors[other : other + _COLUMNS].T
                self.cosines[start:stop, other : other + _COLUMNS] = products
                self.cosines[other : other + _COLUMNS, start:stop] = products.T

        workers.map(work, range(0, num, _COLUMNS))

    def panel(self, which: np.ndarray) -> np.ndarray:
        """See `_Similarities`."""
        panel: np.ndarray = self.cosines[which]
        return panel

    def sums(self, which: np.ndarray, low: np.ndarray, high: np.ndarray | None) -> np.ndarray:
        """See `_Similarities`."""
        columns = np.arange(len(low)) if high is None else np.flatnonzero(high > low)
        width = None if high is None else (high - low)[:, None]
        whole = np.arange(len(low)) if 4 * len(which) > len(low) else which

        def work(piece: np.ndarray) -> np.ndarray:
            total = np.zeros(len(piece))
            for some in blocks.split(columns, 128):
                if whole is which:
                    cosines = self.cosines[some[:, None], piece]
                else:
                    cosines = self.cosines[some, piece[0] : piece[-1] + 1]
                total += _above(cosines, low[some, None], None if width is None else width[some]).sum(0)
            return total

        sums = np.concatenate(self.workers.map(work, blocks.split(whole, 2 * _COLUMNS)))
        return sums if whole is which else sums[which]


class Greedy:
    """Chooses candidates one after the other by `scale * (gain of the sum of cosines) + bonus`.

    Attributes:
        points: [C, d] the candidates; results are in these numbers 0..C-1.
        covered: [N] cosine to the nearest chosen row, -1 before there is one.
        full: [C] the gain at some time (of the sum of cosines): no later one is larger.
        stamps: [C] which entry of `history` (`covered` at that time) that gain belongs to; -1 for the very first.
        evaluations: gains computed, in gains over all N rows.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        points: np.ndarray,
        bonus: np.ndarray,
        scale: float,
        similarities: _Similarities,
        workers: blocks.Workers,
    ) -> None:
        num, kind = len(vectors), vectors.dtype
        self.bonus, self.scale = bonus, scale
        self.similarities, self.workers = similarities, workers
        self.covered = np.full(num, _UNCOVERED, dtype=kind)
        self.full = num + blocks.dot(points, blocks.total(vectors))
        self.stamps = np.full(len(points), _START)
        self.open = np.ones(len(points), dtype=bool)
        self.history: dict[int, np.ndarray] = {}
        self.hot, self.time, self.evaluations = len(points), 0, 0.0
        self.pool_size = max(_LEAST, min(_POOL, _PANEL_BYTES // max(1, num * kind.itemsize)))
        self.margin = 16 * float(np.finfo(kind).eps) * scale * np.sqrt(num) + 4 * float(np.finfo(np.float64).eps)
        self.chosen: list[int] = []
        self.gains: list[float] = []

    def add(self, candidate: int) -> None:
        """Choose a candidate regardless of its gain."""
        products = self.similarities.panel(np.array([candidate]))[0]
        np.maximum(self.covered, products, out=self.covered)
        self._record(candidate, np.nan)

    def run(self, size: int) -> None:
        """Choose until there are `size`."""
        size = min(size, len(self.bonus))
        while len(self.chosen) < size:
            self._round(size)

    def _record(self, candidate: int, gain: float) -> None:
        self.open[candidate] = False
        self.chosen.append(candidate)
        self.gains.append(gain)

    def _values(self) -> np.ndarray:
        return np.where(self.open, self.scale * np.maximum(self.full, 0) + self.bonus, blocks.CHOSEN)

    def _round(self, size: int) -> None:
        self.history[self.time] = self.covered.copy()
        hot = blocks.top(self._values(), self.hot)
        stale, before = blocks.outside(self._values(), hot)[0], len(self.chosen)
        self._refresh(hot[self.open[hot]])
        values = self._values()
        pool = blocks.top(values, self.pool_size)
        limit, _ = blocks.outside(values, pool)
        self._choose(pool[self.open[pool]], limit, size)
        self.time += 1
        self.stamps[pool] = self.time
        waiting = set(self.stamps[self.open].tolist())
        self.history = {time: covered for time, covered in self.history.items() if time in waiting}
        grown = limit <= stale or _START in waiting or len(self.chosen) - before < 8
        self.hot = min(2 * self.hot, len(self.bonus)) if grown else max(self.hot // 2, 2 * self.pool_size)

    def _refresh(self, which: np.ndarray) -> None:
        """Bring the gains of `which` up to date."""
        stamps = self.stamps[which]
        for stamp in np.unique(stamps[stamps < self.time]).tolist():
            group = which[stamps == stamp]
            if stamp == _START:
                if self.chosen:
                    self.full[group] = self.similarities.sums(group, self.covered, None)
                    self.evaluations += len(group)
            else:
                before = self.history[stamp]
                changed = np.count_nonzero(self.covered > before)
                if changed:
                    self.full[group] -= self.similarities.sums(group, before, self.covered)
                    self.evaluations += len(group) * changed / len(before)
            self.stamps[group] = self.time

    def _choose(self, pool: np.ndarray, limit: float, size: int) -> None:
        """Choose among `pool` while its best is not below `limit`, the largest bound outside."""
        panel = self.similarities.panel(pool)
        self.evaluations += len(pool)
        full = self._rest(panel)
        open_ = np.ones(len(pool), dtype=bool)
        while len(self.chosen) < size:
            values = np.where(open_, self.scale * full + self.bonus[pool], blocks.CHOSEN)
            best = values.max()
            if best == blocks.CHOSEN or best + self.margin < limit:
                break
            taken = int(np.argmax(values >= best - self.margin))
            open_[taken] = False
            full = self._take(pool, panel, full, taken)
        self.full[pool] = full

    def _take(self, pool: np.ndarray, panel: np.ndarray, full: np.ndarray, taken: int) -> np.ndarray:
        """Choose one of the pool; the new gains of the pool."""
        changed = np.flatnonzero(panel[taken] > self.covered)
        low, high = self.covered[changed], panel[taken][changed]
        gain = self.scale * float((high - low).sum(dtype=np.float64)) + self.bonus[pool[taken]]
        self._record(int(pool[taken]), gain)
        self.covered[changed] = high
        if len(changed) * 4 > len(self.covered):
            return self._rest(panel)
        left: np.ndarray = full - _above(panel.take(changed, axis=1), low, high - low).sum(1)
        return left

    def _rest(self, panel: np.ndarray) -> np.ndarray:
        """Gains of the candidates whose cosines with all rows are given."""

        def work(piece: np.ndarray) -> np.ndarray:
            total = np.zeros(len(piece))
            for start in range(0, len(self.covered), 4 * _COLUMNS):
                some = slice(start, start + 4 * _COLUMNS)
                total += _above(panel[piece[0] : piece[-1] + 1, some].copy(), self.covered[some], None).sum(1)
            return total

        return np.concatenate(self.workers.map(work, blocks.split(np.arange(len(panel)), 32)))
