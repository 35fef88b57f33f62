"""What every verifier gives, and where in a reply the final answer stands."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_CHARS = 200_000
"""Characters of an answer or a reference; of longer ones nothing is decided, so that time stays bounded."""
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Verified:
    """A verifier's word. `ok` is None where it cannot decide; `detail` says why in a few words."""

    ok: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class Final:
    """The part of a text that states the final answer. `marked` says that the text itself points to it."""

    text: str
    marked: bool


_LINE_MARKER = re.compile(
    r"^[ \t>*_#]{0,20}(?:(?:the )?(?:final |correct )?answer|(?:최종 ?)?(?:정답|답변?))"
    r"(?:[ \t*_]{0,8}[:：][*_]*|[ \t]*\n)[ \t]*\n?(?P<text>[^\n]+)",
    re.IGNORECASE | re.MULTILINE,
)
_SHORT_MARKER = re.compile(r"^[ \t]{0,8}(?:A:|####)[ \t]*(?P<text>[^\n]+)", re.MULTILINE)
_INLINE_MARKER = re.compile(
    r"(?:\banswer(?: is| was|=)|(?:정답|답)(?:은|:))[ \t]*:?[ \t]*(?P<text>[^\n]+)", re.IGNORECASE
)
_BOXED = re.compile(r"\\(?:boxed|fbox)[ ]?\{")


def final_answer(text: str, *, short_marker: bool = True) -> Final:
    r"""The last marked answer of a text, else the whole text.

    Marks are `\boxed{}`, `Answer:`, `the answer is`, `정답:`, `답은`, and with `short_marker` also
    GSM8K's `#### 42` and `A: 42` at the beginning of a line.
    """
    patterns = [_LINE_MARKER, _INLINE_MARKER, *([_SHORT_MARKER] if short_marker else [])]
    found = [(match.start("text"), match["text"]) for pattern in patterns for match in pattern.finditer(text)]
    found += [(match.end(), _braced(text, match.end())) for match in list(_BOXED.finditer(text))[-1:]]
    if not found:
        return Final(text.strip(), False)
    return Final(max(found)[1].strip(), True)


def _braced(text: str, start: int) -> str:
    """What stands between the brace that ends just before `start` and its partner."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return text[start:]


def shown(text: str) -> str:
    """A text for a detail: one line, shortened, with whatever cannot be printed escaped."""
    cut = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
    return ascii(cut)[1:-1] if not cut.isprintable() else cut


def differs(answer: str, reference: str) -> Verified:
    """The verdict on an answer that is not the reference."""
    return Verified(False, f"{shown(answer)} is not {shown(reference)}")
