"""What `curate` decided of every record, read from the run directory: for the report and for `inspect`.

Of a large run only columns are held; the texts of a few records are looked up.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from llmdistill.errors import DamagedError
from llmdistill.run.files import read_table
from llmdistill.run.stage import REJECTS, part_paths

FILE = Path("curate") / "decisions.parquet"
COPIES = ("near_duplicate", "semantic_duplicate")
"""Reasons of records that were dropped because they nearly equal another one."""
CONTAMINATED = "contaminated"

Row = dict[str, Any]

_WORDS = re.compile(r"\s+|\S+")


def read_decisions(run_dir: Path) -> pa.Table | None:
    """One row per record that came into `curate`, ordered by id; None where there is no such file.

    Raises:
        DamagedError: the file cannot be read, or is not what `curate` wrote.
    """
    path = run_dir / FILE
    if not path.exists():
        return None
    table = read_table(path)
    missing = {"id", "kept", "reason", "duplicate_of", "similarity", "x", "y"} - set(table.column_names)
    if missing:
        advice = "remove the stage's folder and run the same command again"
        raise DamagedError(f"there is no column {', '.join(sorted(missing))}", where=path, do=advice)
    return table


@dataclass(frozen=True)
class Groups:
    """G groups of records that nearly equal each other: one that went on, and its C copies in all.

    Attributes:
        heads: [G] row of the one that went on.
        starts: [G + 1] where each group's copies begin.
        copies: [C] rows of the copies, group by group, the most similar first.
        originals: [C] the row that each was found to equal: the head, or another copy.
        similarities: [C] to that one; NaN where it is not known.
    """

    heads: np.ndarray
    starts: np.ndarray
    copies: np.ndarray
    originals: np.ndarray
    similarities: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """[G] copies of each group."""
        return np.diff(self.starts)

    @property
    def least_similar(self) -> np.ndarray:
        """[G] the lowest similarity of each group."""
        return self.similarities[self.starts[1:] - 1]

    def places_of(self, group: int) -> range:
        """Where one group's copies stand among all copies."""
        return range(int(self.starts[group]), int(self.starts[group + 1]))


def duplicate_groups(decisions: pa.Table) -> Groups:
    """Who was dropped as a copy of whom.

    A copy of what was itself dropped as a copy belongs to the group of the one that went on.
    """
    num = decisions.num_rows
    ids = decisions.column("id").combine_chunks()
    is_copy = _as_bools(pc.is_in(decisions.column("reason"), pa.array(COPIES)))
    originals = pc.fill_null(pc.index_in(decisions.column("duplicate_of"), ids), -1).to_numpy()
    parents = np.where(is_copy & (originals >= 0), originals, np.arange(num))
    heads = _roots(parents)
    similarities = decisions.column("similarity").to_numpy()
    copies = np.flatnonzero(heads != np.arange(num))
    copies = copies[np.lexsort((copies, -similarities[copies], heads[copies]))]
    found, starts = np.unique(heads[copies], return_index=True)
    return Groups(found, np.append(starts, len(copies)), copies, parents[copies], similarities[copies])


def _roots(parents: np.ndarray) -> np.ndarray:
    """Where each row's chain of parents ends; each round doubles the length that is followed."""
    for _ in range(len(parents).bit_length()):
        further = parents[parents]
        if np.array_equal(further, parents):
            break
        parents = further
    return parents


def _as_bools(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(column, False).to_numpy(zero_copy_only=False), dtype=bool)


def find_rows(
    run_dir: Path, stage: str, ids: Iterable[str], columns: Sequence[str] = ("id", "prompt")
) -> dict[str, Row]:
    """The records of a stage with these ids, kept or rejected, by id; `columns` must hold "id".

    Raises:
        DamagedError: a file of the stage cannot be read.
    """
    wanted = pa.array(sorted(set(ids)), pa.string())
    found: dict[str, Row] = {}
    for paths in (part_paths(run_dir / stage), _rejects(run_dir, stage)):
        with _reading(paths if len(wanted) else []) as dataset:
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
    with _reading(_rejects(run_dir, stage)) as dataset:
        if dataset is None:
            return pa.table({name: pa.array([], pa.string()) for name in columns})
        return dataset.to_table(columns=columns, filter=ds.field("reject", "reason") == reason)


def reject_batches(run_dir: Path, stage: str, reasons: Sequence[str], num_rows: int) -> Iterator[pa.RecordBatch]:
    """What a stage dropped for one of these reasons, at most `num_rows` at a time.

    Raises:
        DamagedError: the file cannot be read.
    """
    with _reading(_rejects(run_dir, stage)) as dataset:
        if dataset is not None:
            yield from dataset.to_batches(filter=ds.field("reject", "reason").isin(reasons), batch_size=num_rows)


def rejected_ids(run_dir: Path, stage: str, prefix: str) -> list[str]:
    """Ids that begin so, of what a stage dropped.

    Raises:
        DamagedError: the file cannot be read.
    """
    with _reading(_rejects(run_dir, stage)) as dataset:
        if dataset is None:
            return []
        table = dataset.to_table(columns=["id"], filter=pc.starts_with(ds.field("id"), prefix))
    return sorted(pc.unique(table.column("id")).to_pylist())


def _rejects(run_dir: Path, stage: str) -> list[Path]:
    path = run_dir / stage / REJECTS
    return [path] if path.exists() else []


@contextmanager
def _reading(paths: Sequence[Path]) -> Iterator[ds.Dataset | None]:
    try:
        yield ds.dataset([str(path) for path in paths], format="parquet") if paths else None
    except (OSError, pa.ArrowException) as error:
        advice = "remove the stage's folder and run the same command again"
        raise DamagedError(f"not readable as Parquet ({error})", where=paths[0], do=advice) from error


def differing(kept: str, copy: str) -> list[tuple[str, bool]]:
    """The copy's text in pieces, each with whether the kept text has it otherwise; compared word by word."""
    ours, theirs = _WORDS.findall(kept), _WORDS.findall(copy)
    matcher = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
    pieces = [("".join(theirs[first:last]), tag != "equal") for tag, _, _, first, last in matcher.get_opcodes()]
    return [(text, differs) for text, differs in pieces if text]
