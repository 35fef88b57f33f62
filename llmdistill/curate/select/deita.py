"""DEITA's rule: from the best score down, keep what is not close to anything kept (arXiv 2312.15685, section 2.4)."""

from __future__ import annotations

import numpy as np

from llmdistill.curate.select.base import Choice, Task, by_score

_ROWS = 1024


def deita(task: Task) -> Choice:
    """Rows in order of score (ties: the lower row first) whose cosine to all that are kept is below `max_similarity`.

    Of two copies the better one is kept, once: a row is compared with what is kept, not with the pool. Fewer than
    `size` are chosen when the pool is used up. The given rows are kept in any case.
    """
    kept = _Kept(task)
    given = np.array(task.given, dtype=np.int64)
    for row in given:
        kept.add(int(row), task.vectors[row])
    order = by_score(task)
    order = order[~np.isin(order, given)]
    examined = 0
    for start in range(0, len(order), _ROWS):
        if kept.full:
            break
        examined += kept.add_from(order[start : start + _ROWS])
    chosen = np.array(kept.rows, dtype=np.int64)
    return Choice(chosen, np.full(len(chosen), np.nan), notes={"examined": float(examined)})


class _Kept:
    """The rows kept so far and their vectors."""

    def __init__(self, task: Task) -> None:
        self.vectors, self.size = task.vectors, task.size
        # cosines of float rows are exact to a few roundings; without this a copy may have 0.9999999 and pass 1.0
        self.limit = task.max_similarity - 8 * np.finfo(task.vectors.dtype).eps
        self.rows: list[int] = []
        self._held = np.empty((min(task.size, len(task.vectors)), task.vectors.shape[1]), task.vectors.dtype)

    @property
    def full(self) -> bool:
        return len(self.rows) >= self.size

    def add(self, row: int, vector: np.ndarray) -> None:
        self._held[len(self.rows)] = vector
        self.rows.append(row)

    def add_from(self, rows: np.ndarray) -> int:
        """Keep what is far enough among `rows`, in their order; gives how many were looked at."""
        block = self.vectors[rows]
        if self.rows:
            far = (block @ self._held[: len(self.rows)].T).max(1) < self.limit
        else:
            far = np.ones(len(rows), dtype=bool)
        for index in range(len(rows)):
            if self.full:
                return index
            if far[index]:
                self.add(int(rows[index]), block[index])
                far[index + 1 :] &= block[index + 1 :] @ block[index] < self.limit
        return len(rows)
