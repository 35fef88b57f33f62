"""The modes `rationale` and `answer`: the teacher answers each prompt."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from llmdistill.config import Pipeline
from llmdistill.engines.base import Completion
from llmdistill.engines.resume import answer_of, usage_of
from llmdistill.generate.asker import Asker
from llmdistill.generate.replies import with_answer
from llmdistill.record import Record, Reject
from llmdistill.run.digest import Parts, digest_of
from llmdistill.run.journal import Journal
from llmdistill.run.manifest import Manifest
from llmdistill.run.stage import Outcome, Stage, num_records, read_shards
from llmdistill.templates import TeacherTemplate, load_template


class Answers:
    """Asks the teacher and reads its replies into Records."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.template, template_hash = load_template(pipeline.teacher_template, TeacherTemplate)
        self.teacher = Asker.of(pipeline, self.template, template_hash)
        self.asked: Parts = self.teacher.asked

    def run(self, stage: Stage) -> Manifest:
        """Ask about every prompt of the pool."""
        started = time.monotonic()
        with stage.journal(self.teacher.asked) as journal:
            failed = self.ask(_pool(self.pipeline), journal, num_records(self.pipeline.run_path, "prompts"))
            shards = read_shards(self.pipeline.run_path, "prompts")
            counts = stage.run_shards(shards, lambda records: self.read(records, journal, failed))
            ids = (record.id for record in _pool(self.pipeline))
            return stage.finish(counts, usage_of(journal, ids, time.monotonic() - started))

    def ask(self, records: Iterable[Record], journal: Journal, total: int) -> dict[str, Completion]:
        """Have all records answered in the journal; gives the answers that failed."""
        requests = (self.teacher.request(record.id, self.template.ask(record.prompt)) for record in records)
        return self.teacher.ask(requests, journal, total)

    def read(self, records: list[Record], journal: Journal, failed: dict[str, Completion]) -> Outcome:
        """What became of the records of one shard."""
        outcome = Outcome()
        for record in records:
            completion = answer_of(record.id, journal, failed)
            asked = replace(record, teacher=self.teacher.info(completion))
            read = with_answer(asked, completion, self.pipeline.generate, self.template, self.teacher.prefill)
            if isinstance(read, Reject):
                outcome.rejected.append(read)
            else:
                outcome.kept.append(read)
        return outcome


def ask_sample(pipeline: Pipeline, num: int) -> list[Completion]:
    """The teacher's answers to `num` prompts drawn at random; they are kept for the stage, which asks for the rest."""
    answers, pool = Answers(pipeline), list(_pool(pipeline))
    records = random.Random(pipeline.seed).sample(pool, min(num, len(pool)))
    with _journal(pipeline, answers.teacher) as journal:
        failed = answers.ask(records, journal, len(records))
        return [answer_of(record.id, journal, failed) for record in records]


def answered(pipeline: Pipeline) -> list[Completion]:
    """The teacher's answers that are there already under these settings, in the order in which they came."""
    teacher = Answers(pipeline).teacher
    if not (pipeline.run_path / "generate" / "journal" / f"{digest_of(teacher.asked)[:16]}.jsonl").exists():
        return []
    with _journal(pipeline, teacher) as journal:
        return [answer_of(row["key"], journal, {}) for row in journal.rows()]


def _journal(pipeline: Pipeline, asker: Asker) -> Journal:
    return Stage(pipeline.run_path, "generate", {}).journal(asker.asked)


def _pool(pipeline: Pipeline) -> Iterator[Record]:
    """Records of the stage `prompts`, one shard in memory at a time."""
    return (record for records in read_shards(pipeline.run_path, "prompts") for record in records)
