"""Calibration: has the judge read answers that people have judged, and finds the threshold for a wanted precision.

    <run>/calibration/journal/*.jsonl    what the judge said; another target or threshold asks nothing again
    <run>/calibration/calibration.json   the threshold, what it rests on, and how far the judge agrees with people

A stored threshold is used only with the very judges, rubrics and gold set that it was found with.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from llmdistill.config import Calibration, Judge, Pipeline
from llmdistill.errors import ConfigError, StageError
from llmdistill.filter.agreement import (
    Cut,
    Estimate,
    Floats,
    auc,
    choose,
    cross_validated,
    cuts,
    estimate,
    kappa,
    partial_spearman,
    quadratic_kappa,
    spearman,
    wilson,
)
from llmdistill.filter.gold import MIN_ROWS, Gold, read_gold
from llmdistill.filter.panel import Judged, Panel, combined, load_rubrics
from llmdistill.run.digest import Parts
from llmdistill.run.files import read_json, write_json
from llmdistill.run.stage import Stage
from llmdistill.templates import Rubric

STAGE = "calibration"
FILE_NAME = "calibration.json"
MIN_KEPT = 5
"""A threshold that keeps fewer gold answers says nothing about its precision."""

_HALF = 0.5 * (1 + 1e-9)
"""A majority is more than half of the weight, rounding aside."""

Stored = dict[str, Any]


@dataclass(frozen=True)
class Scored:
    """The gold answers to which the judge gave a score, in the order of the gold set; all arrays are [rows].

    Attributes:
        lengths: characters of the answers.
    """

    scores: Floats
    labels: Floats
    good: Floats
    lengths: Floats


def calibrate(pipeline: Pipeline, fresh: bool = False) -> Stored:
    """What `calibration.json` holds: made now, unless it is there and made from the same.

    `threshold` is the lowest score to keep an answer from. Whoever calls holds the run's lock.

    Args:
        fresh: make it over from the journalled judgements.

    Raises:
        ConfigError: no gold set is configured, the judge could not be read, or no threshold is precise enough.
        InputError: the gold set cannot be used.
        StageError: some answers got no judgement; the same command asks for them again.
    """
    judge = pipeline.filter.judge
    if judge is None or judge.calibration is None:
        advice = "give --gold FILE, or set filter.judge.calibration.gold"
        raise ConfigError("there is no gold set to calibrate the judge with", where="filter.judge", do=advice)
    gold = read_gold(judge.calibration, judge)
    path = pipeline.run_path / STAGE / FILE_NAME
    with contextlib.closing(Panel(pipeline, where=STAGE)) as panel:
        parts = _parts(panel, judge, judge.calibration, gold)
        found = None if fresh else _stored(path, parts)
        if found is None:
            judged = _ask(panel, Stage(pipeline.run_path, STAGE, parts), gold)
            found = _calibrated(pipeline, judge, judge.calibration, gold, judged, panel.weights) | {"parts": parts}
            write_json(path, found)
    return found


def _parts(panel: Panel, judge: Judge, settings: Calibration, gold: Gold) -> Parts:
    """All that the threshold depends on."""
    return {
        **panel.parts,
        "filter.judge.weights": panel.weights,
        "filter.judge.combine": judge.combine,
        "calibration.gold_sha256": gold.sha256,
        "calibration.precision": settings.precision,
        "calibration.good": settings.good if gold.are_scores else None,
    }


def _stored(path: Path, parts: Parts) -> Stored | None:
    """The stored calibration, if it was made with these parts."""
    found = read_json(path) if path.exists() else None
    return found if isinstance(found, dict) and found.get("parts") == parts else None


def _ask(panel: Panel, stage: Stage, gold: Gold) -> list[Judged]:
    panel.ask(stage, lambda: [gold.records], len(gold.records))
    judged = panel.read(gold.records)
    errors = [item.error for item in judged if item.error]
    if errors:
        what = f"the judge gave no answer on {len(errors)} of {len(judged)} gold rows ({errors[0]})"
        raise StageError(what, where=stage.dir, do="run the same command again, which asks only for these")
    return judged


def _calibrated(
    pipeline: Pipeline, judge: Judge, settings: Calibration, gold: Gold, judged: list[Judged], weights: list[float]
) -> Stored:
    outcomes = outcomes_of(judged)
    scored = _scored(gold, total_scores(judged, weights, judge.combine))
    _check_scored(scored, len(judged), outcomes, judge)
    cut = choose(scored.scores, scored.good, settings.precision, MIN_KEPT)
    if cut is None:
        raise _out_of_reach(scored, settings)
    measures = {
        **_at_threshold(scored, cut, settings.precision),
        **_of_scores(scored, gold.are_scores and _on_one_scale(pipeline, gold.labels)),
        **_of_judgements(judged, outcomes, judge.form),
    }
    return {
        "threshold": cut.threshold,
        "target_precision": settings.precision,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "gold": {"file": settings.gold, "sha256": gold.sha256},
        "judges": _judges(judged),
        "rows": len(judged),
        "good": int(gold.good.sum()),
        "scored": len(scored.scores),
        "kept": cut.kept,
        "outcomes": outcomes,
        "measures": {name: _plain(value) for name, value in measures.items()},
    }


def total_scores(judged: Sequence[Judged], weights: Sequence[float], combine: str) -> Floats:
    """[records] what the jurors' scores come to; nan where too few have one.

    For votes it is the highest threshold at which the majority votes for the record, so that a threshold keeps what
    the vote at this threshold keeps.
    """
    scores = np.array([[math.nan if score is None else score for score in item.scores] for item in judged])
    totals = combined(scores, weights)
    if combine == "mean":
        return totals
    voted = [_majority(row[~np.isnan(row)], np.asarray(weights)[~np.isnan(row)]) for row in scores]
    return np.where(np.isnan(totals), math.nan, voted)


def _majority(scores: Floats, weights: Floats) -> float:
    order = np.argsort(-scores)
    votes = np.cumsum(weights[order])
    return float(scores[order][votes > _HALF * weights.sum()][0]) if len(scores) else math.nan


def _scored(gold: Gold, scores: Floats) -> Scored:
    known = ~np.isnan(scores)
    lengths = np.array([len(record.answer or "") for record in gold.records], dtype=np.float64)
    return Scored(scores[known], gold.labels[known], gold.good[known], lengths[known])


def _check_scored(scored: Scored, num_rows: int, outcomes: dict[str, int], judge: Judge) -> None:
    """Raise `ConfigError` where too few answers have a score to say anything."""
    if len(scored.scores) >= MIN_ROWS and 0 < scored.good.sum() < len(scored.good):
        return
    said = ", ".join(f"{outcome} {count}" for outcome, count in outcomes.items())
    what = f"the judge scored {len(scored.scores)} of {num_rows} gold rows ({said})"
    if len(scored.scores) >= MIN_ROWS:
        what += f", and all of those are {'good' if scored.good.all() else 'bad'}"
    raise ConfigError(what, where=judge.rubric, do="take another judge, or ask for the verdict more clearly")


def _out_of_reach(scored: Scored, settings: Calibration) -> ConfigError:
    """No threshold is precise enough: what there is instead."""
    best = max(cuts(scored.scores, scored.good, MIN_KEPT), key=lambda cut: (cut.precision, cut.kept))
    chance = float(auc(scored.scores, scored.good, np.ones((1, len(scored.scores))))[0])
    what = (
        f"no threshold keeps {MIN_KEPT} gold answers or more at precision {settings.precision:g}: the best is "
        f"{best.precision:.3f} at {best.threshold:.4g} ({best.good} of {best.kept} are good, AUC {chance:.2f})"
    )
    advice = "take a better judge or rubric, lower filter.judge.calibration.precision, or add gold answers"
    return ConfigError(what, where=settings.gold, do=advice)


def _at_threshold(scored: Scored, cut: Cut, precision: float) -> dict[str, Estimate | None]:
    """What the threshold does to the gold answers. All but the cross-validated figure look a little too good."""
    keep = (scored.scores >= cut.threshold).astype(np.float64)
    held_out = cross_validated(scored.scores, scored.good, precision, MIN_KEPT)
    return {
        "precision": wilson(cut.good, cut.kept),
        "precision_cross_validated": wilson(*held_out),
        "recall": wilson(cut.good, int(scored.good.sum())),
        "accuracy": wilson(int((keep == scored.good).sum()), len(keep)),
        "kappa": estimate(kappa, keep, scored.good),
    }


def _of_scores(scored: Scored, on_one_scale: bool) -> dict[str, Estimate | None]:
    """What does not depend on a threshold."""
    return {
        "quadratic_kappa": estimate(quadratic_kappa, scored.scores, scored.labels) if on_one_scale else None,
        "spearman": estimate(spearman, scored.scores, scored.labels),
        "auc": estimate(auc, scored.scores, scored.good),
        "length_bias": estimate(partial_spearman, scored.scores, scored.lengths, scored.labels),
    }


def _of_judgements(judged: Sequence[Judged], outcomes: dict[str, int], form: str) -> dict[str, Estimate | None]:
    scores = [score for item in judged for score in item.scores]
    read = outcomes.get("parsed", 0) + outcomes.get("flipped", 0)
    return {
        "failures": wilson(sum(score is None for score in scores), len(scores)),
        "flips": wilson(outcomes.get("flipped", 0), read) if form == "pairwise" else None,
    }


def _on_one_scale(pipeline: Pipeline, labels: Floats) -> bool:
    """Whether people gave scores in the range that the judge's rubric has."""
    template = load_rubrics(pipeline)[0][0]
    if not isinstance(template, Rubric):
        return False
    choices = template.scores.values()
    return bool(min(choices) <= labels.min() and labels.max() <= max(choices))


def outcomes_of(judged: Sequence[Judged]) -> dict[str, int]:
    """How many verdicts came out how, the most frequent first."""
    return dict(Counter(verdict.outcome for item in judged for verdict in item.verdicts).most_common())


def _judges(judged: Sequence[Judged]) -> list[dict[str, str]]:
    """Who judged by which rubric, each once."""
    pairs = {(verdict.judge, verdict.rubric_hash): None for item in judged for verdict in item.verdicts}
    return [{"model": judge, "rubric_hash": rubric} for judge, rubric in pairs]


def _plain(value: Estimate | None) -> dict[str, float | None] | None:
    """An estimate for JSON, which has no nan; None when the measure does not apply."""
    if value is None:
        return None
    numbers = {"value": value.value, "low": value.low, "high": value.high}
    return {name: None if math.isnan(number) else number for name, number in numbers.items()}
