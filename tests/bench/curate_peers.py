"""The work of curation done by other packages, each in its own best way, and the clock that measures all alike.

Imports nothing of this project, so it also runs in an environment of its own (`tests/bench-peers.txt`):

    python -m tests.bench.curate_peers PEER INPUT OUTPUT

INPUT is an .npz of a `Job`; OUTPUT becomes an .npz of the arrays that the peer gives; seconds and memory are printed.
What is measured begins with the vectors (texts) in memory and ends with the choice: building similarities or an index
is part of it, imports and a run on a few rows before it are not.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

NUM_NEIGHBOURS = 100
"""Similarities that a sparse facility location keeps for each row."""

_WARM_ROWS, _WARM_SIZE = 500, 5

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """What every peer is given.

    Attributes:
        vectors: [N, d] float32 rows of length 1.
        scores: [N] float64, higher is better.
        texts: [N] documents.
        size: how many are chosen.
        threshold: cosine or Jaccard similarity from which two are copies; for `dpp` b of its kernel,
            exp((cosine - 1) / b).
    """

    vectors: np.ndarray
    scores: np.ndarray
    texts: np.ndarray
    size: int
    threshold: float

    def first(self, rows: int, size: int) -> Job:
        """The same work on the first rows."""
        return replace(
            self,
            vectors=self.vectors[:rows],
            scores=self.scores[:rows],
            texts=self.texts[:rows],
            size=min(size, self.size),
        )


Peer = Callable[[Job], Arrays]


def save_job(path: Path, job: Job) -> None:
    np.savez(path, vectors=job.vectors, scores=job.scores, texts=job.texts, numbers=[job.size, job.threshold])


def load_job(path: Path) -> Job:
    with np.load(path) as found:
        size, threshold = found["numbers"]
        return Job(found["vectors"], found["scores"], found["texts"], int(size), float(threshold))


def measured(run: Peer, job: Job) -> tuple[Arrays, dict[str, float]]:
    """What the run gives, with its seconds, those of all its threads, and the peak memory of this process in MB."""
    run(job.first(_WARM_ROWS, _WARM_SIZE))
    started, busy = time.perf_counter(), time.process_time()
    arrays = run(job)
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    return arrays, {"seconds": seconds, "cpu_seconds": busy, "peak_mb": peak_mb()}


def peak_mb() -> float:
    """Largest resident memory of this process so far; not its parent's, which getrusage would inherit."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def _similarities(vectors: np.ndarray) -> np.ndarray:
    """[N, N] (1 + cosine) / 2 by one matrix product: faster than any peer's own way to them."""
    products = vectors @ vectors.T
    products += 1
    products /= 2
    return np.clip(products, 0, 1, out=products)


def _neighbour_similarities(vectors: np.ndarray) -> Any:
    """The same for the nearest rows only, as a sparse matrix."""
    from scipy.sparse import csr_matrix
    from sklearn.neighbors import NearestNeighbors

    num, kept = len(vectors), min(NUM_NEIGHBOURS, len(vectors))
    index = NearestNeighbors(n_neighbors=kept, algorithm="brute").fit(vectors)
    distances, columns = index.kneighbors(vectors)
    values = np.clip(1 - distances.astype(np.float64) ** 2 / 4, 0, 1)
    starts = np.arange(0, num * kept + 1, kept, dtype=np.int32)
    return csr_matrix((values.ravel(), columns.ravel().astype(np.int32), starts), shape=(num, num))


@cache
def _keep_compiled() -> None:
    """Apricot compiles in every `fit`, for seconds: let the run before the clock do it once, in the peer's favour."""
    from apricot.functions import facilityLocation

    for name in ("calculate_gains", "calculate_gains_sparse", "calculate_gains_sieve"):
        setattr(facilityLocation, name, cache(getattr(facilityLocation, name)))


def _apricot(similarities: Any, job: Job, optimizer: str) -> Arrays:
    from apricot import FacilityLocationSelection

    _keep_compiled()
    selector = FacilityLocationSelection(job.size, metric="precomputed", optimizer=optimizer)
    return {"chosen": selector.fit(similarities).ranking}


