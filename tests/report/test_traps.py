"""Warnings on the page, who was asked, what each judge said: from what the run found, and inert."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmdistill.errors import DamagedError
from llmdistill.record import Record, Reject, Verdict
from llmdistill.report.cards import dataset_card
from llmdistill.report.charts import draw_all
from llmdistill.report.data import read_run
from llmdistill.report.traps import run_warnings
from tests.report.run_dirs import bare_run, full_run, pipeline, record, stage_of
from tests.report.test_cards import assert_inert as assert_inert_card
from tests.report.test_cards import change, plain
from tests.report.test_report import EVIL, Page, assert_inert, page_of

JUDGE = {"judge": {"model": {"model": "microsoft/phi-4"}, "calibration": {"gold": "g.jsonl"}}}
GOOD = {"teacher": {"model": "Qwen/Qwen2.5-7B-Instruct"}, "filter": JUDGE, "train": {"lora": {}}}


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"


def judged(number: int, *verdicts: tuple[str, str | None, float | None, str]) -> Record:
    found = [Verdict(judge, "hash", score, outcome, criterion) for judge, criterion, score, outcome in verdicts]
    return replace(record("질문", number), verdicts=found)


def many(num: int, start: int = 0) -> list[Record]:
    return [judged(start + n, ("judge", None, 4.0, "parsed")) for n in range(num)]


def clean_run(run_dir: Path, num: int = 120) -> None:
    """A run to which no trap applies."""
    full_run(run_dir)
    low = [Reject(item, "filter", "low_score", "2 < 3") for item in many(20, 1000)]
    stage_of(run_dir, "filter", many(num), low)
    stage_of(run_dir, "curate", many(num), [])


def codes(run_dir: Path, **changes) -> list[str]:
    return [item.code for item in run_warnings(pipeline(run_dir, **{**GOOD, **changes}), read_run(run_dir, 1))]


def test_a_run_without_traps_says_so(run_dir):
    clean_run(run_dir)
    assert codes(run_dir) == []
    assert "None of the known traps applies." in assert_inert(page_of(run_dir, **GOOD)).text


def test_settings_warn_on_the_page_with_what_to_do(run_dir):
    clean_run(run_dir)
    page = assert_inert(page_of(run_dir, **{**GOOD, "filter": {"judge": {}}}))
    assert "filter.judge (Qwen/Qwen2.5-7B-Instruct) judges its own answers, those of teacher" in page.text
    assert "To do: set filter.judge.model to a model of another family (self_judging)" in page.text
    assert "None of the known traps" not in page.text


def test_what_was_held_out_and_what_was_trained_on_are_counted_in_the_run(run_dir):
    bare_run(run_dir)
    assert codes(run_dir) == ["nothing_held_out", "too_little_data"]


def test_near_copies_of_held_out_prompts_are_those_that_curate_dropped(run_dir):
    clean_run(run_dir)
    copies = [Reject(item, "curate", "contaminated", "93% like abc") for item in many(3, 500)]
    stage_of(run_dir, "curate", many(120), copies, {"contamination": {"held_out": 3}})
    (found,) = run_warnings(pipeline(run_dir, **GOOD), read_run(run_dir, 1))
    assert found.code == "held_out_in_pool"
    assert "3 of 123 nearly equal one (curate drops them)" in found.text and "93% like abc" in found.text


def test_rows_that_equal_a_held_out_prompt_are_those_that_prompts_rejected(run_dir):
    clean_run(run_dir)
    leaks = [("duplicate_prompt", "same as held.jsonl:4"), ("duplicate_prompt", "same as pool.jsonl:2")]
    rejects = [
        Reject(Record(str(n) * 32, []), "prompts", reason, detail, f"pool.jsonl:{n}")
        for n, (reason, detail) in enumerate(leaks)
    ]
    stage_of(run_dir, "prompts", many(100), rejects, {"held_out": 12})
    change(run_dir, "prompts", settings={"prompts.held_out_path": "held.jsonl"})
    (found,) = run_warnings(pipeline(run_dir, **GOOD), read_run(run_dir, 1))
    assert "1 equal a held-out one" in found.text and "pool.jsonl:0 is same as held.jsonl:4" in found.text


@pytest.mark.parametrize(("num_failed", "said"), [(5, False), (6, True)])
def test_unreadable_verdicts_are_said_when_they_are_many(run_dir, num_failed, said):
    clean_run(run_dir, 94)
    failed = [judged(2000 + n, ("judge", None, None, "no_score")) for n in range(num_failed)]
    low = [Reject(item, "filter", "low_score", "") for item in many(100 - 94 - num_failed + 1, 3000)]
    rejects = [Reject(item, "filter", "judge_failed", "no_score") for item in failed]
    stage_of(run_dir, "filter", many(94), [*rejects, *low])
    stage_of(run_dir, "curate", many(120), [])
    assert codes(run_dir) == ["unreadable_verdicts"] * said


def test_a_judge_that_rejects_nothing_and_a_filter_that_keeps_next_to_nothing(run_dir):
    clean_run(run_dir)
    stage_of(run_dir, "filter", many(60), [])
    assert codes(run_dir) == ["judge_rejects_nothing"]
    stage_of(run_dir, "filter", many(49), [])
    assert codes(run_dir) == []
    wrong = [Reject(item, "filter", "wrong_answer", "") for item in many(100, 1000)]
    stage_of(run_dir, "filter", many(9), wrong)
    assert codes(run_dir) == ["few_kept"]


def test_a_wrong_answer_is_no_unreadable_verdict(run_dir):
    clean_run(run_dir)
    wrong = [judged(4000 + n, ("verify:math", None, None, "wrong")) for n in range(60)]
    low = [Reject(item, "filter", "low_score", "") for item in many(5, 5000)]
    stage_of(run_dir, "filter", many(60), [*low, *(Reject(item, "filter", "wrong_answer", "") for item in wrong)])
    assert codes(run_dir) == []
    assert "verify:math: wrong 60." in assert_inert(page_of(run_dir, **GOOD)).text


def test_each_juror_and_criterion_has_its_mean_its_failures_and_its_flips(run_dir):
    bare_run(run_dir)
    one = ("a", "clear", 4.0, "parsed"), ("a", "true", 2.0, "parsed"), ("b", None, 0.5, "flipped")
    two = ("a", "clear", 5.0, "parsed"), ("a", "true", None, "no_score"), ("b", None, 1.0, "parsed")
    stage_of(run_dir, "filter", [judged(1, *one)], [Reject(judged(2, *two), "filter", "judge_failed", "")])
    rows = {(row.judge, row.criterion): row for row in read_run(run_dir, 1).judges}
    assert {key: (row.verdicts, row.mean, row.failed, row.flipped) for key, row in rows.items()} == {
        ("a", "clear"): (2, 4.5, 0, 0),
        ("a", "true"): (2, 2.0, 1, 0),
        ("b", ""): (2, 0.75, 0, 1),
    }
    text = assert_inert(page_of(run_dir)).text.replace("\n", "")
    assert "atrue22.001 (50.0\u00a0%)0 (0.0\u00a0%)" in text


ROUNDS = [
    {"role": "teacher", "model": "org/큰모델", "hinted": False, "asked": 50, "usable": 40, "reasons": {"unparsed": 10}},
    {"role": "teacher", "model": "org/큰모델", "hinted": True, "asked": 10, "usable": 3, "reasons": {"cites_hint": 7}},
]


def test_the_rounds_are_a_table(run_dir):
    bare_run(run_dir)
    change(run_dir, "generate", metrics={"rounds": ROUNDS})
    text = assert_inert(page_of(run_dir)).text
    words = [
        "Who was asked",
        "teacher org/큰모델",
        "teacher org/큰모델, told the answer",
        "unparsed 10",
        "cites_hint 7",
    ]
    assert all(word in text for word in words)


def test_without_rounds_there_is_no_table_of_them(run_dir):
    bare_run(run_dir)
    assert "Who was asked" not in page_of(run_dir)


def test_pass_rates_are_read_from_meta_and_from_nowhere_inside_another_text(run_dir):
    full_run(run_dir)
    rates = [0.0, 0.25, 1.0, 1.0]
    records = [record("q", n).with_meta(pass_rate=rate, a='x "pass_rate": 0.9 y') for n, rate in enumerate(rates)]
    trap = record("q", 99).with_meta(text='{"pass_rate": 0.5}')
    stage_of(run_dir, "generate", [*records[:3], trap], [Reject(records[3], "generate", "too_easy", "")])
    data = read_run(run_dir, 1)
    assert sorted(data.pass_rates) == rates
    chart = draw_all(data, 3.0)[0]
    assert (chart.title, "4 answers; 25% to prompts never solved, 50%" in chart.caption) == ("Pass rates", True)


def test_names_of_judges_rounds_and_models_stay_text(run_dir):
    bare_run(run_dir)
    verdicts = [word for evil in EVIL for word in ((evil, evil, 4.0, "parsed"), (f"verify:{evil}", None, None, evil))]
    stage_of(run_dir, "filter", [judged(1, *verdicts)], [])
    rounds = [{"role": evil, "asked": 1, "usable": 0, "reasons": {evil: 1}} for evil in EVIL]
    change(run_dir, "generate", metrics={"rounds": rounds})
    jury = [{"model": {"model": f"qwen-{evil}"}} for evil in EVIL]
    page = assert_inert(page_of(run_dir, teacher={"model": "Qwen/Qwen3-8B"}, filter={"judge": {"jury": jury}}))
    assert {"script", "img", "iframe", "a"}.isdisjoint(page.tags)
    assert all(page.text.count(evil) >= 6 for evil in EVIL)


def test_page_in_hangul_keeps_the_warnings_readable(run_dir):
    bare_run(run_dir)
    text = Page(page_of(run_dir, language="ko", teacher={"model": "우리/큰모델"})).text
    assert "what the terms of teacher (우리/큰모델) say" in text


MADE = {
    "teacher.model": "org/big",
    "generate.mode": "rationale",
    "generate.samples.n": 8,
    "generate.samples.vote": True,
    "generate.samples.keep": 2,
    "generate.samples.keep_by": "difficulty",
    "generate.samples.pass_rate": [0.0, 0.9],
    "generate.hint": "failed",
    "generate.fallback.model": "org/선생님",
    "generate.co_teachers": [{"weight": 0.5, "model": {"model": "org/second"}}],
}


class TestCard:
    def card(self, run_dir: Path, settings: dict, **changes) -> str:
        change(run_dir, "generate", settings=settings)
        card = dataset_card(pipeline(run_dir, **changes), read_run(run_dir, 1))
        assert_inert_card(card)
        return plain(card)

    def test_the_card_says_how_the_answers_came_about(self, run_dir):
        full_run(run_dir)
        text = self.card(run_dir, MADE)
        for words in (
            "Mode: rationale",
            "Answers asked for per prompt: 8; kept: those that agree with the most frequent one",
            "at most 2 by difficulty",
            "prompts with a pass rate of 0.0 to 0.9",
            "told the reference after a wrong answer",
            "Co-teacher: org/second, weight 0.5",
            "Fallback, asked what the teacher failed: org/선생님",
            "Written by a model: the answers and rationales; the prompts are those of the source",
        ):
            assert words in text

    def test_a_plain_run_has_no_lines_for_what_it_did_not_do(self, run_dir):
        full_run(run_dir)
        text = self.card(run_dir, {"generate.mode": "answer", "generate.samples.n": 1, "generate.hint": "never"})
        assert "Mode: answer" in text
        assert not any(word in text for word in ("per prompt", "Hint", "Co-teacher", "Fallback", "Imported"))

    @pytest.mark.parametrize(
        ("mode", "prompts", "words"),
        [
            ("synthetic_qa", {}, "questions and answers, both"),
            ("evolve", {}, "the prompts that are variants of those of the source"),
            ("answer", {"synthetic": True, "held_out_path": "h.jsonl"}, "the prompts too"),
        ],
    )
    def test_the_card_says_what_is_synthetic(self, run_dir, mode, prompts, words):
        full_run(run_dir)
        assert words in self.card(run_dir, {"generate.mode": mode}, prompts={"path": "p.jsonl", **prompts})

    def test_imported_answers_are_named_after_those_who_gave_them(self, run_dir):
        full_run(run_dir)
        assert "Imported answers of: big" in self.card(run_dir, {"generate.mode": "import"})

    @pytest.mark.parametrize("evil", EVIL)
    def test_hostile_settings_become_no_markup(self, run_dir, evil):
        full_run(run_dir)
        others = [{"weight": evil, "model": {"model": evil}}]
        settings = dict.fromkeys(MADE, evil) | {"generate.co_teachers": others, "generate.samples.vote": True}
        assert evil[:20] in self.card(run_dir, settings)


def calibrated(run_dir: Path, threshold: float = 3.25, judge: str = "심판-7B") -> None:
    """A calibration as the command leaves it."""
    stored = {
        "threshold": threshold,
        "target_precision": 0.9,
        "rows": 60,
        "good": 30,
        "scored": 58,
        "kept": 20,
        "outcomes": {"parsed": 58, "no_verdict": 2},
        "gold": {"file": "골드.jsonl", "sha256": "0" * 64},
        "judges": [{"model": judge, "rubric_hash": "abc123"}],
        "made": "2026-11-22",
        "measures": {"auc": {"value": 0.875, "low": 0.75, "high": 0.96875}, "flips": {"value": None}},
    }
    (run_dir / "calibration").mkdir(parents=True)
    (run_dir / "calibration" / "calibration.json").write_text(json.dumps(stored), "utf-8")


def test_the_page_shows_the_calibration_and_escapes_what_it_names(run_dir):
    clean_run(run_dir)
    calibrated(run_dir, judge=EVIL)
    page = assert_inert(page_of(run_dir, **GOOD))
    assert "Threshold 3.25 for a precision of 0.9: 60 gold answers, 30 of them good" in page.text
    assert "골드.jsonl" in page.text and "0.750 to 0.969" in page.text


def test_a_torn_calibration_is_named(run_dir):
    calibrated(run_dir)
    path = run_dir / "calibration" / "calibration.json"
    path.write_text(path.read_text("utf-8")[:40], "utf-8")
    with pytest.raises(DamagedError, match=r"calibration\.json"):
        read_run(run_dir, 1)
