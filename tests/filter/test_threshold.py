"""The threshold on whole columns does what its definition says of each row, and loses none."""

from __future__ import annotations

import math
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llmdistill.config import Filter
from llmdistill.errors import DamagedError
from llmdistill.filter import stage as filter_stage
from llmdistill.filter.judged import JUDGED_SCHEMA
from llmdistill.filter.threshold import Rule, apply
from llmdistill.record import Record, Verdict, from_row, to_table
from llmdistill.run.stage import Split, read_shards
from llmdistill.run.tables import GROUP_ROWS, appending, read_columns
from tests.filter.judging import fenced, judged_by, judging, model, record
from tests.runs import finish_stage

RULE = Rule(3.0, [1.0])


def said(score: float | None, outcome: str = "parsed") -> dict[str, Any]:
    """One judge's word on one record."""
    return row([Verdict("judge", "hash", score, outcome)], [score], outcome)


def row(verdicts: list[Verdict], scores: list[float | None], outcome: str = "parsed", **more: Any) -> dict[str, Any]:
    values = {"verified": [], "scores": scores, "outcome": outcome, "reason": None, "detail": None}
    return {**values, "verdicts": [asdict(verdict) for verdict in verdicts], **more}


def split(rows: list[dict[str, Any]], rule: Rule = RULE, records: list[Record] | None = None) -> Split:
    records = records or [record(f"질문 {number}번입니다. 무엇일까요?") for number in range(len(rows))]
    given = [{"id": item.id, **values} for item, values in zip(records, rows, strict=True)]
    return apply(to_table(records), pa.Table.from_pylist(given, schema=JUDGED_SCHEMA), rule)


def rejects(found: Split) -> list[tuple[str, str]]:
    return [(item["reason"], item["detail"]) for item in found.rejected.column("reject").to_pylist()]


def test_the_threshold_itself_passes_and_below_it_is_a_low_score() -> None:
    found = split([said(3.0), said(2.999), said(5.0), said(2.3149)])
    assert [item["score"] for (item,) in found.kept.column("verdicts").to_pylist()] == [3.0, 5.0]
    assert rejects(found) == [("low_score", "3.00 < 3.0"), ("low_score", "2.31 < 3.0")]


@pytest.mark.parametrize("outcome", ["no_verdict", "out_of_range", "too_long"])
def test_a_failed_judgement_is_never_a_low_score(outcome: str) -> None:
    for min_score in (-math.inf, 0.0, 3.0):
        assert rejects(split([said(None, outcome)], replace(RULE, min_score=min_score))) == [("judge_failed", outcome)]


def test_what_was_rejected_before_a_judge_was_asked_keeps_its_reason() -> None:
    wrong = row([], [None], "", reason="wrong_answer", detail="42 is not 48")
    assert rejects(split([wrong, said(5.0)])) == [("wrong_answer", "42 is not 48")]


def test_without_a_judge_everything_passes_that_has_no_reason() -> None:
    found = split([row([], []), row([], [], reason="empty", detail="0 characters")], Rule(0.0, []))
    assert (found.kept.num_rows, rejects(found)) == (1, [("empty", "0 characters")])


def test_no_field_but_the_verdicts_is_touched() -> None:
    records = [
        replace(record(f"물음 {n}", f"답 {n}", "기준"), verdicts=[Verdict("given", "h", n, "parsed")]) for n in (1, 5)
    ]
    found = split([said(2.0), said(4.0)], records=records)
    for table, before in ((found.rejected, records[0]), (found.kept, records[1])):
        (after,) = map(from_row, table.to_pylist())
        assert replace(after, verdicts=[]) == replace(before, verdicts=[])
        assert after.verdicts[0] == before.verdicts[0] and len(after.verdicts) == 2


def slow_reason(scores: list[float | None], rule: Rule) -> str | None:
    """Written from the definition."""
    spoke = [(score, weight) for score, weight in zip(scores, rule.weights, strict=True) if score is not None]
    held = sum(weight for _, weight in spoke)
    if held < sum(rule.weights) / 2 or not spoke:
        return "judge_failed"
    if rule.combine == "vote":
        passes = sum(weight for score, weight in spoke if score >= rule.min_score) > held / 2
    else:
        passes = sum(score * weight for score, weight in spoke) / held >= rule.min_score
    return None if passes else "low_score"


