"""The methods that need no distances: chance, and the judge's score."""

from __future__ import annotations

import numpy as np

from llmdistill.curate.select.base import Choice, Task, by_score, filled


def random(task: Task) -> Choice:
    """A uniform sample without replacement: the baseline every method has to beat."""
    return _in_order(np.random.default_rng(task.seed).permutation(len(task.vectors)), task)


def top_score(task: Task) -> Choice:
    """The rows the judge likes best; ties go to the lower row."""
    return _in_order(by_score(task), task)


def _in_order(order: np.ndarray, task: Task) -> Choice:
    chosen = filled(task, task.given, order)
    return Choice(chosen, np.full(len(chosen), np.nan))
