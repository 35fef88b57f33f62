"""The LLM judge: a rubric, a candidate between fences, a score.

For engines with probabilities the score is their expectation over the rubric's score tokens (G-Eval,
arXiv 2303.16634, section 2), so even a small judge never fails to give one; for others it is read from
what the judge wrote (`verdicts`). A judge that says nothing usable is a failed judgement, never a low score.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from llmdistill.engines.base import Completion, Request
from llmdistill.filter.verdicts import parse_verdict
from llmdistill.record import Record, Verdict
from llmdistill.run.digest import digest_of
from llmdistill.templates import Rubric

_SOME_MASS = 1e-6


def judge_request(record: Record, rubric: Rubric, max_answer_chars: int) -> Request:
    """What the judge is asked about one record. The texts are data: they stand between fences.

    The request's id is made of all that the judge reads, so another answer to the same prompt is another request.
    """
    answer = record.answer or ""
    if len(answer) > max_answer_chars:
        answer = answer[:max_answer_chars] + " [...]"
    values = {
        "prompt": record.question,
        "answer": answer,
        "rationale": record.rationale or "",
        "reference": record.reference or "",
    }
    messages = rubric.messages(**values, fence=fence_for(*values.values()))
    key = f"{record.id}-{digest_of({'messages': messages})[:16]}"
    return Request(key, messages, choices=tuple(rubric.scores), prefill=rubric.prefill)


def fence_for(*texts: str) -> str:
    """A run of backticks longer than any in the texts, so that no text can close the fence."""
    longest = max((len(run) for text in texts for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)


def expected_score(completion: Completion, rubric: Rubric) -> float | None:
    """Expectation of the score over the probabilities of its tokens; None when they carry no mass."""
    logprobs = completion.choice_logprobs or {}
    masses = {choice: math.exp(logprobs[choice]) for choice in rubric.scores if choice in logprobs}
    total = sum(masses.values())
    if not total > _SOME_MASS:
        return None
    return sum(mass * rubric.scores[choice] for choice, mass in masses.items()) / total


def verdict_of(completion: Completion, rubric: Rubric, judge: str, rubric_hash: str, shown: Sequence[str]) -> Verdict:
    """The judge's word on one record: from probabilities where there are some, else from what it wrote.

    Args:
        shown: the texts the judge was shown; a verdict that stands in one of them is not its own.
    """
    if completion.finish_reason != "scored":
        return Verdict(judge, rubric_hash, None, completion.finish_reason)
    if completion.choice_logprobs is None and completion.text:
        return Verdict(judge, rubric_hash, *_written_score(rubric.prefill + completion.text, rubric, shown))
    score = expected_score(completion, rubric)
    return Verdict(judge, rubric_hash, score, "no_mass" if score is None else "parsed")


def _written_score(text: str, rubric: Rubric, shown: Sequence[str]) -> tuple[float | None, str]:
    scores = set(rubric.scores.values())
    parsed = parse_verdict(text, min(scores), max(scores), shown=shown, decimals=any(score % 1 for score in scores))
    if parsed.score is not None and parsed.score not in scores:
        return None, "not_a_choice"
    return parsed.score, parsed.outcome


def texts_shown(record: Record) -> list[str]:
    """What of a record the judge reads."""
    return [record.question, record.answer or "", record.rationale or "", record.reference or ""]
