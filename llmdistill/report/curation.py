"""What the page shows of the selection: the map, the copies side by side, the records that resemble test questions.

Every piece may be absent. All text is untrusted; the template escapes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmdistill.decisions import CONTAMINATED, read_decisions
from llmdistill.inspect.copies import Groups, differing, duplicate_groups
from llmdistill.inspect.rows import find_rows, read_rejects
from llmdistill.record import from_row
from llmdistill.report import words
from llmdistill.report.coverage import Floats
from llmdistill.run.manifest import Manifest

MAX_POINTS = 2_000
MAX_GROUPS = 3
MAX_COPIES = 4
MAX_PAIRS = 3
MAX_CONTAMINATED = 3
_EXCERPT_CHARS = 400


@dataclass(frozen=True)
class Copy:
    """A record that was dropped as a copy. `pieces`: its text, and whether the kept one has each piece otherwise."""

    pieces: list[tuple[str, bool]]
    note: str


@dataclass(frozen=True)
class Group:
    """A record and its copies, of which `num_more` are not shown."""

    kept: str
    note: str
    copies: list[Copy]
    num_more: int = 0


@dataclass(frozen=True)
class Contaminated:
    """Records dropped for one evaluation set: how many as text, and (question, where it resembles) of some."""

    set: str
    num: str
    examples: list[tuple[str, str]]


def _nowhere() -> Floats:
    return np.empty((0, 2))


@dataclass(frozen=True)
class Curation:
    """What was decided of the pool, as far as the page shows it.

    `places_*`: [points, 2] of the map, at most `MAX_POINTS` together out of `num_places`.
    """

    places_chosen: Floats = field(default_factory=_nowhere)
    places_copies: Floats = field(default_factory=_nowhere)
    places_other: Floats = field(default_factory=_nowhere)
    num_places: int = 0
    num_groups: int = 0
    num_copies: int = 0
    groups: list[Group] = field(default_factory=list)
    closest: list[Group] = field(default_factory=list)
    farthest: list[Group] = field(default_factory=list)
    contaminated: list[Contaminated] = field(default_factory=list)


def read_curation(run_dir: Path, manifest: Manifest | None) -> Curation:
    """Read the decisions of `curate` and its manifest, and the texts of a few records.

    Raises:
        DamagedError: a file cannot be read.
    """
    table = read_decisions(run_dir)
    if table is None:
        return Curation()
    found = duplicate_groups(table)
    largest = np.argsort(-found.sizes, kind="stable")[:MAX_GROUPS]
    by_likeness = np.argsort(-found.similarities, kind="stable")
    by_likeness = by_likeness[np.isfinite(found.similarities[by_likeness])]
    closest, farthest = by_likeness[:MAX_PAIRS], by_likeness[MAX_PAIRS:][::-1][:MAX_PAIRS]
    shown = [place for group in largest for place in found.places_of(group)[:MAX_COPIES]]
    places = np.concatenate([shown, closest, farthest]).astype(np.int64)
    rows = np.concatenate([found.heads[largest], found.copies[places], found.originals[places]])
    ids = table.column("id").take(pa.array(rows, pa.int64())).to_pylist()
    texts = _Texts(table, find_rows(run_dir, "curate", ids))
    return Curation(
        *_places(table, found),
        num_groups=len(found.heads),
        num_copies=len(found.copies),
        groups=[_group(texts, found, int(group)) for group in largest],
        closest=[_pair(texts, found, int(place)) for place in closest],
        farthest=[_pair(texts, found, int(place)) for place in farthest],
        contaminated=_contaminated(run_dir, manifest),
    )


def _excerpt(text: str) -> str:
    return words.shorten(words.clean(text), _EXCERPT_CHARS)


class _Texts:
    """The shortened texts of rows of the decisions."""

    def __init__(self, table: pa.Table, found: Mapping[str, Mapping[str, Any]]) -> None:
        self._table = table
        self._found = found

    def question(self, row: int) -> str:
        record = self._found.get(self.id(row))
        return _excerpt(from_row(record).question) if record else words.MISSING

    def id(self, row: int) -> str:
        return str(self._table.column("id")[int(row)].as_py())

    def reason(self, row: int) -> str:
        return str(self._table.column("reason")[int(row)].as_py()).replace("_", " ")


def _group(texts: _Texts, found: Groups, group: int) -> Group:
    places = found.places_of(group)
    head = int(found.heads[group])
    copies = [_copy(texts, found, place, head) for place in places[:MAX_COPIES]]
    return Group(texts.question(head), texts.reason(head), copies, max(0, len(places) - MAX_COPIES))


def _pair(texts: _Texts, found: Groups, place: int) -> Group:
    original = int(found.originals[place])
    return Group(texts.question(original), texts.reason(original), [_copy(texts, found, place, original)])


def _copy(texts: _Texts, found: Groups, place: int, beside: int) -> Copy:
    row, original = int(found.copies[place]), int(found.originals[place])
    similarity = words.number(float(found.similarities[place]))
    parts = [texts.reason(row), words.MISSING if similarity is None else f"{similarity:.2f}"]
    if original != beside:
        parts.append("like another copy")
    return Copy(differing(texts.question(beside), texts.question(row)), ", ".join(parts))


def _places(table: pa.Table, found: Groups) -> tuple[Floats, Floats, Floats, int]:
    """Chosen points, copies, the others, and how many there are in all; evenly spaced samples of a big map."""
    columns = [table.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False) for name in ("x", "y")]
    points = np.stack(columns, axis=1).astype(float)
    drawable = np.isfinite(points).all(1)
    kept = np.asarray(pc.fill_null(table.column("kept"), False).to_numpy(zero_copy_only=False), dtype=bool)
    copies = np.zeros(len(points), dtype=bool)
    copies[found.copies] = True
    chosen, copied, other = (points[drawable & part] for part in (kept, copies & ~kept, ~copies & ~kept))
    num_rest = len(copied) + len(other)
    chosen_shown = _thinned(chosen, max(MAX_POINTS // 2, MAX_POINTS - num_rest))
    room = MAX_POINTS - len(chosen_shown)
    copied_shown = _thinned(copied, max(room // 4, room - len(other)))
    return chosen_shown, copied_shown, _thinned(other, room - len(copied_shown)), int(drawable.sum())


def _thinned(rows: Floats, most: int) -> Floats:
    """At most `most` rows, evenly spaced: rows are ordered by hash, so this is as good as chance."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(int)]


