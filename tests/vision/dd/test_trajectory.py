"""Matching of trajectories: its loss, its gradients, and what a distillation by it learns."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from llmdistill.errors import StageError
from llmdistill.vision.checkpoint import restore, state_of
from llmdistill.vision.config import Data, Net
from llmdistill.vision.data import load
from llmdistill.vision.dd.base import Task
from llmdistill.vision.dd.experts import ExpertSettings
from llmdistill.vision.dd.inner import Inner
from llmdistill.vision.dd.protocol import Evaluation
from llmdistill.vision.dd.siamese import transformed
from llmdistill.vision.dd.training import train_on
from llmdistill.vision.dd.trajectory import STEP_SIZES, Trajectory, distance, trajectory_match
from llmdistill.vision.fit import accuracy
from llmdistill.vision.models import build
from tests.vision.dd.references_mtt import unrolled_loss
from tests.vision.images import small_data

TINY = Net(arch="mlp", width=6, depth=1)
EXPERTS = ExpertSettings(number=2, epochs=4, learning_rate=0.05, batch_size=16)
SETTINGS = Trajectory(iterations=4, learning_rate=1.0, steps=3, expert_epochs=1, max_start=3, experts=EXPERTS)


def problem(
    net: Net = TINY, shape: tuple[int, int, int] = (1, 4, 4), steps: int = 2, dtype: torch.dtype = torch.double
):
    """A network, where it starts and should end, and a batch for each step."""
    built = build(net, shape, 3, 0).to(dtype)
    generator = torch.Generator().manual_seed(1)
    start = torch.cat([parameter.detach().reshape(-1) for parameter in built.parameters()])
    target = start + 0.1 * torch.randn(len(start), generator=generator, dtype=dtype)
    batches = [(torch.randn(5, *shape, generator=generator, dtype=dtype), torch.tensor([0, 1, 2, 0, 1]))] * steps
    return built, start, target, [(images + 0.1 * number, labels) for number, (images, labels) in enumerate(batches)]


def test_gradients_are_those_of_finite_differences():
    net, start, target, batches = problem()
    inner, found = Inner(net), None

    def loss(shift: float, number: int, place: int, step_size: float = 0.3) -> float:
        moved = [(images.clone(), labels) for images, labels in batches]
        moved[number][0].view(-1)[place] += shift
        return float(trajectory_match(inner, start, target, moved, step_size).loss)

    found = trajectory_match(inner, start, target, batches, 0.3)
    for number in range(2):
        for place in (0, 17, 63):
            slope = (loss(1e-5, number, place) - loss(-1e-5, number, place)) / 2e-5
            assert found.images[number].view(-1)[place] == pytest.approx(slope, rel=1e-5, abs=1e-9)
    by_step_size = (loss(0.0, 0, 0, 0.3 + 1e-6) - loss(0.0, 0, 0, 0.3 - 1e-6)) / 2e-6
    assert float(found.step_size) == pytest.approx(by_step_size, rel=1e-6)
    assert min(float(each.abs().max()) for each in found.images) > 1e-4


@pytest.mark.parametrize("net", [Net(arch="mlp"), Net(arch="convnet", width=8, depth=2)])
def test_loss_and_gradients_are_those_of_one_graph_through_all_steps(net: Net):
    built, start, target, batches = problem(net, (3, 8, 8), 5, torch.float32)
    leaves = [(images.requires_grad_(True), labels) for images, labels in batches]
    step_size = torch.tensor(0.05, requires_grad=True)
    loss = unrolled_loss(built, start, target, leaves, step_size)
    wanted = torch.autograd.grad(loss, [*(images for images, _ in leaves), step_size])
    found = trajectory_match(Inner(built), start, target, batches, 0.05)
    torch.testing.assert_close(found.loss, loss.detach(), rtol=1e-4, atol=1e-7)
    for mine, its in zip([*found.images, found.step_size], wanted, strict=True):
        assert (mine - its).abs().max() <= 1e-4 * its.abs().max()


def test_the_loss_is_one_where_no_step_is_made():
    net, start, target, batches = problem()
    assert float(trajectory_match(Inner(net), start, target, batches, 0.0).loss) == 1.0


def test_an_expert_that_stands_still_is_an_error_and_no_nan():
    _, start, _, _ = problem()
    with pytest.raises(StageError, match="same before and after"):
        distance(start, start, start.clone())


def distillation(folder: Path | None, settings: Trajectory = SETTINGS, seed: int = 0):
    return settings.distillation(Task(small_data(), 2, Net(arch="mlp", width=16, depth=1), seed, folder=folder))


def test_an_iteration_gives_the_images_a_gradient_and_changes_them(tmp_path: Path):
    made = distillation(tmp_path)
    before, step_size = made.synthesiser.images.detach().clone(), made.step_size
    weights = [parameter.detach().clone() for parameter in made.inner[0].net.parameters()]
    made.iterate()
    gradient = made.synthesiser.images.grad
    assert gradient is not None and float(gradient.abs().max()) > 0
    assert not torch.equal(before, made.synthesiser.images) and made.step_size != step_size
    assert all(map(torch.equal, weights, made.inner[0].net.parameters()))


def test_the_gradients_of_an_iteration_are_those_of_its_loss(tmp_path: Path):
    made = distillation(tmp_path, SETTINGS.model_copy(update={"strategy": ("scale",), "batch_size": 4}))
    (start, target), chosen = made.ends(), made.chosen()
    made.synthesiser.images.grad = None
    loss, by_step_size = made.matched(start, target, chosen, 0.1)
    images, labels = made.synthesiser()
    batches = [(transformed(images[places], drawn), labels[places]) for places, drawn in chosen]
    step_size = torch.tensor(0.1, requires_grad=True)
    wanted = unrolled_loss(made.inner[0].net, start, target, batches, step_size)
    its_images, its_step_size = torch.autograd.grad(wanted, [images, step_size])
    torch.testing.assert_close(loss, wanted.detach())
    torch.testing.assert_close(made.synthesiser.images.grad, its_images, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(by_step_size, its_step_size, rtol=1e-4, atol=1e-7)
    assert {len(places) for places, _ in chosen} == {4, 2}
    assert all(len(drawn.numbers) == len(places) for places, drawn in chosen)


@pytest.mark.parametrize("slope", [1e30, -1e30, 3.0])
def test_the_step_size_stays_positive_whatever_the_gradient(slope: float, tmp_path: Path):
    made = distillation(tmp_path)
    made.matched = lambda *_: (torch.tensor(1.0), torch.tensor(slope))  # type: ignore[method-assign]
    for _ in range(5):
        made.iterate()
        assert STEP_SIZES[0] * 0.999 <= made.step_size <= STEP_SIZES[1] * 1.001


def test_the_first_step_of_the_step_size_is_the_published_one_to_first_order(tmp_path: Path):
    settings = SETTINGS.model_copy(update={"step_size": 0.02, "step_size_learning_rate": 1e-7, "momentum": 0.0})
    made = distillation(tmp_path, settings)
    made.matched = lambda *_: (torch.tensor(1.0), torch.tensor(50.0))  # type: ignore[method-assign]
    made.iterate()
    assert made.step_size == pytest.approx(0.02 - 1e-7 * 50.0, rel=1e-5)


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_method(tmp_path: Path):
    made = distillation(tmp_path, SETTINGS.model_copy(update={"learning_rate": 1e38, "label": "궤적"}))
    with pytest.raises(StageError, match="궤적: the loss is"):
        for _ in range(4):
            made.iterate()


def test_a_resumed_distillation_gives_the_same_images_and_draws_nothing_global(tmp_path: Path):
    before = torch.get_rng_state()
    whole, part, other = distillation(tmp_path), distillation(tmp_path), distillation(tmp_path, seed=5)
    for _ in range(4):
        whole.iterate()
    for _ in range(2):
        part.iterate()
    tensors, values = state_of(part, part.optimiser)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    part.iterate()
    restore(other, other.optimiser, tensors, values, tmp_path)
    for _ in range(2):
        other.iterate()
    assert torch.equal(whole.synthesiser.images, other.synthesiser.images)
    assert whole.step_size == other.step_size and torch.equal(before, torch.get_rng_state())


def test_the_step_size_goes_with_the_set_and_is_counted(tmp_path: Path):
    made = distillation(tmp_path)
    made.iterate()
    found = made.result({"method": "mtt"})
    assert found.learning_rate == made.step_size and found.floats == 6 * 3 * 8 * 8 + 1


def test_experts_must_be_long_enough():
    with pytest.raises(ValueError, match="need experts of 5 epochs, not 4"):
        Trajectory(max_start=4, expert_epochs=2, experts=EXPERTS)


PUBLISHED = {1: (50, 2, 100.0, 0.01), 10: (30, 20, 100.0, 0.001), 50: (30, 40, 1000.0, 0.001)}


@pytest.mark.parametrize(("ipc", "wanted"), PUBLISHED.items())
def test_the_paper_preset_is_the_published_one_for_each_size(ipc: int, wanted: tuple[float, ...]):
    found = Trajectory(preset="paper").resolved(ipc)
    assert (found.steps, found.max_start, found.learning_rate, found.step_size) == wanted
    assert found.expert_epochs == 2 and math.isclose(found.step_size_learning_rate, 1e-7 if ipc == 1 else 1e-5)


def test_digits_at_one_image_a_class_are_learned_far_better_than_from_random_images(tmp_path: Path):
    data, net = load(Data()), Net(arch="mlp")
    task = Task(data, 1, net, 0, folder=tmp_path)
    settings = Trajectory(preset="ci", iterations=60).resolved(1)
    made = settings.distillation(task)
    begun = made.result({})
    for _ in range(settings.iterations):
        made.iterate()
    random, learned = (
        [accuracy(each, data.validation) for each in train_on(some, data, net, Evaluation(epochs=200), 0.01, [0, 1])]
        for some in (begun, made.result({}))
    )
    assert min(learned) > max(random) + 0.1
