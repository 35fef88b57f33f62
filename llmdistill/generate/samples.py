"""Several answers to one prompt: which of them go on. Nothing here depends on the order of the samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from llmdistill.config import Samples, Verify
from llmdistill.record import Record, Reject, record_id
from llmdistill.run.stage import Outcome
from llmdistill.text import plain
from llmdistill.verify import verify_in_context
from llmdistill.verify.base import final_answer
from llmdistill.verify.records import UNDECIDED, WRONG

Same = Callable[[Record, Record], bool]
"""Whether two records of one prompt give the same answer."""

_STAGE = "generate"
_LAST_MARKS = " .,;:!?。、"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one sample came to.

    Attributes:
        ok: the verifier's word on the answer, None where it has none.
        first_ok: its word on the first attempt. Later ones are made only where that failed, or know the reference,
            so that they say nothing about how hard the prompt is.
    """

    result: Record | Reject
    ok: bool | None = None
    first_ok: bool | None = None


@dataclass(frozen=True, slots=True)
class PassRate:
    """How many of the answers that could be decided are right."""

    right: int
    decided: int

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.right / self.decided

    def quota(self, keep: int) -> int:
        """How many answers of a prompt so hard go on: ceil(keep * (1 - share)), at least one."""
        return max(1, -(-keep * (self.decided - self.right) // self.decided))


def expand(record: Record, num_samples: int) -> list[Record]:
    """The samples of a prompt, each a record of its own; the first keeps the prompt's id."""
    if num_samples == 1:
        return [record]
    ids = [record.id, *(record_id(record.prompt, sample) for sample in range(1, num_samples))]
    return [replace(record, id=id_).with_meta(sample=sample) for sample, id_ in enumerate(ids)]


def choose(samples: list[Sample], settings: Samples, verify: Verify | None, seed: int) -> Outcome:
    """What becomes of the samples of one prompt.

    In this order: the prompt is left out if it is too hard or too easy; answers that are outvoted are; wrong ones
    are, where it is chosen by pass rate or number; what exceeds the number is.
    """
    records = [sample.result for sample in samples if isinstance(sample.result, Record)]
    outcome = Outcome(records, [sample.result for sample in samples if isinstance(sample.result, Reject)])
    rate = pass_rate(sample.first_ok for sample in samples)
    steps: list[Callable[[list[Record]], Outcome]] = []
    if settings.uses_pass_rate:
        steps.append(partial(within, rate=rate, bounds=settings.pass_rate))
    if settings.vote:
        steps.append(partial(vote, min_agreement=settings.min_agreement, same=sameness(verify)))
    if verify and chooses(settings):
        verdicts = {sample.result.id: sample.ok for sample in samples if isinstance(sample.result, Record)}
        steps.append(partial(right, verdicts=verdicts, undecided=verify.undecided))
    if settings.keep:
        quota = rate.quota(settings.keep) if rate and settings.keep_by == "difficulty" else settings.keep
        steps.append(partial(keep, quota=quota, seed=seed))
    for step in steps:
        found = step(outcome.kept)
        outcome = Outcome(found.kept, outcome.rejected + found.rejected)
    return outcome


def chooses(settings: Samples) -> bool:
    """Whether some answers are preferred to others, so that wrong ones have to be known."""
    return settings.uses_pass_rate or settings.keep is not None


def pass_rate(verdicts: Iterable[bool | None]) -> PassRate | None:
    """How many are right, None when none could be decided."""
    decided = [ok for ok in verdicts if ok is not None]
    return PassRate(sum(decided), len(decided)) if decided else None


def within(records: list[Record], rate: PassRate | None, bounds: tuple[float, float]) -> Outcome:
    """All records of a prompt whose pass rate is within the bounds (inclusive), else none."""
    if rate is None:
        return _all_rejected(records, "no_pass_rate", "none of the answers could be decided")
    records = [record.with_meta(pass_rate=round(rate.share, 6)) for record in records]
    low, high = bounds
    if low <= rate.share <= high:
        return Outcome(records)
    reason, bound = ("too_hard", f"under {low:g}") if rate.share < low else ("too_easy", f"over {high:g}")
    return _all_rejected(records, reason, f"{rate.right} of {rate.decided} right is {bound}")


def vote(records: list[Record], min_agreement: float, same: Same) -> Outcome:
    """The records with the most frequent answer (self-consistency, arXiv 2203.11171).

    Of answers equally frequent that with the smallest record id wins.
    """
    groups = grouped(records, same)
    by_id = {record.id: group for group in groups for record in group}
    counted = [
        record.with_meta(votes=len(by_id[record.id]), vote_share=round(len(by_id[record.id]) / len(records), 6))
        for record in records
    ]
    outcome = Outcome()
    for record in counted:
        group = by_id[record.id]
        detail = f"{len(group)} of {len(records)} votes"
        if len(groups[0]) < min_agreement * len(records):
            outcome.rejected.append(Reject(record, _STAGE, "no_agreement", detail))
        elif group is not groups[0]:
            outcome.rejected.append(Reject(record, _STAGE, "outvoted", detail))
        else:
            outcome.kept.append(record)
    return outcome


def grouped(records: list[Record], same: Same) -> list[list[Record]]:
    """Records by equal answers, the largest group first. Each is compared with one record of a group only."""
    groups: list[list[Record]] = []
    for record in sorted(records, key=lambda record: record.id):
        group = next((group for group in groups if same(record, group[0])), None)
        if group is None:
            groups.append([record])
        else:
            group.append(record)
    return sorted(groups, key=lambda group: (-len(group), group[0].id))


def sameness(verify: Verify | None) -> Same:
    """How answers are compared: by the verifier where it understands them, else as normalised text."""
    if verify is None or verify.kind not in ("math", "choice"):
        return lambda one, other: normalise(one.answer or "") == normalise(other.answer or "")
    settings, is_math = verify, verify.kind == "math"

    def same(one: Record, other: Record) -> bool:
        texts = [final_answer(record.answer or "", short_marker=is_math).text for record in (one, other)]
        if " ".join(texts[0].split()) == " ".join(texts[1].split()):
            return True
        return verify_in_context(one.answer or "", other.answer or "", one.question, settings).ok is True

    return same


def normalise(text: str) -> str:
    """Compatibility characters, case, spaces and the punctuation at the end do not tell answers apart."""
    text = plain(text)
    return text.rstrip(_LAST_MARKS) or text


def right(records: list[Record], verdicts: dict[str, bool | None], undecided: str) -> Outcome:
    """Records whose answer is right, or cannot be decided if such go on."""
    outcome = Outcome()
    for record in records:
        ok = verdicts[record.id]
        if ok is False:
            outcome.rejected.append(Reject(record, _STAGE, WRONG, "others of the prompt are preferred"))
        elif ok is None and undecided == "reject":
            outcome.rejected.append(Reject(record, _STAGE, UNDECIDED, "others of the prompt are preferred"))
        else:
            outcome.kept.append(record)
    return outcome


def keep(records: list[Record], quota: int, seed: int) -> Outcome:
    """At most `quota` records with different replies, drawn by a hash of the seed and the record id."""
    chosen: set[str] = set()
    dropped: dict[str, tuple[str, str]] = {}
    first: dict[str, str] = {}
    for record in sorted(records, key=lambda record: (_draw(seed, record.id), record.id)):
        if record.reply in first:
            dropped[record.id] = ("same_answer_text", f"as {first[record.reply]}")
            continue
        first[record.reply] = record.id
        if len(chosen) < quota:
            chosen.add(record.id)
        else:
            dropped[record.id] = ("not_kept", f"{quota} of the prompt's answers go on")
    return Outcome(
        [record for record in records if record.id in chosen],
        [Reject(record, _STAGE, *dropped[record.id]) for record in records if record.id in dropped],
    )


def _draw(seed: int, id_: str) -> bytes:
    return hashlib.blake2b(f"{seed} {id_}".encode(), digest_size=8).digest()


def _all_rejected(records: list[Record], reason: str, detail: str) -> Outcome:
    return Outcome(rejected=[Reject(record, _STAGE, reason, detail) for record in records])
