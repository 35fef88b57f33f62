"""Distillation by training that is unrolled: gradients through it, the set's own steps, and what goes wrong."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

import pytest
import torch
from torch import nn
from torch.func import functional_call

from llmdistill.errors import ConfigError, InputError, StageError
from llmdistill.vision.config import Net
from llmdistill.vision.data import ImageData, Part
from llmdistill.vision.dd.baselines import Random
from llmdistill.vision.dd.evaluate import judge
from llmdistill.vision.dd.inner import Inner
from llmdistill.vision.dd.protocol import Evaluation
from llmdistill.vision.dd.unrolled import (
    Unrolled,
    descent,
    in_steps,
    sweep,
    train_by_schedule,
)
from llmdistill.vision.fit import accuracy
from llmdistill.vision.models import build
from tests.vision.dd.making import MLP, digits, goes_on_bit_equal, made, task_of, without_class
from tests.vision.images import small_data

FEW = Unrolled(iterations=3, batch_real=30, epochs=2)
NETS = {"mlp": Net(arch="mlp", width=8, depth=1), "convnet": Net(arch="convnet", width=4, depth=2)}


class Case:
    """A network, two images of each of three classes, step sizes, and a loss after training; float64."""

    def __init__(self, net: Net, steps: int = 5, init: float = 0.4) -> None:
        generator = torch.Generator().manual_seed(0)
        self.net = build(net, (3, 8, 8), 3, 0).double()
        self.inner = Inner(self.net)
        self.names = [name for name, _ in self.net.named_parameters()]
        self.start = [weight.detach() for weight in self.net.parameters()]
        self.images = torch.randn(2, 3, 3, 8, 8, generator=generator, dtype=torch.float64)
        self.rates = torch.rand(steps, generator=generator, dtype=torch.float64) * init
        self.labels = torch.arange(3)
        self.real = torch.randn(20, 3, 8, 8, generator=generator, dtype=torch.float64), torch.arange(20) % 3

    def loss(self, weights: Sequence[torch.Tensor], images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the network as it is written, without faster blocks."""
        logits = functional_call(self.net, dict(zip(self.names, weights, strict=True)), (images,))
        return nn.functional.cross_entropy(logits, labels)

    def after(self, images: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
        """The loss on real images after training, with the graph of all of it."""
        weights = [weight.clone().requires_grad_() for weight in self.start]
        for step, rate in enumerate(rates):
            slopes = torch.autograd.grad(self.loss(weights, images[step % 2], self.labels), weights, create_graph=True)
            weights = [weight - rate * slope for weight, slope in zip(weights, slopes, strict=True)]
        return self.loss(weights, *self.real)

    def swept(self) -> tuple[torch.Tensor, torch.Tensor]:
        trajectory = descent(self.inner, self.start, self.images, self.labels, self.rates)
        last = [weight.requires_grad_() for weight in trajectory[-1]]
        slopes = torch.autograd.grad(self.loss(last, *self.real), last)
        return sweep(self.inner, trajectory, self.images, self.labels, self.rates, list(slopes))


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
class TestTheSweep:
    def test_it_is_the_gradient_through_the_whole_graph(self, net: Net):
        case = Case(net)
        inputs = case.images.clone().requires_grad_(), case.rates.clone().requires_grad_()
        expected = torch.autograd.grad(case.after(*inputs), inputs)
        for mine, its in zip(case.swept(), expected, strict=True):
            assert its.abs().max() > 1e-4
            torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-13)

    def test_it_agrees_with_finite_differences(self, net: Net):
        case, eps = Case(net), 1e-6
        by_images, by_rates = case.swept()
        with torch.enable_grad():
            for step in range(len(case.rates)):
                moved = torch.zeros_like(case.rates)
                moved[step] = eps
                up, down = (case.after(case.images, case.rates + sign * moved).item() for sign in (1, -1))
                assert by_rates[step].item() == pytest.approx((up - down) / (2 * eps), rel=1e-4, abs=1e-8)
            for place in ((0, 0, 0, 1, 2), (1, 2, 1, 3, 3), (1, 1, 2, 7, 0)):
                moved = torch.zeros_like(case.images)
                moved[place] = eps
                up, down = (case.after(case.images + sign * moved, case.rates).item() for sign in (1, -1))
                assert by_images[place].item() == pytest.approx((up - down) / (2 * eps), rel=1e-4, abs=1e-8)


