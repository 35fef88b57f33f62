"""What one version took itself, beside what it found done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmdistill.run.journal import row_of
from llmdistill.run.manifest import read_manifest
from llmdistill.stages import ASK


@dataclass(frozen=True)
class Taken:
    """What was taken.

    Requests are those to teacher and judges for records; tokens read and written and US dollars (None when unknown) are
    of every answer, those to held-out prompts too; seconds of all stages.
    """

    requests: int
    tokens: int
    cost: float | None
    seconds: float


def taken_in(run_dir: Path, stages: Sequence[str]) -> Taken:
    """Sum up a run's own journals; rows that it has inherited were paid for by another."""
    requests = tokens = 0
    cost: float | None = 0.0
    for stage, row in _answers(run_dir):
        requests += stage in ASK
        tokens += int(row.get("prompt_tokens") or 0) + int(row.get("completion_tokens") or 0)
        paid = row.get("cost", 0.0)  # a journal leaves out what is the default
        cost = None if cost is None or paid is None else cost + float(paid)
    manifests = (read_manifest(run_dir / name) for name in stages)
    seconds = sum(manifest.usage.seconds for manifest in manifests if manifest)
    return Taken(requests, tokens, None if cost is None else round(cost, 9), round(seconds, 1))


def _answers(run_dir: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The stage and the row of every answer."""
    for path in sorted(run_dir.glob("*/journal/*.jsonl")):
        with open(path, "rb") as handle:
            for line in handle:
                row = row_of(line)
                if row and "prompt_tokens" in row:
                    yield path.parent.parent.name, row
