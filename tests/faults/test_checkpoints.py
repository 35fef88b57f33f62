"""Training goes on from the newest checkpoint that is whole, and ends where it would have ended."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Run
from tests.faults.same import assert_same_results

NUM_STEPS = 12


@pytest.fixture(scope="module")
def killed_at_seven(undisturbed: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training killed after step 7, with whole checkpoints of steps 4 and 6."""
    run = before_training(undisturbed.copy(tmp_path_factory.mktemp("killed")))
    assert run.do("train", failpoint="train.after_step:7").code == 137
    assert sorted(path.name for path in (run.dir / "train" / "checkpoints").iterdir()) == [
        "checkpoint-4",
        "checkpoint-6",
    ]
    return run


def before_training(run: Run) -> Run:
    for name in ("train", "evaluate", "report"):
        shutil.rmtree(run.dir / name)
    return run


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit of the weights": lambda checkpoint: flip(checkpoint / "model.safetensors"),
    "a bit of the optimiser": lambda checkpoint: flip(checkpoint / "optimizer.pt"),
    "the weights are cut": lambda checkpoint: (checkpoint / "model.safetensors").write_bytes(b"half"),
    "a file is missing": lambda checkpoint: (checkpoint / "scheduler.pt").unlink(),
    "half saved": lambda checkpoint: (checkpoint / "complete.json").unlink(),
    "the list of hashes is torn": lambda checkpoint: (checkpoint / "complete.json").write_text('{"model'),
    "the list of hashes is no list": lambda checkpoint: (checkpoint / "complete.json").write_text("[]"),
    "empty": empty,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    killed_at_seven: Run, undisturbed: Run, tmp_path: Path, damage: str
) -> None:
    run = killed_at_seven.copy(tmp_path / "copy")
    DAMAGE[damage](run.dir / "train" / "checkpoints" / "checkpoint-6")
    result = run.do("train", failpoint=f"train.after_step:{NUM_STEPS - 4 + 1}").ok()
    assert "checkpoint-6 is passed over: " in result.stderr
    assert_same_results(run, undisturbed, ("train",))


def test_with_every_checkpoint_damaged_training_starts_again_and_says_so(
    killed_at_seven: Run, undisturbed: Run, tmp_path: Path
) -> None:
    run = killed_at_seven.copy(tmp_path / "copy")
    for checkpoint in (run.dir / "train" / "checkpoints").iterdir():
        flip(checkpoint / "model.safetensors")
    assert run.do("train").ok().stderr.count("is passed over") == 2
    assert_same_results(run, undisturbed, ("train",))


@pytest.mark.parametrize("step", [1, 2, 7, NUM_STEPS])
def test_training_killed_after_a_step_ends_as_if_it_had_not_been(finished: Run, undisturbed: Run, step: int) -> None:
    run = before_training(finished)
    assert run.do("train", failpoint=f"train.after_step:{step}").code == 137
    whole = (step - 1) // 2 * 2
    run.do("train", failpoint=f"train.after_step:{NUM_STEPS - whole + 1}").ok()
    assert_same_results(run, undisturbed, ("train",))


def test_sft_killed_half_way_ends_as_if_it_had_not_been(finished: Run, tmp_path: Path) -> None:
    run = before_training(finished)
    twin = run.copy(tmp_path / "twin")
    twin.do("train", "train.method=sft").ok()
    assert run.do("train", "train.method=sft", failpoint="train.after_step:5").code == 137
    run.do("train", "train.method=sft", failpoint=f"train.after_step:{NUM_STEPS - 4 + 1}").ok()
    assert_same_results(run, twin, ("train",))


def test_keeping_one_checkpoint_still_leaves_one_when_killed_while_saving(finished: Run, undisturbed: Run) -> None:
    run = before_training(finished)
    setting = "train.keep_checkpoints=1"
    assert run.do("train", setting, failpoint="train.before_complete:2").code == 137
    run.do("train", setting, failpoint=f"train.after_step:{NUM_STEPS - 2 + 1}").ok()
    assert_same_results(run, undisturbed, ("train",))


def test_a_finished_training_leaves_no_checkpoint(undisturbed: Run) -> None:
    assert not (undisturbed.dir / "train" / "checkpoints").exists()
