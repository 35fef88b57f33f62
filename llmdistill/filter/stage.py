"""The stage `filter`: format checks first, then the verifier, then the judges on what passed both, then the threshold.

What is said about an answer is kept apart from what is made of it (`judged`, `threshold`): another threshold asks
nobody again.
"""

from __future__ import annotations

import time
from dataclasses import replace

from llmdistill.config import Pipeline
from llmdistill.errors import UsageError
from llmdistill.filter.apart import judge_apart
from llmdistill.filter.earlier import ROUND, begin_round, earlier_of, round_of
from llmdistill.filter.judged import JudgedStore, judge_all
from llmdistill.filter.panel import Panel
from llmdistill.filter.threshold import Rule, apply
from llmdistill.run.digest import Parts, digest_of, flatten
from llmdistill.run.executor import is_apart
from llmdistill.run.manifest import Manifest
from llmdistill.run.shards import absorb
from llmdistill.run.stage import Stage, begin, inputs_of, table_readers
from llmdistill.verify.records import RecordVerifier

_BEFORE_THRESHOLD = ("filter.checks", "filter.verify", "filter.language", ROUND, "input.")
"""Settings that what is said about an answer depends on, beside the panel's own."""


def run(pipeline: Pipeline, *, fresh: bool = False, retry_failed: bool = False, rejudge: bool = False) -> Manifest:
    """Keep the answers that pass the checks, are right, and that the judges score high enough.

    Args:
        rejudge: judge everything once more; earlier verdicts stay on the records, in front of the new ones.
    """
    if rejudge:
        if pipeline.filter.judge is None:
            raise UsageError(
                "there is no judge to ask again", where="filter.judge", do="set it, or leave --rejudge out"
            )
        begin_round(pipeline.run_path)
    if pipeline.filter.judge is None:
        return _run(pipeline, None, fresh, retry_failed)
    with Panel(pipeline, round_of(pipeline.run_path)) as panel:
        return _run(pipeline, panel, fresh, retry_failed)


def _run(pipeline: Pipeline, panel: Panel | None, fresh: bool, retry_failed: bool) -> Manifest:
    verifier = RecordVerifier(pipeline.filter.verify) if pipeline.filter.verify else None
    rule, calibration = _rule(pipeline, panel, fresh)
    parts = settings_of(pipeline, verifier, panel) | calibration
    stage = begin(pipeline.run_path, "filter", parts, fresh=fresh, retry_failed=retry_failed)
    if isinstance(stage, Manifest):
        return stage
    started = time.monotonic()
    store = store_of(stage, panel)
    if retry_failed and store.num_failed:
        store.reopen()
    if not store.finished:
        absorb(stage)
        judge = judge_apart if is_apart(pipeline.run) else judge_all
        judge(pipeline, stage, store, verifier, panel)
    return _apply(pipeline, stage, store, rule, started)


def settings_of(pipeline: Pipeline, verifier: RecordVerifier | None, panel: Panel | None) -> Parts:
    """Everything that changes the stage's result, but a threshold that is calibrated."""
    number = round_of(pipeline.run_path)
    return {
        **flatten(pipeline.filter.digest_view(), "filter."),
        "filter.language": pipeline.language,
        **(verifier.parts if verifier else {}),
        **(panel.parts if panel else {}),
        **({ROUND: number} if number else {}),
        **inputs_of(pipeline.run_path, "generate"),
    }


def store_of(stage: Stage, panel: Panel | None) -> JudgedStore:
    """Where it lies what is said about the answers."""
    parts = {key: value for key, value in stage.parts.items() if key.startswith(_BEFORE_THRESHOLD)}
    return JudgedStore(stage, parts | (panel.parts if panel else {}))


def _rule(pipeline: Pipeline, panel: Panel | None, fresh: bool) -> tuple[Rule, Parts]:
    """The threshold and, if it is calibrated, what it rests on."""
    settings = pipeline.filter.judge
    if settings is None or panel is None:
        return Rule(0.0, []), {}
    jury = digest_of({**panel.parts, "weights": list(panel.weights)})[:16]
    rule = Rule(settings.fixed_min_score or 0.0, list(panel.weights), settings.combine, jury)
    if settings.fixed_min_score is not None:
        return rule, {}
    from llmdistill.filter.calibration import calibrate

    found = calibrate(pipeline, fresh)
    rests_on = {"filter.judge.threshold": found["threshold"], "filter.judge.calibrated_by": digest_of(found["parts"])}
    return replace(rule, min_score=float(found["threshold"])), rests_on


def _apply(pipeline: Pipeline, stage: Stage, store: JudgedStore, rule: Rule, started: float) -> Manifest:
    """The threshold, on every shard."""
    read = store.reader()
    earlier = earlier_of(pipeline.run_path, stage.parts["input.generate"])
    answers = table_readers(pipeline.run_path, "generate")
    counts = stage.run_tables(answers, lambda index, table: apply(table, read(index, table), rule, earlier))
    usage = replace(store.usage, seconds=round(time.monotonic() - started, 1))
    return stage.finish(counts, usage, {"min_score": rule.min_score} if rule.weights else None)
