"""The stages `prompts` and `generate`."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

from llmdistill.config import Generate, Pipeline
from llmdistill.engines.base import Completion, Request, Sampling
from llmdistill.engines.resume import LazyEngine, answer_of, ask, model_parts, usage_of
from llmdistill.engines.terms import check_terms
from llmdistill.generate.prompts import PromptSet, input_hashes, read_prompts
from llmdistill.generate.replies import with_answer
from llmdistill.record import Record, Reject, TeacherInfo
from llmdistill.run.digest import Parts, digest_of, flatten
from llmdistill.run.journal import Journal
from llmdistill.run.manifest import Counts, Manifest
from llmdistill.run.stage import (
    Outcome,
    Stage,
    begin,
    inputs_of,
    num_records,
    read_shards,
    write_part,
    write_records,
)
from llmdistill.templates import TeacherTemplate, load_template

HELD_OUT = "held_out.parquet"


def read(pipeline: Pipeline, *, fresh: bool = False) -> Manifest:
    """Stage `prompts`: read the prompt file into Records, hold some out, set bad rows aside."""
    parts = {**flatten(pipeline.prompts.digest_view(), "prompts."), **input_hashes(pipeline.prompts)}
    parts["generate.shard_size"] = pipeline.generate.shard_size
    stage = begin(pipeline.run_path, "prompts", parts)
    if isinstance(stage, Manifest):
        return stage
    found = read_prompts(pipeline.prompts)
    size = pipeline.generate.shard_size
    for index, start in enumerate(range(0, len(found.pool), size)):
        write_part(stage, index, found.pool[start : start + size])
    write_records(stage.dir / HELD_OUT, found.held_out)
    reasons = stage.write_rejects(found.rejects)
    return stage.finish(_counts(found, reasons), metrics={"held_out": len(found.held_out)})


def _counts(found: PromptSet, reasons: dict[str, int]) -> Counts:
    """Held-out prompts are kept, not rejected: they go to `evaluate` instead of `generate`."""
    kept = len(found.pool) + len(found.held_out)
    return Counts(found.num_rows, kept, len(found.rejects), reasons=reasons)


def run(pipeline: Pipeline, *, fresh: bool = False, retry_failed: bool = False) -> Manifest:
    """Stage `generate`: the teacher's rationale and answer for every prompt of the pool.

    Raises:
        ConfigError: the teacher's terms restrict training on its answers, and nobody has accepted them.
        BudgetError, TryLaterError, ServerError: it had to stop; the answers so far are kept.
    """
    asker = _Asker.of(pipeline)
    # Only what changes the answers costs anything to change; how they are parsed does not.
    guard = tuple(asker.asked)
    parts = {
        **flatten(pipeline.generate.digest_view(), "generate."),
        **asker.asked,
        **inputs_of(pipeline.run_path, "prompts"),
    }
    stage = begin(pipeline.run_path, "generate", parts, guard=guard, fresh=fresh, retry_failed=retry_failed)
    if isinstance(stage, Manifest):
        return stage
    check_terms(pipeline.teacher)
    started = time.monotonic()
    with stage.journal(asker.asked) as journal:
        failed = asker.ask(_pool(pipeline), journal, num_records(pipeline.run_path, "prompts"))
        shards = read_shards(pipeline.run_path, "prompts")
        counts = stage.run_shards(shards, lambda records: asker.read(records, journal, failed))
        ids = (record.id for record in _pool(pipeline))
        return stage.finish(counts, usage_of(journal, ids, time.monotonic() - started))


def ask_sample(pipeline: Pipeline, num: int) -> list[Completion]:
    """The teacher's answers to `num` prompts drawn at random; they are kept for the stage, which asks for the rest.

    Reads the prompts first if that has not been done.
    """
    read(pipeline)
    check_terms(pipeline.teacher)
    asker = _Asker.of(pipeline)
    pool = list(_pool(pipeline))
    records = random.Random(pipeline.seed).sample(pool, min(num, len(pool)))
    with _journal(pipeline, asker) as journal:
        failed = asker.ask(records, journal, len(records))
        return [answer_of(record.id, journal, failed) for record in records]


def answered(pipeline: Pipeline) -> list[Completion]:
    """The teacher's answers that are there already under these settings, in the order in which they came."""
    asker = _Asker.of(pipeline)
    if not (pipeline.run_path / "generate" / "journal" / f"{digest_of(asker.asked)[:16]}.jsonl").exists():
        return []
    with _journal(pipeline, asker) as journal:
        return [answer_of(row["key"], journal, {}) for row in journal.rows()]


def _journal(pipeline: Pipeline, asker: _Asker) -> Journal:
    return Stage(pipeline.run_path, "generate", {}).journal(asker.asked)


def _pool(pipeline: Pipeline) -> Iterator[Record]:
    """Records of the stage `prompts`, one shard in memory at a time."""
    return (record for records in read_shards(pipeline.run_path, "prompts") for record in records)


@dataclass(frozen=True)
class _Asker:
    """Asks the teacher and reads its replies into Records.

    Attributes:
        asked: everything that the teacher's answers depend on.
    """

    settings: Generate
    template: TeacherTemplate
    sampling: Sampling
    engine: LazyEngine
    prefill: str
    asked: Parts
    sampling_digest: str

    @classmethod
    def of(cls, pipeline: Pipeline) -> _Asker:
        """From a pipeline's settings; nothing is loaded yet."""
        template, template_hash = load_template(pipeline.generate.template, TeacherTemplate)
        settings, engine = pipeline.generate, LazyEngine.of(pipeline, pipeline.teacher, "generate")
        sampling = Sampling(
            settings.max_new_tokens, settings.temperature, settings.top_p, settings.repetition_penalty, pipeline.seed
        )
        asked: Parts = {
            **flatten(asdict(sampling), "generate."),
            **model_parts("teacher", pipeline.teacher, engine.source),
            "generate.template_sha256": template_hash,
        }
        prefill = template.prefill if pipeline.teacher.can_prefill else ""
        return cls(settings, template, sampling, engine, prefill, asked, digest_of(asked)[:16])

    def ask(self, records: Iterable[Record], journal: Journal, total: int) -> dict[str, Completion]:
        """Have all records answered in the journal; gives the answers that failed."""
        requests = (
            Request(record.id, self.template.ask(record.prompt), self.sampling, prefill=self.prefill)
            for record in records
        )
        try:
            return ask(requests, journal, self.engine, "generate", total)
        finally:
            self.engine.close()

    def read(self, records: list[Record], journal: Journal, failed: dict[str, Completion]) -> Outcome:
        """What became of the records of one shard."""
        outcome = Outcome()
        for record in records:
            completion = answer_of(record.id, journal, failed)
            asked = replace(record, teacher=self._teacher_info(completion))
            read = with_answer(asked, completion, self.settings, self.template, self.prefill)
            if isinstance(read, Reject):
                outcome.rejected.append(read)
            else:
                outcome.kept.append(read)
        return outcome

    def _teacher_info(self, completion: Completion) -> TeacherInfo:
        return TeacherInfo(
            model=self.engine.source.name,
            revision=self.engine.source.revision,
            sampling_digest=self.sampling_digest,
            finish_reason=completion.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
            cost=completion.cost,
        )
