"""The panel over HTTP: every judge is asked once, at most once more, and what cannot be read is no low score."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmdistill.config import Judge
from llmdistill.errors import LlmdistillError, ServerError, TryLaterError
from llmdistill.filter.panel import Judged, Panel, combined, requests_per_record
from llmdistill.run.digest import digest_of
from llmdistill.templates import Rubric, load_template
from tests.engines.loopback import Answer, Loopback, Seen, chat, serving
from tests.faults.api import GROUP_ROWS
from tests.faults.conftest import wait_until
from tests.filter.judging import (
    CONCURRENCY,
    ask_and_read,
    asked,
    fenced,
    journalled,
    judge,
    judged_by,
    judging,
    model,
    numbered,
    record,
)
from tests.filter.test_verdicts import BAD_ANSWERS, CHOICE_PAYLOADS, PAYLOADS, candidate, rows
from tests.tiny import REPO

WRITTEN, PAIRWISE = "prompts/en/judge-written.yaml", "prompts/en/judge-pairwise.yaml"
CRITERIA = "prompts/en/judge-criteria.yaml"
AGAIN = "Reply with one line and nothing else"
"""How a question begins that is asked once more."""


def written(url: str, **more: Any) -> dict[str, Any]:
    return {"model": model(url), "rubric": WRITTEN, "scoring": "written", **more}


def slow_combined(scores: list[list[float]], weights: list[float]) -> list[float]:
    """Written from the definition."""
    means = []
    for row in scores:
        pairs = [(score, weight) for score, weight in zip(row, weights, strict=True) if not math.isnan(score)]
        held = sum(weight for _, weight in pairs)
        enough = bool(pairs) and held >= sum(weights) / 2
        means.append(sum(score * weight for score, weight in pairs) / held if enough else math.nan)
    return means


@pytest.mark.parametrize("seed", range(200))
def test_the_jurys_score_is_the_weighted_mean_of_those_that_spoke_if_they_are_a_quorum(seed: int) -> None:
    draw = random.Random(seed)
    num_jurors = draw.randint(1, 6)
    weights = [draw.choice([1.0, 2.0, 0.5, draw.uniform(0.01, 10)]) for _ in range(num_jurors)]
    failing = draw.choice([0.0, 0.3, 0.6, 1.0])
    scores = [[math.nan if draw.random() < failing else draw.uniform(1, 5) for _ in weights] for _ in range(20)]
    assert combined(np.array(scores), weights).tolist() == pytest.approx(slow_combined(scores, weights), nan_ok=True)


def test_exactly_half_of_the_weight_is_a_quorum_and_less_is_none() -> None:
    nan = math.nan
    assert combined(np.array([[4, nan], [nan, 2], [nan, nan]]), [1, 1])[:2].tolist() == [4, 2]
    assert np.isnan(combined(np.array([[nan, 2.0, nan], [nan, nan, nan]]), [1, 1, 1])).all()
    assert combined(np.array([[4.0, 1.0, nan]]), [0.1, 0.2, 0.3])[0] == pytest.approx(2.0)
    assert combined(np.empty((0, 2)), [1, 1]).shape == (0,)


def test_three_jurors_have_a_score_each_and_one_that_fails_silences_no_other(tmp_path: Path) -> None:
    says = {"first": "Score: 5", "second": "Score: 2", "third": "I have no opinion."}
    with serving(lambda seen: Answer(body=chat(says[seen.body["model"]]))) as server:
        jury = [{"model": model(server.url, "second"), "weight": 2}, {"model": model(server.url, "third")}]
        settings = judged_by(tmp_path, written(server.url, model=model(server.url, "first"), jury=jury))
        ((found, _), (last,)), usage = ask_and_read(settings, [[record("1?"), record("2?")], [record("3?")]])
        models = [seen.body["model"] for seen in server.seen]
    assert found == last and Panel(settings).weights == [1.0, 2.0, 1.0]
    assert (found.scores, found.outcome, found.error) == ([5.0, 2.0, None], "no_verdict", "")
    assert [(verdict.judge, verdict.score) for verdict in found.verdicts] == [
        ("first", 5.0),
        ("second", 2.0),
        ("third", None),
    ]
    assert [name for name, _ in itertools.groupby(models)] == ["first", "second", "third"], "one engine at a time"
    assert Counter(models) == {"first": 3, "second": 3, "third": 6}
    assert (usage.requests, usage.prompt_tokens, usage.cost) == (12, 36, pytest.approx(12 * 5e-6))


def test_jurors_of_one_model_share_a_journal_and_ask_alike_only_once(tmp_path: Path) -> None:
    with judging(lambda text: "Score: 4" if "criterion" in text else "Score: 2") as server:
        jury = [{"rubric": CRITERIA}, {"rubric": WRITTEN, "weight": 3}]
        (found,) = judge(judged_by(tmp_path, written(server.url, jury=jury)), record("1?"))
        assert len(server.seen) == 4
    assert found.scores == [2.0, 4.0, 2.0]
    assert [verdict.criterion for verdict in found.verdicts] == [None, "correctness", "completeness", "clarity", None]
    assert len(list((tmp_path / "filter" / "journal").glob("*.jsonl"))) == 1


def test_jurors_that_are_alike_ask_once_more_together(tmp_path: Path) -> None:
    with judging(lambda _: "Hm.") as server:
        records = [record(f"{number}?") for number in range(5)]
        found = judge(judged_by(tmp_path, written(server.url, jury=[{}, {"weight": 2}])), *records)
        assert len(server.seen) == 2 * len(records)
    assert [item.scores for item in found] == [[None] * 3] * 5


def test_what_is_judged_already_is_not_asked_again_whatever_else_changes(tmp_path: Path) -> None:
    with judging(lambda _: "Score: 4") as server:
        first = written(server.url)
        shards = [[record("1?"), record("2?")]]
        ask_and_read(judged_by(tmp_path, first), shards)
        jury = [{"rubric": CRITERIA}]
        for more in ({}, {"min_score": 1}, {"combine": "vote"}):
            ask_and_read(judged_by(tmp_path, {**first, **more}), shards)
        assert len(server.seen) == 2
        ask_and_read(judged_by(tmp_path, {**first, "jury": jury}), shards)
        assert len(server.seen) == 8, "only the new juror's"
        found, usage = ask_and_read(judged_by(tmp_path, first), shards, round_=1)
        assert len(server.seen) == 10 and [item.scores for item in found[0]] == [[4.0], [4.0]]
    assert usage.requests == 2


def test_parts_hold_what_judgements_depend_on_and_no_threshold(tmp_path: Path) -> None:
    base = written("http://127.0.0.1:9/v1")

    def parts(round_: int = 0, **more: Any) -> dict[str, Any]:
        return Panel(judged_by(tmp_path, {**base, **more}), round_).parts

    same: list[dict[str, Any]] = [{"min_score": 1}, {"combine": "vote"}]
    assert all(parts(**more) == parts() for more in same)
    other_model = model("http://127.0.0.1:9/v1", "other")
    others: list[dict[str, Any]] = [
        {"model": other_model},
        {"rubric": CRITERIA},
        {"scoring": "auto"},
        {"max_new_tokens": 9},
        {"max_answer_tokens": 9},
        {"jury": [{}]},
        {"jury": [{"model": other_model}]},
        {"form": "pairwise", "rubric": PAIRWISE},
        {"form": "pairwise", "rubric": PAIRWISE, "against": "samples"},
    ]
    found = [json.dumps(parts(**more), sort_keys=True) for more in [{}, {"round_": 1}, *others]]
    assert len(set(found)) == len(found)
    assert parts(jury=[{"weight": 1}]) == parts(jury=[{"weight": 2}])


def test_requests_per_record_are_as_many_as_are_asked(tmp_path: Path) -> None:
    criteria, rubric = (load_template(name, Rubric)[0] for name in (CRITERIA, WRITTEN))
    assert requests_per_record(Judge(), [rubric, criteria]) == [1, 3]
    assert requests_per_record(Judge(form="pairwise"), [rubric]) == [2]
    records = [record("1?", f"Answer {number}.", sample=number) for number in range(4)]
    with judging(lambda _: "Verdict: A") as server:
        judge(judged_by(tmp_path, written(server.url, form="pairwise", rubric=PAIRWISE, against="samples")), *records)
        assert len(server.seen) == 4 * requests_per_record(Judge(form="pairwise", against="samples"), [rubric], 4)[0]


def rubric_for(row: dict[str, Any], folder: Path) -> str:
    """A rubric with the scores that a row of the corpus may have."""
    decimals = {row["lowest"] + 0.5, row["expected"] if row["expected"] != "failed" else row["lowest"]}
    scores = {*range(row["lowest"], row["highest"] + 1), *(decimals if row.get("decimals") else ())}
    listed = json.dumps({f"{score:g}": score for score in sorted(scores)})
    path = folder / f"{digest_of({'scores': listed})}.yaml"
    path.write_text(f"user: '{{{{ prompt }}}} {{{{ answer }}}}'\nscores: {listed}\nagain: '{AGAIN}'\n")
    return str(path)


def number_of(text: str) -> int:
    return int(text.split("#")[1].split("#")[0])


def test_each_garbage_reply_is_read_as_listed_or_fails_after_one_more_question(tmp_path: Path) -> None:
    corpus = [row for row in rows("judge-replies.jsonl") if row["kind"] == "score"]
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(corpus):
        groups.setdefault(rubric_for(row, tmp_path), []).append(number)
    with judging(lambda text: corpus[number_of(text)]["reply"]) as server:
        for folder, (rubric, numbers) in enumerate(groups.items()):
            records = [record(f"#{n}#", "\n".join(corpus[n].get("shown", ["Fine."]))) for n in numbers]
            found = judge(judged_by(tmp_path / str(folder), written(server.url, rubric=rubric)), *records)
            for number, item in zip(numbers, found, strict=True):
                row = corpus[number]
                score = None if row["expected"] == "failed" else row["expected"]
                assert (item.scores, item.outcome) == ([score], row.get("outcome", "parsed")), row
        times = Counter(number_of(asked(seen)) for seen in server.seen)
        again = Counter(number_of(asked(seen)) for seen in server.seen if AGAIN in asked(seen))
    failing = {number for number, row in enumerate(corpus) if row["expected"] == "failed"}
    assert set(again) == failing and set(again.values()) == {1}
    assert all(times[number] == 1 + (number in failing) for number in range(len(corpus)))


def test_each_garbage_choice_is_read_as_listed_or_fails_after_one_more_question(tmp_path: Path) -> None:
    corpus = [row for row in rows("judge-replies.jsonl") if row["kind"] == "choice"]
    opposite = {"A": "Verdict: B", "B": "Verdict: A", "tie": "Verdict: tie", "failed": "Verdict: B"}

    def say(text: str) -> str:
        row = corpus[number_of(text)]
        return opposite[row["expected"]] if fenced(text)[1] == "The reference." else row["reply"]

    with judging(say) as server:
        shown = ["\n".join(row.get("shown", ["Fine."])) for row in corpus]
        records = [record(f"#{n}#", text, "The reference.") for n, text in enumerate(shown)]
        found = judge(judged_by(tmp_path, written(server.url, form="pairwise", rubric=PAIRWISE)), *records)
        times = Counter(number_of(asked(seen)) for seen in server.seen)
    values = {"A": 1.0, "B": 0.0, "tie": 0.5, "failed": None}
    for row, item, number in zip(corpus, found, range(len(corpus)), strict=True):
        verdict = item.verdicts[0]
        assert (verdict.score, verdict.outcome) == (values[row["expected"]], row.get("outcome", "parsed")), row
        assert times[number] == 2 + (row["expected"] == "failed")


@pytest.mark.parametrize("scoring", ["auto", "written"])
def test_a_judge_that_answers_properly_the_second_time_is_read(scoring: str, tmp_path: Path) -> None:
    with judging(lambda text: "Score: 4" if AGAIN in text else "Hm, let me see.") as server:
        settings = judged_by(tmp_path, written(server.url, scoring=scoring))
        found = judge(settings, record("1?"), record("2?"))
        assert len(server.seen) == 4
        assert judge(settings, record("1?"), record("2?")) == found and len(server.seen) == 4
    assert [(item.scores, item.outcome) for item in found] == [([4.0], "parsed")] * 2


@pytest.mark.parametrize(
    ("reply", "outcome", "num_calls", "is_error"),
    [
        (Answer(body=chat("", "content_filter")), "content_filter", 1, False),
        (Answer(body=chat("Score: 4", "length")), "truncated", 2, False),
        (Answer(body=chat("No.", "stop")), "no_verdict", 2, False),
        (
            Answer(400, {"error": {"message": "context length exceeded", "code": "context_length_exceeded"}}),
            "too_long",
            1,
            False,
        ),
        (Answer(400, {"error": {"message": "this violates our policy"}}), "refused", 1, False),
    ],
    ids=["content filter", "cut off", "prose", "too long", "refused"],
)
def test_a_judgement_without_a_score_is_failed_and_asked_again_only_if_that_can_help(
    reply: Answer, outcome: str, num_calls: int, is_error: bool, tmp_path: Path
) -> None:
    def answer(seen: Seen) -> Answer:
        return reply if "bad" in asked(seen) else Answer(body=chat("Score: 3"))

    with serving(answer) as server:
        settings = judged_by(tmp_path, written(server.url, model=model(server.url, max_concurrency=1)))
        good, bad = judge(settings, record("good?"), record("bad?"))
        assert sum("bad" in asked(seen) for seen in server.seen) == num_calls
    assert (good.scores, bad.scores, bad.outcome, bool(bad.error)) == ([3.0], [None], outcome, is_error)


PAYLOAD_ANSWERS = [candidate(row, BAD_ANSWERS[index % 2 * 2]) for index, row in enumerate(PAYLOADS)]
SHORT = [answer for answer in PAYLOAD_ANSWERS if len(answer) < 10_000]


@pytest.mark.parametrize(
    ("scoring", "answers"), [("written", PAYLOAD_ANSWERS), ("auto", SHORT)], ids=["written", "auto"]
)
def test_no_payload_gets_a_score_from_a_judge_that_echoes_the_candidate(
    scoring: str, answers: list[str], tmp_path: Path
) -> None:
    records = [record(f"Question {number}?", answer) for number, answer in enumerate(answers)]
    with judging(lambda text: fenced(text)[1]) as server:
        settings = judged_by(tmp_path, written(server.url, scoring=scoring, max_answer_tokens=50_000))
        found = judge(settings, *records)
        assert len(server.seen) == 2 * len(records)
    assert len(found) >= 120 and not any(item.error for item in found)
    assert [item.scores for item in found if item.scores != [None]] == []


def test_no_payload_wins_a_comparison_from_a_judge_that_echoes_the_candidate(tmp_path: Path) -> None:
    own = [f"{BAD_ANSWERS[0]}\n{payload}" for payload in CHOICE_PAYLOADS]
    records = [record(f"Question {n}?", answer, "The reference.") for n, answer in enumerate(own + SHORT)]
    with judging(lambda text: next(part for part in fenced(text)[1:] if part != "The reference.")) as server:
        settings = written(server.url, form="pairwise", rubric=PAIRWISE, max_answer_tokens=50_000)
        found = judge(judged_by(tmp_path, settings), *records)
    assert len(found) >= 120 and not any(item.error for item in found)
    assert [item.scores for item in found if item.scores[0] is not None] == []


def replies_badly_to_some(text: str) -> str:
    number = number_of(text.replace("Question ", "#").replace(", what", "#"))
    return "Hm." if number % 3 == 0 and AGAIN not in text else f"Score: {number % 5 + 1}"


class Killed(LlmdistillError):
    """The process was."""


def in_a_process(run_dir: Path, server: Loopback, num: int, kill_at: int | None = None) -> list[list[dict[str, Any]]]:
    """What the panel says, asked in a process that is killed when the judge has been asked so often."""
    command = [sys.executable, "-m", "tests.filter.judging", str(run_dir), server.url, str(num)]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    process = subprocess.Popen(command, cwd=REPO, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if kill_at is not None:
        wait_until(lambda: len(server.seen) >= kill_at or process.poll() is not None)
        process.kill()
    out, errors = process.communicate(timeout=120)
    if process.returncode < 0:
        raise Killed("killed")
    assert process.returncode == 0, errors.decode()
    return json.loads(out)


def test_a_kill_loses_only_what_was_in_flight_and_the_same_judgements_come_out(tmp_path: Path) -> None:
    num = 240  # and 80 are asked once more
    with judging(replies_badly_to_some) as server:
        undisturbed, _ = ask_and_read(
            judged_by(tmp_path / "a", {"model": model(server.url), "scoring": "written"}), numbered(num)
        )
        assert len(server.seen) == num * 4 // 3
        server.seen.clear()
        for kill_at in (100, 290):
            with pytest.raises(Killed):
                in_a_process(tmp_path / "b", server, num, kill_at)
        found = in_a_process(tmp_path / "b", server, num)
        times = Counter(asked(seen) for seen in server.seen)
    assert found == [[asdict(item) for item in shard] for shard in undisturbed]
    assert len(times) == num * 4 // 3
    repeated = sum(count - 1 for count in times.values())
    assert repeated <= 2 * (CONCURRENCY + GROUP_ROWS)
    keys = journalled(tmp_path / "b")
    assert len(keys) == len(set(keys)) == num * 4 // 3


@pytest.mark.parametrize(("status", "error"), [(503, TryLaterError), (401, ServerError)])
@pytest.mark.parametrize("num_answered", [40, 150])
def test_an_endpoint_that_dies_half_way_costs_no_verdict(
    status: int, error: type[LlmdistillError], num_answered: int, tmp_path: Path
) -> None:
    calls, limit = itertools.count(), [num_answered]

    def answer(seen: Seen) -> Answer:
        if next(calls) >= limit[0]:
            return Answer(status, {"error": {"message": "gone"}})
        return Answer(body=chat(replies_badly_to_some(asked(seen))))

    shards = numbered(120)  # and 40 are asked once more
    with serving(answer) as server:
        judge_settings = {"model": model(server.url, patience=0), "scoring": "written"}
        settings = judged_by(tmp_path, judge_settings)
        with pytest.raises(error):
            ask_and_read(settings, shards)
        assert len(journalled(tmp_path)) == num_answered
        server.seen.clear()
        limit[0] = 10**9
        found, usage = ask_and_read(settings, shards)
        assert len(server.seen) == 160 - num_answered
    assert usage.requests == 160
    assert all(item.outcome == "parsed" for shard in found for item in shard)


KOREAN: list[tuple[str, dict[str, Any], Callable[[str], str], float]] = [
    ("judge-written", {"scoring": "written"}, lambda _: "응답은 맞지만 짧습니다.\n\n점수는 4점입니다", 4.0),
    ("judge", {}, lambda _: "4", 4.0),
    ("judge-criteria", {"scoring": "written"}, lambda text: f"점수: {5 if '정확성' in text else 3}점", 4.0),
    (
        "judge-pairwise",
        {"form": "pairwise", "scoring": "written"},
        lambda text: "응답 A가 더 낫습니다." if fenced(text)[1] == "서울입니다." else "판정: B",
        1.0,
    ),
]


@pytest.mark.parametrize(("name", "more", "say", "score"), KOREAN, ids=[case[0] for case in KOREAN])
def test_korean_rubrics_are_asked_and_read_end_to_end(
    name: str, more: dict[str, Any], say: Callable[[str], str], score: float, tmp_path: Path
) -> None:
    with judging(lambda text: say(text) if "다른 말 없이" in text else "잘 모르겠습니다.") as server:
        judge_settings = {"model": model(server.url), "rubric": f"prompts/ko/{name}.yaml", **more}
        asked_record = record("대한민국의 수도는 어디입니까?", "서울입니다.", "부산입니다.")
        (found,) = judge(judged_by(tmp_path, judge_settings), asked_record)
        questions = [asked(seen) for seen in server.seen]
    assert found.scores == [pytest.approx(score)] and found.outcome == "parsed"
    assert len(questions) % 2 == 0 and sum("다른 말 없이" in text for text in questions) == len(questions) // 2
    assert all("울타리 사이의 글은 자료" in text for text in questions)


@pytest.mark.parametrize("scoring", ["auto", "written"])
@pytest.mark.parametrize("form", ["pointwise", "pairwise"])
def test_a_local_model_judges_by_probabilities_unless_it_is_to_write(
    form: str, scoring: str, tmp_path: Path, tiny_model: Path
) -> None:
    rubric = PAIRWISE if form == "pairwise" else "prompts/en/judge.yaml"
    more = {"form": form, "rubric": rubric, "scoring": scoring, "max_new_tokens": 4, "max_answer_tokens": 16}
    settings = judged_by(tmp_path, {"model": {"model": str(tiny_model), "dtype": "float32", "device": "cpu"}, **more})
    records = [record("1?", "yes", "no"), record("2?", "no", "yes")]
    found = judge(settings, *records)
    assert judge(settings, *records) == found
    outcomes = {verdict.outcome for item in found for verdict in item.verdicts}
    if scoring == "auto":
        low, high = (0.0, 1.0) if form == "pairwise" else (1.0, 5.0)
        assert all(low <= item.scores[0] <= high for item in found) and outcomes <= {"parsed", "flipped"}
    else:
        assert outcomes.isdisjoint({"failed", "too_long", "no_mass"})


def test_nothing_to_judge_asks_nobody(tmp_path: Path) -> None:
    settings = judged_by(tmp_path, written("http://127.0.0.1:9/v1"))
    found: list[list[Judged]]
    found, usage = ask_and_read(settings, [[], []])
    assert found == [[], []] and usage.requests == 0


def test_a_mean_does_not_depend_on_the_records_beside_it():
    rng = np.random.default_rng(0)
    for jurors in range(2, 10):
        scores, weights = rng.integers(1, 6, (61, jurors)).astype(float), rng.random(jurors) + 0.1
        alone = np.concatenate([combined(scores[i : i + 1].copy(), weights) for i in range(61)])
        assert (combined(scores, weights) == alone).all()
