"""How much of an evaluation question stands in a text, in runs of several tokens, wherever in the text it is.

A token of the question is covered when a run of `n` tokens that it is part of stands in the text, as in Llama 2
(arXiv 2307.09288, appendix A.6) and Tülu 3 (arXiv 2411.15124). What many texts share (templates, "how many apples are
left") says little: a token counts as much as the rarest run that it is part of. Runs are looked up by 64-bit hashes,
a batch of texts at a time; pairs of text and question are never gone through one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from llmdistill.curate.tokens import is_character, tokens

RARE = 5
"""A run counts fully while at most so many texts and questions have it, beyond that in inverse proportion."""
MAX_QUESTIONS = 10
"""A run that more evaluation questions have is a template's, and counts nothing."""
MAX_TEXTS, MAX_SHARE = 20, 0.01
"""So does one that more training questions have than this number, and than this share of them."""
LEAST_RUNS = 2
"""As many tokens as in so many runs are covered at least, counted by how rare they are, or else the whole question."""
_BATCH = 2_000_000
_CELLS = 10_000_000
_BASE = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Cover:
    """The evaluation question (its index) that stands most in a text, and how much of it does, 0 to 1."""

    question: int
    share: float


@dataclass(frozen=True)
class _Table:
    """Runs of one length: sorted hashes, the first of which is run number `first`. Whole questions are short."""

    length: int
    is_short: bool
    hashes: np.ndarray
    first: int


