"""Matrix products of many rows with few, piece by piece: no [N, M] matrix is ever held."""

from __future__ import annotations

import numpy as np

_ROWS = 4096


def nearest(vectors: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row of `vectors` [N, d] the largest dot product with a row of `others` [M, d], and which row that is.

    Returns:
        (similarity [N] in the dtype of `vectors`, index [N] int64, the lowest of equals). Without others the
        similarity is -inf and the index -1.
    """
    similarity = np.full(len(vectors), -np.inf, dtype=vectors.dtype)
    index = np.full(len(vectors), -1, dtype=np.int64)
    if len(others):
        for start in range(0, len(vectors), _ROWS):
            products = vectors[start : start + _ROWS] @ others.T
            index[start : start + _ROWS] = products.argmax(1)
            similarity[start : start + _ROWS] = products.max(1)
    return similarity, index
