"""A refresh on the page: what is new, how it differs, whether the student is better; inert, and honest about gaps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmdistill.errors import DamagedError
from llmdistill.refresh.drift import drift
from llmdistill.refresh.gate import MARGINS, Difference, GateResult
from llmdistill.refresh.line import Version
from llmdistill.refresh.paired import SHARES
from llmdistill.report.charts import draw_gains
from llmdistill.report.data import RunData
from llmdistill.report.refreshing import read_refresh, view_of
from llmdistill.report.stage import run
from llmdistill.run.files import write_json
from llmdistill.run.manifest import read_manifest
from tests.refresh.test_drift import INSTRUCTIONS, KOREAN, MATHEMATICS, records, write_run
from tests.report.run_dirs import full_run, pipeline
from tests.report.test_curation import Cells
from tests.report.test_report import EVIL, assert_inert
from tests.runs import pipeline as plain_pipeline

HEADING = "What is new, and whether it is better"
NBSP = "\N{NO-BREAK SPACE}"


def gate(**changes: Any) -> dict[str, Any]:
    """What the gate says of 40 held-out prompts, 5 of them gained and 1 lost."""
    rows = [
        {"id": f"{number:032x}", "champion": float(number > 4), "student": float(number != 39), "weight": 1.0}
        for number in range(40)
    ]
    secondary = (Difference("human_text_ce", False, 40, 1.2345, 1.2, -0.0345, -0.06, -0.01),)
    values: dict[str, Any] = {
        "measure": "accuracy",
        "higher_is_better": True,
        "num_records": 40,
        "champion": 0.875,
        "student": 0.975,
        "difference": 0.1,
        "low": -0.013,
        "high": 0.21,
        "margin": 0.02,
        "confidence": 0.95,
        "promoted": True,
        "reason": "the new student is not worse by more than 0.02 than version 1",
        "champion_number": 1,
        "num_held_out": 42,
        "num_leaked": 2,
        "same_weights": False,
        "secondary": secondary,
        "per_record": tuple(rows),
    }
    return asdict(GateResult(**values | changes))


def version(number: int, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "number": number,
        "outcome": "promoted",
        "parent": number - 1 if number else None,
        "champion_before": None,
        "inputs": {},
        "gate": {},
        "prompts": 1000 + number,
        "new": 60,
        "gone": 0,
        "chosen": 500,
        "requests": 120,
        "tokens": 9000,
        "cost": 0.25,
        "seconds": 12.0,
        "generation": 1,
        "finished": f"2026-01-0{1 + number}T03:00:00+00:00",
        "measure": "accuracy",
        "score": 0.975,
        "difference": 0.1,
    }
    return {**asdict(Version(**values | changes)), "now": changes.get("outcome", "promoted")}


@pytest.fixture(scope="module")
def drifted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What drift says of school mathematics and Korean after instructions."""
    folder, old = tmp_path_factory.mktemp("drift"), records(INSTRUCTIONS[:200], [4.0, 5.0] * 100)
    write_run(folder / "parent", old)
    write_run(folder / "child", [*old, *records([*MATHEMATICS[:30], *KOREAN[:30]], [2.0, 5.0] * 30)])
    return drift(plain_pipeline(folder / "child"), folder / "parent")


