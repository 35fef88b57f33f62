"""Decoupled distillation against its definition (arXiv 2203.08679)."""

import math

import pytest
import torch

from llmdistill.errors import ConfigError
from llmdistill.vision.fit import accuracy
from llmdistill.vision.kd.decoupled import Decoupled, DecoupledDistiller, decoupled_loss, other_kl, target_kl
from llmdistill.vision.kd.response import response_loss
from tests.train.losses.references import kl, softmax
from tests.vision.kd.response_lessons import (
    Recorded,
    digits,
    distance,
    gradient,
    named,
    net,
    plain_student,
    trained,
    two,
)


def labels_of(num: int, classes: int) -> torch.Tensor:
    return torch.arange(num) * 7 % classes


def slow(student, teacher, label, alpha, beta, temperature):
    """One image, in plain Python."""
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    target = kl([p[label], math.fsum(p) - p[label]], [q[label], math.fsum(q) - q[label]])
    without = [[logit for place, logit in enumerate(logits) if place != label] for logits in (teacher, student)]
    other = kl(softmax(without[0], temperature), softmax(without[1], temperature))
    return temperature**2 * (alpha * target + beta * other)


@pytest.mark.parametrize("seed", range(12))
def test_the_loss_is_its_definition(seed):
    alpha, beta, temperature = [1.0, 0.5, 0.0][seed % 3], [8.0, 0.0, 1.0, 2.0][seed % 4], [1.0, 4.0][seed % 2]
    student, teacher = two(seed, 4 + seed, 3 + seed % 6)
    labels = labels_of(*student.shape)
    each = [
        slow(q, p, label, alpha, beta, temperature)
        for q, p, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True)
    ]
    found = float(decoupled_loss(student, teacher, labels, alpha, beta, temperature))
    assert found == pytest.approx(math.fsum(each) / len(each), rel=1e-9)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (1.0, 0.0), (0.0, 1.0)])
