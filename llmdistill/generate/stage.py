"""The stages `prompts` and `generate`."""

from __future__ import annotations

import time
from dataclasses import replace

from llmdistill.config import Pipeline
from llmdistill.engines.base import Completion, Request, Sampling
from llmdistill.engines.resume import LazyEngine, complete_all, completions_of, find, model_parts, usage_of
from llmdistill.generate.prompts import PromptSet, input_hashes, read_prompts
from llmdistill.generate.replies import split_reply
from llmdistill.record import Record, Reject, TeacherInfo
from llmdistill.run.digest import Parts, digest_of, flatten
from llmdistill.run.manifest import Counts, Manifest
from llmdistill.run.stage import Outcome, Stage, begin, inputs_of, read_shards, write_part, write_records
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
    asked: Parts = {
        **flatten(pipeline.generate.digest_view(), "generate."),
        **model_parts("teacher", pipeline.teacher, source),
        "generate.template_sha256": template_hash,
        "generate.seed": pipeline.seed,
    }
    parts = {**asked, **inputs_of(pipeline.run_path, "prompts")}
    stage = begin(pipeline.run_path, "generate", parts, guard=("generate.", "teacher."), fresh=fresh)
    if isinstance(stage, Manifest):
        return stage
    engine = LazyEngine(pipeline.teacher, source)
    teacher = _Asker(pipeline, template, digest_of(asked)[:16], engine)
    try:
        return teacher.ask_all(stage, asked)
    finally:
        engine.close()


class _Asker:
    """Asks the teacher shard by shard and reads its replies into Records."""

    def __init__(self, pipeline: Pipeline, template: TeacherTemplate, sampling_digest: str, engine: LazyEngine) -> None:
        self.pipeline, self.template, self.engine = pipeline, template, engine
        self.sampling_digest = sampling_digest
        settings = pipeline.generate
        self.sampling = Sampling(
            settings.max_new_tokens, settings.temperature, settings.top_p, settings.repetition_penalty, pipeline.seed
        )

    def ask_all(self, stage: Stage, asked: Parts) -> Manifest:
        started = time.monotonic()
        shards = list(read_shards(self.pipeline.run_path, "prompts"))
        completions: dict[int, list[Completion]] = {}

        def work(index: int, records: list[Record]) -> Outcome:
            with stage.journal(asked, index) as journal:
                requests = [self._request(record) for record in records]
                found = complete_all(requests, journal, self.engine.get, "generate")
            completions[index] = list(found.values())
            return self._outcome(records, found)

        counts = stage.run_shards(shards, work)
        for index in set(range(len(shards))) - set(completions):
            completions[index] = completions_of(stage, asked, index, (record.id for record in shards[index]))
        used = (completion for found in completions.values() for completion in found)
        return stage.finish(counts, usage_of(used, time.monotonic() - started))

    def _request(self, record: Record) -> Request:
        return Request(record.id, self.template.ask(record.prompt), self.sampling, prefill=self.template.prefill)

    def _outcome(self, records: list[Record], found: dict[str, Completion]) -> Outcome:
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
            if self.pipeline.generate.unparsed == "reject":
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
