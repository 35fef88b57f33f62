"""Several teachers, and what exactly of them is averaged."""

import math

import pytest
import torch

from llmdistill.errors import ConfigError
from llmdistill.vision.config import Net
from llmdistill.vision.fit import accuracy
from llmdistill.vision.kd.multi_teacher import (
    Ensemble,
    MultiTeacher,
    MultiTeacherDistiller,
    Teachers,
    confidence_weights,
    log_mean_probabilities,
    multi_teacher_loss,
)
from llmdistill.vision.kd.response import response_loss
from tests.train.losses.references import kl, softmax
from tests.vision.kd.response_lessons import (
    TEACHER,
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

FURTHER = (Net(arch="mlp", width=48, depth=2), TEACHER)


def several(seed: int, num: int = 3, images: int = 4, classes: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a student and of several teachers."""
    _, teachers = two(seed, num, images, classes)
    return two(seed + 100, images, classes)[0], teachers


def drawn_weights(seed: int, num: int, images: int) -> torch.Tensor:
    return torch.rand(num, images, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).softmax(0)


def slow(student, teachers, weights, temperature):
    """The loss from its definition, in plain Python."""
    total = 0.0
    for image, logits in enumerate(student.tolist()):
        each = [softmax(teacher[image].tolist(), temperature) for teacher in teachers]
        mean = [
            math.fsum(float(weights[number, image]) * p[place] for number, p in enumerate(each))
            for place in range(len(logits))
        ]
        total += temperature**2 * kl(mean, softmax(logits, temperature))
    return total / len(student)


@pytest.mark.parametrize("seed", range(8))
def test_the_loss_is_its_definition(seed):
    temperature, num = [1.0, 4.0][seed % 2], 1 + seed % 4
    student, teachers = several(seed, num)
    weights = drawn_weights(seed, num, 4)
    found = float(multi_teacher_loss(student, teachers, temperature, weights))
    assert found == pytest.approx(slow(student, teachers, weights, temperature), rel=1e-9)


def test_without_weights_the_teachers_are_alike():
    student, teachers = several(1)
    found = float(multi_teacher_loss(student, teachers, 4.0))
    assert found == pytest.approx(slow(student, teachers, torch.full((3, 4), 1 / 3), 4.0), rel=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_agrees_with_finite_differences(weighted):
    student, teachers = several(2)
    weights = drawn_weights(2, 3, 4) if weighted else None
    assert torch.autograd.gradcheck(
        lambda logits: multi_teacher_loss(logits, teachers, 4.0, weights), student.requires_grad_()
    )


def test_probabilities_are_averaged_and_not_logits():
    # Two teachers are sure of the first class, the third all but rules it out.
    teachers = torch.tensor([[[8.0, 0.0, 0.0]], [[8.0, 0.0, 0.0]], [[-30.0, 0.0, 0.0]]], dtype=torch.float64)
    mean = log_mean_probabilities(teachers).exp()
    assert mean[0].tolist() == pytest.approx([2 / 3, 1 / 6, 1 / 6], abs=1e-3)
    of_logits = teachers.mean(0)
    assert of_logits.argmax() != 0
    assert float(multi_teacher_loss(mean.log(), teachers, 1.0)) == pytest.approx(0.0, abs=1e-12)
    assert float(multi_teacher_loss(of_logits, teachers, 1.0)) > 1.0


def test_it_is_zero_only_where_the_student_has_the_mean():
    _, teachers = several(3)
    mean = 4.0 * log_mean_probabilities(teachers, None, 4.0)
    assert float(multi_teacher_loss(mean + 3, teachers, 4.0)) == pytest.approx(0.0, abs=1e-12)
    mean[0, 0] += 0.5
    assert float(multi_teacher_loss(mean, teachers, 4.0)) > 1e-4


def test_the_gradient_is_that_of_the_weighted_divergences():
    student, teachers = several(4)
    weights = drawn_weights(4, 3, 4)

    def each(logits):
        parts = [
            weights[number, image] * response_loss(logits[image : image + 1], teachers[number, image : image + 1], 4.0)
            for number in range(3)
            for image in range(4)
        ]
        return torch.stack(parts).sum() / 4

    whole = gradient(lambda logits: multi_teacher_loss(logits, teachers, 4.0, weights), student)
    assert torch.allclose(whole, gradient(each, student))


@pytest.mark.parametrize("seed", range(5))
def test_at_high_temperature_the_gradient_does_not_depend_on_it(seed):
    student, teachers = several(seed)
    found = [gradient(lambda logits, t=t: multi_teacher_loss(logits, teachers, t), student).norm() for t in (50, 100)]
    assert float(found[0] / found[1]) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("weighting", ["uniform", "confidence"])
def test_one_teacher_alone_is_response_distillation(weighting):
    student, teachers = several(5, num=1)
    weights = confidence_weights(teachers, torch.zeros(4, dtype=torch.int64)) if weighting == "confidence" else None
    assert torch.allclose(multi_teacher_loss(student, teachers, 4.0, weights), response_loss(student, teachers[0], 4.0))


class TestConfidence:
    @pytest.mark.parametrize("num", [2, 3, 5])
    def test_the_weights_are_their_definition(self, num):
        _, teachers = several(6, num)
        labels = torch.tensor([0, 5, 2, 3])
        found = confidence_weights(teachers, labels)
        for image, label in enumerate(labels.tolist()):
            each = [-math.log(softmax(teacher[image].tolist())[label]) for teacher in teachers]
            expected = [(1 - share) / (num - 1) for share in softmax(each)]
            assert found[:, image].tolist() == pytest.approx(expected, rel=1e-9)

    def test_they_sum_to_one_and_none_exceeds_its_bound(self):
        _, teachers = several(7, 4, images=50)
        found = confidence_weights(teachers, torch.arange(50) % 6)
        assert torch.allclose(found.sum(0), torch.ones(50, dtype=torch.float64))
        assert (found >= 0).all() and (found <= 1 / 3 + 1e-12).all()

    def test_the_closer_to_the_label_the_heavier_image_by_image(self):
        _, teachers = several(8, 3, images=50)
        labels = torch.arange(50) % 6
        near = teachers.log_softmax(-1)[:, torch.arange(50), labels]
        assert torch.equal(confidence_weights(teachers, labels).argsort(0), near.argsort(0))

    def test_of_two_teachers_the_one_that_is_surely_wrong_is_not_heard(self):
        teachers = torch.tensor([[[200.0, 0.0, 0.0]], [[0.0, 4.0, 1.0]]])
        weights = confidence_weights(teachers, torch.tensor([1]))
        assert weights[:, 0].tolist() == pytest.approx([0.0, 1.0])
        student = torch.tensor([[1.0, 2.0, 3.0]])
        found = multi_teacher_loss(student, teachers, 2.0, weights)
        assert torch.allclose(found, response_loss(student, teachers[1], 2.0))

    def test_it_changes_what_a_student_learns_where_teachers_differ(self):
        images, labels = digits().test.images, digits().test.labels
        teachers = Teachers([trained(), net(TEACHER, seed=9)])
        found = {
            weighting: MultiTeacherDistiller(net(), teachers, MultiTeacher(weighting=weighting)).terms(images, labels)
            for weighting in ("uniform", "confidence")
        }
        weights = confidence_weights(teachers(images), labels)
        expected = 0.9 * multi_teacher_loss(net()(images), teachers(images), 4.0, weights)
        assert torch.allclose(found["confidence"]["soft"], expected)
        assert not torch.allclose(found["uniform"]["soft"], expected, rtol=0.01)


def test_an_ensemble_gives_the_mean_of_its_networks_probabilities():
    nets, images = [net(seed=seed) for seed in range(3)], digits().test.images[:5]
    each = torch.stack([one(images).softmax(-1) for one in nets])
    assert torch.allclose(Ensemble(nets)(images).softmax(-1), each.mean(0), atol=1e-6)


def test_teachers_of_other_classes_are_refused_in_one_line():
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 7))
    with pytest.raises(ConfigError, match="the networks know 10, 7 classes") as error:
        MultiTeacher().teach(net(), Teachers([net(), other]), Recorded().lesson)
    assert "\n" not in str(error.value)


def test_further_teachers_are_trained_on_the_labels_with_seeds_of_their_own():
    asked = []

    def remembered(settings, seed):
        asked.append((settings, seed))
        return trained(settings, seed)

    recorded = Recorded(epochs=1, trained=remembered)
    taught = MultiTeacher(teachers=FURTHER, seed=50).teach(net(), trained(), recorded.lesson)
    assert asked == [(FURTHER[0], 50), (FURTHER[1], 51)]
    teachers = list(recorded.distillers[0].teacher.nets)
    assert teachers == [trained(), trained(FURTHER[0], 50), trained(FURTHER[1], 51)]
    assert taught.measures == {"teachers": accuracy(Ensemble(teachers), digits().validation)}


def test_by_itself_it_does_not_take_the_seed_of_the_pipelines_teacher():
    assert MultiTeacher().seed not in range(100)


def test_ones_own_networks_teach_without_settings():
    recorded = Recorded(epochs=1, student=None, trained=None, build=None)
    own = Teachers([trained(), net(seed=4)])
    MultiTeacher().teach(net(), own, recorded.lesson)
    assert list(recorded.distillers[0].teacher.nets) == list(own.nets)


def test_all_teachers_stay_in_evaluation_mode_and_do_not_change():
    own = Teachers([net(Net(arch="resnet", width=4, depth=8), seed).train() for seed in range(2)])
    before, recorded = state(own), Recorded(epochs=1)
    MultiTeacher(weighting="confidence").teach(net(), own, recorded.lesson)
    assert same(state(own), before)
    recorded.distillers[0].train()
    assert not any(module.training for each in own.nets for module in each.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in own.parameters())


@pytest.mark.parametrize(
    ("teacher", "given", "complaint"),
    [
        (None, {}, "needs a teacher"),
        (trained, {}, "more than one teacher"),
        (trained, {"teachers": FURTHER}, "nothing here to train"),
    ],
)
def test_too_few_teachers_are_one_clear_line(teacher, given, complaint):
    with pytest.raises(ConfigError, match=complaint):
        MultiTeacher(**given).teach(net(), teacher and teacher(), Recorded(trained=None).lesson)


def test_its_name_in_a_pipeline_file_finds_it():
    found = named(name="multi_teacher", weighting="confidence", teachers=[{"arch": "mlp", "width": 48, "depth": 2}])
    assert found == MultiTeacher(weighting="confidence", teachers=FURTHER[:1])


@pytest.mark.parametrize("weighting", ["uniform", "confidence"])
def test_the_student_learns_digits_and_comes_close_to_the_mean_of_its_teachers(weighting):
    taught = MultiTeacher(teachers=FURTHER[:1], weighting=weighting).teach(net(), trained(), Recorded().lesson)
    mean = Ensemble([trained(), trained(FURTHER[0], 1000)])
    assert accuracy(taught.net, digits().test) > 0.8
    assert distance(taught.net, mean) < 0.8 * distance(plain_student(), mean)
