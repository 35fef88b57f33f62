"""int8 students: before, after, and with what a teacher gives back."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from llmdistill.errors import ConfigError
from llmdistill.vision.config import Net, Protocol
from llmdistill.vision.data import ImageData, Part
from llmdistill.vision.fit import accuracy
from llmdistill.vision.int8 import FakeQuantised, InputRange, _Int8, fake_quantised
from llmdistill.vision.kd.methods import KdPipeline
from llmdistill.vision.kd.quantised import Quantised, QuantisedDistiller
from tests.vision.kd.lessons import built, digits, lesson, trained

STUDENT = Net(arch="convnet", width=8, depth=2, norm="batch")
TEACHER = Net(arch="mlp", width=128, depth=1)
SHORT = Protocol(epochs=4)
GIVEN = {"start": "given"}


def few() -> ImageData:
    return replace(digits(), train=Part(digits().train.images[:400], digits().train.labels[:400]))


def student() -> nn.Module:
    return copy.deepcopy(trained(STUDENT))


class TestKept:
    def test_it_is_the_int8_network_and_its_last_accuracy_is_its_own(self):
        taught = Quantised(**GIVEN).teach(student(), trained(TEACHER), lesson(SHORT, STUDENT, few()))
        assert any(isinstance(module, _Int8) for module in taught.net.modules())
        assert not any(isinstance(module, FakeQuantised | nn.BatchNorm2d) for module in taught.net.modules())
        assert taught.history.validation[-1] == accuracy(taught.net, digits().validation)

    def test_with_recovery_it_is_about_as_good_as_in_float(self):
        taught = Quantised(**GIVEN, recovery_epochs=2).teach(student(), trained(TEACHER), lesson(SHORT, STUDENT, few()))
        assert accuracy(taught.net, digits().test) > accuracy(trained(STUDENT), digits().test) - 0.02

    def test_the_measures_tell_of_before_and_of_size_and_speed(self):
        taught = Quantised(**GIVEN).teach(student(), trained(TEACHER), lesson(SHORT, STUDENT, few()))
        assert taught.measures["validation_float"] == accuracy(trained(STUDENT), digits().validation)
        assert taught.measures["validation_before_recovery"] > 0.8
        assert taught.measures["bytes_ratio"] < 0.7
        assert {"latency", "latency_ratio", "latency_64", "latency_64_ratio"} <= set(taught.measures)

    def test_without_recovery_it_is_the_float_network_rounded_and_nothing_is_trained(self):
        taught = Quantised(**GIVEN, recover=False).teach(student(), None, lesson(SHORT, STUDENT, few()))
        assert taught.history.loss == []
        assert taught.history.validation == [taught.measures["validation_before_recovery"]]


class TestStages:
    def test_the_float_network_learns_what_the_plain_one_does(self):
        seen = recorded(Quantised(recover=False), None)
        (labels,) = seen
        assert labels.teacher is None and labels.student(digits().test.images[:2]).shape == (2, 10)

    def test_with_start_teacher_both_stages_have_the_teacher(self):
        teacher = trained(TEACHER)
        first, second = recorded(Quantised(start="teacher"), teacher)
        assert first.teacher is second.teacher is teacher

    def test_the_guide_may_be_the_float_network_itself(self):
        net = student()
        (only,) = recorded(Quantised(**GIVEN, guide="original"), None, net)
        images = digits().test.images[:9]
        assert torch.equal(only.teacher(images), trained(STUDENT)(images))
        assert not any(isinstance(module, FakeQuantised) for module in only.teacher.modules())

    def test_soft_weight_0_needs_no_teacher_and_learns_the_labels_alone(self):
        (only,) = recorded(Quantised(**GIVEN, soft_weight=0), None)
        terms = only.terms(digits().train.images[:8], digits().train.labels[:8])
        assert set(terms) == {"hard"}
        logits = only.student(digits().train.images[:8])
        expected = nn.functional.cross_entropy(logits, digits().train.labels[:8])
        assert terms["hard"].item() == pytest.approx(expected.item(), rel=0.05)

    def test_no_teacher_is_one_clear_line(self):
        with pytest.raises(ConfigError, match="needs a teacher"):
            Quantised(**GIVEN).teach(student(), None, lesson(SHORT, STUDENT, few()))

    def test_recovery_is_shorter_and_has_smaller_steps(self):
        protocols = []
        given = lesson(Protocol(epochs=9, learning_rate=0.2, warmup_epochs=2.0), STUDENT, few())
        train = given.train
        object.__setattr__(given, "train", lambda *them: (protocols.append(them[2]), train(*them))[1])
        Quantised(**GIVEN, recovery_epochs=None).teach(student(), trained(TEACHER), given)
        assert (protocols[0].epochs, protocols[0].learning_rate) == (2, pytest.approx(0.02))


def recorded(method: Quantised, teacher: nn.Module | None, net: nn.Module | None = None) -> list:
    """The distillers of a method's stages."""
    seen = []
    given = lesson(Protocol(epochs=1), STUDENT, few())
    train = given.train
    object.__setattr__(given, "train", lambda *them: (seen.append(them[0]), train(*them))[1])
    method.teach(net or (student() if method.start == "given" else built(STUDENT)), teacher, given)
    return seen


def test_ranges_are_frozen_late():
    distiller = QuantisedDistiller(fake_quantised(student()), None, Quantised(freeze_after=0.5)).train()
    ranges = [module for module in distiller.modules() if isinstance(module, InputRange)]
    frozen = []
    for epoch in range(4):
        distiller.before_epoch(epoch, 4)
        before = [float(each.high) for each in ranges]
        distiller.terms(digits().train.images[:64] * (epoch + 1), digits().train.labels[:64])
        frozen.append([float(each.high) for each in ranges] == before)
    assert frozen == [False, False, True, True]


def test_the_same_seed_gives_the_same_student():
    nets = [Quantised(**GIVEN).teach(student(), trained(TEACHER), lesson(SHORT, STUDENT, few())).net for _ in range(2)]
    one, other = (net.state_dict() for net in nets)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_half_precision_trains_too(precision):
    if "precision" not in Protocol.model_fields:
        pytest.skip("this protocol has one precision")
    given = lesson(Protocol(epochs=1, precision=precision), STUDENT, few())
    taught = Quantised(**GIVEN).teach(student(), trained(TEACHER), given)
    assert accuracy(taught.net, digits().test) > 0.8


def test_a_pipeline_file_knows_it():
    file = {"name": "양자화", "student": {}, "teacher": {}, "methods": [{"name": "quantised", "recover": False}]}
    assert KdPipeline.model_validate(file).methods == (Quantised(recover=False),)
