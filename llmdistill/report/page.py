"""Puts the page together: plain values for the template, which escapes every one of them.

The only markup that enters `page.html` from outside is the charts', and those
hold no text of the run's data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from llmdistill.config import Pipeline
from llmdistill.report import words
from llmdistill.report.charts import Chart, draw_all, draw_choice, draw_gains
from llmdistill.report.compare import ROLES, conclude, groups
from llmdistill.report.coverage import coverage_of, coverage_words
from llmdistill.report.data import Example, JudgeRow, RunData, Sample, usages
from llmdistill.report.html import render_page
from llmdistill.report.traps import run_warnings
from llmdistill.run.digest import flatten
from llmdistill.run.manifest import Counts, Manifest, Usage

_TEMPLATE = "page.html"
_SAMPLE_CHARS = 4_000
_EXCERPT_CHARS = 400
_FUNNEL = ("prompts", "generate", "filter", "curate", "train")


@dataclass(frozen=True)
class Bar:
    """A count drawn as a share of the widest bar, in percent."""

    label: str
    count: int
    width: float


@dataclass(frozen=True)
class FunnelStage:
    """What one stage did to the records that came in."""

    name: str
    counts: Counts
    bars: list[Bar]
    reasons: list[Bar]
    note: str


@dataclass(frozen=True)
class Reply:
    """One model's reply to a held-out prompt, and how far the model is from the teacher there."""

    role: str
    text: str
    note: str


def render(pipeline: Pipeline, data: RunData) -> str:
    """The whole page as HTML text."""
    filtered = data.manifests.get("filter")
    charts = draw_all(data, filtered.metrics.get("min_score") if filtered else None)
    return render_page(
        __package__,
        _TEMPLATE,
        **_head(pipeline, data),
        **_comparison(data),
        refresh=data.refresh,
        gains=_figures(draw_gains(data)),
        warnings=run_warnings(pipeline, data),
        funnel=_funnel(data.manifests),
        charts=_figures(charts),
        choice=_choice(data),
        rounds=_rounds(data.manifests.get("generate")),
        judges=[_judge(row) for row in data.judges if not row.is_verifier],
        verifiers=[_verifier(row) for row in data.judges if row.is_verifier],
        calibration=data.calibration,
        judged=len(data.scores_kept) + len(data.scores_rejected) > 0,
        samples=[(_excerpt(s.prompt), _excerpt(s.reference or ""), _replies(s)) for s in data.samples],
        examples=_examples(data.examples),
        usage=[_usage_row(name, usage) for name, usage in usages(data.manifests).items()],
        digests=[(name, manifest.digest) for name, manifest in data.manifests.items()],
        versions=_versions(data.manifests),
        settings=_settings(pipeline),
    )


_excerpt = partial(words.shorten, num_chars=_SAMPLE_CHARS)


def _head(pipeline: Pipeline, data: RunData) -> dict[str, Any]:
    student, train = pipeline.student, data.manifests.get("train")
    cut = f"{student.keep_layers} layers of the teacher ({student.layer_rule})"
    facts = {
        "Teacher": pipeline.teacher.model,
        "Student": student.model or cut,
        "Method": f"{pipeline.train.method}, LoRA" if pipeline.train.lora else pipeline.train.method,
        "Trained on": f"{train.counts.kept:,} records" if train else words.MISSING,
        "Language": pipeline.language,
        "Seed": str(pipeline.seed),
    }
    title = pipeline.report.title or "Distillation report"
    return {"language": pipeline.language, "title": title, "run_name": pipeline.name, "facts": facts}


def _comparison(data: RunData) -> dict[str, Any]:
    evaluate = data.manifests.get("evaluate")
    num_prompts = evaluate.counts.kept if evaluate else 0
    note = ""
    if evaluate and evaluate.counts.rejected:
        note = f"{evaluate.counts.rejected:,} held-out prompts were left out: the teacher gave no answer."
    return {
        "roles": list(ROLES.values()),
        "conclusion": conclude(data.table, num_prompts),
        "groups": groups(data.table),
        "comparison_note": note,
    }


def _figures(charts: Iterable[Chart]) -> list[tuple[str, Any, str]]:
    from markupsafe import Markup

    return [(chart.title, Markup(chart.svg), chart.caption) for chart in charts]


def _choice(data: RunData) -> dict[str, Any]:
    """What is shown of the selection; pieces that are absent are empty."""
    curation, view = data.curation, coverage_of(data.manifests.get("curate"))
    return {
        "words": coverage_words(view) if view else [],
        "charts": _figures(draw_choice(data)),
        "contaminated": curation.contaminated,
        "num_groups": curation.num_groups,
        "num_copies": curation.num_copies,
        "groups": {
            "Largest groups": curation.groups,
            "Most similar pairs": curation.closest,
            "Least similar pairs": curation.farthest,
        },
        "ablation": data.ablation,
    }


