"""Near duplicates: the same question with typos, other spacing, another order of words, or other Korean particles.

Candidates come from MinHash LSH (Broder 1997) over two views of a text (`shingles`), and every candidate is compared
exactly. Two texts are copies when the more similar view reaches the threshold (Jaccard) and the texts ask the same:
with other numbers, another negation, or a word in the place of another word, a text is another exercise, however
much of a template or a passage the two have in common.
"""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import regex
from rapidfuzz.distance import OSA
from rapidfuzz.process import cdist

from llmdistill.curate.shingles import NUM_PERM, fold, signatures, views, words
from llmdistill.run.progress import progress

_MISSES = 2e-3
"""Share of the pairs at the threshold that the index may miss; more similar pairs are missed far less."""

_LARGE, _LENIENCE = 50_000, 0.1
"""Pools of more texts than this take the share of misses at so much over the threshold: chance collisions grow with
the square of the number of texts, and slips leave most copies well over it."""

_DEVIATIONS = 3.0
"""A candidate whose estimated similarity is this many standard deviations under the threshold is not compared."""

CHANGED = 0.49
"""Edits for each letter of the words that differ, up to which these are spellings of one another.

Under a half: two Korean words of two syllables often share that many letters.
"""

_COMPARED = 20_000
"""Letters of the differing words that are aligned; bounds the time for texts of megabytes."""

UNEXPLAINED = 0.15
"""Share of the differing letters that may be in words without a like: slips in very short words of a long text."""

_MOST_PAIRS = 160_000
"""Pairs of differing words that are compared one by one."""

_FAR = 1_000_000
"""Edits between words that are no spellings of each other."""

_COMPARED_TEXTS = 8
"""Candidates that a text is compared with, those of the highest estimates: thousands of texts may share a template,
and a copy is nearer to its original than to them."""

_CROWD = 2_000
"""Candidates of a text from which it is faster to look through all texts in order."""


@dataclass(frozen=True)
class Match:
    """The text that another one nearly equals, and their Jaccard similarity, the value that was compared."""

    index: int
    similarity: float


def near_duplicates(texts: Sequence[str], threshold: float, known: np.ndarray | None = None) -> list[Match | None]:
    """For each text, the most similar earlier text that it nearly equals and that is kept; None when it is to be kept.

    Greedy in the given order, so put the better texts first: of a group of copies the first is kept, and the others
    name a kept one. Of equally similar ones the earlier is named.

    Args:
        threshold: Jaccard similarity, 0 to 1, from which two texts of the same exercise count as one.
        known: `signatures(texts)` [N, 2 * NUM_PERM], if they are at hand; they serve every threshold.
    """
    index = _Index(signatures(texts) if known is None else known, threshold)
    matches: list[Match | None] = []
    with progress("near duplicates", len(texts)) as bar:
        for row, text in enumerate(texts):
            matches.append(_best(text, texts, index.candidates(row), threshold))
            if matches[row] is None:
                index.add(row)
            bar.advance()
    return matches


def near_copies_of(
    originals: Sequence[str], texts: Sequence[str], threshold: float, known: np.ndarray | None = None
) -> list[Match | None]:
    """For each text, the most similar original that it nearly equals, or None.

    Args:
        known: `signatures` of the originals and then of the texts, if they are at hand.
    """
    both = [*originals, *texts]
    index = _Index(signatures(both) if known is None else known, threshold)
    for row in range(len(originals)):
        index.add(row)
    return [_best(both[row], both, index.candidates(row), threshold) for row in range(len(originals), len(both))]


def similarity(first: str, second: str) -> float:
    """Jaccard similarity of two texts, 0 to 1; 0 where they are different exercises."""
    return _similarity(first, second, 0.0)


