"""TF-IDF of character n-grams inside words, reduced by truncated SVD (latent semantic analysis). Needs no model.

A text's n-grams are those of its words, so the matrix of texts and n-grams is never built: it is the product of
texts x words and words x n-grams, which are far smaller, and the SVD only multiplies by them.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmdistill.curate.cache import hashes_of
from llmdistill.curate.embed.rows import to_unit
from llmdistill.run.progress import progress

DIMENSIONS = 128
VERSION = 2
"""Changes with what the vectors are."""

_NGRAM_SIZES = (2, 3, 4, 5)  # without a gap: the hash of one size is made from that of the size before
_BUCKET_BITS = 18
_OVERSAMPLES = 16
_PASSES = 3
_TEXTS_AT_ONCE = 10_000
_CHARACTERS_AT_ONCE = 1 << 20


def tfidf(texts: Sequence[str], seed: int = 0) -> np.ndarray:
    """Vectors of unit length, [texts, <= DIMENSIONS], float32; a text without any word has a zero row.

    The order of the texts changes nothing: the distinct ones are sorted before anything is computed.
    Characters rather than words: Korean particles stick to words, and typos change few n-grams.
    """
    _, first, inverse = np.unique(hashes_of(texts), return_index=True, return_inverse=True)
    if not len(first):
        return np.zeros((0, 0), dtype=np.float32)
    counted, words = _count_words([texts[position] for position in first])
    return _reduced(_Weighted.of(counted, _ngrams(words)), seed)[inverse]


@dataclass(frozen=True)
class _Weighted:
    """The matrix of texts and n-grams, as the product of two sparse ones.

    Attributes:
        texts: [texts, words], damped counts; rows are scaled so that long texts weigh no more than short ones.
        words: [words, buckets], n-gram counts times inverse document frequency.
    """

    texts: Any
    words: Any

    @classmethod
    def of(cls, counted: Any, ngrams: Any) -> _Weighted:
        """From the words of each text, counted, and the n-grams of each word."""
        num_texts = counted.shape[0]
        document_frequency = np.bincount(counted.indices, minlength=counted.shape[1])
        # An n-gram's texts are at most those of all its words; exact counts would need the product.
        present = ngrams.copy()
        present.data[:] = 1.0
        frequency = np.minimum(num_texts, present.T @ document_frequency.astype(np.float32))
        weighted = ngrams.multiply(np.log((1 + num_texts) / (1 + frequency)) + 1).tocsr().astype(np.float32)
        damped = counted.copy()
        damped.data = 1 + np.log(damped.data)
        lengths = np.sqrt(damped.power(2) @ np.asarray(weighted.power(2).sum(1)))
        scale = 1 / np.where(lengths > 0, lengths, 1)
        return cls(damped.multiply(scale).tocsr().astype(np.float32), weighted)

    def times(self, other: np.ndarray) -> np.ndarray:
        return self.texts @ (self.words @ other)

    def transposed_times(self, other: np.ndarray) -> np.ndarray:
        return self.words.T @ (self.texts.T @ other)


def _reduced(matrix: _Weighted, seed: int) -> np.ndarray:
    """Left singular vectors times singular values, by subspace iteration (arXiv 0909.4061, algorithm 4.4)."""
    num_texts, num_buckets = matrix.texts.shape[0], matrix.words.shape[1]
    if not matrix.words.nnz:
        return np.zeros((num_texts, 1), dtype=np.float32)
    size = min(DIMENSIONS, num_texts)
    width = min(size + _OVERSAMPLES, num_texts)
    columns = matrix.times(np.random.default_rng(seed).standard_normal((num_buckets, width), dtype=np.float32))
    with progress("embed: passes", _PASSES) as bar:
        for step in range(_PASSES):
            basis = _orthonormal(columns)
            back = matrix.transposed_times(basis)
            if step + 1 < _PASSES:
                columns = matrix.times(back)
            bar.advance()
    values, axes = np.linalg.eigh(_gram(back))
    scaled = axes[:, ::-1][:, :size] * np.sqrt(np.maximum(values[::-1][:size], 0))
    return to_unit(basis @ scaled.astype(np.float32))


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span the same space, by the eigenvectors of the Gram matrix: much faster than QR."""
    values, axes = np.linalg.eigh(_gram(columns))
    used = values > values[-1] * 1e-10
    return columns @ (axes[:, used] / np.sqrt(values[used])).astype(np.float32)


def _gram(columns: np.ndarray) -> np.ndarray:
    total = np.zeros((columns.shape[1], columns.shape[1]))
    for start in range(0, len(columns), _TEXTS_AT_ONCE):
        block = columns[start : start + _TEXTS_AT_ONCE].astype(np.float64)
        total += block.T @ block
    return total


def _count_words(texts: list[str]) -> tuple[Any, list[str]]:
    """How often each word stands in each text, [texts, words] sparse, and the words."""
    from scipy.sparse import csr_matrix

    numbers: dict[str, int] = {}
    indices, counts, ends = [], [], [0]
    with progress("embed: words", len(texts)) as bar:
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            block = texts[start : start + _TEXTS_AT_ONCE]
            counters = [Counter(unicodedata.normalize("NFKC", text).casefold().split()) for text in block]
            flat = itertools.chain.from_iterable(counters)
            indices.append(np.fromiter((numbers.setdefault(word, len(numbers)) for word in flat), dtype=np.int32))
            counts.append(np.fromiter(itertools.chain.from_iterable(c.values() for c in counters), dtype=np.float32))
            ends += [len(counter) for counter in counters]
            bar.advance(len(block))
    parts = (np.concatenate(counts), np.concatenate(indices), np.cumsum(ends))
    return csr_matrix(parts, shape=(len(texts), len(numbers))), list(numbers)


def _ngrams(words: list[str]) -> Any:
    """How often each n-gram stands in each word, which a space begins and ends: [words, buckets], sparse."""
    from scipy.sparse import csr_matrix, vstack

    blocks = [_ngrams_of(block) for block in _blocks_of_words(words)]
    return vstack(blocks).tocsr() if blocks else csr_matrix((0, 1 << _BUCKET_BITS), dtype=np.float32)


def _blocks_of_words(words: list[str]) -> Iterator[list[str]]:
    block: list[str] = []
    characters = 0
    for word in words:
        block.append(word)
        characters += len(word)
        if characters >= _CHARACTERS_AT_ONCE:
            yield block
            block, characters = [], 0
    if block:
        yield block


def _ngrams_of(words: list[str]) -> Any:
    from scipy.sparse import coo_matrix

    joined = "".join(f" {word} " for word in words).encode("utf-32-le", "surrogatepass")
    codes = np.frombuffer(joined, dtype=np.uint32).astype(np.uint64)
    lengths = np.array([len(word) + 2 for word in words])
    rows = np.repeat(np.arange(len(words)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(codes))
    hashes = codes
    found_rows, buckets = [], []
    for size in _NGRAM_SIZES:
        hashes = hashes[:-1] * np.uint64(0x100000001B3) + codes[size - 1 :]
        inside = left[: len(hashes)] >= size
        mixed = (hashes[inside] + np.uint64(size)) * np.uint64(0x9E3779B97F4A7C15)
        buckets.append((mixed >> np.uint64(64 - _BUCKET_BITS)).astype(np.int32))
        found_rows.append(rows[: len(hashes)][inside])
    places = (np.concatenate(found_rows), np.concatenate(buckets))
    ones = np.ones(len(places[0]), dtype=np.float32)
    matrix = coo_matrix((ones, places), shape=(len(words), 1 << _BUCKET_BITS)).tocsr()
    matrix.sum_duplicates()
    return matrix
