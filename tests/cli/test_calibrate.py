"""`llmdistill calibrate`: a table for a person, JSON for a program, one line for a mistake; a rerun asks nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import llmdistill.cli as cli_module
from llmdistill.errors import DamagedError
from llmdistill.report.judging import FILE, read_calibration
from llmdistill.run.lock import locked
from tests.engines.loopback import Loopback
from tests.filter.judging import judging, model
from tests.filter.test_calibration import answers, by_quality, write_gold

LABELS = ("threshold", "precision, cross-validated", "recall", "accuracy", "kappa", "Spearman", "AUC", "length bias")


@pytest.fixture(scope="module")
def judge() -> Iterator[Loopback]:
    with judging(by_quality) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge: Loopback) -> Path:
    """A working directory with a pipeline whose judge knows the gold set, and the gold set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    write_gold(tmp_path / "골드.jsonl", answers())
    settings = {"model": model(judge.url), "scoring": "written", "rubric": "prompts/en/judge-written.yaml"}
    pipeline = {
        "name": "x",
        "run_dir": "run",
        "prompts": {"path": "p.jsonl", "held_out": 0},
        "teacher": {"model": "no-such-organisation/no-such-model"},
        "student": {"keep_layers": 2},
        "filter": {"judge": settings},
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(pipeline))
    return tmp_path


@pytest.fixture
def calibrate(folder, monkeypatch, capsys):
    """Run the command in this process; gives (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["llmdistill", "calibrate", "x.yaml", *arguments])
        return cli_module._exit_code(), *capsys.readouterr()

    return run


def test_the_table_names_every_statistic_within_80_columns(calibrate):
    code, out, err = calibrate("--gold", "골드.jsonl")
    assert code == 0 and err.splitlines()[-1] == "the calibration is in run/calibration/calibration.json"
    assert max(map(len, out.splitlines())) <= 80
    rows = {line.split("│")[1].strip(): line.split("│")[2:4] for line in out.splitlines() if line.startswith("│")}
    assert all(any(label in row for row in rows) for label in LABELS)
    assert rows["threshold"][0].strip() == "4"
    assert [cell.strip() for cell in rows["precision at the threshold"]] == ["0.950", "0.764 to 0.991"]
    assert [cell.strip() for cell in rows["position flips"]] == ["—", "—"]
    assert "50 gold answers, 25 of them good; 50 scored, 20 kept" in out and "골드.jsonl" in out
    assert "cross-validated precision does not" in " ".join(out.split())


def test_json_is_what_is_stored_and_a_rerun_asks_nothing(calibrate, judge, folder):
    code, out, _ = calibrate("--gold", "골드.jsonl", "--precision", "0.8", "--json")
    assert code == 0 and json.loads(out) == json.loads((folder / "run" / FILE).read_text("utf-8"))
    assert (json.loads(out)["threshold"], json.loads(out)["target_precision"]) == (3, 0.8)
    asked = len(judge.seen)
    assert calibrate("--gold", "골드.jsonl", "--precision", "0.8", "--json")[1] == out
    assert len(judge.seen) == asked


def test_the_pipelines_gold_set_is_taken_without_the_flag(calibrate):
    code, out, _ = calibrate("--set", "filter.judge.calibration.gold=골드.jsonl", "--json")
    assert code == 0 and json.loads(out)["threshold"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no gold set to calibrate the judge with -> give --gold FILE"),
        (["--gold", "골.jsonl"], "골.jsonl: there is no such gold file -> did you mean 골드.jsonl?"),
        (["--gold", "x.yaml"], "x.yaml: a gold set is a .jsonl file"),
        (["--gold", "bad.jsonl"], "bad.jsonl:2: no label -> a label is true, false or a number"),
        (["--gold", "골드.jsonl", "--precision", "1.5"], "Invalid value for '--precision'"),
        (["--gold", "골드.jsonl", "--set", "filter.judge.calibration.good=nan"], "filter.judge.calibration.good"),
        (["--gold", "골드.jsonl", "--set", "filter.judge.rubric=no.yaml"], "no.yaml: there is no such prompt file"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_exit_code_2(calibrate, folder, arguments, message):
    write_gold(folder / "bad.jsonl", [answers()[0], {"prompt": "p", "answer": "a"}])
    code, out, err = calibrate(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not (folder / "run" / FILE).exists()


def test_a_precision_out_of_reach_is_said_with_what_can_be_reached(calibrate, folder):
    flipped = [{**row, "label": not row["label"]} for row in answers()]
    write_gold(folder / "flipped.jsonl", flipped)
    code, out, err = calibrate("--gold", "flipped.jsonl")
    assert (code, out) == (2, "")
    assert "the best is 0.500 at 1 (25 of 50 are good, AUC 0.05)" in err.splitlines()[-1]
    assert not (folder / "run" / FILE).exists()


def test_a_run_that_another_process_works_on_is_left_alone(calibrate, judge, folder):
    asked = len(judge.seen)
    with locked(folder / "run"):
        assert calibrate("--gold", "골드.jsonl")[0] == 75
    assert len(judge.seen) == asked


def test_a_budget_is_kept(calibrate, judge):
    asked = len(judge.seen)
    code, _, err = calibrate("--gold", "골드.jsonl", "--max-tokens", "10")
    assert code == 4 and "the budget is reached" in err and len(judge.seen) == asked


def test_the_report_reads_what_is_stored_and_says_what_is_damaged(calibrate, folder):
    run = folder / "run"
    assert read_calibration(run) is None
    calibrate("--gold", "골드.jsonl")
    view = read_calibration(run)
    assert view is not None and (view.threshold, view.target, view.gold_file) == ("4", "0.9", "골드.jsonl")
    assert view.judges[0][0] == "judge" and len(view.judges[0][1]) == 16
    stored = json.loads((run / FILE).read_text("utf-8"))
    for broken in ({}, [], {**stored, "threshold": "high"}, {**stored, "judges": [1]}, {**stored, "measures": None}):
        (run / FILE).write_text(json.dumps(broken))
        with pytest.raises(DamagedError, match="run llmdistill calibrate again"):
            read_calibration(run)
