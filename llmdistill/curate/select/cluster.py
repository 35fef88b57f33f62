"""LIMA's recipe of diversity and quality: k-means, and the best of each cluster (after arXiv 2305.11206)."""

from __future__ import annotations

import warnings

import numpy as np

from llmdistill.curate.blocks import Workers
from llmdistill.curate.select.base import Choice, Task, by_score, filled, one_thread

# Enough rows for good centres; more (a pool on disk) would have to be held in memory and take long.
_MOST_ROWS = 65_536
_ROWS_PER_CLUSTER = 32
_START_ROWS_PER_CLUSTER = 10
_FEW_CLUSTERS = 100
_MAX_ITERATIONS = 20
_BLOCK = 1024


def cluster(task: Task) -> Choice:
    """k-means with `size` clusters, the best-judged row of each, the clusters with the best rows first.

    Ties go to the row nearest its centre, then to the lower row. A cluster that holds a given row is served by it.
    Clusters that stay empty (identical vectors) are made up for by the best rows not chosen yet.
    """
    if not task.size or not len(task.vectors):
        return Choice(np.zeros(0, dtype=np.int64), np.zeros(0))
    sample = sample_rows(task)
    centres = fit(sample, start(sample, distinct(sample, task.size), task.seed))
    labels, distances = assign(task.vectors, centres)
    order = np.lexsort((distances, -np.asarray(task.scores, dtype=np.float64)))
    order = order[~np.isin(labels[order], labels[list(task.given)])]
    _, first = np.unique(labels[order], return_index=True)
    heads = filled(task, task.given, order[np.sort(first)])
    chosen = filled(task, heads, by_score(task))
    notes = {"clusters": float(len(np.unique(labels))), "sample": float(len(sample))}
    return Choice(chosen, np.full(len(chosen), np.nan), labels, notes)


def sample_rows(task: Task) -> np.ndarray:
    """A copy of the rows that k-means is fitted on: all, or a seeded sample of a large pool.

    They are ordered by score and first values, so that the order of the pool does not change where k-means starts.
    """
    vectors = task.vectors
    firsts = [vectors[:, column] for column in range(min(3, vectors.shape[1]))]
    order = np.lexsort([*firsts, -np.asarray(task.scores, dtype=np.float64)])
    most = max(_MOST_ROWS, _ROWS_PER_CLUSTER * task.size)
    if len(order) > most:
        order = order[np.sort(np.random.default_rng(task.seed).choice(len(order), most, replace=False))]
    return np.ascontiguousarray(vectors[order])


def distinct(rows: np.ndarray, most: int) -> int:
    """How many different rows there are; counts no further than `most`."""
    seen: set[bytes] = set()
    for row in rows:
        seen.add((row + 0.0).tobytes())  # -0.0 becomes 0.0
        if len(seen) == most:
            break
    return len(seen)


def start(rows: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """[num_clusters, d] rows that k-means++ (Arthur and Vassilvitskii 2007) starts from.

    For many clusters it looks at a sample and draws each centre once, which takes a hundredth of the time.
    """
    from sklearn.cluster import kmeans_plusplus

    trials = None if num_clusters <= _FEW_CLUSTERS else 1
    most = max(_MOST_ROWS // 4, _START_ROWS_PER_CLUSTER * num_clusters)
    if len(rows) > most:
        rows = rows[np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False))]
    with one_thread():
        centres, _ = kmeans_plusplus(rows, num_clusters, random_state=seed, n_local_trials=trials)
    return np.asarray(centres)


def fit(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """[num_clusters, d] centres after Lloyd's iterations; `rows` may be changed by rounding."""
    from sklearn.cluster import KMeans

    model = KMeans(len(centres), init=centres, n_init=1, max_iter=_MAX_ITERATIONS, tol=1e-4, copy_x=False)
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rows that differ by rounding only: fewer clusters than asked for
        return np.asarray(model.fit(rows).cluster_centers_)


def assign(vectors: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([N] the nearest centre of every row, [N] the distance to it)."""
    centres = centres.astype(vectors.dtype)
    halves = np.square(centres).sum(1) / 2
    labels = np.zeros(len(vectors), dtype=np.int64)
    distances = np.zeros(len(vectors))

    def work(begin: int) -> None:
        rows = vectors[begin : begin + _BLOCK]
        nearest = (rows @ centres.T - halves).argmax(1)
        labels[begin : begin + _BLOCK] = nearest
        distances[begin : begin + _BLOCK] = np.linalg.norm(rows - centres[nearest], axis=1)

    with Workers() as workers:
        workers.map(work, range(0, len(vectors), _BLOCK))
    return labels, distances
