"""`llmdistill vision` at the terminal: tables that fit, JSON for programs, one line for a mistake."""

from __future__ import annotations

import json

import pytest

import llmdistill.cli as cli_module

FILE = "pipelines/vision/digits.yaml"
SEARCH = "pipelines/vision/digits-search.yaml"
SHORT = ["--set", "protocol.epochs=1", "--set", "protocol.seeds=[0,1]"]


@pytest.fixture
def vision(monkeypatch, capsys, tmp_path):
    """Run `llmdistill vision` in this process on 80 columns; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["llmdistill", "vision", *arguments])
        code = cli_module._exit_code()
        return code, *capsys.readouterr()

    return run


def test_the_table_fits_80_columns_and_progress_goes_to_stderr(vision):
    code, out, err = vision("kd", FILE, *SHORT)
    assert code == 0
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    starts = [line.split()[0] for line in lines]
    assert starts == ["test", "method", "teacher", "plain", "response"], "a row goes over several lines"
    assert "5 of 5 trainings to do, about" in err and "4/4 response, seed 1" in err
    assert err.splitlines()[-1] == "report: data/runs/vision-digits/report/index.html"


def test_json_is_the_table_and_the_same_command_again_gives_it_again(vision):
    first, again = (vision("kd", FILE, *SHORT, "--json") for _ in range(2))
    assert first[0] == again[0] == 0
    assert json.loads(first[1]) == json.loads(again[1])
    assert "trainings to do" not in again[2]


def test_the_plan_trains_nothing(vision, tmp_path):
    code, out, err = vision("kd", FILE, *SHORT, "--plan", "--json")
    assert (code, err) == (0, "")
    assert [step["left"] for step in json.loads(out)["steps"]] == [1, 2, 2]
    assert list(tmp_path.iterdir()) == []


def test_the_search_names_its_winner_and_how_to_run_it(vision):
    code, out, err = vision("search", SEARCH, *SHORT, "--set", "search.trials=3", "--set", "search.num_seeds=1")
    assert code == 0
    assert out.startswith("3 trials: 3 finished, 0 pruned, 0 failed")
    assert "\nwinner: trial " in out
    assert err.splitlines()[-1] == "winner: llmdistill vision kd data/runs/vision-digits-search/winner.yaml"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kd", "pipelines/vision/digts.yaml"], "did you mean pipelines/vision/digits.yaml?"),
        (["kd", FILE, "--set", "methods=[{name: respnse}]"], "respnse"),
        (["kd", FILE, "--set", "methods=[{name: plain}, {name: plain}]"], "two methods are called plain"),
        (["kd", FILE, "--set", "protocol.epoch=3"], "did you mean protocol.epochs?"),
        (["kd", SEARCH], "unknown key search"),
        (["search", FILE], "the key search is missing"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(vision, arguments, message):
    code, out, err = vision(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
