"""What is shown of a calibrated judge: plain values for the page and for the terminal.

Missing and undefined numbers are dashes. All text is untrusted; whoever shows it escapes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmdistill.errors import DamagedError
from llmdistill.report import words
from llmdistill.run.files import read_json

FILE = Path("calibration") / "calibration.json"

_LABELS = {
    "precision": "precision at the threshold",
    "precision_cross_validated": "precision, cross-validated",
    "recall": "recall at the threshold",
    "accuracy": "accuracy at the threshold",
    "kappa": "Cohen's kappa at the threshold",
    "quadratic_kappa": "quadratic-weighted kappa",
    "spearman": "Spearman with the labels",
    "auc": "AUC, good against bad",
    "length_bias": "length bias (partial Spearman)",
    "flips": "position flips",
    "failures": "failed judgements",
}
NOTE = (
    "The threshold was chosen on the same answers, so what is said of it looks a little too good; the cross-validated "
    "precision does not. Precision holds where the share of good answers is that of the gold set."
)


@dataclass(frozen=True)
class Measure:
    """One statistic as text."""

    label: str
    value: str
    interval: str


@dataclass(frozen=True)
class CalibrationView:
    """A calibration as text. `answers` sums up the gold set, `judges` are (model, rubric hash)."""

    threshold: str
    target: str
    answers: str
    outcomes: str
    gold_file: str
    gold_sha256: str
    judges: list[tuple[str, str]]
    made: str
    measures: list[Measure]
    note: str = NOTE


def read_calibration(run_dir: Path) -> CalibrationView | None:
    """The run's calibration; None when there is none.

    Raises:
        DamagedError: the file is not what `calibrate` wrote.
    """
    path = run_dir / FILE
    if not path.exists():
        return None
    try:
        return view_of(read_json(path))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        advice = "remove it and run llmdistill calibrate again"
        raise DamagedError(f"this is no calibration ({error})", where=path, do=advice) from error


def view_of(stored: Mapping[str, Any]) -> CalibrationView:
    """What `calibration.json` holds, for a person to read."""
    return CalibrationView(
        threshold=f"{stored['threshold']:.4g}",
        target=f"{stored['target_precision']:g}",
        answers=(
            f"{stored['rows']:,} gold answers, {stored['good']:,} of them good; "
            f"{stored['scored']:,} scored, {stored['kept']:,} kept"
        ),
        outcomes=", ".join(f"{name} {count:,}" for name, count in stored["outcomes"].items()),
        gold_file=stored["gold"]["file"],
        gold_sha256=stored["gold"]["sha256"],
        judges=[(judge["model"], judge["rubric_hash"]) for judge in stored["judges"]],
        made=stored["made"],
        measures=[_measure(name, stored["measures"].get(name)) for name in _LABELS],
    )


def _measure(name: str, estimate: Mapping[str, float | None] | None) -> Measure:
    found = {key: words.number(value) for key, value in (estimate or {}).items()}
    value, low, high = (found.get(key) for key in ("value", "low", "high"))
    shown = words.MISSING if value is None else f"{value:.3f}"
    interval = words.MISSING if low is None or high is None else f"{low:.3f} to {high:.3f}"
    return Measure(_LABELS[name], shown, interval)
