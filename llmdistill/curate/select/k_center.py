"""Greedy k-center: always the row that is farthest from all chosen ones (Gonzalez 1985; arXiv 1708.00489).

A row's distance to the chosen ones only shrinks, so an old value bounds the new one. Centres are therefore chosen
inside a small pool of the rows with the largest bounds, as long as the best of the pool is not below the largest
bound outside; the centres that have come together then meet in one blocked product the rows that could still be
chosen. Most rows are never looked at again.
"""

from __future__ import annotations

import numpy as np

from llmdistill.curate import blocks
from llmdistill.curate.select.base import Choice, Task

_POOL = 2048
_PAIRS = 8192
_NORM_SLACK = 4e-6  # rows may have length 1 in float32 only
_DECIMALS = 12


def k_center(task: Task) -> Choice:
    """Farthest first, weighed with quality.

    Next is the row with the largest `distance to the nearest chosen row * (1 - w + w * q)`, the Euclidean distance
    (sqrt(2 - 2 cos) for rows of length 1), w `task.quality` and q `task.qualities`; of equals the lower row. That
    value is its gain. Without given rows the first is the one of highest quality (gain NaN). When nothing is left
    but copies of chosen rows (value 0), the better-judged ones follow, then the lower rows.

    Squared distances that agree to 12 decimals are equal.

    The choice is that of float64 arithmetic whatever the dtype: float32 products only bound values, with a margin
    for their rounding (Higham's bound d * eps), and what the margin leaves open is settled in float64.
    """
    num = len(task.vectors)
    search = _Search(task, max(min(task.size, num), len(task.given)))
    for row in task.given:
        search.add(row, np.nan)
    if search.left and not task.given:
        search.add(int(np.argmax(task.qualities)), np.nan)
    with blocks.Workers() as workers:
        while search.left and not search.only_copies:
            search.round(workers)
    search.add_copies(task.qualities)
    notes = {"products": search.products / max(1, num * search.size), "rounds": search.rounds, "exact": search.exact}
    return Choice(search.chosen[: search.count], search.gains[: search.count], notes=notes)


