"""Who becomes the champion, by the command line."""

from __future__ import annotations

import html
import json

from tests.refresh.conftest import FIRST
from tests.refresh.runs import Lineage, instructions

NEW = 4
RUINOUS = {"train": {"learning_rate": 5, "epochs": 3}}
"""Settings under which a student forgets all it knows."""


def test_a_worse_student_is_refused_with_an_exit_code_of_its_own_and_the_champion_stays(line: Lineage) -> None:
    line.write(instructions(FIRST + NEW), **RUINOUS)
    said = line.refresh(code=5)
    version = line.version(1)
    assert version["outcome"] == "refused" and version["low"] > 0
    assert version["reason"] in said
    assert line.champion == line.run_dir
    page = (line.run_dir / "refresh" / "0001" / "report" / "index.html").read_text("utf-8")
    assert version["reason"] in html.unescape(page)
    status = json.loads((line.run_dir / "refresh" / "status.json").read_text())
    assert (status["exit_code"], status["outcome"], status["version"]) == (5, "refused", 1)


def test_after_a_refusal_the_next_student_is_compared_with_the_champion_and_takes_over_what_was_paid(
    line: Lineage,
) -> None:
    line.write(instructions(FIRST + NEW), **RUINOUS)
    line.refresh(code=5)
    line.teacher.begin(**{"rules": [{"kind": "status", "status": 500}]})
    line.write(instructions(FIRST + NEW))
    assert "promoted" in line.refresh()
    version = line.version(2)
    assert (version["parent"], version["champion_before"], version["new"]) == (1, 0, 0)
    assert not line.asked()
    assert line.champion == line.run_dir / "refresh" / "0002"
    assert "version 0 is the champion again" in line.refresh("--rollback")


def test_a_better_student_is_promoted_with_its_difference_and_interval(line: Lineage) -> None:
    gate = {"measure": "teacher_text_ce", "min_records": 5, "margin": 0.5}
    line.write(instructions(FIRST + NEW), train={"epochs": 6, "learning_rate": 3e-3}, refresh={"gate": gate})
    assert "promoted" in line.refresh()
    version = line.version(1)
    assert version["low"] <= version["difference"] < 0  # nats per token: less is better
    assert version["difference"] <= version["high"] <= 0.5


def test_another_margin_decides_again_and_trains_nothing(line: Lineage) -> None:
    line.write(instructions(FIRST + NEW), **RUINOUS)
    line.refresh(code=5)
    weights = line.run_dir / "refresh" / "0001" / "train" / "student" / "model.safetensors"
    trained = weights.stat().st_mtime_ns
    gate = {"measure": "teacher_text_ce", "min_records": 5, "margin": 1000}
    line.write(instructions(FIRST + NEW), **RUINOUS, refresh={"gate": gate})
    assert "version 1 is promoted" in line.refresh()
    assert weights.stat().st_mtime_ns == trained
    assert line.champion == line.run_dir / "refresh" / "0001"


def test_another_margin_decides_nothing_where_the_champion_of_then_was_rolled_back(line: Lineage) -> None:
    line.write(instructions(FIRST + NEW))
    line.refresh()
    line.write(instructions(FIRST + NEW), **RUINOUS)
    line.refresh(code=5)
    line.refresh("--rollback")
    gate = {"measure": "teacher_text_ce", "min_records": 5, "margin": 1000}
    line.write(instructions(FIRST + NEW), **RUINOUS, refresh={"gate": gate})
    said = line.refresh()
    assert "compared with version 1" in said and "rolled back" in said
    assert line.champion == line.run_dir and line.version(2)["outcome"] == "refused"


def test_going_on_from_the_champion_begins_with_its_weights(line: Lineage) -> None:
    from safetensors.torch import load_file

    line.write(instructions(FIRST + NEW), refresh={"student": "continue", "learning_rate": 1e-4})
    line.refresh()
    child = line.run_dir / "refresh" / "0001" / "train"
    champion = load_file(line.run_dir / "train" / "student" / "model.safetensors")
    began = load_file(child / "untrained" / "model.safetensors")
    assert all((began[name] == weights).all() for name, weights in champion.items())
    now = load_file(child / "student" / "model.safetensors")
    assert any((now[name] != weights).any() for name, weights in champion.items())
