"""Small selection tasks with everything in them that makes selection hard: copies, ties, zero rows, given rows."""

from __future__ import annotations

import numpy as np

from llmdistill.curate.select.base import Task


def instance(seed: int, dtype: type[np.floating] = np.float64, most: int = 30) -> Task:
    """A task of at most `most` rows; every third one has entries 0 and 1/2 only, of which all products are exact."""
    rng = np.random.default_rng(seed)
    num, dims = int(rng.integers(1, most + 1)), int(rng.integers(4, 12))
    if seed % 3 == 0:
        vectors = np.zeros((num, dims))
        for row in vectors:
            row[rng.choice(dims, 4, replace=False)] = rng.choice([-0.5, 0.5], 4)
    else:
        vectors = rng.standard_normal((num, dims))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if seed % 4 == 1:
        vectors = vectors[rng.integers(0, num, num)]
    if seed % 5 == 2:
        vectors[rng.integers(0, num, 2)] = 0
    scores = rng.integers(1, 5, num) if seed % 2 else rng.random(num)
    given = rng.choice(num, int(rng.integers(0, min(num, 3) + 1)), replace=False) if seed % 6 == 0 else []
    size = int(rng.integers(max(1, len(given)), num + 3))
    quality = float(rng.choice([0, 0.3, 0.5, 1]))
    return Task(vectors.astype(dtype), scores, size, given=tuple(int(row) for row in given), quality=quality)