class _Search:
    """State of one choice. Values are squared: weight^2 * distance^2.

    Attributes:
        upper: [N] no value is larger; -1 for chosen rows.
        seen: [N] how many of the centres the bound takes into account.
        hot: how many of the largest bounds are brought up to date in a round.
        products: dot products with centres made so far.
        exact: values computed in float64.
    """

    def __init__(self, task: Task, size: int) -> None:
        num, dims = task.vectors.shape
        self.vectors, self.size = task.vectors, size
        self.weights = (1 - task.quality + task.quality * task.qualities) ** 2
        self.slack = max(2 * (dims + 16) * float(np.finfo(task.vectors.dtype).eps), _NORM_SLACK)
        self.upper = self.weights * 4 + self.slack
        self.seen = np.zeros(num, dtype=np.int32)
        self.centres = np.zeros((size, dims), dtype=task.vectors.dtype)
        self.halves = np.zeros(size, dtype=task.vectors.dtype)
        self.chosen = np.zeros(size, dtype=np.int64)
        self.gains = np.full(size, np.nan)
        self.count = self.products = self.rounds = self.exact = 0
        self.hot = num
        self.only_copies = False

    @property
    def left(self) -> int:
        return self.size - self.count

    def add(self, row: int, gain: float) -> None:
        """Choose a row."""
        centre = self.vectors[row]
        self.centres[self.count] = centre
        self.halves[self.count] = centre @ centre / 2
        self.chosen[self.count] = row
        self.gains[self.count] = gain
        self.upper[row] = blocks.CHOSEN
        self.count += 1

    def add_copies(self, qualities: np.ndarray) -> None:
        """Fill up with rows of value 0."""
        if self.left:
            order = np.argsort(-qualities, kind="stable")
            for row in order[self.upper[order] > blocks.CHOSEN][: self.left]:
                self.add(int(row), 0.0)

    def round(self, workers: blocks.Workers) -> None:
        """Bring the largest bounds up to date, then choose among the largest of those."""
        self.rounds += 1
        hot = blocks.top(self.upper, self.hot)
        stale = blocks.outside(self.upper, hot)[0]
        self.refresh(hot, workers)
        pool = hot[blocks.top(self.upper[hot], _POOL)]
        limit, first = blocks.outside(self.upper, pool)
        _Pool(self, pool).choose(limit, first)
        # Bounds that are out of date ended this round or, if the other rows did, fewer could have been renewed.
        self.hot = min(2 * self.hot, len(self.upper)) if limit <= stale else max(self.hot // 2, 2 * _POOL)

    def refresh(self, rows: np.ndarray, workers: blocks.Workers) -> None:
        """Bounds of `rows` that take all centres into account."""
        stale = rows[self.seen[rows] < self.count]
        ordered = stale[np.argsort(self.seen[stale], kind="stable")]

        def work(block: np.ndarray) -> int:
            start = int(self.seen[block[0]])
            products = blocks.largest(blocks.gather(self.vectors, block), self.centres[start : self.count])
            self.upper[block] = np.minimum(self.upper[block], self.bound(products, self.weights[block]))
            self.seen[block] = self.count
            return len(block) * (self.count - start)

        self.products += sum(workers.map(work, blocks.split(ordered)))

    def bound(self, products: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The value is at most this, given the largest product with a centre (zero rows are nearer than it says)."""
        bound: np.ndarray = weights * (2 - 2 * products) + self.slack
        return bound

    def values(self, block: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Values in float64; a function of the two vectors alone, rounded, so that equal ones are equal."""
        self.exact += len(block)
        self.products += len(block) * self.count
        products = block @ self.centres[: self.count].T - self.halves[: self.count]
        row, centre = np.nonzero(products >= products.max(1, keepdims=True) - self.slack)
        difference = block[row].astype(np.float64) - self.centres[centre]
        squared = np.einsum("ij,ij->i", difference, difference).round(_DECIMALS)
        return weights * np.minimum.reduceat(squared, np.searchsorted(row, np.arange(len(block))))


class _Pool:
    """Some rows whose bounds are kept up to date with every centre chosen among them."""

    def __init__(self, search: _Search, rows: np.ndarray) -> None:
        self.search, self.rows = search, rows
        self.block = np.ascontiguousarray(blocks.gather(search.vectors, rows))
        self.weights = search.weights[rows]
        self.upper = search.upper[rows]
        self.valued_at = np.full(len(rows), -1)

    def choose(self, limit: float, first: int) -> None:
        """Choose while the best is above `limit`, the largest bound outside, or level with it and before `first`."""
        search, batch = self.search, 1
        while search.left:
            best = int(self.upper.argmax())
            if (self.upper[best], -self.rows[best]) < (limit, -first):
                break
            if self.valued_at[best] != search.count:
                self._value(best, batch)
                batch *= 2
                continue
            if self.upper[best] <= 0:
                search.only_copies = True
                break
            self._take(best)
            batch = 1
        search.upper[self.rows] = self.upper
        search.seen[self.rows] = search.count

    def _value(self, best: int, batch: int) -> None:
        """Replace the bound of `best`, and of up to `batch` of the next, by their values."""
        which = np.array([best])
        if batch > 1:
            open_ = np.flatnonzero(self.valued_at != self.search.count)
            most = min(batch, max(1, _PAIRS // self.search.count))
            which = open_[np.argsort(-self.upper[open_], kind="stable")[:most]]
            which = which[self.upper[which] > blocks.CHOSEN]
        self.upper[which] = self.search.values(self.block[which], self.weights[which])
        self.valued_at[which] = self.search.count

    def _take(self, best: int) -> None:
        search = self.search
        search.add(int(self.rows[best]), float(np.sqrt(self.upper[best])))
        self.upper[best] = blocks.CHOSEN
        np.minimum(self.upper, search.bound(self.block @ self.block[best], self.weights), out=self.upper)
        search.products += len(self.rows)