class Held:
    """A tensor that a graph holds; counts how many there are at once."""

    now = most = 0

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        Held.now += 1
        Held.most = max(Held.most, Held.now)

    def __del__(self) -> None:
        Held.now -= 1


def most_held(case: Case, whole: bool) -> int:
    """The greatest number of tensors that graphs hold while the gradient is found."""
    Held.now = Held.most = 0
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        if whole:
            case.after(case.images.clone().requires_grad_(), case.rates).backward()
        else:
            case.swept()
    return Held.most


def test_the_sweep_holds_the_graph_of_one_step_whatever_their_number():
    few, many = (Case(NETS["mlp"], steps, 0.01) for steps in (2, 20))
    assert most_held(many, whole=False) == most_held(few, whole=False)
    assert most_held(many, whole=True) > 5 * most_held(few, whole=True)


def test_step_t_is_on_image_t_of_every_class():
    images = torch.arange(6.0).reshape(6, 1, 1, 1)
    assert in_steps(images, 3).flatten(1).tolist() == [[0, 2, 4], [1, 3, 5]]


def test_images_and_step_sizes_move_and_step_sizes_begin_where_they_are_told():
    distillation = Unrolled(rate=0.3, epochs=2, batch_real=30).distillation(task_of(small_data(), 2))
    assert distillation.rates.tolist() == pytest.approx([0.3] * 4)
    images, rates = distillation.synthesiser.images.detach().clone(), distillation.rates.detach()
    distillation.iterate()
    assert distillation.synthesiser.images.grad is not None and distillation.raw_rates.grad is not None
    assert (distillation.synthesiser.images != images).all() and (distillation.rates != rates).all()


def test_step_sizes_are_never_negative_however_far_they_are_pushed():
    distillation = Unrolled(learning_rate=50.0, epochs=2, batch_real=30).distillation(task_of(small_data(), 1))
    for sign in (1, -1):
        distillation.optimiser.zero_grad()
        torch.autograd.backward(sign * distillation.rates.sum())
        distillation.optimiser.step()
        assert (distillation.rates >= 0).all()
    with torch.no_grad():
        distillation.raw_rates.fill_(-1e4)
    assert (distillation.rates >= 0).all()


def test_the_rate_of_images_and_step_sizes_falls_by_the_counter():
    method = Unrolled(decay_every=2, learning_rate=0.08, batch_real=30, epochs=1)
    distillation, rates = method.distillation(task_of(small_data(), 1)), []
    for _ in range(5):
        distillation.iterate()
        rates.append(distillation.optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx([0.08, 0.08, 0.04, 0.04, 0.02])


def test_a_loss_that_is_not_finite_is_said_and_nothing_is_changed():
    distillation = Unrolled(rate=1e38, batch_real=30, label="펼침").distillation(task_of(small_data(), 1))
    images = distillation.synthesiser.images.detach().clone()
    with pytest.raises(StageError, match="펼침: training on the set gave .* that is not finite after 0 iterations"):
        distillation.iterate()
    assert torch.equal(distillation.synthesiser.images, images)


def trained_by_sgd(net: nn.Module, images: torch.Tensor, rates: Sequence[float], classes: int) -> nn.Module:
    """The set's own steps by the usual optimiser; image `t` of class `c` is at c * ipc + t."""
    optimiser, ipc = torch.optim.SGD(net.parameters(), 1.0), len(images) // classes
    for step, rate in enumerate(rates):
        optimiser.param_groups[0]["lr"] = rate
        batch = torch.stack([images[label * ipc + step % ipc] for label in range(classes)])
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(batch), torch.arange(classes)).backward()
        optimiser.step()
    return net.eval()


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_network_trained_by_the_schedule_is_trained_by_those_steps(norm: str):
    data, net = small_data(), Net(arch="convnet", width=4, depth=2, norm=norm)
    dataset = made(FEW.model_copy(update={"rate": 0.1}), data, 2, net=net)
    assert dataset.schedule.shape == (4,) and dataset.floats == dataset.images.numel() + 4
    one = train_by_schedule(build(net, data.shape, 3, 5), dataset, torch.device("cpu"))
    other = trained_by_sgd(build(net, data.shape, 3, 5), dataset.images, dataset.schedule.tolist(), 3)
    assert not one.training
    torch.testing.assert_close(one(data.test.images), other(data.test.images), rtol=1e-4, atol=1e-5)


