"""What checks, verifier and judges say about each answer, on disk before any threshold is applied.

    <run>/filter/journal/judged-<digest>/part-00000.parquet ...   row for row as the shards of `generate`
    <run>/filter/journal/judged-<digest>/done.json                written last

It does not depend on thresholds, so another threshold is applied without asking anyone. It lies beside the
journals, so going back to an earlier rubric costs nothing either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from llmdistill.config import Pipeline
from llmdistill.errors import DamagedError
from llmdistill.filter.checks import failed_check
from llmdistill.filter.panel import Judged, Panel
from llmdistill.record import SCHEMA, Record, Reject, Verdict
from llmdistill.run.digest import Parts, digest_of
from llmdistill.run.failpoint import failpoint
from llmdistill.run.files import read_json, read_table, sha256_of, write_json, write_table
from llmdistill.run.journal import Journal
from llmdistill.run.manifest import Usage
from llmdistill.run.stage import FAILED, Stage, num_records, part_path, part_paths, read_shards
from llmdistill.run.tables import read_columns
from llmdistill.verify.records import RecordVerifier

_VERDICTS = SCHEMA.field("verdicts").type
_FIELDS = [field.name for field in _VERDICTS.value_type]

JUDGED_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("verified", _VERDICTS),
        pa.field("verdicts", _VERDICTS),
        pa.field("scores", pa.list_(pa.float64())),
        pa.field("outcome", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
"""`scores` has one value per juror, null where its judgement failed. `reason` is null where nothing but the score
decides; `outcome` says what became of the judgement then."""

_DONE = "done.json"


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of an answer without a judge: why it is rejected, if it is, and the verifier's word."""

    reason: str | None = None
    detail: str = ""
    verified: Verdict | None = None


Examine = Callable[[int, list[Record]], list[Look]]
"""Looks at the records of the shard with this number."""


class JudgedStore:
    """The folder of one way to judge.

    Attributes:
        parts: all that what is said depends on.
    """

    def __init__(self, stage: Stage, parts: Parts) -> None:
        self.parts = parts
        self.dir = stage.dir / "journal" / f"judged-{digest_of(parts)[:16]}"

    @property
    def finished(self) -> bool:
        """Whether all shards are there."""
        return (self.dir / _DONE).exists()

    @property
    def num_failed(self) -> int:
        """How many records got no answer from a judge; 0 while it is not finished."""
        return int(self._done()["failed"]) if self.finished else 0

    @property
    def usage(self) -> Usage:
        """What the judges took."""
        return Usage(**self._done()["usage"])

    def _done(self) -> dict[str, Any]:
        path = self.dir / _DONE
        found = read_json(path)
        if not isinstance(found, dict) or {"failed", "usage", "outputs"} - set(found):
            raise self._damaged(path, "this is not whole")
        return found

    def reopen(self) -> None:
        """Have the shards made again in which records failed."""
        (self.dir / _DONE).unlink()

    def is_made(self, index: int) -> bool:
        """Whether a shard is there and nothing in it failed."""
        path = part_path(self.dir, index)
        return path.exists() and not _num_failed(path)

    def write(self, index: int, rows: list[dict[str, Any]]) -> None:
        """Write one shard atomically."""
        write_table(part_path(self.dir, index), pa.Table.from_pylist(rows, schema=JUDGED_SCHEMA))

    def finish(self, usage: Usage) -> None:
        """Say that all shards are there."""
        paths = part_paths(self.dir)
        outputs = {path.name: sha256_of(path) for path in paths}
        failed = sum(map(_num_failed, paths))
        write_json(self.dir / _DONE, {"failed": failed, "usage": asdict(usage), "outputs": outputs})

    def reader(self) -> Callable[[int, pa.Table], pa.Table]:
        """Gives what was said about the answers of shard number n, row for row.

        Raises:
            DamagedError: a file is not what was written, or belongs to other answers.
        """
        outputs = self._done()["outputs"]

        def read(index: int, answers: pa.Table) -> pa.Table:
            path = part_path(self.dir, index)
            if not path.exists() or outputs.get(path.name) != sha256_of(path):
                raise self._damaged(path, "this is not what filter wrote")
            table = read_table(path)
            if not table.column("id").equals(answers.column("id")):
                raise self._damaged(path, "this belongs to other answers")
            return table

        return read

    def _damaged(self, path: Path, what: str) -> DamagedError:
        advice = f"remove {self.dir} and run the same command again; no judge is asked again"
        return DamagedError(what, where=path, do=advice)


