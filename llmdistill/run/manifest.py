"""The manifest: written last, it says that a stage is finished and what it did."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llmdistill.errors import AccountingError, DamagedError
from llmdistill.record import SCHEMA_VERSION
from llmdistill.run.files import read_json, write_json

FILE_NAME = "manifest.json"
_PACKAGES = ("llmdistill", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "pyarrow", "vllm")


@dataclass(frozen=True)
class Counts:
    """The accounting identity of a stage, in records: `input = kept + rejected + failed`."""

    input: int
    kept: int
    rejected: int
    failed: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def check(self, stage: str) -> None:
        """Raise `AccountingError` unless every input record is accounted for exactly once."""
        if self.input != self.kept + self.rejected + self.failed:
            message = (
                f"{stage} does not add up: {self.input} in, but {self.kept} kept + "
                f"{self.rejected} rejected + {self.failed} failed"
            )
            raise AccountingError(message, do="please report this; the run directory is kept as it is")


@dataclass(frozen=True)
class Usage:
    """What a stage took: model calls, tokens, seconds, and US dollars (None when unknown)."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cost: float | None = 0.0

    def __add__(self, other: Usage) -> Usage:
        """Both together; a cost with an unknown part is unknown."""
        cost = None if self.cost is None or other.cost is None else round(self.cost + other.cost, 9)
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            round(self.seconds + other.seconds, 1),
            cost,
        )

    @property
    def cost_words(self) -> str:
        """The cost for a person to read; empty when there was none."""
        return "cost unknown" if self.cost is None else f"${self.cost:,.4f}" if self.cost else ""


@dataclass(frozen=True)
class Manifest:
    """A finished stage. `outputs` maps file names to their sha256; `settings` is what was digested."""

    stage: str
    digest: str
    settings: dict[str, Any]
    counts: Counts
    usage: Usage
    outputs: dict[str, str]
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def write(self, stage_dir: Path) -> None:
        """Put the manifest in place; from here on the stage is finished."""
        write_json(stage_dir / FILE_NAME, asdict(self))


def read_manifest(stage_dir: Path) -> Manifest | None:
    """The stage's manifest, or None when the stage is not finished."""
    path = stage_dir / FILE_NAME
    if not path.exists():
        return None
    values = read_json(path)
    if not isinstance(values, dict) or "schema_version" not in values:
        raise DamagedError("this is no manifest", where=path, do="remove it and run the same command again")
    found = values["schema_version"]
    if found != SCHEMA_VERSION:
        message = f"made under schema {found}, this version reads schema {SCHEMA_VERSION}"
        raise DamagedError(message, where=path, do="start a new run with --set name=...")
    try:
        values["counts"] = Counts(**values["counts"])
        values["usage"] = Usage(**values["usage"])
        return Manifest(**values)
    except (KeyError, TypeError) as error:
        advice = "remove it and run the same command again"
        raise DamagedError(f"this manifest is not whole ({error})", where=path, do=advice) from error


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on, without importing them."""
    return dict(_found_packages())


@cache
def _found_packages() -> dict[str, str]:
    """Once for a process: a worker writes a manifest for every shard, and looking takes longer than all else."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
