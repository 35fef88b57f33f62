"""Verdicts of former rounds: `llmdistill filter --rejudge` adds to them and loses none.

`<run>/filter/journal/earlier.parquet` holds the verdicts that the records had when the present round began.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmdistill.errors import DamagedError
from llmdistill.record import SCHEMA
from llmdistill.run.files import read_table
from llmdistill.run.manifest import Manifest, read_manifest
from llmdistill.run.stage import REJECTS, check_result
from llmdistill.run.tables import appending, read_columns

ROUND = "filter.round"
"""Key of the round in the stage's settings; absent in the first one, which is 0."""

_INPUT = "input.generate"
_SCHEMA = pa.schema([SCHEMA.field("id"), pa.field("answered", pa.string()), SCHEMA.field("verdicts")])


class Earlier:
    """What was said about records in the rounds before this one."""

    def __init__(self, path: Path, input_digest: str) -> None:
        known = _settings(path)
        self.round = int(known[ROUND])
        # While `generate` is what it was, every answer is.
        self._same_answers = known[_INPUT] == input_digest
        table = read_table(path)
        self._verdicts = table.column("verdicts").combine_chunks()
        self._ids = _bytes(table.column("id"))
        self._answered = None if self._same_answers else _bytes(table.column("answered"))
        self._order = np.argsort(self._ids)
        self._ids = self._ids[self._order]

    def verdicts(self, answers: pa.Table) -> pa.ListArray:
        """The earlier verdicts of answers under `SCHEMA`; none of those that have changed since."""
        ids = _bytes(answers.column("id"))
        if not len(self._ids):
            return pa.nulls(len(ids), self._verdicts.type)
        places = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        rows, known = self._order[places], self._ids[places] == ids
        if self._answered is not None:
            known &= self._answered[rows] == _bytes(pa.chunked_array([pa.array(_answered(answers), pa.string())]))
        return self._verdicts.take(pa.array(rows, mask=~known))


def earlier_of(run_dir: Path, input_digest: str) -> Earlier | None:
    """What former rounds said; None in the first one."""
    path = _path(run_dir)
    return Earlier(path, input_digest) if path.exists() else None


def round_of(run_dir: Path) -> int:
    """The round that the filter of this run is in."""
    path = _path(run_dir)
    return int(_settings(path)[ROUND]) if path.exists() else 0


def begin_round(run_dir: Path) -> None:
    """Begin another round, unless the present one is not finished yet."""
    manifest = read_manifest(run_dir / "filter")
    now = round_of(run_dir)
    if manifest is None or manifest.settings.get(ROUND, 0) != now:
        return
    if not all((run_dir / "filter" / name).exists() for name in manifest.outputs):
        return
    known = {ROUND: str(now + 1), _INPUT: str(manifest.settings[_INPUT])}
    with appending(_path(run_dir), _SCHEMA.with_metadata(known)) as append:
        for table in _results(run_dir / "filter", manifest):
            columns = [table.column("id"), pa.array(_answered(table), pa.string()), table.column("verdicts")]
            append(pa.table(columns, schema=_SCHEMA))


def _results(stage_dir: Path, manifest: Manifest) -> Iterator[pa.Table]:
    """Kept and rejected records of the finished stage, piece by piece."""
    for name in manifest.outputs:
        if name.startswith("part-") or name == REJECTS:
            check_result(stage_dir / name, manifest)
            yield from read_columns(stage_dir / name, ["id", "completion", "verdicts"])


def _path(run_dir: Path) -> Path:
    return run_dir / "filter" / "journal" / "earlier.parquet"


def _settings(path: Path) -> dict[str, str]:
    try:
        metadata = pq.read_schema(path).metadata
        return {key: metadata[key.encode()].decode() for key in (ROUND, _INPUT)}
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        advice = "restore it, or remove it to go on without the verdicts of earlier rounds"
        raise DamagedError("the verdicts of earlier rounds cannot be read", where=path, do=advice) from error


def _answered(table: pa.Table) -> list[str]:
    """A hash of what each record answers."""
    replies = (messages[-1]["content"] or "" if messages else "" for messages in table.column("completion").to_pylist())
    return [blake2b(reply.encode("utf-8"), digest_size=16).hexdigest() for reply in replies]


def _bytes(column: pa.ChunkedArray) -> np.ndarray:
    """Hexadecimal digits as fixed-size bytes, which sort and compare fast."""
    return column.to_numpy().astype("S")
