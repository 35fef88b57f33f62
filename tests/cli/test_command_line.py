"""The command line: exit codes, what goes to stdout and what to stderr, one line for a mistake, quick help."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

import llmdistill.cli as cli_module
from llmdistill import errors
from llmdistill.cli.inspect import printable
from llmdistill.run.lock import locked
from tests.runs import answered, finish_stage
from tests.tiny import REPO

COMMANDS = [
    *("run", "generate", "filter", "curate", "signals", "train", "evaluate", "report"),
    *("refresh", "schedule"),
    *("plan", "calibrate", "ablate", "inspect", "export", "doctor", "init", "vision"),
]
PIPELINE = """
name: x
run_dir: run
prompts: {path: p.jsonl, held_out: 0}
teacher: {model: no-such-organisation/no-such-model}
student: {keep_layers: 2}
generate: {template: prompts/en/answer.yaml}
filter: {judge: null}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a pipeline, its prompts and a finished filter stage."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(PIPELINE)
    (tmp_path / "p.jsonl").write_text('{"prompt": "한글 질문"}\n{"prompt": "second"}\n')
    hostile = "red \x1b[31m bell \x07 <b>bold</b> [red]markup[/red]"
    records = [answered(f"질문 {number}", f"{hostile} 답 {number}", score=float(number)) for number in range(1, 6)]
    finish_stage(tmp_path / "run", "prompts", [], held_out=[])
    finish_stage(tmp_path / "run", "filter", [records])
    return tmp_path


