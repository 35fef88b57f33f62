"""Kernel ridge regression by the neural tangent kernel, and the sets that are made for it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from torch.utils._python_dispatch import TorchDispatchMode

from llmdistill.errors import ConfigError, InputError, StageError
from llmdistill.vision.checkpoint import state_of
from llmdistill.vision.data import ImageData, Part
from llmdistill.vision.dd.artefact import DistilledDataset
from llmdistill.vision.dd.baselines import Random
from llmdistill.vision.dd.kernel import (
    Kernel,
    Kip,
    LabelSolve,
    centred,
    krr_accuracy,
    ntk,
    regression_loss,
    targets_of,
)
from tests.vision.dd.making import digits, goes_on_bit_equal, made, task_of, without_class
from tests.vision.images import small_data


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ntk_by_hand(x: list[float], y: list[float], depth: int, weight_std: float, bias_std: float) -> float:
    """The recursion for two images, arXiv 2011.00050 appendix, one number after the other."""

    def covariances(number: int) -> tuple[float, float, float]:
        """Of (x, x), (x, y), (y, y) before the nonlinearity of a layer."""
        if number == 0:
            pairs = ((x, x), (x, y), (y, y))
            return tuple(weight_std**2 * math.fsum(map(math.prod, zip(*p))) / len(x) + bias_std**2 for p in pairs)  # noqa: B905
        xx, xy, yy = covariances(number - 1)
        cosine = xy / math.sqrt(xx * yy)
        angle = math.acos(cosine)
        mixed = math.sqrt(xx * yy) * (math.sin(angle) + (math.pi - angle) * cosine) / (2 * math.pi)
        return tuple(weight_std**2 * value + bias_std**2 for value in (xx / 2, mixed, yy / 2))

    tangent = covariances(0)[1]
    for number in range(depth):
        xx, xy, yy = covariances(number)
        derivative = (math.pi - math.acos(xy / math.sqrt(xx * yy))) / (2 * math.pi)
        tangent = covariances(number + 1)[1] + weight_std**2 * tangent * derivative
    return tangent


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_kernel_is_its_recursion(depth: int):
    one, other = rows(3, 5), 2 * rows(4, 5, seed=1)
    expected = [[ntk_by_hand(x, y, depth, 1.3, 0.2) for y in other.tolist()] for x in one.tolist()]
    found = ntk(one, other, depth, weight_std=1.3, bias_std=0.2)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def empirical_ntk(images: torch.Tensor, depth: int, width: int, seed: int) -> torch.Tensor:
    """Products of the gradients of a finite network's output, in the NTK's parametrisation: the definition."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [images.shape[1], *[width] * depth, 1]
    parameters = []
    for before, after in zip(sizes[:-1], sizes[1:], strict=True):
        parameters += [torch.randn(after, before, generator=generator), torch.randn(after, generator=generator)]
    parameters = [parameter.requires_grad_() for parameter in parameters]
    gradients = []
    for image in images.float():
        hidden = image
        for number in range(depth + 1):
            weight, bias = parameters[2 * number : 2 * number + 2]
            hidden = math.sqrt(2 / len(hidden)) * weight @ (hidden.relu() if number else hidden) + 0.1 * bias
        gradients.append(torch.cat([slope.flatten() for slope in torch.autograd.grad(hidden.sum(), parameters)]))
    stacked = torch.stack(gradients)
    return (stacked @ stacked.T).double()


@pytest.mark.parametrize("depth, width, within", [(1, 4096, 0.02), (2, 768, 0.06)])
def test_the_kernel_is_that_of_a_wide_network(depth: int, width: int, within: float):
    images = rows(4, 6)
    images[3] = -images[2]
    found = torch.stack([empirical_ntk(images, depth, width, seed) for seed in range(8)]).mean(0)
    expected = ntk(images, images, depth)
    assert (found - expected).abs().max() < within * expected.max()


def test_the_diagonal_is_exact_and_the_kernel_symmetric_and_positive():
    images = rows(30, 6)
    kernel = ntk(images, images, 2)
    first = 2 * images.square().mean(1) + 0.01
    torch.testing.assert_close(kernel.diagonal(), 3 * first + 0.03, rtol=1e-14, atol=0)
    torch.testing.assert_close(kernel, kernel.T, rtol=1e-14, atol=0)
    assert torch.linalg.eigvalsh(kernel).min() > 1e-4


