"""Rows of unit length, worked on in place and in blocks: they may lie on disk."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_BLOCK_ROWS = 16_384
_ROUNDING = 1e-6


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a zero row stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)


def to_unit(vectors: np.ndarray) -> np.ndarray:
    """`unit` in place; rows that are not finite stay so."""
    with np.errstate(invalid="ignore", over="ignore"):
        for block in _blocks(vectors):
            block[:] = unit(block.astype(np.float64))
    return vectors


def centre(vectors: np.ndarray) -> np.ndarray:
    """Take the mean of the finite rows from every row of length 1, in place. A row that is the mean becomes zero."""
    total = np.zeros(vectors.shape[1], dtype=np.float64)
    count = 0
    for block in _blocks(vectors):
        finite = block[np.isfinite(block).all(1)]
        total += finite.sum(0, dtype=np.float64)
        count += len(finite)
    mean = (total / max(1, count)).astype(vectors.dtype)
    for block in _blocks(vectors):
        block -= mean
        block[(np.abs(block) < _ROUNDING).all(1)] = 0
    return vectors


def _blocks(vectors: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(vectors), _BLOCK_ROWS):
        yield vectors[start : start + _BLOCK_ROWS]