def _funnel(manifests: Mapping[str, Manifest]) -> list[FunnelStage]:
    stages = [(name, manifests[name]) for name in _FUNNEL if name in manifests]
    widest = max((manifest.counts.input for _, manifest in stages), default=0)
    return [_funnel_stage(name, manifest, widest) for name, manifest in stages]


def _funnel_stage(name: str, manifest: Manifest, widest: int) -> FunnelStage:
    counts = manifest.counts
    ends = {"kept": counts.kept, "rejected": counts.rejected, "failed": counts.failed}
    reasons = sorted(counts.reasons.items(), key=lambda item: (-item[1], item[0]))
    held_out = manifest.metrics.get("held_out")
    note = f"{held_out:,} of the kept prompts are held out for evaluation." if isinstance(held_out, int) else ""
    return FunnelStage(name, counts, _bars(ends.items(), widest), _bars(reasons, widest), note)


def _rounds(manifest: Manifest | None) -> list[list[str]]:
    """Who was asked in `generate`, one after the other; empty when the manifest does not say."""
    rounds = manifest.metrics.get("rounds", []) if manifest else []
    return [_round(entry) for entry in rounds]


def _round(entry: Mapping[str, Any]) -> list[str]:
    who = " ".join(str(entry[key]) for key in ("role", "model") if entry.get(key))
    counts = [f"{entry[key]:,}" if isinstance(entry.get(key), int) else words.MISSING for key in ("asked", "usable")]
    reasons = entry.get("reasons")
    listed = ", ".join(f"{reason} {num}" for reason, num in reasons.items()) if isinstance(reasons, dict) else ""
    return [f"{who}, told the answer" if entry.get("hinted") else who, *counts, listed]


def _judge(row: JudgeRow) -> list[str]:
    mean = words.MISSING if row.mean is None else f"{row.mean:.2f}"
    failed, flipped = (f"{num:,} ({words.percent(num / row.verdicts)})" for num in (row.failed, row.flipped))
    return [row.judge, row.criterion, f"{row.verdicts:,}", mean, failed, flipped]


def _verifier(row: JudgeRow) -> str:
    counts = ", ".join(f"{outcome} {num:,}" for outcome, num in row.outcomes.items())
    return f"{row.judge}: {counts}."


def _bars(values: Iterable[tuple[str, int]], widest: int) -> list[Bar]:
    return [Bar(label, count, round(100 * count / max(widest, 1), 2)) for label, count in values if count]


def _replies(sample: Sample) -> list[Reply]:
    found = []
    for role, name in ROLES.items():
        note = "" if role == "teacher" else _distance_note(sample.distances.get(role, {}))
        found.append(Reply(name, _excerpt(sample.replies.get(role, "")), note))
    return found


def _distance_note(means: Mapping[str, float]) -> str:
    parts = []
    if "kl" in means:
        parts.append(f"KL {words.decimal(means['kl'])} nats per token")
    if "top1" in means:
        parts.append(f"agrees on {words.percent(means['top1'])} of tokens")
    return ", ".join(parts)


def _examples(examples: list[Example]) -> list[tuple[str, str, list[dict[str, str]]]]:
    """(stage, reason, examples) in the order of the stages."""
    grouped = groupby(examples, key=lambda example: (example.stage, example.reason))
    return [(stage, reason, [_example(example) for example in found]) for (stage, reason), found in grouped]


def _example(example: Example) -> dict[str, str]:
    short = partial(words.shorten, num_chars=_EXCERPT_CHARS)
    return {
        "where": short(example.where),
        "detail": short(example.detail),
        "prompt": short(example.prompt),
        "reply": short(example.reply),
    }


def _usage_row(name: str, usage: Usage) -> list[str]:
    counts = [f"{value:,}" for value in (usage.requests, usage.prompt_tokens, usage.completion_tokens)]
    return [name, *counts, words.duration(usage.seconds), words.money(usage.cost)]


def _versions(manifests: Mapping[str, Manifest]) -> list[tuple[str, str]]:
    """Each package with its version; with the stages, where they were made with different ones."""
    found: dict[str, dict[str, list[str]]] = {}
    for stage, manifest in manifests.items():
        for package, version in manifest.versions.items():
            found.setdefault(package, {}).setdefault(version, []).append(stage)
    return [(package, _versions_of(stages)) for package, stages in sorted(found.items())]


def _versions_of(stages: Mapping[str, list[str]]) -> str:
    if len(stages) == 1:
        return next(iter(stages))
    return "; ".join(f"{version} ({', '.join(names)})" for version, names in stages.items())


def _settings(pipeline: Pipeline) -> list[tuple[str, str]]:
    values = flatten(pipeline.model_dump(mode="json"))
    return [(key, words.setting(value)) for key, value in values.items()]