def test_the_gradient_agrees_with_finite_differences(alpha, beta):
    student, teacher = two(1, 3, 5)
    labels = labels_of(3, 5)
    assert torch.autograd.gradcheck(
        lambda logits: decoupled_loss(logits, teacher, labels, alpha, beta, 4.0), student.requires_grad_()
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_with_the_teachers_doubt_as_beta_it_is_response_distillation(temperature):
    student, teacher = two(2, 30, 10)
    labels = labels_of(30, 10)
    doubt = 1 - (teacher / temperature).softmax(-1).gather(-1, labels[:, None])[:, 0]
    target = target_kl(student, teacher, labels, temperature)
    other = other_kl(student, teacher, labels, temperature)
    for place in range(30):
        whole = response_loss(student[place : place + 1], teacher[place : place + 1], temperature)
        parts = temperature**2 * (target + doubt * other)[place]
        assert float(parts) == pytest.approx(float(whole), rel=1e-9)


def test_with_any_other_beta_it_is_not():
    student, teacher = two(2, 30, 10)
    labels = labels_of(30, 10)
    found = float(decoupled_loss(student, teacher, labels, 1.0, 1.0, 4.0))
    assert found != pytest.approx(float(response_loss(student, teacher, 4.0)), rel=0.01)


def test_it_is_zero_for_equal_logits_up_to_a_shift_of_each_image():
    teacher, shift = two(3, 4, 6)
    found = decoupled_loss(teacher + shift[:, :1], teacher, labels_of(4, 6), 1.0, 8.0, 4.0)
    assert float(found) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("place", range(6))
def test_it_is_not_zero_once_one_logit_differs(place):
    teacher, _ = two(3, 1, 6, scale=1.0)
    student = teacher.clone()
    student[0, place] += 0.1
    assert float(decoupled_loss(student, teacher, torch.tensor([2]), 1.0, 1.0, 4.0)) > 1e-5


def test_the_target_term_does_not_see_how_the_others_share_the_rest():
    student, teacher = two(4, 5, 6)
    labels = torch.zeros(5, dtype=torch.int64)
    mixed = torch.cat([student[:, :1], student[:, 1:].flip(-1)], -1)
    assert torch.allclose(target_kl(student, teacher, labels, 4.0), target_kl(mixed, teacher, labels, 4.0))
    assert not torch.allclose(other_kl(student, teacher, labels, 4.0), other_kl(mixed, teacher, labels, 4.0))


def test_the_other_term_does_not_see_the_label():
    student, teacher = two(5, 5, 6)
    labels = torch.full((5,), 3)
    surer = student.clone()
    surer[:, 3] += 5
    assert torch.equal(other_kl(student, teacher, labels, 4.0), other_kl(surer, teacher, labels, 4.0))
    assert not torch.allclose(target_kl(student, teacher, labels, 4.0), target_kl(surer, teacher, labels, 4.0))


def test_of_two_classes_only_the_target_term_is_left():
    student, teacher = two(6, 5, 2)
    labels = labels_of(5, 2)
    assert torch.equal(other_kl(student, teacher, labels, 1.0), torch.zeros(5, dtype=torch.float64))
    assert torch.allclose(decoupled_loss(student, teacher, labels, 1.0, 8.0, 1.0), response_loss(student, teacher, 1.0))


@pytest.mark.parametrize("seed", range(5))
def test_at_high_temperature_the_gradient_does_not_depend_on_it(seed):
    student, teacher = two(seed, 4, 10)
    labels = labels_of(4, 10)
    found = [
        gradient(lambda logits, t=t: decoupled_loss(logits, teacher, labels, 1.0, 2.0, t), student).norm()
        for t in (50.0, 100.0)
    ]
    assert float(found[0] / found[1]) == pytest.approx(1.0, rel=0.05)


def test_a_teacher_that_is_sure_beyond_float32_has_a_finite_loss_and_gradient():
    student, teacher = torch.tensor([[-300.0, 300.0, 0.0]]), torch.tensor([[300.0, 0.0, -300.0]])
    label = torch.tensor([0])
    # p of the label rounds to 1 for the teacher and to 0 for the student: 600 nats; 300 of them between the others.
    assert float(target_kl(student, teacher, label, 1.0)) == pytest.approx(600.0)
    assert float(other_kl(student, -teacher, label, 1.0)) == pytest.approx(300.0)
    found = gradient(lambda logits: decoupled_loss(logits, teacher, label, 1.0, 8.0, 1.0), student)
    assert found.isfinite().all() and found.abs().max() > 0.5


@pytest.mark.parametrize("classes", [1, 9])
def test_networks_of_other_classes_are_refused_in_one_line(classes):
    with pytest.raises(ConfigError, match="same classes"):
        decoupled_loss(torch.zeros(2, 10), torch.zeros(2, classes), torch.zeros(2, dtype=torch.int64), 1.0, 1.0, 4.0)


def test_no_teacher_is_one_clear_line():
    with pytest.raises(ConfigError, match="needs a teacher"):
        Decoupled().teach(net(), None, Recorded().lesson)


def test_its_name_in_a_pipeline_file_finds_it():
    assert named(name="decoupled", beta=8) == Decoupled(beta=8)


def test_the_soft_term_warms_up_epoch_by_epoch():
    images, labels = digits().train.images[:20], digits().train.labels[:20]
    distiller = DecoupledDistiller(net(), trained(), Decoupled(warmup=0.5))
    whole, shares = distiller.terms(images, labels), []
    for epoch in range(8):
        distiller.before_epoch(epoch, 8)
        terms = distiller.terms(images, labels)
        shares.append((terms["soft"] / whole["soft"]).item())
        assert torch.equal(terms["hard"], whole["hard"])
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0])


def test_without_warm_up_the_first_epoch_has_the_whole_weight():
    distiller = DecoupledDistiller(net(), trained(), Decoupled(warmup=0))
    distiller.before_epoch(0, 8)
    assert distiller.warmed == 1.0


def test_training_goes_through_the_warm_up():
    recorded = Recorded(epochs=4)
    seen = []

    class Watched(DecoupledDistiller):
        def terms(self, images, labels):
            seen.append(self.warmed)
            return super().terms(images, labels)

    recorded.lesson.fit(Watched(net(), trained(), Decoupled(warmup=1)))
    assert sorted(set(seen)) == [0.25, 0.5, 0.75, 1.0] and seen == sorted(seen)


def test_the_student_learns_digits_and_comes_closer_to_its_teacher_than_by_the_labels_alone():
    taught = Decoupled().teach(net(), trained(), Recorded().lesson)
    assert accuracy(taught.net, digits().test) > 0.8
    assert distance(taught.net, trained()) < 0.8 * distance(plain_student(), trained())
