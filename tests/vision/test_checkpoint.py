"""A training that is killed goes on from its checkpoint and ends in the same weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from llmdistill.errors import DamagedError
from llmdistill.vision.checkpoint import Checkpoint, Checkpoints
from llmdistill.vision.config import Net, Protocol
from llmdistill.vision.distiller import Distiller
from llmdistill.vision.fit import History, fit
from llmdistill.vision.kd.plain import PlainDistiller
from llmdistill.vision.models import build
from tests.tiny import REPO
from tests.vision.fit_once import PROTOCOL, two_stages
from tests.vision.images import small_data

# A stage of three epochs has 12 steps (65 images in batches of 16, the last one of 17), one of two 8. Both are saved
# after each step, after each epoch and at their end.
KILLS = {
    "sgd": ["vision.after_step:6", "vision.after_step:1", "vision.after_step:9"],
    "adamw": ["files.before_replace:3", "files.before_replace:15", "vision.after_step:3"],
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of trainings that were killed, and of those that were not: OPTIMISER-killed and OPTIMISER-whole."""
    folder = tmp_path_factory.mktemp("학습")
    orders, expected = [], []
    for optimiser, failpoints in KILLS.items():
        for name, its_failpoints in (("whole", []), ("killed", failpoints)):
            paths = [str(folder / f"{optimiser}-{name}"), str(folder / f"{optimiser}-{name}.safetensors")]
            orders += [[failpoint, optimiser, *paths] for failpoint in [*its_failpoints, ""]]
            expected += [137] * len(its_failpoints) + [0]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.vision.fit_once"]
    options = {"check": True, "stdout": subprocess.PIPE, "text": True, "timeout": 300}
    done = subprocess.run(command, input=json.dumps(orders), env=environment, **options)
    assert json.loads(done.stdout) == expected
    return folder


@pytest.mark.parametrize("optimiser", KILLS)
def test_a_training_killed_again_and_again_ends_in_the_same_weights(optimiser: str, killed: Path):
    one, other = (killed / f"{optimiser}-{name}.safetensors" for name in ("whole", "killed"))
    weights, others = load_file(one), load_file(other)
    assert all(torch.equal(weights[name], others[name]) for name in weights.keys() | others.keys())
    assert one.with_suffix(".json").read_text() == other.with_suffix(".json").read_text()


def final(distiller: Distiller, histories: list[History]) -> list[object]:
    return [tensor.tolist() for tensor in distiller.state_dict().values()] + [item.loss for item in histories]


def test_where_it_is_saved_and_how_often_changes_nothing(tmp_path: Path):
    often, rarely = two_stages(tmp_path / "a", "sgd"), two_stages(tmp_path / "b", "sgd", every=1e9)
    again = two_stages(tmp_path / "b", "sgd", every=1e9)
    assert final(*often) == final(*rarely) == final(*again)


class Never(PlainDistiller):
    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        raise AssertionError("a finished stage is trained again")


def student(seed: int = 0, width: int = 8) -> nn.Module:
    return build(Net(arch="convnet", width=width, depth=2), (3, 8, 8), 3, seed)


def test_a_finished_stage_is_restored_without_a_step(tmp_path: Path):
    data, first = small_data(), PlainDistiller(student())
    told: list[int] = []
    history = fit(first, data, PROTOCOL, 0, checkpoint=Checkpoint(tmp_path / "0.safetensors"))
    Never.__name__ = "PlainDistiller"  # a checkpoint belongs to one class of distillers
    second = Never(student(seed=1))
    again = fit(
        second,
        data,
        PROTOCOL,
        0,
        after_epoch=lambda so_far: told.append(len(so_far.validation)),
        checkpoint=Checkpoint(tmp_path / "0.safetensors"),
    )
    assert again == history and told == [1, 2, 3]
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


