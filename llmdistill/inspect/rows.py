"""Looking at records of any stage: which ones, and which of their values."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from llmdistill.errors import UsageError
from llmdistill.fields import value_of
from llmdistill.run.files import read_table
from llmdistill.run.stage import REJECTS, part_paths, reject_paths
from llmdistill.run.tables import reading

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

Row = dict[str, Any]


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


def find_rows(
    run_dir: Path, stage: str, ids: Iterable[str], columns: Sequence[str] = ("id", "prompt")
) -> dict[str, Row]:
    """The records of a stage with these ids, kept or rejected, by id; `columns` must hold "id".

    Raises:
        DamagedError: a file of the stage cannot be read.
    """
    wanted = pa.array(sorted(set(ids)), pa.string())
    found: dict[str, Row] = {}
    for paths in (part_paths(run_dir / stage), reject_paths(run_dir / stage)):
        with reading(paths if len(wanted) else []) as dataset:
            if dataset is not None:
                names = [name for name in columns if name in dataset.schema.names]
                table = dataset.to_table(columns=names, filter=ds.field("id").isin(wanted))
                found |= {row["id"]: row for row in table.to_pylist()}
    return found


def read_rejects(run_dir: Path, stage: str, reason: str) -> pa.Table:
    """`id` and `detail` of what a stage dropped for this reason.

    Raises:
        DamagedError: the file cannot be read.
    """
    columns = {"id": ds.field("id"), "detail": ds.field("reject", "detail")}
    with reading(reject_paths(run_dir / stage)) as dataset:
        if dataset is None:
            return pa.table({name: pa.array([], pa.string()) for name in columns})
        return dataset.to_table(columns=columns, filter=ds.field("reject", "reason") == reason)


def reject_batches(run_dir: Path, stage: str, reasons: Sequence[str], num_rows: int) -> Iterator[pa.RecordBatch]:
    """What a stage dropped for one of these reasons, at most `num_rows` at a time.

    Raises:
        DamagedError: the file cannot be read.
    """
    with reading(reject_paths(run_dir / stage)) as dataset:
        if dataset is not None:
            yield from dataset.to_batches(filter=ds.field("reject", "reason").isin(reasons), batch_size=num_rows)


def rejected_ids(run_dir: Path, stage: str, prefix: str) -> list[str]:
    """Ids that begin so, of what a stage dropped.

    Raises:
        DamagedError: the file cannot be read.
    """
    with reading(reject_paths(run_dir / stage)) as dataset:
        if dataset is None:
            return []
        table = dataset.to_table(columns=["id"], filter=pc.starts_with(ds.field("id"), prefix))
    return sorted(pc.unique(table.column("id")).to_pylist())
