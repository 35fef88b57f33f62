"""Reading question-answer pairs out of a reply, as JSON or in the plain form `Question: ... Answer: ...`.

What is read is what stands there: nothing is mended, guessed or put together. Whole pairs are read
up to the place where a reply is broken or cut off; from there on it is one piece that is no pair.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from llmdistill.rows import has_surrogate, storable
from llmdistill.templates import PairsTemplate
from llmdistill.text import plain

_WORDS = (
    ("Question", "Rationale", "Answer"),
    ("질문", "풀이", "정답"),
    ("질문", "풀이", "답"),
    ("문제", "풀이", "정답"),
)
_LETTERS = ("Q", "R", "A")
_PARTS = ("question", "rationale", "answer")
_DEEPEST = 4

_JSON_START = re.compile(r"^[ \t]*(?:`{3,}[ \t]*(?:json)?[ \t]*)?(?=[\[{])", re.MULTILINE | re.IGNORECASE)
_NEXT_VALUE = re.compile(r"\s*,?\s*(?=[\[{])")
_ARRAY = re.compile(r'(?:\{\s*"[^"\n]{1,40}"\s*:\s*)?\[\s*')
_COMMA = re.compile(r"\s*,?\s*")
_THOUGHTS = re.compile(r"\A.*</think>", re.DOTALL)
_RULE = re.compile(r"[ \t]*(?:-{3,}|={3,}|\*{3,}|_{3,})?[ \t]*")
_HEADING = re.compile(
    r"[ \t]*(?:\d{1,3}[.)]|#{0,6}[ \t]*\**(?:pair|task|example|question|쌍|과제|예시|질문)"
    r"[ \t]*#?\d{1,3}\**[.:)]?\**)\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Piece:
    """A pair, or with a `reason` a part of a reply that is none. `raw` is the part as it stands in the reply."""

    question: str = ""
    rationale: str | None = None
    answer: str = ""
    raw: str = ""
    reason: str = ""
    detail: str = ""


def read_pairs(text: str, prefill: str, is_cut: bool, template: PairsTemplate) -> list[Piece]:
    """The pieces of a reply in their order; none when nothing can be read.

    Args:
        text: what the model wrote after `prefill`.
        is_cut: whether it ran into its limit, so that the last piece may not be whole.
    """
    text = _THOUGHTS.sub("", text)
    if text.lstrip().startswith("<think>") or has_surrogate(text):
        return []
    pieces = _read_json(text, is_cut, template)
    if pieces is None:
        pieces = _read_plain(prefill + text, template)
        if is_cut and pieces:
            pieces[-1] = replace(pieces[-1], reason="truncated", detail="the reply was cut off in this pair")
    copied = _placeholders(template)
    return [
        replace(piece, reason="leaks_template", detail="copied from the instructions")
        if not piece.reason and plain(piece.question) in copied
        else piece
        for piece in pieces
    ]


@cache
def _placeholders(template: PairsTemplate) -> frozenset[str]:
    """What stands for a question in the template itself."""
    return frozenset(plain(piece.question) for piece in _read_plain(template.user, template))


def _read_json(text: str, is_cut: bool, template: PairsTemplate) -> list[Piece] | None:
    """Pieces of a reply that holds pairs as JSON; None when it holds none, or is a plain one that quotes JSON."""
    start = _JSON_START.search(text)
    if start is None or any(mark.start() < start.start() for mark in _question_marks(text, template)):
        return None
    keys, items, broken = _keys(template), list[dict[str, Any]](), ""
    position = start.end()
    while True:
        try:
            value, position = _DECODER.raw_decode(text, position)
            items += _items(value, keys)
        except (ValueError, RecursionError):
            whole, end = _whole_values(text, position)
            items += [item for value in whole for item in _items(value, keys)]
            if _looks_like_pairs(text, position, keys):
                broken = "" if text.startswith("]", end) else text[end:].strip()
                break
            position = _end_of_line(text, position)
        following = _NEXT_VALUE.match(text, position) or _JSON_START.search(text, position)
        if following is None:
            break
        position = following.end()
    pieces = [_json_piece(item, template) for item in items]
    if broken:
        reason = "truncated" if is_cut else "unparsed"
        pieces.append(Piece(raw=broken, reason=reason, detail="the JSON is not whole from here on"))
    return pieces or None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object with its keys in small letters; one that names a key twice is refused: which value was meant?"""
    found = {key.strip().casefold(): value for key, value in pairs}
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object, strict=False)