def apricot_lazy(job: Job) -> Arrays:
    return _apricot(_similarities(job.vectors).astype(np.float64), job, "lazy")


def apricot_two_stage(job: Job) -> Arrays:
    return _apricot(_similarities(job.vectors).astype(np.float64), job, "two-stage")


def apricot_neighbours(job: Job) -> Arrays:
    return _apricot(_neighbour_similarities(job.vectors), job, "lazy")


def _submodlib(job: Job, **arguments: Any) -> Arrays:
    from submodlib import FacilityLocationFunction

    function = FacilityLocationFunction(n=len(job.vectors), **arguments)
    found = function.maximize(budget=job.size, optimizer="LazyGreedy", show_progress=False)
    return {"chosen": np.array([row for row, _ in found])}


def submodlib_dense(job: Job) -> Arrays:
    return _submodlib(job, mode="dense", sijs=_similarities(job.vectors), separate_rep=False)


def submodlib_neighbours(job: Job) -> Arrays:
    similarities = _neighbour_similarities(job.vectors)
    return _submodlib(job, mode="sparse", sijs=similarities, num_neighbors=NUM_NEIGHBOURS)


def sklearn_k_center(job: Job) -> Arrays:
    """Greedy k-center as in the published code of active learning: one column of distances for each centre.

    Sener and Savarese, arXiv 1708.00489, algorithm 1, begun with the row of the highest score, as ours is.
    """
    from sklearn.metrics import pairwise_distances

    chosen = [int(job.scores.argmax())]
    nearest = pairwise_distances(job.vectors, job.vectors[chosen])[:, 0]
    while len(chosen) < job.size:
        row = int(nearest.argmax())
        chosen.append(row)
        np.minimum(nearest, pairwise_distances(job.vectors, job.vectors[row : row + 1])[:, 0], out=nearest)
    return {"chosen": np.array(chosen)}


def _closest_to_centres(fitted: Any, job: Job) -> Arrays:
    from sklearn.metrics import pairwise_distances_argmin

    chosen = pairwise_distances_argmin(fitted.cluster_centers_, job.vectors)
    return {"chosen": chosen, "labels": fitted.labels_}


def sklearn_kmeans(job: Job) -> Arrays:
    from sklearn.cluster import KMeans

    return _closest_to_centres(KMeans(job.size, random_state=0).fit(job.vectors), job)


def sklearn_minibatch(job: Job) -> Arrays:
    from sklearn.cluster import MiniBatchKMeans

    return _closest_to_centres(MiniBatchKMeans(job.size, random_state=0).fit(job.vectors), job)


def pyversity_dpp(job: Job) -> Arrays:
    """Knows the linear kernel only, which cannot tell sets of more than d rows apart."""
    from pyversity import Strategy, diversify

    found = diversify(job.vectors, np.ones(len(job.vectors)), job.size, Strategy.DPP, diversity=1.0)
    return {"chosen": found.indices.astype(np.int64)}


def numpy_dpp(job: Job) -> Arrays:
    """Fast greedy MAP inference as published (arXiv 1709.05135, algorithm 1); rows of the kernel only when needed."""
    vectors, found = job.vectors.astype(np.float64), np.zeros((job.size, len(job.vectors)))
    left, chosen = np.ones(len(vectors)), [0]
    while len(chosen) < job.size:
        last, step = chosen[-1], len(chosen) - 1
        kernel = np.exp((vectors @ vectors[last] - 1) / job.threshold)
        found[step] = (kernel - found[:step, last] @ found[:step]) / np.sqrt(left[last])
        left -= found[step] ** 2
        left[last] = -np.inf
        chosen.append(int(left.argmax()))
    return {"chosen": np.array(chosen)}


