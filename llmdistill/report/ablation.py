"""The same student trained on each selection, as a table for the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmdistill.errors import DamagedError
from llmdistill.report import words
from llmdistill.run.files import read_json

FILE = Path("ablation") / "table.json"


@dataclass(frozen=True)
class AblationView:
    """The same student trained on each selection, as text: one row per selection."""

    measure: str
    baseline: str
    rows: list[list[str]]


def read_ablation(run_dir: Path) -> AblationView | None:
    """The run's ablation; None when there is none.

    Raises:
        DamagedError: the file is not what the ablation wrote.
    """
    path = run_dir / FILE
    if not path.exists():
        return None
    try:
        stored = read_json(path)
        return AblationView(str(stored["measure"]), str(stored["baseline"]), _ablation_rows(stored["rows"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        advice = "remove it and run the ablation again"
        raise DamagedError(f"this is no table of an ablation ({error})", where=path, do=advice) from error


def _ablation_rows(rows: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            str(row["variant"]),
            f"{int(row['chosen']):,}",
            f"{int(row['seeds']):,}",
            _value(row["mean"]),
            _interval(row["low"], row["high"]),
            _value(row["difference"], sign="+"),
            _interval(row.get("difference_low"), row.get("difference_high"), sign="+"),
        ]
        for row in rows
    ]


def _value(value: Any, sign: str = "") -> str:
    found = words.number(value)
    return words.MISSING if found is None else format(found, f"{sign}.4g")


def _interval(low: Any, high: Any, sign: str = "") -> str:
    ends = [_value(end, sign) for end in (low, high)]
    return words.MISSING if words.MISSING in ends else " to ".join(ends)
