"""Pruned students: what holds while they recover, and what they are in the end."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from llmdistill.errors import ConfigError
from llmdistill.vision.config import Net, Protocol
from llmdistill.vision.data import ImageData, Part
from llmdistill.vision.fit import accuracy
from llmdistill.vision.kd.methods import KdPipeline
from llmdistill.vision.kd.pruned import Pruned, PrunedDistiller
from llmdistill.vision.pruning import magnitude_masks, prunable, sparsity_of
from tests.vision.kd.lessons import built, digits, lesson, trained

STUDENT = Net(arch="convnet", width=8, depth=2, norm="batch")
SHORT = Protocol(epochs=8)
STRUCTURES = ["weights", "channels"]


def few() -> ImageData:
    return replace(digits(), train=Part(digits().train.images[:600], digits().train.labels[:600]))


def taught(protocol: Protocol = SHORT, **settings: object):
    net = copy.deepcopy(trained(STUDENT))
    return Pruned(start="given", **settings).teach(net, None, lesson(protocol, STUDENT, few()))


def num_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("structure", STRUCTURES)
class TestBoth:
    def test_recovery_gives_back_most_of_what_pruning_took(self, structure):
        sparsity = {"weights": 0.75, "channels": 0.5}[structure]
        found = taught(structure=structure, sparsity=sparsity, recovery_epochs=6, learning_rate_share=0.5)
        before, dense = (found.measures[f"validation_{name}"] for name in ("before_recovery", "dense"))
        after = accuracy(found.net, digits().validation)
        assert before < dense - 0.1
        assert after > before + 0.5 * (dense - before)
        assert found.history.validation[-1] == after

    def test_without_recovery_it_is_pruned_at_once_and_nothing_is_trained(self, structure):
        found = taught(structure=structure, recover=False)
        assert found.history.loss == []
        assert found.history.validation == [found.measures["validation_before_recovery"]]

    def test_the_original_guides_and_is_left_alone(self, structure):
        net = copy.deepcopy(trained(STUDENT))
        found = Pruned(start="given", structure=structure).teach(net, None, lesson(SHORT, STUDENT, few()))
        assert all(torch.equal(value, trained(STUDENT).state_dict()[name]) for name, value in net.state_dict().items())
        assert found.net is not net

    def test_the_same_seed_gives_the_same_student(self, structure):
        one, other = (taught(structure=structure).net.state_dict() for _ in range(2))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_sparsity_that_was_asked_for_is_there_in_the_end_and_reported():
    found = taught(sparsity=0.8)
    assert sparsity_of(found.net) == pytest.approx(0.8, abs=1e-3)
    assert found.measures["sparsity"] == sparsity_of(found.net)
    assert found.measures["bytes_ratio"] == 1


def test_half_of_the_channels_make_it_smaller():
    found = taught(structure="channels", sparsity=0.5)
    assert num_parameters(found.net) < 0.5 * num_parameters(trained(STUDENT))
    assert found.measures["weights_ratio"] == pytest.approx(
        num_parameters(found.net) / num_parameters(trained(STUDENT)), abs=1e-3
    )
    assert found.measures["bytes_ratio"] < 0.6 and found.measures["sparsity"] < 0.01


def test_fewer_channels_are_faster():
    wide = Net(arch="convnet", width=96, depth=2)
    net = built(wide).eval()
    found = Pruned(start="given", structure="channels", sparsity=0.75, recover=False)
    assert found.teach(net, None, lesson(SHORT, wide)).measures["latency_64_ratio"] < 0.8


def test_masks_hold_after_every_step_of_the_training_loop():
    net = copy.deepcopy(trained(STUDENT))
    masks = magnitude_masks(net, 0.7)
    zeros = []

    class Watched(PrunedDistiller):
        def after_step(self, optimiser):
            super().after_step(optimiser)
            zeros.append(all(bool((prunable(self.student)[name][~mask] == 0).all()) for name, mask in masks.items()))

    protocol = Protocol(epochs=1, momentum=0.9, weight_decay=0.01)
    lesson(protocol, data=few()).fit(Watched(net, None, Pruned(), masks))
    assert len(zeros) == 10 and all(zeros)
    assert sparsity_of(net) == pytest.approx(0.7, abs=1e-3)


def test_each_round_prunes_further_and_all_rounds_share_the_epochs():
    seen = []
    given = lesson(Protocol(epochs=1), STUDENT, few())
    train = given.train

    def watched(distiller, data, protocol):
        seen.append((round(sparsity_of(distiller.student), 2), protocol.epochs))
        return train(distiller, data, protocol)

    object.__setattr__(given, "train", watched)
    net = copy.deepcopy(trained(STUDENT))
    Pruned(start="given", sparsity=0.8, rounds=3, recovery_epochs=4).teach(net, None, given)
    assert seen == [(0.56, 1), (0.77, 1), (0.8, 2)]


def test_with_the_teacher_as_guide_there_must_be_one():
    with pytest.raises(ConfigError, match="needs a teacher"):
        taught(guide="teacher")


@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.5, True])
def test_a_sparsity_that_prunes_nothing_or_everything_is_refused(sparsity):
    with pytest.raises(ValueError, match="sparsity"):
        Pruned(sparsity=sparsity)


def test_a_pipeline_file_knows_it():
    methods = [{"name": "pruned", "structure": "channels", "label": "절반"}]
    file = {"name": "가지치기", "student": {}, "teacher": {}, "methods": methods}
    assert KdPipeline.model_validate(file).methods == (Pruned(structure="channels", label="절반"),)
