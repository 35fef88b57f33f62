"""The dataset card and the model card, made from the manifests of a run and nothing else.

What the manifests do not say is "unknown"; nothing is guessed. Names and texts from outside are escaped:
they can neither end the YAML in front nor become markup, links or headings.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from llmdistill.config import Model, Pipeline
from llmdistill.engines.terms import Terms, terms_of
from llmdistill.plan.preflight import answerers_of
from llmdistill.report import words
from llmdistill.report.compare import ROLES, groups
from llmdistill.report.data import RunData, usages
from llmdistill.run.manifest import Manifest

DATASET_CARD = "dataset_card.md"
MODEL_CARD = "model_card.md"

_UNKNOWN = "unknown"
_MOST_CHARS = 300
_MARKUP = re.compile(r"([\\`*_{}\[\]()#|~$!:@])")
_AUTOLINK = re.compile(r"\b(www)\.", re.IGNORECASE)
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_FUNNEL = ("prompts", "generate", "filter", "curate", "train")
_SAMPLING = ("max_new_tokens", "temperature", "top_p", "repetition_penalty", "seed", "template")
_TRAINING = ("method", "epochs", "learning_rate", "batch_size", "gradient_accumulation", "max_length", "temperature")


def dataset_card(pipeline: Pipeline, data: RunData) -> str:
    """The card of the training set, in Markdown with YAML in front."""
    num = data.manifests["curate"].counts.kept if "curate" in data.manifests else None
    front = {
        "pretty_name": _plain(pipeline.name),
        "language": [pipeline.language],
        "license": _plain(pipeline.prompts.licence or _UNKNOWN),
        "task_categories": ["text-generation"],
        "size_categories": [] if num is None else [_size_category(num)],
        "tags": ["synthetic", "distillation", "llmdistill"],
    }
    size = _UNKNOWN if num is None else f"{num:,}"
    about = f"{size} prompts with a teacher model's answers, to train a student on. Made with llmdistill."
    sections = {
        "How it was made": [*_teacher(pipeline, data), *_made(data), *_synthetic(pipeline, data), *_judge(data)],
        "What was kept": _funnel(data.manifests),
        "Licences and terms": _licences(pipeline, data),
        "Spend": _spend(data),
        "Versions": _versions(data.manifests),
        "Limits": [
            "- The answers were written by a model. What checked them is named above; no person is known to have.",
            "- Mistakes and biases of the teacher and of the judge are in the data.",
            "- The prompts are those of the sources named above; other uses were not looked at.",
        ],
    }
    return _card(front, pipeline.name, about, sections)


def model_card(pipeline: Pipeline, data: RunData) -> str:
    """The card of the trained student, in Markdown with YAML in front."""
    base = _base_model(pipeline, data)
    front: dict[str, Any] = {
        "language": [pipeline.language],
        "license": _UNKNOWN,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": base} if base else {}),
        "tags": ["distillation", "llmdistill"],
    }
    name, keep_layers, rule = _student(pipeline, data)
    origin = _name(name) if name else f"{_text(keep_layers)} layers of the teacher, chosen by {_text(rule)}"
    about = f"A student model, distilled from {_name(_asked(pipeline, data).model)} with llmdistill."
    sections = {
        "What it is": [f"- Student before training: {origin}", *_training(data), *_teacher(pipeline, data)],
        "How it compares": _comparison(data),
        "Training data": [*_made(data), *_synthetic(pipeline, data), *_judge(data), "", *_funnel(data.manifests)],
        "Licences and terms": [*_licences(pipeline, data), "- Licence of the student before training: unknown"],
        "Spend": _spend(data),
        "Versions": _versions(data.manifests),
        "Limits": [
            "- Measured on the held-out prompts of the same source only, and not by people.",
            "- Closeness to the teacher says nothing on whether the teacher is right.",
            "- Safety was not tested.",
        ],
    }
    return _card(front, pipeline.name, about, sections)


def terms_digest(pipeline: Pipeline, imported: Sequence[str]) -> dict[str, Any]:
    """What page and cards may say of the terms and does not stand in the pipeline file or the manifests."""
    models = [pipeline.teacher, *(model for _, model in answerers_of(pipeline, imported))]
    found = {model.model: terms_of(model) for model in models}
    exclude = {"hosts", "models"}
    return {name: terms.model_dump(mode="json", exclude=exclude) for name, terms in found.items() if terms}


def _card(front: Mapping[str, Any], title: str, about: str, sections: Mapping[str, Sequence[str]]) -> str:
    head = yaml.safe_dump(dict(front), allow_unicode=True, sort_keys=False, width=10_000)
    parts = [f"---\n{head}---", f"# {_text(title)}", about]
    for heading, lines in sections.items():
        parts += [f"## {heading}", "\n".join(lines) or "Nothing is known."]
    return "\n\n".join(parts) + "\n"


def _plain(value: object) -> str:
    """Any value on one line, without control characters, at most a few hundred characters."""
    return words.shorten(" ".join(words.clean(str(value)).split()), _MOST_CHARS)


def _text(value: object) -> str:
    """Any value as text that Markdown, and HTML in it, show as it is."""
    escaped = _MARKUP.sub(r"\\\1", html.escape(_plain(value), quote=False))
    return _AUTOLINK.sub(r"\1\\.", escaped)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table whose cells are text already made safe."""
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return [f"| {line} |" for line in lines]


