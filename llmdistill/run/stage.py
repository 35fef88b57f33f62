"""One stage of one run: begin, resume or skip; shards; finish.

    <run>/<stage>/part-00000.parquet ...   finished shards
    <run>/<stage>/rejects.parquet          what was dropped, each row with its reason
    <run>/<stage>/journal/*.jsonl          work in progress, named by the digest of what it depends on
    <run>/<stage>/begun.json               settings the stage was begun with
    <run>/<stage>/manifest.json            written last

When a stage is done over with other settings, its former results move to
`<run>/<stage>.previous`; journals stay, so going back costs nothing.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmdistill.errors import ChangedError, DamagedError, StageError
from llmdistill.record import REJECT_SCHEMA, Record, Reject, from_row, rejects_to_table, to_table
from llmdistill.run.digest import Parts, differences, digest_of
from llmdistill.run.failpoint import failpoint
from llmdistill.run.files import (
    make_dir,
    read_json,
    read_table,
    sha256_of,
    write_bytes,
    write_json,
    write_table,
    writing,
)
from llmdistill.run.journal import Journal
from llmdistill.run.manifest import FILE_NAME, Counts, Manifest, Usage, package_versions, read_manifest
from llmdistill.run.tables import appending, in_threads, read_columns

REJECTS = "rejects.parquet"
HELD_OUT = "held_out.parquet"
_BEGUN = "begun.json"
_WORKING = "working"

FAILED = "failed"
"""Reject reason of a record that nothing is wrong with, but that got no answer."""


@dataclass
class Outcome:
    """What became of the records of one shard."""

    kept: list[Record] = field(default_factory=list)
    rejected: list[Reject] = field(default_factory=list)
    """What was dropped; those with the reason `FAILED` could not be worked on and may be tried again."""


ReadTable = Callable[[], pa.Table]
"""Reads the rows of one shard."""


@dataclass(frozen=True, slots=True)
class Split:
    """What became of the rows of one shard, as tables: `SCHEMA` and `REJECT_SCHEMA`."""

    kept: pa.Table
    rejected: pa.Table


class Stage:
    """A stage being worked on. Obtain one with `begin`."""

    def __init__(self, run_dir: Path, name: str, parts: Parts) -> None:
        self.name = name
        self.dir = run_dir / name
        self.parts = parts
        self.digest = digest_of(parts)
        self._started = time.monotonic()

    def journal(self, depends_on: Mapping[str, Any]) -> Journal:
        """Journal of work that depends on these settings. Every later run with equal ones reuses its rows."""
        return Journal(self.dir / "journal" / f"{digest_of(depends_on)[:16]}.jsonl")

    def run_shards(self, shards: Iterable[list[Record]], work: Callable[[list[Record]], Outcome]) -> Counts:
        """Apply `work` to every shard that is not finished yet; each result appears atomically."""
        num_shards = num_input = 0
        for index, records in enumerate(shards):
            num_shards, num_input = index + 1, num_input + len(records)
            if not self.has_shard(index):
                outcome = work(records)
                split = Split(to_table(outcome.kept), rejects_to_table(outcome.rejected))
                self._check_shard(index, pa.array([record.id for record in records], pa.string()), split)
                write_table(self._rejects_path(index), split.rejected)
                failpoint("stage.between_files")
                write_table(part_path(self.dir, index), split.kept)
            failpoint("stage.after_shard")
        return self.merge_rejects(num_shards, num_input)

    def run_tables(self, shards: Iterable[ReadTable], work: Callable[[int, pa.Table], Split]) -> Counts:
        """Apply `work`, which is so cheap that after a kill all of it is done again, to the number and rows of shards.

        Some shards are worked on at once, in threads; what comes out does not depend on that.
        """

        def do(index: int, read: ReadTable) -> tuple[int, int, pa.Table]:
            table = read()
            split = work(index, table)
            self._check_shard(index, table.column("id"), split)
            write_table(part_path(self.dir, index), split.kept)
            return table.num_rows, split.kept.num_rows, split.rejected

        num_input = num_kept = 0
        reasons: Counter[str] = Counter()
        with appending(self.dir / REJECTS, REJECT_SCHEMA) as append:
            for came_in, kept, rejected in in_threads(do, enumerate(shards)):
                failpoint("stage.between_files")
                append(rejected)
                num_input, num_kept, reasons = num_input + came_in, num_kept + kept, reasons + _reasons(rejected)
                failpoint("stage.after_shard")
        return _counts(num_input, num_kept, reasons)

    def _check_shard(self, index: int, ids: pa.Array | pa.ChunkedArray, split: Split) -> None:
        came_out = pa.chunked_array([*split.kept.column("id").chunks, *split.rejected.column("id").chunks], pa.string())
        if _sorted(ids).equals(_sorted(came_out)):
            return
        came_in, went_out = Counter(ids.to_pylist()), Counter(came_out.to_pylist())
        missing, extra = list(came_in - went_out)[:3], list(went_out - came_in)[:3]
        raise StageError(f"shard {index} of {self.name} lost {missing} and gained {extra}", where=self.dir)

    @property
    def working_dir(self) -> Path:
        """What is of no use once the stage is finished."""
        return self.dir / _WORKING

    def has_shard(self, index: int) -> bool:
        """Whether a shard is finished."""
        rejects_known = (self.dir / REJECTS).exists() or self._rejects_path(index).exists()
        return rejects_known and part_path(self.dir, index).exists()

    def put_shard(self, index: int, part: Path, rejects: Path) -> None:
        """Put the files of a shard that was worked on elsewhere in their places."""
        write_bytes(self._rejects_path(index), rejects.read_bytes())
        failpoint("stage.between_files")
        write_bytes(part_path(self.dir, index), part.read_bytes())
        failpoint("stage.after_shard")

    def _rejects_path(self, index: int) -> Path:
        return self.working_dir / f"rejects-{index:05d}.parquet"

    def merge_rejects(self, num_shards: int, num_input: int) -> Counts:
        """Make one file of the rejects of all shards, which are finished; gives what became of the records."""
        path = self.dir / REJECTS
        if not path.exists():
            with appending(path, REJECT_SCHEMA) as append:
                for index in range(num_shards):
                    append(read_table(self._rejects_path(index)))
        kept = sum(pq.read_metadata(part).num_rows for part in part_paths(self.dir))
        reasons = sum(map(_reasons, read_columns(path, ["reject"])), Counter[str]())
        return _counts(num_input, kept, reasons)

    def write_rejects(self, rejects: list[Reject]) -> dict[str, int]:
        """Write the reject file of a stage that works on everything at once; gives counts by reason."""
        write_table(self.dir / REJECTS, rejects_to_table(rejects))
        return dict(sorted(Counter(reject.reason for reject in rejects).items()))

    def finish(
        self,
        counts: Counts,
        usage: Usage | None = None,
        metrics: dict[str, Any] | None = None,
        more_outputs: Sequence[Path] = (),
    ) -> Manifest:
        """Check the accounting identity and write the manifest.

        Args:
            more_outputs: files beside the stage's Parquet files that are results too.
        """
        counts.check(self.name)
        if usage is None:
            usage = Usage(seconds=round(time.monotonic() - self._started, 1))
        shutil.rmtree(self.working_dir, ignore_errors=True)
        files = sorted([*self.dir.glob("*.parquet"), *more_outputs])
        outputs = {str(path.relative_to(self.dir)): sha256_of(path) for path in files}
        manifest = Manifest(
            self.name, self.digest, self.parts, counts, usage, outputs, metrics or {}, package_versions()
        )
        failpoint("stage.before_manifest")
        manifest.write(self.dir)
        return manifest


def begin(
    run_dir: Path,
    name: str,
    parts: Parts,
    *,
    guard: tuple[str, ...] = (),
    fresh: bool = False,
    retry_failed: bool = False,
) -> Stage | Manifest:
    """Start or resume a stage; a finished one with equal settings gives its manifest instead.

    Args:
        parts: everything that changes the stage's result, as flat keys.
        guard: prefixes of keys whose change would make costly work worthless.
        fresh: do the stage over even though guarded keys differ.
        retry_failed: open a finished stage again if records failed in it; what is in its journal is not done again.

    Raises:
        ChangedError: guarded keys differ from those the stage was begun with.
    """
    stage = Stage(run_dir, name, parts)
    begun_path = stage.dir / _BEGUN
    if begun_path.exists():
        begun = read_json(begun_path)
        if digest_of(begun) == stage.digest:
            manifest = read_manifest(stage.dir)
            if manifest and _outputs_present(stage.dir, manifest):
                if not (retry_failed and manifest.counts.failed):
                    return manifest
                _move_aside(stage.dir)
            return stage
        guarded = [line for line in differences(begun, parts) if line.startswith(guard)] if guard else []
        if guarded and not fresh:
            message = f"{name} was begun with other settings ({'; '.join(guarded)})"
            advice = f"add --fresh to do {name} over (its results move to {name}.previous), or set the old values"
            raise ChangedError(message, where=stage.dir, do=advice)
        _move_aside(stage.dir)
    make_dir(stage.dir)
    write_json(begun_path, parts)
    return stage


def _outputs_present(stage_dir: Path, manifest: Manifest) -> bool:
    return all((stage_dir / name).exists() for name in manifest.outputs)


def _move_aside(stage_dir: Path) -> None:
    """Move a stage's results, but not its journals, to `<stage>.previous`. After a kill, the next call goes on."""
    previous = stage_dir.with_name(stage_dir.name + ".previous")
    moving = stage_dir.with_name(stage_dir.name + ".moving")
    with writing(previous):
        # The manifest goes first: a kill half-way must not leave a stage that looks finished.
        results = sorted(stage_dir.iterdir(), key=lambda path: path.name != FILE_NAME)
        results = [path for path in results if path.name not in ("journal", _BEGUN)]
        if not results and not moving.exists():
            return
        moving.mkdir(exist_ok=True)
        if not (moving / _BEGUN).exists():
            shutil.copyfile(stage_dir / _BEGUN, moving / _BEGUN)
        for path in results:
            if (moving / path.name).is_dir():
                shutil.rmtree(moving / path.name)
            path.rename(moving / path.name)
        shutil.rmtree(previous, ignore_errors=True)
        moving.rename(previous)


