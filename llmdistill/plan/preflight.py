"""Warnings before a run: the known ways in which distillation goes wrong, each with why and what to do.

They stop nothing: whoever knows better goes on. Names and texts in them lost what could act on a terminal.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmdistill.config import Decontaminate, Model, Pipeline
from llmdistill.curate.duplicates import near_copies_of
from llmdistill.engines.families import families_of, num_parameters_of, same_model
from llmdistill.engines.terms import terms_of
from llmdistill.record import Record
from llmdistill.report.words import clean, shorten

if TYPE_CHECKING:
    from llmdistill.generate.prompts import PromptSet

FEWEST_FULL, FEWEST_LORA = 500, 100
"""Records below which training is called too little; a rule of thumb, below what LIMA needed (arXiv 2305.11206)."""

SMALL_JUDGE = 1e9
"""Parameters."""

MOST_COMPARED = 10_000
"""Prompts of the pool that a plan compares with the held-out ones: a few seconds. A run compares all."""

_NAME_CHARS, _EXCERPT_CHARS = 100, 60
_IMPORTED = "generate.imported_from"

Keyed = tuple[str, Model]
"""A model, and where it stands in the pipeline file."""


@dataclass(frozen=True)
class Warning:
    """One trap. `code` names it for programs, `text` says what is wrong and why, `do` what to do about it."""

    code: str
    text: str
    do: str


@dataclass(frozen=True)
class Leaks:
    """Held-out prompts in the training pool.

    Attributes:
        num_equal: rows that equal a held-out prompt; the stage `prompts` rejects them.
        num_alike: prompts that nearly equal one, of the `num_compared` looked at.
        first: the first pair, in words.
    """

    num_equal: int = 0
    num_alike: int = 0
    num_compared: int = 0
    first: str = ""


def warnings_of(pipeline: Pipeline, prompts: PromptSet, num_expected: int) -> list[Warning]:
    """Every trap that applies.

    Args:
        num_expected: records that are expected to be trained on.
    """
    return [
        *setting_warnings(pipeline, importers(pipeline, prompts)),
        *data_warnings(pipeline, len(prompts.held_out), num_expected, find_leaks(pipeline, prompts)),
    ]


def setting_warnings(pipeline: Pipeline, imported: Sequence[str] = ()) -> list[Warning]:
    """The traps that the settings alone show.

    Args:
        imported: names of the models whose answers are imported, where the rows say so.
    """
    answerers = answerers_of(pipeline, imported)
    return [
        *_no_quality_filter(pipeline),
        *_synthetic_evaluation(pipeline),
        *_partial_judges(pipeline, answerers),
        *_small_judges(pipeline),
        *_uncalibrated(pipeline),
        *_unverified_hint(pipeline),
        *_teacher_terms(pipeline, answerers),
    ]


def data_warnings(pipeline: Pipeline, num_held_out: int, num_trained: int, leaks: Leaks) -> list[Warning]:
    """The traps that the data show, expected or found."""
    return [
        *_held_out(num_held_out),
        *_leaks(pipeline, leaks),
        *_too_little(pipeline, num_trained),
    ]


def answerers_of(pipeline: Pipeline, imported: Sequence[str] = ()) -> list[Keyed]:
    """Every model whose answers are trained on."""
    settings = pipeline.generate
    if settings.mode == "import":
        names = imported or ([settings.imported_from] if settings.imported_from else [])
        return [(_IMPORTED, Model(model=name)) for name in names]
    fallback = [("generate.fallback", settings.fallback)] if settings.fallback else []
    others = [(f"generate.co_teachers.{number}.model", co.model) for number, co in enumerate(settings.co_teachers)]
    return [("teacher", pipeline.teacher), *fallback, *others]


def importers(pipeline: Pipeline, prompts: PromptSet) -> list[str]:
    """Names of the models that imported answers are from."""
    if pipeline.generate.mode != "import":
        return []
    said = [json.loads(record.meta).get("imported", {}).get("model") for record in prompts.pool]
    return sorted({name for name in [value or pipeline.generate.imported_from for value in said] if name})


def judges_of(pipeline: Pipeline) -> list[Keyed]:
    """The judge, and the jurors that are other models."""
    judge, first = pipeline.filter.judge, pipeline.judge_model
    if judge is None or first is None:
        return []
    jurors = [(f"filter.judge.jury.{number}", juror.model) for number, juror in enumerate(judge.jury)]
    return [("filter.judge", first), *((key, model) for key, model in jurors if model)]


def find_leaks(pipeline: Pipeline, prompts: PromptSet) -> Leaks:
    """Look for held-out prompts in the training pool, at the pipeline's own threshold."""
    equal = [reject for reject in prompts.rejects if _is_equal_leak(pipeline, reject.reason, reject.detail)]
    pool = prompts.pool[:MOST_COMPARED]
    usual: float = Decontaminate.model_fields["near"].default
    threshold = _near(pipeline) or usual
    originals = prompts.held_out if pool else []
    matches = near_copies_of([held.question for held in originals], [record.question for record in pool], threshold)
    alike = [(record, match) for record, match in zip(pool, matches, strict=True) if match]
    first = f"{equal[0].where} is {equal[0].detail}" if equal else ""
    if alike and not first:
        record, match = alike[0]
        first = f"{_shown(record)} is {match.similarity:.0%} like {_shown(prompts.held_out[match.index])}"
    return Leaks(len(equal), len(alike), len(pool), first)


