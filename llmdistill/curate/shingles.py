"""What two texts are compared by: their words, the shingles of two views, and MinHash signatures of these.

The spaceless view cuts the whole text into runs of letters, so spacing does not count. The word view cuts each word
by itself, so the order of words does not count. Typos and Korean particles change few shingles of either.
"""

from __future__ import annotations

import functools
import struct
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import regex

NUM_PERM = 128
"""Hashes of a view."""

SHINGLE = 3
SIGNATURE_VERSION = f"1 rensa-2 unicode-{unicodedata.unidata_version}"
"""Belongs into the key under which a signature is cached: another version gives other signatures."""

_POINTS, _SIGNS = r"[.:]", r"[*/\-]"
_LETTER = r"\p{L}\p{N}\p{M}\p{S}"
_GLUE = r"\p{Cf}\p{Default_Ignorable_Code_Point}'’"
_WORD = regex.compile(rf"(?:[{_LETTER}]+|{_POINTS}(?=\p{{Nd}})|{_SIGNS}(?=\s*\p{{Nd}}))+")
_INVISIBLE = regex.compile(f"[{_GLUE}]+")
_END = "\x00"
_BATCH = 200_000
"""Characters that are cut at a time: their arrays stay in the processor's cache."""


def fold(text: str) -> str:
    """Text without case, width, apostrophes and invisible marks.

    Hangul becomes its letters, else a particle would weigh as much as a word.
    """
    return str(_INVISIBLE.sub("", unicodedata.normalize("NFKD", text).casefold()))


def words(text: str) -> list[str]:
    """Runs of letters, digits and symbols (`2+2`, emoji) of the folded text.

    Punctuation goes, but for the marks of arithmetic before a digit (`12/3`, `3.14`, `-5`).
    """
    return list(_WORD.findall(fold(text)))


def normalise(text: str) -> str:
    """Text without what does not change its meaning: case, width, spacing, punctuation."""
    return "".join(words(text))


@dataclass(frozen=True)
class Views:
    """Shingles of a text: of all its letters in a row, and of each word."""

    spaceless: frozenset[str]
    by_word: frozenset[str]

    def similarity(self, other: Views) -> float:
        """The larger of the two views' Jaccard similarities, 0 to 1."""
        return max(jaccard(self.spaceless, other.spaceless), jaccard(self.by_word, other.by_word))


def views(text: str) -> Views:
    """The shingles of a text."""
    found = words(text)
    spaceless = _runs(["".join(found)]) if found else frozenset([""])
    return Views(spaceless, _runs(found) if found else spaceless)


def _runs(units: list[str]) -> frozenset[str]:
    """One run for each letter of a unit: the one before it, itself, and the one after; `_END` beyond the ends."""
    padded = [f"{_END}{letters}{_END}" for letters in units]
    return frozenset([unit[at : at + SHINGLE] for unit in padded for at in range(len(unit) - SHINGLE + 1)])


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Size of the intersection over size of the union."""
    common = len(first & second)
    return common / max(1, len(first) + len(second) - common)


def signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash signatures (Broder 1997) of both views, each row made from its own text alone.

    Returns:
        [N, 2 * NUM_PERM] uint16: the share of equal values in a view's half estimates its Jaccard similarity.
        16 bits of a hash are enough to tell it from another one (b-bit minwise hashing, arXiv 0910.3349).
    """
    out = np.empty((len(texts), 2 * NUM_PERM), np.uint16)
    with ThreadPoolExecutor(2) as pool:
        for start, rows in pool.map(lambda span: (span[0], _signatures(texts[slice(*span)])), _spans(texts)):
            out[start : start + len(rows)] = rows
    return out


def _spans(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Consecutive batches of about `_BATCH` characters."""
    spans, start, size = [], 0, 0
    for position, text in enumerate(texts):
        size += len(text) + 1
        if size >= _BATCH:
            spans.append((start, position + 1))
            start, size = position + 1, 0
    return [*spans, (start, len(texts))] if start < len(texts) else spans


def _signatures(texts: Sequence[str]) -> np.ndarray:
    letters, text_of, word_of = _letters(texts)
    offsets = np.searchsorted(text_of, np.arange(len(texts) + 1))
    return np.hstack([_minhash(_hashes(letters, unit), offsets) for unit in (text_of, word_of)])


def _letters(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`words` of many texts at once: (code point of each letter, number of its text, number of its word)."""
    joined = "".join(text.replace(_END, " ") + _END for text in texts)
    folded = unicodedata.normalize("NFKD", joined).casefold()
    codes = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _kinds()[codes]
    codes, kinds = codes[kinds != _HIDDEN], kinds[kinds != _HIDDEN]
    at_digit = np.append(kinds[1:] == _DIGIT, False)
    solid = np.flatnonzero(kinds != _SPACE)
    before_digit = np.zeros(len(codes), bool)
    before_digit[solid[:-1]] = kinds[solid[1:]] == _DIGIT
    kept = (kinds == _KEPT) | (kinds == _DIGIT) | ((kinds == _POINT) & at_digit) | ((kinds == _SIGN) & before_digit)
    return codes[kept].astype(np.uint64), np.cumsum(codes == 0)[kept], np.cumsum(~kept)[kept]


_OTHER, _SPACE, _HIDDEN, _KEPT, _DIGIT, _POINT, _SIGN = range(7)


@functools.cache
def _kinds() -> np.ndarray:
    """Kind of every code point, by the same patterns as `words`."""
    every = np.arange(0x110000, dtype=np.uint32).tobytes().decode("utf-32-le", "surrogatepass")
    kinds = np.full(0x110000, _OTHER, np.uint8)
    classes = {_SPACE: r"\s", _KEPT: f"[{_LETTER}]", _DIGIT: r"\p{Nd}", _POINT: _POINTS, _SIGN: _SIGNS}
    for kind, pattern in {**classes, _HIDDEN: f"[{_GLUE}]"}.items():
        for match in regex.finditer(f"{pattern}+", every):
            kinds[match.start() : match.end()] = kind
    return kinds


_FACTORS = [np.uint64(factor) for factor in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)]


def _hashes(letters: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """64-bit hash of the run around each letter, as `_runs` cuts the letters of one unit (a text or a word)."""
    hashes = letters * _FACTORS[1]
    hashes[1:] += letters[:-1] * _FACTORS[0] * (unit[1:] == unit[:-1])
    hashes[:-1] += letters[1:] * _FACTORS[2] * (unit[1:] == unit[:-1])
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64, Steele et al. 2014
        hashes ^= hashes >> np.uint64(shift)
        hashes *= np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(31))


def _minhash(hashes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    from rensa import RMinHash

    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets.astype(np.uint64), NUM_PERM, 0)
    pack = struct.Struct(f"<{NUM_PERM}I").pack
    packed = b"".join([pack(*row) for row in matrix.to_rows()])
    digests = np.frombuffer(packed, "<u4").reshape(-1, NUM_PERM)
    short: np.ndarray = (digests ^ (digests >> np.uint32(16))).astype(np.uint16)
    return short