def test_a_set_without_step_sizes_of_its_own_is_said():
    dataset = replace(made(FEW, small_data(), 1), schedule=None)
    with pytest.raises(StageError, match="no step sizes of its own"):
        train_by_schedule(build(MLP, (3, 8, 8), 3, 0), dataset, torch.device("cpu"))


def test_a_fixed_network_is_the_same_in_every_iteration_and_in_the_measurement():
    data = small_data()
    fixed = Unrolled(init="fixed", net_seed=7, iterations=20, batch_real=65, epochs=3, learning_rate=0.05, rate=0.1)
    distillation = fixed.distillation(task_of(data, 1))
    losses = [distillation.iterate() for _ in range(20)]
    assert losses[-1] < losses[0] and all(b < a + 0.05 for a, b in zip(losses, losses[1:], strict=False))
    dataset = distillation.result({})
    expected = accuracy(train_by_schedule(build(MLP, data.shape, 3, 7), dataset, torch.device("cpu")), data.test)
    assert fixed.measures(dataset, data, MLP, data.test, 3) == {"own_schedule": [expected]}


def test_random_networks_are_those_of_the_seeds_from_the_one_told():
    data = small_data()
    dataset = made(FEW, data, 1)
    several = FEW.measures(dataset, data, MLP, data.test, 4)["own_schedule"]
    alone = [
        FEW.model_copy(update={"nets": 1}).measures(dataset, data, MLP, data.test, seed)["own_schedule"][0]
        for seed in range(4, 9)
    ]
    assert several == alone


def test_a_distilled_image_of_each_class_is_far_above_a_random_one():
    data = digits()
    method = Unrolled(preset="ci").resolved(1)
    dataset = made(method, data, 1)
    protocol = Evaluation(epochs=300, nets=2)
    random, common = (judge(each, data, MLP, protocol).test for each in (made(Random(), data, 1), dataset))
    own = method.measures(dataset, data, MLP, data.test, 0)["own_schedule"]
    assert mean(own) > mean(random) + 0.15 and mean(common) > mean(random) + 0.15


def test_the_global_generator_is_left_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    dataset = made(FEW, small_data(), 1)
    FEW.measures(dataset, small_data(), MLP, small_data().test, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_seed_gives_the_same_set_and_another_one_another():
    one, same, other = (made(FEW, small_data(), 1, seed) for seed in (0, 0, 1))
    assert torch.equal(one.images, same.images) and torch.equal(one.schedule, same.schedule)
    assert not torch.equal(one.images, other.images)


@pytest.mark.parametrize("init", ["random", "fixed"])
def test_it_goes_on_from_its_state_bit_equal(init: str):
    method = FEW.model_copy(update={"init": init, "decay_every": 3, "learning_rate": 0.1})
    assert goes_on_bit_equal(method, small_data(), 2)


@pytest.mark.parametrize("data", [small_data(num=4, classes=1), small_data(num=4, classes=4)], ids=["one", "four"])
def test_one_class_and_more_images_than_there_are_give_numbers(data: ImageData):
    dataset = made(FEW.model_copy(update={"start": "real"}), data, 6)
    assert torch.isfinite(dataset.images).all() and len(dataset.images) == 6 * data.num_classes
    assert 0 <= FEW.measures(dataset, data, MLP, data.test, 0)["own_schedule"][0] <= 1


def test_a_class_without_images_is_said():
    with pytest.raises(ConfigError, match="class 1 has no training image"):
        FEW.distillation(task_of(without_class(small_data(), 1), 1))


def test_a_part_without_images_is_said():
    data = small_data()
    empty = Part(data.test.images[:0], data.test.labels[:0])
    with pytest.raises(InputError, match="no image to measure on"):
        FEW.measures(made(FEW, data, 1), data, MLP, empty, 0)
