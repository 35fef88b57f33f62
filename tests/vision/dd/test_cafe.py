"""CAFE: its loss by definition, the traps of its schedule, and what it reaches on digits."""

from __future__ import annotations

import pytest
import torch

from llmdistill.vision.config import Net
from llmdistill.vision.dd import cafe
from llmdistill.vision.dd.baselines import Random
from llmdistill.vision.dd.cafe import Cafe, Window, alignment_loss, discrimination_loss, features, layers_of, weights_of
from llmdistill.vision.models import build
from tests.vision.dd.references_dm import cafe_by_class
from tests.vision.dd.tasks import MLP, TINY, digits, distilled, images_of, learned_from, task

SHORT = Cafe(batch_real=8, probe_images=8, window=3, most_matchings=4, most_epochs=3, milestones=(2, 3))


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layers(seed: int, images: int) -> list[torch.Tensor]:
    return [drawn(seed, images, 2, 4, 4), drawn(seed + 1, images, 3, 2, 2), drawn(seed + 2, images, 5)]


def whole_loss(made: list[torch.Tensor], real: list[torch.Tensor]) -> torch.Tensor:
    aligned = alignment_loss(made, real, 3, [0.1, 1.0, 1.5][-len(made) :])
    return aligned + 0.01 * discrimination_loss(made[-1], real[-1], 3)


def test_the_loss_is_that_of_its_definition_without_a_term_that_is_constant_in_the_images():
    made, real = layers(0, 6), layers(10, 12)
    expected = cafe_by_class(made, real, 3, [0.1, 1.0, 1.0], 0.01, 0.5)
    assert float(whole_loss(made, real)) == pytest.approx(float(expected), rel=1e-10)


def test_a_matching_has_the_loss_of_its_definition():
    its_task = task(ipc=2)
    distillation = SHORT.distillation(its_task)
    net, state = its_task.fresh_net(), its_task.generator.get_state()
    found = float(distillation.matching(net).detach())
    its_task.generator.set_state(state)
    real = features(net, its_task.real(8).flatten(0, 1))
    made = features(net, distillation.synthesiser.images)
    assert found == pytest.approx(float(cafe_by_class(made, real, 3, [0.1, 1.0, 1.0], 0.01, 1.0).detach()), rel=1e-4)


def test_the_gradient_to_the_images_is_that_of_finite_differences():
    net = build(Net(arch="convnet", width=2, depth=1), (1, 4, 4), 3, 0).double()
    real = [each.detach() for each in features(net, drawn(0, 6, 1, 4, 4))]
    assert torch.autograd.gradcheck(
        lambda images: whole_loss(features(net, images), real), drawn(1, 3, 1, 4, 4).requires_grad_()
    )


def test_features_of_real_images_get_no_gradient():
    made, real = ([each.requires_grad_() for each in layers(seed, 6)] for seed in (0, 10))
    whole_loss(made, real).backward()
    assert all(each.grad is None for each in real)
    assert all(each.grad is not None for each in made)


def test_a_convnet_is_compared_before_each_pooling_and_at_its_end_and_weighted_from_there():
    net = build(Net(arch="convnet", width=4, depth=3), (1, 28, 28), 10, 0)
    assert layers_of(net) == ["blocks.0.2", "blocks.1.2", "blocks.2.2", "blocks.2"]
    assert weights_of(4, (1.0, 1.0, 0.1, 0.1)) == [0.1, 0.1, 1.0, 1.0]
    shapes = [tuple(each.shape[1:]) for each in features(net, torch.zeros(1, 1, 28, 28))]
    assert shapes == [(4, 32, 32), (4, 16, 16), (4, 8, 8), (4, 4, 4)]


@pytest.mark.parametrize(("num", "expected"), [(2, [1.0, 2.0]), (5, [0.1, 0.1, 0.1, 1.0, 2.0])])
def test_any_number_of_layers_has_weights(num: int, expected: list[float]):
    assert weights_of(num, (2.0, 1.0, 0.1)) == expected


