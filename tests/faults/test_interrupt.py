"""Signals, and two processes on one run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.faults.conftest import STAGES, Run, wait_until
from tests.faults.same import assert_same_results
from tests.tiny import REPO

WORKING = {
    "generate": lambda run: len(run.answers()) > 4,
    "filter": lambda run: any(" score " in line for line in run.answers()),
    "train": lambda run: any((run.dir / "train").glob("checkpoints/checkpoint-*")),
    "evaluate": lambda run: any(" write-12 " in line for line in run.answers()),
}
"""When a stage is in the middle of its work."""


def without(run: Run, stage: str) -> Run:
    """The run as it was before a stage."""
    for name in STAGES[STAGES.index(stage) :]:
        subprocess.run(["rm", "-rf", run.dir / name], check=True)
    return run


SIGNALS = [*((stage, signal.SIGINT) for stage in WORKING), ("generate", signal.SIGTERM), ("train", signal.SIGTERM)]


@pytest.mark.parametrize(("stage", "number"), SIGNALS)
def test_a_signal_stops_in_order_and_the_same_command_goes_on(
    finished: Run, undisturbed: Run, stage: str, number: int
) -> None:
    run = without(finished, stage)
    process = run.start(stage)
    wait_until(lambda: WORKING[stage](run))
    process.send(number)
    started = time.monotonic()
    result = process.wait()
    assert time.monotonic() - started < 10
    assert (result.code, result.error) == (128 + number, f"error: stopped by signal {int(number)}")
    assert result.stderr.splitlines()[-1].startswith(f"to go on: llmdistill {stage} {run.pipeline}")
    run.do(stage).ok()
    assert_same_results(run, undisturbed, (stage,))


def test_a_second_signal_ends_the_process_at_once_and_costs_nothing_that_is_on_disk(
    new_run: Run, undisturbed: Run
) -> None:
    process = new_run.start("generate")
    wait_until(lambda: len(new_run.answers()) > 4)
    process.send(signal.SIGINT)
    process.send(signal.SIGINT)
    assert process.wait().code == 130
    on_disk = {row["key"] for row in new_run.journal("generate").values()}
    num_before = len(new_run.answers())
    new_run.do("generate").ok()
    assert not on_disk & {line.split()[-1] for line in new_run.answers()[num_before:]}
    assert_same_results(new_run, undisturbed, ("generate",))


@pytest.mark.parametrize("seconds", [2.0, 4.5])
def test_a_signal_in_the_middle_of_imports_is_no_traceback(new_run: Run, seconds: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "llmdistill", "train", new_run.pipeline, "--set", f"run_dir={new_run.dir}"],
        env={**os.environ, "PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1"},
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert "Traceback" not in stderr
    assert process.returncode == 130 or "curate is not finished" in stderr


def test_a_second_process_on_the_run_is_refused_at_once_naming_the_first(new_run: Run) -> None:
    first = new_run.start("run")
    wait_until(lambda: (new_run.dir / ".lock").exists() and (new_run.dir / ".lock").read_text() == str(first.pid))
    first.send(signal.SIGSTOP)
    started = time.monotonic()
    second = new_run.do("run")
    assert time.monotonic() - started < 5
    assert second.code == 75
    assert f"process {first.pid} is working on this run" in second.error
    first.send(signal.SIGKILL)
    assert first.wait().code == -9
    assert new_run.do("generate").ok()


def test_of_eight_processes_started_at_once_one_works_and_none_fails_otherwise(new_run: Run, undisturbed: Run) -> None:
    results = [process.wait() for process in [new_run.start("generate") for _ in range(8)]]
    assert {result.code for result in results} <= {0, 75}
    assert sum(result.code == 0 for result in results) >= 1
    assert_same_results(new_run, undisturbed, ("generate",))
    assert len(new_run.answers()) == len(set(new_run.answers()))
