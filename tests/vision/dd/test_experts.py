"""Experts: trained once, kept whole, told from others, read a row at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from llmdistill.errors import ConfigError, DamagedError, StageError
from llmdistill.vision.config import Net
from llmdistill.vision.data import Part
from llmdistill.vision.dd import experts as module
from llmdistill.vision.dd.base import Task
from llmdistill.vision.dd.experts import ExpertSettings, experts_of, flattened, train_expert
from llmdistill.vision.dd.whitening import fit
from llmdistill.vision.models import build
from tests.tiny import REPO
from tests.vision.images import small_data

NET = Net(arch="mlp", width=8, depth=1)
SETTINGS = ExpertSettings(number=3, epochs=3, batch_size=16)


def task(folder: Path | None, net: Net = NET, **options: object) -> Task:
    return Task(small_data(), 1, net, 0, folder=folder, **options)  # type: ignore[arg-type]


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_every_snapshot_has_its_own_storage_and_shows_its_own_epoch():
    trajectory = train_expert(task(None), SETTINGS, 0)
    assert len({row.data_ptr() for row in trajectory}) == 4
    distances = (trajectory[1:] - trajectory[:-1]).norm(dim=1)
    assert (distances > 1e-4).all()
    net = build(NET, (3, 8, 8), 3, 0)
    taken = flattened(net)
    with torch.no_grad():
        net.classifier.weight.add_(1)
    assert not torch.equal(taken, flattened(net))


def test_a_trajectory_is_that_of_plain_training():
    plain = SETTINGS.model_copy(update={"strategy": (), "batch_size": 65})
    trajectory = train_expert(task(None), plain, 1)
    part = small_data().train
    net = build(NET, (3, 8, 8), 3, 0)
    torch.nn.utils.vector_to_parameters(trajectory[0].clone(), net.parameters())
    for row in trajectory[1:]:
        loss = torch.nn.functional.cross_entropy(net(part.images), part.labels)
        slopes = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for parameter, slope in zip(net.parameters(), slopes, strict=True):
                parameter.sub_(0.01 * slope)
        torch.testing.assert_close(flattened(net), row, rtol=1e-5, atol=1e-6)


def test_each_image_of_a_step_is_changed_by_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch):
    seen: list[bool] = []
    monkeypatch.setattr(
        module, "transformed", lambda images, drawn: seen.append(len(drawn.numbers) == len(images)) or images
    )
    train_expert(task(None), SETTINGS, 0)
    assert len(seen) > 1 and all(seen)


def test_experts_are_kept_and_not_trained_again_and_more_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = torch.get_rng_state()
    experts_of(task(tmp_path), SETTINGS)
    kept = {path: path.read_bytes() for path in files(tmp_path)}
    trained: list[int] = []
    monkeypatch.setattr(
        module, "train_expert", lambda *arguments: trained.append(arguments[2]) or train_expert(*arguments)
    )
    experts_of(task(tmp_path), SETTINGS)
    experts_of(task(tmp_path), SETTINGS.model_copy(update={"number": 4}))
    assert trained == [3] and len(files(tmp_path)) == 4
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert torch.equal(before, torch.get_rng_state())


def test_an_expert_follows_from_its_number_alone(tmp_path: Path):
    all_of_them = experts_of(task(tmp_path), SETTINGS)
    last = train_expert(task(None), SETTINGS, 2)
    assert all(torch.equal(all_of_them.parameters(2, epoch), last[epoch]) for epoch in range(4))
    assert not torch.equal(all_of_them.parameters(0, 0), all_of_them.parameters(1, 0))


KILLS = {"files.before_replace:2": 1, "experts.after_save:2": 2}
"""Where a run is killed, and the experts that are there then."""

PROCESS = """
import os, sys
from pathlib import Path
from tests.vision.dd.test_experts import KILLS, SETTINGS, experts_of, task, train_expert
train_expert(task(None), SETTINGS, 0)  # the first optimiser imports for seconds
for point in KILLS:
    if not os.fork():
        os.environ["LLMDISTILL_FAILPOINT"] = point
        experts_of(task(Path(sys.argv[1]) / point), SETTINGS)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 137
