"""The stage `filter`: format checks first, then the judge on what passed them."""

from __future__ import annotations

import time
from dataclasses import replace

from llmdistill.config import Judge, Model, Pipeline
from llmdistill.engines.base import Request
from llmdistill.engines.resume import LazyEngine, complete_all, find, model_parts, usage_of
from llmdistill.filter.checks import failed_check
from llmdistill.filter.judge import judge_request, verdict_of
from llmdistill.record import Record, Reject
from llmdistill.run.digest import Parts, flatten
from llmdistill.run.journal import Journal
from llmdistill.run.manifest import Manifest, Usage
from llmdistill.run.stage import Outcome, begin, inputs_of, read_shards
from llmdistill.templates import Rubric, load_template

_CHARS_PER_TOKEN = 4


def run(pipeline: Pipeline, *, fresh: bool = False) -> Manifest:
    """Keep the answers that pass the checks and that the judge scores at least `filter.judge.min_score`."""
    judge = _open_judge(pipeline)
    parts: Parts = {
        **flatten(pipeline.filter.digest_view(), "filter."),
        "filter.language": pipeline.language,
        **(judge.parts if judge else {}),
        **inputs_of(pipeline.run_path, "generate"),
    }
    stage = begin(pipeline.run_path, "filter", parts, fresh=fresh)
    if isinstance(stage, Manifest):
        return stage
    shards = list(read_shards(pipeline.run_path, "generate"))
    if judge is None:
        return stage.finish(stage.run_shards(shards, lambda records: _check(records, pipeline)))
    started = time.monotonic()
    try:
        with stage.journal(judge.parts) as journal:
            counts = stage.run_shards(shards, lambda records: judge.judge(_check(records, pipeline), journal))
            return stage.finish(counts, judge.usage(shards, journal, time.monotonic() - started))
    finally:
        judge.engine.close()


class _JudgeAtWork:
    """A rubric and the engine that answers it. Its journal does not depend on the threshold."""

    def __init__(self, settings: Judge, model: Model) -> None:
        self.settings = settings
        self.rubric, self.rubric_hash = load_template(settings.rubric, Rubric)
        self.engine = LazyEngine(model, find(model))
        self.parts: Parts = {
            **model_parts("filter.judge.by", model, self.engine.source),
            "filter.judge.rubric_sha256": self.rubric_hash,
            "filter.judge.max_answer_tokens": settings.max_answer_tokens,
        }

    def judge(self, checked: Outcome, journal: Journal) -> Outcome:
        """Add a verdict to each record that passed the checks, and reject those with a low one."""
        requests = [self._request(record) for record in checked.kept]
        found = complete_all(requests, journal, self.engine.get, "judge")
        outcome = Outcome(rejected=list(checked.rejected))
        for record, request in zip(checked.kept, requests, strict=True):
            verdict = verdict_of(found[request.id], self.rubric, self.engine.source.name, self.rubric_hash[:16])
            judged = replace(record, verdicts=[*record.verdicts, verdict])
            reject = _judgement(judged, self.settings.min_score)
            if reject:
                outcome.rejected.append(reject)
            else:
                outcome.kept.append(judged)
        return outcome

    def _request(self, record: Record) -> Request:
        return judge_request(record, self.rubric, self.settings.max_answer_tokens * _CHARS_PER_TOKEN)

    def usage(self, shards: list[list[Record]], journal: Journal, seconds: float) -> Usage:
        """What judging took, whichever process asked."""
        ids = (self._request(record).id for records in shards for record in records)
        return usage_of(journal, ids, seconds)


def _open_judge(pipeline: Pipeline) -> _JudgeAtWork | None:
    settings, model = pipeline.filter.judge, pipeline.judge_model
    return _JudgeAtWork(settings, model) if settings and model else None


def _check(records: list[Record], pipeline: Pipeline) -> Outcome:
    """The format checks."""
    outcome = Outcome()
    for record in records:
        failed = failed_check(record, pipeline.filter.checks, pipeline.language)
        if failed:
            outcome.rejected.append(Reject(record, "filter", *failed))
        else:
            outcome.kept.append(record)
    return outcome


def _judgement(record: Record, min_score: float) -> Reject | None:
    score = record.verdicts[-1].score
    if score is None:
        return Reject(record, "filter", "judge_failed", record.verdicts[-1].outcome)
    if score < min_score:
        return Reject(record, "filter", "low_score", f"{score:.2f} < {min_score}")
    return None
