"""Choosing `size` of N vectors. Each method gives the chosen rows, best first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Choice:
    """Rows chosen, in order of rank, and the cluster of every row where there are clusters."""

    chosen: list[int]
    clusters: list[int] | None = None


def random(vectors: np.ndarray, scores: np.ndarray, size: int, seed: int) -> Choice:
    """A uniform sample without replacement: the baseline every method has to beat."""
    order = np.random.default_rng(seed).permutation(len(vectors))
    return Choice(order[:size].tolist())


def top_score(vectors: np.ndarray, scores: np.ndarray, size: int, seed: int) -> Choice:
    """The rows the judge likes best; ties go to the earlier row."""
    return Choice(np.argsort(-scores, kind="stable")[:size].tolist())


def cluster(vectors: np.ndarray, scores: np.ndarray, size: int, seed: int) -> Choice:
    """k-means with `size` clusters, the best-judged row of each (LIMA's recipe of diversity and quality).

    Ties go to the row nearest its centre, then to the earlier row. Empty clusters (identical
    vectors) are made up for by the best rows not chosen yet.
    """
    from sklearn.cluster import KMeans

    if size >= len(vectors):
        return Choice(top_score(vectors, scores, size, seed).chosen, list(range(len(vectors))))
    distinct = len(np.unique(vectors, axis=0))
    fitted = KMeans(min(size, distinct), n_init=3, random_state=seed).fit(vectors)
    distances = np.linalg.norm(vectors - fitted.cluster_centers_[fitted.labels_], axis=1)
    order = np.lexsort((np.arange(len(vectors)), distances, -scores))
    _, first = np.unique(fitted.labels_[order], return_index=True)
    chosen = order[np.sort(first)].tolist()
    rest = [row for row in order.tolist() if row not in set(chosen)]
    return Choice(chosen + rest[: size - len(chosen)], fitted.labels_.tolist())


METHODS = {"random": random, "top_score": top_score, "cluster": cluster}
