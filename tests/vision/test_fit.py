"""The training loop: what it trains, by which schedule, from which generator, and how it fails."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from llmdistill.errors import ConfigError, StageError
from llmdistill.vision.config import Net, Protocol
from llmdistill.vision.data import ImageData, Part
from llmdistill.vision.distiller import Distiller
from llmdistill.vision.fit import History, accuracy, fit, learning_rate_at, optimiser_of
from llmdistill.vision.kd.base import Lesson
from llmdistill.vision.kd.plain import Plain, PlainDistiller
from llmdistill.vision.kd.response import Response, ResponseDistiller
from llmdistill.vision.models import build
from tests.vision.images import small_data

PROTOCOL = Protocol(epochs=3, batch_size=16, learning_rate=0.05)


def student(seed: int = 0, norm: str = "batch") -> nn.Module:
    return build(Net(arch="convnet", width=8, depth=2, norm=norm), (3, 8, 8), 3, seed)


def weights(net: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in net.state_dict().values()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(first, second) for first, second in zip(one, other, strict=True))


def test_a_step_is_that_of_the_loop_written_out():
    data, protocol = small_data(), PROTOCOL.model_copy(update={"nesterov": True, "warmup_epochs": 1.0})
    fast, slow = student(), student()
    fit(PlainDistiller(fast), data, protocol, 5)

    draws = torch.Generator().manual_seed(5)
    optimiser = torch.optim.SGD(slow.parameters(), 1.0, momentum=0.9, nesterov=True, weight_decay=5e-4)
    step = 0
    for _ in range(3):
        order = torch.randperm(65, generator=draws)
        for batch in (order[:16], order[16:32], order[32:48], order[48:]):
            rate = (step + 1) / 4 if step < 4 else 0.5 * (1 + math.cos(math.pi * step / 12))
            optimiser.param_groups[0]["lr"] = 0.05 * rate
            optimiser.zero_grad()
            nn.functional.cross_entropy(slow.train()(data.train.images[batch]), data.train.labels[batch]).backward()
            optimiser.step()
            step += 1
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(weights(fast), weights(slow), strict=True))


def test_the_same_seed_gives_the_same_weights_and_another_one_others():
    data, protocol = small_data(), PROTOCOL.model_copy(update={"augment": ("crop", "flip", "cutout")})
    nets = [student() for _ in range(3)]
    torch.manual_seed(1)
    for net, seed in zip(nets, (0, 0, 1), strict=True):
        fit(PlainDistiller(net), data, protocol, seed)
        torch.rand(5)
    one, again, other = map(weights, nets)
    assert equal(one, again) and not equal(one, other)


class Dropout(PlainDistiller):
    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"hard": nn.functional.cross_entropy(nn.functional.dropout(self.student(images), 0.5), labels)}


def test_what_terms_draw_comes_from_the_seed_and_the_global_generator_is_put_back():
    data, nets = small_data(), [student(), student()]
    for number, net in enumerate(nets):
        torch.manual_seed(number)
        state = torch.get_rng_state()
        fit(Dropout(net), data, PROTOCOL, 0)
        assert torch.equal(torch.get_rng_state(), state)
    assert equal(weights(nets[0]), weights(nets[1]))


class Switch(PlainDistiller):
    """Learns wrong labels in the last epoch."""

    def before_epoch(self, epoch: int, epochs: int) -> None:
        self.shift = 1 if epoch == epochs - 1 else 0

    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return super().terms(images, (labels + self.shift) % 3)


def test_what_is_left_is_the_last_epoch_not_the_best_one():
    data, net = small_data(120), student()
    history = fit(Switch(net), data, PROTOCOL.model_copy(update={"epochs": 6, "schedule": "constant"}), 0)
    assert max(history.validation) > history.validation[-1]
    assert accuracy(net, data.validation) == history.validation[-1]


def test_the_teacher_neither_learns_nor_counts_batches_and_the_student_does():
    data, teacher, net = small_data(), student(1), student()
    before, own = weights(teacher), weights(net)
    distiller = ResponseDistiller(net, teacher, Response())
    fit(distiller, data, PROTOCOL, 0)
    assert equal(weights(teacher), before) and not equal(weights(net), own)
    assert not teacher.training and all(parameter.grad is None for parameter in teacher.parameters())
    assert int(net.state_dict()["blocks.0.1.num_batches_tracked"]) == 12


def test_a_training_never_looks_at_the_test_part():
    class Forbidden:
        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"the test part was asked for its {name}")

        def __len__(self) -> int:
            raise AssertionError("the test part was counted")

    data = replace(small_data(), test=Forbidden())

    def train(distiller: Distiller, data: ImageData, protocol: Protocol) -> History:
        return fit(distiller, data, protocol, 0)

    for method in (Plain(), Response()):
        taught = method.teach(student(), student(1), Lesson(data, PROTOCOL, 0, train))
        assert len(taught.history.validation) == 3


class Breaks(PlainDistiller):
    """A term that is not finite in one batch only."""

    def __init__(self, net: nn.Module, value: float, at: int) -> None:
        super().__init__(net)
        self.value, self.at, self.step = value, at, 0

    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.step += 1
        broken = torch.tensor(self.value if self.step == self.at else 0.0)
        return {**super().terms(images, labels), "관계": broken * self.student.classifier.bias.sum()}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_term_epoch_and_batch(value: float):
    with pytest.raises(StageError, match=r"term 관계 of the loss is -?(nan|inf) in epoch 2, batch 3 -> lower"):
        fit(Breaks(student(), value, 7), small_data(), PROTOCOL, 0)


class LastStep(PlainDistiller):
    def after_step(self, optimiser: torch.optim.Optimizer) -> None:
        with torch.no_grad():
            self.student.classifier.bias[0] = math.nan


def test_weights_that_break_in_the_very_last_step_are_told():
    with pytest.raises(StageError, match="the weights are not finite any more in epoch 1"):
        fit(LastStep(student()), small_data(), Protocol(epochs=1, batch_size=65), 0)


class TwoTerms(PlainDistiller):
    def before_epoch(self, epoch: int, epochs: int) -> None:
        self.late = epoch > 0

    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        hard = super().terms(images, labels)
        return {**hard, "late": 2 * hard["hard"]} if self.late else hard


def test_the_history_holds_each_term_and_they_add_up_to_the_loss():
    history = fit(TwoTerms(student()), small_data(), PROTOCOL, 0)
    hard, late = history.terms["hard"], history.terms["late"]
    assert late == pytest.approx([0.0, 2 * hard[1], 2 * hard[2]])
    assert history.loss == pytest.approx([hard[0], 3 * hard[1], 3 * hard[2]])
    assert history.seconds > 0


class Masked(PlainDistiller):
    def after_step(self, optimiser: torch.optim.Optimizer) -> None:
        with torch.no_grad():
            self.student.classifier.weight[0] = 0
            optimiser.state[self.student.classifier.weight]["momentum_buffer"][0] = 0


def test_what_after_step_enforces_holds_in_the_end():
    net = student()
    fit(Masked(net), small_data(), PROTOCOL, 0)
    assert (net.classifier.weight[0] == 0).all() and (net.classifier.weight[1] != 0).any()


def test_a_single_image_over_is_no_batch_of_its_own_for_batch_norm():
    net = build(Net(arch="vgg", width=2), (3, 2, 2), 3, 0)
    data = small_data(65, size=4)
    data = replace(data, train=Part(data.train.images[:, :, :2, :2], data.train.labels))
    data = replace(data, validation=Part(data.validation.images[:, :, :2, :2], data.validation.labels))
    assert len(fit(PlainDistiller(net), data, Protocol(epochs=1, batch_size=32), 0).loss) == 1


def test_bfloat16_stays_near_float32_and_keeps_float32_weights():
    data, plain, half = small_data(120), student(), student()
    protocol = PROTOCOL.model_copy(update={"epochs": 6})
    one = fit(PlainDistiller(plain), data, protocol, 0)
    other = fit(PlainDistiller(half), data, protocol.model_copy(update={"precision": "bfloat16"}), 0)
    assert all(parameter.dtype == torch.float32 for parameter in half.parameters())
    assert not equal(weights(plain), weights(half))
    assert other.loss == pytest.approx(one.loss, rel=0.1, abs=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_trains_to_nearly_the_weights_of_the_cpu():
    data, net, other = small_data(), student(), student()
    fit(PlainDistiller(net), data, PROTOCOL, 0)
    fit(PlainDistiller(other.cuda()), data.to("cuda"), PROTOCOL, 0)
    pairs = zip(weights(net), weights(other.cpu()), strict=True)
    assert all(torch.allclose(one.float(), same.float(), atol=1e-2) for one, same in pairs)


def test_accuracy_is_counted_and_leaves_every_mode_as_it_was():
    data, net = small_data(), student().train()
    net.blocks[0][1].eval()
    modes = [module.training for module in net.modules()]
    before = weights(net)
    found = accuracy(net, data.test, batch_size=7)
    assert [module.training for module in net.modules()] == modes and equal(weights(net), before)
    net.eval()
    guesses = [int(net(image[None]).argmax()) for image in data.test.images]
    right = [guess == label for guess, label in zip(guesses, data.test.labels.tolist(), strict=True)]
    assert found == pytest.approx(sum(right) / 20)


def test_adapters_are_in_the_optimiser_and_the_teacher_is_not():
    distiller = ResponseDistiller(student(), student(1), Response())
    distiller.adapter = nn.Linear(3, 4)
    (group,) = optimiser_of(distiller, PROTOCOL).param_groups
    chosen = {id(parameter) for parameter in group["params"]}
    assert chosen == {id(p) for net in (distiller.student, distiller.adapter) for p in net.parameters()}


def test_a_student_that_was_a_teacher_before_is_told_to_be_frozen():
    frozen = student()
    ResponseDistiller(student(1), frozen, Response())
    with pytest.raises(ConfigError, match="no parameter of the student may be trained"):
        fit(PlainDistiller(frozen), small_data(), PROTOCOL, 0)


def test_the_schedules_are_their_formulas():
    cosine, constant = PROTOCOL, PROTOCOL.model_copy(update={"schedule": "constant"})
    steps = PROTOCOL.model_copy(update={"schedule": "steps", "milestones": (0.5, 0.75)})
    warm = PROTOCOL.model_copy(update={"warmup_epochs": 0.3, "schedule": "constant"})
    assert [learning_rate_at(step, 100, cosine) for step in (0, 50)] == pytest.approx([1.0, 0.5])
    assert learning_rate_at(99, 100, cosine) == pytest.approx(0.5 * (1 + math.cos(0.99 * math.pi)))
    assert [learning_rate_at(step, 100, constant) for step in (0, 99)] == [1.0, 1.0]
    assert [learning_rate_at(step, 100, steps) for step in (49, 50, 75)] == pytest.approx([1, 0.1, 0.01])
    assert [learning_rate_at(step, 100, warm) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1, 1])
