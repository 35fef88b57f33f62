"""Distribution matching: its loss and gradient by definition, its draws, and what it reaches on digits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmdistill.vision.config import Net
from llmdistill.vision.dd.base import Task
from llmdistill.vision.dd.baselines import ClassMean, Random
from llmdistill.vision.dd.distribution import AT_ONCE, Distribution, distribution_loss, features_of_real
from llmdistill.vision.dd.redrawn import Redrawn
from llmdistill.vision.dd.siamese import STRATEGY, draw
from llmdistill.vision.models import build, embed
from tests.vision.dd.references_dm import iterations_by_class, loss_by_class
from tests.vision.dd.tasks import MLP, TINY, digits, distilled, images_of, learned_from, resumed, task
from tests.vision.images import small_data

NETS = [
    TINY,
    Net(arch="convnet", width=4, depth=2, norm="batch"),
    Net(arch="mlp", width=16, depth=2),
    Net(arch="resnet", width=4, depth=8),
    Net(arch="vgg", width=2, norm="group"),
]


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_gradient_to_the_images_is_that_of_finite_differences():
    net = build(Net(arch="convnet", width=3, depth=1), (1, 4, 4), 3, 0).double()
    target = embed(net, drawn(0, 12, 1, 4, 4)).detach().unflatten(0, (3, 4))

    def loss(images: torch.Tensor) -> torch.Tensor:
        return distribution_loss(embed(net, images).unflatten(0, (3, 2)), target)

    assert torch.autograd.gradcheck(loss, drawn(1, 6, 1, 4, 4).requires_grad_())


def test_it_is_zero_with_a_zero_gradient_where_synthetic_images_are_the_real_ones():
    synthetic = drawn(0, 3, 5, 7).requires_grad_()
    loss = distribution_loss(synthetic, synthetic.detach().flip(1))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-25)
    assert synthetic.grad is not None
    assert synthetic.grad.abs().max() < 1e-12


def test_means_are_those_of_classes_and_not_of_the_batch():
    real = drawn(0, 3, 5, 7)
    exchanged = real[[1, 2, 0]]
    assert float(distribution_loss(exchanged, real)) > 1
    by_hand = sum(float(((real[c].mean(0) - exchanged[c].mean(0)) ** 2).sum()) for c in range(3))
    assert float(distribution_loss(exchanged, real)) == pytest.approx(by_hand, rel=1e-12)


def test_features_of_real_images_get_no_gradient():
    real, synthetic = drawn(0, 3, 5, 7).requires_grad_(), drawn(1, 3, 2, 7).requires_grad_()
    distribution_loss(synthetic, real).backward()
    assert real.grad is None
    assert synthetic.grad is not None


@pytest.mark.parametrize("net", NETS[:3:2], ids=lambda net: net.arch)
@pytest.mark.parametrize("strategy", [(), STRATEGY])
def test_iterations_are_those_of_a_loop_over_classes_that_builds_each_network(net: Net, strategy: tuple[str, ...]):
    distillation = Distribution(batch_real=40, strategy=strategy).distillation(task(net=net))
    losses = [distillation.iterate() for _ in range(4)]
    slow = task(net=net)
    start = images_of(Distribution().distillation(slow))
    images, expected = iterations_by_class(slow, start, 4, 40, strategy)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert torch.allclose(images_of(distillation), images, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(images, start, atol=1e-2)


@pytest.mark.parametrize("net", NETS, ids=lambda net: f"{net.arch}-{net.norm}")
def test_a_network_that_is_drawn_again_is_the_one_that_would_be_built(net: Net):
    one, other = task(net=net), task(net=net)
    nets = Redrawn(one)
    for _ in range(2):
        mine, its = nets.draw().state_dict(), other.fresh_net().state_dict()
        assert all(torch.equal(mine[name], its[name]) for name in mine.keys() | its.keys())
    assert torch.equal(one.generator.get_state(), other.generator.get_state())


def test_batch_norm_sees_all_classes_in_one_pass():
    net = build(NETS[1], (3, 8, 8), 3, 0)
    images = torch.randn(2 * AT_ONCE["cpu"], 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[: AT_ONCE["cpu"]] += 2
    whole = embed(net, images)
    assert torch.equal(features_of_real(net, images), whole)
    assert not torch.allclose(torch.cat([embed(net, some) for some in images.chunk(2)]), whole, atol=1e-2)


def test_parts_give_the_features_of_one_pass_where_images_are_by_themselves():
    net = build(TINY, (3, 8, 8), 3, 0)
    images = torch.randn(2 * AT_ONCE["cpu"] + 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = features_of_real(net, images)
    assert not found.requires_grad
    assert torch.allclose(found, embed(net, images), atol=1e-6)


def test_real_and_synthetic_images_are_changed_by_one_drawn_operation():
    """With the real images as the synthetic ones, the loss stays 0 whatever is drawn."""
    data = small_data(30)
    distillation = Distribution(batch_real=10, strategy=STRATEGY).distillation(task(ipc=10, data=data))
    assert max(float(distillation.loss().detach()) for _ in range(20)) < 1e-9
    images = distillation.synthesiser.images
    net, real = build(TINY, data.shape, 3, 0), images.detach().unflatten(0, (3, -1))
    cut = draw(torch.Generator().manual_seed(0), ("cutout",))
    assert float(loss_by_class(net, images, real, cut).detach()) < 1e-9


def test_the_global_generator_is_left_as_it_was():
    before = torch.get_rng_state()
    Distribution(batch_real=8).distillation(task()).iterate()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_set_that_is_resumed_has_the_same_images_bit_by_bit(tmp_path: Path):
    method = Distribution(batch_real=8)
    whole = method.distillation(task())
    for _ in range(7):
        whole.iterate()
    assert torch.equal(resumed(method, task(), 3, 4, tmp_path / "a.safetensors"), images_of(whole))


def test_classes_of_different_sizes_count_alike():
    """A class with one image, fewer than a batch, gives a loss that is finite and its own target."""
    data = small_data(30)
    keep = (data.train.labels != 2) | (torch.arange(30) == 2)
    part = type(data.train)(data.train.images[keep], data.train.labels[keep])
    its_task = Task(type(data)(part, data.validation, data.test, 3, data.mean, data.std), 1, TINY, 0)
    distillation = Distribution(batch_real=8, strategy=(), learning_rate=1e-9).distillation(its_task)
    gradients = torch.autograd.grad(distillation.loss(), [distillation.synthesiser.images])[0]
    assert gradients.isfinite().all()
    assert gradients[2].abs().max() < 1e-6 < gradients[0].abs().max()


def test_on_digits_with_one_image_a_class_it_is_15_points_above_random_images():
    found = {
        method.name: learned_from(images_of(distilled(method.resolved(1), task(1, MLP, data=digits()))), digits(), MLP)
        for method in (Random(), ClassMean(), Distribution(preset="ci"))
    }
    assert found["dm"] >= found["random"] + 0.15
    assert found["dm"] >= found["class_mean"] - 0.05
