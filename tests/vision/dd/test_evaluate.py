"""Networks trained on a set: chosen on the validation part, the same for the same seed, and measured once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from llmdistill.errors import ConfigError
from llmdistill.vision.config import Net
from llmdistill.vision.data import ImageData, Part
from llmdistill.vision.dd import training
from llmdistill.vision.dd.artefact import DistilledDataset
from llmdistill.vision.dd.evaluate import evenly, full_set, judge, with_class_labels
from llmdistill.vision.dd.protocol import Evaluation
from llmdistill.vision.dd.training import augmented, each_by_itself, label_loss, steps_of, train_on
from llmdistill.vision.models import build
from tests.vision.images import small_data

MLP = Net(arch="mlp", width=16, depth=1)
CONVNET = Net(arch="convnet", width=8, depth=2)
SHORT = Evaluation(epochs=5, learning_rates=(0.05,), nets=2)


def set_of(data: ImageData, ipc: int = 2) -> DistilledDataset:
    """The first images of every class."""
    rows = torch.cat([torch.nonzero(data.train.labels == label).flatten()[:ipc] for label in range(data.num_classes)])
    part = data.train
    return DistilledDataset(part.images[rows], part.labels[rows], data.mean, data.std, data.num_classes, 0)


def weights(nets: list[nn.Module]) -> list[torch.Tensor]:
    return [value for net in nets for value in net.state_dict().values()]


class Watched:
    """A part that tells when it is looked at."""

    def __init__(self, part: Part, log: list[str]) -> None:
        self.part, self.log = part, log

    def __len__(self) -> int:
        return len(self.part)

    @property
    def images(self) -> torch.Tensor:
        self.log.append("test")
        return self.part.images

    @property
    def labels(self) -> torch.Tensor:
        return self.part.labels


def test_the_test_part_is_looked_at_after_everything_is_trained_and_once_for_each_network(
    monkeypatch: pytest.MonkeyPatch,
):
    data, log = small_data(), []
    images = len(data.test)
    watched = replace(data, test=Watched(data.test, log))
    monkeypatch.setattr(
        "llmdistill.vision.dd.evaluate.train_on", lambda *given: log.append("train") or train_on(*given)
    )
    judge(set_of(data), watched, MLP, Evaluation(epochs=2, nets=3, grid_nets=2))
    looks = [entry for entry in log if entry == "test"]
    assert images <= 500 and len(looks) == 3, "accuracy reads the images once a batch"
    assert log == ["train"] * 4 + ["test"] * 3, "three learning rates, then the third network, then the test part"


def test_the_learning_rate_is_the_one_that_is_best_on_validation_not_on_test():
    """Labels of the test part are turned round, so that what learns nothing is best there."""
    data = small_data()
    turned = replace(data, test=Part(data.test.images, (data.test.labels + 1) % 3))
    found = judge(set_of(data, 5), turned, MLP, Evaluation(epochs=40, learning_rates=(1e-6, 0.1), nets=2))
    on_test = {
        rate: judge(set_of(data, 5), turned, MLP, Evaluation(epochs=40, learning_rates=(rate,), nets=2)).test
        for rate in (1e-6, 0.1)
    }
    assert found.learning_rate == 0.1 and found.tried["0.1"] > found.tried["1e-06"]
    assert found.test == on_test[0.1]
    assert sum(on_test[1e-6]) > sum(on_test[0.1]), "the other rate is the better one on the test part"


def test_the_test_part_changes_nothing_but_the_test_accuracy():
    data = small_data()
    other = replace(data, test=Part(data.test.images.flip(0), data.test.labels))
    one, two = (judge(set_of(data), each, MLP, Evaluation(epochs=3, nets=2)) for each in (data, other))
    assert replace(one, test=[]) == replace(two, test=[])


@pytest.mark.parametrize("net", [MLP, CONVNET], ids=["mlp", "convnet"])
@pytest.mark.parametrize("augment", ["none", "dsa", "crop_scale_rotate"])
def test_the_same_seed_gives_the_same_numbers_and_the_global_generator_stays(net: Net, augment: str):
    data, state = small_data(), torch.get_rng_state()
    protocol = SHORT.model_copy(update={"augment": augment})
    one, same = (judge(set_of(data), data, net, protocol) for _ in range(2))
    assert one == same
    assert torch.equal(torch.get_rng_state(), state)
    other = protocol.model_copy(update={"seed": 7})
    nets = [train_on(set_of(data), data, net, SHORT, 0.05, [seed]) for seed in (protocol.seed, other.seed)]
    assert not torch.equal(weights(nets[0])[0], weights(nets[1])[0])


@pytest.mark.parametrize("net", [MLP, CONVNET, CONVNET.model_copy(update={"norm": "batch"})], ids=["mlp", "in", "bn"])
@pytest.mark.parametrize(("augment", "batch_size", "soft"), [("none", 256, False), ("dsa", 4, True)])
def test_a_stack_of_networks_becomes_what_each_becomes_by_itself(
    net: Net, augment: str, batch_size: int, soft: bool, monkeypatch: pytest.MonkeyPatch
):
    data = small_data()
    dataset = set_of(data, 3)
    if soft:
        generator = torch.Generator().manual_seed(0)
        dataset = replace(dataset, labels=torch.randn(len(dataset.labels), 3, generator=generator))
    protocol = Evaluation(epochs=6, batch_size=batch_size, augment=augment)
    found = []
    for stacked in (True, False):
        monkeypatch.setattr(training, "_is_small", lambda *_, stacked=stacked: stacked)
        found.append(train_on(dataset, data, net, protocol, 0.05, range(3)))
    for one, other in zip(weights(found[0]), weights(found[1]), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    seeds = [weights([each]) for each in found[0]]
    assert not torch.allclose(seeds[0][0], seeds[1][0]), "each network begins with its own seed"
    assert not any(module.training for each in found[0] for module in each.modules())


def test_a_network_does_not_depend_on_the_others_beside_it():
    data = small_data()
    protocol = Evaluation(epochs=6, augment="dsa")
    alone, beside = (train_on(set_of(data), data, MLP, protocol, 0.05, seeds) for seeds in ([1], [0, 1, 2]))
    pairs = zip(weights(alone), weights([beside[1]]), strict=True)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in pairs)


def test_soft_labels_that_are_one_hot_are_class_labels():
    data = small_data()
    hard = set_of(data)
    soft = replace(hard, labels=100.0 * nn.functional.one_hot(hard.labels, 3).float())
    one, other = (train_on(each, data, MLP, SHORT, 0.05, [0]) for each in (hard, soft))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights(one), weights(other), strict=True))
    assert torch.equal(with_class_labels(soft).labels, hard.labels)


def test_the_loss_of_soft_labels_is_the_cross_entropy_of_two_distributions():
    logits, labels = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[0.3, -1.0, 2.0]])
    by_hand = -(labels.softmax(1) * logits.log_softmax(1)).sum()
    assert label_loss(logits, labels).item() == pytest.approx(by_hand.item(), abs=1e-6)
    assert label_loss(logits, labels, targets=True).item() == pytest.approx((0.7**2 + 3**2 + 1.5**2) / 2)


def test_a_learned_learning_rate_is_used_where_the_protocol_says_so_alone():
    data = small_data()
    learned = replace(set_of(data), learning_rate=0.0321)
    short = {"epochs": 2, "nets": 1, "learning_rates": (0.01,)}
    assert judge(learned, data, MLP, Evaluation(learned_rate=True, **short)).learning_rate == 0.0321
    assert judge(learned, data, MLP, Evaluation(**short)).learning_rate == 0.01
    assert judge(set_of(data), data, MLP, Evaluation(learned_rate=True, **short)).learning_rate == 0.01


@pytest.mark.parametrize("net", [MLP, CONVNET.model_copy(update={"norm": "batch"})], ids=["stack", "bn"])
def test_networks_that_training_breaks_count_as_chance_and_it_is_said(net: Net, capsys: pytest.CaptureFixture[str]):
    data = small_data()
    broken = replace(set_of(data), images=set_of(data).images * float("nan"))
    found = judge(broken, data, net, SHORT)
    assert found.test == found.validation == [1 / 3, 1 / 3] and found.not_finite == 2
    assert "2 of 2 networks have values that are not finite" in capsys.readouterr().err


def test_a_learning_rate_that_breaks_networks_is_not_taken():
    data = small_data()
    found = judge(set_of(data, 5), data, MLP, Evaluation(epochs=30, learning_rates=(0.05, 1e12), nets=2))
    assert found.learning_rate == 0.05 and found.tried["1000000000000.0"] == pytest.approx(1 / 3)
    assert found.not_finite == 0


@pytest.mark.parametrize("ipc", [1, 3])
def test_batch_norm_trains_on_one_image_of_each_class_with_all_classes_in_every_batch(ipc: int):
    data = small_data(classes=6)
    net = CONVNET.model_copy(update={"norm": "batch"})
    found = judge(set_of(data, ipc), data, net, SHORT)
    assert found.not_finite == 0
    seen = [step.labels.unique() for step in steps_of(set_of(data, ipc), SHORT, 0, data.mean.device)]
    assert all(len(labels) == 6 for labels in seen)


def test_batches_are_mixed_and_no_image_is_alone_in_one():
    data = small_data()
    protocol = Evaluation(epochs=4, batch_size=4)
    steps: Iterator[training.Step] = steps_of(set_of(data, 3), protocol, 0, data.mean.device)
    sizes = [len(step.labels) for step in steps]
    assert sizes == [4, 5] * 4


def test_batch_norm_with_single_images_is_refused_in_one_line():
    data = small_data()
    with pytest.raises(ConfigError, match="batch norm has no statistics of one image"):
        net = CONVNET.model_copy(update={"norm": "batch"})
        train_on(set_of(data), data, net, Evaluation(batch_size=1), 0.1, [0])


def test_the_learning_rate_falls_to_a_tenth_after_half_of_the_epochs():
    data = small_data()
    factors = [step.factor for step in steps_of(set_of(data), Evaluation(epochs=4), 0, data.mean.device)]
    assert factors == [1.0, 1.0, 0.1, 0.1]


def test_each_image_is_changed_by_an_operation_of_its_own():
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    state = torch.get_rng_state()
    one, same = (each_by_itself(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, same) and torch.equal(torch.get_rng_state(), state)
    assert one.shape == images.shape and one.isfinite().all()
    moved = (one != images).flatten(1).any(1).float().mean()
    assert moved > 0.8
    alone = torch.cat([each_by_itself(images[:1], torch.Generator().manual_seed(seed)) for seed in range(30)])
    assert len({tuple(image.flatten().tolist()) for image in alone}) > 10


def test_a_batch_is_changed_by_one_operation_and_each_of_its_images_by_numbers_of_its_own():
    """As in the codes of DSA and MTT, where networks are trained; only matching changes all images alike."""
    images = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(1)).expand(32, 1, 16, 16)
    protocol = Evaluation(augment="dsa", strategy=("color", "crop"))
    kinds = set()
    for seed in range(12):
        made = augmented(images, protocol, torch.Generator().manual_seed(seed))
        assert 10 < len({tuple(image.flatten().tolist()) for image in made})
        kinds |= {bool(torch.isin(made, torch.cat([images.flatten(), torch.zeros(1)])).all())}
    assert kinds == {True, False}


def test_images_to_choose_by_are_of_all_classes_though_files_are_sorted():
    labels = torch.arange(10).repeat_interleave(30)
    part = evenly(Part(torch.zeros(300, 1, 2, 2), labels), 20)
    assert part.labels.bincount().tolist() == [2] * 10
    assert len(evenly(part, 50)) == 20


def test_full_data_is_judged_like_a_set_in_fewer_steps():
    data = small_data()
    protocol = Evaluation(epochs=50, batch_size=16, full_steps=20, learning_rates=(0.05,), nets=1)
    full = protocol.full(len(data.train))
    assert full.epochs == 4 and protocol.full(10).epochs == 20
    assert judge(full_set(data), data, MLP, full).test[0] > 0.5
    assert full_set(data).floats == data.train.images.numel()


def test_the_network_is_the_one_that_the_seed_builds():
    data = small_data()
    protocol = Evaluation(epochs=1, weight_decay=0.0)
    trained = train_on(set_of(data), data, MLP, protocol, 1e-30, [4])[0]
    fresh = build(MLP, data.shape, 3, 4)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), fresh.parameters(), strict=True))


def test_each_seed_draws_its_own_order_and_changes():
    data = small_data()
    protocol = Evaluation(epochs=2, batch_size=4, augment="dsa")
    drawn = [
        torch.cat([step.images for step in steps_of(set_of(data, 4), protocol, seed, data.mean.device)])
        for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
