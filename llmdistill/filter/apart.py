"""Judging that is done elsewhere, shard by shard; the threshold is applied by the run's own process."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from llmdistill.config import Pipeline
from llmdistill.filter.earlier import round_of
from llmdistill.filter.judged import JudgedStore, judge_all
from llmdistill.filter.panel import Panel, seats_of
from llmdistill.record import record_id
from llmdistill.run.digest import Parts, digest_of
from llmdistill.run.files import read_json, write_bytes, write_json
from llmdistill.run.manifest import Usage
from llmdistill.run.shards import Item, Result, Shard, Task, check_can_be_apart, check_same, run_shard, work_apart
from llmdistill.run.stage import Stage, checked_part_paths, part_path, read_records
from llmdistill.verify.records import RecordVerifier

_INPUT = "generate/part-00000.parquet"


def judge_apart(
    pipeline: Pipeline, stage: Stage, store: JudgedStore, verifier: RecordVerifier | None, panel: Panel | None
) -> None:
    """As `judge_all`, with the same result, by the workers of `run.executor`."""
    started = time.monotonic()
    seats = seats_of(pipeline) if panel else []
    check_can_be_apart(pipeline, [("filter.judge.model", seat.model) for seat in seats])
    paths = checked_part_paths(pipeline.run_path, "generate")
    owed = [_shard(index, path) for index, path in enumerate(paths) if not _is_made(store, index)]
    journals: list[Parts] = [*(panel.journals if panel else []), *([verifier.parts] if verifier else [])]
    asked = digest_of({**(panel.parts if panel else {}), **(verifier.parts if verifier else {})})
    task = Task(
        judge_shard,
        store.parts,
        journals,
        lambda index, folder, result: _take(store, stage, index, folder, result),
        {"round": round_of(pipeline.run_path), "asked": asked, "store": store.parts},
        [seat.rubric for seat in seats],
    )
    work_apart(pipeline, stage, owed, len(paths), task)
    usage = sum((Usage(**read_json(_note_path(store, index))) for index in range(len(paths))), Usage())
    store.finish(replace(usage, seconds=round(time.monotonic() - started, 1)))


def _shard(index: int, path: Path) -> Shard:
    def owners() -> set[str]:
        # A comparison of two answers belongs to their prompt.
        return {id_ for record in read_records(path) for id_ in (record.id, record_id(record.prompt))}

    return Shard(index, {_INPUT: path}, owners)


def judge_shard(item: Item) -> Result:
    """A worker's part: check, verify and judge every answer of one shard."""

    def work(pipeline: Pipeline, stage: Stage) -> Result:
        with ExitStack() as stack:
            panel = stack.enter_context(Panel(pipeline, item["round"])) if pipeline.filter.judge else None
            verifier = RecordVerifier(pipeline.filter.verify) if pipeline.filter.verify else None
            parts = {**(panel.parts if panel else {}), **(verifier.parts if verifier else {})}
            check_same(digest_of(parts), item["asked"])
            store = JudgedStore(stage, item["store"])
            judge_all(pipeline, stage, store, verifier, panel)
            return {"usage": asdict(store.usage)}

    return run_shard(item, work)


def _note_path(store: JudgedStore, index: int) -> Path:
    return store.dir / "usage" / f"{index:05d}.json"


def _is_made(store: JudgedStore, index: int) -> bool:
    return store.is_made(index) and _note_path(store, index).exists()


def _take(store: JudgedStore, stage: Stage, index: int, folder: Path, result: Result) -> None:
    write_json(_note_path(store, index), result["usage"])
    judged = folder / stage.name / "journal" / store.dir.name
    write_bytes(part_path(store.dir, index), part_path(judged, 0).read_bytes())