def _num_failed(path: Path) -> int:
    return sum(table.column("reason").to_pylist().count(FAILED) for table in read_columns(path, ["reason"]))


def judge_all(
    pipeline: Pipeline, stage: Stage, store: JudgedStore, verifier: RecordVerifier | None, panel: Panel | None
) -> None:
    """Check, verify and judge every answer that is not judged yet; all is verified before a judge is asked."""
    started = time.monotonic()
    with _examining(pipeline, stage, verifier) as examine:
        if panel:
            panel.ask(stage, lambda: _passed(pipeline, examine), num_records(pipeline.run_path, "generate"))
        for index, records in enumerate(read_shards(pipeline.run_path, "generate")):
            if not store.is_made(index):
                store.write(index, list(_rows(records, examine(index, records), panel)))
            failpoint("filter.after_judged")
    seconds = time.monotonic() - started
    store.finish(panel.usage(seconds) if panel else Usage(seconds=round(seconds, 1)))


@contextmanager
def _examining(pipeline: Pipeline, stage: Stage, verifier: RecordVerifier | None) -> Iterator[Examine]:
    """Format checks and, if one is set, the verifier. What was found is kept in memory, one small object per answer."""
    found: dict[int, list[Look]] = {}
    equal: dict[Look, Look] = {}

    def looking(journal: Journal | None) -> Examine:
        def examine(index: int, records: list[Record]) -> list[Look]:
            if index not in found:
                looks = (_look(record, pipeline, verifier, journal) for record in records)
                found[index] = [equal.setdefault(look, look) for look in looks]
            return found[index]

        return examine

    if verifier is None:
        yield looking(None)
        return
    with stage.journal(verifier.parts) as journal:
        examine = looking(journal)
        for index, records in enumerate(read_shards(pipeline.run_path, "generate")):
            examine(index, records)
        yield examine


def _look(record: Record, pipeline: Pipeline, verifier: RecordVerifier | None, journal: Journal | None) -> Look:
    failed = failed_check(record, pipeline.filter.checks, pipeline.language)
    if failed:
        return Look(*failed)
    if verifier is None or journal is None:
        return Look()
    read = verifier.read(record, journal)
    if isinstance(read, Reject):
        return Look(read.reason, read.detail, read.record.verdicts[-1])
    return Look(verified=read.verdicts[-1])


def _passed(pipeline: Pipeline, examine: Examine) -> Iterator[list[Record]]:
    """Per shard, the records that pass what needs no model; one shard is in memory at a time."""
    for index, records in enumerate(read_shards(pipeline.run_path, "generate")):
        yield _passing(records, examine(index, records))


def _passing(records: list[Record], looks: list[Look]) -> list[Record]:
    return [record for record, look in zip(records, looks, strict=True) if look.reason is None]


def _rows(records: list[Record], looks: list[Look], panel: Panel | None) -> Iterator[dict[str, Any]]:
    judged = iter(panel.read(_passing(records, looks)) if panel else ())
    num_jurors = len(panel.weights) if panel else 0
    for record, look in zip(records, looks, strict=True):
        said = next(judged) if panel and look.reason is None else None
        yield {
            "id": record.id,
            "verified": [_plain(look.verified)] if look.verified else [],
            "verdicts": [_plain(verdict) for verdict in _verdicts(said)] if said else [],
            "scores": said.scores if said else [None] * num_jurors,
            "outcome": said.outcome if said else None,
            **_reject(look, said),
        }


def _plain(verdict: Verdict) -> dict[str, Any]:
    """As `asdict`, without its deep copies, which took longer than all else."""
    return {name: getattr(verdict, name) for name in _FIELDS}


def _reject(look: Look, said: Judged | None) -> dict[str, str | None]:
    if said and said.error:
        return {"reason": FAILED, "detail": said.error}
    return {"reason": look.reason, "detail": look.detail if look.reason else None}


def _verdicts(said: Judged) -> list[Verdict]:
    """Each word; behind several words of one juror its total, since a record's score is that of its last verdict."""
    if len(said.scores) > 1 or len(said.verdicts) < 2 or said.error:
        return said.verdicts
    last = said.verdicts[-1]
    return [*said.verdicts, Verdict(last.judge, last.rubric_hash, said.scores[0], said.outcome, "all")]