@pytest.fixture
def llmdistill(monkeypatch, capsys):
    """Run a command in this process; gives (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["llmdistill", *map(str, arguments)])
        code = cli_module._exit_code()
        return code, *capsys.readouterr()

    return run


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPO), "COLUMNS": "120", **more}


class TestHelp:
    def test_help_imports_nothing_heavy(self):
        code = (
            "import sys; sys.argv = ['llmdistill', '--help']; import llmdistill.cli as c; c._exit_code();"
            "print(sorted(m for m in sys.modules if '.' not in m), file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
        )
        heavy = {"torch", "transformers", "datasets", "pyarrow", "sklearn", "numpy", "pydantic", "matplotlib", "trl"}
        assert heavy & set(eval(done.stderr)) == set()

    def test_help_answers_quickly(self):
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "llmdistill", "--help"], env=environment(), capture_output=True, check=True
            )
            seconds.append(time.perf_counter() - started)
        assert min(seconds) < 1.0, seconds

    def test_help_names_every_command(self, llmdistill):
        code, out, err = llmdistill("--help")
        assert (code, err) == (0, "")
        listed = [line.split()[0] for line in out.partition("Commands:")[2].splitlines() if line.strip()]
        assert listed == COMMANDS

    def test_no_command_at_all_shows_the_help(self, llmdistill):
        assert llmdistill() == llmdistill("--help")

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_explains_itself_within_twelve_flags(self, llmdistill, command):
        code, out, err = llmdistill(command, "--help")
        assert (code, err) == (0, "")
        assert f"Usage: llmdistill {command}" in out
        options = [line.split()[0] for line in out.splitlines() if line.strip().startswith("--")]
        assert len(options) <= 12
        assert out.partition("\n\n")[2].strip()


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["plan", "x.yaml", "--frsh"], "No such option: --frsh"),
            (["run", "x.yaml", "--set"], "requires an argument"),
            (["runn", "x.yaml"], "No such command 'runn'"),
            (["run"], "Missing argument 'PIPELINE'"),
            (["run", "x.yaml", "y.yaml"], "unexpected extra argument"),
            (["inspect", "x.yaml", "--sample", "many"], "Invalid value for '--sample'"),
            (["inspect", "x.yaml", "--sample", "0"], "Invalid value for '--sample'"),
            (["inspect", "x.yaml", "--stage", "fliter"], "there are prompts, generate, filter, curate"),
            (["inspect", "x.yaml", "--stage", "filter", "--where", "score"], "a condition is written field<value"),
            (["plan", "y.yaml"], "y.yaml: there is no such pipeline file -> did you mean x.yaml?"),
            (["plan", "x" * 300], "cannot be opened"),
            (["plan", "x.yaml", "--set", "train.epoch=3"], "did you mean train.epochs?"),
            (["plan", "x.yaml", "--set", "prompts.path=q.jsonl"], "q.jsonl: there is no such prompts file"),
            (
                ["plan", "x.yaml", "--set", "generate.template=prompts/en/anser.yaml"],
                "did you mean prompts/en/answer.yaml?",
            ),
            (["generate", "x.yaml"], "no-such-organisation/no-such-model: unknown model"),
            (["run", "x.yaml"], "no-such-organisation/no-such-model: unknown model"),
            (["run", "x.yaml", "--set", "teacher.model=."], "this directory holds no model"),
            (["init", "x.yaml"], "x.yaml: this file exists already"),
            (["init", "z.yaml", "--language", "fr"], "there are en and ko"),
        ],
        ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
    )
    def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(self, folder, llmdistill, arguments, message):
        code, out, err = llmdistill(*arguments)
        last = err.strip().splitlines()[-1]
        assert (code, out) == (2, "")
        assert last.startswith("error: ") and message in last
        assert "Traceback" not in err

    @pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"{}\n{}\n", b'{"prompt": " "}'], ids=repr)
    @pytest.mark.parametrize("command", ["plan", "generate", "run"])
    def test_zero_usable_prompts_is_exit_code_2_and_names_the_file(self, folder, llmdistill, command, content):
        (folder / "p.jsonl").write_bytes(content)
        code, out, err = llmdistill(command, "x.yaml")
        assert (code, out) == (2, "")
        assert err.startswith("error: p.jsonl: no usable prompt") and err.count("\n") == 1

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_file_without_permission_is_one_line(self, folder, llmdistill):
        (folder / "p.jsonl").chmod(0)
        code, _, err = llmdistill("plan", "x.yaml")
        assert code == 1 and err.startswith("error: p.jsonl: Permission denied")


EXIT_CODES = {
    errors.UsageError("x"): 2,
    errors.ConfigError("x"): 2,
    errors.InputError("x"): 2,
    errors.ModelError("x"): 2,
    errors.ChangedError("x"): 2,
    errors.MissingExtraError("x"): 2,
    errors.LlmdistillError("x"): 1,
    errors.StageError("x"): 1,
    errors.AccountingError("x"): 1,
    errors.DamagedError("x"): 1,
    errors.ServerError("x"): 1,
    errors.BudgetError("x"): 4,
    errors.NotPromotedError("x"): 5,
    errors.TryLaterError("x"): 75,
    errors.DiskError("x"): 1,
    errors.RejectsError("x"): 3,
    errors.BusyError("x"): 75,
    errors.Interrupted(2): 130,
    errors.Interrupted(15): 143,
    FileNotFoundError(2, "No such file or directory", "gone"): 1,
}


class TestExitCodes:
    @pytest.mark.parametrize("error", EXIT_CODES, ids=lambda error: type(error).__name__)
    def test_each_error_has_its_code_and_no_traceback(self, llmdistill, monkeypatch, error):
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(cli_module, "app", fail)
        code, out, err = llmdistill("run")
        assert (code, out) == (EXIT_CODES[error], "")
        assert "Traceback" not in err

    def test_the_table_names_every_error_there_is(self):
        def tree(kind: type) -> set[type]:
            return {kind}.union(*map(tree, kind.__subclasses__()))

        there_are = {kind for kind in tree(errors.LlmdistillError) if kind.__module__ == errors.__name__}
        assert there_are == {type(error) for error in EXIT_CODES if isinstance(error, errors.LlmdistillError)}

    def test_a_mistake_in_the_program_keeps_its_traceback(self, llmdistill, monkeypatch):
        monkeypatch.setattr(cli_module, "app", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            llmdistill("run")

    def test_what_exits_0_and_3_and_75_really_does(self, folder, llmdistill):
        assert llmdistill("curate", "x.yaml")[0] == 0
        finish_stage(folder / "empty", "prompts", [], held_out=[])
        finish_stage(folder / "empty", "filter", [[]])
        code, _, err = llmdistill("curate", "x.yaml", "--set", "run_dir=empty")
        assert code == 3 and "filter kept no record" in err
        with locked(folder / "run"):
            code, _, err = llmdistill("curate", "x.yaml")
        assert code == 75 and f"process {os.getpid()} is working on this run" in err

    def test_a_damaged_shard_is_exit_code_1_and_names_the_file(self, folder, llmdistill):
        (folder / "run/filter/part-00000.parquet").write_bytes(b"PAR1 not really")
        code, _, err = llmdistill("inspect", "x.yaml", "--stage", "filter")
        assert code == 1 and "part-00000.parquet: not readable as Parquet" in err

    def test_an_error_keeps_to_one_line_whatever_is_in_it(self):
        error = errors.InputError("first\nsecond", where="a\nb", do="c\r\nd")
        assert str(error) == "a b: first second -> c d"


class TestStreams:
    def test_json_is_all_of_stdout_and_parses(self, folder, llmdistill):
        for arguments in (["inspect", "x.yaml", "--stage", "filter"], ["curate", "x.yaml"]):
            code, out, err = llmdistill(*arguments, "--json")
            assert code == 0 and json.loads(out) and err
        assert "질문" in llmdistill("inspect", "x.yaml", "--stage", "filter", "--json")[1]

    def test_plan_and_doctor_print_json_that_parses(self, folder, llmdistill):
        code, out, _ = llmdistill("plan", "x.yaml", "--json")
        assert code == 0 and [step["stage"] for step in json.loads(out)["steps"]][0] == "prompts"
        code, out, _ = llmdistill("doctor", "--json")
        assert {"what", "ok", "found"} == set(json.loads(out)[0])

    def test_tables_go_to_stdout_and_notices_to_stderr(self, folder, llmdistill):
        code, out, err = llmdistill("inspect", "x.yaml", "--stage", "filter", "--where", "score>=4")
        assert code == 0
        assert err == "2 of 2 records of filter\n"
        assert "질문 5" in out and "질문 3" not in out

    def test_plan_shows_every_stage_and_notes(self, folder, llmdistill):
        code, out, err = llmdistill("plan", "x.yaml")
        assert (code, err) == (0, "")
        for word in ("prompts", "generate", "filter", "curate", "train", "evaluate", "report", "nothing is held out"):
            assert word in out

    def test_text_of_a_model_cannot_drive_the_terminal_or_mark_up_the_page(self, folder, llmdistill):
        for extra in ([], ["--side-by-side"]):
            _, out, _ = llmdistill("inspect", "x.yaml", "--stage", "filter", *extra)
            assert "\x1b" not in out and "\x07" not in out
            assert "[red]markup[/red]" in " ".join(out.split())

    def test_control_characters_go_and_text_of_any_script_stays(self):
        assert printable("a\x1b[2Jb\x00\x9b\u202e한글\u3000é\n\t🍎") == "a[2Jb한글\u3000é\n\t🍎"

    @pytest.mark.parametrize("extra", [["--json"], []], ids=["json", "table"])
    def test_a_broken_pipe_is_quiet(self, folder, extra):
        records = [answered(f"Question {number} " + "x" * 2000, "y" * 2000) for number in range(300)]
        finish_stage(folder / "big", "filter", [records])
        command = [sys.executable, "-m", "llmdistill", "inspect", "x.yaml", "--stage", "filter", "--sample", "300"]
        process = subprocess.Popen(
            [*command, "--set", "run_dir=big", *extra],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read().decode() == "300 of 300 records of filter\n"
        assert process.wait(60) == 0

    @pytest.mark.parametrize(("more", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)], ids=["plain", "NO_COLOR"])
    def test_no_color_is_respected_on_a_terminal(self, folder, more, coloured):
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "llmdistill", "inspect", "x.yaml", "--stage", "filter"]
        inherited = {key: value for key, value in environment().items() if key not in ("NO_COLOR", "FORCE_COLOR")}
        process = subprocess.Popen(
            command, env={**inherited, "TERM": "xterm-256color", **more}, stdout=theirs, stderr=subprocess.DEVNULL
        )
        os.close(theirs)
        shown = read_all(ours)
        assert process.wait(60) == 0
        assert "질문" in shown
        assert ("\x1b[92m" in shown or "\x1b[32m" in shown) == coloured


def read_all(handle: int) -> str:
    """Everything a terminal is sent until its process ends."""
    pieces = []
    while True:
        try:
            piece = os.read(handle, 65536)
        except OSError:
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(handle)
    return b"".join(pieces).decode()


def test_the_installed_command_and_the_module_are_the_same(tmp_path: Path):
    outputs = {
        subprocess.run(command, env=environment(), capture_output=True, text=True, check=True, cwd=tmp_path).stdout
        for command in (
            [sys.executable, "-m", "llmdistill", "--help"],
            [
                sys.executable,
                "-c",
                "import sys; sys.argv[0] = 'llmdistill'; import llmdistill.cli as c; c.main()",
                "--help",
            ],
        )
    }
    assert len(outputs) == 1
