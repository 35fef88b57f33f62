"""The judge's own drift: old answers are really judged again, once, and compared with what was said of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmdistill.config import Budget, Generate, Pipeline, Refresh, Samples
from llmdistill.filter import stage as filter_stage
from llmdistill.record import Record, record_id
from llmdistill.refresh.drift import drift
from llmdistill.run.inherit import inherit
from tests.engines.loopback import Answer, Seen, chat, serving
from tests.filter.judging import asked, fenced, judged_by, judging, model
from tests.runs import answered, finish_stage, pipeline
from tests.tiny import REPO

EVERY = [answered(f"Question {100 + number}, what comes next?", f"Grade {1 + number % 5}") for number in range(80)]
NEW = EVERY[::4]
OLD = [item for item in EVERY if item not in NEW]
REJUDGED = 40


class Moody:
    """A judge that gives every answer its grade, and `mood` more, from 1 to 5."""

    mood = 0

    def __call__(self, question: str) -> str:
        return str(min(5, max(1, int(fenced(question)[1].split()[-1]) + self.mood)))


def filtered(given: Pipeline, records: list[Record]) -> None:
    """Prompts, answers and the judge's verdicts of a run."""
    finish_stage(given.run_path, "prompts", [[Record(item.id, item.prompt) for item in records]], held_out=[])
    finish_stage(given.run_path, "generate", [records[:33], records[33:]])
    filter_stage.run(given)


def versions(folder: Path, judge: dict[str, Any], new: list[Record] = NEW, **sections: Any) -> Pipeline:
    """A run, and its next version that inherits all that was said; gives the pipeline of the version."""
    sections = {"refresh": Refresh(rejudged=REJUDGED), **sections}
    filtered(judged_by(folder / "parent", judge, **sections), OLD)
    inherit(folder / "parent", folder / "child", "0000")
    given = judged_by(folder / "child", judge, **sections)
    filtered(given, [*OLD, *new])
    return given


def without_seconds(found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "usage": {**found["usage"], "seconds": 0.0}}


def test_a_stricter_judge_is_found_by_asking_it_about_a_sample_once(tmp_path: Path) -> None:
    judge = Moody()
    with judging(judge) as server:
        given = versions(tmp_path, {"model": model(server.url)})
        before = len(server.seen)
        judge.mood = -1
        found = drift(given, tmp_path / "parent")
        assert len(server.seen) == before + REJUDGED
        assert without_seconds(drift(given, tmp_path / "parent")) == without_seconds(found)
        assert len(server.seen) == before + REJUDGED
    judged = found["judge"]
    assert found["moved"] == ["judge"] and judged["moved"] and judged["words"].startswith("the judge has become str")
    assert (judged["asked"], judged["compared"], judged["failed"]) == (REJUDGED, REJUDGED, 0)
    share_of_ones = 1 + judged["shift"]
    assert judged["equal"] == pytest.approx(share_of_ones) and 0.05 < share_of_ones < 0.4
    assert judged["low"] < judged["shift"] < judged["high"] < 0 and judged["flipped"] > 0
    assert found["usage"]["requests"] == REJUDGED and found["usage"]["cost"] > 0


@pytest.mark.parametrize("more", [{}, {"jury": 1}, {"jury": 1, "combine": "vote"}], ids=["judge", "jury", "vote"])
def test_a_judge_that_says_the_same_has_not_moved(tmp_path: Path, more: dict[str, Any]) -> None:
    with judging(Moody()) as server:
        jury = {"jury": [{"model": model(server.url, "other"), "weight": 2.0}]} if more else {}
        given = versions(tmp_path, {"model": model(server.url), **more, **jury})
        found = drift(given, tmp_path / "parent")
    judged = found["judge"]
    assert (judged["shift"], judged["low"], judged["high"], judged["equal"]) == (0.0, 0.0, 0.0, 1.0)
    assert judged["words"].startswith("the judge has not moved: +0.00 on average") and not judged["changed"]
    assert judged["flipped"] == (None if "combine" in more else 0.0) and found["moved"] == []


