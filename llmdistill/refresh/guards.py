"""What keeps a line of versions healthy in the long run.

A model that learns from its own descendants forgets what is rare (arXiv 2305.17493); real data kept beside what models
write keeps that from happening (arXiv 2404.01413). So generations are counted through teachers that are students
themselves, and the share of prompts that people wrote is known before a training begins.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmdistill.config import Model, Pipeline
from llmdistill.errors import ConfigError, RejectsError
from llmdistill.generate.stage import teachers_of
from llmdistill.run.files import read_json
from llmdistill.run.stage import part_paths
from llmdistill.run.tables import read_columns

_CONFIG, _VERSION = "config.json", "version.json"


def check_generation(pipeline: Pipeline) -> int:
    """The generation of the student to be made: 1 more than the highest among its teachers.

    Raises:
        ConfigError: it is above refresh.max_generation; nothing was asked yet.
    """
    found = generation_of(pipeline)
    highest = pipeline.refresh.max_generation
    if found > highest:
        what = f"the student would be of generation {found}: its teacher is itself the student of another model"
        advice = f"set a teacher that no model taught, or refresh.max_generation: {found}"
        raise ConfigError(f"{what} (at most {highest})", where="refresh.max_generation", do=advice)
    return found


def generation_of(pipeline: Pipeline) -> int:
    """How many models have learned from each other when this student is made."""
    asked = [*teachers_of(pipeline).values(), *([pipeline.teacher] if pipeline.needs_teacher_weights else [])]
    return 1 + max((_generation(_names(model), frozenset()) for model in asked), default=0)


def _generation(names: list[str], seen: frozenset[Path]) -> int:
    """0 for a model that no run here has made."""
    runs = {run for name in names if (run := _run_of(name)) and run not in seen}
    return max((_generation_of_run(run, seen | {run}) for run in runs), default=0)


def _generation_of_run(run_dir: Path, seen: frozenset[Path]) -> int:
    if (run_dir / _VERSION).exists():
        return int(read_json(run_dir / _VERSION).get("generation", 1))
    try:
        settings = Pipeline.model_validate(read_json(run_dir / _CONFIG))
    except ValueError:
        return 1
    asked = [*teachers_of(settings).values(), settings.teacher]
    return 1 + max(_generation(_names(model), seen) for model in asked)


def _names(model: Model) -> list[str]:
    return [name for name in (model.model, model.weights) if name]


def _run_of(name: str) -> Path | None:
    """The run directory that a model's folder lies in: <run>/train/student, or what was exported beside it."""
    path = Path(name)
    if not path.is_dir():
        return None
    return next((folder for folder in path.resolve().parents if (folder / _CONFIG).exists() and folder != path), None)


def check_real(pipeline: Pipeline) -> dict[str, Any]:
    """How much of the training set has a prompt that a person wrote.

    Returns:
        records, real, share, and by how many generations of models the others' prompts were written.

    Raises:
        RejectsError: the share is below refresh.min_real; nothing was trained.
    """
    counts: dict[int, int] = {}
    for path in part_paths(pipeline.run_path / "curate"):
        for table in read_columns(path, ["meta"]):
            for meta in table.column("meta").to_pylist():
                number = int(json.loads(meta).get("synthetic", 0)) if '"synthetic"' in meta else 0
                number = max(number, int(pipeline.prompts.synthetic))
                counts[number] = counts.get(number, 0) + 1
    total, real = sum(counts.values()), counts.get(0, 0)
    share = real / total if total else 0.0
    if share < pipeline.refresh.min_real:
        what = f"of {total:,} chosen records {real:,} have a prompt that a person wrote ({share:.0%})"
        advice = "add real prompts, or keep a share of them with curate.quotas by meta.synthetic"
        where = f"refresh.min_real: {pipeline.refresh.min_real:g}"
        raise RejectsError(what, where=where, do=advice)
    return {"records": total, "real": real, "share": share, "synthetic": {str(k): v for k, v in sorted(counts.items())}}
