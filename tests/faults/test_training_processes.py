"""Several processes train, and the one that started them, or one of them, is stopped: none is left, nothing is lost."""

from __future__ import annotations

import shutil
import signal
from contextlib import suppress
from typing import Any

import numpy as np
import psutil
from safetensors.numpy import load_file

from tests.faults.conftest import Process, Run, wait_until
from tests.faults.same import assert_same, plain

TWO = "train.num_processes=2"


def before_training(run: Run) -> Run:
    for name in ("train", "evaluate", "report"):
        shutil.rmtree(run.dir / name)
    return run


def started(run: Run) -> tuple[Process, list[psutil.Process]]:
    """The command, and the processes that train, or are about to."""
    process = run.start("train", TWO)
    command = psutil.Process(process.pid)
    wait_until(lambda: len(command.children(recursive=True)) == 2)
    return process, command.children(recursive=True)


def suspended(run: Run, until: int) -> tuple[Process, list[psutil.Process]]:
    """The same in the middle of training: the second process stands still after the checkpoint `until`."""
    process, training = started(run)
    checkpoint = run.dir / "train" / "checkpoints" / f"checkpoint-{until}" / "complete.json"
    wait_until(checkpoint.exists, timeout=120)
    training[1].suspend()
    assert not (run.dir / "train" / "student").exists()
    return process, training


def assert_gone(training: list[psutil.Process]) -> None:
    def gone(process: psutil.Process) -> bool:
        with suppress(psutil.NoSuchProcess):
            return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        return True

    for process in training:
        wait_until(lambda process=process: gone(process))


def assert_same_training(run: Run, wanted: Run) -> None:
    """Losses, and weights to 1e-5 of their size.

    A single weight may differ more, because Adam makes a step of a gradient that is 0 but for rounding.
    """
    made, expected = (plain(it.manifest("train")) for it in (run, wanted))
    for key in ("counts", "metrics"):
        assert_same(made[key], expected[key], key)
    weights, others = (load_file(it.dir / "train" / "student" / "model.safetensors") for it in (run, wanted))
    for name, tensor in others.items():
        assert np.linalg.norm(weights[name] - tensor) <= 1e-5 * np.linalg.norm(tensor), name
    assert not (run.dir / "train" / "working").exists()


def test_killed_with_the_command_twice_in_the_middle_they_leave_nobody_and_end_where_one_process_does(
    finished: Run, undisturbed: Run
) -> None:
    run = before_training(finished)
    for until in (2, 6):
        process, training = suspended(run, until)
        process.send(signal.SIGKILL)
        process.wait()
        training[1].resume()
        assert_gone(training)
    result: Any = run.do("train", failpoint="train.after_step:7").ok()
    assert "is passed over" not in result.stderr
    assert_same_training(run, undisturbed)


def test_a_signal_to_the_command_ends_them(finished: Run) -> None:
    run = before_training(finished)
    process, training = started(run)
    process.send(signal.SIGINT)
    result = process.wait()
    assert (result.code, result.error) == (130, "error: stopped by signal 2")
    assert_gone(training)


def test_one_that_is_killed_is_told_in_one_line_and_the_others_end(finished: Run) -> None:
    run = before_training(finished)
    process, training = started(run)
    training[1].kill()
    result = process.wait()
    assert result.code == 1
    assert result.error.startswith("error: process 1 of 2 was ended by signal 9 -> if memory has run out")
    assert_gone(training)