def test_another_rubric_is_said_to_be_another_and_no_drift(tmp_path: Path) -> None:
    text = (REPO / "prompts" / "en" / "judge.yaml").read_text("utf-8")
    (tmp_path / "rubric.yaml").write_text(text, "utf-8")
    judge = Moody()
    with judging(judge) as server:
        given = versions(tmp_path, {"model": model(server.url), "rubric": str(tmp_path / "rubric.yaml")})
        (tmp_path / "rubric.yaml").write_text(text.replace("Rate how well", "Grade how well"), "utf-8")
        judge.mood = -1
        judged = drift(given, tmp_path / "parent")["judge"]
    assert judged["changed"] and judged["p"] is None and not judged["moved"]
    assert judged["words"].startswith("another judge or rubric than then: -0.")


def test_nobody_is_asked_where_none_are_wanted(tmp_path: Path) -> None:
    with judging(Moody()) as server:
        given = versions(tmp_path, {"model": model(server.url)}, refresh=Refresh(rejudged=0))
        before = len(server.seen)
        found = drift(given, tmp_path / "parent")
        assert len(server.seen) == before
    assert found["judge"]["words"] == "no old answer was judged once more" and found["usage"]["requests"] == 0


def test_without_a_judge_there_is_no_word_of_it(tmp_path: Path) -> None:
    filtered(pipeline(tmp_path / "parent"), OLD)
    filtered(pipeline(tmp_path / "child"), [*OLD, *NEW])
    found = drift(pipeline(tmp_path / "child"), tmp_path / "parent")
    assert found["judge"] is None and found["findings"]["scores"]["words"] == "no answer was judged"


def test_only_answers_that_stand_as_they_did_are_judged_again(tmp_path: Path) -> None:
    judge = Moody()
    with judging(judge) as server:
        filtered(judged_by(tmp_path / "parent", {"model": model(server.url)}), OLD)
        given = judged_by(tmp_path / "child", {"model": model(server.url)})
        changed = [replace(item, answer=f"{item.answer}: 4") for item in OLD[:30]]
        filtered(given, [*changed, *OLD[30:50], *NEW])
        before = len(server.seen)
        judged = drift(given, tmp_path / "parent")["judge"]
        again = {fenced(asked(seen))[0] for seen in server.seen[before:]}
    assert judged["asked"] == 20 and again == {item.question for item in OLD[30:50]}


def failing(judge: Callable[[str], str], fails: Callable[[int], bool]) -> Callable[[Seen], Answer]:
    """A judge whose server is broken while `fails` says so of the number of the request."""
    counted: list[Seen] = []

    def reply(seen: Seen) -> Answer:
        counted.append(seen)
        return Answer(500) if fails(len(counted)) else Answer(body=chat(judge(asked(seen))))

    return reply


def test_a_judge_that_fails_half_way_is_told_of_and_asked_the_rest_later(tmp_path: Path) -> None:
    total = len(OLD) + len(NEW)
    broken = [False]
    with serving(failing(Moody(), lambda number: broken[0] and number > total + 10)) as server:
        api = {"patience": 1, "max_concurrency": 1}
        given = versions(tmp_path, {"model": model(server.url, **api)})
        broken[0] = True
        found = drift(given, tmp_path / "parent")
        assert found["judge"]["error"] and "could not be asked once more" in found["judge"]["words"]
        assert found["judge"]["p"] is None and found["moved"] == [] and found["usage"]["requests"] == 10
        broken[0] = False
        before = len(server.seen)
        judged = drift(given, tmp_path / "parent")["judge"]
        assert len(server.seen) == before + REJUDGED - 10
    assert judged["compared"] == REJUDGED and judged["error"] is None and judged["shift"] == 0.0