def submodlib_log_determinant(job: Job) -> Arrays:
    from submodlib import LogDeterminantFunction

    kernel = job.vectors @ job.vectors.T
    kernel -= 1
    kernel /= job.threshold
    np.exp(kernel, out=kernel)
    function = LogDeterminantFunction(n=len(kernel), mode="dense", lambdaVal=0, sijs=kernel)
    found = function.maximize(budget=job.size, optimizer="LazyGreedy", show_progress=False)
    return {"chosen": np.array([row for row, _ in found])}


def numpy_deita(job: Job) -> Arrays:
    """The rule of arXiv 2312.15685, row by row: keep in the order of scores what is not close to anything kept."""
    kept: list[int] = []
    vectors = np.empty((job.size, job.vectors.shape[1]), job.vectors.dtype)
    for row in np.argsort(-job.scores, kind="stable"):
        if len(kept) == job.size:
            break
        if not kept or (vectors[: len(kept)] @ job.vectors[row]).max() < job.threshold:
            vectors[len(kept)] = job.vectors[row]
            kept.append(int(row))
    return {"chosen": np.array(kept)}


def _semhash(job: Job, backend: str) -> Arrays:
    from semhash import SemHash

    names = [str(row) for row in range(len(job.vectors))]
    model: Any = None  # asked only for texts that have no vector
    index = SemHash.from_embeddings(job.vectors, names, model=model, ann_backend=backend)
    original = np.full(len(names), -1)
    for copy in index.self_deduplicate(job.threshold).filtered:
        original[int(str(copy.record))] = int(str(copy.duplicate_of))
    return {"original": original}


def semhash_usearch(job: Job) -> Arrays:
    return _semhash(job, "usearch")


def semhash_basic(job: Job) -> Arrays:
    return _semhash(job, "basic")


def shingles(text: str) -> set[str]:
    """Runs of five characters without case and spaces."""
    plain = "".join(text.lower().split())
    return {plain[start : start + 5] for start in range(max(1, len(plain) - 4))}


def datasketch_lsh(job: Job) -> Arrays:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=job.threshold, num_perm=128)

    def first_alike(row: int, text: str) -> int:
        minhash = MinHash(num_perm=128)
        minhash.update_batch([part.encode() for part in shingles(text)])
        found = index.query(minhash)
        if not found:
            index.insert(row, minhash)
        return min(found, default=-1)

    return _originals(job, first_alike)


def rensa_lsh(job: Job) -> Arrays:
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(threshold=job.threshold, num_perm=128, num_bands=16)

    def first_alike(row: int, text: str) -> int:
        minhash = RMinHash(num_perm=128, seed=42)
        minhash.update(list(shingles(text)))
        found = index.query(minhash)
        if not found:
            index.insert(row, minhash)
        return min(found, default=-1)

    return _originals(job, first_alike)


def _originals(job: Job, first_alike: Callable[[int, str], int]) -> Arrays:
    texts: Iterable[str] = job.texts.tolist()
    return {"original": np.array([first_alike(row, text) for row, text in enumerate(texts)])}


PEERS: dict[str, Peer] = {
    "apricot lazy": apricot_lazy,
    "apricot two-stage": apricot_two_stage,
    "apricot neighbours": apricot_neighbours,
    "submodlib dense": submodlib_dense,
    "submodlib neighbours": submodlib_neighbours,
    "scikit-learn k-center": sklearn_k_center,
    "scikit-learn KMeans": sklearn_kmeans,
    "scikit-learn MiniBatchKMeans": sklearn_minibatch,
    "pyversity DPP": pyversity_dpp,
    "numpy DPP": numpy_dpp,
    "submodlib log determinant": submodlib_log_determinant,
    "numpy DEITA": numpy_deita,
    "semhash usearch": semhash_usearch,
    "semhash basic": semhash_basic,
    "datasketch": datasketch_lsh,
    "rensa": rensa_lsh,
}


def main() -> None:
    name, source, target = sys.argv[1:]
    arrays, figures = measured(PEERS[name], load_job(Path(source)))
    np.savez(target, **arrays)  # type: ignore[arg-type]
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
