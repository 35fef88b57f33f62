"""Reading a teacher's reply: where the rationale ends and the answer begins."""

from __future__ import annotations

import re

from llmdistill.templates import TeacherTemplate


def split_reply(reply: str, template: TeacherTemplate) -> tuple[str | None, str] | None:
    """(rationale, answer) of a reply, or None when it does not keep to the template's form.

    The last answer marker that begins a line counts: an earlier one may be quoted in the reasoning.
    """
    if template.answer_marker is None:
        return None, reply.strip()
    places = list(re.finditer(rf"^[ \t>*_#]*{_pattern(template.answer_marker)}", reply, re.MULTILINE))
    if not places:
        return None
    before, answer = reply[: places[-1].start()], reply[places[-1].end() :].strip()
    if template.rationale_marker:
        before = re.sub(rf"^[\s*_#]*{_pattern(template.rationale_marker)}", "", before, count=1)
    return (before.strip() or None, answer) if answer else None


def _pattern(marker: str) -> str:
    """The marker as models write it: `Answer:`, `**Answer:**`, `**Answer**:`, `정답 :` or `정답：`."""
    word = marker.rstrip().removesuffix(":")
    if word == marker.rstrip():
        return rf"{re.escape(marker)}[*_]*"
    return rf"{re.escape(word)}[ \t*_]*[:：][*_]*"
