"""Relational distillation."""

import math
from itertools import permutations

import pytest
import torch

from llmdistill.vision.fit import accuracy
from llmdistill.vision.kd.relational import Relational, angle_loss, distance_loss
from tests.vision.kd.feature_lessons import STUDENT, TEACHER, digits, drawn, gradient_checked, images, net, teach

LOSSES = [distance_loss, angle_loss]


def huber(gap):
    return gap**2 / 2 if abs(gap) <= 1 else abs(gap) - 0.5


def distances_by_definition(student, teacher):
    sides = []
    for vectors in (student.tolist(), teacher.tolist()):
        pairs = {(i, j): math.dist(vectors[i], vectors[j]) for i, j in permutations(range(len(vectors)), 2)}
        mean = sum(pairs.values()) / len(pairs)
        sides.append({pair: distance / mean for pair, distance in pairs.items()})
    return sum(huber(sides[0][pair] - sides[1][pair]) for pair in sides[0]) / len(sides[0])


def angles_by_definition(student, teacher):
    def cosine(vectors, i, j, k):
        one = [a - b for a, b in zip(vectors[i], vectors[j], strict=True)]
        two = [a - b for a, b in zip(vectors[k], vectors[j], strict=True)]
        lengths = math.hypot(*one) * math.hypot(*two)
        return sum(a * b for a, b in zip(one, two, strict=True)) / lengths if lengths else 0.0

    triplets = list(permutations(range(len(student)), 3))
    sides = [vectors.tolist() for vectors in (student, teacher)]
    return sum(huber(cosine(sides[0], *each) - cosine(sides[1], *each)) for each in triplets) / len(triplets)


@pytest.mark.parametrize(
    "loss, expected", [(distance_loss, distances_by_definition), (angle_loss, angles_by_definition)]
)
def test_a_loss_is_its_definition_whatever_the_numbers_of_channels(loss, expected):
    student, teacher = drawn(5, 3), drawn(5, 2, seed=1)
    student[0] *= 20
    assert loss(student, teacher).item() == pytest.approx(expected(student, teacher), rel=1e-12)


def test_the_angle_of_an_image_with_itself_is_no_part_of_the_loss():
    student, teacher = drawn(5, 3), drawn(5, 2, seed=1)
    student[1] = student[0]
    assert angle_loss(student, teacher).item() == pytest.approx(angles_by_definition(student, teacher), rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
class TestBoth:
    def test_the_gradient_agrees_with_finite_differences(self, loss):
        teacher = drawn(4, 3, seed=1)
        assert gradient_checked(lambda own: loss(own, teacher), drawn(4, 3))

    def test_scale_rotation_and_place_of_all_images_together_are_not_seen(self, loss):
        student, teacher = drawn(6, 4), drawn(6, 4, seed=1)
        rotation, _ = torch.linalg.qr(drawn(4, 4, seed=2))
        turned = 3.5 * student @ rotation + drawn(1, 4, seed=3)
        assert loss(turned, teacher).item() == pytest.approx(loss(student, teacher).item(), rel=1e-9)
        assert loss(turned, student).item() == pytest.approx(0, abs=1e-18)

    def test_other_relations_are_seen(self, loss):
        student = drawn(6, 4)
        stretched = student * torch.tensor([5.0, 1.0, 1.0, 1.0])
        assert loss(stretched, student).item() > 1e-3

    def test_images_in_one_place_and_small_batches_give_numbers(self, loss):
        same = torch.ones(4, 3, requires_grad=True)
        twice = drawn(4, 3).float()
        twice[1] = twice[0]
        twice.requires_grad_()
        for vectors in (same, twice, same[:1], same[:2]):
            value = loss(vectors, drawn(len(vectors), 3, seed=1).float())
            value.backward()
            assert torch.isfinite(value)
        assert torch.isfinite(same.grad).all() and torch.isfinite(twice.grad).all()


def test_a_batch_of_one_has_no_relations():
    assert distance_loss(drawn(1, 3), drawn(1, 3, seed=1)).item() == 0
    assert angle_loss(drawn(2, 3), drawn(2, 3, seed=1)).item() == 0


def test_the_terms_are_weighted_and_those_of_weight_zero_are_left_out():
    method = Relational(distance_weight=3.0, angle_weight=0.0)
    distiller = method.distiller(net(STUDENT), net(TEACHER), images())
    ((own, other),) = distiller.look(images()).maps
    terms = distiller.terms(images(), torch.arange(6))
    assert distiller.layers == (("blocks.1", "blocks.2"),) and sorted(terms) == ["distance", "hard"]
    expected = 3 * distance_loss(own.flatten(1), other.flatten(1)).item()
    assert terms["distance"].item() == pytest.approx(expected, rel=1e-4)


def test_a_student_learns_digits():
    assert accuracy(teach(Relational()).net, digits().test) > 0.5