def test_gradients_to_images_and_labels_agree_with_finite_differences():
    kernel, real, labels = Kernel(ridge=1e-3, depth=2), rows(7, 6, seed=1), rows(7, 3, seed=2)

    def loss(support: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return regression_loss(kernel.regression(support, targets, real), labels)

    inputs = (rows(4, 6).requires_grad_(), rows(4, 3, seed=3).requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs, rtol=1e-6)


@pytest.mark.parametrize("apart", [0.0, 1e-12, 1e-8, 1e-5])
def test_images_that_are_nearly_equal_have_finite_gradients(apart: float):
    support = rows(3, 6)
    support[1] = support[0] * (1 + apart)
    support.requires_grad_()
    ntk(support, support, 3).square().sum().backward()
    assert support.grad is not None and torch.isfinite(support.grad).all()
    alone = support.detach()[:1].clone().requires_grad_()
    ntk(alone, alone).sum().backward()
    scale = 1e-6
    up, down = (ntk(alone.detach() * factor, alone.detach() * factor) for factor in (1 + scale, 1 - scale))
    along = (alone.grad * alone.detach()).sum().item()
    assert along == pytest.approx(((up - down) / (2 * scale)).item(), rel=1e-6)


def test_regression_interpolates_its_support_without_a_ridge_and_shrinks_with_one():
    support, targets = rows(12, 6), rows(12, 3, seed=1)
    said = Kernel(ridge=0.0).regression(support, targets, support)
    torch.testing.assert_close(said, targets, rtol=0, atol=1e-9)
    assert Kernel(ridge=1e3).regression(support, targets, support).norm() < 0.05 * targets.norm()


def test_regression_is_that_of_scikit_learn():
    support, targets, images = rows(12, 6), rows(12, 3, seed=1), rows(9, 6, seed=2)
    kernel = ntk(support, support).numpy()
    reference = KernelRidge(alpha=0.01 * np.trace(kernel) / 12, kernel="precomputed").fit(kernel, targets.numpy())
    found = Kernel(ridge=0.01).regression(support, targets, images)
    np.testing.assert_allclose(found.numpy(), reference.predict(ntk(images, support).numpy()), rtol=1e-8)


@pytest.mark.parametrize("bad", [0.0, math.nan])
def test_a_kernel_that_cannot_be_inverted_is_said(bad: float):
    support = torch.full((3, 6), bad, dtype=torch.float64)
    with pytest.raises(StageError, match="cannot be inverted"):
        Kernel(ridge=0.0).solve(support, rows(3, 2))


def a_set(images: torch.Tensor, labels: torch.Tensor, classes: int = 3, **more: object) -> DistilledDataset:
    return DistilledDataset(images, labels, torch.zeros(3), torch.ones(3), classes, images.numel(), **more)


def test_labels_of_every_kind_become_targets():
    images, hard = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0])
    third = 1 / 3
    assert targets_of(a_set(images, hard)).tolist() == pytest.approx(
        np.array([[-third, -third, 1 - third], [1 - third, -third, -third]])
    )
    logits = torch.tensor([[0.0, 0.0, 50.0], [50.0, 0.0, 0.0]])
    torch.testing.assert_close(targets_of(a_set(images, logits)), targets_of(a_set(images, hard)))
    assert targets_of(a_set(images, logits, targets=True)).tolist() == logits.tolist()


