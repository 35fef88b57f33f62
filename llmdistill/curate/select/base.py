"""What a selection method is given, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Task:
    """Choose `size` of N rows.

    Attributes:
        vectors: [N, d] float32 or float64 rows of length 1 (or 0), perhaps memory-mapped; nothing that is not finite.
        scores: [N] the judge's scores, higher is better; any scale.
        size: how many are chosen in all, the `given` among them; where it exceeds N, all are.
        given: rows that are chosen in any case, first.
        quality: 0 to 1, how much the score counts beside diversity where a method weighs the two.
        max_similarity: cosine from which `deita` calls two rows too close.
    """

    vectors: np.ndarray
    scores: np.ndarray
    size: int
    seed: int = 0
    given: tuple[int, ...] = ()
    quality: float = 0.5
    max_similarity: float = 0.9

    @property
    def qualities(self) -> np.ndarray:
        """[N] float64: the scores on a scale from 0, the worst, to 1, the best; 1 where all are equal."""
        scores = np.asarray(self.scores, dtype=np.float64)
        spread = np.ptp(scores) if len(scores) else 0.0
        return (scores - scores.min()) / spread if spread > 0 else np.ones(len(scores))


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        chosen: [chosen] rows in order of rank, the given ones first.
        gains: [chosen] what each added, in the method's own unit when it was chosen; NaN for given rows and where a
            method has no gain.
        clusters: [N] the cluster of every row, where there are clusters.
        notes: numbers about the work done, e.g. how many gains were evaluated.
    """

    chosen: np.ndarray
    gains: np.ndarray
    clusters: np.ndarray | None = None
    notes: dict[str, float] = field(default_factory=dict)
