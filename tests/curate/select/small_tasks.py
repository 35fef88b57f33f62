"""Small tasks on which every method can be checked by its definition."""

from __future__ import annotations

import numpy as np

from llmdistill.curate.select import Task


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; zero rows stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def instance(seed: int, rows: int = 14, width: int = 4) -> Task:
    """A few unit vectors, some of them equal or zero, with few distinct scores, and sometimes given rows."""
    rng = np.random.default_rng(seed)
    num = int(rng.integers(2, rows + 1))
    vectors = rng.normal(size=(num, width))
    if seed % 2:
        vectors[rng.integers(0, num, size=num // 3)] = vectors[0]
    if seed % 5 == 0:
        vectors[rng.integers(0, num)] = 0
    given = tuple(rng.permutation(num)[: rng.integers(0, 3)].tolist()) if seed % 3 == 0 else ()
    return Task(
        vectors=unit(vectors),
        scores=rng.integers(1, 4, size=num).astype(float),
        size=int(rng.integers(1, num + 1)),
        seed=seed,
        given=given,
        quality=float(rng.choice([0.0, 0.3, 0.5, 0.9])),
        max_similarity=float(rng.choice([0.3, 0.7, 0.9, 1.0])),
    )


INSTANCES = [instance(seed) for seed in range(200)]


def spread_out(num: int, width: int = 16, seed: int = 0) -> Task:
    """Rows in all directions, without ties in scores or vectors."""
    rng = np.random.default_rng(seed)
    return Task(unit(rng.normal(size=(num, width))), rng.permutation(num) / num, size=num // 4)
