"""Gradient matching against its definition class by class, finite differences, and the traps of other codes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llmdistill.errors import ConfigError
from llmdistill.vision.config import Net
from llmdistill.vision.dd import grouped
from llmdistill.vision.dd.baselines import Random
from llmdistill.vision.dd.gradient import Gradient, GradientDistillation, SiameseGradient, fix_statistics, gradient_loss
from llmdistill.vision.dd.grouped import class_gradients, real_gradients
from llmdistill.vision.models import build
from tests.vision.dd.making import without_class
from tests.vision.dd.references import matching_by_class, rows_apart
from tests.vision.dd.tasks import MLP, TINY, digits, distilled, images_of, learned_from, resumed, task
from tests.vision.images import small_data

CONVNET = Net(arch="convnet", width=32, depth=2)
NETS = [TINY, Net(arch="mlp", width=6), Net(arch="resnet", width=4, depth=8, norm="group")]
TITLES = ["convnet", "mlp", "resnet"]
FEW = {"batch_real": 5, "iterations": 2}


def net_of(net: Net = TINY, classes: int = 3) -> nn.Module:
    return build(net, (3, 8, 8), classes, 0).double()


def images(number: int, seed: int, classes: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(classes, number, 3, 8, 8, generator=generator, dtype=torch.float64)


def labels_of(some: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(some))[:, None].expand(some.shape[:2])


def matched(net: nn.Module, synthetic: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    target = real_gradients(net, real, labels_of(real))
    return gradient_loss(class_gradients(net, synthetic, labels_of(synthetic)), target)


@pytest.mark.parametrize("net", NETS, ids=TITLES)
@pytest.mark.parametrize("ipc", [1, 3])
def test_all_classes_in_one_pass_are_the_same_as_one_after_the_other(net: Net, ipc: int) -> None:
    its_net, real = net_of(net), images(40, 1)  # more than go through at once
    found = []
    for function in (matched, matching_by_class):
        synthetic = images(ipc, 2).requires_grad_()
        loss = function(its_net, synthetic, real)
        found.append((loss.detach(), torch.autograd.grad(loss, synthetic)[0]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-7, atol=1e-10)


def test_the_gradient_to_the_images_is_that_of_finite_differences() -> None:
    net, real = net_of(Net(arch="convnet", width=2, depth=1)), images(4, 1)
    synthetic = images(2, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(matched(net, synthetic, real), synthetic)
    for seed in range(5):
        way = images(2, 10 + seed)
        with torch.no_grad():
            ahead, behind = (matched(net, synthetic + step * way, real) for step in (1e-6, -1e-6))
        torch.testing.assert_close((ahead - behind) / 2e-6, (gradient * way).sum(), rtol=1e-5, atol=1e-6)


def test_the_loss_is_zero_where_synthetic_images_are_the_real_ones() -> None:
    assert matched(net_of(), images(6, 1), images(6, 1)).abs() < 1e-9
    assert matched(net_of(), images(6, 2), images(6, 1)) > 1


def test_the_cosine_is_taken_of_each_output_row_and_not_of_the_whole_weight() -> None:
    one, other = (torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    one[:, 0] *= 100  # a whole tensor's cosine would see this row alone
    expected = sum(rows_apart(mine, its) for mine, its in zip(one, other, strict=True))
    torch.testing.assert_close(gradient_loss({"weight": one}, {"weight": other}), expected)
    whole = (1 - nn.functional.cosine_similarity(one.flatten(1), other.flatten(1))).sum()
    assert abs(expected - whole) > 1


def test_rows_of_a_convolution_are_its_filters() -> None:
    synthetic = torch.zeros(1, 2, 2, 1, 1)
    synthetic[0, 0, :, 0, 0] = torch.tensor([1.0, 2.0])
    synthetic[0, 1, :, 0, 0] = torch.tensor([1.0, 0.0])
    real = torch.zeros(1, 2, 2, 1, 1)
    real[0, 0, :, 0, 0] = torch.tensor([2.0, 4.0])
    real[0, 1, :, 0, 0] = torch.tensor([0.0, 1.0])
    assert gradient_loss({"weight": synthetic}, {"weight": real}).item() == pytest.approx(1.0)


def test_large_maps_go_class_by_class_with_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    its_net, real = net_of(), images(40, 1)
    found = []
    for least in (grouped.ONE_BY_ONE, 0):
        monkeypatch.setattr(grouped, "ONE_BY_ONE", least)
        synthetic = images(3, 2).requires_grad_()
        loss = matched(its_net, synthetic, real)
        found.append((loss, torch.autograd.grad(loss, synthetic)[0]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-7, atol=1e-10)


def test_biases_and_scales_of_norms_are_left_out() -> None:
    net = net_of()
    names = {name for name, parameter in net.named_parameters() if parameter.ndim > 1}
    assert len(names) < len(list(net.parameters()))
    assert set(class_gradients(net, images(2, 1), labels_of(images(2, 1)))) == names
    assert set(real_gradients(net, images(2, 1), labels_of(images(2, 1)))) == names


def test_small_gradients_count_as_much_as_large_ones() -> None:
    """A constant added to the product of norms would halve the cosine of rows of length 1e-3."""
    row = torch.tensor([[[1.0, 2.0, 3.0]]])
    for length in (1.0, 1e-3, 1e-6):
        assert gradient_loss({"weight": row * length}, {"weight": row * length}).item() == pytest.approx(0, abs=1e-5)


def test_rows_of_zeros_count_one_and_give_finite_gradients() -> None:
    synthetic = torch.zeros(1, 3, 4)
    synthetic[0, 0] = 1
    synthetic.requires_grad_()
    real = torch.ones(1, 3, 4)
    real[0, 2] = 0
    loss = gradient_loss({"weight": synthetic}, {"weight": real})
    loss.backward()
    assert loss.item() == pytest.approx(2.0)
    assert synthetic.grad is not None
    assert synthetic.grad.isfinite().all()


@pytest.mark.parametrize("least", [0, grouped.ONE_BY_ONE], ids=["one by one", "one pass"])
def test_real_images_and_the_network_are_no_part_of_the_graph(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "ONE_BY_ONE", least)
    net, real, synthetic = net_of(), images(4, 1).requires_grad_(), images(2, 2).requires_grad_()
    target = real_gradients(net, real, labels_of(real))
    assert not any(gradient.requires_grad for gradient in target.values())
    gradient_loss(class_gradients(net, synthetic, labels_of(synthetic)), target).backward()
    assert real.grad is None
    assert synthetic.grad is not None
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("method", [Gradient(**FEW), SiameseGradient(**FEW)], ids=["dc", "dsa"])
def test_every_image_changes_and_the_global_generator_is_left_alone(method: Gradient) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    distillation = method.distillation(task(2))
    start = images_of(distillation)
    assert all(torch.tensor(distillation.iterate()).isfinite() for _ in range(2))
    assert ((images_of(distillation) - start).abs().amax((1, 2, 3)) > 0).all()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", [Gradient(**FEW), SiameseGradient(**FEW)], ids=["dc", "dsa"])
def test_a_set_that_goes_on_from_a_checkpoint_becomes_the_same_images(method: Gradient, tmp_path: Path) -> None:
    whole = images_of(distilled(method, task(2)))
    assert torch.equal(resumed(method, task(2), 1, 1, tmp_path / "상태.safetensors"), whole)


def test_schedules_are_the_published_ones() -> None:
    found = {ipc: GradientDistillation(task(ipc), Gradient()).schedule() for ipc in (1, 10, 20)}
    assert found == {1: (1, 1), 10: (10, 50), 20: (20, 25)}
    assert GradientDistillation(task(10), Gradient(matchings=2, inner_epochs=3)).schedule() == (2, 3)


class Noting(GradientDistillation):
    """Writes down what an iteration does."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.seen: list[str] = []

    def matching(self, net: nn.Module) -> torch.Tensor:
        self.seen.append("match")
        return super().matching(net)

    def train_net(self, net: nn.Module, trainer: torch.optim.Optimizer, epochs: int) -> None:
        self.seen.append(f"train {epochs}")
        super().train_net(net, trainer, epochs)


