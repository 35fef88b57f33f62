"""The stage `curate`: near duplicates out, then the selection; every record says why it was kept or dropped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from llmdistill.config import Curate, Pipeline
from llmdistill.curate.duplicates import Match, near_copies_of, near_duplicates
from llmdistill.curate.embed import hidden_states, tfidf
from llmdistill.curate.select import METHODS
from llmdistill.engines.resume import find_weights
from llmdistill.errors import RejectsError
from llmdistill.record import Record, Reject, Selection, record_id
from llmdistill.run.digest import Parts, flatten
from llmdistill.run.files import write_table
from llmdistill.run.manifest import Counts, Manifest
from llmdistill.run.stage import begin, inputs_of, read_all, read_held_out, write_part

MAP = "map.parquet"


def run(pipeline: Pipeline, *, fresh: bool = False) -> Manifest:
    """Choose the training set."""
    parts: Parts = {
        **flatten(pipeline.curate.digest_view(), "curate."),
        "curate.seed": pipeline.seed,
        **inputs_of(pipeline.run_path, "prompts", "filter"),
    }
    if pipeline.curate.embed == "teacher":
        parts["curate.embed_revision"] = find_weights(pipeline.teacher).revision
    stage = begin(pipeline.run_path, "curate", parts, fresh=fresh)
    if isinstance(stage, Manifest):
        return stage
    records = list(read_all(pipeline.run_path, "filter"))
    if not records:
        raise RejectsError("filter kept no record", where=pipeline.run_path, do="lower filter.judge.min_score")
    records.sort(key=lambda record: (-(record.score or 0.0), record.id))
    pool, rejects = drop_copies(records, read_held_out(pipeline.run_path), pipeline.curate)
    kept, left_over, plot = choose(pool, pipeline)
    for index, start in enumerate(range(0, len(kept), pipeline.curate.shard_size)):
        write_part(stage, index, kept[start : start + pipeline.curate.shard_size])
    write_table(stage.dir / MAP, plot)
    rejects += left_over
    reasons = stage.write_rejects(rejects)
    return stage.finish(Counts(len(records), len(kept), len(rejects), reasons=reasons))


def drop_copies(records: list[Record], held_out: list[Record], settings: Curate) -> tuple[list[Record], list[Reject]]:
    """Take out records whose prompt nearly equals a held-out one, or another prompt with a better record (given first).

    Samples of one prompt are no copies of each other; they stay or go together.
    """
    rejects: list[Reject] = []
    if settings.near_held_out is not None and held_out:
        matches = near_copies_of(_questions(held_out), _questions(records), settings.near_held_out)
        records, dropped = _split(records, held_out, matches, "near_held_out")
        rejects += dropped
    if settings.near_duplicates is not None:
        best = _best_of_each_prompt(records)
        originals = list(best.values())
        found = dict(zip(best, near_duplicates(_questions(originals), settings.near_duplicates), strict=True))
        matches = [found[record_id(record.prompt)] for record in records]
        records, dropped = _split(records, originals, matches, "near_duplicate")
        rejects += dropped
    return records, rejects


def _best_of_each_prompt(records: list[Record]) -> dict[str, Record]:
    """The first record of each prompt, by the prompt's id."""
    best: dict[str, Record] = {}
    for record in records:
        best.setdefault(record_id(record.prompt), record)
    return best


def _questions(records: list[Record]) -> list[str]:
    return [record.question for record in records]


def _split(
    records: list[Record], originals: list[Record], matches: list[Match | None], reason: str
) -> tuple[list[Record], list[Reject]]:
    kept: list[Record] = []
    dropped: list[Reject] = []
    for record, match in zip(records, matches, strict=True):
        if match is None:
            kept.append(record)
            continue
        original = originals[match.index].id
        selection = Selection(kept=False, reason=reason, duplicate_of=original)
        detail = f"{match.similarity:.0%} like {original}"
        dropped.append(Reject(replace(record, selection=selection), "curate", reason, detail))
    return kept, dropped


def choose(records: list[Record], pipeline: Pipeline) -> tuple[list[Record], list[Reject], pa.Table]:
    """Select the training set; gives the chosen by rank, the others, and the map of all for the report."""
    settings = pipeline.curate
    records = sorted(records, key=lambda record: record.id)
    vectors = _embed(_questions(records), pipeline)
    scores = np.array([record.score or 0.0 for record in records])
    size = min(settings.size or len(records), len(records))
    choice = METHODS[settings.select](vectors, scores, size, pipeline.seed)
    ranks = {row: rank for rank, row in enumerate(choice.chosen)}
    clusters: list[int] | list[None] = choice.clusters or [None] * len(records)
    kept: list[Record] = []
    left_over: list[Reject] = []
    for row, record in enumerate(records):
        reason = settings.select if row in ranks else "not_selected"
        selection = Selection(row in ranks, reason, None, clusters[row], ranks.get(row))
        marked = replace(record, selection=selection)
        if row in ranks:
            kept.append(marked)
        else:
            left_over.append(Reject(marked, "curate", reason, f"{settings.select} chose {size} others"))
    kept.sort(key=_rank)
    return kept, left_over, _plot(records, vectors, clusters, ranks)


def _rank(record: Record) -> int:
    rank = record.selection.rank if record.selection else None
    return -1 if rank is None else rank


def _embed(texts: list[str], pipeline: Pipeline) -> np.ndarray:
    if pipeline.curate.embed == "teacher":
        return hidden_states(texts, find_weights(pipeline.teacher))
    return tfidf(texts, pipeline.seed)


def _plot(records: list[Record], vectors: np.ndarray, clusters: list[Any], ranks: dict[int, int]) -> pa.Table:
    """First two principal components of the vectors, and who was chosen."""
    centred = vectors - vectors.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    places = centred @ axes[:2].T
    places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    columns = {
        "id": [record.id for record in records],
        "x": places[:, 0],
        "y": places[:, 1],
        "cluster": pa.array(clusters, pa.int64()),
        "kept": [row in ranks for row in range(len(records))],
    }
    return pa.table(columns)
