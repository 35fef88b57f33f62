"""The crontab line: read as cron reads it, installed once, nothing else of the table touched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import pytest

from llmdistill.errors import ConfigError, StageError, UsageError
from llmdistill.schedule import crontab
from tests.schedule.jobs import HOSTILE, job

PROGRAM = """#!/bin/sh
case "$1" in
  -l) [ -e "$TABLE" ] || { echo "no crontab for nobody" >&2; exit 1; }; cat "$TABLE" ;;
  -) cat > "$TABLE.new"; if grep -q refused "$TABLE.new"; then echo "bad minute" >&2; exit 1; fi
     mv "$TABLE.new" "$TABLE" ;;
esac
"""


@pytest.fixture
def table(tmp_path, monkeypatch):
    """The user's crontab, kept by a program of that name."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "crontab").write_text(PROGRAM)
    (programs / "crontab").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("TABLE", str(tmp_path / "table"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "table"


def as_cron_runs(line: str) -> subprocess.CompletedProcess[str]:
    """Five fields, then a command for /bin/sh in which `\\%` is a per cent sign and `%` would end it."""
    command = line.split(" ", 5)[5]
    assert "%" not in command.replace("\\%", "")
    bare = {"PATH": "/usr/bin:/bin", "HOME": os.environ["HOME"], "SHELL": "/bin/sh"}
    command = command.replace("\\%", "%")
    return subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False, env=bare)


def test_the_line_runs_the_refresh_whatever_the_paths_hold(tmp_path, monkeypatch):
    folder = tmp_path / HOSTILE.replace("/", "")
    folder.mkdir()
    python = folder / "py thon"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$PWD" "$KEY" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    (folder / "config" / "llmdistill").mkdir(parents=True)
    (folder / "config" / "llmdistill" / "environment").write_text("KEY=from-the-file\n")
    unit = job(folder, file=HOSTILE)
    done = as_cron_runs(crontab.line(unit))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    said = unit.log_path.read_text().splitlines()
    assert said == [str(folder), "from-the-file", "-m", "llmdistill", "refresh", HOSTILE]


def test_without_a_file_of_keys_it_runs_as_well_and_gives_the_exit_code_on(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 5\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    assert as_cron_runs(crontab.line(job(tmp_path))).returncode == 5


def test_installing_twice_is_installing_once(tmp_path, table):
    before = "# mine\n0 1 * * * true 100\\%\n"
    table.write_text(before)
    assert crontab.install(job(tmp_path)) is True
    assert crontab.install(job(tmp_path)) is False
    assert table.read_text() == before + crontab.block(job(tmp_path))


def test_another_time_takes_the_place_of_the_first_and_other_lines_stay(tmp_path, table):
    table.write_text("MAILTO=me")
    crontab.install(job(tmp_path))
    table.write_text(table.read_text() + "5 5 * * * after\n")
    crontab.install(job(tmp_path, "30 4 * * 2"))
    assert table.read_text() == "MAILTO=me\n" + crontab.block(job(tmp_path, "30 4 * * 2")) + "5 5 * * * after\n"


def test_two_pipelines_stand_beside_each_other(tmp_path, table):
    for file in ("a.yaml", "b.yaml", "a.yaml"):
        crontab.install(job(tmp_path, file=file))
    assert table.read_text() == "".join(crontab.block(job(tmp_path, file=file)) for file in ("a.yaml", "b.yaml"))


def test_a_comment_that_was_removed_is_not_guessed(tmp_path, table):
    crontab.install(job(tmp_path))
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UsageError, match="no longer a pair"):
        crontab.install(job(tmp_path))


def test_a_table_that_cannot_be_read_is_not_overwritten(tmp_path, table):
    table.mkdir()
    with pytest.raises(StageError, match="crontab -l fails"):
        crontab.install(job(tmp_path))


def test_what_crontab_refuses_is_said_in_its_words(tmp_path, table):
    with pytest.raises(StageError, match="bad minute"):
        crontab.install(job(tmp_path, file="refused.yaml"))


def test_without_the_program_one_line_says_what_else_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="no crontab program.*--as systemd"):
        crontab.install(job(tmp_path))


def test_a_command_that_cron_would_cut_off_is_refused(tmp_path):
    with pytest.raises(UsageError, match="longer than"):
        crontab.line(job(tmp_path, file="x" * 900))


def test_a_backslash_is_refused(tmp_path):
    with pytest.raises(UsageError, match="backslash"):
        crontab.line(job(tmp_path, file="a\\b.yaml"))


@pytest.fixture
def in_utc():
    """This machine's clock shows UTC."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    yield
    del os.environ["TZ"]
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


def test_a_time_zone_that_is_not_this_machine_s_is_refused(tmp_path, in_utc):
    with pytest.raises(ConfigError, match="schedule.timezone"):
        crontab.line(job(tmp_path, timezone="Asia/Seoul"))
    assert crontab.line(job(tmp_path, timezone="Africa/Abidjan")).startswith("0 3 * * 1 cd ")
