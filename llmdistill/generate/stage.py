"""The stages `prompts` and `generate`."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace

from llmdistill.config import Pipeline
from llmdistill.engines.base import Completion, Request, Sampling
from llmdistill.engines.resume import LazyEngine, complete_all, find, model_parts, usage_of
from llmdistill.generate.prompts import PromptSet, input_hashes, read_prompts
from llmdistill.generate.replies import split_reply
from llmdistill.record import Record, Reject, TeacherInfo
from llmdistill.run.digest import Parts, digest_of, flatten
from llmdistill.run.journal import Journal
from llmdistill.run.manifest import Counts, Manifest
from llmdistill.run.stage import Outcome, begin, inputs_of, read_shards, write_part, write_records
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


def run(pipeline: Pipeline, *, fresh: bool = False) -> Manifest:
    """Stage `generate`: the teacher's rationale and answer for every prompt of the pool."""
    source = find(pipeline.teacher)
    template, template_hash = load_template(pipeline.generate.template, TeacherTemplate)
    settings = pipeline.generate
    sampling = Sampling(
        settings.max_new_tokens, settings.temperature, settings.top_p, settings.repetition_penalty, pipeline.seed
    )
    asked: Parts = {
        **flatten(asdict(sampling), "generate."),
        **model_parts("teacher", pipeline.teacher, source),
        "generate.template_sha256": template_hash,
    }
    parts = {**flatten(settings.digest_view(), "generate."), **asked, **inputs_of(pipeline.run_path, "prompts")}
    # Only what changes the answers costs anything to change; how they are parsed does not.
    stage = begin(pipeline.run_path, "generate", parts, guard=tuple(asked), fresh=fresh)
    if isinstance(stage, Manifest):
        return stage
    engine = LazyEngine(pipeline.teacher, source)
    asker = _Asker(template, sampling, digest_of(asked)[:16], engine, settings.unparsed == "reject")
    shards = list(read_shards(pipeline.run_path, "prompts"))
    started = time.monotonic()
    try:
        with stage.journal(asked) as journal:
            counts = stage.run_shards(shards, lambda records: asker.ask(records, journal))
            ids = (record.id for records in shards for record in records)
            return stage.finish(counts, usage_of(journal, ids, time.monotonic() - started))
    finally:
        engine.close()


@dataclass(frozen=True)
class _Asker:
    """Asks the teacher for a shard's answers and reads its replies into Records."""

    template: TeacherTemplate
    sampling: Sampling
    sampling_digest: str
    engine: LazyEngine
    reject_unparsed: bool

    def ask(self, records: list[Record], journal: Journal) -> Outcome:
        """Answers of one shard; those in the journal are not asked for again."""
        requests = [
            Request(record.id, self.template.ask(record.prompt), self.sampling, prefill=self.template.prefill)
            for record in records
        ]
        found = complete_all(requests, journal, self.engine.get, "generate")
        outcome = Outcome()
        for record in records:
            answered = self._answered(record, found[record.id])
            if isinstance(answered, Reject):
                outcome.rejected.append(answered)
            else:
                outcome.kept.append(answered)
        return outcome

    def _answered(self, record: Record, completion: Completion) -> Record | Reject:
        record = replace(record, teacher=self._teacher_info(completion))
        if completion.finish_reason == "too_long":
            detail = f"{completion.prompt_tokens:,} tokens and {self.sampling.max_new_tokens:,} to come"
            return Reject(record, "generate", "prompt_too_long", detail)
        reply = self.template.prefill + completion.text
        if not reply.strip():
            return Reject(record, "generate", "empty_reply")
        record = replace(record, completion=[{"role": "assistant", "content": reply.strip()}])
        parsed = split_reply(reply, self.template)
        if parsed is None:
            if self.reject_unparsed:
                return Reject(record, "generate", "unparsed", f"no {self.template.answer_marker!r} with text after it")
            return replace(record, answer=reply.strip())
        return replace(record, rationale=parsed[0], answer=parsed[1])

    def _teacher_info(self, completion: Completion) -> TeacherInfo:
        return TeacherInfo(
            model=self.engine.source.name,
            revision=self.engine.source.revision,
            sampling_digest=self.sampling_digest,
            finish_reason=completion.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
            cost=0.0,
        )
