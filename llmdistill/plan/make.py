"""Putting a plan together: the upper bounds, then what was measured or is done already in their place."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmdistill.config import Model, Pipeline
from llmdistill.engines.base import Completion
from llmdistill.engines.models import ModelSource
from llmdistill.engines.terms import check_terms
from llmdistill.errors import BusyError, UsageError
from llmdistill.generate.prompts import PromptSet
from llmdistill.generate.stage import prompts_of, teachers_of
from llmdistill.plan.estimate import STAGES, Expense, measure, usable
from llmdistill.plan.machine import Sizes, is_remote, local_weights, needs_weights, weights_name
from llmdistill.plan.money import ModelFacts, facts_of, money_notes
from llmdistill.plan.preflight import Warning, warnings_of
from llmdistill.plan.steps import Step, total_of, upper_bounds
from llmdistill.run.lock import locked
from llmdistill.run.manifest import read_manifest
from llmdistill.templates import TeacherTemplate, load_template
from llmdistill.train.checks import check_training
from llmdistill.train.nodes import check_nodes, instructions

_ANSWERING = ("rationale", "answer")


@dataclass(frozen=True)
class Plan:
    """The whole plan. Records shrink as stages reject.

    Attributes:
        models: who is asked, at what price, under which terms.
        num_measured: answers of the teacher that the estimate rests on; 0: tokens and cost are upper bounds.
        total: the sum of the stages, with the interval of the whole.
        warnings: the known traps that apply.
        launch: how training is started on several machines; empty for one.
    """

    name: str
    run_dir: str
    steps: list[Step]
    notes: list[str]
    models: list[ModelFacts]
    num_measured: int
    total: Step
    warnings: list[Warning]
    launch: str = ""

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
    if sample:
        _check_sample(pipeline)
    prompts = prompts_of(pipeline)
    template, _ = load_template(pipeline.teacher_template, TeacherTemplate)
    check_training(pipeline)
    models, weights = facts_of(pipeline), local_weights(pipeline)
    steps = upper_bounds(pipeline, prompts, Sizes.of(weights, pipeline), template)
    answers = _ask(pipeline, sample) if sample else _on_disk(pipeline, weights)
    completions = usable(answers.completions, prompts.pool)
    num_held_out = len(prompts.held_out[: pipeline.evaluate.limit])
    expenses = measure(pipeline, prompts.pool, num_held_out, completions, template)
    steps = [_finished(_measured(step, expenses, answers, pipeline.teacher), pipeline) for step in steps]
    total = _total(steps, expenses.get("all"))
    notes = [*_notes(pipeline, prompts, weights), *answers.notes, _basis(len(completions), _asks_plainly(pipeline))]
    notes += money_notes(pipeline, models, steps, total)
    warnings = warnings_of(pipeline, prompts, _num_trained(pipeline, steps))
    check_nodes(pipeline.train)
    launch = instructions(pipeline.train, pipeline.run_path)
    return Plan(pipeline.name, str(pipeline.run_path), steps, notes, models, len(completions), total, warnings, launch)


def _check_sample(pipeline: Pipeline) -> None:
    """Refuse a sample of answers that the run would not use."""
    settings, why = pipeline.generate, ""
    if not _asks_plainly(pipeline):
        why = f"hint: {settings.hint}" if settings.mode in _ANSWERING else f"mode: {settings.mode}"
    if why:
        what = f"a sample is of the teacher's plain answers to the prompts, which generate.{why} does not ask for"
        raise UsageError(what, where="--sample", do="plan without --sample")


def _asks_plainly(pipeline: Pipeline) -> bool:
    return pipeline.generate.mode in _ANSWERING and pipeline.generate.hint != "always"


def _ask(pipeline: Pipeline, num: int) -> _Answers:
    """Ask the teacher for a sample."""
    from llmdistill.generate.answers import answered, ask_sample
    from llmdistill.generate.stage import read

    for key, model in teachers_of(pipeline).items():
        check_terms(model, key)
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

    known = _asks_plainly(pipeline) and (is_remote(pipeline.teacher) or weights is not None)
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
    at_once = max(answers.num_timed, min(teacher.api.max_concurrency, step.requests))
    return answers.seconds * step.requests / at_once


def _num_trained(pipeline: Pipeline, steps: Sequence[Step]) -> int:
    """Records that are trained on: those that curation has chosen, else those expected."""
    chosen = read_manifest(pipeline.run_path / "curate")
    return chosen.counts.kept if chosen else next(step.records for step in steps if step.stage == "train")


def _finished(step: Step, pipeline: Pipeline) -> Step:
    """The step with what it has cost, if it is finished."""
    manifest = read_manifest(pipeline.run_path / step.stage)
    if manifest is None:
        return step
    cost = manifest.usage.cost
    return dataclasses.replace(step, done=True, cost=cost, cost_low=cost, cost_high=cost)


def _total(steps: Sequence[Step], measured: Expense | None) -> Step:
    """The sum of the stages. Its interval is that of the whole, or the sum of the ends once a stage is finished."""
    cost = total_of([step.cost for step in steps])
    low = high = None
    if cost is not None and measured is not None and measured.low is not None:
        low, high = measured.low, measured.high
        if any(step.done for step in steps if step.stage in STAGES):
            low = total_of([step.cost if step.cost_low is None else step.cost_low for step in steps])
            high = total_of([step.cost if step.cost_high is None else step.cost_high for step in steps])
    disk = total_of([step.disk_bytes for step in steps])
    seconds = total_of([0.0 if step.done else step.seconds for step in steps])
    requests = sum(step.requests for step in steps)
    size = None if disk is None else int(disk)
    return Step("all", 0, requests, disk_bytes=size, seconds=seconds, cost=cost, cost_low=low, cost_high=high)


def _basis(num_measured: int, can_sample: bool) -> str:
    if num_measured:
        answers = "1 answer" if num_measured == 1 else f"{num_measured:,} answers"
        return f"tokens and cost of generate and filter are estimated from {answers} of the teacher"
    bounds = "tokens out, and the times and costs that follow from them, are upper bounds"
    return f"{bounds} (--sample 20 measures them)" if can_sample else bounds


def _notes(pipeline: Pipeline, prompts: PromptSet, weights: ModelSource | None) -> list[str]:
    what = "chunks of documents" if pipeline.prompts.are_documents else "prompts"
    notes = [f"{len(prompts.pool):,} {what} to generate from, {len(prompts.held_out):,} held out for evaluation"]
    if prompts.rejects:
        first = prompts.rejects[0]
        notes.append(f"{len(prompts.rejects):,} rows cannot be used; the first: {first.where}: {first.reason}")
    if weights is None and needs_weights(pipeline):
        name = weights_name(pipeline.teacher)
        notes.append(f"{name} is not on this machine yet; it will be fetched, and times are unknown")
    if pipeline.ablation:
        varied = pipeline.ablation
        notes.append(
            f"llmdistill ablate trains {varied.num_trainings} students: "
            f"{len(varied.vary)} variants x {len(varied.seeds)} seeds"
        )
    return notes
