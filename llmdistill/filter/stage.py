"""The stage `filter`: format checks first, then the verifier, then the judge on what passed both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from llmdistill.config import Judge, Model, Pipeline
from llmdistill.engines.base import Completion, Request
from llmdistill.engines.resume import LazyEngine, answer_of, ask, model_parts, usage_of
from llmdistill.filter.checks import failed_check
from llmdistill.filter.judge import judge_request, texts_shown, verdict_of
from llmdistill.record import Record, Reject
from llmdistill.run.digest import Parts, flatten
from llmdistill.run.journal import Journal
from llmdistill.run.manifest import Manifest
from llmdistill.run.stage import FAILED, Outcome, Stage, begin, inputs_of, num_records, read_shards
from llmdistill.templates import Rubric, load_template
from llmdistill.verify.records import RecordVerifier

_CHARS_PER_TOKEN = 4

Examine = Callable[[list[Record]], Outcome]
"""All that is done to the records of a shard without a model."""


def run(pipeline: Pipeline, *, fresh: bool = False, retry_failed: bool = False) -> Manifest:
    """Keep the answers that pass the checks, are right, and that the judge scores at least `filter.judge.min_score`."""
    judge = _open_judge(pipeline)
    verifier = RecordVerifier(pipeline.filter.verify) if pipeline.filter.verify else None
    parts: Parts = {
        **flatten(pipeline.filter.digest_view(), "filter."),
        "filter.language": pipeline.language,
        **(verifier.parts if verifier else {}),
        **(judge.parts if judge else {}),
        **inputs_of(pipeline.run_path, "generate"),
    }
    stage = begin(pipeline.run_path, "filter", parts, fresh=fresh, retry_failed=retry_failed)
    if isinstance(stage, Manifest):
        return stage
    with _examining(pipeline, stage, verifier) as examine:
        if judge is None:
            return stage.finish(stage.run_shards(read_shards(pipeline.run_path, "generate"), examine))
        return _judged(pipeline, stage, judge, examine)


def _judged(pipeline: Pipeline, stage: Stage, judge: _JudgeAtWork, examine: Examine) -> Manifest:
    """Have the judge read what passed."""
    started = time.monotonic()
    with stage.journal(judge.parts) as journal:
        failed = judge.ask(_passed(pipeline, examine), journal, num_records(pipeline.run_path, "generate"))
        shards = read_shards(pipeline.run_path, "generate")
        counts = stage.run_shards(shards, lambda records: judge.read(examine(records), journal, failed))
        usage = usage_of(journal, judge.asked, time.monotonic() - started)
        return stage.finish(counts, usage)


class _JudgeAtWork:
    """A rubric and the engine that answers it. Its journal does not depend on the threshold.

    Attributes:
        asked: journal keys of the judgements that `ask` has seen to.
    """

    def __init__(self, settings: Judge, model: Model, pipeline: Pipeline) -> None:
        self.settings = settings
        self.asked: list[str] = []
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
            return ask(self._requests(records), journal, self.engine, "judge", total)
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
            judge = (self.engine.source.name, self.rubric_hash[:16])
            verdict = verdict_of(completion, self.rubric, *judge, shown=texts_shown(record))
            judged = replace(record, verdicts=[*record.verdicts, verdict])
            reject = _judgement(judged, self.settings.fixed_min_score or 0.0)
            if reject:
                outcome.rejected.append(reject)
            else:
                outcome.kept.append(judged)
        return outcome

    def _requests(self, records: Iterable[Record]) -> Iterator[Request]:
        for record in records:
            request = self._request(record)
            self.asked.append(request.id)
            yield request

    def _request(self, record: Record) -> Request:
        return judge_request(record, self.rubric, self.settings.max_answer_tokens * _CHARS_PER_TOKEN)


def _open_judge(pipeline: Pipeline) -> _JudgeAtWork | None:
    settings, model = pipeline.filter.judge, pipeline.judge_model
    return _JudgeAtWork(settings, model, pipeline) if settings and model else None


@contextmanager
def _examining(pipeline: Pipeline, stage: Stage, verifier: RecordVerifier | None) -> Iterator[Examine]:
    """Format checks and, if one is set, the verifier, which is done with all records before a judge is asked."""
    if verifier is None:
        yield lambda records: _check(records, pipeline)
        return
    with stage.journal(verifier.parts) as journal:

        def examine(records: list[Record]) -> Outcome:
            return _verify(_check(records, pipeline), verifier, journal)

        for records in read_shards(pipeline.run_path, "generate"):
            examine(records)
        yield examine


def _passed(pipeline: Pipeline, examine: Examine) -> Iterator[Record]:
    """Records that pass what needs no model, one shard in memory at a time."""
    for records in read_shards(pipeline.run_path, "generate"):
        yield from examine(records).kept


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


def _verify(checked: Outcome, verifier: RecordVerifier, journal: Journal) -> Outcome:
    """The verifier on what passed the checks."""
    outcome = Outcome(rejected=list(checked.rejected))
    for record in checked.kept:
        read = verifier.read(record, journal)
        if isinstance(read, Reject):
            outcome.rejected.append(read)
        else:
            outcome.kept.append(read)
    return outcome


def _judgement(record: Record, min_score: float) -> Reject | None:
    score = record.verdicts[-1].score
    if score is None:
        return Reject(record, "filter", "judge_failed", record.verdicts[-1].outcome)
    if score < min_score:
        return Reject(record, "filter", "low_score", f"{score:.2f} < {min_score}")
    return None