@pytest.mark.parametrize("combine", ["mean", "vote"])
@pytest.mark.parametrize("seed", range(20))
def test_a_jury_decides_as_defined_and_its_word_stands_last(seed: int, combine: str) -> None:
    draw = random.Random(seed)
    weights = [draw.choice([1.0, 2.0, 0.5]) for _ in range(draw.randint(2, 5))]
    rule = Rule(draw.choice([2.0, 3.0, 3.5]), weights, combine, "jury-hash")
    scores = [[draw.choice([None, 1.0, 2.0, 3.0, 4.0, 5.0]) for _ in weights] for _ in range(60)]
    words = [[Verdict(f"judge {n}", "h", score, "parsed") for n, score in enumerate(given)] for given in scores]
    found = split([row(*pair) for pair in zip(words, scores, strict=True)], rule)
    records = [record(f"질문 {number}번입니다. 무엇일까요?") for number in range(60)]
    kept = {item["id"]: None for item in found.kept.to_pylist()}
    reasons = kept | {item["id"]: item["reject"]["reason"] for item in found.rejected.to_pylist()}
    assert [reasons[item.id] for item in records] == [slow_reason(given, rule) for given in scores]
    for item in map(from_row, found.kept.to_pylist() + found.rejected.to_pylist()):
        number = [given.id for given in records].index(item.id)
        *each, last = item.verdicts
        assert each == words[number]
        assert (last.judge, last.rubric_hash, last.criterion) == ("jury", "jury-hash", combine)
        assert (last.score is None) == (reasons[item.id] == "judge_failed") == (last.outcome == "no_quorum")


def test_a_vote_says_how_it_went() -> None:
    rule = Rule(3.0, [1.0, 1.0, 0.5], "vote")
    found = split([row([], [5.0, 1.0, None]), row([], [5.0, 1.0, 1.0]), row([], [4.0, 4.0, 1.0])], rule)
    assert rejects(found) == [("low_score", "1 of 2 votes"), ("low_score", "1 of 2.5 votes")]


def test_a_file_written_in_pieces_does_not_depend_on_the_pieces(tmp_path: Path) -> None:
    table = pa.table({"id": [f"{number:07d}" for number in range(2 * GROUP_ROWS + 100)]})
    for name, size in (("a", 1000), ("b", 70_000)):
        with appending(tmp_path / name, table.schema) as append:
            for start in range(0, len(table), size):
                append(table.slice(start, size))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert pa.concat_tables(read_columns(tmp_path / "a", ["id"])).equals(table)


QUALITY = [1, 2, 3, 4, 5, 3, 0, 5]
"""What the judge says of each answer; 0 for nonsense."""

RECORDS = [record(f"질문 {n}번: 하늘은 왜 파란가요?", f"등급 {quality}") for n, quality in enumerate(QUALITY)]


def grade(question: str) -> str:
    quality = int(fenced(question)[1].split()[-1])
    return str(quality) if quality else "What a question."


def test_another_threshold_asks_no_judge_and_changes_nothing_but_who_is_kept(tmp_path: Path) -> None:
    finish_stage(tmp_path, "generate", [RECORDS[:3], RECORDS[3:]])
    with judging(grade) as server:
        jury = [{"model": model(server.url, "other")}]
        first = judged_by(tmp_path, {"model": model(server.url), "jury": jury, "min_score": 2})
        made = filter_stage.run(first)
    assert made.counts.reasons == {"judge_failed": 1, "low_score": 1} and made.usage.requests > 16
    for threshold, combine, kept in ((4, "mean", 3), (3, "vote", 5), (2, "mean", 6)):
        judge = first.filter.judge.model_copy(update={"min_score": float(threshold), "combine": combine})
        again = filter_stage.run(first.model_copy(update={"filter": Filter(judge=judge)}))
        assert (again.counts.kept, again.counts.input) == (kept, 8)
        assert replace(again.usage, seconds=0) == replace(made.usage, seconds=0)
    assert again.outputs == made.outputs


def test_judgements_that_something_else_changed_are_one_clear_error_and_cost_nothing(tmp_path: Path) -> None:
    finish_stage(tmp_path, "generate", [RECORDS])
    with judging(grade) as server:
        given = judged_by(tmp_path, {"model": model(server.url)})
        before = filter_stage.run(given)
        asked = len(server.seen)
        (part,) = (tmp_path / "filter" / "journal").glob("judged-*/part-*")
        part.write_bytes(part.read_bytes()[:-9])
        other = judged_by(tmp_path, {"model": model(server.url), "min_score": 1})
        with pytest.raises(DamagedError, match="part-00000.parquet: .* no judge is asked again"):
            filter_stage.run(other)
        for path in part.parent.iterdir():
            path.unlink()
        filter_stage.run(other)
        assert filter_stage.run(given).outputs == before.outputs and len(server.seen) == asked
    assert sum(map(len, read_shards(tmp_path, "filter"))) == before.counts.kept
