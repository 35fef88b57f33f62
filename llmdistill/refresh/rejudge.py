"""Whether the judge moved: a sample of old answers judged once more, by the same panel, beside what was said then.

The journal lies in `<run>/drift/`, which no version takes over from another: each version asks anew, and once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from llmdistill.config import Pipeline
from llmdistill.errors import BudgetError, ModelError, ServerError, TryLaterError
from llmdistill.filter.panel import Judged, Panel, combined, judge_of
from llmdistill.inspect.rows import find_rows
from llmdistill.record import SCHEMA, Record, from_row, record_id
from llmdistill.refresh.pools import Answers, among
from llmdistill.refresh.two_samples import mean_interval, shift_test
from llmdistill.run.manifest import Usage, read_manifest
from llmdistill.run.stage import Stage

FOLDER = "drift"

_SAME = 1e-6
"""Scores nearer than this are equal: a model's probabilities differ by rounding from run to run."""
_NOT_FATAL = (ServerError, TryLaterError, BudgetError, ModelError)


def rejudge(pipeline: Pipeline, parent_dir: Path, before: Answers, now: Answers) -> dict[str, Any] | None:
    """Ask the panel about old answers once more; None without a judge.

    A judge that does not answer is told of in `error`; what it said so far is kept, and the same call goes on there.

    Args:
        before: answers of the parent's filter.
        now: those of this version's.
    """
    if pipeline.filter.judge is None:
        return None
    found: dict[str, Any] = {"asked": 0, "compared": 0, "failed": 0, "p": None, "error": None, "changed": False}
    if not pipeline.refresh.rejudged:
        return found | {"usage": asdict(Usage())}
    records, old = _sample(pipeline, parent_dir, before, now)
    if not records:
        return found | {"usage": asdict(Usage())}
    started = time.monotonic()
    with Panel(pipeline, where=FOLDER) as panel:
        try:
            panel.ask(Stage(pipeline.run_path, FOLDER, panel.parts), lambda: [records], len(records))
            found |= _compared(pipeline, panel, records, old)
        except _NOT_FATAL as error:
            found["error"] = str(error)
        usage = panel.usage(time.monotonic() - started)
    return found | {"asked": len(records), "usage": asdict(usage)}


def _sample(pipeline: Pipeline, parent_dir: Path, before: Answers, now: Answers) -> tuple[list[Record], list[Record]]:
    """Answers that were judged and still stand as they did: as they are now, and as they were."""
    places = np.flatnonzero(~np.isnan(before.scores) & among(before.ids, now.ids))
    wanted, size = pipeline.refresh.rejudged, _num_together(pipeline)
    # Some may have another answer by now.
    drawn = np.random.default_rng(pipeline.seed).permutation(places)[: 2 * wanted]
    ids = before.ids.take(drawn).to_pylist()
    then = _records(parent_dir, ids)
    if size > 1:
        ids = list(dict.fromkeys(id_ for found in ids for id_ in _together(then[found], size)))
        then = _records(parent_dir, ids)
    today = _records(pipeline.run_path, ids)
    same = _unchanged(ids, then, today, wanted, size > 1)
    return [today[id_] for id_ in same], [then[id_] for id_ in same]


def _unchanged(
    ids: Sequence[str], then: Mapping[str, Record], today: Mapping[str, Record], wanted: int, together: bool
) -> list[str]:
    """At most `wanted` of the ids whose answers stand; all answers to a prompt or none, if they are judged together."""
    judged = [id_ for id_ in ids if id_ in then and then[id_].score is not None]
    same: list[str] = []
    for _, group in groupby(judged, key=lambda id_: repr(then[id_].prompt) if together else id_):
        found = list(group)
        stand = all(id_ in today and _judged_text(then[id_]) == _judged_text(today[id_]) for id_ in found)
        if stand and (not same or len(same) + len(found) <= wanted):
            same += found
    return same


def _num_together(pipeline: Pipeline) -> int:
    """How many answers to one prompt must be judged together."""
    settings = judge_of(pipeline)
    together = settings.form == "pairwise" and settings.against == "samples"
    return pipeline.generate.samples.n if together else 1


def _together(record: Record, size: int) -> list[str]:
    """Ids of all answers to a record's prompt."""
    return [record_id(record.prompt, sample) for sample in range(size)]


def _records(run_dir: Path, ids: Sequence[str]) -> dict[str, Record]:
    return {id_: from_row(row) for id_, row in find_rows(run_dir, "filter", ids, SCHEMA.names).items()}


def _judged_text(record: Record) -> tuple[Any, ...]:
    return record.prompt, record.answer, record.rationale, record.reference


def _compared(pipeline: Pipeline, panel: Panel, records: list[Record], old: list[Record]) -> dict[str, Any]:
    judged = panel.read(records)
    scores = np.array([[np.nan if score is None else score for score in one.scores] for one in judged])
    new, before = combined(scores, panel.weights), np.array([one.score for one in old], dtype=np.float64)
    read = ~np.isnan(new)
    failed = Counter(one.outcome for one, good in zip(judged, read, strict=True) if not good)
    errors = sorted({one.error for one in judged if one.error})
    changed = not all(_same_judges(one, then) for one, then in zip(judged, old, strict=True))
    found = {
        "compared": int(read.sum()),
        "failed": int((~read).sum()),
        "outcomes": dict(sorted(failed.items())),
        "error": errors[0] if errors else None,
        "changed": changed,
    }
    return found | (_shift(before[read], new[read], _threshold(pipeline)) if read.any() else {})


def _same_judges(judged: Judged, then: Record) -> bool:
    """Whether everyone who judged now judged then, by the same rubric."""
    known = {(verdict.judge, verdict.rubric_hash, verdict.criterion) for verdict in then.verdicts}
    return all((verdict.judge, verdict.rubric_hash, verdict.criterion) in known for verdict in judged.verdicts)


def _threshold(pipeline: Pipeline) -> float | None:
    """The lowest mean score that is kept; None where jurors vote."""
    settings, manifest = judge_of(pipeline), read_manifest(pipeline.run_path / "filter")
    if manifest is None or (settings.combine == "vote" and settings.jury):
        return None
    return manifest.metrics.get("min_score", settings.fixed_min_score)


def _shift(old: np.ndarray, new: np.ndarray, threshold: float | None) -> dict[str, Any]:
    """Paired: how far the scores moved, how many are what they were, how many answers would be decided otherwise."""
    differences = np.where(np.abs(new - old) <= _SAME, 0.0, new - old)
    shift = mean_interval(differences)
    flipped = None if threshold is None else float(((old >= threshold) != (new >= threshold)).mean())
    return {
        "old_mean": float(old.mean()),
        "new_mean": float(new.mean()),
        "shift": shift.value,
        "low": shift.low,
        "high": shift.high,
        "equal": float((differences == 0).mean()),
        "flipped": flipped,
        "p": shift_test(differences).p,
    }
