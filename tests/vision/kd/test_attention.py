"""Attention transfer."""

import math

import pytest
import torch

from llmdistill.errors import ConfigError
from llmdistill.vision.config import Net
from llmdistill.vision.fit import accuracy
from llmdistill.vision.kd.attention import Attention, attention_loss, attention_map
from tests.vision.kd.feature_lessons import STUDENT, TEACHER, digits, drawn, gradient_checked, images, net, teach

FORMS = ["paper", "code"]


def by_definition(student, teacher, power, form):
    """Eq. 2 in Python's floats, image by image."""
    values = []
    for one, two in zip(student, teacher, strict=True):
        maps = []
        for feature in (one, two):
            places = feature.flatten(1).T.tolist()
            sums = [sum(abs(value) ** power for value in place) for place in places]
            length = math.hypot(*sums)
            maps.append([value / length for value in sums])
        gaps = [a - b for a, b in zip(*maps, strict=True)]
        values += [math.hypot(*gaps) / 2] if form == "paper" else [gap**2 for gap in gaps]
    return sum(values) / len(values)


@pytest.mark.parametrize("form", FORMS)
class TestLoss:
    @pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
    def test_it_is_its_definition(self, form, power):
        student, teacher = drawn(3, 2, 2, 3), drawn(3, 5, 2, 3, seed=1)
        expected = by_definition(student, teacher, power, form)
        assert attention_loss(student, teacher, power, form).item() == pytest.approx(expected, rel=1e-12)

    def test_its_gradient_agrees_with_finite_differences(self, form):
        teacher = drawn(2, 4, 2, 2, seed=1)
        assert gradient_checked(lambda own: attention_loss(own, teacher, 2.0, form), drawn(2, 3, 2, 2))

    def test_it_does_not_see_the_scale_of_features(self, form):
        student, teacher = drawn(2, 3, 2, 2), drawn(2, 3, 2, 2, seed=1)
        one, two = (attention_loss(factor * student, teacher, 2.0, form).item() for factor in (1, 5))
        assert one == pytest.approx(two)

    def test_equal_maps_give_zero_and_a_finite_gradient(self, form):
        teacher = drawn(2, 3, 2, 2)
        student = teacher.clone().requires_grad_()
        loss = attention_loss(student, teacher, 2.0, form)
        loss.backward()
        assert loss.item() == 0 and torch.isfinite(student.grad).all()

    def test_the_larger_map_is_averaged_to_the_smaller(self, form):
        student, teacher = drawn(2, 3, 4, 4), drawn(2, 3, 2, 2, seed=1)
        small = torch.nn.functional.avg_pool2d(student, 2)
        assert torch.equal(attention_loss(student, teacher, 2.0, form), attention_loss(small, teacher, 2.0, form))
        assert torch.equal(attention_loss(teacher, student, 2.0, form), attention_loss(teacher, small, 2.0, form))


def test_a_map_of_zeros_stays_zero():
    assert attention_map(torch.zeros(2, 3, 2, 2)).tolist() == [[0.0] * 4] * 2


@pytest.mark.parametrize("form, weight", [("paper", 1), ("code", 1000)])
def test_the_term_is_the_weighted_sum_over_layers(form, weight):
    method = Attention(form=form)
    distiller = method.distiller(net(STUDENT), net(TEACHER), images())
    assert distiller.layers == (("blocks.0", "blocks.1"), ("blocks.1", "blocks.2"))
    losses = [attention_loss(own, other, 2.0, form).item() for own, other in distiller.look(images()).maps]
    term = distiller.terms(images(), torch.arange(6))["attention"].item()
    assert term == pytest.approx(weight * sum(losses), rel=1e-5)


def test_by_default_blocks_of_a_single_place_are_passed_over():
    deep = Net(arch="convnet", width=4, depth=3)
    assert Attention().distiller(net(deep), net(deep), images()).layers == (
        ("blocks.0", "blocks.0"),
        ("blocks.1", "blocks.1"),
    )
    with pytest.raises(ConfigError, match=r"no attention in a single place \(blocks.2 of the student"):
        Attention(layers=[("blocks.0", "blocks.0"), ("blocks.2", "blocks.2")]).distiller(net(deep), net(deep), images())
    with pytest.raises(ConfigError, match="no attention in a single place"):
        Attention().distiller(net(Net(arch="mlp", width=4)), net(deep), images())


def test_a_student_learns_digits():
    assert accuracy(teach(Attention()).net, digits().test) > 0.5
