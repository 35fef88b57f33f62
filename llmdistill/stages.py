"""The order of the stages, and how a run goes through them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from llmdistill.config import Pipeline
from llmdistill.run.files import make_dir, write_json
from llmdistill.run.lock import locked
from llmdistill.run.manifest import Manifest, read_manifest
from llmdistill.run.progress import say

STAGES = {
    "prompts": ("llmdistill.generate.stage", "read"),
    "generate": ("llmdistill.generate.stage", "run"),
    "filter": ("llmdistill.filter.stage", "run"),
    "curate": ("llmdistill.curate.stage", "run"),
    "train": ("llmdistill.train.stage", "run"),
    "evaluate": ("llmdistill.evaluate.stage", "run"),
    "report": ("llmdistill.report.stage", "run"),
}
"""Where each stage lives; imported when it runs, because most of them need torch."""

NEED_MODELS = {"generate", "filter", "train", "evaluate"}


def run_stages(pipeline: Pipeline, names: Sequence[str], *, fresh: bool = False) -> dict[str, Manifest]:
    """Run the named stages in their order; finished ones are skipped. One process at a time.

    Raises:
        BusyError: another process works on this run.
        LlmdistillError: a stage could not finish; what it did so far is kept.
    """
    manifests = {}
    with locked(pipeline.run_path):
        write_json(make_dir(pipeline.run_path) / "config.json", pipeline.model_dump(mode="json"))
        first = next((name for name in names if name in NEED_MODELS), None)
        for name in names:
            if name == first:
                _find_models(pipeline)
            before = read_manifest(pipeline.run_path / name)
            manifests[name] = _function_of(name)(pipeline, fresh=fresh)
            say(_summary(manifests[name], done_before=manifests[name] == before))
    return manifests


def _find_models(pipeline: Pipeline) -> None:
    """Find every model that a stage will need, so that a wrong name stops the run before anything is spent."""
    from llmdistill.engines.models import find_model

    named = [pipeline.teacher, pipeline.filter.judge.model if pipeline.filter.judge else None]
    wanted = {(model.model, model.revision, model.trust_remote_code) for model in named if model}
    if pipeline.student.model:
        wanted.add((pipeline.student.model, pipeline.student.revision, False))
    for name, revision, trust_remote_code in sorted(wanted, key=str):
        find_model(name, revision, trust_remote_code)


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
    return f"{name} {counts.input:,} in, {counts.kept:,} kept{dropped}, {manifest.usage.seconds:,.0f} s"
