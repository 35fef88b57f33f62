"""`llmdistill inspect` on what curation decided: copies side by side at 80 columns, and why a record was dropped."""

from __future__ import annotations

import json

import pytest
from rich.cells import cell_len

import llmdistill.cli as cli_module
from tests.cli.test_command_line import PIPELINE
from tests.decided import KOREAN, decided


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "x.yaml").write_text(PIPELINE)
    return decided(tmp_path / "run")


@pytest.fixture
def inspect(made, monkeypatch, capsys):
    """Run the command in this process; gives (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["llmdistill", "inspect", "x.yaml", *arguments])
        code = cli_module._exit_code()
        return code, *capsys.readouterr()

    return run


def test_copies_stand_beside_what_they_equal_within_80_columns(made, inspect):
    code, out, err = inspect("--duplicates")
    assert code == 0 and err == "3 of 3 groups of copies\n"
    assert {cell_len(line) for line in out.splitlines()} == {80}
    for copy, original, reason, similarity in made.copies:
        assert copy.id in out and original.id in out and f"{reason} {similarity:.2f}" in out
    left = "".join(line.split("│")[1].strip() for line in out.splitlines() if line.count("│") == 3)
    assert "".join(KOREAN[0].split()) in "".join(left.split())


def test_duplicates_as_json_hold_every_copy_whole(made, inspect):
    code, out, _ = inspect("--duplicates", "--json", "--sample", "1", "--where", "similarity<0.8")
    (group,) = json.loads(out)
    assert code == 0 and group["kept"]["question"] == KOREAN[0] and group["num_copies"] == len(group["copies"]) == 2


def test_other_stages_have_no_copies(inspect):
    code, _, err = inspect("--duplicates", "--stage", "filter")
    assert code == 2 and "only curate drops copies" in err


def test_the_span_of_a_contaminated_record_is_shown_whole(made, inspect):
    code, out, _ = inspect("--rejects", "--where", "reject.reason=contaminated")
    assert code == 0 and "'ducks lay 16 eggs per day'" in " ".join(out.split())


def test_an_id_is_explained_in_words_and_as_json(made, inspect):
    copy, original, _, _ = made.copies[0]
    code, out, _ = inspect("--id", copy.id[:10])
    assert code == 0 and "dropped by curate: near_duplicate" in out and f"copy of: {original.id} (0.910)" in out
    code, out, _ = inspect("--id", copy.id, "--json")
    assert code == 0 and json.loads(out)["duplicate_of"] == original.id


def test_an_ambiguous_or_unknown_id_is_one_line(inspect):
    for prefix in ("", "zz"):
        code, out, err = inspect("--id", prefix)
        assert code == 2 and out == "" and err.count("\n") == 1


def test_text_of_others_cannot_drive_the_terminal(tmp_path, monkeypatch, inspect):
    monkeypatch.setattr("tests.decided.ENGLISH", ["red \x1b[31m bell \x07 [red]markup[/red]"] * 2 + ["x"] * 38)
    decided(tmp_path / "hostile")
    _, out, _ = inspect("--duplicates", "--set", "run_dir=hostile")
    assert "\x1b" not in out and "\x07" not in out and "[red]markup[/red]" in "".join(out.split("\n"))
