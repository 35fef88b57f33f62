"""What drift compares: a version's new prompts with the old ones of its parent, and what became of their answers.

Ids are read whole, everything else of a seeded sample only, so a million prompts take seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from llmdistill.record import from_row
from llmdistill.run.stage import FAILED, HELD_OUT, part_paths, reject_paths
from llmdistill.run.tables import reading

if TYPE_CHECKING:
    Floats = np.ndarray[Any, np.dtype[np.float64]]

MOST_TEXTS = 20_000
"""Prompts of either side whose text is read."""


@dataclass(frozen=True)
class Pools:
    """How many prompts are new, old and gone, and the texts of a sample of the new and of the old, in random order."""

    num_new: int
    num_old: int
    num_gone: int
    new: list[str]
    old: list[str]


@dataclass(frozen=True)
class Answers:
    """What became of answers that were looked at, one row each.

    Attributes:
        ids: [N] ids of the records.
        kept: [N] whether the filter kept it.
        scores: [N] the judge's score, NaN where there is none.
        prompts: [N] the same number for answers to the same prompt.
    """

    ids: pa.ChunkedArray
    kept: np.ndarray
    scores: Floats
    prompts: np.ndarray


def read_pools(run_dir: Path, parent_dir: Path, seed: int) -> Pools:
    """Prompts that only the version's pool has are new; all of its parent's are old.

    Raises:
        DamagedError: a file cannot be read.
    """
    paths, before = part_paths(run_dir / "prompts"), part_paths(parent_dir / "prompts")
    now, old = _ids(paths), _ids(before)
    # A prompt that was held out is not new for being trained on now.
    known = pa.chunked_array([*old.chunks, *_ids([parent_dir / "prompts" / HELD_OUT]).chunks], pa.string())
    new = np.flatnonzero(~among(now, known))
    gone = int((~among(old, now)).sum())
    rng = np.random.default_rng(seed)
    new_rows, old_rows = rng.permutation(new)[:MOST_TEXTS], rng.permutation(len(old))[:MOST_TEXTS]
    return Pools(len(new), len(old), gone, _texts(paths, new_rows), _texts(before, old_rows))


def among(ids: pa.ChunkedArray, known: pa.ChunkedArray) -> np.ndarray:
    """[ids] bool: which of them are known."""
    if not len(ids) or not len(known):
        return np.zeros(len(ids), dtype=bool)
    return np.asarray(pc.is_in(ids, value_set=known).to_numpy(), dtype=bool)


def _ids(paths: Sequence[Path]) -> pa.ChunkedArray:
    with reading([path for path in paths if path.exists()]) as dataset:
        return pa.chunked_array([], pa.string()) if dataset is None else dataset.to_table(columns=["id"]).column("id")


def _texts(paths: Sequence[Path], rows: np.ndarray) -> list[str]:
    """Questions of these rows, in the order of `rows`."""
    with reading(paths if len(rows) else []) as dataset:
        if dataset is None:
            return []
        order = np.argsort(rows)
        found = dataset.take(pa.array(rows[order]), columns=["id", "prompt"]).to_pylist()
    texts = np.empty(len(rows), dtype=object)
    texts[order] = [from_row(row).question for row in found]
    return list(texts)


def read_answers(run_dir: Path, by_prompt: bool) -> Answers:
    """Kept and rejected answers of a run's filter; those that could not be judged are left out.

    Args:
        by_prompt: several answers may be to one prompt; else each is to its own.

    Raises:
        DamagedError: a file cannot be read.
    """
    tables = [
        table
        for paths in (part_paths(run_dir / "filter"), reject_paths(run_dir / "filter"))
        if (table := _looked_at(paths, by_prompt)) is not None
    ]
    if not tables:
        return Answers(pa.chunked_array([], pa.string()), np.zeros(0, bool), np.zeros(0), np.zeros(0, np.int64))
    whole = pa.concat_tables(tables)
    numbers = _numbered(whole.column("prompt")) if by_prompt else np.arange(whole.num_rows)
    kept = whole.column("kept").to_numpy()
    return Answers(whole.column("id"), np.asarray(kept, dtype=bool), _scores(whole.column("verdicts")), numbers)


def _looked_at(paths: Sequence[Path], by_prompt: bool) -> pa.Table | None:
    with reading(paths) as dataset:
        if dataset is None:
            return None
        rejected = "reject" in dataset.schema.names
        wanted = ds.field("reject", "reason") != FAILED if rejected else None
        columns = ["id", "verdicts", *(["prompt"] if by_prompt else [])]
        table = dataset.to_table(columns=columns, filter=wanted)
    return table.append_column("kept", pa.array(np.full(table.num_rows, not rejected)))


def _scores(verdicts: pa.ChunkedArray) -> Floats:
    """As `Record.score`: that of the last verdict."""
    return np.concatenate([np.zeros(0), *(_scores_of(chunk) for chunk in verdicts.chunks)])


def _scores_of(verdicts: pa.ListArray) -> Floats:
    lengths = pc.fill_null(pc.list_value_length(verdicts), 0).to_numpy(zero_copy_only=False)
    every = pc.struct_field(verdicts.flatten(), "score").to_numpy(zero_copy_only=False)
    scores = np.full(len(verdicts), np.nan)
    scores[lengths > 0] = np.asarray(every, dtype=np.float64)[np.cumsum(lengths)[lengths > 0] - 1]
    return scores


def _numbered(prompts: pa.ChunkedArray) -> np.ndarray:
    """A number for each prompt; equal ones have equal numbers."""
    numbers: dict[str, int] = {}
    found = [
        numbers.setdefault(repr(messages), len(numbers)) for chunk in prompts.chunks for messages in chunk.to_pylist()
    ]
    return np.asarray(found, dtype=np.int64)
