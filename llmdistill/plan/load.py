"""Who is asked how often, and how many records come of it, mode by mode: upper bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmdistill.config import Generate, Model, Pipeline
from llmdistill.filter.pairwise import Comparison
from llmdistill.filter.panel import load_rubrics, requests_per_record, seats_of
from llmdistill.generate.synthesis import num_requests
from llmdistill.record import Record
from llmdistill.templates import Rubric, TeacherTemplate

BYTES_PER_TOKEN = 4.0
"""Of text in UTF-8, where no answer says better; of Hangul that is 1.3 letters."""

_TEMPLATE_TOKENS = 300
"""More than the instructions of a shipped template for new prompts or pairs."""


@dataclass(frozen=True)
class Load:
    """What one model is asked: requests, tokens read, tokens written at most.

    Attributes:
        again: only what failed is asked; the numbers are those of everything.
    """

    model: Model
    requests: int
    read: int
    written: int
    again: bool = False


@dataclass(frozen=True)
class Juror:
    """One judge of the panel, and how often it is asked about one record."""

    model: Model
    template: Rubric | Comparison
    requests: int


def tokens_of(text: str) -> int:
    """Tokens of a text, from its length in UTF-8."""
    return max(1, int(len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN))


def records_out(pipeline: Pipeline, num_pool: int) -> int:
    """Records that `generate` makes of a pool of prompts at most."""
    settings = pipeline.generate
    if settings.mode == "synthetic_qa":
        return num_requests(pipeline, num_pool) * settings.synthesis.pairs
    if settings.mode == "evolve":
        return num_pool * (len(settings.evolve.kinds) + settings.evolve.keep_originals)
    each = settings.samples.n
    return num_pool * min(each, settings.samples.keep or each)


def generate_loads(pipeline: Pipeline, pool: Sequence[Record], template: TeacherTemplate) -> list[Load]:
    """What each model is asked in `generate`."""
    mode = pipeline.generate.mode
    if mode == "import":
        return []
    if mode == "synthetic_qa":
        return [_pairs(pipeline, pool)]
    if mode == "evolve":
        return _evolved(pipeline, pool, template)
    return _answers(pipeline, pool, template)


def shares_of(pipeline: Pipeline) -> list[tuple[Model, float]]:
    """The teachers, each with its share of the prompts; the main one first."""
    others = pipeline.generate.co_teachers
    total = 1.0 + sum(other.weight for other in others)
    return [(pipeline.teacher, 1.0 / total), *((other.model, other.weight / total) for other in others)]


def jurors_of(pipeline: Pipeline) -> list[Juror]:
    """The judge and its jury; empty when judging is off.

    Raises:
        ConfigError: a rubric cannot be used.
    """
    settings = pipeline.filter.judge
    if settings is None:
        return []
    templates = [template for template, _ in load_rubrics(pipeline)]
    each = requests_per_record(settings, templates, pipeline.generate.samples.n)
    models = [seat.model for seat in seats_of(pipeline)]
    return [Juror(*values) for values in zip(models, templates, each, strict=True)]


def _answers(pipeline: Pipeline, pool: Sequence[Record], template: TeacherTemplate) -> list[Load]:
    """The first round, which the teachers share, then the fallback, then the hint for what still failed."""
    settings, each = pipeline.generate, pipeline.generate.samples.n
    num, plain = len(pool) * each, _read(pool, template) * each
    hinted = plain + sum(tokens_of(record.reference or "") for record in pool) * each
    read = hinted if settings.hint == "always" else plain
    first = [_load(settings, model, num * share, read * share) for model, share in shares_of(pipeline)]
    loads = _in_all(first, num)
    if settings.fallback:
        loads.append(_load(settings, settings.fallback, num, read, again=True))
    if settings.hint == "failed":
        told = [(settings.fallback, 1.0)] if settings.fallback else shares_of(pipeline)
        loads += [_load(settings, model, num * share, hinted * share, again=True) for model, share in told]
    return loads


def _load(settings: Generate, model: Model, requests: float, read: float, again: bool = False) -> Load:
    return Load(model, round(requests), round(read), round(requests) * settings.max_new_tokens, again)


def _in_all(loads: list[Load], num: int) -> list[Load]:
    """The loads, the main teacher's with what rounding the shares has added or taken away."""
    main, left = loads[0], num - sum(load.requests for load in loads)
    written = main.written + left * main.written // max(1, main.requests)
    return [replace(main, requests=main.requests + left, written=written), *loads[1:]]


def _pairs(pipeline: Pipeline, pool: Sequence[Record]) -> Load:
    num = num_requests(pipeline, len(pool))
    texts = sum(tokens_of(record.question) + tokens_of(record.reference or "") for record in pool)
    shown = 1 if pipeline.prompts.are_documents else pipeline.generate.synthesis.examples
    read = num * (texts * shown // max(1, len(pool)) + _TEMPLATE_TOKENS)
    return Load(pipeline.teacher, num, read, num * pipeline.generate.max_new_tokens)


def _evolved(pipeline: Pipeline, pool: Sequence[Record], template: TeacherTemplate) -> list[Load]:
    """The variants, then the answers to them and to the prompts that were given."""
    settings, prompts = pipeline.generate, sum(tokens_of(record.question) for record in pool)
    num = len(pool) * len(settings.evolve.kinds)
    wanted = Load(
        pipeline.teacher,
        num,
        prompts * len(settings.evolve.kinds) + num * _TEMPLATE_TOKENS,
        num * settings.max_new_tokens,
    )
    given = _read(pool, template) if settings.evolve.keep_originals else 0
    answered = records_out(pipeline, len(pool))
    read = given + num * (settings.max_new_tokens + len(template.user) // 4)
    return [wanted, Load(pipeline.teacher, answered, read, answered * settings.max_new_tokens)]


def _read(pool: Sequence[Record], template: TeacherTemplate) -> int:
    return sum(tokens_of(record.question) for record in pool) + len(pool) * len(template.user) // 4
