"""The steps of curation, in their order. Each decides about some of the rows that are still open."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmdistill.config import Pipeline
from llmdistill.curate.cache import cached
from llmdistill.curate.contamination import EvaluationSet, contaminated
from llmdistill.curate.coverage import coverage_curve, nearest_chosen, plane
from llmdistill.curate.duplicates import Match, near_duplicates
from llmdistill.curate.embed import embed
from llmdistill.curate.pool import Pool
from llmdistill.curate.quotas import choose_by_quota
from llmdistill.curate.select import Choice, Task, choose
from llmdistill.curate.semantic import how, semantic_duplicates
from llmdistill.curate.shingles import SIGNATURE_VERSION, signatures
from llmdistill.decisions import Decisions

FindCopies = Callable[[np.ndarray], list[Match | None]]
"""For rows, best first: which earlier one of them each nearly equals."""


@dataclass
class Work:
    """What the steps share.

    Attributes:
        cache_dir: where vectors and signatures are kept.
        must_keep: rows that are chosen in any case, unless they are contaminated.
        metrics: what the manifest says about the stage.
        seconds: what each step took.
    """

    pipeline: Pipeline
    cache_dir: Path
    pool: Pool
    decisions: Decisions
    must_keep: frozenset[int] = frozenset()
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure what a step takes; its parts add up."""
        started = time.monotonic()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - started, 2)

    def embedded(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, d] vectors, each computed once."""
        with self.step("embed"):
            return embed(texts, self.pipeline.curate.embed, self.pipeline, self.cache_dir)

    def signed(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, width] MinHash signatures, each computed once."""
        key, run = f"signatures-{SIGNATURE_VERSION}", self.pipeline.run
        return cached(self.cache_dir, key, texts, signatures, what="signatures", run=run)

    def questions(self, rows: np.ndarray) -> list[str]:
        """Texts of the rows' prompts."""
        return [self.pool.questions[row] for row in rows]


def drop_listed(work: Work, rows: Sequence[int], path: str) -> None:
    """Drop what the user's list names."""
    for row in rows:
        work.decisions.drop(row, "must_drop", f"stands in {path}")


def drop_contaminated(work: Work, sets: list[EvaluationSet]) -> None:
    """Drop what resembles a question that the student is measured on, whatever else speaks for it."""
    settings = work.pipeline.curate.decontaminate
    rows = work.decisions.open
    if settings is None or not len(rows) or not any(found.questions for found in sets):
        return
    questions = work.questions(rows)
    vectors = None
    if settings.similarity is not None:
        every = work.embedded([*questions, *(text for found in sets for text in found.questions)])
        ends = np.cumsum([len(questions), *(len(found.questions) for found in sets)])
        vectors = every[: ends[0]], np.split(every[ends[0] :], ends[1:-1] - ends[0])
    with work.step("decontaminate"):
        found = contaminated(questions, [work.pool.replies[row] for row in rows], sets, settings, vectors, work.signed)
    counts = {one.name: 0 for one in sets}
    for row, contamination in zip(rows, found, strict=True):
        if contamination:
            counts[contamination.set] += 1
            work.decisions.drop(row, "contaminated", contamination.detail, contamination.value)
    work.metrics["contamination"] = counts


def drop_near_copies(work: Work) -> None:
    """Drop records whose prompt nearly equals that of a better one, by their letters."""
    threshold = work.pipeline.curate.near_duplicates
    if threshold is None:
        return

    def find(rows: np.ndarray) -> list[Match | None]:
        texts = work.questions(rows)
        return near_duplicates(texts, threshold, work.signed(texts))

    with work.step("near_duplicates"):
        _drop_copies(work, work.decisions.open, find, "near_duplicate")


def vectors_of_open(work: Work) -> np.ndarray:
    """[open rows, d] vectors; rows that have none are dropped."""
    rows = work.decisions.open
    vectors = work.embedded(work.questions(rows))
    finite = np.isfinite(vectors).all(1)
    if not finite.all():
        for row in rows[~finite]:
            work.decisions.drop(row, "no_vector", "the embedding of its prompt is not finite")
        vectors = vectors[finite]
    with work.step("explain"):
        work.decisions.places[rows[finite]] = plane(vectors)
    return vectors