def _keys(template: PairsTemplate) -> dict[str, str]:
    """Which part of a pair a key names."""
    found: dict[str, str] = {}
    for words in [_LETTERS, *_WORDS, _marker_words(template)]:
        found |= {word.casefold(): part for word, part in zip(words, _PARTS, strict=True)}
    return found


def _items(value: Any, keys: dict[str, str], depth: int = 0) -> Iterator[dict[str, Any]]:
    """Objects that name a question or an answer, wherever they are; their parts by name, the rest left out."""
    if depth > _DEEPEST:
        return
    if isinstance(value, list):
        for inner in value:
            yield from _items(inner, keys, depth + 1)
    elif isinstance(value, dict):
        parts = [keys[key] for key in value if key in keys]
        if len(set(parts)) < len(parts):
            yield {"clash": value}
        elif {"question", "answer"} & set(parts):
            yield {keys[key]: inner for key, inner in value.items() if key in keys}
        else:
            for inner in value.values():
                yield from _items(inner, keys, depth + 1)


def _whole_values(text: str, position: int) -> tuple[list[Any], int]:
    """The whole values of an array that is not whole itself, and where they end."""
    opened = _ARRAY.match(text, position)
    if opened is None:
        return [], position
    values, end = list[Any](), opened.end()
    while True:
        try:
            value, after = _DECODER.raw_decode(text, end)
        except (ValueError, RecursionError):
            return values, end
        values.append(value)
        comma = _COMMA.match(text, after)
        end = comma.end() if comma else after


def _looks_like_pairs(text: str, position: int, keys: dict[str, str]) -> bool:
    names = "|".join(re.escape(key) for key in keys)
    pattern = rf'[\[{{][\[{{\s]{{0,20}}"(?:pairs|{names})"\s*:|\[\s*\{{\s*"'
    return re.compile(pattern, re.IGNORECASE).match(text, position) is not None


def _end_of_line(text: str, position: int) -> int:
    found = text.find("\n", position)
    return len(text) if found < 0 else found


def _json_piece(item: dict[str, Any], template: PairsTemplate) -> Piece:
    raw = json.dumps(item.get("clash", item), ensure_ascii=False)
    if "clash" in item:
        return Piece(raw=storable(raw), reason="unparsed", detail="a part of the pair is named twice")
    texts = {part: _as_text(item.get(part)) for part in _PARTS}
    wrong = [part for part, text in texts.items() if text is None or has_surrogate(text)]
    if wrong:
        return Piece(raw=storable(raw), reason="unparsed", detail=f"{' and '.join(wrong)}: no text")
    words = [_marker_words(template), *_WORDS]
    own = {
        part: _without_marker(texts[part] or "", [each[place] for each in words]) for place, part in enumerate(_PARTS)
    }
    return _checked(Piece(own["question"], own["rationale"] or None, own["answer"], raw))


def _as_text(value: Any) -> str | None:
    """Text and numbers; None for what is neither."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _without_marker(text: str, words: list[str]) -> str:
    for word in words:
        text = re.sub(rf"\A{_pattern(word)}", "", text.strip(), count=1)
    return text.strip()


def _checked(piece: Piece) -> Piece:
    """The piece with its reason if it is no pair."""
    if not piece.question:
        return replace(piece, reason="empty_question")
    return piece if piece.answer else replace(piece, reason="empty_answer")


def _marker_words(template: PairsTemplate) -> tuple[str, str, str]:
    """The template's markers without their colons. A rationale that was not asked for may come all the same."""
    question, answer = (
        marker.strip().removesuffix(":") for marker in (template.question_marker, template.answer_marker)
    )
    usual = next((words[1] for words in _WORDS if words[0] == question), "Rationale")
    return question, (template.rationale_marker or usual).strip().removesuffix(":"), answer