def _best(text: str, texts: Sequence[str], candidates: Sequence[int], threshold: float) -> Match | None:
    """The most similar candidate, the earlier one of equals; candidates ascend."""
    best = None
    for candidate in candidates:
        found = _similarity(text, texts[candidate], max(threshold, best.similarity if best else 0.0))
        if found >= threshold and (best is None or found > best.similarity):
            best = Match(candidate, found)
    return best


# What two texts say


class _Stems:
    """Words in their order, each with the number of times that it stood before."""

    def __init__(self, words_: Sequence[str]) -> None:
        times: Counter[str] = Counter()
        self.counted: list[tuple[str, int]] = []
        for word in words_:
            self.counted.append((word, times[word]))
            times[word] += 1
        self.known = frozenset(self.counted)
        self.joined = "".join(words_)


@dataclass(frozen=True)
class _Signs:
    """What is quickly compared, and small enough to be held for many texts."""

    numbers: tuple[str, ...]
    operators: tuple[str, ...]
    korean_negations: int


@dataclass(frozen=True)
class _Places:
    """The words beside each number of a text, and its tokens without the numbers."""

    beside: tuple[frozenset[tuple[str, str]], ...]
    unnumbered: tuple[str, ...]


_PARTICLES = "에게서 에서 에게 으로 은 는 이 가 을 를 의 에 로 와 과 도 만".split()
_NUMBER = regex.compile(r"\p{Nd}+(?:[.,:/]\p{Nd}+)*")
_TOKEN = regex.compile(rf"{_NUMBER.pattern}|[\p{{L}}\p{{M}}]+|[^\s\p{{P}}]")
_OPERATOR = regex.compile(r"\p{Sm}|(?<!\p{L})[*/\-](?=\s*\p{Nd})")
_NOT = regex.compile(
    "not?|never|none|nor|neither|nothing|nobody|without|cannot|(?:are|ca|could|did|do|does|had|has|have|is|must|should"
    "|was|were|wo|would)nt"
)
_NOT_KOREAN = regex.compile("|".join(unicodedata.normalize("NFD", mark) for mark in ("않", "없", "못", "안", "아니")))

_PARTICLE = regex.compile(
    r"(?<=[\u1100-\u11FF]{3})(?:" + "|".join(unicodedata.normalize("NFD", particle) for particle in _PARTICLES) + ")$"
)


_HANGUL = regex.compile(r"[\u1100-\u11FF]")


def _without_particles(found: list[str]) -> list[str]:
    """Words without Korean particles."""
    return [_PARTICLE.sub("", word) if _HANGUL.match(word[-1]) else word for word in found]


@functools.lru_cache(maxsize=65_536)
def _signs(text: str) -> _Signs:
    folded = fold(text)
    return _Signs(
        numbers=tuple(number.replace(",", "") for number in _NUMBER.findall(folded)),
        operators=tuple(sorted(_OPERATOR.findall(folded))),
        korean_negations=len(_NOT_KOREAN.findall("".join(folded.split()))),
    )


@functools.lru_cache(maxsize=1024)
def _places(text: str) -> _Places:
    tokens = ["", *_TOKEN.findall(fold(text)), ""]
    numbers = [at for at, token in enumerate(tokens) if token[:1].isdecimal()]
    return _Places(
        beside=tuple(frozenset([("before", tokens[at - 1]), ("after", tokens[at + 1])]) for at in numbers),
        unnumbered=tuple(token for token in tokens if not token[:1].isdecimal()),
    )


@functools.lru_cache(maxsize=4096)
def _stems(text: str) -> _Stems:
    return _Stems(_without_particles(words(text)))


_views = functools.lru_cache(maxsize=4096)(views)


def _similarity(first: str, second: str, least: float) -> float:
    """As `similarity`, but 0 for what is under `least`. What is quickly found to differ is looked at first."""
    if not _same_signs(first, second):
        return 0.0
    found = _views(first).similarity(_views(second))
    return found if found >= least and _same_wording(_stems(first), _stems(second)) else 0.0