def test_a_window_looks_at_its_last_accuracies_alone():
    window = Window(3)
    assert [window.spread(value) for value in (0.1, 0.5, 0.4, 0.45, 0.9)] == pytest.approx([None, None, 0.4, 0.1, 0.5])


def test_a_probe_is_the_accuracy_of_one_moment_on_training_images():
    """A network that knows the training labels and no others reaches 1 each time, no mixture with earlier ones."""
    its_task = task()
    part = its_task.data.train
    pairs = zip(part.images, part.labels, strict=True)
    train = {tuple(image.flatten().tolist()): int(label) for image, label in pairs}

    class Known(torch.nn.Module):
        wrong = False

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            labels = torch.tensor([train[tuple(image.flatten().tolist())] for image in images])
            return torch.nn.functional.one_hot((labels + self.wrong) % 3, 3).float()

    distillation, net = SHORT.distillation(its_task), Known()
    assert distillation.probe(net) == 1.0
    net.wrong = True
    assert distillation.probe(net) == 0.0
    net.wrong = False
    assert distillation.probe(net) == 1.0


class Counted:
    """Counts matchings, probes and epochs of a distillation."""

    def __init__(self, distillation: torch.nn.Module, accuracies: list[float] | None = None) -> None:
        self.matchings = self.probes = self.epochs = 0
        matching, epoch = distillation.matching, distillation._epoch

        def count_matching(net: torch.nn.Module) -> torch.Tensor:
            self.matchings += 1
            return matching(net)

        def count_epoch(*arguments: object) -> None:
            self.epochs += 1
            epoch(*arguments)

        def probe(net: torch.nn.Module) -> float:
            self.probes += 1
            return accuracies[self.probes % len(accuracies)] if accuracies else 0.5

        distillation.matching, distillation._epoch, distillation.probe = count_matching, count_epoch, probe


def test_both_loops_end_though_the_network_learns_nothing_and_never_settles():
    never = SHORT.model_copy(update={"matched_spread": 0.0, "trained_spread": 1.0})
    distillation = never.distillation(task())
    counted = Counted(distillation)
    distillation.iterate()
    assert (counted.matchings, counted.epochs) == (4, 12)


def test_matching_ends_with_a_network_whose_accuracy_has_settled():
    distillation = SHORT.distillation(task())
    counted = Counted(distillation)
    distillation.iterate()
    assert (counted.matchings, counted.epochs) == (3, 2 * 3)


def test_training_ends_once_the_accuracy_has_changed():
    distillation = SHORT.model_copy(update={"most_epochs": 50}).distillation(task())
    counted = Counted(distillation, [0.1, 0.5, 0.9])
    distillation.iterate()
    assert (counted.matchings, counted.epochs) == (4, 4 * 3)


def test_real_and_synthetic_images_are_changed_alike_and_those_of_training_by_numbers_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
):
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(
        cafe, "transformed", lambda images, drawn: seen.append((len(drawn.numbers), len(images))) or images
    )
    distillation = SHORT.model_copy(update={"strategy": ("crop",), "batch_train": 2}).distillation(task())
    net = distillation.task.fresh_net()
    distillation.matching(net)
    assert [numbers for numbers, _ in seen] == [1, 1]
    distillation.train_net(net)
    assert max(seen[2:]) == (2, 2) and all(numbers == images for numbers, images in seen[2:])


@pytest.mark.parametrize("net", [TINY, Net(arch="convnet", width=4, depth=2, norm="batch"), MLP])
def test_the_global_generator_is_left_as_it_was(net: Net):
    before = torch.get_rng_state()
    distillation = SHORT.distillation(task(net=net))
    begun = images_of(distillation)
    distillation.iterate()
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(images_of(distillation), begun)


def test_on_digits_with_one_image_a_class_it_is_10_points_above_random_images():
    found = {
        method.name: learned_from(images_of(distilled(method.resolved(1), task(1, MLP, data=digits()))), digits(), MLP)
        for method in (Random(), Cafe(preset="ci"))
    }
    assert found["cafe"] >= found["random"] + 0.1