@pytest.fixture
def facts(drifted: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": 2,
        "parent": 1,
        "champion": 1,
        "outcome": "promoted",
        "new": {"prompts": 1060, "new": 60, "gone": 3, "held_out": 42, "new_held_out": 2},
        "gate": gate(),
        "drift": drifted,
        "guards": {"generation": 1, "real": {"records": 500, "real": 400, "share": 0.8, "synthetic": {"0": 400}}},
        "history": [version(0, outcome="first"), version(1), version(2)],
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    full_run(folder / "run")
    return folder / "run"


@pytest.fixture
def page_of(finished: Path, tmp_path: Path) -> Callable[[Any], str]:
    """The page of a run with this `refresh.json`; None is without one."""

    def page(stored: Any) -> str:
        run_dir = tmp_path / "run"
        if not run_dir.exists():
            shutil.copytree(finished, run_dir)
        if stored is not None:
            write_json(run_dir / "refresh.json", stored)
        run(pipeline(run_dir))
        return (run_dir / "report" / "index.html").read_text("utf-8")

    return page


def test_a_plain_run_has_no_such_section(page_of: Callable[[Any], str]) -> None:
    assert HEADING not in page_of(None)


def test_everything_of_a_refresh_is_on_the_page(page_of: Callable[[Any], str], facts: dict[str, Any]) -> None:
    html = page_of(facts)
    page, cells = Cells(html), [text.strip() for text in Cells(html).of("td")]
    assert HEADING in page.of("h2") and assert_inert(html)
    assert "Promoted: the new student is not worse by more than 0.02 than version 1" in page.text
    assert "Version 2, made from version 1." in page.text and "The champion is version 1." in page.text
    assert "2 held-out prompts were left out" in page.text
    decided = [f"87.5{NBSP}%", f"97.5{NBSP}%", f"+10.0{NBSP}%", f"-1.3{NBSP}% to +21.0{NBSP}%", f"2.0{NBSP}%", "40"]
    start = cells.index(decided[0])
    assert cells[start : start + 6] == decided
    assert cells[start + 6 : start + 12] == ["1.2345", "1.2000", "-0.0345", "-0.0600 to -0.0100", "—", "40"]
    assert "the new student is better on 5, the champion on 1, they are equal on 34" in page.text
    for text in ("60", "3", "42", f"80.0{NBSP}% of 500 chosen", "1,060"):
        assert text in page.of("dd")
    told = facts["drift"]["findings"].values()
    assert all(f"{one['words'][:1].upper()}{one['words'][1:]}." in cells for one in told)
    assert cells.count("yes") == len(facts["drift"]["moved"]) > 2
    newest = cells.index("2026-01-03T03:00:00+00:00")
    row = ["1", "1,002", "60", "500", f"accuracy 97.5{NBSP}%", f"+10.0{NBSP}%", "promoted", "$0.2500"]
    assert cells[newest + 1 : newest + 9] == row and "first" in cells


def test_examples_of_the_topics_that_moved_are_shown(page_of: Callable[[Any], str], facts: dict[str, Any]) -> None:
    text = Cells(page_of(facts)).text
    first, second = facts["drift"]["findings"]["clusters"]["movers"][0]["examples"]
    assert first in text and second in text
    assert any(prompt in text for prompt in KOREAN)


@pytest.mark.parametrize("key", ["new", "gate", "drift", "guards", "history", "parent"])
def test_what_is_null_is_left_out(page_of: Callable[[Any], str], facts: dict[str, Any], key: str) -> None:
    page = Cells(page_of({**facts, key: None}))
    assert HEADING in page.of("h2") and "None" not in page.text.split(HEADING)[1].split("Did it help?")[0]


def test_a_refresh_without_new_prompts_says_so(page_of: Callable[[Any], str], facts: dict[str, Any]) -> None:
    assert "There was no new prompt to compare." in page_of({**facts, "drift": {"new": 0}})


def test_a_gate_that_could_compare_nothing_shows_dashes(page_of: Callable[[Any], str], facts: dict[str, Any]) -> None:
    nothing = dict.fromkeys(("champion", "student", "difference", "low", "high"))
    why = "3 of 5 held-out prompts can be compared by accuracy, and at least 20 are needed"
    refused = gate(**nothing, promoted=False, reason=why, num_records=3, per_record=(), secondary=())
    html = page_of({**facts, "outcome": "refused", "gate": refused})
    assert f"Refused: {why}" in html and '<p class="conclusion worse">' in html
    assert "Gain on each held-out prompt" not in html


def test_the_judges_movement_and_its_cost_are_told(facts: dict[str, Any]) -> None:
    said = {"p": 0.001, "p_adjusted": 0.0004, "moved": True, "words": "the judge has become stricter: -0.50"}
    usage = {"requests": 50, "prompt_tokens": 1, "completion_tokens": 1, "seconds": 1.0, "cost": None}
    view = view_of({**facts, "drift": {**facts["drift"], "judge": said, "usage": usage}})
    last = view.findings[-1]
    assert (last.name, last.words, last.moved) == ("The judge itself", "The judge has become stricter: -0.50.", True)
    assert last.p == "below 0.001" and view.usage.endswith("50 requests; cost unknown.")


def test_a_version_that_was_rolled_back_is_marked(facts: dict[str, Any]) -> None:
    rows = [{**version(1), "now": "rolled back"}, {**version(2), "now": "champion", "cost": None, "measure": None}]
    history = view_of({**facts, "history": rows}).history
    assert history[0][8] == "promoted (rolled back)" and history[1][8] == "promoted"
    assert history[1][6] == "—" and history[1][9] == "unknown"


@pytest.mark.parametrize("evil", EVIL)
def test_hostile_text_stays_text(page_of: Callable[[Any], str], facts: dict[str, Any], evil: str) -> None:
    movers = [{"old_share": 0.1, "new_share": 0.4, "examples": [evil, f"{evil}\x1b]0;title\x07"]}]
    finding = {"p": None, "p_adjusted": None, "moved": False, "words": evil}
    stored = {
        **facts,
        "outcome": evil,
        "gate": gate(reason=evil, measure=evil),
        "drift": {**facts["drift"], "findings": {evil: finding, "clusters": {**finding, "movers": movers}}},
        "history": [version(1, outcome=evil, measure=evil, finished=evil)],
    }
    page = assert_inert(page_of(stored))
    assert page.text.count(evil) >= 6 and "\x1b" not in page.text


DAMAGED = {
    "a list": [],
    "nothing in it": {},
    "gate is text": {"gate": "promoted"},
    "finding without words": {"drift": {"findings": {"length": {"moved": True}}}},
    "mover without examples": {"drift": {"findings": {"clusters": {"movers": [{}], "words": "", "moved": False}}}},
    "rows without a student": {"gate": {"measure": "accuracy", "per_record": [{"champion": 1.0}]}},
    "history of numbers": {"history": [1]},
    "a number beyond all": {"version": 10**400},
}


@pytest.mark.parametrize("changes", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, facts: dict[str, Any], changes: Any) -> None:
    stored = {**facts, **changes} if changes else changes
    (tmp_path / "refresh.json").write_text(json.dumps(stored), "utf-8")
    with pytest.raises(DamagedError, match="refresh.json: this describes no refresh"):
        read_refresh(tmp_path)


def test_a_torn_file_is_one_clear_error(tmp_path: Path, facts: dict[str, Any]) -> None:
    (tmp_path / "refresh.json").write_text(json.dumps(facts)[:-20], "utf-8")
    with pytest.raises(DamagedError, match="refresh.json: not readable as JSON"):
        read_refresh(tmp_path)


def test_the_page_is_made_again_when_the_refresh_is_another(
    page_of: Callable[[Any], str], facts: dict[str, Any], tmp_path: Path
) -> None:
    first = page_of(facts)
    digest = read_manifest(tmp_path / "run" / "report").digest
    assert page_of(facts) == first and read_manifest(tmp_path / "run" / "report").digest == digest
    assert "Refused" in page_of({**facts, "outcome": "refused"})
    assert read_manifest(tmp_path / "run" / "report").digest != digest


def test_every_measure_of_the_gate_has_words(facts: dict[str, Any]) -> None:
    for name in MARGINS:
        row = view_of({**facts, "gate": gate(measure=name)}).measures[0]
        assert name not in row[0] and row[1] == (f"87.5{NBSP}%" if name in SHARES else "0.8750")


def test_where_lower_is_better_a_fall_is_a_gain(facts: dict[str, Any]) -> None:
    rows = tuple({"id": "", "champion": 2.0, "student": value, "weight": 1.0} for value in (1.5, 1.0, 2.5, None))
    view = view_of({**facts, "gate": gate(measure="human_text_ce", higher_is_better=False, per_record=rows)})
    assert view.gains.tolist() == [0.5, 1.0, -0.5] and view.unit == "nats per token"
    (chart,) = draw_gains(RunData({}, refresh=view))
    assert "better on 2, the champion on 1, they are equal on 0" in chart.caption


def test_a_chart_of_many_prompts_stays_small(facts: dict[str, Any]) -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    rows = tuple({"id": "", "champion": 0.0, "student": float(value), "weight": 1.0} for value in values)
    (chart,) = draw_gains(RunData({}, refresh=view_of({**facts, "gate": gate(per_record=rows)})))
    assert len(chart.svg) < 60_000 and "100,000 held-out prompts" in chart.caption
