"""Feature matching through adapters."""

import math

import pytest
import torch

from llmdistill.errors import ConfigError
from llmdistill.pipeline_file import load_as
from llmdistill.vision.config import Protocol
from llmdistill.vision.fit import accuracy
from llmdistill.vision.kd.feature import Feature, feature_loss
from llmdistill.vision.kd.methods import KdPipeline
from tests.vision.kd.feature_lessons import (
    STUDENT,
    TEACHER,
    digits,
    drawn,
    gradient_checked,
    images,
    lesson,
    net,
    taught_teacher,
    teach,
)

DISTANCES = ["l2", "cosine", "smooth_l1"]


def by_definition(student, teacher, distance):
    """In Python's floats, element by element."""
    num, channels, height, width = student.shape
    values = []
    for n in range(num):
        for row in range(height):
            for column in range(width):
                one, two = student[n, :, row, column].tolist(), teacher[n, :, row, column].tolist()
                if distance == "cosine":
                    lengths = math.hypot(*one) * math.hypot(*two)
                    values.append(1 - sum(a * b for a, b in zip(one, two, strict=True)) / lengths)
                    continue
                gaps = [abs(a - b) for a, b in zip(one, two, strict=True)]
                if distance == "l2":
                    values += [gap**2 for gap in gaps]
                else:
                    values += [gap**2 / 2 if gap < 1 else gap - 0.5 for gap in gaps]
    return sum(values) / len(values)


@pytest.mark.parametrize("distance", DISTANCES)
class TestLoss:
    def test_it_is_its_definition(self, distance):
        student, teacher = 2 * drawn(3, 4, 2, 3), drawn(3, 4, 2, 3, seed=1)
        expected = by_definition(student, teacher, distance)
        assert feature_loss(student, teacher, distance).item() == pytest.approx(expected, rel=1e-12)

    def test_its_gradient_agrees_with_finite_differences(self, distance):
        teacher = drawn(2, 3, 2, 2, seed=1)
        assert gradient_checked(lambda own: feature_loss(own, teacher, distance), drawn(2, 3, 2, 2))

    def test_it_is_zero_for_equal_maps(self, distance):
        teacher = drawn(2, 3, 2, 2)
        assert feature_loss(teacher, teacher, distance).item() == pytest.approx(0, abs=1e-12)


def test_cosine_does_not_see_the_length_of_vectors():
    student, teacher = drawn(2, 3, 2, 2), drawn(2, 3, 2, 2, seed=1)
    one, two = (feature_loss(factor * student, teacher, "cosine").item() for factor in (1, 7))
    assert one == pytest.approx(two)


def test_adapters_learn_with_the_student_and_are_thrown_away():
    student = net(STUDENT)
    distiller = Feature().distiller(student, taught_teacher(), digits().train.images[:4])
    before = [parameter.detach().clone() for parameter in distiller.adapters.parameters()]
    taught = lesson(Protocol(epochs=2)).fit(distiller)
    after = list(distiller.adapters.parameters())
    assert len(after) == 4 and not any(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    assert taught.loss[-1] < taught.loss[0]
    assert distiller.deployed().state_dict().keys() == net(STUDENT).state_dict().keys()


def test_the_adapted_map_has_the_smaller_size_and_the_teachers_channels():
    distiller = Feature(layers=[("blocks.0", "blocks.2")]).distiller(net(STUDENT), net(TEACHER), images())
    (own, other), adapt = distiller.look(images()).maps[0], distiller.adapters[0]
    assert own.shape[1:] == (8, 4, 4) and other.shape[1:] == (32, 2, 2)
    term = distiller.terms(images(), torch.arange(6))["feature"].item()
    expected = (adapt(torch.nn.functional.avg_pool2d(own, 2)) - other).pow(2).mean().item()
    assert term == pytest.approx(expected, rel=1e-5)


def test_without_an_adapter_the_channels_must_agree():
    with pytest.raises(ConfigError, match="blocks.0 gives 8 x 4 x 4 and blocks.1 gives 16 x 4 x 4: .* differ"):
        Feature(adapter="none").distiller(net(STUDENT), net(TEACHER), images())
    same = Feature(adapter="none").distiller(net(TEACHER), net(TEACHER, seed=1), images())
    assert not list(same.adapters.parameters())


def test_a_student_learns_digits():
    assert accuracy(teach(Feature()).net, digits().test) > 0.5


def test_a_pipeline_file_names_every_method_of_features(tmp_path):
    path = tmp_path / "특징.yaml"
    names = ["feature", "fitnets", "attention", "relational", "contrastive"]
    rows = "".join(f"  - {{name: {name}}}\n" for name in names)
    rows += "  - {name: feature, label: 이름, layers: [[blocks.0, blocks.1]]}\n"
    path.write_text(f"name: x\nstudent: {{arch: mlp}}\nteacher: {{arch: mlp}}\nmethods:\n{rows}", encoding="utf-8")
    methods = load_as(KdPipeline, path, []).methods
    assert [method.name for method in methods] == [*names, "feature"]
    assert methods[-1].layers == (("blocks.0", "blocks.1"),) and methods[-1].title == "이름"
