"""From what judges said to what is kept: a threshold on scores, on whole columns, without a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmdistill.filter.earlier import Earlier
from llmdistill.filter.panel import combined
from llmdistill.record import REJECT_SCHEMA, SCHEMA
from llmdistill.run.stage import Split

_HALF = 0.5 * (1 + 1e-9)
"""A majority is more than half of the weight, rounding aside."""

_ROUNDING = 1e-9
"""Three jurors that say 3 must not come to 2.9999999999999996."""

LOW_SCORE, JUDGE_FAILED, NO_QUORUM = "low_score", "judge_failed", "no_quorum"

_VERDICTS = SCHEMA.field("verdicts").type
_VERDICT = _VERDICTS.value_type
_REJECT = REJECT_SCHEMA.field("reject").type


@dataclass(frozen=True, slots=True)
class Rule:
    """Which scores are high enough.

    Attributes:
        weights: one per juror; none without a judge.
        combine: "mean" keeps a record whose weighted mean score reaches `min_score`; in a "vote", a juror is for it
            when its own score does, and those for it must hold more than half of the weight that spoke.
        jury_hash: identifies the jurors and their rubrics.
    """

    min_score: float
    weights: list[float]
    combine: str = "mean"
    jury_hash: str = ""


@dataclass(frozen=True, slots=True)
class _Lists:
    """A list column: how many items each row has [rows], and all items."""

    lengths: np.ndarray
    values: pa.Array

    @classmethod
    def of(cls, column: pa.ChunkedArray | pa.Array) -> _Lists:
        """A column of lists; a missing list is an empty one."""
        lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        return cls(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False), lists.flatten())

    @property
    def rows(self) -> np.ndarray:
        """The row that each item belongs to."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)


def apply(answers: pa.Table, judged: pa.Table, rule: Rule, earlier: Earlier | None = None) -> Split:
    """Divide answers into kept and rejected ones.

    Args:
        answers: rows of `generate`, under `SCHEMA`.
        judged: what was said about them, row for row, under `JUDGED_SCHEMA`.
        earlier: what was said about them before, which stays in front.
    """
    reason, detail, mean, spoken = _decide(judged, rule)
    before = _Lists.of(answers.column("verdicts") if earlier is None else earlier.verdicts(answers))
    verified = _Lists.of(judged.column("verified"))
    if earlier is not None:
        verified = _without(verified, before)
    words = [before, verified, _Lists.of(judged.column("verdicts"))]
    if len(rule.weights) > 1:
        words.append(_jury(mean, spoken, rule))
    place = answers.schema.get_field_index("verdicts")
    table = answers.set_column(place, SCHEMA.field("verdicts"), _joined(words)).cast(SCHEMA)
    kept = pc.is_null(reason)
    reject = _struct(_REJECT, "filter", reason, detail, "")
    rejected = table.append_column(REJECT_SCHEMA.field("reject"), reject).filter(pc.invert(kept))
    return Split(table.filter(kept), rejected.cast(REJECT_SCHEMA))


def _decide(judged: pa.Table, rule: Rule) -> tuple[pa.Array, pa.Array, np.ndarray, np.ndarray]:
    """Per row: reject reason and detail, null where it is kept; weighted mean score; whether judges spoke."""
    reason, detail = (judged.column(name).combine_chunks() for name in ("reason", "detail"))
    judgeable = pc.is_null(reason).to_numpy(zero_copy_only=False)
    if not rule.weights:
        return reason, detail, np.full(len(reason), np.nan), np.zeros(len(reason), bool)
    scores = _scores(judged, len(rule.weights))
    mean = np.asarray(combined(scores, rule.weights), dtype=float)
    failed = judgeable & np.isnan(mean)
    low, why = _low(scores, mean, rule)
    low &= judgeable & ~failed
    outcome = judged.column("outcome").combine_chunks()
    outcome = pc.if_else(pc.equal(outcome, "parsed"), NO_QUORUM, outcome)
    reason = pc.if_else(failed, JUDGE_FAILED, pc.if_else(low, LOW_SCORE, reason))
    detail = pc.if_else(failed, outcome, detail)
    detail = pc.replace_with_mask(detail, pa.array(low), why.filter(pa.array(low)))
    return reason, detail, mean, judgeable