@dataclass(frozen=True)
class _Postings:
    """Where the runs stand: run `r` in `question[p]` from token `place[p]`, for `p` from `first[r]` to `first[r+1]`."""

    first: np.ndarray
    question: np.ndarray
    place: np.ndarray
    length: np.ndarray

    def of(self, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Postings of the runs, one after the other: (which of `runs`, posting)."""
        counts = self.first[runs + 1] - self.first[runs]
        which = np.repeat(np.arange(len(runs)), counts)
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return which, self.first[runs][which] + offsets


def run_length(words: list[str], ngram: int) -> int:
    """Tokens in a run of a question: `ngram`, half as many again where most tokens are single characters."""
    return ngram + ngram // 2 if 2 * sum(map(is_character, words)) > len(words) else ngram


class Overlap:
    """Evaluation questions, to be found in texts.

    A question shorter than a run is found whole: where it makes up at least `whole` of the text it stands in or,
    when it is shorter than half a run, where it is all of the text.
    """

    def __init__(self, questions: Sequence[str], ngram: int, whole: float) -> None:
        self._whole = whole
        self._equal: dict[str, int] = {}
        split = [tokens(question) for question in questions]
        for index, words in enumerate(split):
            if words:
                self._equal.setdefault(" ".join(words), index)
        self._index = np.array(list(self._equal.values()), np.int64)
        distinct = [split[index] for index in self._index]
        self._sizes = np.array([len(words) for words in distinct], np.int64)
        self._numbers = {word: number for number, word in enumerate(sorted(set().union(*distinct)), 1)}
        self._values = np.random.default_rng(0).integers(1, 2**63, len(self._numbers) + 1, np.uint64)
        self._tables: list[_Table] = []
        wanted = np.array([run_length(words, ngram) for words in distinct], np.int64)
        self._least = float(LEAST_RUNS) * wanted
        self._postings = self._post(distinct, wanted)

    def _post(self, distinct: list[list[str]], wanted: np.ndarray) -> _Postings:
        """Index the runs of the questions; equal runs have one number."""
        ids, starts = self._joined(distinct)
        owner = np.repeat(np.arange(len(distinct)), self._sizes + 1)
        is_short = self._sizes < wanted
        lengths = np.where(is_short & (2 * self._sizes >= wanted), self._sizes, wanted)
        columns: list[np.ndarray] = [np.empty((4, 0), np.int64)]
        num_runs = 0
        for length, at, hashes in self._runs(ids, set(lengths.tolist())):
            for short in (False, True):
                mine = (lengths[owner[at]] == length) & (is_short[owner[at]] == short)
                if mine.any():
                    found, run = np.unique(hashes[mine], return_inverse=True)
                    self._tables.append(_Table(length, short, found, num_runs))
                    question, place = owner[at[mine]], at[mine] - starts[owner[at[mine]]]
                    columns.append(np.stack([run + num_runs, question, place, np.full(len(run), length)]))
                    num_runs += len(found)
        run, question, place, length = np.concatenate(columns, axis=1)
        order = np.lexsort((place, question, run))
        first = np.searchsorted(run[order], np.arange(num_runs + 1))
        return _Postings(first, question[order], place[order], length[order])

    def _joined(self, texts: Sequence[list[str]]) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the tokens of all texts, 0 for what no question has and after each text; where each begins."""
        ids: list[int] = []
        for words in texts:
            ids.extend(map(self._numbers.get, words, repeat(0)))
            ids.append(0)
        sizes = np.array([len(words) + 1 for words in texts], np.int64)
        return np.array(ids, np.int64), np.cumsum(sizes) - sizes

    def _runs(self, ids: np.ndarray, lengths: set[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(length, starts, hashes) of all runs of known tokens."""
        unknown = np.flatnonzero(ids == 0)
        starts = np.flatnonzero(ids)
        room = unknown[np.searchsorted(unknown, starts)] - starts
        hashes = np.zeros(len(starts), np.uint64)
        for length in range(1, max(lengths, default=0) + 1):
            fits = room >= length
            starts, room = starts[fits], room[fits]
            hashes = hashes[fits] * _BASE + self._values[ids[starts + length - 1]]
            if length in lengths:
                yield length, starts, hashes

    def find(self, texts: Sequence[str], num_counted: int, threshold: float) -> list[Cover | None]:
        """For each text the question that stands most in it, if at least `threshold` of it does.

        Args:
            texts: different texts.
            num_counted: how many of them, from the first, tell how common a run is; of those equality counts too.
        """
        found: list[Cover | None] = [None] * len(texts)
        hits = self._hits(texts, num_counted, found)
        for text, question, share in self._best(hits, threshold):
            found[text] = found[text] or Cover(int(self._index[question]), share)
        return found

    def _hits(self, texts: Sequence[str], counted: int, found: list[Cover | None]) -> np.ndarray:
        """[hits, 2]: text, run that stands in it and is not too common. Texts that equal a question go to `found`."""
        in_questions = np.diff(self._postings.first)
        in_texts = np.zeros(len(in_questions), np.int64)
        most = max(MAX_TEXTS, int(MAX_SHARE * counted))
        hits = [np.empty((0, 2), np.int64)]
        for begin, batch in _batches(texts):
            for text, words in enumerate(batch, begin):
                if text < counted and (equal := self._equal.get(" ".join(words))) is not None:
                    found[text] = Cover(equal, 1.0)
            new = self._look_up(batch) + (begin, 0)
            in_texts += np.bincount(new[new[:, 0] < counted, 1], minlength=len(in_texts))
            hits.append(new[(in_questions <= MAX_QUESTIONS)[new[:, 1]] & (in_texts <= most)[new[:, 1]]])
        weights = np.minimum(1.0, RARE / np.maximum(1, in_texts + in_questions))
        self._weights = np.where((in_questions <= MAX_QUESTIONS) & (in_texts <= most), weights, 0.0)
        every = np.concatenate(hits)
        return every[self._weights[every[:, 1]] > 0]

    def _look_up(self, batch: list[list[str]]) -> np.ndarray:
        """[hits, 2]: text in the batch, run that stands in it."""
        ids, begins = self._joined(batch)
        sizes = np.array([len(words) for words in batch], np.int64)
        found = [np.empty(0, np.int64)]
        num_runs = max(1, len(self._postings.first) - 1)
        for length, starts, hashes in self._runs(ids, {table.length for table in self._tables}):
            for table in self._tables:
                if table.length == length:
                    place = np.searchsorted(table.hashes, hashes)
                    is_run = table.hashes[np.minimum(place, len(table.hashes) - 1)] == hashes
                    text = np.searchsorted(begins, starts[is_run], side="right") - 1
                    if table.is_short:
                        fills = length >= self._whole * sizes[text]
                        text, place = text[fills], place[is_run][fills]
                    else:
                        place = place[is_run]
                    found.append(text * num_runs + place + table.first)
        return np.stack(np.divmod(np.unique(np.concatenate(found)), num_runs), axis=1)

    def _best(self, hits: np.ndarray, threshold: float) -> Iterator[tuple[int, int, float]]:
        """(text, question, share) of the question that stands most in a text, the earlier of equals, best text by text.

        Only those with at least `threshold`.
        """
        which, posting = self._postings.of(hits[:, 1])
        num_questions = max(1, len(self._sizes))
        pairs, pair = np.unique(hits[which, 0] * num_questions + self._postings.question[posting], return_inverse=True)
        text, question = np.divmod(pairs, num_questions)
        credit, total = self._credit(pair, posting, question), self._total()[question]
        shares = credit / total
        good = (shares >= threshold - 1e-9) & (credit >= np.minimum(total, self._least[question]) - 1e-9)
        text, question, shares = text[good], question[good], shares[good]
        order = np.lexsort((question, -shares, text))
        first = np.unique(text[order], return_index=True)[1]
        for row in order[first]:
            yield int(text[row]), int(question[row]), min(1.0, float(shares[row]))

    def _total(self) -> np.ndarray:
        """What the tokens of each question count together; 1 where none does."""
        posting = np.arange(len(self._postings.question))
        total = self._credit(self._postings.question, posting, np.arange(len(self._sizes)))
        return np.where(total > 0, total, 1.0)

    def _credit(self, pair: np.ndarray, posting: np.ndarray, question: np.ndarray) -> np.ndarray:
        """What the covered tokens count together, for each pair of a text and a question.

        Args:
            pair: number of the pair of each posting, from 0.
            posting: runs that stand in the text, as postings of the question.
            question: the question of each pair.
        """
        credit = np.zeros(len(question))
        order = np.argsort(pair, kind="stable")
        pair, posting = pair[order], posting[order]
        weight = self._weights[np.searchsorted(self._postings.first, posting, side="right") - 1]
        ends = np.cumsum(self._sizes[question])
        for first, last in _slices(ends, _CELLS):
            offset = ends[first] - self._sizes[question[first]]
            counts = np.zeros(ends[last - 1] - offset)
            begin, end = np.searchsorted(pair, (first, last))
            places = (ends - self._sizes[question])[pair[begin:end]] - offset + self._postings.place[posting[begin:end]]
            lengths = self._postings.length[posting[begin:end]]
            for step in range(int(lengths.max(initial=0))):
                inside = lengths > step
                np.maximum.at(counts, places[inside] + step, weight[begin:end][inside])
            starts = (ends - self._sizes[question])[first:last] - offset
            credit[first:last] = np.add.reduceat(counts, starts)
        return credit


def _slices(ends: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of what ends at `ends`, each with at most `most` cells, or one alone."""
    first = 0
    while first < len(ends):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield first, last
        first = last


def _batches(texts: Sequence[str]) -> Iterator[tuple[int, list[list[str]]]]:
    """(number of the first text, tokens of each text), about `_BATCH` tokens at a time."""
    begin, size = 0, 0
    batch: list[list[str]] = []
    for number, text in enumerate(texts, 1):
        batch.append(tokens(text))
        size += len(batch[-1])
        if size >= _BATCH or number == len(texts):
            yield begin, batch
            begin, size, batch = number, 0, []
