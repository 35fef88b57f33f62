"""TESLA: the loss of trajectory matching in memory that does not grow with the number of steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmdistill.vision.config import Net
from llmdistill.vision.dd.base import Task
from llmdistill.vision.dd.inner import Inner
from llmdistill.vision.dd.tesla import Tesla, tesla_match
from llmdistill.vision.dd.trajectory import trajectory_match
from tests.vision.dd.references_mtt import unrolled_loss
from tests.vision.dd.test_trajectory import EXPERTS, problem
from tests.vision.images import small_data

SETTINGS = Tesla(iterations=3, learning_rate=1.0, steps=3, expert_epochs=1, max_start=3, experts=EXPERTS, strategy=())


def matched(net, start, target, batches, step_size: float):
    taken: dict[int, torch.Tensor] = {}
    loss, by_step_size = tesla_match(
        Inner(net), start, target, batches.__getitem__, len(batches), step_size, taken.__setitem__
    )
    return loss, by_step_size, [taken[number] for number in range(len(batches))]


def test_the_loss_is_that_of_trajectory_matching_on_the_same_batches():
    net, start, target, batches = problem(steps=4)
    mine = matched(net, start, target, batches, 0.3)[0]
    assert float(mine) == pytest.approx(
        float(trajectory_match(Inner(net), start, target, batches, 0.3).loss), rel=1e-12
    )


def test_gradients_are_those_of_trajectory_matching_with_the_parameters_of_each_gradient_detached():
    net, start, target, batches = problem(steps=4)
    leaves = [(images.requires_grad_(True), labels) for images, labels in batches]
    step_size = torch.tensor(0.3, dtype=torch.double, requires_grad=True)
    loss = unrolled_loss(net, start, target, leaves, step_size, through_parameters=False)
    wanted = torch.autograd.grad(loss, [*(images for images, _ in leaves), step_size])
    _, by_step_size, by_images = matched(net, start, target, batches, 0.3)
    for mine, its in zip([*by_images, by_step_size], wanted, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-8, atol=1e-12)
    exact = trajectory_match(Inner(net), start, target, batches, 0.3)
    assert not torch.allclose(exact.images[0], by_images[0], rtol=1e-3)


def test_with_one_step_the_gradient_is_exact_to_its_factor():
    """`2 * autograd.grad(...)` makes a tuple twice as long, and half of the gradient."""
    net, start, target, batches = problem(steps=1)
    by_images = matched(net, start, target, batches, 0.3)[2]
    torch.testing.assert_close(by_images[0], trajectory_match(Inner(net), start, target, batches, 0.3).images[0])


def peak(work: Callable[[], object]) -> int:
    """Most bytes that autograd graphs hold at a time, each storage once."""
    held: dict[int, list[int]] = {}
    now = most = 0

    class Kept:
        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal now, most
            self.tensor, self.key = tensor.detach(), tensor.untyped_storage().data_ptr()
            entry = held.setdefault(self.key, [0, tensor.untyped_storage().nbytes()])
            if entry[0] == 0:
                now += entry[1]
                most = max(most, now)
            entry[0] += 1

        def __del__(self) -> None:
            nonlocal now
            entry = held[self.key]
            entry[0] -= 1
            if entry[0] == 0:
                now -= held.pop(self.key)[1]

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        work()
    return most


def peaks(work: Callable[..., object]) -> list[int]:
    found = []
    for steps in (2, 8, 32):
        net, start, target, batches = problem(Net(arch="convnet", width=8, depth=2), (3, 8, 8), steps, torch.float32)
        found.append(peak(lambda: work(net, start, target, batches, 0.01)))  # noqa: B023
    return found


def test_memory_is_flat_in_the_number_of_steps_where_that_of_trajectory_matching_grows():
    flat = peaks(matched)
    growing = peaks(lambda net, *rest: trajectory_match(Inner(net), *rest))
    print(f"bytes held by graphs at 2, 8, 32 steps: TESLA {flat}, MTT {growing}")  # noqa: T201
    assert flat[0] > 0 and max(flat) <= 1.02 * min(flat)
    assert growing[1] > 3 * growing[0] and growing[2] > 3 * growing[1]


def distillation(folder: Path, **changes: object):
    settings = SETTINGS.model_copy(update=changes)
    return settings.distillation(Task(small_data(), 2, Net(arch="mlp", width=16, depth=1), 0, folder=folder))


def test_an_iteration_changes_images_and_step_size_and_draws_nothing_global(tmp_path: Path):
    before = torch.get_rng_state()
    made = distillation(tmp_path, strategy=("scale", "color"), batch_size=4)
    images, step_size = made.synthesiser.images.detach().clone(), made.step_size
    made.iterate()
    assert float(made.synthesiser.images.grad.abs().max()) > 0
    assert not torch.equal(images, made.synthesiser.images) and made.step_size != step_size
    assert torch.equal(before, torch.get_rng_state())


def test_soft_labels_are_an_experts_and_are_stored_and_counted(tmp_path: Path):
    made = distillation(tmp_path, soft_labels=True)
    made.iterate()
    found = made.result({})
    assert found.labels.shape == (6, 3) and found.floats == 6 * 3 * 8 * 8 + 6 * 3 + 1
    inner, labels = made.inner[0], made.synthesiser.labels
    said = [inner.logits(inner.split(made.experts.parameters(number, 4)), made.synthesiser.images) for number in (0, 1)]
    assert made.targets(labels).sum(1).allclose(torch.ones(6))
    begun = distillation(tmp_path, soft_labels=True)
    said = [
        inner.logits(inner.split(made.experts.parameters(number, 4)), begun.synthesiser.images) for number in (0, 1)
    ]
    assert any(torch.allclose(begun.logits, each) for each in said) and torch.equal(begun.logits, made.logits)


def test_hard_labels_are_stored_as_class_numbers(tmp_path: Path):
    found = distillation(tmp_path).result({})
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2] and found.floats == 6 * 3 * 8 * 8 + 1