def _same_signs(first: str, second: str) -> bool:
    """Whether numbers, operators and Korean negations are the same."""
    left, right = _signs(first), _signs(second)
    if (left.operators, left.korean_negations) != (right.operators, right.korean_negations):
        return False
    if left.numbers == right.numbers:
        return True
    return sorted(left.numbers) == sorted(right.numbers) and _same_numbers_moved(first, second)


def _same_numbers_moved(first: str, second: str) -> bool:
    """Whether equal numbers in another order are so because the words are: each has kept a word beside it."""
    left, right = _places(first), _places(second)
    if left.unnumbered == right.unnumbered:
        return False
    found: dict[str, list[frozenset[tuple[str, str]]]] = {}
    for number, beside in zip(_signs(second).numbers, right.beside, strict=True):
        found.setdefault(number, []).append(beside)
    return all(
        any(beside & other for other in found[number])
        for number, beside in zip(_signs(first).numbers, left.beside, strict=True)
    )


def _same_wording(first: _Stems, second: _Stems) -> bool:
    """Whether the words that only one text has are spellings of those that only the other has.

    Words that are only added are no other wording, for nothing stands in their place; but a negation is.
    """
    if first.joined == second.joined:
        return True
    left, right = _only_in(first, second), _only_in(second, first)
    if not (_negated_alike(left, right) and _negated_alike(right, left)):
        return False
    if not left or not right or _alike("".join(left), "".join(right)):
        return True
    differing = len("".join(left))
    left, right = _without_spellings(left, right)
    return min(len("".join(left)), len("".join(right))) <= UNEXPLAINED * differing


def _only_in(first: _Stems, second: _Stems) -> list[str]:
    """Words of the first text, as often as the second lacks them, in their order."""
    return [word for word, time in first.counted if (word, time) not in second.known]


def _negated_alike(words: Sequence[str], others: Sequence[str]) -> bool:
    """Whether the others have each negation among the words too: mistyped, or written together with a neighbour."""
    joined = "".join(others)
    return all(
        word in joined or any(OSA.distance(word, other, score_cutoff=1) <= 1 for other in others)
        for word in words
        if _NOT.fullmatch(word)
    )


def _without_spellings(left: list[str], right: list[str]) -> tuple[list[str], list[str]]:
    """The words without the pairs that are spellings of each other, wherever they stand."""
    if len(left) * len(right) > _MOST_PAIRS:
        return left, right
    edits = cdist(left, right, scorer=OSA.distance, dtype=np.int32)
    allowed = np.maximum.outer([_allowed(len(word)) for word in left], [_allowed(len(word)) for word in right])
    edits[edits > allowed] = _FAR
    alone = []
    for word, row in zip(left, edits, strict=True):
        nearest = int(row.argmin())
        if row[nearest] == _FAR:
            alone.append(word)
        else:
            edits[:, nearest] = _FAR
            right = [*right[:nearest], "", *right[nearest + 1 :]]
    return alone, [word for word in right if word]


def _allowed(length: int) -> float:
    """Most edits between two spellings, by the letters of the longer: one slip in two letters, none in one."""
    return max(CHANGED * length, 1.0 if length > 1 else 0.0)


def _alike(first: str, second: str) -> bool:
    """Whether few edits lie between two spellings."""
    first, second = first[:_COMPARED], second[:_COMPARED]
    most = int(_allowed(max(len(first), len(second))))
    return OSA.distance(first, second, score_cutoff=most) <= most


# Which texts are compared


