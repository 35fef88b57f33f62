"""A finished stage `curate` on real prompts, in English and Korean, with copies of every kind, written by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from llmdistill.record import Record, Reject
from llmdistill.run.files import write_table
from llmdistill.run.manifest import Counts
from llmdistill.run.stage import Stage, begin, write_part
from tests.runs import answered
from tests.tiny import REPO


def texts_of(name: str) -> list[str]:
    """Prompts of a folder of data/."""
    lines = (REPO / "data" / name / "prompts.jsonl").read_text("utf-8").split("\n")
    return [json.loads(line)["prompt"] for line in lines if line]


ENGLISH, KOREAN = texts_of("self-instruct")[:40], texts_of("korean")[:12]


@dataclass
class Decided:
    """The records by what became of them. `copies`: (copy, what it was found to equal, reason, similarity)."""

    chosen: list[Record]
    copies: list[tuple[Record, Record, str, float]]
    contaminated: Record
    left_over: list[Record]

    @property
    def group(self) -> tuple[Record, list[Record]]:
        """The largest group: its head, and its copies from the most similar on."""
        return self.chosen[0], [copy for copy, *_ in self.copies[:3]]


def decided(run_dir: Path) -> Decided:
    """Write the stage: 30 chosen, 6 copies in 3 groups, one contaminated, the others left over."""
    pool = [answered(text, f"답 {number}", score=float(number % 5)) for number, text in enumerate([*ENGLISH, *KOREAN])]
    chosen, left_over = [*pool[:20], *pool[40:50]], [*pool[20:40], *pool[50:]]
    first, korean = chosen[0], chosen[20]
    again = answered(ENGLISH[0].replace("breakfast", "brekfast"))
    copies = [
        (again, first, "near_duplicate", 0.91),
        (answered(ENGLISH[0] + " Please."), first, "near_duplicate", 0.87),
        (answered("A meal in the morning, no eggs, some protein, 700 kcal?"), again, "semantic_duplicate", 0.83),
        (answered(KOREAN[0].replace("외국인 친구에게", "외국인친구한테")), korean, "near_duplicate", 0.74),
        (answered(KOREAN[0] + " 부탁합니다."), korean, "near_duplicate", 0.9),
        (answered(ENGLISH[1].lower()), chosen[1], "near_duplicate", 1.0),
    ]
    found = Decided(chosen, copies, answered("Janet’s ducks lay 16 eggs per day."), left_over)
    _write(run_dir, found)
    return found


def _write(run_dir: Path, found: Decided) -> None:
    stage = begin(run_dir, "curate", {"made": "by hand"})
    assert isinstance(stage, Stage)
    write_part(stage, 0, found.chosen[:10])
    write_part(stage, 1, found.chosen[10:])
    rejects = [
        Reject(copy, "curate", reason, f"{similarity:.0%} like {original.id}")
        for copy, original, reason, similarity in found.copies
    ]
    detail = "100% overlap with gsm8k.jsonl:1 (gsm8k.jsonl) in its question: 'ducks lay 16 eggs per day'"
    rejects.append(Reject(found.contaminated, "curate", "contaminated", detail))
    rejects += [Reject(record, "curate", "not_selected", "k_center chose 30 others") for record in found.left_over]
    reasons = stage.write_rejects(rejects)
    write_table(stage.dir / "decisions.parquet", _table(found))
    num = len(found.chosen) + len(rejects)
    stage.finish(Counts(num, len(found.chosen), len(rejects), reasons=reasons))


def _table(found: Decided) -> pa.Table:
    """One row per record, with every column that `curate` writes."""
    rows = [
        {"id": record.id, "kept": True, "reason": "k_center", "rank": rank, "gain": 1 / (rank + 1), "cluster": rank % 4}
        for rank, record in enumerate(found.chosen)
    ]
    rows += [
        {"id": copy.id, "kept": False, "reason": reason, "duplicate_of": original.id, "similarity": similarity}
        for copy, original, reason, similarity in found.copies
    ]
    rows.append({"id": found.contaminated.id, "kept": False, "reason": "contaminated", "similarity": 1.0})
    nearest = found.chosen[2].id
    rows += [
        {"id": record.id, "kept": False, "reason": "not_selected", "nearest": nearest, "nearest_similarity": 0.625}
        for record in found.left_over
    ]
    schema = pa.schema(
        [("id", pa.string()), ("kept", pa.bool_())]
        + [(name, pa.string()) for name in ("reason", "duplicate_of", "nearest")]
        + [(name, pa.int64()) for name in ("cluster", "rank")]
        + [(name, pa.float64()) for name in ("similarity", "nearest_similarity", "gain", "x", "y")]
    )
    return pa.Table.from_pylist(rows, schema).sort_by("id")