def drop_semantic_copies(work: Work, vectors: np.ndarray) -> np.ndarray:
    """Drop records whose prompt means the same as that of a better one; gives the vectors of those that stay."""
    threshold = work.pipeline.curate.semantic_duplicates
    if threshold is None:
        return vectors
    rows = work.decisions.open

    def find(wanted: np.ndarray) -> list[Match | None]:
        return semantic_duplicates(vectors[np.searchsorted(rows, wanted)], threshold)

    work.metrics["semantic_duplicates"] = how(*vectors.shape)
    with work.step("semantic_duplicates"):
        _drop_copies(work, rows, find, "semantic_duplicate")
    stay = np.isin(rows, work.decisions.open)
    return vectors if stay.all() else vectors[stay]


def _drop_copies(work: Work, rows: np.ndarray, find: FindCopies, reason: str) -> None:
    """Samples of one prompt are no copies of each other; they stay or go together, unless they must be kept."""
    is_open = np.zeros(len(work.pool), dtype=bool)
    is_open[rows] = True
    order = work.pool.best_first(work.must_keep)
    best: dict[str, int] = {}
    for row in order[is_open[order]]:
        best.setdefault(work.pool.prompts[row], int(row))
    heads = np.array(list(best.values()), dtype=np.int64)
    matches = dict(zip(best, find(heads), strict=True)) if len(heads) else {}
    for row in rows:
        match = matches[work.pool.prompts[row]]
        if match and row not in work.must_keep:
            original = int(heads[match.index])
            detail = f"{match.similarity:.0%} like {work.pool.ids[original]}"
            work.decisions.drop(row, reason, detail, match.similarity, original)


def select(work: Work, vectors: np.ndarray) -> None:
    """Choose among the rows that are left, whose vectors are given."""
    settings, rows = work.pipeline.curate, work.decisions.open
    with work.step("select"):
        choice = _choice(work, rows, vectors)
    kept = rows[choice.chosen]
    reasons = ["must_keep" if row in work.must_keep else settings.select for row in kept]
    work.decisions.keep(kept, reasons, choice.gains)
    if choice.clusters is not None:
        work.decisions.cluster[rows] = choice.clusters
    for row in work.decisions.open:
        work.decisions.drop(row, "not_selected", f"{settings.select} chose {len(kept):,} others")
    work.metrics["selection"] = choice.notes


def _choice(work: Work, rows: np.ndarray, vectors: np.ndarray) -> Choice:
    settings = work.pipeline.curate
    given = tuple(position for position, row in enumerate(rows) if row in work.must_keep)
    task = Task(
        vectors=vectors,
        scores=work.pool.scores[rows],
        size=max(min(settings.size or len(rows), len(rows)), len(given)),
        seed=work.pipeline.curate_seed,
        given=given,
        quality=settings.quality,
        max_similarity=settings.max_similarity,
    )
    if settings.quotas:
        return choose_by_quota(settings.select, task, [work.pool.groups[row] for row in rows], settings.quotas)
    return choose(settings.select, task)


def explain(work: Work, rows: np.ndarray, vectors: np.ndarray) -> None:
    """What is chosen near every row, and how much of the pool is covered.

    Args:
        rows: those that were to be chosen from.
        vectors: [rows, d].
    """
    decisions = work.decisions
    with work.step("explain"):
        chosen = np.searchsorted(rows, decisions.kept)
        if 0 < len(chosen) < len(rows):
            work.metrics["coverage"] = coverage_curve(vectors, chosen, work.pipeline.curate_seed).as_dict()
        if len(chosen):
            nearest, similarity = nearest_chosen(vectors, chosen)
            decisions.nearest[rows] = np.where(nearest >= 0, rows[nearest], -1)
            decisions.nearest_similarity[rows] = similarity
