"""Reading a teacher's reply: what of it is usable, where the rationale ends and the answer begins."""

from __future__ import annotations

import re
from dataclasses import replace

from llmdistill.config import Generate
from llmdistill.engines.base import Completion
from llmdistill.record import Record, Reject
from llmdistill.run.stage import FAILED
from llmdistill.templates import TeacherTemplate


def with_answer(
    record: Record, completion: Completion, settings: Generate, template: TeacherTemplate, prefill: str
) -> Record | Reject:
    """The record with what the teacher said.

    Args:
        prefill: what the teacher's answer was made to begin with.
    """
    unusable = _unusable(prefill + completion.text, completion, settings)
    if unusable:
        return Reject(record, "generate", *unusable)
    cut = f"cut at {completion.completion_tokens:,} tokens" if completion.finish_reason == "length" else ""
    return read_reply(record, prefill + completion.text, settings, template, completion.reasoning, cut)


def read_reply(
    record: Record, reply: str, settings: Generate, template: TeacherTemplate, reasoning: str, cut: str
) -> Record | Reject:
    """The record with a reply, as the template's form tells rationale and answer apart.

    Args:
        reasoning: what was thought apart from the reply; the rationale where the reply has none.
        cut: how the reply was cut off; empty when it was not.
    """
    record = replace(record, completion=[{"role": "assistant", "content": reply.strip()}])
    if cut and settings.truncated == "reject":
        return Reject(record, "generate", "truncated", cut)
    parsed = split_reply(reply, template)
    if parsed is None and settings.unparsed == "reject":
        return Reject(record, "generate", "unparsed", f"no {template.answer_marker!r} with text after it")
    rationale, answer = parsed or (None, reply.strip())
    return replace(record, rationale=rationale or reasoning or None, answer=answer)


def _unusable(reply: str, completion: Completion, settings: Generate) -> tuple[str, str] | None:
    """Reason and detail when there is no answer to read."""
    if completion.finish_reason == "too_long":
        counted = f"{completion.prompt_tokens:,} tokens and {settings.max_new_tokens:,} to come"
        return "prompt_too_long", completion.error or counted
    if completion.finish_reason == "failed":
        return FAILED, completion.error
    if completion.finish_reason in ("refused", "content_filter"):
        return completion.finish_reason, completion.error
    return None if reply.strip() else ("empty_reply", "")


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
