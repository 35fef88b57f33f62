"""What the page shows of a refresh: what is new, how it differs, and whether the new student is better.

Everything comes from `<run>/refresh.json`, which the refresh writes before the report; each piece of it may be null.
All text is untrusted; the template escapes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmdistill.errors import DamagedError
from llmdistill.report import words
from llmdistill.report.coverage import Floats
from llmdistill.run.files import read_json

FILE = Path("refresh.json")

_MEASURES = {
    "accuracy": ("Right answers (higher is better)", True),
    "human_text_ce": ("Cross-entropy on the references, nats per token (lower is better)", False),
    "teacher_text_ce": ("Cross-entropy on the teacher's answers, nats per token (lower is better)", False),
    "teacher_text_kl": ("KL from the teacher, nats per token (lower is better)", False),
    "teacher_text_top1": ("Same likeliest token as the teacher (higher is better)", True),
}
"""Words for a measure, and whether it is a share."""
_FINDINGS = {
    "embedding": "Meaning",
    "clusters": "Topics",
    "length": "Length",
    "language": "Script",
    "scores": "Judge's scores",
    "keep_rate": "Kept by the filter",
    "judge": "The judge itself",
}
_NEWS = {
    "prompts": "Prompts",
    "new": "New",
    "gone": "Gone",
    "held_out": "Held out",
    "new_held_out": "Newly held out",
}
_TONES = {"promoted": "better", "refused": "worse"}
_MOST_EXAMPLES = 5
_EXCERPT_CHARS = 300
_DIGITS = 4


@dataclass(frozen=True)
class Moved:
    """One finding as text: its name, what was found, whether it moved, and its p-value beside the other tests."""

    name: str
    words: str
    moved: bool
    p: str


@dataclass(frozen=True)
class Topic:
    """A cluster whose share changed: both shares in words, and prompts from its middle."""

    shares: str
    examples: list[str]


def _nothing() -> Floats:
    return np.empty(0)


@dataclass(frozen=True)
class RefreshView:
    """A refresh as text.

    Attributes:
        gains: [held-out prompts] how much better the new student is on each, in the measure's unit.
        unit: of `gains`.
        is_compared: whether there were new prompts to compare with the old.
        usage: what asking the judge again took.
    """

    heading: str
    tone: str
    conclusion: str
    facts: list[tuple[str, str]]
    measures: list[list[str]] = field(default_factory=list)
    note: str = ""
    gains: Floats = field(default_factory=_nothing)
    unit: str = ""
    is_compared: bool = False
    findings: list[Moved] = field(default_factory=list)
    topics: list[Topic] = field(default_factory=list)
    usage: str = ""
    history: list[list[str]] = field(default_factory=list)


def read_refresh(run_dir: Path) -> RefreshView | None:
    """The refresh that made this run; None when it was made by none.

    Raises:
        DamagedError: the file is not what the refresh wrote.
    """
    path = run_dir / FILE
    if not path.exists():
        return None
    try:
        return view_of(read_json(path))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        advice = "remove it and run llmdistill refresh again"
        raise DamagedError(f"this describes no refresh ({error})", where=path, do=advice) from error


def view_of(stored: Mapping[str, Any]) -> RefreshView:
    """What `refresh.json` holds, for a person to read."""
    gate, drift, outcome = stored["gate"] or {}, stored["drift"] or {}, str(stored["outcome"])
    made = f"Version {_whole(stored['version'])}"
    if stored["parent"] is not None:
        made += f", made from version {_whole(stored['parent'])}"
    return RefreshView(
        heading=made,
        tone=_TONES.get(outcome, "none"),
        conclusion=": ".join(part for part in (outcome.capitalize(), str(gate.get("reason") or "")) if part),
        facts=[*_news(stored["new"] or {}), *_guards(stored["guards"] or {})],
        measures=_measures(gate),
        note=_note(gate, stored["champion"]),
        gains=_gains(gate),
        unit="share" if _is_share(gate.get("measure")) else "nats per token",
        is_compared="findings" in drift,
        findings=_findings(drift),
        topics=_topics(drift),
        usage=_usage(drift),
        history=[_version(row) for row in stored["history"] or []],
    )


def _whole(value: Any) -> str:
    found = words.number(value)
    return words.MISSING if found is None else f"{found:,.0f}"


def _news(stored: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(label, _whole(stored[key])) for key, label in _NEWS.items() if key in stored]


def _guards(stored: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How many models learned from each other, and how much of the training set people wrote."""
    found = []
    if "generation" in stored:
        found.append(("Generation", _whole(stored["generation"])))
    real = stored.get("real")
    if isinstance(real, Mapping):
        share = words.number(real.get("share"))
        shown = words.MISSING if share is None else words.percent(share)
        found.append(("Prompts that people wrote", f"{shown} of {_whole(real.get('records'))} chosen"))
    return found