"""


def whole(folder: Path) -> list[torch.Tensor]:
    return [load_file(path)["trajectory"] for path in files(folder) if not path.name.startswith(".")]


def test_a_killed_run_keeps_whole_experts_and_goes_on(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", PROCESS, tmp_path], env=environment, timeout=300, check=True)
    experts_of(task(tmp_path / "never"), SETTINGS)
    for point, left in KILLS.items():
        assert len(whole(tmp_path / point)) == left
        experts_of(task(tmp_path / point), SETTINGS)
        found, wanted = whole(tmp_path / point), whole(tmp_path / "never")
        assert len(found) == 3 and all(map(torch.equal, found, wanted))


def test_a_torn_file_is_named(tmp_path: Path):
    experts = experts_of(task(tmp_path), SETTINGS)
    path = files(tmp_path)[1]
    path.write_bytes(path.read_bytes()[:-40])
    for use in (lambda: experts_of(task(tmp_path), SETTINGS), lambda: experts.parameters(1, 0)):
        with pytest.raises(DamagedError, match=r"0001.safetensors: this expert cannot be read .* -> remove this file"):
            use()


def test_experts_of_other_data_are_refused(tmp_path: Path):
    experts_of(task(tmp_path), SETTINGS)
    data = small_data()
    images = data.train.images.clone()
    images[3] = -images[3]
    changed = Task(replace(data, train=Part(images, data.train.labels)), 1, NET, 0, folder=tmp_path)
    with pytest.raises(DamagedError, match="this expert is of another run: data differ"):
        experts_of(changed, SETTINGS)


def test_other_settings_networks_and_whitening_have_folders_of_their_own(tmp_path: Path):
    experts_of(task(tmp_path), SETTINGS)
    experts_of(task(tmp_path), SETTINGS.model_copy(update={"learning_rate": 0.02}))
    experts_of(task(tmp_path, Net(arch="mlp", width=4, depth=1)), SETTINGS)
    experts_of(task(tmp_path, whitening=fit(small_data().train.images)), SETTINGS)
    assert len({path.parent for path in files(tmp_path)}) == 4


def test_a_file_of_other_experts_is_refused_and_says_what_differs(tmp_path: Path):
    experts_of(task(tmp_path / "a"), SETTINGS)
    experts_of(task(tmp_path / "b"), SETTINGS.model_copy(update={"momentum": 0.5}))
    files(tmp_path / "b")[0].replace(files(tmp_path / "a")[0])
    with pytest.raises(DamagedError, match="another run: training differ"):
        experts_of(task(tmp_path / "a"), SETTINGS)


def test_a_network_with_batch_norm_is_refused_before_anything_is_trained(tmp_path: Path):
    with pytest.raises(ConfigError, match="net.norm: trajectories do not hold batch statistics"):
        experts_of(task(tmp_path, Net(arch="convnet", width=4, depth=2, norm="batch")), SETTINGS)
    assert not files(tmp_path)


def test_an_expert_that_diverges_is_an_error_and_no_file(tmp_path: Path):
    with pytest.raises(StageError, match="expert 0 are not finite any more in epoch"):
        experts_of(task(tmp_path), SETTINGS.model_copy(update={"learning_rate": 1e30}))
    assert not files(tmp_path)


def test_a_row_is_read_without_the_others(tmp_path: Path):
    experts = experts_of(task(tmp_path), SETTINGS)
    row = experts.parameters(2, 3)
    with safe_open(experts.path(2), "pt") as file:
        assert torch.equal(row, file.get_tensor("trajectory")[3])
    assert row.untyped_storage().nbytes() == row.nbytes


def test_without_a_folder_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    experts = experts_of(task(None), SETTINGS)
    assert len(files(tmp_path)) == 3
    del experts
    assert not files(tmp_path)
