"""Putting a plan together: the upper bounds, then what was measured or is done already in their place."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmdistill.config import Model, Pipeline
from llmdistill.engines.base import Completion
from llmdistill.engines.models import ModelSource
from llmdistill.engines.terms import check_terms
from llmdistill.errors import BusyError
from llmdistill.generate.prompts import PromptSet, read_prompts
from llmdistill.plan.estimate import STAGES, Expense, measure, usable
from llmdistill.plan.machine import Sizes, is_remote, local_weights, needs_weights, weights_name
from llmdistill.plan.money import ModelFacts, facts_of, money_notes
from llmdistill.plan.steps import Step, upper_bounds
from llmdistill.run.lock import locked
from llmdistill.run.manifest import read_manifest
from llmdistill.templates import Rubric, TeacherTemplate, load_template


@dataclass(frozen=True)
class Plan:
    """The whole plan. Records shrink as stages reject.

    Attributes:
        models: who is asked, at what price, under which terms.
        num_measured: answers of the teacher that the estimate rests on; 0: tokens and cost are upper bounds.
        total: the sum of the stages, with the interval of the whole.
    """

    name: str
    run_dir: str
    steps: list[Step]
    notes: list[str]
    models: list[ModelFacts]
    num_measured: int
    total: Step

    @property
    def is_free(self) -> bool:
        """Whether nobody has to be paid."""
        return all(step.cost == 0.0 for step in self.steps)


@dataclass(frozen=True)
class _Answers:
    """The teacher's answers that the estimate can use; `seconds` is what asking `num_timed` of them took."""

    completions: list[Completion] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_timed: int = 0
    seconds: float = 0.0


def make_plan(pipeline: Pipeline, sample: int = 0) -> Plan:
    """Validate a pipeline as far as that goes without models, and estimate its stages.

    Args:
        sample: how many prompts the teacher is asked for the estimate; the answers are kept for the run.

    Raises:
        LlmdistillError: the pipeline could not run.
    """
    prompts = read_prompts(pipeline.prompts)
    template, _ = load_template(pipeline.teacher_template, TeacherTemplate)
    rubric = load_template(pipeline.filter.judge.rubric, Rubric)[0] if pipeline.filter.judge else None
    models, weights = facts_of(pipeline), local_weights(pipeline)
    steps = upper_bounds(pipeline, prompts, Sizes.of(weights, pipeline), template, rubric)
    answers = _ask(pipeline, sample) if sample else _on_disk(pipeline, weights)
    completions, num_held_out = (
        usable(answers.completions, prompts.pool),
        len(prompts.held_out[: pipeline.evaluate.limit]),
    )
    expenses = measure(pipeline, prompts.pool, num_held_out, completions, template, rubric)
    steps = [_finished(_measured(step, expenses, answers, pipeline.teacher), pipeline) for step in steps]
    total = _total(steps, expenses.get("all"))
    notes = [*_notes(pipeline, prompts, weights), *answers.notes, _basis(len(completions))]
    notes += money_notes(pipeline, models, steps, total)
    return Plan(pipeline.name, str(pipeline.run_path), steps, notes, models, len(completions), total)


def _ask(pipeline: Pipeline, num: int) -> _Answers:
    """Ask the teacher for a sample."""
    from llmdistill.generate.answers import answered, ask_sample
    from llmdistill.generate.stage import read

    check_terms(pipeline.teacher)
    with locked(pipeline.run_path):
        read(pipeline)
        before = {completion.id for completion in answered(pipeline)}
        started = time.monotonic()
        found = ask_sample(pipeline, num)
        seconds = time.monotonic() - started
    return _Answers(found, [], sum(completion.id not in before for completion in found), seconds)


def _on_disk(pipeline: Pipeline, weights: ModelSource | None) -> _Answers:
    """Answers that an earlier sample or run has left. Nothing is fetched to look for them."""
    from llmdistill.generate.answers import answered

    known = is_remote(pipeline.teacher) or weights is not None
    if not known or not (pipeline.run_path / "generate" / "journal").is_dir():
        return _Answers()
    try:
        with locked(pipeline.run_path):
            return _Answers(answered(pipeline))
    except BusyError:
        return _Answers(notes=["another process is working on this run: its answers are not looked at"])


