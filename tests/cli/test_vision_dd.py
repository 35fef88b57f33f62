"""`llmdistill vision dd` at the terminal: a table that fits, JSON for programs, one line for a mistake."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.cli.test_vision import vision  # noqa: F401
from tests.vision.dd.runs import settings

FILE = "pipelines/vision/digits-dd.yaml"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "파일.yaml"
    across = [{"arch": "convnet", "width": 4, "depth": 1}]
    values = settings(tmp_path / "실행", baselines=True, fairness=True, across=across, seeds=[0])
    path.write_text(yaml.safe_dump(values, allow_unicode=True), "utf-8")
    return str(path)


def test_the_table_fits_80_columns_and_progress_goes_to_stderr(vision, file, tmp_path):  # noqa: F811
    code, out, err = vision("dd", file)
    assert code == 0, err
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    methods = ["random", "class_mean", "herding", "k_means", "dm", "dc"]
    starts = [line.split()[0] for line in lines if line]
    assert starts[starts.index("method") :] == ["method", *methods, "full", "method", *methods]
    assert "7 of 7 sets to do, about" in err and "6/6 dc, 1 image a class, seed 0: test" in err
    assert err.splitlines()[-1] == f"report: {tmp_path / '실행' / 'report' / 'index.html'}"
    again = vision("dd", file, "--json")
    table = json.loads(again[1])
    assert again[0] == 0 and "sets to do" not in again[2]
    assert [row["method"] for row in table["fairness"]] == methods
    assert all(0 <= row["ars"] <= 1 for row in table["fairness"])


def test_the_plan_makes_nothing(vision, file, tmp_path):  # noqa: F811
    code, out, err = vision("dd", file, "--plan", "--json", "--set", "baselines=false")
    assert (code, err) == (0, "")
    assert [(step["name"], step["left"]) for step in json.loads(out)["steps"]] == [("dm, 1", 1), ("dc, 1", 1)]
    assert [path.name for path in tmp_path.iterdir()] == ["파일.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pipelines/vision/digts-dd.yaml"], "did you mean pipelines/vision/digits-dd.yaml?"),
        ([FILE, "--set", "methods=[{name: dmm}]"], "dmm"),
        ([FILE, "--set", "ipc=[0]"], "ipc is 0"),
        ([FILE, "--set", "ipc=[1000]"], "fewer than 1000"),
        ([FILE, "--set", "methods=[{name: random, preset: ci}]"], "random has no preset ci"),
        ([FILE, "--set", "evaluation.epoch=3"], "did you mean evaluation.epochs?"),
        ([FILE, "--set", "data.path=없는.npz"], "없는.npz: there is no such file"),
        (["pipelines/vision/digits.yaml"], "plain"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(vision, arguments, message):  # noqa: F811
    code, out, err = vision("dd", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