def _is_share(measure: Any) -> bool:
    return _MEASURES.get(str(measure), ("", False))[1]


def _measures(gate: Mapping[str, Any]) -> list[list[str]]:
    """The measure that decided, with the margin, and the others below it."""
    if not gate:
        return []
    others = gate.get("secondary") or []
    return [_measure(gate, gate.get("margin")), *(_measure(other, None) for other in others)]


def _measure(found: Mapping[str, Any], margin: Any) -> list[str]:
    name = str(found["measure"])
    share = _is_share(name)
    low, high = (_amount(found.get(key), share, "+") for key in ("low", "high"))
    return [
        _MEASURES.get(name, (name, False))[0],
        _amount(found.get("champion"), share),
        _amount(found.get("student"), share),
        _amount(found.get("difference"), share, "+"),
        words.MISSING if words.MISSING in (low, high) else f"{low} to {high}",
        _amount(margin, share),
        _whole(found.get("num_records")),
    ]


def _amount(value: Any, share: bool, sign: str = "") -> str:
    """A share in percent, or a number in nats."""
    found = words.number(value)
    if found is None:
        return words.MISSING
    return f"{100 * found:{sign}.1f}\N{NO-BREAK SPACE}%" if share else f"{found:{sign}.{_DIGITS}f}"


def _note(gate: Mapping[str, Any], champion: Any) -> str:
    """What the comparison rests on."""
    if not gate:
        return ""
    confidence = words.number(gate.get("confidence"))
    parts = [f"The champion is version {_whole(gate.get('champion_number', champion))}."]
    if confidence is not None:
        parts.append(f"Intervals are those of the paired difference at {100 * confidence:g} %.")
    leaked = words.number(gate.get("num_leaked"))
    if leaked:
        parts.append(f"{leaked:,.0f} held-out prompts were left out: one of the models was trained on them.")
    parts.append("It is promoted if the end of the interval that speaks against it is within the margin.")
    return " ".join(parts)


def _gains(gate: Mapping[str, Any]) -> Floats:
    rows = gate.get("per_record") or []
    pairs = [(words.number(row["champion"]), words.number(row["student"])) for row in rows]
    sign = 1.0 if gate.get("higher_is_better") else -1.0
    gains = [sign * (student - champion) for champion, student in pairs if champion is not None and student is not None]
    return np.array(gains, dtype=float)


def _findings(drift: Mapping[str, Any]) -> list[Moved]:
    found = dict(drift.get("findings") or {})
    if drift.get("judge"):
        found["judge"] = drift["judge"]
    return [_moved(name, one) for name, one in found.items()]


def _moved(name: str, found: Mapping[str, Any]) -> Moved:
    p = words.number(found.get("p_adjusted"))
    shown = words.MISSING if p is None else "below 0.001" if p < 0.001 else f"{p:.3f}"
    return Moved(_FINDINGS.get(name, name), _sentence(str(found["words"])), bool(found["moved"]), shown)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _topics(drift: Mapping[str, Any]) -> list[Topic]:
    clusters = (drift.get("findings") or {}).get("clusters") or {}
    return [_topic(found) for found in clusters.get("movers") or [] if found["examples"]]


def _topic(found: Mapping[str, Any]) -> Topic:
    shares = [words.number(found[key]) for key in ("old_share", "new_share")]
    old, new = (words.MISSING if share is None else words.percent(share) for share in shares)
    examples: Sequence[Any] = found["examples"][:_MOST_EXAMPLES]
    return Topic(f"{new} of the new, {old} of the old", [_excerpt(str(text)) for text in examples])


def _excerpt(text: str) -> str:
    return words.shorten(words.clean(text), _EXCERPT_CHARS)


def _usage(drift: Mapping[str, Any]) -> str:
    found = drift.get("usage") or {}
    requests = words.number(found.get("requests"))
    if not requests:
        return ""
    cost = found.get("cost")
    return f"Asking the judge about old answers again took {requests:,.0f} requests; cost {words.money(cost)}."


def _version(row: Mapping[str, Any]) -> list[str]:
    """One row of the history; what has been rolled back since is said, what is champion now is not a page's to know."""
    measure = row.get("measure")
    score = _amount(row.get("score"), _is_share(measure))
    rolled_back = " (rolled back)" if row.get("now") == "rolled back" else ""
    return [
        _whole(row["number"]),
        str(row.get("finished") or words.MISSING),
        _whole(row.get("parent")),
        *(_whole(row.get(key)) for key in ("prompts", "new", "chosen")),
        words.MISSING if measure is None else f"{measure} {score}",
        _amount(row.get("difference"), _is_share(measure), "+"),
        f"{row.get('outcome')}{rolled_back}",
        words.money(row["cost"]),
    ]