def _scores(judged: pa.Table, num_jurors: int) -> np.ndarray:
    """Scores [rows, jurors]; NaN where a judgement failed."""
    values = judged.column("scores").combine_chunks().flatten()
    return values.to_numpy(zero_copy_only=False).astype(float).reshape(-1, num_jurors)


def _low(scores: np.ndarray, mean: np.ndarray, rule: Rule) -> tuple[np.ndarray, pa.Array]:
    """Which rows do not reach the threshold, and the words for it, row by row."""
    if rule.combine == "mean" or len(rule.weights) == 1:
        return mean < rule.min_score - _ROUNDING, _text(np.char.mod("%.2f", mean), f" < {rule.min_score}")
    weights = np.array(rule.weights)
    votes = np.where(scores >= rule.min_score, weights, 0.0).sum(1)
    spoken = np.where(np.isnan(scores), 0.0, weights).sum(1)
    share = _text(np.char.mod("%g", votes), " of "), _text(np.char.mod("%g", spoken), " votes")
    return ~(votes > _HALF * spoken), pc.binary_join_element_wise(*share, "")


def _text(strings: np.ndarray, end: str) -> pa.Array:
    return pc.binary_join_element_wise(pa.array(strings, pa.string()), end, "")


def _jury(mean: np.ndarray, spoken: np.ndarray, rule: Rule) -> _Lists:
    """The jury's word on every row that was judged: the score is the weighted mean, none without a quorum."""
    score = pa.array(mean[spoken], from_pandas=True)
    outcome = pc.if_else(pc.is_null(score), NO_QUORUM, "parsed")
    verdict = _struct(_VERDICT, "jury", rule.jury_hash, score, outcome, rule.combine)
    return _Lists(spoken.astype(int), verdict)


def _struct(kind: pa.StructType, *columns: pa.Array | str) -> pa.StructArray:
    """A struct column of arrays and of texts that are the same in every row."""
    length = next(len(column) for column in columns if not isinstance(column, str))
    arrays = [pa.repeat(column, length) if isinstance(column, str) else column for column in columns]
    return pa.StructArray.from_arrays(arrays, fields=list(kind))


def _joined(lists: list[_Lists]) -> pa.ListArray:
    """Per row, the items of all lists, one list behind the other."""
    used = [item for item in lists if len(item.values)]
    lengths = np.sum([item.lengths for item in lists], axis=0)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    values = pa.concat_arrays([item.values for item in used]) if used else pa.array([], _VERDICT)
    if len(used) > 1:
        order = np.argsort(np.concatenate([item.rows for item in used]), kind="stable")
        values = values.take(pa.array(order))
    return pa.ListArray.from_arrays(offsets, values, type=_VERDICTS)


def _without(verified: _Lists, before: _Lists) -> _Lists:
    """The verifier's words [at most one per row], without those that stand among the earlier verdicts already."""
    if not len(verified.values) or not len(before.values):
        return verified
    word: np.ndarray = np.full(len(verified.lengths), "", object)
    word[verified.rows] = _key(verified.values)
    rows = before.rows
    said = np.unique(rows[_key(before.values) == word[rows]])
    new = ~np.isin(verified.rows, said)
    lengths = np.bincount(verified.rows[new], minlength=len(verified.lengths))
    return _Lists(lengths, verified.values.filter(pa.array(new)))


def _key(verdicts: pa.StructArray) -> np.ndarray:
    parts = [pc.struct_field(verdicts, name) for name in ("judge", "rubric_hash", "outcome")]
    return pc.binary_join_element_wise(*parts, " ").to_numpy(zero_copy_only=False)