def _name(model: object) -> str:
    """A model's name for others to read: of a directory only the last part."""
    path = Path(_plain(model))
    return _text(path.name if path.is_absolute() else model)


def _revision(revision: object) -> str:
    """A revision for others to read: not the address of whoever served the model."""
    return "unknown (served)" if str(revision).startswith("served:") else _text(revision)


def _setting(data: RunData, stage: str, key: str) -> Any:
    manifest = data.manifests.get(stage)
    value = manifest.settings.get(key) if manifest else None
    return _UNKNOWN if value is None else value


def _asked(pipeline: Pipeline, data: RunData) -> Model:
    """The teacher under the name that the manifest has; the settings may name another one by now."""
    manifest = data.manifests.get("generate")
    name = manifest.settings.get("teacher.model") if manifest else None
    return pipeline.teacher.model_copy(update={"model": name}) if isinstance(name, str) else pipeline.teacher


def _student(pipeline: Pipeline, data: RunData) -> tuple[Any, Any, Any]:
    """What the student was made from, as recorded: a model's name, or how many layers and how they were chosen."""
    manifest, names = data.manifests.get("train"), ("model", "keep_layers", "layer_rule")
    settings = manifest.settings if manifest else {}
    if "student.keep_layers" not in settings:
        settings = {f"student.{name}": getattr(pipeline.student, name) for name in names}
    model, keep_layers, rule = (settings.get(f"student.{name}") for name in names)
    return model, keep_layers, rule


def _teacher(pipeline: Pipeline, data: RunData) -> list[str]:
    model, revision, engine = (
        _setting(data, "generate", f"teacher.{name}") for name in ("model", "revision", "engine")
    )
    sampling = {name: _setting(data, "generate", f"generate.{name}") for name in _SAMPLING}
    shown = ", ".join(f"{name} {words.setting(value)}" for name, value in sampling.items())
    return [
        f"- Teacher: {_name(model)}, revision {_revision(revision)}, engine {_text(engine)}",
        f"- Sampling: {_text(shown)}",
        f"- Prompts: {_text(pipeline.prompts.dataset or Path(pipeline.prompts.path).name)}",
    ]


def _made(data: RunData) -> list[str]:
    """How the answers came about, as far as the manifest says and it is more than one plain answer to each prompt."""
    mode, num = (_setting(data, "generate", f"generate.{name}") for name in ("mode", "samples.n"))
    lines = [f"- Mode: {_text(mode)}"]
    if num not in (_UNKNOWN, 1):
        lines.append(f"- Answers asked for per prompt: {_text(num)}{_text(_choice(data))}")
    hint = _setting(data, "generate", "generate.hint")
    if hint not in (_UNKNOWN, "never"):
        when = "always" if hint == "always" else "after a wrong answer"
        lines.append(f"- Hint: the teacher was told the reference {when}, and asked for a rationale that leads there")
    others = _setting(data, "generate", "generate.co_teachers")
    for other in others if isinstance(others, list) else []:
        weight, name = (other.get("weight"), other.get("model", {}).get("model"))
        lines.append(f"- Co-teacher: {_name(name)}, weight {_text(weight)} to the teacher's 1")
    fallback = _setting(data, "generate", "generate.fallback.model")
    if fallback != _UNKNOWN:
        lines.append(f"- Fallback, asked what the teacher failed: {_name(fallback)}")
    if mode == "import":
        lines.append(f"- Imported answers of: {', '.join(map(_name, data.answerers)) or _UNKNOWN}")
    return lines


def _choice(data: RunData) -> str:
    """Which of several answers went on."""
    vote, keep, rates = (
        _setting(data, "generate", f"generate.samples.{name}") for name in ("vote", "keep", "pass_rate")
    )
    parts = ["those that agree with the most frequent one"] if vote is True else []
    if isinstance(keep, int):
        parts.append(f"at most {keep} by {_setting(data, 'generate', 'generate.samples.keep_by')}")
    if isinstance(rates, list) and rates != [0.0, 1.0]:
        parts.append(f"prompts with a pass rate of {' to '.join(map(str, rates))}")
    return f"; kept: {', '.join(parts)}" if parts else ""


