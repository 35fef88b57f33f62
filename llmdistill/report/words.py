"""From numbers and untrusted text to what a reader sees.

A number that is missing or not finite is shown as a dash, never as a zero.
Text keeps its letters and loses what could act on a terminal or break the file;
escaping for HTML is left to the template engine.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

MISSING = "\N{EM DASH}"

# Escape sequences of terminals: titles and links (OSC and kin, ended by BEL or ST), colours and moves (CSI), the rest.
_ESCAPES = re.compile(
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|\x1b[ -/]*[0-~]?"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")


def clean(text: str) -> str:
    """The text without terminal escapes and control characters; line feeds and tabs stay.

    Lone surrogates, which JSON can spell but UTF-8 cannot hold, become U+FFFD.
    """
    text = _ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", _CONTROLS.sub("", text))


def shorten(text: str, num_chars: int) -> str:
    """The first `num_chars` characters, and how many were left out."""
    left = len(text) - num_chars
    return text if left <= 0 else f"{text[:num_chars]} [... {left:,} more characters]"


def number(value: Any) -> float | None:
    """The value as a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def decimal(value: float) -> str:
    """Three significant digits for small numbers, whole numbers from a hundred on."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 0.1 else f"{value:.2g}"


def percent(value: float) -> str:
    """A fraction as a percentage."""
    return f"{value:.1%}".replace("%", "\N{NO-BREAK SPACE}%")


def count(value: float) -> str:
    """A big count in millions or billions."""
    for size, name in ((1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:,.1f}\N{NO-BREAK SPACE}{name}"
    return f"{value:,.0f}"


def megabytes(value: float) -> str:
    """Bytes as MB (10^6 bytes)."""
    return f"{value / 1e6:,.1f}"


def duration(seconds: float) -> str:
    """Seconds as h, min and s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def money(dollars: float | None) -> str:
    """US dollars; a cost that nobody knows is not nothing."""
    return "unknown" if dollars is None else "0" if dollars == 0 else f"${dollars:,.4f}"


def setting(value: Any) -> str:
    """A config value as the pipeline file would have it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def points(value: float | None, sign: str = "") -> str:
    """A share as percent, or a difference as points, two decimals."""
    return MISSING if value is None else f"{100 * value:{sign}.2f}"


def with_spread(value: float | None, sd: float | None, sign: str = "") -> str:
    """`points`, and the standard deviation where it is known."""
    return points(value, sign) + ("" if sd is None or value is None else f" ± {points(sd)}")
