"""Greedy MAP of a determinantal point process: rows that are good, and unlike each other as a set.

The objective is that of Chen, Zhang and Zhou (arXiv 1709.05135, eq. 12): quality * sum of qualities + (1 - quality) *
log det S. The greedy choice is theirs too (Alg. 1, incremental Cholesky), made lazy: what a row adds only shrinks as
others are chosen (log det is submodular), so an old value bounds the new one, and only rows at the top of the bounds
are computed again (after arXiv 2206.05947). That needs O(N + size^2) memory, so the vectors may stay on disk.

S is the Gaussian kernel exp(-|x - y|^2 / 2b), on unit rows exp((cosine - 1) / b). It has full rank on distinct rows;
a linear kernel has rank d and could not tell sets of more than d rows apart.
"""

from __future__ import annotations

import numpy as np

from llmdistill.curate.select.base import Choice, Task, by_score, filled, one_thread
from llmdistill.errors import UsageError

MAX_BYTES = 2 * 1024**3
# a row of which less than this is not explained by the chosen ones is a copy of them; float64 cannot tell it from 0
SPENT = 1e-9
_BATCH = 32
_ROWS = 65_536


def dpp(task: Task) -> Choice:
    """The row that adds most to the objective, again and again; ties go to the lower row.

    `gains` are what the rows add: quality * q + (1 - quality) * log of the variance that the rows chosen before leave
    them (0 for a row unlike all of them). Copies of chosen rows, whose gain is -inf, come last, by score, without gain.

    Raises:
        UsageError: the square of `size` does not fit into 2 GB.
    """
    if 8 * task.size**2 > MAX_BYTES:
        most = int((MAX_BYTES / 8) ** 0.5)
        what = f"dpp chooses at most {most:,} records, not {task.size:,}"
        raise UsageError(what, where="curate.size", do="set curate.select to k_center or deita, which have no limit")
    greedy = _Greedy(task)
    with one_thread():
        greedy.run(task)
    chosen = filled(task, greedy.chosen, by_score(task))
    gains = np.full(len(chosen), np.nan)
    gains[: len(greedy.gains)] = greedy.gains
    return Choice(chosen, gains, notes={"evaluated": float(greedy.num_evaluated), "bandwidth": greedy.bandwidth})


def bandwidth(vectors: np.ndarray) -> float:
    """Width b of the kernel: a quarter of the mean of 1 - cosine, so a usual pair has S = exp(-4) in every embedding.

    The embeddings of language models differ much in how alike all their texts look.
    """
    total = np.zeros(vectors.shape[1])
    for start in range(0, len(vectors), _ROWS):
        total += vectors[start : start + _ROWS].sum(0, dtype=np.float64)
    mean = total / len(vectors)
    return max(float(1 - mean @ mean) / 4, 1e-3)


class _Greedy:
    """The rows chosen so far, the Cholesky factor of their S, and upper bounds of what every other row would add."""

    def __init__(self, task: Task) -> None:
        num = len(task.vectors)
        self.vectors, self.quality, self.qualities = task.vectors, task.quality, task.qualities
        self.bandwidth = bandwidth(task.vectors)
        self.chosen: list[int] = []
        self.gains: list[float] = []
        self.num_evaluated = 0
        self._basis = np.zeros((task.size, task.vectors.shape[1]))
        self._halves = np.zeros(task.size)  # half the squared lengths of the basis
        self._factor = np.zeros((task.size, task.size))
        self._rank = 0
        self._bounds = np.round(self.quality * self.qualities, 9)
        self._computed_at = np.zeros(num, dtype=np.int64)

    def run(self, task: Task) -> None:
        """Choose the given rows, then the best until there are `size` or only copies are left."""
        for given in task.given:
            self.refresh(np.array([given]))
            self.take(given)
        self.gains = [np.nan] * len(self.chosen)
        while len(self.chosen) < task.size and (row := self.best()) is not None:
            self.take(row)

    def best(self) -> int | None:
        """The row that adds most; None when only copies of the chosen ones are left."""
        batch = _BATCH
        while True:
            row = int(np.argmax(self._bounds))
            if self._bounds[row] == -np.inf:
                return None
            if self._computed_at[row] == self._rank:
                return row
            self.refresh(self._stale(batch))
            batch *= 2

    def _stale(self, num: int) -> np.ndarray:
        """The `num` rows with the highest bounds among those computed before the last choice."""
        stale = np.flatnonzero((self._computed_at < self._rank) & (self._bounds > -np.inf))
        if len(stale) <= num:
            return stale
        return stale[np.argpartition(-self._bounds[stale], num)[:num]]

    def refresh(self, rows: np.ndarray) -> None:
        """Compute what these rows would add now. Rounded, so that noise does not decide between equals."""
        rest = 1 - np.square(self._coefficients(rows)).sum(0)
        gains = np.full(len(rows), -np.inf)
        new = rest > SPENT
        gains[new] = self.quality * self.qualities[rows[new]] + (1 - self.quality) * np.log(rest[new])
        self._bounds[rows] = np.round(gains, 9)
        self._computed_at[rows] = self._rank
        self.num_evaluated += len(rows)

    def _coefficients(self, rows: np.ndarray) -> np.ndarray:
        """[chosen, rows]: L^-1 S[chosen, rows], where L is the Cholesky factor of S[chosen, chosen]."""
        from scipy.linalg import solve_triangular

        vectors = self.vectors[rows].astype(np.float64)
        halves = self._halves[: self._rank, None] + np.square(vectors).sum(1) / 2
        kernel = np.exp(np.minimum(self._basis[: self._rank] @ vectors.T - halves, 0) / self.bandwidth)
        factor = self._factor[: self._rank, : self._rank]
        return np.asarray(solve_triangular(factor, kernel, lower=True, check_finite=False)) if self._rank else kernel

    def take(self, row: int) -> None:
        """Choose a row that `refresh` has just been told."""
        self.chosen.append(row)
        self.gains.append(float(self._bounds[row]))
        if self._bounds[row] > -np.inf:  # a given row may be a copy of another
            column = self._coefficients(np.array([row]))[:, 0]
            self._factor[self._rank, : self._rank] = column
            self._factor[self._rank, self._rank] = np.sqrt(1 - column @ column)
            self._basis[self._rank] = self.vectors[row]
            self._halves[self._rank] = np.square(self._basis[self._rank]).sum() / 2
            self._rank += 1
        self._bounds[row] = -np.inf