def _measured(step: Step, expenses: Mapping[str, Expense], answers: _Answers, teacher: Model) -> Step:
    """The step with what was measured in place of the upper bounds."""
    expense = expenses.get(step.stage)
    if expense is None:
        return step
    step = dataclasses.replace(step, cost=expense.cost, cost_low=expense.low, cost_high=expense.high)
    if step.stage == "evaluate":  # its tokens are for the most part those of the students
        return step
    step = dataclasses.replace(step, tokens_in=expense.tokens_in, tokens_out=expense.tokens_out)
    return dataclasses.replace(step, seconds=_timed(step, answers, teacher)) if step.stage == "generate" else step


def _timed(step: Step, answers: _Answers, teacher: Model) -> float | None:
    """Time to ask a server everything, from what the sample took: so many rounds, each of all that may be in flight.

    A local engine's first answers include loading it, and a batch takes what it takes.
    """
    if not is_remote(teacher) or teacher.api.batch or not answers.num_timed:
        return step.seconds
    at_once = max(answers.num_timed, min(teacher.api.max_concurrency, step.records))
    return answers.seconds * step.records / at_once


def _finished(step: Step, pipeline: Pipeline) -> Step:
    """The step with what it has cost, if it is finished."""
    manifest = read_manifest(pipeline.run_path / step.stage)
    if manifest is None:
        return step
    cost = manifest.usage.cost
    return dataclasses.replace(step, done=True, cost=cost, cost_low=cost, cost_high=cost)


def _total(steps: Sequence[Step], measured: Expense | None) -> Step:
    """The sum of the stages. Its interval is that of the whole, or the sum of the ends once a stage is finished."""
    cost = _sum([step.cost for step in steps])
    low = high = None
    if cost is not None and measured is not None and measured.low is not None:
        low, high = measured.low, measured.high
        if any(step.done for step in steps if step.stage in STAGES):
            low = _sum([step.cost if step.cost_low is None else step.cost_low for step in steps])
            high = _sum([step.cost if step.cost_high is None else step.cost_high for step in steps])
    disk = _sum([step.disk_bytes for step in steps])
    seconds = _sum([0.0 if step.done else step.seconds for step in steps])
    requests = sum(step.requests for step in steps)
    size = None if disk is None else int(disk)
    return Step("all", 0, requests, disk_bytes=size, seconds=seconds, cost=cost, cost_low=low, cost_high=high)


def _sum(values: Sequence[float | None]) -> float | None:
    """The sum, None when a part of it is unknown."""
    known = [value for value in values if value is not None]
    return math.fsum(known) if len(known) == len(values) else None


def _basis(num_measured: int) -> str:
    if num_measured:
        answers = "1 answer" if num_measured == 1 else f"{num_measured:,} answers"
        return f"tokens and cost of generate and filter are estimated from {answers} of the teacher"
    return "tokens out, and the times and costs that follow from them, are upper bounds (--sample 20 measures them)"


def _notes(pipeline: Pipeline, prompts: PromptSet, weights: ModelSource | None) -> list[str]:
    notes = [f"{len(prompts.pool):,} prompts to generate from, {len(prompts.held_out):,} held out for evaluation"]
    if prompts.rejects:
        first = prompts.rejects[0]
        notes.append(f"{len(prompts.rejects):,} rows cannot be used; the first: {first.where}: {first.reason}")
    if not prompts.held_out:
        notes.append("nothing is held out: the student cannot be measured (set prompts.held_out)")
    if weights is None and needs_weights(pipeline):
        name = weights_name(pipeline.teacher)
        notes.append(f"{name} is not on this machine yet; it will be fetched, and times are unknown")
    if pipeline.filter.judge is None:
        notes.append("no judge: bad answers are only caught by their form")
    return notes