def test_the_network_is_trained_between_matchings_and_not_after_the_last() -> None:
    distillation = Noting(task(2), Gradient(matchings=3, inner_epochs=1, batch_real=4))
    distillation.iterate()
    assert distillation.seen == ["match", "train 1", "match", "train 1", "match"]


def test_training_between_matchings_keeps_its_momentum_and_takes_every_image_once_an_epoch() -> None:
    distillation = Gradient(batch_train=4, net_momentum=0.9, batch_real=4).distillation(task(3))
    assert isinstance(distillation, GradientDistillation)
    net, expected = (build(TINY, (3, 8, 8), 3, 0) for _ in range(2))
    state = distillation.generator.get_state()
    trainer = distillation.trainer(net)
    for _ in range(2):
        distillation.train_net(net, trainer, 2)
    generator = torch.Generator()
    generator.set_state(state)
    pixels, labels = (each.detach() for each in distillation.synthesiser())
    velocity = [torch.zeros_like(parameter) for parameter in expected.parameters()]
    for _ in range(4):
        order = torch.randperm(9, generator=generator)
        for rows in (order[:4], order[4:8], order[8:]):
            loss = nn.functional.cross_entropy(expected(pixels[rows]), labels[rows])
            found = torch.autograd.grad(loss, list(expected.parameters()))
            with torch.no_grad():
                for parameter, speed, gradient in zip(expected.parameters(), velocity, found, strict=True):
                    speed.mul_(0.9).add_(gradient)
                    parameter.sub_(0.01 * speed)
    for one, other in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_siamese_matching_is_zero_where_synthetic_images_are_the_real_ones() -> None:
    """Another operation on one side, or other numbers, would tell them apart."""
    distillation = SiameseGradient(**FEW).distillation(task(2))
    assert isinstance(distillation, GradientDistillation)
    some = images(4, 1)
    changes = 0
    for _ in range(12):
        one, other = distillation.changed(some, some)
        assert torch.equal(one, other)
        changes += not torch.equal(one, some)
    assert changes > 6


