"""What the modes share in which a reply brings several records, or none: `synthetic_qa` and `evolve`.

Which records there are is known only once every reply is there, so all of them are sorted in one pass in the
order of the requests. That costs no call, so shards of an unfinished stage are written anew: a request that
failed in a process before may have been answered by now, and what follows it may be a duplicate.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmdistill.record import Record, Reject
from llmdistill.run.manifest import Counts
from llmdistill.run.stage import REJECTS, Outcome, Stage, part_paths, read_held_out
from llmdistill.text import plain


def write_outcomes(stage: Stage, results: Iterable[Record | Reject], shard_size: int) -> Counts:
    """Write what became of every record, in shards; shards of a process before are written over."""
    for path in [*part_paths(stage.dir), stage.dir / REJECTS]:
        path.unlink(missing_ok=True)
    shutil.rmtree(stage.dir / "working", ignore_errors=True)
    latest = Outcome()

    def shards() -> Iterator[list[Record]]:
        nonlocal latest
        for latest in _sorted(results, shard_size):
            yield [*latest.kept, *(reject.record for reject in latest.rejected)]

    return stage.run_shards(shards(), lambda _: latest)


def _sorted(results: Iterable[Record | Reject], shard_size: int) -> Iterator[Outcome]:
    outcome = Outcome()
    for result in results:
        if isinstance(result, Reject):
            outcome.rejected.append(result)
        else:
            outcome.kept.append(result)
        if len(outcome.kept) + len(outcome.rejected) == shard_size:
            yield outcome
            outcome = Outcome()
    if outcome.kept or outcome.rejected:
        yield outcome


class Known:
    """Questions that are there already, in plain form: a new one must be none of them."""

    def __init__(self, run_dir: Path, pool: Iterable[Record]) -> None:
        self._held_out = {plain(record.question) for record in read_held_out(run_dir)}
        self._seen = {plain(record.question) for record in pool}

    def is_held_out(self, question: str) -> bool:
        """Whether the question is one to measure on."""
        return plain(question) in self._held_out

    def add(self, question: str) -> bool:
        """Note a question; gives whether it is a new one."""
        found = plain(question)
        if found in self._seen:
            return False
        self._seen.add(found)
        return True
