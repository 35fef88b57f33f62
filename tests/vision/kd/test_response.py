"""Response distillation against its definition."""

import math

import pytest
import torch
from pydantic import ValidationError

from llmdistill.errors import ConfigError
from llmdistill.vision.config import Net
from llmdistill.vision.fit import accuracy
from llmdistill.vision.kd.response import Response, ResponseDistiller, response_loss
from tests.train.losses.references import kl, softmax
from tests.vision.kd.response_lessons import (
    STUDENT,
    Recorded,
    digits,
    distance,
    gradient,
    named,
    net,
    plain_student,
    same,
    state,
    trained,
    two,
)

BATCH_NORM = Net(arch="resnet", width=4, depth=8)


@pytest.mark.parametrize("seed", range(12))
def test_the_loss_is_its_definition(seed):
    temperature = [0.5, 1.0, 4.0, 20.0][seed % 4]
    student, teacher = two(seed, 3 + seed, 2 + seed % 7)
    each = [
        kl(softmax(p, temperature), softmax(q, temperature))
        for q, p in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    expected = temperature**2 * math.fsum(each) / len(each)
    assert float(response_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0])
def test_the_gradient_agrees_with_finite_differences(temperature):
    student, teacher = two(1, 3, 5)
    assert torch.autograd.gradcheck(
        lambda logits: response_loss(logits, teacher, temperature), student.requires_grad_()
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_it_is_zero_for_equal_logits_up_to_a_shift_of_each_image(temperature):
    teacher, shift = two(2, 4, 6)
    assert float(response_loss(teacher + shift[:, :1], teacher, temperature)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("place", range(6))
def test_it_is_not_zero_once_one_logit_differs(place):
    teacher, _ = two(3, 1, 6, scale=1.0)
    student = teacher.clone()
    student[0, place] += 0.1
    assert float(response_loss(student, teacher, 4.0)) > 1e-5


@pytest.mark.parametrize("seed", range(5))
def test_at_high_temperature_the_gradient_does_not_depend_on_it(seed):
    student, teacher = two(seed, 4, 10)
    found = [gradient(lambda logits, t=t: response_loss(logits, teacher, t), student).norm() for t in (50.0, 100.0)]
    assert float(found[0] / found[1]) == pytest.approx(1.0, rel=0.05)


def test_in_the_limit_it_matches_centred_logits():
    student, teacher = two(5, 4, 10)
    wanted = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    found = gradient(lambda logits: response_loss(logits, teacher, 1e5), student)
    assert torch.allclose(found, wanted / (4 * 10), rtol=1e-3, atol=1e-5)


def test_half_precision_costs_only_the_rounding_of_the_logits():
    student, teacher = (logits.bfloat16() for logits in two(6, 8, 10))
    exact = float(response_loss(student.double(), teacher.double(), 20.0))
    assert float(response_loss(student, teacher, 20.0)) == pytest.approx(exact, rel=1e-3)


def test_very_sure_networks_have_a_finite_loss_and_gradient():
    student, teacher = torch.tensor([[500.0, -500.0, 0.0]]), torch.tensor([[-500.0, 500.0, 0.0]])
    assert float(response_loss(student, teacher, 1.0)) == pytest.approx(1000.0)
    assert gradient(lambda logits: response_loss(logits, teacher, 1.0), student).isfinite().all()


@pytest.mark.parametrize("classes", [1, 9, 100])
def test_networks_of_other_classes_are_refused_in_one_line(classes):
    with pytest.raises(ConfigError, match=rf"\[2, 10\].*\[2, {classes}\]") as error:
        response_loss(torch.zeros(2, 10), torch.zeros(2, classes), 4.0)
    assert "\n" not in str(error.value)


def test_no_teacher_is_one_clear_line():
    with pytest.raises(ConfigError, match="needs a teacher"):
        Response().teach(net(), None, Recorded().lesson)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"soft_weight": 0, "hard_weight": 0}, "nothing to learn"),
        ({"temperature": 0}, "greater than 0"),
        ({"soft_weight": -0.1}, "greater than or equal to 0"),
        ({"온도": 4}, "not permitted"),
    ],
)
def test_settings_that_cannot_teach_are_refused(settings, complaint):
    with pytest.raises(ValidationError, match=complaint):
        Response(**settings)


def test_its_name_in_a_pipeline_file_finds_it():
    assert named(name="response", temperature=2) == Response(temperature=2)


def test_the_terms_are_weighted():
    images, labels = digits().train.images[:20], digits().train.labels[:20]
    student, teacher = net(), trained()
    terms = ResponseDistiller(student, teacher, Response(soft_weight=0.3, hard_weight=2, temperature=3)).terms(
        images, labels
    )
    assert torch.allclose(terms["soft"], 0.3 * response_loss(student(images), teacher(images), 3))
    assert torch.allclose(terms["hard"], 2 * torch.nn.functional.cross_entropy(student(images), labels))


@pytest.mark.parametrize("name", ["response", "decoupled"])
def test_the_teacher_is_in_evaluation_mode_and_does_not_change(name):
    teacher = net(BATCH_NORM).train()
    before = state(teacher)
    student = net(BATCH_NORM, seed=1)
    moved = state(student)
    recorded = Recorded(epochs=1)
    named(name=name).teach(student, teacher, recorded.lesson)
    assert same(state(teacher), before)
    assert not same(state(student), moved)
    recorded.distillers[0].train()
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())


def test_only_the_student_is_trained():
    student = net()
    distiller = ResponseDistiller(student, trained(), Response())
    assert {id(each) for each in distiller.trained()} == {id(each) for each in student.parameters()}


def test_a_student_that_sees_no_label_learns_digits_from_its_teacher():
    method = Response(soft_weight=1, hard_weight=0)
    student = method.teach(net(), trained(), Recorded().lesson).net
    assert accuracy(student, digits().test) > 0.8


def test_the_student_comes_closer_to_its_teacher_than_one_that_learned_the_labels_alone():
    taught = Response().teach(net(STUDENT), trained(), Recorded().lesson)
    assert distance(taught.net, trained()) < 0.7 * distance(plain_student(), trained())
