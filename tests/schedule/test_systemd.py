"""The systemd units: accepted by systemd's own checker, whatever the paths hold; no key in them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmdistill.errors import UsageError
from llmdistill.schedule import systemd
from tests.schedule.jobs import HOSTILE, job

verified = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


@pytest.fixture(autouse=True)
def _config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def verify(paths: list[Path], runtime: Path) -> str:
    """What `systemd-analyze verify` has against the units."""
    runtime.mkdir(mode=0o700, exist_ok=True)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
    command = ["systemd-analyze", "verify", "--user", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    mine = [line for line in done.stderr.splitlines() if "llmdistill" in line]  # it names faults of others' units too
    return "\n".join(mine) if mine or not done.returncode else done.stderr


def settings(text: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


@verified
@pytest.mark.parametrize("timezone", [None, "Asia/Seoul"], ids=str)
@pytest.mark.parametrize("cron", ["0 3 * * 1", "*/5 1-3 1,15 * mon-fri", "0 0 29 2 *"])
def test_systemd_accepts_the_units(tmp_path, cron, timezone):
    paths = systemd.install(job(tmp_path, cron, timezone=timezone))
    assert [path.parent for path in paths] == [tmp_path / "config" / "systemd" / "user"] * 2
    assert verify(paths, tmp_path / "runtime") == ""


@verified
def test_a_fault_in_a_unit_would_be_seen(tmp_path):
    paths = systemd.install(job(tmp_path))
    paths[0].write_text(paths[0].read_text().replace("Type=oneshot", "Type=onshot"))
    assert "onshot" in verify(paths, tmp_path / "runtime")


@verified
def test_paths_with_spaces_hangul_percent_signs_and_quotes_survive(tmp_path, monkeypatch):
    folder = tmp_path / HOSTILE.replace("/", "")
    folder.mkdir()
    python = folder.parent / "py 한 50% $x"
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    unit = job(folder, file=HOSTILE)
    paths = systemd.install(unit)
    assert verify(paths, tmp_path / "runtime") == ""  # it looks whether the program is there
    python.unlink()
    assert "is not executable" in verify(paths, tmp_path / "runtime")
    assert settings(paths[0].read_text(), "WorkingDirectory") == [str(folder).replace("%", "%%")]


@verified
def test_an_interpreter_with_quotes_in_its_path_is_started_by_the_shell(tmp_path, monkeypatch):
    python = tmp_path / "py \"th' on"
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    paths = systemd.install(job(tmp_path))
    assert verify(paths, tmp_path / "runtime") == ""
    (command,) = settings(paths[0].read_text(), "ExecStart")
    assert command.startswith(':"/bin/sh" "-c" "exec \\"$0\\" \\"$@\\"" ')


@pytest.mark.parametrize("name", ["ends with a blank ", "ends with a backslash\\"])
def test_a_folder_that_a_unit_cannot_name_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="rename it"):
        systemd.service(job(tmp_path / name))


def test_the_service_runs_this_interpreter_once_at_a_time_and_missed_runs_are_caught_up(tmp_path):
    unit, timer = systemd.service(job(tmp_path)), systemd.timer(job(tmp_path))
    (command,) = settings(unit, "ExecStart")
    assert command == f':"{os.path.abspath(sys.executable)}" "-m" "llmdistill" "refresh" "x.yaml"'
    assert settings(unit, "Type") == ["oneshot"] and settings(timer, "Persistent") == ["true"]


def test_only_what_comes_again_later_is_started_again_and_a_refused_promotion_is_seen(tmp_path):
    unit = systemd.service(job(tmp_path))
    (prevented,) = settings(unit, "RestartPreventExitStatus")
    assert {"1", "2", "3", "4", "5", "SIGKILL"} <= set(prevented.split()) and "75" not in prevented.split()
    assert settings(unit, "Restart") == ["on-failure"] and settings(unit, "SuccessExitStatus") == ["143"]


def test_keys_come_from_a_file_that_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-abc1234567890abcdefghijklmnop")
    unit = systemd.service(job(tmp_path))
    assert settings(unit, "EnvironmentFile") == [f"-{tmp_path}/config/llmdistill/environment"]
    assert "sk-abc" not in unit


def test_two_projects_with_one_name_have_units_of_their_own(tmp_path):
    assert len({job(tmp_path / name, file=file).label for name in "ab" for file in ("x.yaml", "y.yaml")}) == 4
    assert job(tmp_path).label == job(tmp_path).label