def test_verdicts_that_cannot_be_read_are_counted_and_are_no_low_scores(tmp_path: Path) -> None:
    judge, mute = Moody(), [False]

    def reply(question: str) -> str:
        return "I would rather not say." if mute[0] and "Grade 2" in question else judge(question)

    with judging(reply) as server:
        given = versions(tmp_path, {"model": model(server.url)})
        mute[0] = True
        judged = drift(given, tmp_path / "parent")["judge"]
    assert judged["failed"] > 0 and judged["compared"] == REJUDGED - judged["failed"] and judged["shift"] == 0.0
    assert sum(judged["outcomes"].values()) == judged["failed"]
    assert judged["words"].endswith(f", {judged['failed']} could not be read")


def test_the_budget_holds_for_asking_again_too(tmp_path: Path) -> None:
    with judging(Moody()) as server:
        given = versions(tmp_path, {"model": model(server.url)})
        before = len(server.seen)
        poor = given.model_copy(update={"budget": Budget(max_tokens=0)})
        found = drift(poor, tmp_path / "parent")
        assert len(server.seen) == before and "budget" in found["judge"]["error"]


def test_pairs_of_samples_are_judged_together_again(tmp_path: Path) -> None:
    """The score of an answer is that against all other answers to its prompt, so no prompt is asked about in part."""

    def samples(texts: list[str]) -> list[Record]:
        found = []
        for text in texts:
            for number in range(3):
                item = answered(text, f"Grade {1 + number}")
                found.append(replace(item, id=record_id(item.prompt, number)))
        return found

    def prefer(question: str) -> str:
        first, second = (int(text.split()[-1]) for text in fenced(question)[1:3])
        return "[[A]]" if first > second else "[[B]]"

    old = [f"Old question {number}, which is it?" for number in range(20)]
    new = [f"New question {number}, which is it?" for number in range(20)]
    with judging(prefer) as server:
        judge = {"model": model(server.url), "form": "pairwise", "against": "samples"}
        judge["rubric"] = "prompts/en/judge-pairwise.yaml"
        sections = {
            "generate": Generate(template="prompts/en/answer.yaml", samples=Samples(n=3)),
            "refresh": Refresh(rejudged=32),
        }
        filtered(judged_by(tmp_path / "parent", judge, **sections), samples(old))
        given = judged_by(tmp_path / "child", judge, **sections)
        filtered(given, samples([*old, *new]))
        judged = drift(given, tmp_path / "parent")["judge"]
    assert judged["compared"] == 30 and judged["equal"] == 1.0 and judged["failed"] == 0


def test_a_kill_while_the_judge_is_asked_costs_few_answers(tmp_path: Path) -> None:
    """SIGKILL from outside after some answers; the next call asks what is missing."""
    slow = [0.0]

    def reply(question: str) -> str:
        time.sleep(slow[0])
        return Moody()(question)

    with judging(reply) as server:
        given = versions(tmp_path, {"model": model(server.url, max_concurrency=1)})
        (tmp_path / "given.json").write_text(given.model_dump_json(), "utf-8")
        before, slow[0] = len(server.seen), 0.1
        code = (
            "import sys; from pathlib import Path; from llmdistill.config import Pipeline; "
            "from llmdistill.refresh.drift import drift; "
            "drift(Pipeline.model_validate_json(Path(sys.argv[1]).read_text('utf-8')), Path(sys.argv[2]))"
        )
        arguments = [sys.executable, "-c", code, str(tmp_path / "given.json"), str(tmp_path / "parent")]
        process = subprocess.Popen(arguments, cwd=REPO, env=dict(os.environ), stderr=subprocess.DEVNULL)
        while len(server.seen) < before + 20 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        slow[0] = 0.0
        killed = len(server.seen)
        judged = drift(given, tmp_path / "parent")["judge"]
        # At most half a second of answers was not on disk yet, and one was under way.
        assert killed - before + len(server.seen) - killed <= REJUDGED + 12
    assert judged["compared"] == REJUDGED and judged["shift"] == 0.0