@pytest.mark.parametrize("at", [0.3, 0.6, 0.99])
def test_a_damaged_checkpoint_is_passed_over_and_said(at: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "0.safetensors"
    expected = fit(PlainDistiller(student()), small_data(), PROTOCOL, 0, checkpoint=Checkpoint(path))
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 1
    path.write_bytes(data)
    found = fit(PlainDistiller(student()), small_data(), PROTOCOL, 0, checkpoint=Checkpoint(path))
    assert found.loss == expected.loss
    assert f"{path} is passed over: it is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"epochs": 4}, {"learning_rate": 0.02}, {"augment": ()}])
def test_a_checkpoint_of_another_training_is_passed_over_and_said(
    change: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    protocol, path = PROTOCOL.model_copy(update=change), tmp_path / "0.safetensors"
    fit(PlainDistiller(student()), small_data(), PROTOCOL, 0, checkpoint=Checkpoint(path))
    found = fit(PlainDistiller(student()), small_data(), protocol, 0, checkpoint=Checkpoint(path))
    assert found.loss == fit(PlainDistiller(student()), small_data(), protocol, 0).loss
    assert "passed over: it is of another training" in capsys.readouterr().err


def test_more_seeds_in_the_protocol_do_not_make_it_another_training(tmp_path: Path):
    path = tmp_path / "0.safetensors"
    first = fit(PlainDistiller(student()), small_data(), PROTOCOL, 0, checkpoint=Checkpoint(path))
    protocol = PROTOCOL.model_copy(update={"seeds": (0, 7)})
    assert fit(PlainDistiller(student()), small_data(), protocol, 0, checkpoint=Checkpoint(path)) == first


def test_a_checkpoint_of_another_network_is_an_error_that_names_the_file(tmp_path: Path):
    path = tmp_path / "다른.safetensors"
    fit(PlainDistiller(student()), small_data(), PROTOCOL, 0, checkpoint=Checkpoint(path))
    for other in (student(width=4), build(Net(arch="mlp"), (3, 8, 8), 3, 0)):
        with pytest.raises(DamagedError, match=r"다른.safetensors: this checkpoint is of another network"):
            fit(PlainDistiller(other), small_data(), PROTOCOL, 0, checkpoint=Checkpoint(path))


def test_a_checkpoint_holds_no_teacher_and_nothing_but_tensors_and_json(tmp_path: Path):
    two_stages(tmp_path / "단계", "adamw")
    assert sorted(path.name for path in (tmp_path / "단계").iterdir()) == ["0.safetensors", "1.safetensors"]
    tensors, values = Checkpoint(tmp_path / "단계" / "1.safetensors").load() or ({}, {})
    assert tensors and not any("teacher." in name for name in tensors)
    assert json.loads(json.dumps(values)) == values
    Checkpoints(tmp_path / "단계").remove()
    Checkpoints(tmp_path / "단계").remove()
    assert not (tmp_path / "단계").exists()


class Epochs(PlainDistiller):
    """Changes its weights before each epoch, as pruning does."""

    seen: list[int]

    def before_epoch(self, epoch: int, epochs: int) -> None:
        self.seen.append(epoch)
        with torch.no_grad():
            self.student.classifier.weight.mul_(0.5)


def epochs_of() -> Epochs:
    distiller = Epochs(student())
    distiller.seen = []
    return distiller


class Stop(Exception):
    pass


def test_what_happens_before_an_epoch_happens_once_for_each_whatever_the_kill(tmp_path: Path):
    data, path = small_data(), tmp_path / "0.safetensors"
    whole, first, second = epochs_of(), epochs_of(), epochs_of()
    fit(whole, data, PROTOCOL, 0)

    def stop(history: History) -> None:
        if len(history.loss) == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(first, data, PROTOCOL, 0, stop, Checkpoint(path, every=0))
    fit(second, data, PROTOCOL, 0, checkpoint=Checkpoint(path, every=0))
    assert whole.seen == [0, 1, 2] and first.seen == [0, 1] and second.seen == [2]
    assert torch.equal(second.student.classifier.weight, whole.student.classifier.weight)


def test_modules_that_share_weights_are_saved(tmp_path: Path):
    distiller = PlainDistiller(student())
    distiller.again = distiller.student.classifier
    fit(distiller, small_data(), Protocol(epochs=1), 0, checkpoint=Checkpoint(tmp_path / "0.safetensors"))
    shutil.copy(tmp_path / "0.safetensors", tmp_path / "copy.safetensors")
    other = PlainDistiller(student(seed=4))
    other.again = other.student.classifier
    fit(other, small_data(), Protocol(epochs=1), 0, checkpoint=Checkpoint(tmp_path / "copy.safetensors"))
    assert torch.equal(other.again.weight, distiller.student.classifier.weight)
