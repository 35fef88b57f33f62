"""The methods that need no distances: chance, and the judge's score."""

from __future__ import annotations

import numpy as np

from llmdistill.curate.select.base import Choice, Task


def random(task: Task) -> Choice:
    """A uniform sample without replacement: the baseline every method has to beat."""
    return _in_order(np.random.default_rng(task.seed).permutation(len(task.vectors)), task)


def top_score(task: Task) -> Choice:
    """The rows the judge likes best; ties go to the earlier row."""
    return _in_order(np.argsort(-np.asarray(task.scores), kind="stable"), task)


def _in_order(order: np.ndarray, task: Task) -> Choice:
    given = np.array(task.given, dtype=np.int64)
    rest = order[~np.isin(order, given)]
    chosen = np.concatenate([given, rest])[: max(task.size, len(given))]
    return Choice(chosen, np.full(len(chosen), np.nan))
