"""Why `curate` kept or dropped a record, and its groups of copies: plain values for the terminal and for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmdistill.decisions import COPIES, read_decisions
from llmdistill.errors import UsageError
from llmdistill.inspect.copies import Groups, duplicate_groups
from llmdistill.inspect.rows import Row, field_of, find_rows, matching, reject_batches, rejected_ids
from llmdistill.record import from_row

_BATCH = 10_000
_EARLIER = ("filter", "generate", "prompts")
_NAMED = 3
_OTHERS = (("copy of", "duplicate_of", "similarity"), ("nearest chosen", "nearest", "nearest_similarity"))
_COLUMNS = ("id", "prompt", "completion", "reject")


def groups_of_copies(
    run_dir: Path, conditions: Sequence[str], num: int, seed: int | None = None, most: int | None = None
) -> tuple[list[Row], int]:
    """At most `num` groups in which a copy meets every condition, and how many such groups there are.

    Those whose copies differ most come first; with a seed it is a random sample instead.

    Args:
        conditions: on columns of the decisions (`similarity<0.8`), or on fields of a record (`question~pizza`).
        most: copies that are shown of a group, the most similar first; all when None.

    Raises:
        UsageError: `curate` has not run, or a condition is wrong.
    """
    table = _decisions(run_dir)
    found = duplicate_groups(table)
    group_of_copy = np.repeat(np.arange(len(found.heads)), found.sizes)
    groups = np.unique(group_of_copy[_meeting(run_dir, table, found, conditions)])
    if seed is None:
        shown = groups[np.argsort(found.least_similar[groups], kind="stable")][:num]
    else:
        shown = np.sort(np.random.default_rng(seed).choice(groups, min(num, len(groups)), replace=False))
    places = {int(group): list(found.places_of(group))[:most] for group in shown}
    rows = [*found.heads[shown], *(found.copies[place] for some in places.values() for place in some)]
    records = find_rows(run_dir, "curate", table.column("id").take(pa.array(rows, pa.int64())).to_pylist())
    return [_group(table, found, records, *item) for item in places.items()], len(groups)


def _decisions(run_dir: Path) -> pa.Table:
    table = read_decisions(run_dir)
    if table is None:
        raise UsageError("there are no decisions", where=run_dir / "curate", do="run llmdistill curate first")
    return table


def _meeting(run_dir: Path, table: pa.Table, found: Groups, conditions: Sequence[str]) -> np.ndarray:
    """[C] whether each copy meets the conditions; only a batch of rows is in memory at a time."""
    here = [condition for condition in conditions if field_of(condition) in table.column_names]
    there = [condition for condition in conditions if condition not in here]
    matching([], conditions)
    copies = table.take(pa.array(found.copies))
    meets = np.ones(len(found.copies), dtype=bool)
    if here:
        meets &= _among(copies, _matching_ids(copies.to_batches(_BATCH), here))
    if there:
        meets &= _among(copies, _matching_ids(reject_batches(run_dir, "curate", COPIES, _BATCH), there))
    return meets


def _matching_ids(batches: Iterable[pa.RecordBatch], conditions: Sequence[str]) -> pa.Array:
    """Ids of the rows that meet every condition."""
    found = [row["id"] for batch in batches for row in matching(batch.to_pylist(), conditions)]
    return pa.array(found, pa.string())


def _among(table: pa.Table, ids: pa.Array) -> np.ndarray:
    return np.asarray(pc.is_in(table.column("id"), ids).to_numpy(zero_copy_only=False), dtype=bool)


def _group(table: pa.Table, found: Groups, records: dict[str, Row], group: int, places: list[int]) -> Row:
    head = int(found.heads[group])
    return {
        "kept": _entry(table, records, head),
        "num_copies": int(found.sizes[group]),
        "copies": [
            {
                **_entry(table, records, int(found.copies[place])),
                "duplicate_of": _value(table, "id", int(found.originals[place])),
                "similarity": _value(table, "similarity", int(found.copies[place])),
            }
            for place in places
        ],
    }


def _entry(table: pa.Table, records: dict[str, Row], row: int) -> Row:
    key = _value(table, "id", row)
    return {"id": key, "reason": _value(table, "reason", row), "question": _question(records.get(key))}


def _question(record: Row | None) -> str:
    return from_row(record).question if record else ""


def _value(table: pa.Table, column: str, row: int) -> Any:
    return table.column(column)[row].as_py() if column in table.column_names else None


def explain(run_dir: Path, prefix: str) -> Row:
    """Why the record whose id begins so was kept or dropped, by `curate` or by a stage before it.

    Raises:
        UsageError: no record, or more than one, has such an id.
    """
    table = read_decisions(run_dir)
    if table is not None:
        rows = np.asarray(pc.indices_nonzero(pc.starts_with(table.column("id"), prefix)))
        ids = table.column("id").take(pa.array(rows[:_NAMED], pa.int64())).to_pylist()
        if _is_one(ids, len(rows), prefix):
            return _explain_choice(run_dir, table, int(rows[0]))
    for stage in _EARLIER:
        ids = rejected_ids(run_dir, stage, prefix)
        if _is_one(ids, len(ids), prefix):
            row = find_rows(run_dir, stage, ids, _COLUMNS)[ids[0]]
            return {"id": ids[0], "stage": stage, "kept": False, **_told(row)}
    advice = "run llmdistill curate first" if table is None else "llmdistill inspect shows the ids"
    raise UsageError(f"nothing is decided on a record whose id begins with {prefix!r}", where=run_dir, do=advice)


def _is_one(ids: Sequence[str], num: int, prefix: str) -> bool:
    if num > 1:
        named = ", ".join(ids[:_NAMED])
        raise UsageError(f"{num:,} ids begin with {prefix!r}: {named}{' ...' * (num > _NAMED)}", do="write more of it")
    return num == 1


def _explain_choice(run_dir: Path, table: pa.Table, row: int) -> Row:
    decision = table.slice(row, 1).to_pylist()[0]
    others = {name: decision[name] for name in ("duplicate_of", "nearest") if decision.get(name)}
    records = find_rows(run_dir, "curate", [decision["id"], *others.values()], _COLUMNS)
    told = _told(records.get(decision["id"]))
    texts = {f"{name}_question": _question(records.get(key)) for name, key in others.items()}
    num_kept = int(pc.sum(pc.cast(table.column("kept"), pa.int64())).as_py() or 0)
    return {"stage": "curate", **told, **decision, **texts, "num_kept": num_kept}


def _told(row: Row | None) -> Row:
    """What the record itself says."""
    reject = (row or {}).get("reject") or {}
    record = from_row(row) if row else None
    return {
        "reason": reject.get("reason"),
        "detail": reject.get("detail"),
        "where": reject.get("where"),
        "question": record.question if record else "",
        "reply": record.reply if record else "",
    }


def in_words(explained: Row) -> list[tuple[str, str]]:
    """An explanation as labels and texts, one below the other."""
    lines = [("id", explained["id"]), ("decision", _decision(explained)), ("why", explained.get("detail"))]
    lines += [("where", explained.get("where")), ("numbers", _numbers(explained))]
    lines += [(label, _other(explained, name, value)) for label, name, value in _OTHERS]
    lines += [("prompt", explained["question"]), ("answer", explained["reply"])]
    return [(label, text) for label, text in lines if text]


def _decision(explained: Row) -> str:
    if not explained["kept"]:
        return f"dropped by {explained['stage']}: {explained['reason']}"
    rank = explained.get("rank")
    place = "" if rank is None else f", number {rank + 1:,} of {explained['num_kept']:,}"
    return f"kept by {explained['reason']}{place}"


def _numbers(explained: Row) -> str:
    found = {name: explained.get(name) for name in ("rank", "gain", "cluster")}
    return ", ".join(f"{name} {value:.4g}" for name, value in found.items() if value is not None)


def _other(explained: Row, name: str, value: str) -> str:
    """Another record: its id, how similar it is, and its text."""
    key, similarity = explained.get(name), explained.get(value)
    if not key:
        return ""
    likeness = "" if similarity is None else f" ({similarity:.3f})"
    return f"{key}{likeness}\n{explained.get(f'{name}_question', '')}"