def _near(pipeline: Pipeline) -> float | None:
    """Similarity to a held-out prompt from which curate drops a record; None when it does not look."""
    return pipeline.curate.decontaminate.near if pipeline.curate.decontaminate else None


def _is_equal_leak(pipeline: Pipeline, reason: str, detail: str) -> bool:
    """Whether the stage `prompts` rejected a row because it equals a prompt of the held-out file."""
    held_out = pipeline.prompts.held_out_path
    return held_out is not None and reason == "duplicate_prompt" and detail.startswith(f"same as {held_out}:")


def warning(code: str, text: str, do: str) -> Warning:
    """A warning on one line each, whatever stands in names and texts."""
    return Warning(code, " ".join(clean(text).split()), " ".join(clean(do).split()))


def _no_quality_filter(pipeline: Pipeline) -> list[Warning]:
    if pipeline.filter.judge or pipeline.filter.verify:
        return []
    text = "no judge and no verifier: bad answers are only caught by their form, and the student learns them too"
    return [warning("no_quality_filter", text, "set filter.judge, or filter.verify where the prompts have references")]


def _synthetic_evaluation(pipeline: Pipeline) -> list[Warning]:
    prompts, reason = pipeline.prompts, pipeline.evaluate.synthetic_only
    synthetic = prompts.synthetic or (prompts.are_documents and pipeline.generate.mode == "synthetic_qa")
    if not synthetic or prompts.held_out_path or reason is None:
        return []
    text = (
        "the student is measured on prompts that a model wrote, where a model that only gets better at its own kind "
        f'of text is not found out (arXiv 2305.17493); the reason given: "{shorten(reason, 300)}"'
    )
    return [warning("synthetic_evaluation", text, "give real prompts in prompts.held_out_path")]


def _partial_judges(pipeline: Pipeline, answerers: Sequence[Keyed]) -> list[Warning]:
    """Judges that are one of the teachers, or of its family."""
    found = (_partiality(key, judge, answerers) for key, judge in judges_of(pipeline))
    return [item for item in found if item]


def _partiality(key: str, judge: Model, answerers: Sequence[Keyed]) -> Warning | None:
    code, who = "", f"{key} ({_name(judge)})"
    own = [owner for owner, model in answerers if same_model(judge, model)]
    kin = [(owner, model) for owner, model in answerers if _families(judge) & _families(model)]
    if own:
        code, text = "self_judging", f"{who} judges its own answers, those of {own[0]}, which a model scores too well"
    elif kin:
        owner, model = kin[0]
        shared = " and ".join(sorted(_families(judge) & _families(model)))
        code, text = "judge_family", f"{who} is of the family of {owner} ({_name(model)}), {shared}"
        text += ", and a judge scores answers of its own kind too well"
    else:
        return None
    do = f"set {key}.model to a model of another family"
    return warning(code, f"{text} (self-preference, arXiv 2404.13076)", do)


def _families(model: Model) -> frozenset[str]:
    return families_of(model.model) | (families_of(model.weights) if model.weights else frozenset())


