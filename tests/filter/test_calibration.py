"""The threshold is what the judge's rule makes it, is asked for once, and is never used for another judge."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmdistill.config import Calibration, Judge, Pipeline
from llmdistill.errors import ConfigError, DamagedError, InputError, LlmdistillError, StageError
from llmdistill.filter.calibration import calibrate, total_scores
from llmdistill.filter.gold import read_gold
from llmdistill.filter.panel import Judged, combined
from llmdistill.report.judging import read_calibration
from tests.engines.loopback import Answer, Seen, chat, serving
from tests.filter.judging import asked, fenced, judged_by, judging, model
from tests.tiny import REPO

WRITTEN = "prompts/en/judge-written.yaml"
GOOD_BY_SCORE = {5: 10, 4: 9, 3: 5, 2: 1, 1: 0}
"""Of ten answers that the judge gives this score, so many are good."""


def answers() -> list[dict[str, Any]]:
    """Gold rows that say how the judge scores them, in Korean, good and bad ones mixed."""
    rows = [
        {
            "prompt": f"{score}-{number}번 질문은 무엇입니까?",
            "answer": f"품질 {score}, 답변 {number}",
            "label": number < good,
        }
        for score, good in GOOD_BY_SCORE.items()
        for number in range(10)
    ]
    return sorted(rows, key=lambda row: row["prompt"][2:])


def write_gold(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def quality(question: str) -> int:
    """What stands in the answer that the judge is shown."""
    return int(re.search(r"품질 (\d)", fenced(question)[1])[1])


def by_quality(question: str) -> str:
    return f"Looks like {quality(question)} to me, all in all.\nScore: {quality(question)}"


@pytest.fixture
def gold(tmp_path: Path) -> str:
    return write_gold(tmp_path / "gold.jsonl", answers())


def with_gold(tmp_path: Path, url: str, gold: str, precision: float = 0.9, **judge: Any) -> Pipeline:
    settings = {"model": model(url), "scoring": "written", "rubric": WRITTEN, "min_score": "calibrated", **judge}
    settings["calibration"] = {"gold": gold, "precision": precision, **judge.get("calibration", {})}
    return judged_by(tmp_path / "run", settings)


def threshold_of(given: Pipeline, fresh: bool = False) -> float:
    return float(calibrate(given, fresh)["threshold"])


def stored(tmp_path: Path) -> Path:
    return tmp_path / "run" / "calibration" / "calibration.json"


@pytest.mark.parametrize(
    ("precision", "threshold", "kept", "good"), [(0.9, 4, 20, 19), (0.8, 3, 30, 24), (0.96, 5, 10, 10), (0, 1, 50, 25)]
)
def test_the_threshold_is_the_lowest_that_keeps_enough_good_answers(tmp_path, gold, precision, threshold, kept, good):
    with judging(by_quality) as server:
        found = calibrate(with_gold(tmp_path, server.url, gold, precision))
    assert (found["threshold"], found["kept"]) == (threshold, kept)
    assert found["measures"]["precision"]["value"] == good / kept
    assert found["measures"]["recall"]["value"] == good / 25
    assert found["measures"]["accuracy"]["value"] == (good + 25 - (kept - good)) / 50


def test_what_is_stored_says_what_it_rests_on(tmp_path, gold):
    with judging(by_quality) as server:
        given = with_gold(tmp_path, server.url, gold)
        found = calibrate(given)
    assert json.loads(stored(tmp_path).read_text("utf-8")) == found
    assert (found["rows"], found["good"], found["scored"], found["outcomes"]) == (50, 25, 50, {"parsed": 50})
    assert found["judges"][0]["model"] == "judge"
    assert found["parts"]["filter.judge.rubric_sha256"].startswith(found["judges"][0]["rubric_hash"])
    measures = found["measures"]
    assert measures["auc"]["low"] < measures["auc"]["value"] < measures["auc"]["high"]
    assert measures["failures"]["value"] == 0
    assert (measures["flips"], measures["quadratic_kappa"]) == (None, None)
    assert measures["precision_cross_validated"]["value"] <= measures["precision"]["value"]


def test_a_rerun_asks_nothing_nor_does_another_precision(tmp_path, gold):
    with judging(by_quality) as server:
        first = calibrate(with_gold(tmp_path, server.url, gold))
        assert len(server.seen) == 50
        assert calibrate(with_gold(tmp_path, server.url, gold)) == first
        assert threshold_of(with_gold(tmp_path, server.url, gold, precision=0.8)) == 3
        assert threshold_of(with_gold(tmp_path, server.url, gold), fresh=True) == 4
        assert len(server.seen) == 50


def test_a_threshold_of_another_rubric_is_never_used(tmp_path, gold):
    rubric = tmp_path / "rubric.yaml"
    text = (REPO / WRITTEN).read_text("utf-8")
    rubric.write_text(text)
    strict = {"now": False}

    def reply(question: str) -> str:
        return f"Score: {max(1, quality(question) - 1)}" if strict["now"] else by_quality(question)

    with judging(reply) as server:
        assert threshold_of(with_gold(tmp_path, server.url, gold, rubric=str(rubric))) == 4
        strict["now"] = True
        rubric.write_text(text.replace("Rate how well", "Rate strictly how well"))
        assert threshold_of(with_gold(tmp_path, server.url, gold, rubric=str(rubric))) == 3
        assert len(server.seen) == 100
        rubric.write_text(text)
        assert threshold_of(with_gold(tmp_path, server.url, gold, rubric=str(rubric))) == 4
        assert len(server.seen) == 100


def test_another_judge_is_calibrated_anew(tmp_path, gold):
    with judging(by_quality) as server:
        threshold_of(with_gold(tmp_path, server.url, gold))
        threshold_of(with_gold(tmp_path, server.url, gold, model=model(server.url, "other")))
        assert len(server.seen) == 100


def test_new_gold_rows_are_all_that_is_asked(tmp_path, gold):
    with judging(by_quality) as server:
        assert threshold_of(with_gold(tmp_path, server.url, gold)) == 4
        bad = [{"prompt": f"새 질문 {n}", "answer": f"품질 4, 새 답변 {n}", "label": False} for n in range(10)]
        write_gold(tmp_path / "gold.jsonl", [*bad, *answers()])
        assert threshold_of(with_gold(tmp_path, server.url, gold)) == 5
        assert len(server.seen) == 60


def test_a_gold_set_with_scores_says_how_well_they_agree(tmp_path):
    rows = [{**row, "label": float(re.search(r"품질 (\d)", row["answer"])[1])} for row in answers()]
    gold = write_gold(tmp_path / "scores.jsonl", rows)
    with judging(by_quality) as server:
        found = calibrate(with_gold(tmp_path, server.url, gold))
        assert [found["measures"][name]["value"] for name in ("spearman", "quadratic_kappa", "auc")] == [1, 1, 1]
        assert found["threshold"] == 4
        assert threshold_of(with_gold(tmp_path, server.url, gold, calibration={"good": 2.0})) == 2


def test_scores_on_another_scale_than_the_rubrics_have_no_weighted_kappa(tmp_path):
    rows = [{**row, "label": 20 * int(re.search(r"품질 (\d)", row["answer"])[1])} for row in answers()]
    gold = write_gold(tmp_path / "scores.jsonl", rows)
    with judging(by_quality) as server:
        found = calibrate(with_gold(tmp_path, server.url, gold, calibration={"good": 80}))
    assert (found["measures"]["quadratic_kappa"], found["measures"]["spearman"]["value"]) == (None, 1)


def test_failed_judgements_are_counted_by_outcome_and_left_out(tmp_path, gold):
    def reply(question: str) -> str:
        return "I would rather not say." if "답변 0" in fenced(question)[1] else by_quality(question)

    with judging(reply) as server:
        found = calibrate(with_gold(tmp_path, server.url, gold))
    assert (found["rows"], found["scored"]) == (50, 45)
    assert found["outcomes"] == {"parsed": 45, "no_verdict": 5} and found["measures"]["failures"]["value"] == 0.1
    assert found["kept"] == 18


def test_a_judge_that_never_says_a_verdict_is_said_to_be_that(tmp_path, gold):
    with judging(lambda question: "Well.") as server, pytest.raises(ConfigError) as error:
        calibrate(with_gold(tmp_path, server.url, gold))
    assert "scored 0 of 50 gold rows (no_verdict 50)" in str(error.value)
    assert not stored(tmp_path).exists()


def test_a_judge_that_knows_nothing_has_no_threshold(tmp_path, gold):
    with judging(lambda question: f"Score: {1 + len(question) % 5}") as server:
        with pytest.raises(ConfigError, match=r"no threshold keeps 5 .* at precision 0\.9: the best is 0\.\d+ at \d"):
            calibrate(with_gold(tmp_path, server.url, gold))
        assert not stored(tmp_path).exists()
        before = len(server.seen)
        with pytest.raises(ConfigError):
            threshold_of(with_gold(tmp_path, server.url, gold))
        assert len(server.seen) == before


def test_an_older_threshold_does_not_stand_in_for_one_out_of_reach(tmp_path, gold):
    with judging(by_quality) as server:
        assert threshold_of(with_gold(tmp_path, server.url, gold)) == 4
        write_gold(tmp_path / "gold.jsonl", [{**row, "label": not row["label"]} for row in answers()])
        with pytest.raises(ConfigError, match="no threshold"):
            threshold_of(with_gold(tmp_path, server.url, gold))


def test_a_judge_that_does_not_answer_leaves_nothing_and_is_asked_again(tmp_path, gold):
    with judging(by_quality) as server:
        url = server.url
    with pytest.raises(LlmdistillError) as error:
        calibrate(with_gold(tmp_path, url, gold, model=model(url, patience=0)))
    assert not isinstance(error.value, ConfigError) and not stored(tmp_path).exists()
    with judging(by_quality) as server:
        assert threshold_of(with_gold(tmp_path, server.url, gold, model=model(server.url))) == 4


def test_a_row_without_an_answer_leaves_nothing_and_is_all_that_is_asked_again(tmp_path, gold):
    broken = {"now": True}

    def reply(seen: Seen) -> Answer:
        question = asked(seen)
        if broken["now"] and "품질 3, 답변 7" in question:
            return Answer(body={"choices": []})
        return Answer(body=chat(by_quality(question)))

    with serving(reply) as server:
        given = with_gold(tmp_path, server.url, gold)
        with pytest.raises(StageError, match="no answer on 1 of 50 gold rows"):
            calibrate(given)
        assert not stored(tmp_path).exists()
        broken["now"], before = False, len(server.seen)
        assert threshold_of(given) == 4
        assert len(server.seen) == before + 1


def test_a_damaged_calibration_is_said_to_be_damaged(tmp_path, gold):
    with judging(by_quality) as server:
        given = with_gold(tmp_path, server.url, gold)
        calibrate(given)
        stored(tmp_path).write_text('{"parts"')
        with pytest.raises(DamagedError):
            threshold_of(given)
        stored(tmp_path).write_text('{"parts": 1}')
        with pytest.raises(DamagedError):
            read_calibration(given.run_path)
        assert threshold_of(given) == 4


def test_a_judge_that_compares_shows_how_often_the_order_decides(tmp_path):
    rows = [{**row, "reference": f"기준 답변 {number}"} for number, row in enumerate(answers())]
    gold = write_gold(tmp_path / "pairs.jsonl", rows)

    def reply(question: str) -> str:
        """Knows answers of quality 4 and 5 from the reference; of others it takes what stands first."""
        texts = fenced(question)[1:]
        known = [side for side, text in zip("AB", texts, strict=True) if re.search(r"품질 [45]", text)]
        return f"Verdict: {known[0] if known else 'A'}"

    with judging(reply) as server:
        found = calibrate(
            with_gold(tmp_path, server.url, gold, form="pairwise", rubric="prompts/en/judge-pairwise.yaml")
        )
    assert found["outcomes"] == {"flipped": 30, "parsed": 20}
    assert found["measures"]["flips"]["value"] == 0.6
    assert (found["threshold"], found["kept"]) == (1, 20)


@pytest.mark.parametrize("seed", range(5))
def test_the_score_of_a_vote_passes_a_threshold_when_the_majority_does(seed):
    rng = np.random.default_rng(seed)
    num_jurors = int(rng.integers(1, 6))
    weights = rng.choice([1.0, 0.5, 2.0, 0.1], num_jurors).tolist()
    scores = rng.integers(1, 6, (60, num_jurors)) + np.where(rng.random((60, num_jurors)) < 0.2, np.nan, 0.0)
    judged = [Judged([], [None if np.isnan(score) else score for score in row], "") for row in scores.tolist()]
    totals = total_scores(judged, weights, "vote")
    for threshold in (1, 2, 2.5, 3, 4, 5):
        votes = np.where(np.isnan(scores), np.nan, (scores >= threshold).astype(float))
        assert ((totals >= threshold) == (combined(votes, weights) > 0.5 + 1e-9)).all()
    mean = total_scores(judged, weights, "mean")
    assert np.allclose(mean, combined(scores, weights), equal_nan=True)
    assert (np.isnan(mean) == np.isnan(totals)).all()


LINE = {"prompt": "질문?", "answer": "답.", "label": True}
BAD_ROWS: dict[str, tuple[Any, str]] = {
    "no object": ([1], "a row is an object"),
    "no JSON": ("{", "not JSON"),
    "not UTF-8": (b'{"prompt": "\xff"}', "not UTF-8"),
    "deep": (b"[" * 100_000, "not JSON"),
    "no label": ({"prompt": "질문?", "answer": "답."}, "no label"),
    "label in quotes": ({**LINE, "label": "true"}, 'label is "true"'),
    "nan": (b'{"prompt": "p", "answer": "a", "label": NaN}', "label is NaN"),
    "huge": (b'{"prompt": "p", "answer": "a", "label": 1' + b"0" * 400 + b"}", "label is 100"),
    "score among yes and no": ({**LINE, "label": 4}, "label is 4, but the first row's is"),
    "no prompt": ({"answer": "답.", "label": True}, "no prompt"),
    "blank prompt": ({**LINE, "prompt": " "}, "the prompt is empty"),
    "no messages": ({**LINE, "prompt": []}, "prompt is []"),
    "no message": ({**LINE, "prompt": [{"role": "boss", "content": "x"}]}, "is no message"),
    "assistant last": ({**LINE, "prompt": [{"role": "assistant", "content": "x"}]}, "does not end with the user"),
    "no answer": ({"prompt": "질문?", "label": True}, "no answer"),
    "answer of a kind": ({**LINE, "answer": 4}, "answer is 4"),
    "lone surrogate": (b'{"prompt": "p", "answer": "\\ud800", "label": true}', "answer is"),
    "rationale of a kind": ({**LINE, "rationale": ["x"]}, 'rationale is ["x"]'),
    "twice": ({**answers()[0], "label": False}, "same prompt and answer as"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_gold_row_is_one_error_that_names_it(tmp_path, case):
    bad, message = BAD_ROWS[case]
    encoded = bad if isinstance(bad, bytes) else bad.encode() if isinstance(bad, str) else json.dumps(bad).encode()
    path = tmp_path / "gold.jsonl"
    write_gold(path, answers())
    path.write_bytes(path.read_bytes() + b"\n" + encoded + b"\n")
    with pytest.raises(InputError) as error:
        read_gold(Calibration(gold=str(path)), Judge())
    assert error.value.where == f"{path}:52" and message in str(error.value)
    assert error.value.do


def short(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows[:9]


TOO_LITTLE: dict[str, tuple[Callable[[list[dict[str, Any]]], list[dict[str, Any]]], str]] = {
    "empty": (lambda rows: [], "0 judged answers are too few .* at least 10"),
    "nine": (short, "9 judged answers are too few .* at least 10"),
    "all good": (lambda rows: [{**row, "label": True} for row in rows], "all 50 judged answers are good -> add bad"),
    "all bad": (lambda rows: [{**row, "label": False} for row in rows], "all 50 judged answers are bad -> add good"),
    "0 and 1": (lambda rows: [{**row, "label": int(row["label"])} for row in rows], "write labels as true and false"),
}


@pytest.mark.parametrize("case", TOO_LITTLE)
def test_too_small_or_one_sided_a_gold_set_is_refused_with_what_to_do(tmp_path, case):
    made, message = TOO_LITTLE[case]
    gold = write_gold(tmp_path / "gold.jsonl", made(answers()))
    with pytest.raises(InputError, match=message):
        read_gold(Calibration(gold=gold), Judge())


@pytest.mark.parametrize(("against", "missing"), [("reference", "no reference"), ("samples", "no other answer")])
def test_a_judge_that_compares_needs_something_to_compare_with(gold, against, missing):
    with pytest.raises(InputError, match=f"gold.jsonl:1: {missing}"):
        read_gold(Calibration(gold=gold), Judge(form="pairwise", against=against))


def test_answers_with_other_rationales_are_other_answers(tmp_path):
    rows = [{**LINE, "rationale": f"이유 {number}", "label": number % 2 == 0} for number in range(10)]
    found = read_gold(Calibration(gold=write_gold(tmp_path / "gold.jsonl", rows)), Judge())
    assert len({record.id for record in found.records}) == 10
    assert found.records[3].rationale == "이유 3" and found.records[3].answer == "답."


def test_messages_a_mark_at_the_start_and_blank_lines_are_read(tmp_path):
    rows = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in answers()]
    path = tmp_path / "gold.jsonl"
    write_gold(path, rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\n"))
    plain = read_gold(Calibration(gold=write_gold(tmp_path / "plain.jsonl", answers())), Judge())
    found = read_gold(Calibration(gold=str(path)), Judge())
    assert [record.id for record in found.records] == [record.id for record in plain.records]
    assert found.good.tolist() == plain.good.tolist() and not found.are_scores


def test_the_shipped_gold_set_has_the_published_labels(monkeypatch):
    monkeypatch.chdir(REPO)
    found = read_gold(Calibration(gold="data/gold/gsm8k-60.jsonl"), Judge())
    assert (len(found.records), found.good.sum(), len({record.question for record in found.records})) == (60, 30, 60)
    published = {
        (row["question"], value["solution"]): value["is_correct"]
        for row in map(json.loads, (REPO / "tests/data/gsm8k-model-solutions-sample.jsonl").open(encoding="utf-8"))
        for value in row.values()
        if isinstance(value, dict)
    }
    labels = [published[record.question, record.answer or ""] for record in found.records]
    assert labels == found.good.astype(bool).tolist()
