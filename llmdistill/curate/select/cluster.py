"""LIMA's recipe of diversity and quality: k-means, and the best of each cluster (after arXiv 2305.11206)."""

from __future__ import annotations

import numpy as np

from llmdistill.curate.select.base import Choice, Task
from llmdistill.curate.select.simple import top_score


def cluster(task: Task) -> Choice:
    """k-means with `size` clusters, the best-judged row of each.

    Ties go to the row nearest its centre, then to the earlier row. Empty clusters (identical
    vectors) are made up for by the best rows not chosen yet.
    """
    from sklearn.cluster import KMeans

    num = len(task.vectors)
    if task.size >= num:
        best = top_score(task)
        return Choice(best.chosen, best.gains, np.arange(num))
    distinct = len(np.unique(task.vectors, axis=0))
    fitted = KMeans(min(task.size, distinct), n_init=3, random_state=task.seed).fit(task.vectors)
    distances = np.linalg.norm(task.vectors - fitted.cluster_centers_[fitted.labels_], axis=1)
    order = np.lexsort((np.arange(num), distances, -np.asarray(task.scores)))
    _, first = np.unique(fitted.labels_[order], return_index=True)
    heads = order[np.sort(first)]
    rest = order[~np.isin(order, heads)]
    chosen = np.concatenate([heads, rest])[: task.size]
    return Choice(chosen, np.full(len(chosen), np.nan), fitted.labels_.astype(np.int64))
