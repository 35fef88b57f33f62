"""`llmdistill export`: data on stdout and nothing else, no file lost, every mistake one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llmdistill import cli as cli_module
from tests.runs import answered, finish_stage

PIPELINE = """
name: x
run_dir: run
prompts: {path: p.jsonl, held_out: 0}
teacher: {model: no-such-organisation/no-such-model}
student: {keep_layers: 2}
filter: {judge: null}
"""
RECORDS = [answered(f"질문 {number}?", f"답 {number}\u2028끝") for number in range(3)]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `llmdistill export x.yaml ...` in a folder whose run is curated; gives exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(PIPELINE, "utf-8")
    finish_stage(tmp_path / "run", "filter", [RECORDS])
    finish_stage(tmp_path / "run", "curate", [RECORDS[:2]])

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["llmdistill", "export", "x.yaml", *arguments])
        code = cli_module._exit_code()
        return code, *capsys.readouterr()

    return run


def test_stdout_holds_the_rows_and_stderr_their_number(export):
    code, out, err = export("--to", "-")
    assert (code, err) == (0, "2 rows of curate in the form messages\n")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["messages"][-1]["content"] for row in rows] == [record.reply for record in RECORDS[:2]]


def test_the_suffix_says_which_kind_of_file(export):
    code, out, err = export("--to", "out/a.parquet", "--format", "alpaca", "--stage", "filter")
    assert (code, out) == (0, "")
    assert err == "3 rows of filter in the form alpaca -> out/a.parquet\n"
    assert pq.read_table("out/a.parquet").column("instruction").to_pylist() == [record.question for record in RECORDS]


def test_a_setting_chooses_the_run(export, tmp_path):
    finish_stage(tmp_path / "other", "curate", [RECORDS[2:]])
    assert export("--to", "-", "--set", "run_dir=other")[1].count("\n") == 1


def test_a_file_is_written_over_only_with_force(export):
    Path("a.jsonl").write_text("old", "utf-8")
    code, _, err = export("--to", "a.jsonl")
    assert code == 2 and err == "error: a.jsonl: this file exists already -> choose another name, or add --force\n"
    assert Path("a.jsonl").read_text("utf-8") == "old"
    assert export("--to", "a.jsonl", "--force")[0] == 0
    assert len(Path("a.jsonl").read_text("utf-8").splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--to'"),
        (["--to", "a.csv"], "a.csv: unknown kind of file -> end its name in .jsonl or .parquet"),
        (["--to", "-", "--format", "csv"], "there are messages, prompt-completion, alpaca, sharegpt"),
        (["--to", "-", "--stage", "train"], "there are generate, filter, curate"),
        (["--to", "-", "--set", "nam=x"], "did you mean name?"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(export, tmp_path, arguments, message):
    before = sorted(tmp_path.iterdir())
    code, out, err = export(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert sorted(tmp_path.iterdir()) == before


def test_a_stage_that_is_not_finished_names_the_command(export):
    code, out, err = export("--to", "-", "--stage", "generate")
    assert (code, out) == (1, "")
    assert "generate is not finished yet -> run llmdistill generate first" in err


def test_alpaca_names_how_many_do_not_fit_before_anything_is_written(export, tmp_path):
    system = [{"role": "system", "content": "Be brief."}]
    finish_stage(tmp_path / "chat", "curate", [[replace(RECORDS[0], prompt=[*system, *RECORDS[0].prompt]), RECORDS[1]]])
    code, _, err = export("--to", "a.jsonl", "--format", "alpaca", "--set", "run_dir=chat")
    assert code == 2 and "1 of the records" in err and "--format messages" in err
    assert not Path("a.jsonl").exists()
