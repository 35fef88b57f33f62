"""What `curate` decided of every record: while it decides, and as the file that the report and `inspect` read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmdistill.errors import DamagedError
from llmdistill.record import REJECT_SCHEMA, SCHEMA
from llmdistill.run.files import read_table

FILE = Path("curate") / "decisions.parquet"
COPIES = ("near_duplicate", "semantic_duplicate")
"""Reasons of records that were dropped because they nearly equal another one."""
CONTAMINATED = "contaminated"

_SELECTION = SCHEMA.field("selection").type
_REJECT = REJECT_SCHEMA.field("reject").type


@dataclass
class Decisions:
    """One entry per row of the pool; a row is open until it has a reason.

    Attributes:
        ids: [N] ids of the records.
        reason: why it was kept or dropped.
        detail: the same in words, for what was dropped.
        duplicate_of: id of the record that a dropped one nearly equals.
        similarity: to that record, or to the evaluation question that a dropped one resembles.
        cluster, rank: -1 where there is none.
        gain: what it added when it was chosen, in the unit of the selection method.
        nearest, nearest_similarity: the chosen record most like it (not itself), as a row (-1: none) and its cosine.
        places: [N, 2] on the map.
    """

    ids: list[str]
    reason: np.ndarray
    detail: np.ndarray
    duplicate_of: np.ndarray
    similarity: np.ndarray
    cluster: np.ndarray
    rank: np.ndarray
    gain: np.ndarray
    nearest: np.ndarray
    nearest_similarity: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, ids: list[str]) -> Decisions:
        """Nothing is decided yet."""
        num = len(ids)
        return cls(
            ids=ids,
            reason=np.full(num, None, dtype=object),
            detail=np.full(num, None, dtype=object),
            duplicate_of=np.full(num, None, dtype=object),
            similarity=np.full(num, np.nan),
            cluster=np.full(num, -1),
            rank=np.full(num, -1),
            gain=np.full(num, np.nan),
            nearest=np.full(num, -1),
            nearest_similarity=np.full(num, np.nan),
            places=np.full((num, 2), np.nan),
        )

    @property
    def open(self) -> np.ndarray:
        """Rows about which nothing is decided, in order."""
        return np.flatnonzero(self.reason == None)  # noqa: E711

    @property
    def kept(self) -> np.ndarray:
        """Chosen rows, by rank."""
        return np.argsort(self.rank, kind="stable")[np.count_nonzero(self.rank < 0) :]

    def drop(self, row: int, reason: str, detail: str, similarity: float = np.nan, original: int | None = None) -> None:
        """Drop a row; `original` is the row that it nearly equals."""
        self.reason[row], self.detail[row], self.similarity[row] = reason, detail, similarity
        self.duplicate_of[row] = None if original is None else self.ids[original]

    def keep(self, rows: np.ndarray, reasons: Sequence[str], gains: np.ndarray) -> None:
        """Keep rows, given in order of rank."""
        self.reason[rows] = reasons
        self.rank[rows] = np.arange(len(rows))
        self.gain[rows] = gains

    def table(self) -> pa.Table:
        """One row per record, in the order of the ids."""
        ids = np.array([*self.ids, None], dtype=object)
        columns = {
            "id": pa.array(self.ids, pa.string()),
            "kept": pa.array(self.rank >= 0),
            "reason": pa.array(self.reason, pa.string()),
            "duplicate_of": pa.array(self.duplicate_of, pa.string()),
            "similarity": _or_null(self.similarity),
            "nearest": pa.array(ids[self.nearest], pa.string()),
            "nearest_similarity": _or_null(self.nearest_similarity),
            "cluster": pa.array(self.cluster, pa.int64(), mask=self.cluster < 0),
            "rank": pa.array(self.rank, pa.int64(), mask=self.rank < 0),
            "gain": _or_null(self.gain),
            "x": _or_null(self.places[:, 0]),
            "y": _or_null(self.places[:, 1]),
        }
        return pa.table(columns)

    def with_selection(self, table: pa.Table, rows: np.ndarray) -> pa.Table:
        """Records, which are the given rows, each with its selection."""
        arrays = [
            pa.array(self.rank[rows] >= 0),
            pa.array(self.reason[rows], pa.string()),
            pa.array(self.duplicate_of[rows], pa.string()),
            pa.array(self.cluster[rows], pa.int64(), mask=self.cluster[rows] < 0),
            pa.array(self.rank[rows], pa.int64(), mask=self.rank[rows] < 0),
        ]
        selection = pa.StructArray.from_arrays(arrays, fields=list(_SELECTION))
        return table.set_column(SCHEMA.get_field_index("selection"), SCHEMA.field("selection"), selection)

    def as_rejects(self, table: pa.Table, rows: np.ndarray) -> pa.Table:
        """Records, which are the given rows, under `REJECT_SCHEMA`."""
        columns = [["curate"] * len(rows), self.reason[rows], self.detail[rows], [""] * len(rows)]
        arrays = [pa.array(column, pa.string()) for column in columns]
        reject = pa.StructArray.from_arrays(arrays, fields=list(_REJECT))
        return self.with_selection(table, rows).append_column(REJECT_SCHEMA.field("reject"), reject)


def _or_null(values: np.ndarray) -> pa.Array:
    return pa.array(np.asarray(values, dtype=np.float64), mask=~np.isfinite(values))


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