def _contaminated(run_dir: Path, manifest: Manifest | None) -> list[Contaminated]:
    """Each evaluation set in the order of the manifest, with a few of the records that resemble it."""
    stored = manifest.metrics.get("contamination") if manifest else None
    if not isinstance(stored, Mapping):
        return []
    details = read_rejects(run_dir, "curate", CONTAMINATED)
    found = {str(name): _naming(details, str(name))[:MAX_CONTAMINATED] for name in stored}
    rows = find_rows(run_dir, "curate", [key for some in found.values() for key, _ in some])
    examples = {
        name: [(_excerpt(from_row(rows[key]).question), _excerpt(detail)) for key, detail in some if key in rows]
        for name, some in found.items()
    }
    return [Contaminated(str(name), _count(num), examples[str(name)]) for name, num in stored.items()]


def _naming(details: pa.Table, name: str) -> list[tuple[str, str]]:
    """(id, detail) of the rejects whose detail names an evaluation set."""
    chosen = details.filter(pc.match_substring(details.column("detail"), f"({name})")).slice(0, MAX_CONTAMINATED)
    return list(zip(*(chosen.column(column).to_pylist() for column in ("id", "detail")), strict=True))


def _count(num: Any) -> str:
    return f"{num:,}" if isinstance(num, int) else words.MISSING
