"""Text as tokens, for telling a copy by runs of them: case, width, punctuation, spacing and hidden marks do not count.

A word is a token. In scripts written without spaces, and in Hangul, where particles stick to words, a character is
one. Mathematical signs and emoji are tokens, for they change the meaning.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

_CHARACTERS = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u30fa\u30fc-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Hangul, Khmer, Kana, Han: what is a token of its own."""
_MARKS = "\u0300-\u036f\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff"
"""Marks that belong to a word, which `\\w` leaves out: accents, Hebrew and Arabic points, Indic vowel signs."""
_SIGNS = "+<=>^\u00d7\u00f7\u2190-\u245f\u2500-\u2bff\U0001f000-\U0001faff"
_SINGLE = re.compile(f"[{_CHARACTERS}]")
_SINGLES = re.compile(f"[{_CHARACTERS}]+")
_HIDDEN = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e0fff]+"
)
_DASHES = re.compile("[\u2010-\u2015\u2212]")
_PIECE = re.compile(r"[\x00-\x7f]+(?=[\x00-\x7f]|\Z)|.", re.DOTALL)
"""ASCII up to the last character, which a mark may follow, or one character."""
_THOUSANDS = re.compile(r",(?<=\d,)\d{3}(?!\d)")
_TOKEN = re.compile(rf"[\w{_MARKS}]+(?:(?<=\d),\d{{3}}(?!\d))*|[{_SIGNS}]|[*/-](?=\s*\d)|(?<=\d)[.:](?=\d)")


def tokens(text: str) -> list[str]:
    """The tokens of a text."""
    plain = _plain(text)
    found = _TOKEN.findall(plain)
    return [token.replace(",", "") for token in found] if _THOUSANDS.search(plain) else found


def is_character(token: str) -> bool:
    """Whether the token is one character of a script without spaces, or of Hangul."""
    return _SINGLE.match(token) is not None


def _plain(text: str) -> str:
    """The text in which `_TOKEN` finds the tokens."""
    if not text.isascii():
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        text = _DASHES.sub("-", _HIDDEN.sub("", _SINGLES.sub(_spaced, folded)))
    return text.casefold().replace("_", " ")


def _spaced(run: re.Match[str]) -> str:
    """A space on both sides of each character."""
    return f" {'  '.join(run[0])} "


@dataclass(frozen=True)
class Places:
    """The tokens of a text, and where in the text each begins and ends (characters)."""

    tokens: list[str]
    spans: list[tuple[int, int]]


def places(text: str) -> Places | None:
    """The tokens with their places; None for a text whose marks compose in a way that cannot be traced back."""
    if text.isascii():
        found = [(match[0], *match.span()) for match in _TOKEN.finditer(_plain(text))]
    else:
        plain, begins, ends = _traced(text)
        if plain != _plain(text):
            return None
        found = [(match[0], begins[match.start()], ends[match.end() - 1]) for match in _TOKEN.finditer(plain)]
    return Places([token.replace(",", "") for token, _, _ in found], [(start, end) for _, start, end in found])


def _traced(text: str) -> tuple[str, list[int], list[int]]:
    """`_plain` of the text, made piece by piece, and where the origin of each of its characters begins and ends."""
    pieces: list[str] = []
    begins: list[int] = []
    ends: list[int] = []
    known: dict[str, str] = {}
    starts = [piece.start() for piece in _PIECE.finditer(text) if not piece.start() or not _joins(piece[0][0])]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        cluster = text[start:end]
        piece = known.get(cluster) or known.setdefault(cluster, _plain(cluster))
        pieces.append(piece)
        if cluster.isascii():
            begins += range(start, end)
            ends += range(start + 1, end + 1)
        else:
            begins += [start] * len(piece)
            ends += [end] * len(piece)
    return "".join(pieces), begins, ends


def _joins(mark: str) -> bool:
    """Whether Unicode may compose the character with the one before."""
    return unicodedata.category(mark)[0] == "M" or "\u1160" <= mark <= "\u11ff" or mark in "\uff9e\uff9f"
