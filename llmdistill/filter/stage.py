"""The stage `filter`: format checks first, then the judge on what passed them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from llmdistill.config import Judge, Model, Pipeline
from llmdistill.engines.base import Completion, Request
from llmdistill.engines.resume import LazyEngine, answer_of, ask, model_parts, usage_of
from llmdistill.filter.checks import failed_check
from llmdistill.filter.judge import judge_request, verdict_of
from llmdistill.record import Record, Reject
from llmdistill.run.digest import Parts, flatten
from llmdistill.run.journal import Journal
from llmdistill.run.manifest import Manifest
from llmdistill.run.stage import FAILED, Outcome, begin, inputs_of, num_records, read_shards
from llmdistill.templates import Rubric, load_template

_CHARS_PER_TOKEN = 4


def run(pipeline: Pipeline, *, fresh: bool = False, retry_failed: bool = False) -> Manifest:
    """Keep the answers that pass the checks and that the judge scores at least `filter.judge.min_score`."""
    judge = _open_judge(pipeline)
    parts: Parts = {
        **flatten(pipeline.filter.digest_view(), "filter."),
        "filter.language": pipeline.language,
        **(judge.parts if judge else {}),
        **inputs_of(pipeline.run_path, "generate"),
    }
    stage = begin(pipeline.run_path, "filter", parts, fresh=fresh, retry_failed=retry_failed)
    if isinstance(stage, Manifest):
        return stage
    if judge is None:
        shards = read_shards(pipeline.run_path, "generate")
        return stage.finish(stage.run_shards(shards, lambda records: _check(records, pipeline)))
    started = time.monotonic()
    with stage.journal(judge.parts) as journal:
        failed = judge.ask(_checked(pipeline), journal, num_records(pipeline.run_path, "generate"))
        shards = read_shards(pipeline.run_path, "generate")
        counts = stage.run_shards(shards, lambda records: judge.read(_check(records, pipeline), journal, failed))
        usage = usage_of(journal, judge.ids(_checked(pipeline)), time.monotonic() - started)
        return stage.finish(counts, usage)


class _JudgeAtWork:
    """A rubric and the engine that answers it. Its journal does not depend on the threshold."""

    def __init__(self, settings: Judge, model: Model, pipeline: Pipeline) -> None:
        self.settings = settings
        self.rubric, self.rubric_hash = load_template(settings.rubric, Rubric)
        if not model.can_prefill:
            self.rubric = self.rubric.model_copy(update={"prefill": ""})
        self.engine = LazyEngine.of(pipeline, model, "filter")
        self.parts: Parts = {
            **model_parts("filter.judge.by", model, self.engine.source),
            "filter.judge.rubric_sha256": self.rubric_hash,
            "filter.judge.max_answer_tokens": settings.max_answer_tokens,
        }

    def ask(self, records: Iterable[Record], journal: Journal, total: int) -> dict[str, Completion]:
        """Have all records judged in the journal; gives the judgements that failed."""
        try:
            return ask((self._request(record) for record in records), journal, self.engine, "judge", total)
        finally:
            self.engine.close()

    def read(self, checked: Outcome, journal: Journal, failed: dict[str, Completion]) -> Outcome:
        """Add a verdict to each record that passed the checks, and reject those with a low one."""
        outcome = Outcome(rejected=list(checked.rejected))
        for record in checked.kept:
            completion = answer_of(self._request(record).id, journal, failed)
            if completion.finish_reason == "failed":
                outcome.rejected.append(Reject(record, "filter", FAILED, completion.error))
                continue
            verdict = verdict_of(completion, self.rubric, self.engine.source.name, self.rubric_hash[:16])
            judged = replace(record, verdicts=[*record.verdicts, verdict])
            reject = _judgement(judged, self.settings.min_score)
            if reject:
                outcome.rejected.append(reject)
            else:
                outcome.kept.append(judged)
        return outcome

    def ids(self, records: Iterable[Record]) -> Iterator[str]:
        """Journal keys of these records' judgements."""
        return (self._request(record).id for record in records)

    def _request(self, record: Record) -> Request:
        return judge_request(record, self.rubric, self.settings.max_answer_tokens * _CHARS_PER_TOKEN)


def _open_judge(pipeline: Pipeline) -> _JudgeAtWork | None:
    settings, model = pipeline.filter.judge, pipeline.judge_model
    return _JudgeAtWork(settings, model, pipeline) if settings and model else None


def _checked(pipeline: Pipeline) -> Iterator[Record]:
    """Records that pass the checks, one shard in memory at a time."""
    for records in read_shards(pipeline.run_path, "generate"):
        yield from _check(records, pipeline).kept


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
