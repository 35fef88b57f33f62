"""One process at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmdistill.errors import BusyError, DiskError
from llmdistill.run.lock import locked
from tests.tiny import REPO

HOLD = """
import sys
from pathlib import Path
from llmdistill.run.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_told_who_holds_the_run(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    with pytest.raises(BusyError, match=rf"process {holder.pid} is working on this run") as refused, locked(tmp_path):
        pass
    assert refused.value.exit_code == 75
    holder.communicate("")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None])
def test_the_lock_is_free_when_its_holder_is_gone_however_it_went(tmp_path: Path, how: int | None) -> None:
    holder = hold(tmp_path)
    if how is None:
        holder.stdin.close()
    else:
        holder.send_signal(how)
    holder.wait(10)
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_shorter_pid_does_not_leave_digits_of_a_longer_one(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("99999999999999")
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    with locked(tmp_path):
        pass


def test_two_runs_do_not_lock_each_other(tmp_path: Path) -> None:
    with locked(tmp_path / "one"), locked(tmp_path / "two"):
        pass


def test_a_file_in_place_of_the_run_directory_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(DiskError, match="a file stands where a directory is needed"), locked(tmp_path / "run"):
        pass
