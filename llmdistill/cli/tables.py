"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_ROLES = ("teacher", "untrained", "student")


def _interval(value: dict[str, float]) -> str:
    return f"{value['mean']:.3f} ({value['low']:.3f}-{value['high']:.3f})"


_HISTORY: dict[str, Callable[[dict[str, Any]], str]] = {
    "v": lambda row: f"{row['number']}",
    "finished": lambda row: str(row["finished"])[:16].replace("T", "\n"),
    "prompts": lambda row: f"{row['prompts']:,}\n{row['new']:,} new",
    "chosen": lambda row: f"{row['chosen']:,}",
    "score": lambda row: _score(row),
    "requests": lambda row: f"{row['requests']:,}\n{_cost(row['cost'])}",
    "now": lambda row: str(row["now"]).replace(" ", "\n"),
}


def _score(row: dict[str, Any]) -> str:
    if row["difference"] is None:
        return "-"
    against = f"{row['difference']:+.3g} from {row['champion_before']}"
    return f"{row['score']:.4g}\n{against}\n{row['low']:+.2g} to {row['high']:+.2g}"


def _cost(cost: float | None) -> str:
    return "unknown" if cost is None else f"${cost:,.2f}"


def print_history(rows: list[dict[str, Any]]) -> None:
    """One row a version, the oldest first; fits 80 columns."""
    if not rows:
        print("no version yet: llmdistill refresh makes the first")
        return
    measures = dict.fromkeys(row["measure"] for row in rows if row["measure"])
    shown = Table(title="versions", title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    shown.show_lines, shown.pad_edge, shown.padding = True, False, (0, 1, 0, 0)
    if measures:
        shown.caption = f"score: {', '.join(measures)}, and its difference from the champion of then"
    for name in _HISTORY:
        shown.add_column(name, justify="left" if name in ("finished", "now") else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*(form(row) for form in _HISTORY.values()))
    Console().print(shown)


_ROWS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "parameters": ("parameters, M", lambda value: f"{value / 1e6:,.1f}"),
    "bytes": ("size, MB", lambda value: f"{value / 1e6:,.0f}"),
    "tokens_per_second": ("tokens/s", lambda value: f"{value:,.0f}"),
    "teacher_text_kl": ("KL to teacher, nats/token", _interval),
    "teacher_text_top1": ("top-1 agreement", _interval),
    "teacher_text_ce": ("CE on teacher text", _interval),
    "human_text_kl": ("KL on human text", _interval),
    "human_text_ce": ("CE on human text", _interval),
    "stopped": ("answers that stop", lambda value: f"{value:.0%}"),
    "answer_tokens": ("tokens per answer", lambda value: f"{value:,.0f}"),
}


def print_comparison(table: dict[str, dict[str, Any]]) -> None:
    """The three-way comparison; brackets hold 95 % intervals over held-out prompts."""
    if not table:
        print("no held-out prompts: nothing was compared")
        return
    shown = Table(title="held-out prompts (95 % intervals in brackets)", title_justify="left")
    shown.add_column("")
    for role in _ROLES:
        shown.add_column(role, justify="right")
    for key, (label, form) in _ROWS.items():
        values = [table[role].get(key) for role in _ROLES]
        if any(value is not None for value in values):
            shown.add_row(label, *("-" if value is None else form(value) for value in values))
    Console().print(shown)
