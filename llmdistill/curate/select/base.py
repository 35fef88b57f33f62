"""What a selection method is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

_ROWS = 65_536


@dataclass(frozen=True)
class Task:
    """Choose `size` of N rows.

    Attributes:
        vectors: [N, d] float32 or float64 rows of length 1 (or 0), perhaps memory-mapped; nothing that is not finite.
        scores: [N] the judge's scores, higher is better; any scale.
        size: how many are chosen in all, the `given` among them; where it exceeds N, all are.
        given: rows that are chosen in any case, first.
        quality: 0 to 1, how much the score counts beside diversity where a method weighs the two.
        max_similarity: cosine from which `deita` calls two rows too close.
    """

    vectors: np.ndarray
    scores: np.ndarray
    size: int
    seed: int = 0
    given: tuple[int, ...] = ()
    quality: float = 0.5
    max_similarity: float = 0.9

    @property
    def qualities(self) -> np.ndarray:
        """[N] float64: the scores on a scale from 0, the worst, to 1, the best; 1 where all are equal."""
        scores = np.asarray(self.scores, dtype=np.float64)
        spread = np.ptp(scores) if len(scores) else 0.0
        return (scores - scores.min()) / spread if spread > 0 else np.ones(len(scores))


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        chosen: [chosen] rows in order of rank, the given ones first.
        gains: [chosen] what each added, in the method's own unit when it was chosen; NaN for given rows and where a
            method has no gain.
        clusters: [N] the cluster of every row, where there are clusters; -1 for rows that were not clustered.
        notes: numbers about the work done, e.g. how many gains were evaluated.
    """

    chosen: np.ndarray
    gains: np.ndarray
    clusters: np.ndarray | None = None
    notes: dict[str, float] = field(default_factory=dict)


def by_score(task: Task) -> np.ndarray:
    """[N] all rows, the best score first; ties go to the lower row."""
    return np.argsort(-np.asarray(task.scores, dtype=np.float64), kind="stable")


def filled(task: Task, first: Sequence[int] | np.ndarray, order: np.ndarray) -> np.ndarray:
    """The rows `first`, then those of `order` that are not among them, `size` in all."""
    head = np.asarray(first, dtype=np.int64)
    return np.concatenate([head, order[~np.isin(order, head)]])[: max(task.size, len(head))]


def one_thread() -> Any:
    """Inside the `with`, BLAS and OpenMP use one thread.

    Threads cost more than they bring for small products, and scikit-learn adds up in the order in which they finish.
    """
    return _libraries().limit(limits=1)


@cache
def _libraries() -> ThreadpoolController:
    """The libraries with threads; imported first, because only what is loaded is found."""
    import scipy.linalg  # noqa: F401
    import sklearn.cluster  # noqa: F401

    return ThreadpoolController()


def check(task: Task) -> None:
    """Refuse what no method can choose from.

    Raises:
        ValueError: a shape or type does not fit, a number is not finite, a given row is not there or named twice.
    """
    vectors, scores, given = task.vectors, np.asarray(task.scores), task.given
    if vectors.ndim != 2 or vectors.dtype not in (np.float32, np.float64):
        raise ValueError(f"vectors are [N, d] float32 or float64, not {list(vectors.shape)} {vectors.dtype}")
    if scores.shape != (len(vectors),):
        raise ValueError(f"{len(vectors)} vectors need as many scores, not {list(scores.shape)}")
    if task.size < 0:
        raise ValueError(f"{task.size} rows cannot be chosen")
    if len(set(given)) < len(given) or any(not 0 <= row < len(vectors) for row in given):
        raise ValueError(f"given rows are distinct and between 0 and {len(vectors) - 1}")
    if not np.isfinite(scores).all():
        raise ValueError(f"the score of row {int(np.flatnonzero(~np.isfinite(scores))[0])} is not finite")
    for start in range(0, len(vectors), _ROWS):
        finite = np.isfinite(vectors[start : start + _ROWS]).all(1)
        if not finite.all():
            raise ValueError(f"the vector of row {start + int(np.argmin(finite))} is not finite")
