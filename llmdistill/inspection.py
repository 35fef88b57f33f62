"""Looking at records of any stage: which ones, and which of their values."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmdistill.decisions import Row
from llmdistill.errors import UsageError
from llmdistill.fields import value_of
from llmdistill.run.files import read_table
from llmdistill.run.stage import REJECTS, part_paths

_STAGES = ("prompts", "generate", "filter", "curate", "evaluate")
_CONDITION = re.compile(r"^\s*([\w.]+)\s*(<=|>=|!=|<|>|=|~)\s*(.*?)\s*$", re.DOTALL)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda value, wanted: value < wanted,
    "<=": lambda value, wanted: value <= wanted,
    ">": lambda value, wanted: value > wanted,
    ">=": lambda value, wanted: value >= wanted,
    "=": lambda value, wanted: value == wanted,
    "!=": lambda value, wanted: value != wanted,
    "~": lambda value, wanted: str(wanted) in str(value),
}

_DERIVED = ("score", "question", "reply")


def read_rows(run_dir: Path, stage: str, rejects: bool = False) -> list[Row]:
    """Rows of a stage's shards, or of its reject file.

    Raises:
        UsageError: no such stage, or it has written nothing yet.
    """
    if stage not in _STAGES:
        raise UsageError(
            f"no stage {stage} has records", where=f"--stage {stage}", do=f"there are {', '.join(_STAGES)}"
        )
    folder = run_dir / stage
    paths = [folder / REJECTS] if rejects else part_paths(folder)
    paths = [path for path in paths if path.exists()]
    if not paths:
        kind = "reject file" if rejects else "finished shard"
        command = "generate" if stage == "prompts" else stage
        raise UsageError(f"there is no {kind}", where=folder, do=f"run llmdistill {command} first")
    return [row for path in paths for row in read_table(path).to_pylist()]


def matching(rows: Sequence[Row], conditions: Sequence[str]) -> list[Row]:
    """Rows that meet every condition, e.g. `score<3`, `reject.reason=low_score`, `answer~pizza`."""
    tests = [_test_of(condition) for condition in conditions]
    return [row for row in rows if all(test(row) for test in tests)]


def field_of(condition: str) -> str:
    """The record's field that a condition is about; empty when it is no condition."""
    match = _CONDITION.match(condition)
    return match[1].split(".")[0] if match else ""


def _test_of(condition: str) -> Callable[[Row], bool]:
    match = _CONDITION.match(condition)
    if not match:
        raise UsageError("a condition is written field<value", where=f"--where {condition}", do="--where 'score<3'")
    name, sign, text = match.groups()
    compare = _COMPARE[sign]

    def test(row: Row) -> bool:
        value = value_of(row, name)
        if value is None:
            return False
        wanted: Any = text
        if isinstance(value, dict | list) and sign != "~":
            raise UsageError(f"{name} is not one value", where=f"--where {condition}", do=f"--where '{name}~text'")
        if isinstance(value, bool):
            wanted = text.lower() == "true"
        elif isinstance(value, int | float):
            wanted = _number(text, condition)
        return compare(value, wanted)

    return test


def _number(text: str, condition: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a number", where=f"--where {condition}") from None


def sample(rows: Sequence[Row], size: int, seed: int = 0) -> list[Row]:
    """A seeded sample, in the rows' own order."""
    chosen = sorted(random.Random(seed).sample(range(len(rows)), min(size, len(rows))))
    return [rows[index] for index in chosen]