class Greatest(TorchDispatchMode):
    """How many numbers the greatest tensor holds that is made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        found = [each.numel() for each in (out if isinstance(out, list | tuple) else [out]) if torch.is_tensor(each)]
        self.numbers = max([self.numbers, *found])
        return out


def test_accuracy_is_measured_in_pieces_and_the_same_in_pieces_of_any_size():
    data = digits()
    dataset = made(Random(), data, 2)
    expected = (
        Kernel()
        .regression(dataset.images, targets_of(dataset), data.test.images)
        .argmax(1)
        .eq(data.test.labels)
        .double()
        .mean()
    )
    with Greatest() as greatest:
        assert krr_accuracy(dataset, data.test, batch_size=40) == pytest.approx(expected.item())
    assert krr_accuracy(dataset, data.test, batch_size=7) == pytest.approx(expected.item())
    assert greatest.numbers <= 41 * 64


def test_a_part_without_images_is_said():
    data = small_data()
    empty = Part(data.test.images[:0], data.test.labels[:0])
    with pytest.raises(InputError, match="no image to measure on"):
        krr_accuracy(made(Random(), data, 1), empty)


def test_kip_is_far_above_random_images_under_the_same_kernel():
    data = digits()
    kip = Kip(label="커널", preset="ci").resolved(1)
    before = krr_accuracy(made(Random(), data, 1), data.test)
    dataset = made(kip, data, 1)
    measured = kip.measures(dataset, data, task_of(data, 1).net, data.test, 0)
    assert measured == {"kernel": [krr_accuracy(dataset, data.test)]}
    assert measured["kernel"][0] > before + 0.15


def test_learned_labels_move_and_fixed_ones_do_not():
    data = small_data()
    fixed, learned = (
        Kip(iterations=3, batch_real=30, learn_labels=learn).distillation(task_of(data, 2)) for learn in (False, True)
    )
    before = fixed.synthesiser.targets.clone()
    for distillation in (fixed, learned):
        images = distillation.synthesiser.images.detach().clone()
        for _ in range(3):
            distillation.iterate()
        assert distillation.synthesiser.images.grad is not None
        assert distillation.synthesiser.images.dtype == torch.float64
        assert (distillation.synthesiser.images != images).all()
    assert torch.equal(fixed.synthesiser.targets, before)
    assert (learned.synthesiser.targets != before).all()


def test_a_set_is_float32_and_its_learned_labels_are_targets_and_counted():
    data = small_data()
    hard = made(Kip(iterations=1, batch_real=30), data, 2)
    soft = made(Kip(iterations=1, batch_real=30, learn_labels=True), data, 2)
    assert hard.images.dtype == soft.images.dtype == soft.labels.dtype == torch.float32
    assert hard.labels.tolist() == soft.classes.tolist() == [0, 0, 1, 1, 2, 2]
    assert (hard.targets, soft.targets) == (False, True)
    assert soft.floats == hard.floats + 6 * 3 == 6 * 3 * 8 * 8 + 6 * 3


def test_a_class_has_as_many_real_images_in_an_iteration_as_another_and_no_more_than_there_are():
    data = small_data(num=65)
    assert Kip(batch_real=31).distillation(task_of(data, 1)).num_real == 10
    assert Kip().distillation(task_of(data, 1)).num_real == 22
    assert Kip(batch_real=1).distillation(task_of(data, 1)).num_real == 1


def test_label_solve_is_the_pseudo_inverse():
    data, kernel = small_data(), Kernel(ridge=1e-3)
    distillation = LabelSolve(kernel=kernel).distillation(task_of(data, 2))
    images = distillation.synthesiser.images.detach().clone()
    loss = distillation.iterate()
    support = kernel.between(images, images).numpy()
    regular = support + 1e-3 * np.trace(support) / 6 * np.eye(6)
    said = kernel.between(data.train.images, images).numpy() @ np.linalg.inv(regular)
    targets = centred(data.train.labels, 3).numpy()
    found = distillation.synthesiser.targets.detach().numpy()
    np.testing.assert_allclose(found, np.linalg.lstsq(said, targets, rcond=None)[0], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found, np.linalg.pinv(said) @ targets, rtol=1e-6, atol=1e-9)
    assert loss == pytest.approx(np.square(said @ found - targets).mean() / 2, rel=1e-9)
    assert torch.equal(distillation.synthesiser.images, images)


def test_label_solve_takes_equal_images():
    data = small_data(num=6)
    dataset = made(LabelSolve(), data, 5)
    assert torch.isfinite(dataset.labels).all() and dataset.targets


def test_label_solve_is_above_the_same_images_with_hard_labels():
    data = digits()
    solved = made(LabelSolve(), data, 10)
    hard = replace(solved, labels=torch.arange(10).repeat_interleave(10), targets=False)
    assert krr_accuracy(solved, data.test) > krr_accuracy(hard, data.test)


@pytest.mark.parametrize("method", [Kip(iterations=3, batch_real=30, learn_labels=True), LabelSolve()])
class TestBoth:
    def test_the_global_generator_is_left_alone(self, method: Kip | LabelSolve):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        made(method, small_data(), 1)
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_seed_gives_the_same_set_and_another_one_another(self, method: Kip | LabelSolve):
        one, same, other = (made(method, small_data(), 1, seed) for seed in (0, 0, 1))
        assert torch.equal(one.images, same.images) and torch.equal(one.labels, same.labels)
        assert not torch.equal(one.images, other.images)

    def test_it_goes_on_from_its_state_bit_equal(self, method: Kip | LabelSolve):
        assert goes_on_bit_equal(method, small_data(), 2)
        tensors, _ = state_of(method.distillation(task_of(small_data(), 2)), torch.optim.SGD([torch.zeros(1)]))
        assert tensors["module.synthesiser.images"].dtype == torch.float64

    @pytest.mark.parametrize("data", [small_data(num=4, classes=1), small_data(num=4, classes=4)], ids=["one", "four"])
    def test_one_class_and_more_images_than_there_are_give_numbers(self, method: Kip | LabelSolve, data: ImageData):
        dataset = made(method, data, 6)
        assert len(dataset.images) == 6 * data.num_classes
        assert torch.isfinite(dataset.images).all() and torch.isfinite(dataset.labels).all()
        assert 0 <= krr_accuracy(dataset, data.test) <= 1

    def test_a_class_without_images_is_said(self, method: Kip | LabelSolve):
        with pytest.raises(ConfigError, match="class 1 has no training image"):
            method.distillation(task_of(without_class(small_data(), 1), 1))
