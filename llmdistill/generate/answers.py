"""The modes `rationale` and `answer`: teachers answer each prompt, perhaps several times; some answers go on."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from llmdistill.config import Pipeline
from llmdistill.engines.base import Completion
from llmdistill.engines.resume import answer_of
from llmdistill.generate.attempts import (
    Attempt,
    Attempts,
    Teacher,
    Teachers,
    checks_answers,
    main_teacher,
    outcome_of,
    share_of,
    weights_of,
)
from llmdistill.generate.samples import Sample, choose, expand
from llmdistill.record import Record, Reject
from llmdistill.run.digest import Parts, digest_of
from llmdistill.run.journal import Journal
from llmdistill.run.manifest import Manifest
from llmdistill.run.stage import Outcome, Stage, read_all, read_shards
from llmdistill.verify.records import RecordVerifier


class Answers:
    """Asks the teachers and reads their replies into Records. The input is every sample of every prompt."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.teachers = Teachers(pipeline)
        self.asked: Parts = self.teachers.asked

    def run(self, stage: Stage) -> Manifest:
        """Ask about every prompt of the pool."""
        started = time.monotonic()
        with self._asking(stage) as attempts:
            attempts.ask_all(self._shards)
            counts = stage.run_shards(self._shards(), lambda records: self.read(records, attempts))
            usage, rounds = attempts.summary(self._shards)
            usage = replace(usage, seconds=round(time.monotonic() - started, 1))
            return stage.finish(counts, usage, {"rounds": rounds})

    @contextmanager
    def _asking(self, stage: Stage) -> Iterator[Attempts]:
        """The rounds, with their journals open."""
        verify = self.pipeline.filter.verify
        with ExitStack() as stack:
            journals = {
                teacher.name: stack.enter_context(stage.journal(teacher.asker.asked)) for teacher in self.teachers.all
            }
            if verify is None or not checks_answers(self.pipeline.generate):
                yield Attempts(self.teachers, journals, lambda _: None, "keep")
                return
            verifier = RecordVerifier(verify)
            journal = stack.enter_context(stage.journal(verifier.parts))
            yield Attempts(self.teachers, journals, lambda record: verifier.verified(record, journal), verify.undecided)

    def _shards(self) -> Iterator[list[Record]]:
        num_samples = self.pipeline.generate.samples.n
        for records in read_shards(self.pipeline.run_path, "prompts"):
            yield [sample for record in records for sample in expand(record, num_samples)]

    def read(self, records: list[Record], attempts: Attempts) -> Outcome:
        """What became of the records of one shard, where all samples of a prompt follow each other."""
        outcome, num_samples = Outcome(), self.pipeline.generate.samples.n
        for start in range(0, len(records), num_samples):
            found = self._chosen(records[start : start + num_samples], attempts)
            outcome.kept += found.kept
            outcome.rejected += found.rejected
        return outcome

    def _chosen(self, records: list[Record], attempts: Attempts) -> Outcome:
        """What became of the samples of one prompt."""
        samples = []
        for record in records:
            made = attempts.made(record)
            counts = outcome_of(made)
            samples.append(Sample(self._with_attempts(counts.result, made), counts.ok, made[0].ok))
        return choose(samples, self.pipeline.generate.samples, self.pipeline.filter.verify, self.pipeline.seed)

    def _with_attempts(self, result: Record | Reject, made: list[Attempt]) -> Record | Reject:
        """The result with a note of what was tried, where there was more to try than one teacher."""
        if self.teachers.num_rounds == 1:
            return result
        tried = [attempt.in_short() for attempt in made]
        if isinstance(result, Reject):
            return replace(result, record=result.record.with_meta(attempts=tried))
        return result.with_meta(attempts=tried)


def ask_sample(pipeline: Pipeline, num: int) -> list[Completion]:
    """The teacher's answers to `num` prompts drawn at random; they are kept for the stage, which asks for the rest.

    Only prompts that the stage would ask this teacher about are drawn.
    """
    teacher, weights = main_teacher(pipeline), weights_of(pipeline.generate)
    pool = [record for record in read_all(pipeline.run_path, "prompts") if share_of(record.id, weights) == 0]
    records = random.Random(pipeline.seed).sample(pool, min(num, len(pool)))
    with _journal(pipeline, teacher) as journal:
        requests = [teacher.request(record) for record in records]
        failed = teacher.asker.ask(requests, journal, len(records))
        return [answer_of(record.id, journal, failed) for record in records]


def answered(pipeline: Pipeline) -> list[Completion]:
    """The teacher's answers that are there already under these settings, in the order in which they came."""
    teacher = main_teacher(pipeline)
    if not (pipeline.run_path / "generate" / "journal" / f"{digest_of(teacher.asker.asked)[:16]}.jsonl").exists():
        return []
    with _journal(pipeline, teacher) as journal:
        return [answer_of(row["key"], journal, {}) for row in journal.rows()]


def _journal(pipeline: Pipeline, teacher: Teacher) -> Journal:
    return Stage(pipeline.run_path, "generate", {}).journal(teacher.asker.asked)
