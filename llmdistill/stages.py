"""The order of the stages, and how a run goes through them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from llmdistill.config import Model, Pipeline
from llmdistill.run.executor import leaving_cluster
from llmdistill.run.files import make_dir, write_json
from llmdistill.run.lock import locked
from llmdistill.run.manifest import Manifest, read_manifest
from llmdistill.run.progress import say

STAGES = {
    "prompts": ("llmdistill.generate.stage", "read"),
    "generate": ("llmdistill.generate.stage", "run"),
    "filter": ("llmdistill.filter.stage", "run"),
    "curate": ("llmdistill.curate.stage", "run"),
    "signals": ("llmdistill.signals.stage", "run"),
    "train": ("llmdistill.train.stage", "run"),
    "evaluate": ("llmdistill.evaluate.stage", "run"),
    "report": ("llmdistill.report.stage", "run"),
}
"""Where each stage lives; imported when it runs, because most of them need torch."""

NEED_MODELS = {"generate", "filter", "signals", "train", "evaluate"}
_NEED_TEACHER = {"signals", "train", "evaluate"}

ASK = {"generate", "filter"}
"""Stages that ask a model about every record, and in which a record can fail."""


def stages_of(pipeline: Pipeline) -> list[str]:
    """The stages that a pipeline has, in their order: nothing is stored of the teacher where that is not wanted."""
    return [name for name in STAGES if name != "signals" or pipeline.signals is not None]


def run_stages(
    pipeline: Pipeline,
    names: Sequence[str],
    *,
    fresh: bool = False,
    retry_failed: bool = False,
    rejudge: bool = False,
) -> dict[str, Manifest]:
    """Run the named stages in their order; finished ones are skipped. One process at a time.

    Args:
        fresh: do stages over whose costly settings changed.
        retry_failed: ask again for the records that failed in a finished stage.
        rejudge: have `filter` judge everything once more.

    Raises:
        BusyError: another process works on this run.
        LlmdistillError: a stage could not finish; what it did so far is kept.
    """
    manifests = {}
    with locked(pipeline.run_path), leaving_cluster():
        write_json(make_dir(pipeline.run_path) / "config.json", pipeline.model_dump(mode="json"))
        first = next((name for name in names if name in NEED_MODELS), None)
        for name in names:
            if name == first:
                _find_models(pipeline, names)
            before = read_manifest(pipeline.run_path / name)
            more = {"retry_failed": retry_failed} if name in ASK else {}
            if name == "filter":
                more["rejudge"] = rejudge
            manifests[name] = _function_of(name)(pipeline, fresh=fresh, **more)
            say(_summary(manifests[name], done_before=manifests[name] == before))
    return manifests


def _find_models(pipeline: Pipeline, names: Sequence[str]) -> None:
    """Find every model that a stage will need, so that a wrong name stops the run before anything is spent."""
    from llmdistill.curate.embed import embed_parts
    from llmdistill.engines.resume import find, find_weights
    from llmdistill.filter.panel import seats_of
    from llmdistill.generate.stage import teachers_of
    from llmdistill.train.checks import check_training

    if "train" in names:
        check_training(pipeline)
    asked = list(teachers_of(pipeline).values())
    if _NEED_TEACHER & set(names):
        asked.append(pipeline.teacher)
    if pipeline.filter.judge:
        asked += [seat.model for seat in seats_of(pipeline)]
    for number, model in enumerate(asked):
        if model not in asked[:number]:
            find(model)
    if pipeline.teacher.engine == "openai" and pipeline.has_teacher_weights and _NEED_TEACHER & set(names):
        find_weights(pipeline.teacher)
    if pipeline.student.model:
        find(Model(model=pipeline.student.model, revision=pipeline.student.revision))
    if "signals" in names:
        from llmdistill.signals.stage import header_of

        header_of(pipeline)  # refuses other vocabularies, and what the engine cannot do
    if "curate" in names:
        embed_parts(pipeline.curate.embed, pipeline)


def _function_of(name: str) -> Callable[..., Manifest]:
    module, function = STAGES[name]
    return getattr(importlib.import_module(module), function)


def _summary(manifest: Manifest, done_before: bool) -> str:
    """One line about a finished stage."""
    counts, name = manifest.counts, f"{manifest.stage:<9}"
    if done_before:
        return f"{name} done already"
    if not counts.input:
        return f"{name} done"
    reasons = ", ".join(f"{reason} {number:,}" for reason, number in counts.reasons.items())
    dropped = f", {counts.rejected:,} rejected ({reasons})" if counts.rejected else ""
    failed = f", {counts.failed:,} failed (--retry-failed asks them again)" if counts.failed else ""
    took = ", ".join(part for part in (f"{manifest.usage.seconds:,.0f} s", manifest.usage.cost_words) if part)
    return f"{name} {counts.input:,} in, {counts.kept:,} kept{dropped}{failed}, {took}"
