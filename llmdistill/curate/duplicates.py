"""Near duplicates by MinHash LSH (Broder 1997) over character shingles, checked by exact Jaccard similarity.

Characters rather than words: spacing and Korean particles do not hide a copy.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NUM_PERM = 128
SHINGLE = 5
_MISSES = 1e-3
"""Share of the pairs at the threshold that the index may miss; more similar pairs are missed far less."""


def normalise(text: str) -> str:
    """Text without what does not change its meaning: case, width, spacing, punctuation.

    Symbols stay (`2+2`, emoji), and so do the marks of arithmetic before a digit (`12/3`, `3.14`, `-5`).
    Hangul becomes its letters, else a particle would weigh as much as a word.
    """
    folded = "".join(unicodedata.normalize("NFKD", text).casefold().split())
    following = [*folded[1:], ""]
    return "".join(mark for mark, after in zip(folded, following, strict=False) if _has_meaning(mark, after))


def _has_meaning(mark: str, after: str) -> bool:
    return unicodedata.category(mark)[0] in "LNMS" or (mark in "*/-.:" and after.isdigit())


def shingles(text: str) -> frozenset[str]:
    """Runs of `SHINGLE` characters of the normalised text."""
    plain = normalise(text)
    return frozenset(plain[start : start + SHINGLE] for start in range(max(1, len(plain) - SHINGLE + 1)))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Size of the intersection over size of the union."""
    return len(first & second) / max(1, len(first | second))


@dataclass(frozen=True)
class Match:
    """The text that another one nearly equals, and their Jaccard similarity."""

    index: int
    similarity: float


def near_duplicates(texts: Sequence[str], threshold: float) -> list[Match | None]:
    """For each text, the earlier kept text that it nearly equals; None when it is to be kept.

    Greedy in the given order, so put the better texts first: of a group of copies the first is kept.

    Args:
        threshold: Jaccard similarity, 0 to 1, from which two texts count as one.
    """
    index = _Index(threshold)
    return [index.match_or_add(position, text) for position, text in enumerate(texts)]


def near_copies_of(originals: Sequence[str], texts: Sequence[str], threshold: float) -> list[Match | None]:
    """For each text, the most similar original at or over the threshold, or None."""
    index = _Index(threshold)
    for position, text in enumerate(originals):
        index.add(position, text)
    return [index.match(text) for text in texts]


def num_bands(threshold: float) -> int:
    """Fewest bands of `NUM_PERM` hashes that find all but `_MISSES` of the pairs at the threshold.

    A pair of similarity s is found with probability 1 - (1 - s^rows)^bands.
    """
    bands = 1
    while bands < NUM_PERM and (1 - threshold ** (NUM_PERM // bands)) ** bands > _MISSES:
        bands *= 2
    return bands


class _Index:
    """Texts that are kept, found again by what resembles them."""

    def __init__(self, threshold: float) -> None:
        from rensa import RMinHashLSH

        self.threshold = threshold
        self._lsh = RMinHashLSH(threshold=threshold, num_perm=NUM_PERM, num_bands=num_bands(threshold))
        self._sets: dict[int, frozenset[str]] = {}

    def add(self, position: int, text: str) -> None:
        """Keep a text under its position."""
        tokens = shingles(text)
        self._sets[position] = tokens
        self._lsh.insert(position, _minhash(tokens))

    def match(self, text: str) -> Match | None:
        """The most similar text, the earlier one of equals."""
        tokens = shingles(text)
        candidates = self._lsh.query(_minhash(tokens))
        similar = [(jaccard(tokens, self._sets[candidate]), -candidate) for candidate in candidates]
        similarity, position = max(similar, default=(-1.0, 0))
        return Match(-position, similarity) if similarity >= self.threshold else None

    def match_or_add(self, position: int, text: str) -> Match | None:
        """The text it nearly equals; where there is none, keep it."""
        match = self.match(text)
        if match is None:
            self.add(position, text)
        return match


def _minhash(tokens: frozenset[str]) -> Any:
    from rensa import RMinHash

    minhash = RMinHash(num_perm=NUM_PERM, seed=0)
    minhash.update(sorted(tokens))
    return minhash