def band_rows(threshold: float, num_texts: int = 0) -> int:
    """Most hashes in a band with which the index finds all but `_MISSES` of the pairs at the threshold.

    A pair of similarity s is found with probability 1 - (1 - s^rows)^bands; more rows, fewer chance collisions.
    """
    similarity = min(1.0, threshold + (_LENIENCE if num_texts > _LARGE else 0.0))
    fitting = (rows for rows in range(NUM_PERM, 0, -1) if (1 - similarity**rows) ** (NUM_PERM // rows) <= _MISSES)
    return next(fitting, 1)


class _Index:
    """Texts that are kept, found again by what resembles them.

    Texts share a bucket where a band of their signatures is equal. Which buckets a text lies in is found for all
    texts at once, by sorting; only texts that share one with another are ever looked at.
    """

    def __init__(self, known: np.ndarray, threshold: float) -> None:
        self._signatures = known
        self._buckets = _buckets(known, band_rows(threshold, len(known)))
        self._members: dict[int, list[int]] = {}
        self._kept = np.zeros(len(known), bool)
        margin = _DEVIATIONS * (threshold * (1 - threshold) / NUM_PERM) ** 0.5
        self._fewest = (threshold - margin) * NUM_PERM

    def add(self, row: int) -> None:
        """Keep a text."""
        self._kept[row] = True
        for bucket in self._of(row):
            self._members.setdefault(bucket, []).append(row)

    def candidates(self, row: int) -> list[int]:
        """The kept texts that may be similar to a text, in order."""
        shared = [self._members[bucket] for bucket in self._of(row) if bucket in self._members]
        if not shared:
            return []
        if sum(map(len, shared)) > max(_CROWD, row // 8):
            rows = np.concatenate(list(self._in_order(row)))
        else:
            rows = np.array(sorted(set().union(*shared)))
        equal = self._equal(row, rows)
        nearest = np.lexsort((rows, -equal))[:_COMPARED_TEXTS]
        return sorted(rows[nearest[equal[nearest] >= self._fewest]].tolist())

    def _of(self, row: int) -> list[int]:
        buckets = self._buckets[row]
        shared: list[int] = buckets[buckets >= 0].tolist()
        return shared

    def _in_order(self, row: int) -> Iterator[np.ndarray]:
        """Looks through all earlier texts at an eighth of their signatures."""
        for start in range(0, row, 50_000):
            stop = min(row, start + 50_000)
            some = self._signatures[start:stop, ::8] == self._signatures[row, ::8]
            width = some.shape[1] // 2
            most = np.maximum(some[:, :width].sum(1), some[:, width:].sum(1))
            yield start + np.flatnonzero((most >= self._fewest / 8 - width / 4) & self._kept[start:stop])

    def _equal(self, row: int, rows: np.ndarray) -> np.ndarray:
        """Equal hashes of a text and each of `rows` in the view that has more of them."""
        equal = self._signatures[rows] == self._signatures[row]
        most: np.ndarray = np.maximum(equal[:, :NUM_PERM].sum(1), equal[:, NUM_PERM:].sum(1))
        return most


def _buckets(known: np.ndarray, rows_of_band: int) -> np.ndarray:
    """For each text and band the number of its bucket, -1 where it is alone [N, bands of both views]."""
    bits = np.uint64(max(1, len(known).bit_length()))
    starts = range(0, NUM_PERM - rows_of_band + 1, rows_of_band)
    out = np.full((len(known), 2 * len(starts)), -1, np.int32)
    used = 0
    for band, start in enumerate([*starts, *(NUM_PERM + start for start in starts)]):
        keys = _band_hash(known[:, start : start + rows_of_band]) >> bits << bits | np.arange(
            len(known), dtype=np.uint64
        )
        keys.sort()
        new = np.ones(len(keys) + 1, bool)
        new[1:-1] = (keys[1:] ^ keys[:-1]) >> bits != 0
        shared = ~(new[:-1] & new[1:])
        rows = (keys & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)[shared]
        out[rows, band] = used + np.cumsum(new[:-1][shared]) - 1
        used += int(new[:-1][shared].sum())
    return out


def _band_hash(columns: np.ndarray) -> np.ndarray:
    hashes = np.zeros(len(columns), np.uint64)
    for column in columns.T:
        hashes = (hashes ^ column) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(32)
    return hashes * np.uint64(0xC2B2AE3D27D4EB4F)
