r"""Reads the verdict out of a judge's written reply: exactly, or not at all.

A reply that cannot be read is a failed judgement with a reason, never a low score. The grammar:

1. Own words. Think blocks, closed code fences, `>` lines, code spans and quoted strings are
   no verdicts (`own_words`). A think block or a fence that never closes fails the reply.
2. A verdict stands alone: it is a whole line or a whole sentence, in one of these forms, where
   VALUE is `4`, `4/5`, `4 out of 5`, `4점`, `5점 만점에 4점`, `[[4]]`, `<score>4</score>` or `\boxed{4}`:
   a label and a VALUE (`Score: 4`, `**Final score:** 4/5`, `My rating is [[4]].`, `점수는 4점입니다`), on one
   line or with the VALUE on the next, and behind it at most a remark without digits;
   a plain sentence (`I would give this response a score of 4.`, `이 응답에 4점을 주겠습니다.`);
   a JSON object on lines of its own (or alone in a fence) with one of the keys of `verdict_forms`
   at its top;
   a tag alone; a bare number, but only as the whole reply; or, when nothing above is in the
   reply, `4/5` or `4점` alone, if all of those agree (they may be marks for single criteria).
   So "I checked 3 criteria. Final score: 1 out of 5" is 1, and "policy 2024-05" is nothing.
3. The last verdict decides, even if it cannot be read (`Score: 4-5`, `Score: N/A`): nothing
   earlier stands in for it. Verdicts that differ on its line, or a later sentence that names
   another score, make the reply ambiguous; so do verdicts that differ around a chat role tag.
4. The value is in the rubric's range and on its scale (`8/10` is no `4/5`), and whole unless
   the rubric allows decimals. ASCII digits and full-width ones (as East Asian keyboards type
   them) are read; digits of other scripts, number words and Roman numbers are not.
5. The deciding verdict must not stand, word for word, in a text that the judge was shown: it
   may be an echo. Spaces, emphasis, case, width and invisible characters make no difference.

Why: rules 1, 2 and 3 make a quoted candidate harmless before the judge's own verdict, rule 5
behind it, where position alone cannot tell whose words they are. The price is that a
judgement fails when the candidate contains the very words of the judge's verdict. What no
parser can see: a judge that was talked into a verdict and writes it in its own words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from llmdistill.filter.own_words import HIDDEN, OwnWords, own_words, skeleton
from llmdistill.filter.verdict_forms import ChoiceForms, Pairs, Reading, ScoreForms, clean

_LONGEST = 400
"""Characters; no verdict is a longer sentence than that."""

_MOST_OBJECTS = 32
_SENTENCE_END = re.compile(r"(?<=[.!?。])\s+|;\s+")
_TAG_LINES = re.compile(
    r"(<(?:score|rating|verdict|winner|점수|판정)>)(\s{0,4})([^<>\s]{1,30})(\s{0,4})(</[^<>\s]{1,10}>)", re.IGNORECASE
)
"""A tag's content on lines of its own is moved to the line of its tag."""

