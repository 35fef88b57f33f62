"""The stage `curate`: test questions out, copies out, then the selection; every record says why it was kept or dropped.

What is costly (vectors, signatures) is kept in `curate/journal/` by content, so a moved threshold only compares again.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmdistill.config import Pipeline
from llmdistill.curate import steps
from llmdistill.curate.contamination import against_hashes, read_sets
from llmdistill.curate.embed import embed_parts
from llmdistill.curate.lists import listed_rows
from llmdistill.curate.pool import read_pool
from llmdistill.curate.quotas import grouping
from llmdistill.decisions import FILE, Decisions
from llmdistill.errors import RejectsError
from llmdistill.pipeline_file import find_file
from llmdistill.record import REJECT_SCHEMA
from llmdistill.run.digest import Parts, flatten
from llmdistill.run.files import sha256_of, write_table
from llmdistill.run.manifest import Counts, Manifest
from llmdistill.run.stage import (
    REJECTS,
    Stage,
    begin,
    inputs_of,
    part_path,
    read_all,
    read_held_out,
    table_readers,
)
from llmdistill.run.tables import GROUP_ROWS, appending


def run(pipeline: Pipeline, *, fresh: bool = False) -> Manifest:
    """Choose the training set."""
    parts: Parts = {
        **flatten(pipeline.curate.digest_view(), "curate."),
        "curate.seed": pipeline.curate_seed,
        **embed_parts(pipeline.curate.embed, pipeline),
        **_files_read(pipeline),
        **inputs_of(pipeline.run_path, "prompts", "filter"),
    }
    stage = begin(pipeline.run_path, "curate", parts, fresh=fresh)
    if isinstance(stage, Manifest):
        return stage
    work = _begin(pipeline, stage)
    steps.drop_contaminated(work, read_sets(pipeline, read_held_out(pipeline.run_path)))
    steps.drop_near_copies(work)
    _check_some_left(work)
    vectors = steps.vectors_of_open(work)
    _check_some_left(work)
    vectors = steps.drop_semantic_copies(work, vectors)
    rows = work.decisions.open
    steps.select(work, vectors)
    steps.explain(work, rows, vectors)
    with work.step("write"):
        counts = _write(stage, work.decisions, pipeline)
    return stage.finish(counts, metrics={**work.metrics, "seconds": work.seconds})


def _files_read(pipeline: Pipeline) -> Parts:
    """Content of the user's files that decide: evaluation sets and lists."""
    settings = pipeline.curate
    lists = {"must_keep": settings.must_keep, "must_drop": settings.must_drop}
    hashes: Parts = {f"curate.{key}_sha256": sha256_of(find_file(name, key)) for key, name in lists.items() if name}
    return {**hashes, **(against_hashes(settings.decontaminate) if settings.decontaminate else {})}


def _begin(pipeline: Pipeline, stage: Stage) -> steps.Work:
    """Read the pool and the user's lists."""
    settings = pipeline.curate
    groups = grouping(settings.quotas)
    pool = read_pool(read_all(pipeline.run_path, "filter"), groups)
    if not len(pool):
        raise RejectsError("filter kept no record", where=pipeline.run_path, do="lower filter.judge.min_score")
    if groups:
        groups.check()
    work = steps.Work(pipeline, stage.dir / "journal", pool, Decisions.of(pool.ids))
    must_keep, must_drop = listed_rows(settings, pool)
    work.must_keep = frozenset(must_keep)
    steps.drop_listed(work, must_drop, settings.must_drop or "")
    return work


def _check_some_left(work: steps.Work) -> None:
    if len(work.decisions.open):
        return
    reasons = ", ".join(f"{reason} {number:,}" for reason, number in _reasons(work.decisions).items())
    raise RejectsError(
        f"no record is left to choose from ({reasons})",
        where=work.pipeline.run_path,
        do="give prompts that are not in the evaluation sets, or raise the thresholds of curate",
    )


def _reasons(decisions: Decisions) -> dict[str, int]:
    reasons, counts = np.unique(decisions.reason[decisions.rank < 0].astype(str), return_counts=True)
    return dict(zip(reasons.tolist(), counts.tolist(), strict=True))


def _write(stage: Stage, decisions: Decisions, pipeline: Pipeline) -> Counts:
    """The chosen in order of rank, the others in the order of their ids, and the table of all decisions."""
    records = pa.concat_tables(read() for read in table_readers(pipeline.run_path, "filter"))
    places = pc.sort_indices(records.column("id")).to_numpy()
    kept, dropped = decisions.kept, np.flatnonzero(decisions.rank < 0)
    size = pipeline.curate.shard_size
    for index, start in enumerate(range(0, len(kept), size)):
        rows = kept[start : start + size]
        write_table(part_path(stage.dir, index), decisions.with_selection(records.take(places[rows]), rows))
    with appending(stage.dir / REJECTS, REJECT_SCHEMA) as append:
        for start in range(0, len(dropped), GROUP_ROWS):
            rows = dropped[start : start + GROUP_ROWS]
            append(decisions.as_rejects(records.take(places[rows]), rows))
    write_table(pipeline.run_path / FILE, decisions.table())
    return Counts(len(decisions.ids), len(kept), len(dropped), reasons=_reasons(decisions))
