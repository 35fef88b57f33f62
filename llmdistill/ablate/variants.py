"""The pipelines of an ablation: one for each variant and seed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llmdistill.config import Ablation, Pipeline
from llmdistill.errors import ConfigError
from llmdistill.pipeline_file import all_keys, without_keys

FOLDER = "ablation"


@dataclass(frozen=True)
class Trial:
    """One training: a variant under a seed, as a pipeline of its own."""

    variant: str
    seed: int
    pipeline: Pipeline

    @property
    def dir(self) -> Path:
        """Its run directory."""
        return self.pipeline.run_path


def ablation_of(pipeline: Pipeline) -> Ablation:
    """The section `ablation`.

    Raises:
        ConfigError: there is none.
    """
    if pipeline.ablation is None:
        do = "say in it what to vary; pipelines/curation-ablation.yaml shows how"
        raise ConfigError("this pipeline has no section ablation", where=pipeline.name, do=do)
    return pipeline.ablation


def trials_of(pipeline: Pipeline, student: Path | None = None) -> list[Trial]:
    """Every training, one seed after the other, so that a table can be made once the first seed is done.

    Args:
        student: the untrained student where the run has made one; all trials start from it.

    Raises:
        ConfigError: a variant cannot be; nothing has been done yet.
    """
    ablation = ablation_of(pipeline)
    return [
        Trial(variant, seed, _pipeline(pipeline, variant, changes, seed, student))
        for seed in ablation.seeds
        for variant, changes in ablation.vary.items()
    ]


def _pipeline(
    pipeline: Pipeline, variant: str, changes: Mapping[str, Any], seed: int, student: Path | None
) -> Pipeline:
    values = pipeline.model_dump(mode="json")
    values["ablation"] = None
    values["run_dir"] = str(pipeline.run_path / FOLDER / f"{variant}-{seed}")
    if student:
        values["student"] = {"model": str(student)}
    for key, value in {**changes, "curate.seed": seed, "train.seed": seed}.items():
        _lay_over(values, key.split("."), value)
    try:
        return Pipeline.model_validate(values)
    except ValidationError as error:
        raise _problem(error, variant) from None


def _lay_over(values: dict[str, Any], names: list[str], value: Any) -> None:
    for name in names[:-1]:
        if not isinstance(values.get(name), dict):
            values[name] = {}
        values = values[name]
    values[names[-1]] = value


def _problem(error: ValidationError, variant: str) -> ConfigError:
    """The first thing that is wrong with a variant, as one line."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    where = f"ablation.vary.{variant}"
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, all_keys(), n=1, cutoff=0.5)
        do = f"did you mean {close[0]}?" if close else "see llmdistill init for the keys there are"
        return ConfigError(without_keys(f"unknown key {key}"), where=where, do=do)
    reason = problem["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    return ConfigError(without_keys(f"{key}: {reason}"), where=where, do="change the value")
