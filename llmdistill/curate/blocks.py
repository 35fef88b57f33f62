"""Matrix products of many rows with few, block by block on all cores: no [N, M] matrix is ever held.

Every block is multiplied by a BLAS of one thread and what is wanted of it is taken while it is in the cache; the
blocks go to as many threads as BLAS would have used. Block borders do not depend on the number of threads, so
neither do the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import TracebackType
from typing import TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

ROWS = 1024
OTHERS = 512
CHOSEN = -1.0  # the bound of a row that is chosen: less than any value

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


class Workers:
    """As many threads as BLAS may use at the moment; inside the `with`, BLAS itself uses one."""

    def __enter__(self) -> Workers:
        self.count = max((info["num_threads"] for info in _controller().info()), default=1)
        self._limits = _controller().limit(limits=1)
        self._pool = ThreadPoolExecutor(self.count)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._limits.restore_original_limits()

    def map(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
        """The results of `function`, in the order of the items."""
        if self.count == 1:
            return [function(item) for item in items]
        return list(self._pool.map(function, items))


def nearest(vectors: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row of `vectors` [N, d] the largest dot product with a row of `others` [M, d], and which row that is.

    Returns:
        (similarity [N] in the dtype of `vectors`, index [N] int64, the lowest of equals). Without others the
        similarity is -inf and the index -1.
    """
    similarity = np.full(len(vectors), -np.inf, dtype=vectors.dtype)
    index = np.full(len(vectors), -1, dtype=np.int64)

    def work(start: int) -> None:
        rows = slice(start, start + ROWS)
        similarity[rows], index[rows] = _nearest(vectors[rows], others)

    if len(others):
        with Workers() as workers:
            workers.map(work, range(0, len(vectors), ROWS))
    return similarity, index


def _nearest(block: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    each = np.arange(len(block))
    similarity = np.full(len(block), -np.inf, dtype=block.dtype)
    index = np.full(len(block), -1, dtype=np.int64)
    for start in range(0, len(others), OTHERS):
        products = block @ others[start : start + OTHERS].T
        best = products.argmax(1)
        largest = products[each, best]
        better = largest > similarity
        similarity[better] = largest[better]
        index[better] = best[better] + start
    return similarity, index


def gather(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The rows of `vectors`: a view where they follow on one another (`rows` ascending), else a copy."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and np.all(rows[1:] > rows[:-1]):
        return np.asarray(vectors[rows[0] : rows[-1] + 1])
    return np.asarray(vectors).take(rows, axis=0)


def total(vectors: np.ndarray) -> np.ndarray:
    """[d] float64: the sum of the rows."""
    sums = (vectors[start : start + ROWS].sum(0, dtype=np.float64) for start in range(0, len(vectors), ROWS))
    return sum(sums, np.zeros(vectors.shape[1]))


def dot(vectors: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[N] float64: dot products of the rows with one float64 vector."""
    return np.concatenate([np.zeros(0), *(vectors[i : i + ROWS] @ other for i in range(0, len(vectors), ROWS))])


def largest(block: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each row of `block` the largest dot product with a row of `others`, of which there is at least one."""
    best: np.ndarray = (others[:OTHERS] @ block.T).max(0)
    for start in range(OTHERS, len(others), OTHERS):
        np.maximum(best, (others[start : start + OTHERS] @ block.T).max(0), out=best)
    return best


def split(rows: np.ndarray, length: int = ROWS) -> Iterator[np.ndarray]:
    """Pieces of `length` rows."""
    return (rows[start : start + length] for start in range(0, len(rows), length))


def top(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest, ascending; of equals at the border the lower indices."""
    if count >= len(values):
        return np.arange(len(values))
    border = np.partition(values, len(values) - count)[len(values) - count]
    inside = values > border
    level = np.flatnonzero(values == border)[: count - np.count_nonzero(inside)]
    inside[level] = True
    return np.flatnonzero(inside)


def outside(values: np.ndarray, rows: np.ndarray) -> tuple[float, int]:
    """The largest value that is not in `rows` and the lowest row that has it; (-1, N) without one."""
    if len(rows) == len(values):
        return CHOSEN, len(values)
    others = values.copy()
    others[rows] = CHOSEN
    first = int(others.argmax())
    return float(others[first]), first
