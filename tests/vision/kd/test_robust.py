"""Adversarially robust distillation: the loss, the attack inside, and what it is good for."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from llmdistill.errors import ConfigError
from llmdistill.vision.attacks import Attack, Pixels, attacked, robust_accuracy
from llmdistill.vision.config import Net, Protocol
from llmdistill.vision.data import ImageData, Part
from llmdistill.vision.fit import accuracy
from llmdistill.vision.kd.methods import KdPipeline
from llmdistill.vision.kd.response import Response, response_loss
from llmdistill.vision.kd.robust import Robust, RobustDistiller
from tests.vision.kd.lessons import built, digits, lesson, taught, trained

BATCH = Net(arch="convnet", width=8, depth=2, norm="batch")
TEACHER = Net(arch="convnet", width=8, depth=2)
ATTACK = Attack(eps=0.1, step=0.04, steps=3)


def distiller(**settings: object) -> RobustDistiller:
    pixels = Pixels(digits().mean, digits().std)
    return RobustDistiller(built(BATCH), trained(TEACHER), Robust(attack=ATTACK, **settings), pixels, 7)


def few(num: int) -> ImageData:
    return replace(digits(), train=Part(digits().train.images[:num], digits().train.labels[:num]))


def some() -> tuple[torch.Tensor, torch.Tensor]:
    return digits().train.images[:16], digits().train.labels[:16]


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_the_terms_are_the_papers(alpha):
    taught_one = distiller(alpha=alpha, temperature=5.0).eval()
    images, labels = some()
    terms = taught_one.terms(images, labels)
    generator = torch.Generator().manual_seed(7)
    found = attacked(taught_one.student, images, labels, taught_one.pixels, ATTACK, generator)
    soft = response_loss(taught_one.student(found), trained(TEACHER)(images), 5.0)
    hard = nn.functional.cross_entropy(taught_one.student(images), labels)
    total = sum(terms.values())
    assert total.item() == pytest.approx((alpha * soft + (1 - alpha) * hard).item(), rel=1e-5)
    assert ("hard" in terms) == (alpha < 1)


def test_the_student_is_attacked_in_evaluation_mode_and_learns_in_training_mode():
    taught_one, modes = distiller().train(), []
    taught_one.student.register_forward_pre_hook(lambda net, _: modes.append(net.training))
    taught_one.terms(*some())
    assert modes == [False] * ATTACK.steps + [True]
    assert taught_one.student.training and not taught_one.teacher.training


def test_the_attack_leaves_no_gradient_and_moves_no_statistics():
    taught_one = distiller(alpha=0.0).train()
    taught_one.student.blocks.eval()
    before = {name: value.clone() for name, value in taught_one.student.named_buffers()}
    terms = taught_one.terms(*some())
    assert all(torch.equal(value, before[name]) for name, value in taught_one.student.named_buffers())
    assert all(parameter.grad is None for parameter in taught_one.student.parameters())
    assert terms["hard"].requires_grad


def test_the_student_stands_attacks_that_break_one_of_plain_distillation():
    given = lesson(Protocol(epochs=10), BATCH, few(700))
    robust = taught(Robust(attack=ATTACK), trained(TEACHER), given, BATCH)
    plain = taught(Response(), trained(TEACHER), given, BATCH)
    found = {
        name: robust_accuracy(one.net, digits().test, digits(), Attack(eps=0.1, step=0.025, steps=10))
        for name, one in (("robust", robust), ("plain", plain))
    }
    assert found["robust"] > found["plain"] + 0.1
    assert accuracy(robust.net, digits().test) > 0.7
    assert 0 < robust.measures["validation_attacked"] < 1


def test_the_same_seed_gives_the_same_student():
    given = lesson(Protocol(epochs=1), BATCH, few(200))
    one, other = (taught(Robust(attack=ATTACK), trained(TEACHER), given, BATCH).net for _ in range(2))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_no_teacher_is_one_clear_line():
    with pytest.raises(ConfigError, match="needs a teacher"):
        Robust().teach(built(BATCH), None, lesson(Protocol(epochs=1), BATCH, few(200)))


def test_a_pipeline_file_knows_it():
    methods = [{"name": "robust", "attack": {"eps": 0.1, "steps": 3}}]
    file = {"name": "강건", "student": {}, "teacher": {}, "methods": methods}
    assert KdPipeline.model_validate(file).methods == (Robust(attack=Attack(eps=0.1, steps=3)),)