def _pattern(word: str) -> str:
    """A marker at the beginning of a line, as models write it: `Question 2:`, `**질문：**`, `3. Q:`."""
    before = r"(?m:^)[ \t>*_#-]{0,20}(?:\d{1,3}[.)][ \t]*)?[*_]{0,3}"
    return rf"{before}{re.escape(word)}[ \t]*#?\d{{0,3}}[ \t*_]*[:：][*_]*"


def _marks(text: str, words: tuple[str, str, str]) -> list[tuple[re.Match[str], str]]:
    """The markers in their order, each with the part it begins."""
    flags = re.NOFLAG if words == _LETTERS else re.IGNORECASE
    found = [
        (match, part)
        for word, part in zip(words, _PARTS, strict=True)
        for match in re.finditer(_pattern(word), text, flags)
    ]
    return sorted(found, key=lambda mark: mark[0].start())


def _question_marks(text: str, template: PairsTemplate) -> list[re.Match[str]]:
    sets = [_marker_words(template), *_WORDS]
    return [mark for words in sets for mark, part in _marks(text, words) if part == "question"]


def _read_plain(text: str, template: PairsTemplate) -> list[Piece]:
    """Pieces of a plain reply, by the first set of markers of which it has questions and answers."""
    sets = [_marker_words(template), *_WORDS, _LETTERS]
    marked = [(words, _marks(text, words)) for words in sets]
    whole = [item for item in marked if {"question", "answer"} <= {part for _, part in item[1]}]
    some = [item for item in marked if item[1] and item[0] != _LETTERS]
    words, marks = next(iter([*whole, *some]), (sets[0], []))
    return list(_plain_pieces(text, marks, words)) if marks else []


def _plain_pieces(text: str, marks: list[tuple[re.Match[str], str]], words: tuple[str, str, str]) -> Iterator[Piece]:
    firsts = [index for index, (_, part) in enumerate(marks) if part == "question" or index == 0]
    for first, last in zip(firsts, [*firsts[1:], len(marks)], strict=True):
        end = marks[last][0].start() if last < len(marks) else len(text)
        own = marks[first:last]
        if "answer" not in {part for _, part in own} and words != _LETTERS:
            own += _inline_answer(text, own[-1][0].end(), end, words[2])
        yield _plain_piece(text, own, end, is_last=last == len(marks))


def _inline_answer(text: str, start: int, end: int, word: str) -> list[tuple[re.Match[str], str]]:
    """The answer marker after a sentence on the same line, if there is exactly one."""
    pattern = re.compile(rf"(?<=[?.!。？])[ \t]+{re.escape(word)}[ \t]*[:：]", re.IGNORECASE)
    found = list(pattern.finditer(text, start, end))
    return [(found[0], "answer")] if len(found) == 1 else []


def _plain_piece(text: str, marks: list[tuple[re.Match[str], str]], end: int, is_last: bool) -> Piece:
    raw = text[marks[0][0].start() : end].strip()
    parts = [part for _, part in marks]
    if len(set(parts)) < len(parts):
        return Piece(raw=raw, reason="unparsed", detail="a part of the pair stands there twice")
    ends = [*(mark.start() for mark, _ in marks[1:]), end]
    texts = {
        part: _cleaned(text[mark.end() : stop], is_last or stop < end)
        for (mark, part), stop in zip(marks, ends, strict=True)
    }
    return _checked(Piece(texts.get("question", ""), texts.get("rationale") or None, texts.get("answer", ""), raw))


def _cleaned(text: str, keeps_headings: bool) -> str:
    """The text without rules, without the heading of the next pair, and without the end of a fence around it all."""
    lines = text.strip().split("\n")
    while lines and (_RULE.fullmatch(lines[-1]) or not keeps_headings and _HEADING.fullmatch(lines[-1])):
        lines.pop()
    if lines and lines[-1].strip() == "```" and sum(line.lstrip().startswith("```") for line in lines) % 2:
        lines.pop()
    text = "\n".join(lines).strip()
    return text.removesuffix("**").rstrip() if text.count("**") % 2 and text.endswith("**") else text
