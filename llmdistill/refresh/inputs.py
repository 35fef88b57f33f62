"""Everything that a version is made from, as digests: equal ones mean that there is nothing to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmdistill.config import Pipeline
from llmdistill.engines.resume import find, model_parts
from llmdistill.errors import ConfigError, DamagedError
from llmdistill.generate.prompts import input_hashes
from llmdistill.pipeline_file import find_file
from llmdistill.run.digest import Parts, digest_of, flatten
from llmdistill.run.files import read_json, sha256_of
from llmdistill.run.manifest import read_manifest

_LEFT_OUT = ("ablation", "budget", "name", "refresh", "report", "run", "run_dir", "schedule")
_OF_PROMPTS = ("prompts.sha256", "prompts.held_out_sha256")


Inputs = dict[str, str]
"""`settings`: digest of the settings, of the content of every file they name, and of who is asked; `prompts`: digest
of the prompts."""


def inputs_now(pipeline: Pipeline) -> Inputs:
    """What a version would be made from today."""
    return {"settings": digest_of(_parts(pipeline)), "prompts": digest_of(input_hashes(pipeline.prompts))}


def inputs_then(run_dir: Path) -> Inputs:
    """The same of a finished run: its settings and its prompts as they were, other files as they are today.

    Raises:
        DamagedError: the run does not say what its settings were.
    """
    path = run_dir / "config.json"
    try:
        pipeline = Pipeline.model_validate(read_json(path))
    except ValueError as error:
        raise DamagedError("these are no settings of a run", where=path, do="run llmdistill run again") from error
    manifest = read_manifest(run_dir / "prompts")
    known = manifest.settings if manifest else {}
    prompts = {key: known[key] for key in _OF_PROMPTS if key in known}
    return {"settings": digest_of(_parts(pipeline)), "prompts": digest_of(prompts)}


def gate_settings(pipeline: Pipeline) -> str:
    """Digest of what decides about promotion, beside the measurements."""
    return digest_of(flatten(pipeline.refresh.gate.digest_view()))


def _parts(pipeline: Pipeline) -> Parts:
    view = {key: value for key, value in pipeline.digest_view().items() if key not in _LEFT_OUT}
    settings = {key: value for key, value in pipeline.refresh.digest_view().items() if key not in ("gate", "budget")}
    parts = flatten({**view, "refresh": settings})
    parts |= {f"sha256 of {name}": sha256 for name, sha256 in _files(pipeline, parts)}
    return parts | model_parts("teacher", pipeline.teacher, find(pipeline.teacher))


def _files(pipeline: Pipeline, parts: Parts) -> list[tuple[str, str]]:
    """Files that settings name, the prompts left out, with their hashes."""
    own = {pipeline.prompts.path, pipeline.prompts.held_out_path}
    names = {name for name in _texts(list(parts.values())) if len(name) < 500 and "\n" not in name} - own
    found = []
    for name in sorted({*names, pipeline.teacher_template}):
        try:
            found.append((name, sha256_of(find_file(name, "file"))))
        except ConfigError:
            continue
    return found


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value] if Path(value).suffix else []
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [text for item in inner for text in _texts(item)]