def _teacher_terms(pipeline: Pipeline, answerers: Sequence[Keyed]) -> list[Warning]:
    if not answerers:
        text = "whose answers are imported is not said, so nobody can tell whether they may be trained on"
        return [warning("teacher_terms", text, "set generate.imported_from to the model's name, and read its terms")]
    found = (_terms_warning(key, model) for key, model in answerers)
    return [item for item in found if item]


def _terms_warning(key: str, model: Model) -> Warning | None:
    imported = key == _IMPORTED
    terms, who = terms_of(model), f"{'the imported answers' if imported else key} ({_name(model)})"
    if terms is None:
        text = f"what the terms of {who} say on training with its answers is not known here"
        return warning("teacher_terms", text, "read them before you publish the data or the student")
    if not terms.needs_consent or model.accept_terms:
        return None
    text, do = f"terms of {who}: {terms.summary.rstrip('.')}", f"read {terms.url} (summary of {terms.as_of})"
    if not imported:
        text += "; the run would refuse until they are accepted"
        do += f"; if you may go on, set {key}.accept_terms: true"
    return warning("teacher_terms", text, do)


def _unverified_hint(pipeline: Pipeline) -> list[Warning]:
    if pipeline.generate.hint != "always" or pipeline.filter.verify:
        return []
    text = (
        "the teacher is shown every reference (generate.hint: always) and nothing checks that its reasoning ends "
        "there: arXiv 2203.14465 keeps only what does"
    )
    return [warning("unverified_hint", text, "set filter.verify")]


def _uncalibrated(pipeline: Pipeline) -> list[Warning]:
    judge = pipeline.filter.judge
    if judge is None or judge.calibration:
        return []
    text = "the judge's scores were never compared with people's: what its threshold lets through is a guess"
    return [warning("uncalibrated_judge", text, "set filter.judge.calibration.gold to a file of judged answers")]


def _small_judges(pipeline: Pipeline) -> list[Warning]:
    found = []
    for key, model in judges_of(pipeline):
        size = num_parameters_of(model.weights or model.model)
        if size is not None and size < SMALL_JUDGE:
            text = f"{key} ({_name(model)}): a judge of {size / 1e6:,.0f} M parameters hardly knows good from bad"
            found.append(warning("small_judge", text, f"set {key}.model to a larger one, or use filter.verify"))
    return found


def _held_out(num_held_out: int) -> list[Warning]:
    if num_held_out:
        return []
    text = "nothing is held out: whether training helps cannot be measured"
    return [warning("nothing_held_out", text, "set prompts.held_out, or prompts.held_out_path")]


def _leaks(pipeline: Pipeline, leaks: Leaks) -> list[Warning]:
    parts = []
    if leaks.num_equal:
        parts.append(f"{leaks.num_equal:,} equal a held-out one (rejected)")
    if leaks.num_alike:
        dropped = "no stage drops them" if _near(pipeline) is None else "curate drops them"
        parts.append(f"{leaks.num_alike:,} of {leaks.num_compared:,} nearly equal one ({dropped})")
    if not parts:
        return []
    text = f"held-out prompts are in the training pool: {' and '.join(parts)}; the first: {leaks.first}"
    do = "hold out prompts of another source"
    if _near(pipeline) is None:
        do += ", and set curate.decontaminate.near"
    return [warning("held_out_in_pool", text, do)]


def _too_little(pipeline: Pipeline, num_trained: int) -> list[Warning]:
    least, way = (FEWEST_LORA, "LoRA") if pipeline.train.lora else (FEWEST_FULL, "full training")
    if num_trained >= least:
        return []
    text = (
        f"{num_trained:,} records to train on are few for {way}, from {least:,} on is usual; 1,000 well-chosen ones "
        "sufficed for a model of 65B parameters (arXiv 2305.11206)"
    )
    more = "" if pipeline.train.lora else ", or set train.lora"
    return [warning("too_little_data", text, f"give more prompts, or raise curate.size{more}")]


def _shown(record: Record) -> str:
    text = " ".join(clean(record.question).split())
    text = text if len(text) <= _EXCERPT_CHARS else f"{text[:_EXCERPT_CHARS]}..."
    return f'"{text}" ({record.source.dataset}:{record.source.key})'


def _name(model: Model) -> str:
    return shorten(model.model, _NAME_CHARS)