def _sorted(ids: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    whole = ids if isinstance(ids, pa.ChunkedArray) else pa.chunked_array([ids])
    return whole.take(pc.sort_indices(whole))


def _reasons(rejects: pa.Table) -> Counter[str]:
    """How many rejects have which reason."""
    reasons = pc.struct_field(rejects.column("reject"), "reason")
    return Counter({row["values"]: row["counts"] for row in pc.value_counts(reasons).to_pylist()})


def _counts(num_input: int, kept: int, reasons: Counter[str]) -> Counts:
    failed = reasons[FAILED]
    found = {reason: number for reason, number in sorted(reasons.items()) if number}
    return Counts(num_input, kept, sum(reasons.values()) - failed, failed, found)


def part_path(stage_dir: Path, index: int) -> Path:
    """Path of a stage's shard number `index`."""
    return stage_dir / f"part-{index:05d}.parquet"


def part_paths(stage_dir: Path) -> list[Path]:
    """Paths of a stage's finished shards, in order."""
    return sorted(stage_dir.glob("part-*.parquet"))


def checked_part_paths(run_dir: Path, name: str) -> list[Path]:
    """Paths of a finished stage's shards, in order; one that is not what the stage wrote is a `DamagedError`."""
    manifest, paths = read_manifest(run_dir / name), part_paths(run_dir / name)
    for path in paths:
        check_result(path, manifest)
    return paths


def reject_paths(stage_dir: Path) -> list[Path]:
    """Path of a stage's reject file, if it has one."""
    path = stage_dir / REJECTS
    return [path] if path.exists() else []


def write_records(path: Path, records: list[Record]) -> None:
    """Write records to a Parquet file of their own, atomically."""
    write_table(path, to_table(records))


def write_part(stage: Stage, index: int, records: list[Record]) -> None:
    """Write one shard atomically."""
    write_records(part_path(stage.dir, index), records)


def read_records(path: Path) -> list[Record]:
    """Records of one Parquet file of a finished stage.

    Raises:
        DamagedError: the file is not what the stage wrote.
    """
    return _records(_read_result(path, read_manifest(path.parent)))


def _records(table: pa.Table) -> list[Record]:
    return [from_row(row) for row in table.to_pylist()]


def _read_result(path: Path, manifest: Manifest | None) -> pa.Table:
    check_result(path, manifest)
    return read_table(path)


def check_result(path: Path, manifest: Manifest | None) -> None:
    """Raise `DamagedError` when a file of a finished stage is not what the stage wrote."""
    wrong = None
    if not path.exists():
        wrong = "this result is missing"
    elif manifest and manifest.outputs.get(path.name) not in (None, sha256_of(path)):
        wrong = f"this is not what {path.parent.name} wrote"
    if wrong:
        raise _damaged(path, wrong)


def _damaged(path: Path, what: str) -> DamagedError:
    return DamagedError(what, where=path, do=f"remove it and run llmdistill {_command_of(path.parent.name)} again")


def _command_of(name: str) -> str:
    """The command that makes a stage's results; that of `prompts` is `generate`."""
    return "generate" if name == "prompts" else name


def read_shards(run_dir: Path, name: str) -> Iterator[list[Record]]:
    """Records of a finished stage, one list per shard; a missing one is a `DamagedError`."""
    for read in table_readers(run_dir, name):
        yield _records(read())


def table_readers(run_dir: Path, name: str) -> Iterator[ReadTable]:
    """For each shard of a finished stage, what reads it; one that is missing or changed is a `DamagedError` then."""
    manifest = read_manifest(run_dir / name)
    paths = part_paths(run_dir / name)
    if manifest:
        paths = [run_dir / name / file for file in sorted(manifest.outputs) if file.startswith("part-")]
    for path in paths:
        yield partial(_read_result, path, manifest)


def read_all(run_dir: Path, name: str) -> Iterator[Record]:
    """Records of a finished stage one by one; one shard is in memory at a time."""
    return itertools.chain.from_iterable(read_shards(run_dir, name))


def read_held_out(run_dir: Path) -> list[Record]:
    """Prompts that the stage `prompts` has held out."""
    return read_records(run_dir / "prompts" / HELD_OUT)


def num_records(run_dir: Path, name: str) -> int:
    """Number of records that a finished stage passed on; a file that is none is a `DamagedError`."""
    total = 0
    for path in part_paths(run_dir / name):
        try:
            total += pq.read_metadata(path).num_rows
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, f"this is not what {name} wrote") from error
    return total


def inputs_of(run_dir: Path, *names: str) -> Parts:
    """Digest parts of what a stage reads: the content of every file of the finished stages `names`.

    Raises:
        StageError: one of them is not finished; names the command to run.
    """
    parts: Parts = {}
    for name in names:
        manifest = read_manifest(run_dir / name)
        if manifest is None:
            raise StageError(
                f"{name} is not finished yet", where=run_dir, do=f"run llmdistill {_command_of(name)} first"
            )
        parts[f"input.{name}"] = digest_of(manifest.outputs)
    return parts