_ROLE = re.compile(r"<\|?(?:im_start|im_end|user|assistant|system|eot_id|start_header_id)\|?>|\[/?INST\]|</s>")
_REFUSAL = re.compile(
    r"\b(?:can(?:not|['’]t| not)|unable to|not able to|won['’]t|will not|decline to|refuse to)\b[^.\n]{0,40}"
    r"\b(?:rate|score|evaluate|judge|grade|assess|assign|provide|give|help|assist|comply|answer|do that)\b|"
    r"(?:평가|채점|점수|판단|도와|답변|제공|요청)[^.\n]{0,30}"
    r"(?:수 ?(?:가 ?|는 ?)?없|어렵습니다|불가|못합니다|않겠습니다)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A pointwise verdict. `score` is None unless `outcome` is "parsed"."""

    score: float | None
    outcome: str


@dataclass(frozen=True, slots=True)
class Choice:
    """A pairwise verdict: "A", "B" or "tie". `winner` is None unless `outcome` is "parsed"."""

    winner: str | None
    outcome: str


class Forms(Protocol):
    """The forms that a kind of verdict has."""

    def label_only(self, segment: str) -> bool:
        """A label that waits for its value on the next line."""
        ...

    def mark(self, segment: str) -> bool:
        """A value and nothing else."""
        ...

    def read(self, segment: str) -> Reading | None:
        """The verdict that the segment is, if it is one."""
        ...

    def read_bare(self, segment: str) -> Reading | None:
        """The verdict that the segment is as the whole reply."""
        ...

    def read_object(self, pairs: Pairs) -> Reading | None:
        """The verdict that a JSON object has."""
        ...

    def disagrees(self, segment: str, value: float | str) -> bool:
        """The segment, which is no verdict, names another one than the value."""
        ...


@dataclass(frozen=True, slots=True)
class _Segment:
    """A sentence, or an object, of the judge's own. `echo` is the text to look for in what the judge was shown."""

    line: int
    text: str
    reading: Reading | None
    echo: str = ""


def parse_verdict(text: str, lowest: float, highest: float, *, shown: Sequence[str], decimals: bool = False) -> Parsed:
    """Read the score in a judge's reply.

    Args:
        text: the whole reply.
        lowest: the lowest score of the rubric.
        highest: the highest score of the rubric.
        shown: the texts of others that the judge was shown (prompt, answer, rationale, reference).
        decimals: the rubric allows scores that are not whole.

    Returns:
        The score with "parsed", or None with the reason: "empty", "no_verdict", "refusal", "malformed",
        "out_of_range", "other_scale", "not_whole", "ambiguous", "echoed", "unclosed_think", "unclosed_fence".
    """
    reading = _decide(text, ScoreForms(lowest, highest, decimals), shown)
    return Parsed(None if reading.value is None else float(reading.value), reading.outcome)


def parse_choice(text: str, *, shown: Sequence[str]) -> Choice:
    """Read which of two answers a judge prefers; the same grammar, with A, B or a tie for the VALUE.

    `A` stands for `Response A`, `[[A]]`, `[[A>B]]`, `응답 A`; `[[C]]`, `tie` and `무승부` are ties. A letter
    alone is a verdict only as the whole reply, so that no article ("a wrong answer") is one.
    """
    reading = _decide(text, ChoiceForms(), shown)
    return Choice(None if reading.value is None else str(reading.value), reading.outcome)


def _decide(text: str, forms: Forms, shown: Sequence[str]) -> Reading:
    if not text.strip():
        return Reading(None, "empty")
    own = own_words(text)
    if own.problem:
        return Reading(None, own.problem)
    segments = _segments(own, forms)
    found = [segment for segment in segments if segment.reading]
    labelled = [segment for segment in found if segment.reading and segment.reading.labelled]
    if not found:
        return _nothing(own, segments)
    last = (labelled or found)[-1]
    rivals = [segment for segment in labelled if segment.line == last.line] if labelled else found
    return _checked(last, rivals, segments, forms, own, shown)


def _nothing(own: OwnWords, segments: list[_Segment]) -> Reading:
    if not any(line.strip(f"{HIDDEN} ") for line in own.lines):
        return Reading(None, "no_verdict")
    return Reading(None, "refusal" if any(_REFUSAL.search(segment.text) for segment in segments) else "no_verdict")


def _checked(
    last: _Segment, rivals: list[_Segment], segments: list[_Segment], forms: Forms, own: OwnWords, shown: Sequence[str]
) -> Reading:
    """The last verdict's reading, unless something in the reply speaks against taking it."""
    reading = last.reading
    assert reading is not None
    if any(rival.reading != reading for rival in rivals):
        return Reading(None, "ambiguous")
    if reading.value is None:
        return reading
    values = {segment.reading.value for segment in segments if segment.reading and segment.reading.labelled}
    if len(values) > 1 and any(_ROLE.search(line) for line in own.lines):
        return Reading(None, "ambiguous")
    later = segments[segments.index(last) + 1 :]
    if any(forms.disagrees(segment.text, reading.value) for segment in later):
        return Reading(None, "ambiguous")
    return Reading(None, "echoed") if _is_echo(last.echo, shown) else reading


def _is_echo(text: str, shown: Sequence[str]) -> bool:
    """The words stand in a text that the judge was shown, and not only as a part of a longer number."""
    wanted = skeleton(text).replace(" ", "").rstrip(".!。")
    if not wanted:
        return False
    left, right = ("(?<![0-9])" * wanted[0].isdigit(), "(?![0-9])" * wanted[-1].isdigit())
    pattern = re.compile(left + " ?".join(map(re.escape, wanted)) + right)
    return any(pattern.search(skeleton(other)) for other in shown)


def _segments(own: OwnWords, forms: Forms) -> list[_Segment]:
    bare = _bare(own, forms)
    if bare:
        return [bare]
    objects = _objects(own, forms)
    covered = {line for start, end, _ in objects for line in range(start, end)}
    lines = ["" if number in covered else line for number, line in enumerate(own.lines)]
    segments = list(_sentences(_TAG_LINES.sub(r"\1\3\5\2\4", "\n".join(lines)).split("\n"), forms))
    segments += [segment for _, _, segment in objects]
    return sorted(segments, key=lambda segment: segment.line)


def _bare(own: OwnWords, forms: Forms) -> _Segment | None:
    """The whole reply as a value alone. A stray think tag before it could be an echo, so it belongs to the words."""
    filled = [(number, line) for number, line in enumerate(own.lines) if line.strip()]
    if own.quotes or len(filled) != 1 or len(filled[0][1]) > _LONGEST:
        return None
    number, line = filled[0]
    reading = forms.read_bare(clean(line))
    return _Segment(number, line, reading, own.closer and own.closer + line) if reading else None


def _sentences(lines: list[str], forms: Forms) -> Iterator[_Segment]:
    waiting = ""
    for number, line in enumerate(lines):
        whole = clean(line) if len(line) <= _LONGEST else line
        if not whole:
            continue
        if waiting and forms.mark(whole):
            yield _segment(number, f"{waiting.rstrip(' :=')}: {whole}", forms, f"{waiting}{line}")
            waiting = ""
            continue
        waiting = whole if len(whole) <= _LONGEST and forms.label_only(whole) else ""
        parts = [part for part in _SENTENCE_END.split(line) if part.strip()]
        yield from (_segment(number, clean(part), forms) for part in parts)


def _segment(line: int, text: str, forms: Forms, echo: str = "") -> _Segment:
    reading = forms.read(text) if len(text) <= _LONGEST else None
    return _Segment(line, text, reading, echo or (reading.core if reading else ""))


def _objects(own: OwnWords, forms: Forms) -> list[tuple[int, int, _Segment]]:
    """(first line, line behind the last, verdict) of the JSON objects that stand on lines of their own."""
    lines = own.raw
    if len(own.fences) == 1 and not any(line.strip() for line in own.lines):
        lines = own.fences[0].splitlines()
    text, starts, place = "\n".join(lines), [], 0
    for number, line in enumerate(lines):
        if line.lstrip().startswith("{"):
            starts.append((number, place + line.index("{")))
        place += len(line) + 1
    found: list[tuple[int, int, _Segment]] = []
    for number, start in starts[-_MOST_OBJECTS:]:
        if not found or number >= found[-1][1]:
            found += _object_at(text, number, start, forms)
    return found


def _object_at(text: str, number: int, start: int, forms: Forms) -> list[tuple[int, int, _Segment]]:
    try:
        pairs, end = json.JSONDecoder(object_pairs_hook=_Pairs).raw_decode(text, start)
    except (ValueError, RecursionError):
        return []
    if text[end:].split("\n", 1)[0].strip():
        return []
    source = text[start:end]
    segment = _Segment(number, "{...}", forms.read_object(pairs), source)
    return [(number, number + source.count("\n") + 1, segment)]


class _Pairs(list[tuple[str, object]]):
    """A JSON object with its repeated keys, which a dict would lose."""
