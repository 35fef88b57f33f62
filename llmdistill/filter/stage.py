"""The stage `filter`: format checks first, then the judge on what passed them."""

from __future__ import annotations

import time
from dataclasses import replace

from llmdistill.config import Judge, Model, Pipeline
from llmdistill.engines.base import Completion
from llmdistill.engines.resume import LazyEngine, complete_all, completions_of, find, model_parts, usage_of
from llmdistill.filter.checks import failed_check
from llmdistill.filter.judge import judge_request, verdict_of
from llmdistill.record import Record, Reject
from llmdistill.run.digest import Parts, flatten
from llmdistill.run.manifest import Manifest
from llmdistill.run.stage import Outcome, Stage, begin, inputs_of, read_shards
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
    started = time.monotonic()
    try:
        shards = list(read_shards(pipeline.run_path, "generate"))
        counts = stage.run_shards(shards, lambda index, records: _filter_shard(pipeline, judge, stage, index, records))
        used = judge.all_completions(shards, stage) if judge else []
        return stage.finish(counts, usage_of(used, time.monotonic() - started))
    finally:
        if judge:
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
        self.completions: dict[int, list[Completion]] = {}

    def judge(self, records: list[Record], stage: Stage, index: int) -> list[Record]:
        """The records with one verdict more each."""
        max_chars = self.settings.max_answer_tokens * _CHARS_PER_TOKEN
        requests = [judge_request(record, self.rubric, max_chars) for record in records]
        with stage.journal(self._depends_on(stage), index) as journal:
            found = complete_all(requests, journal, self.engine.get, "judge")
        self.completions[index] = list(found.values())
        name, rubric_hash = self.engine.source.name, self.rubric_hash[:16]
        return [
            replace(
                record,
                verdicts=[*record.verdicts, verdict_of(found[record.id], self.rubric, name, rubric_hash)],
            )
            for record in records
        ]

    def _depends_on(self, stage: Stage) -> Parts:
        """Keyed by the records too: another answer to the same prompt is another judgement."""
        return {**self.parts, "input": stage.parts["input.generate"]}

    def all_completions(self, shards: list[list[Record]], stage: Stage) -> list[Completion]:
        """Every judgement of the stage, those of shards that an earlier process finished included."""
        for index in set(range(len(shards))) - set(self.completions):
            ids = (record.id for record in shards[index])
            self.completions[index] = completions_of(stage, self._depends_on(stage), index, ids)
        return [completion for found in self.completions.values() for completion in found]


def _open_judge(pipeline: Pipeline) -> _JudgeAtWork | None:
    settings, model = pipeline.filter.judge, pipeline.judge_model
    return _JudgeAtWork(settings, model) if settings and model else None


def _filter_shard(
    pipeline: Pipeline, judge: _JudgeAtWork | None, stage: Stage, index: int, records: list[Record]
) -> Outcome:
    outcome = Outcome()
    for record in records:
        failed = failed_check(record, pipeline.filter.checks, pipeline.language)
        if failed:
            outcome.rejected.append(Reject(record, "filter", *failed))
        else:
            outcome.kept.append(record)
    if judge is None:
        return outcome
    judged = judge.judge(outcome.kept, stage, index)
    outcome.kept = []
    for record in judged:
        reject = _judgement(record, judge.settings.min_score)
        if reject:
            outcome.rejected.append(reject)
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
