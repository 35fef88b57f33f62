"""Teacher, untrained student and trained student side by side, and what that shows in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llmdistill.report.words import MISSING, count, decimal, megabytes, number, percent

ROLES = {"teacher": "Teacher", "untrained": "Untrained student", "student": "Trained student"}

Table = Mapping[str, Mapping[str, Any]]
Change = Literal["better", "worse", "unclear"]
Tone = Literal["better", "worse", "unclear", "none"]


@dataclass(frozen=True)
class _Measure:
    key: str
    label: str
    form: Callable[[float], str]


@dataclass(frozen=True)
class Cell:
    """One number; `interval` is its 95 % interval, if it has one."""

    value: str
    interval: str = ""


@dataclass(frozen=True)
class Line:
    """One row of the table: a cell per role, in the order of `ROLES`."""

    label: str
    cells: list[Cell]


@dataclass(frozen=True)
class Conclusion:
    """What the comparison shows."""

    tone: Tone
    text: str


def _distances(kind: str) -> list[_Measure]:
    return [
        _Measure(f"{kind}_kl", "KL from the teacher, nats per token (lower is closer)", decimal),
        _Measure(f"{kind}_top1", "Same likeliest token as the teacher (higher is closer)", percent),
        _Measure(f"{kind}_ce", "Cross-entropy, nats per token (lower is likelier)", decimal),
    ]


_GROUPS = {
    "Size and speed": [
        _Measure("parameters", "Parameters", count),
        _Measure("bytes", "Weights on disk, MB", megabytes),
        _Measure("tokens_per_second", "Generated tokens per second", decimal),
    ],
    "Answers to the held-out prompts": [
        _Measure("stopped", "Came to an end by themselves", percent),
        _Measure("answer_tokens", "Mean length, tokens", decimal),
    ],
    "On the teacher's answers": _distances("teacher_text"),
    "On the human references": _distances("human_text"),
}
_TEXTS = {"teacher_text": "the teacher's answers", "human_text": "the human references"}


def groups(table: Table) -> dict[str, list[Line]]:
    """The table's lines under their headings; measures that no model has are left out."""
    found: dict[str, list[Line]] = {}
    for heading, measures in _GROUPS.items():
        lines = [Line(measure.label, [_cell(table.get(role, {}), measure) for role in ROLES]) for measure in measures]
        lines = [line for line in lines if any(cell.value != MISSING for cell in line.cells)]
        if lines:
            found[heading] = lines
    return found


def _cell(row: Mapping[str, Any], measure: _Measure) -> Cell:
    mean, low, high = _interval(row.get(measure.key))
    if mean is None:
        return Cell(MISSING)
    if low is None or high is None or low == high:
        return Cell(measure.form(mean))
    return Cell(measure.form(mean), f"{measure.form(low)} to {measure.form(high)}")


def _interval(value: Any) -> tuple[float | None, float | None, float | None]:
    """(mean, low, high) of a measured value, (value, None, None) of a plain number."""
    if isinstance(value, Mapping):
        return number(value.get("mean")), number(value.get("low")), number(value.get("high"))
    return number(value), None, None


def conclude(table: Table, num_prompts: int) -> Conclusion:
    """Say whether training helped. A difference is clear when the two 95 % intervals do not overlap."""
    before, after = table.get("untrained", {}), table.get("student", {})
    for kind, text in _TEXTS.items():
        kl, top1 = f"{kind}_kl", f"{kind}_top1"
        means = [_interval(row.get(key))[0] for key in (kl, top1) for row in (before, after)]
        if None in means:
            continue
        changes = {_change(before[kl], after[kl]), _change(after[top1], before[top1])}
        tone, verdict = _verdict(changes)
        return Conclusion(tone, f"{verdict} {_sentence([mean or 0.0 for mean in means], text, num_prompts)}")
    return Conclusion("none", "Whether training helped is not known: no held-out prompt was measured.")


def _change(before: Any, after: Any) -> Change:
    """Of a number that is better when lower."""
    _, low_before, high_before = _interval(before)
    _, low_after, high_after = _interval(after)
    if low_before is None or high_before is None or low_after is None or high_after is None:
        return "unclear"
    return "better" if high_after < low_before else "worse" if low_after > high_before else "unclear"


def _verdict(changes: set[Change]) -> tuple[Tone, str]:
    if {"better", "worse"} <= changes:
        return "unclear", "The result is mixed."
    if "better" in changes:
        return "better", "Training helped."
    if "worse" in changes:
        return "worse", "Training did not help."
    return "unclear", "Training made no clear difference: the 95 % intervals overlap."


def _sentence(means: list[float], text: str, num_prompts: int) -> str:
    kl_before, kl_after, top1_before, top1_after = means
    prompts = "1 held-out prompt" if num_prompts == 1 else f"{num_prompts:,} held-out prompts"
    return (
        f"On {text} to {prompts}, the student's KL from the teacher {_moved(kl_before, kl_after, decimal)} "
        f"nats per token, and how often it agrees with the teacher on the likeliest token "
        f"{_moved(top1_before, top1_after, percent)}."
    )


def _moved(before: float, after: float, form: Callable[[float], str]) -> str:
    if form(before) == form(after):
        return f"stayed at {form(after)}"
    return f"{'fell' if after < before else 'rose'} from {form(before)} to {form(after)}"
