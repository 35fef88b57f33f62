"""Which part of a judge's reply are the judge's own words.

Not its own words, hidden before anything is read: think blocks, closed code fences,
quotation lines (`>`), code spans and quoted strings. What cannot be told apart safely
(a think block or a fence that is never closed) is a problem, and the reply is not read.
Every pass looks at each character a fixed number of times, so time grows with length only.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

HIDDEN = "\ufffc"
"""Stands for each hidden character; no form of a verdict has it, so none can be put together across a quotation."""

_THINK = r"(?:think|thinking|thought|reasoning)"
_TAG = re.compile(rf"(?P<open><{_THINK}>|\[THINK\])|</{_THINK}>|\[/THINK\]", re.IGNORECASE)
_CLOSE = re.compile(rf"</{_THINK}>|\[/THINK\]", re.IGNORECASE)
_FENCE = re.compile(r"\s*(`{3,}|~{3,})(.*)")
_QUOTED = re.compile(r"\"[^\"]*\"|(?<![\w'])'[^']*'(?!\w)|‘[^‘’]*’")
_QUOTED_LINES = re.compile(r"“[^“”]*”|「[^「」]*」|『[^『』]*』|«[^«»]*»|《[^《》]*》")
_CHANGES = re.compile(
    r"[*_\\\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    r"\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]+"
)
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}


@dataclass(slots=True)
class OwnWords:
    """The reply line by line. `lines` has quotations hidden, `raw` (for JSON) only what spans whole lines."""

    lines: list[str] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)
    fences: list[str] = field(default_factory=list)
    """Contents of the closed fences."""
    quotes: bool = False
    """There are fences or quotation lines."""
    closer: str = ""
    """The think tag that closed what no tag had opened (templates open it in the prompt), if any."""
    problem: str | None = None


def own_words(text: str) -> OwnWords:
    """Split a reply into the judge's own words and the rest."""
    reader = _Reader()
    for line in text.removeprefix("\ufeff").translate(_FULL_WIDTH).splitlines():
        reader.read(line)
    return reader.finish()


class _Reader:
    """Goes through the lines in order; whatever opens first (a fence, a think block) hides the rest."""

    def __init__(self) -> None:
        self.own = OwnWords()
        self.first = 0
        self.thinking = False
        self.fence = ""
        self.inside: list[str] = []

    def read(self, line: str) -> None:
        fence = None if self.thinking else _FENCE.fullmatch(line)
        if self.fence:
            self._read_fenced(line)
        elif not line:
            self._add("", "")
        elif fence and "`" not in fence[2]:
            self.fence, self.inside, self.own.quotes = fence[1], [], True
            self._add("", "")
        elif line.lstrip().startswith(">") and not self.thinking:
            self.own.quotes = True
            self._add("", "")
        else:
            self._read_open(line)

    def _add(self, line: str, raw: str) -> None:
        self.own.lines.append(line)
        self.own.raw.append(raw)

    def _read_fenced(self, line: str) -> None:
        self._add("", "")
        bare = line.strip()
        if len(bare) >= len(self.fence) and not bare.strip(self.fence[0]):
            self.own.fences.append("\n".join(self.inside))
            self.fence = ""
        self.inside.append(line)

    def _read_open(self, line: str) -> None:
        shown, spans, place = hide_quotations(line), [(0, 0)], 0
        while place < len(line):
            # Thoughts end where a chat template would end them, quoted or not.
            tag = _CLOSE.search(line, place) if self.thinking else _TAG.search(shown, place)
            if not self.thinking:
                spans.append((place, tag.start() if tag else len(line)))
                if tag and not tag["open"]:
                    spans = self._forget(tag.group())
            if tag is None:
                break
            self.thinking = not self.thinking and bool(tag.groupdict().get("open"))
            place = tag.end()
        self._add(_joined(shown, spans), _joined(line, spans))

    def _forget(self, closer: str) -> list[tuple[int, int]]:
        """All so far was thought."""
        self.first = len(self.own.lines)
        self.own.closer, self.own.quotes, self.own.fences = closer, False, []
        return []

    def finish(self) -> OwnWords:
        own = self.own
        own.lines[: self.first] = [""] * self.first
        own.raw[: self.first] = [""] * self.first
        own.lines = _QUOTED_LINES.sub(_hidden, "\n".join(own.lines)).split("\n")
        own.problem = "unclosed_think" if self.thinking else "unclosed_fence" if self.fence else None
        return own


def _joined(line: str, spans: list[tuple[int, int]]) -> str:
    """The parts, never put together over what stood between them."""
    return HIDDEN.join(part for start, end in spans if (part := line[start:end]).strip())


def hide_quotations(line: str) -> str:
    """The line with its code spans and quoted strings hidden, each character by one."""
    return _QUOTED.sub(_hidden, _hide_code(line)) if any(mark in line for mark in "`\"'‘") else line


def _hide_code(line: str) -> str:
    runs = [match.span() for match in re.finditer(r"`+", line)]
    following: dict[int, int] = {}
    partner = [0] * len(runs)
    for index in reversed(range(len(runs))):
        length = runs[index][1] - runs[index][0]
        partner[index] = following.get(length, 0)
        following[length] = index
    pieces, done, index = [], 0, 0
    while index < len(runs):
        if partner[index]:
            start, end = runs[index][0], runs[partner[index]][1]
            pieces += [line[done:start], HIDDEN * (end - start)]
            done, index = end, partner[index]
        index += 1
    return "".join([*pieces, line[done:]])


def _hidden(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", HIDDEN, match.group())


def skeleton(text: str) -> str:
    """The text without what an echo may change: emphasis, case, width, invisible characters, the kind of spaces."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_CHANGES.sub("", plain).split())