def test_batch_norm_gets_statistics_of_all_classes_and_keeps_them() -> None:
    net = Net(arch="convnet", width=4, depth=1, norm="batch")
    its_task = task(1, net)
    its_net = its_task.fresh_net()
    state = its_task.generator.get_state()
    fix_statistics(its_net, its_task)
    its_task.generator.set_state(state)
    real = its_task.real(16).flatten(0, 1)
    norm = next(module for module in its_net.modules() if isinstance(module, nn.BatchNorm2d))
    convolution = next(module for module in its_net.modules() if isinstance(module, nn.Conv2d))
    torch.testing.assert_close(norm.running_mean, convolution(real).mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    before = copy.deepcopy(its_net.state_dict())
    some = real.reshape(3, -1, *real.shape[1:])[:, :4]
    class_gradients(its_net, some, labels_of(some))
    real_gradients(its_net, some, labels_of(some))
    assert all(torch.equal(value, before[name]) for name, value in its_net.state_dict().items())


def test_batch_norm_of_one_class_alone_would_be_another_loss() -> None:
    net = Net(arch="convnet", width=4, depth=1, norm="batch")
    its_task = task(1, net)
    its_net = its_task.fresh_net()
    some = its_task.real(8)
    alone = matching_by_class(copy.deepcopy(its_net), some[:, :1], some)
    fix_statistics(its_net, its_task)
    assert abs(matched(its_net, some[:, :1], some) - alone) > 1e-3
    torch.testing.assert_close(matched(its_net, some[:, :1], some), matching_by_class(its_net, some[:, :1], some))


def test_a_distillation_for_a_network_with_batch_norm_runs() -> None:
    method = Gradient(matchings=2, inner_epochs=1, batch_real=4)
    distillation = method.distillation(task(2, Net(arch="convnet", width=4, depth=1, norm="batch")))
    assert 0 < distillation.iterate() < 1000
    assert images_of(distillation).isfinite().all()


def test_a_class_without_images_is_an_error_and_not_a_number_that_is_none() -> None:
    with pytest.raises(ConfigError, match="class 1 has no training image"):
        Gradient().distillation(task(1, data=without_class(small_data(), 1)))


def test_the_preset_for_a_cpu_has_the_published_schedule_at_one_image_and_its_own_at_ten() -> None:
    one, ten = (SiameseGradient(preset="cpu").resolved(ipc) for ipc in (1, 10))
    published = SiameseGradient(preset="paper").resolved(1)
    asks_less = {"preset", "iterations", "batch_real"}
    assert one.model_dump(exclude=asks_less) == published.model_dump(exclude=asks_less)
    assert ten.iterations * (ten.matchings or 0) == 800 and max(ten.milestones) < ten.iterations


@pytest.mark.parametrize("method", [Gradient(preset="ci"), SiameseGradient(preset="ci")], ids=["dc", "dsa"])
def test_on_digits_with_one_image_a_class_it_is_15_points_above_random_images(method: Gradient) -> None:
    reached = {}
    for name, its_method in (("random", Random(iterations=1)), ("it", method.resolved(1))):
        sets = [images_of(distilled(its_method, task(1, MLP, seed, digits()))) for seed in (0, 1)]
        reached[name] = sum(learned_from(each, digits(), MLP, 2, 100) for each in sets) / 2
    assert reached["it"] > reached["random"] + 0.15
