"""Who is asked, at what price and under which terms, and what that means for the budget."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from llmdistill.config import Model, Pipeline
from llmdistill.engines.prices import OLD_DAYS, ListPrice, age_in_days, price_of
from llmdistill.engines.terms import UNKNOWN, terms_of
from llmdistill.plan.estimate import is_batch
from llmdistill.plan.preflight import answerers_of, judges_of
from llmdistill.plan.steps import Step, money


@dataclass(frozen=True)
class ModelFacts:
    """A model that is asked. Prices in US dollars per million tokens, None when they are unknown.

    Attributes:
        key: where it stands in the pipeline file.
        batch_factor: part of the price that is paid, because batches are used.
        price_as_of: the day the price was looked up, when it is from a table.
        restricts: what its terms say on training with its answers, None when they are unknown.
        accepted: whether the pipeline file says that the terms were read.
        trained_on: whether its answers are trained on; a judge's words are not.
    """

    key: str
    model: str
    engine: str
    input_price: float | None
    output_price: float | None
    batch_factor: float
    price_source: str | None
    price_as_of: str | None
    price_age_days: int | None
    terms_family: str | None
    restricts: str | None
    terms_summary: str | None
    terms_url: str | None
    terms_as_of: str | None
    accepted: bool
    trained_on: bool

    @property
    def is_refused(self) -> bool:
        """Whether a run would refuse it for its terms."""
        return self.trained_on and self.restricts in ("forbids", "conditions") and not self.accepted


def facts_of(pipeline: Pipeline) -> list[ModelFacts]:
    """Facts on the teacher, and on the other models that are asked.

    Raises:
        ConfigError: the user's price table cannot be used.
    """
    answerers, own_judge = answerers_of(pipeline), pipeline.filter.judge and pipeline.filter.judge.model
    judges = [(key, model) for key, model in judges_of(pipeline) if own_judge or key != "filter.judge"]
    models = {"teacher": pipeline.teacher, **dict(answerers), **{f"{key}.model": model for key, model in judges}}
    asked = [(key, model) for key, model in models.items() if key != "generate.imported_from"]
    return [_facts(key, model, trained_on=key in dict(answerers)) for key, model in asked]


def _facts(key: str, settings: Model, trained_on: bool) -> ModelFacts:
    price, terms = price_of(settings), terms_of(settings)
    listed = price if isinstance(price, ListPrice) else None
    return ModelFacts(
        key=key,
        model=settings.model,
        engine=settings.engine,
        input_price=price.input if price else None,
        output_price=price.output if price else None,
        batch_factor=listed.batch if listed and is_batch(settings) else 1.0,
        price_source=listed.source if listed else None,
        price_as_of=listed.as_of.isoformat() if listed else None,
        price_age_days=age_in_days(price, datetime.date.today()),
        terms_family=terms.family if terms else None,
        restricts=terms.restricts if terms else None,
        terms_summary=terms.summary if terms else None,
        terms_url=terms.url if terms else None,
        terms_as_of=terms.as_of.isoformat() if terms else None,
        accepted=settings.accept_terms,
        trained_on=trained_on,
    )


def money_notes(pipeline: Pipeline, models: Sequence[ModelFacts], steps: Sequence[Step], total: Step) -> list[str]:
    """What a person should know of prices, terms and the budget before the run."""
    notes = [note for facts in models for note in [*_price_notes(facts), *_terms_notes(facts)]]
    if total.cost is None:
        notes.append("cost in all: unknown")
    elif total.cost:
        notes.append(f"cost in all: {money(total.cost)}{_interval(total)}")
    return notes + _budget_notes(pipeline, models, steps, total)


def _price_notes(facts: ModelFacts) -> list[str]:
    name = f"{facts.key} {facts.model}"
    if facts.input_price is None or facts.output_price is None:
        return [
            f"{name}: the price is unknown; set {facts.key}.price: {{input: ..., output: ...}} ($ per million tokens)"
        ]
    if facts.input_price == facts.output_price == 0:
        return []
    part = f", times {facts.batch_factor:g} in batches" if facts.batch_factor != 1 else ""
    dated = f" (price of {facts.price_as_of})" if facts.price_as_of else ""
    notes = [f"{name}: ${facts.input_price:g} in, ${facts.output_price:g} out per million tokens{part}{dated}"]
    if facts.price_age_days is not None and facts.price_age_days > OLD_DAYS:
        notes.append(f"that price was looked up {facts.price_age_days:,} days ago: check it at {facts.price_source}")
    return notes


def _terms_notes(facts: ModelFacts) -> list[str]:
    """What is known of a model's terms; where they are a reason to stop, a warning says so."""
    if facts.trained_on and (facts.restricts is None or facts.is_refused):
        return []
    if facts.restricts is None:
        return [f"terms of {facts.key} {facts.model} on training with its answers are {UNKNOWN}"]
    dated = f"{facts.terms_url}, {facts.terms_as_of}"
    return [f"terms of {facts.key} ({facts.terms_family}): {facts.terms_summary} ({dated})"]


def _interval(total: Step) -> str:
    if total.cost_low is None or total.cost_high is None:
        return ""
    return f" (95 % interval {money(total.cost_low)} to {money(total.cost_high)})"


def _budget_notes(pipeline: Pipeline, models: Sequence[ModelFacts], steps: Sequence[Step], total: Step) -> list[str]:
    notes, budget = [], pipeline.budget
    unpriced = [facts.key for facts in models if facts.input_price is None]
    if budget.max_cost is not None and unpriced:
        notes.append(
            f"budget.max_cost is set, but the price of {' and '.join(unpriced)} is unknown: the run would refuse"
        )
    elif budget.max_cost is not None and total.cost is not None:
        most = max(total.cost, total.cost_high or 0.0)
        if most > budget.max_cost:
            limit = f"${budget.max_cost:,.2f}"
            notes.append(f"up to {money(most)} is more than budget.max_cost ({limit}): the run would stop before that")
    tokens = _asked_tokens(steps)
    if budget.max_tokens is not None and tokens > budget.max_tokens:
        limit = f"{budget.max_tokens:,}"
        notes.append(f"{tokens:,} tokens are more than budget.max_tokens ({limit}): the run would stop before that")
    return notes


def _asked_tokens(steps: Sequence[Step]) -> int:
    """Tokens of all requests. Half of what `evaluate` reads is read without asking, to compare the models."""
    asked = {step.stage: step for step in steps if step.requests}
    read = sum(step.tokens_in // (2 if name == "evaluate" else 1) for name, step in asked.items())
    return read + sum(step.tokens_out for step in asked.values())
