"""Choosing `size` of N vectors: one method per file, all from a `Task` to a `Choice`.

Rows are in an order of their own (the record ids'), so ties go to the lower row and the order of the input changes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llmdistill.curate.select.base import Choice, Task, check
from llmdistill.curate.select.cluster import cluster
from llmdistill.curate.select.deita import deita
from llmdistill.curate.select.dpp import dpp
from llmdistill.curate.select.facility_location import facility_location
from llmdistill.curate.select.k_center import k_center
from llmdistill.curate.select.simple import random, top_score

__all__ = ["METHODS", "Choice", "Task", "choose"]

METHODS: dict[str, Callable[[Task], Choice]] = {
    "random": random,
    "top_score": top_score,
    "cluster": cluster,
    "deita": deita,
    "dpp": dpp,
    "k_center": k_center,
    "facility_location": facility_location,
}

_MAY_CHOOSE_FEWER = ("deita",)
"""Methods that have to look even where all could be chosen."""


def choose(method: str, task: Task) -> Choice:
    """Choose by the named method.

    Where there is nothing to choose, no method is asked: when the given rows are `size` already, they alone are
    chosen; when `size` is N or more, all rows are, by score.

    Raises:
        ValueError: the task makes no sense (see `base.check`).
        UsageError: it is too big for the method.
    """
    check(task)
    if task.size <= len(task.given):
        return Choice(np.array(task.given, dtype=np.int64), np.full(len(task.given), np.nan))
    if task.size >= len(task.vectors) and method not in _MAY_CHOOSE_FEWER:
        return top_score(task)
    return METHODS[method](task)