def _synthetic(pipeline: Pipeline, data: RunData) -> list[str]:
    """Which part a model wrote."""
    mode = _setting(data, "generate", "generate.mode")
    if mode == _UNKNOWN:
        return []
    own = "the prompts too" if pipeline.prompts.synthetic else "the prompts are those of the source"
    part = {
        "synthetic_qa": "questions and answers, both",
        "evolve": "the answers, and the prompts that are variants of those of the source",
    }
    return [f"- Written by a model: {part.get(str(mode), f'the answers and rationales; {own}')}"]


def _judge(data: RunData) -> list[str]:
    if "filter" not in data.manifests:
        return []
    names = ("by.model", "by.revision", "rubric", "rubric_sha256", "min_score")
    model, revision, rubric, digest, least = (_setting(data, "filter", f"filter.judge.{name}") for name in names)
    if model == _UNKNOWN:
        return ["- Judge: none is recorded"]
    return [
        f"- Judge: {_name(model)}, revision {_revision(revision)}",
        f"- Rubric: {_text(rubric)} (sha256 {_text(digest)}), least score {_text(least)}",
    ]


def _training(data: RunData) -> list[str]:
    shown = [f"{name} {words.setting(_setting(data, 'train', f'train.{name}'))}" for name in _TRAINING]
    manifest = data.manifests.get("train")
    trained = f"{manifest.counts.kept:,}" if manifest else _UNKNOWN
    return [f"- Training: {_text(', '.join(shown))}", f"- Trained on: {trained} records"]


def _funnel(manifests: Mapping[str, Manifest]) -> list[str]:
    rows = []
    for name in _FUNNEL:
        if name in manifests:
            counts = manifests[name].counts
            reasons = ", ".join(f"{_text(reason)} {number:,}" for reason, number in counts.reasons.items())
            numbers = (counts.input, counts.kept, counts.rejected, counts.failed)
            rows.append([name, *(f"{number:,}" for number in numbers), reasons])
    return _table(["Stage", "In", "Kept", "Rejected", "Failed", "Reasons"], rows)


def _licences(pipeline: Pipeline, data: RunData) -> list[str]:
    terms = terms_of(_asked(pipeline, data))
    return [
        f"- Licence of the prompts, as given in the settings: {_text(pipeline.prompts.licence or _UNKNOWN)}",
        *(_terms(terms, pipeline.teacher.accept_terms) if terms else ["- Terms of the teacher: unknown"]),
    ]


def _terms(terms: Terms, accepted: bool) -> list[str]:
    said = "yes" if accepted else "no" if terms.needs_consent else "not needed"
    return [
        f"- Terms of the teacher ({_text(terms.family)}) on training with its answers: {terms.restricts}. "
        f"{_text(terms.summary)} Source: <{terms.url}>, {terms.as_of}. A summary, not legal advice.",
        f"- Accepted in the settings: {said}",
    ]


def _comparison(data: RunData) -> list[str]:
    found = groups(data.table)
    if not found:
        return ["Nothing was held out, so nothing was compared."]
    rows = []
    for heading, lines in found.items():
        rows.append([f"**{_text(heading)}**", *("" for _ in ROLES)])
        rows += [[_text(line.label), *(_cell(cell.value, cell.interval) for cell in line.cells)] for line in lines]
    manifest = data.manifests.get("evaluate")
    num = f"{manifest.counts.kept:,}" if manifest else _UNKNOWN
    note = f"On {num} held-out prompts; 95 % intervals in brackets."
    return [note, "", *_table(["Measure", *ROLES.values()], rows)]


def _cell(value: str, interval: str) -> str:
    return f"{_text(value)} ({_text(interval)})" if interval else _text(value)


def _spend(data: RunData) -> list[str]:
    rows = [
        [
            name,
            f"{usage.requests:,}",
            f"{usage.prompt_tokens:,}",
            f"{usage.completion_tokens:,}",
            words.duration(usage.seconds),
            _text(words.money(usage.cost)),
        ]
        for name, usage in usages(data.manifests).items()
    ]
    return _table(["Stage", "Requests", "Tokens in", "Tokens out", "Time", "Cost, US$"], rows)


def _versions(manifests: Mapping[str, Manifest]) -> list[str]:
    """Each package with every version that a stage was made with."""
    found: dict[str, dict[str, None]] = {}
    for manifest in manifests.values():
        for package, version in manifest.versions.items():
            found.setdefault(package, {})[version] = None
    return [f"- {_text(package)} {_text(', '.join(versions))}" for package, versions in sorted(found.items())]


def _size_category(num: int) -> str:
    return next((name for limit, name in _SIZES if num < limit), "n>1M")


def _base_model(pipeline: Pipeline, data: RunData) -> str | None:
    """The Hub name of what the student was before; None for a directory, or when the name is no Hub name."""
    name = _student(pipeline, data)[0] or pipeline.teacher.weights or _asked(pipeline, data).model
    return name if _HUB_NAME.fullmatch(str(name)) and not Path(name).exists() else None
