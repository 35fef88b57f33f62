"""Choosing `size` of N vectors: one method per file, all from a `Task` to a `Choice`.

Rows are in an order of their own (the record ids'), so ties go to the lower row and the order of the input changes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from llmdistill.curate.select.base import Choice, Task
from llmdistill.curate.select.cluster import cluster
from llmdistill.curate.select.simple import random, top_score

__all__ = ["METHODS", "Choice", "Task", "choose"]

METHODS: dict[str, Callable[[Task], Choice]] = {
    "random": random,
    "top_score": top_score,
    "cluster": cluster,
}


def choose(method: str, task: Task) -> Choice:
    """Choose by the named method."""
    return METHODS[method](task)
