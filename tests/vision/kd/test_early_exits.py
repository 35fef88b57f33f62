"""Be your own teacher: the formula, what each term moves, and exits of every kind of network."""

import pytest
import torch

from llmdistill.errors import ConfigError
from llmdistill.vision.config import Net, Protocol
from llmdistill.vision.fit import accuracy
from llmdistill.vision.kd.early_exits import EarlyExits, EarlyExitsDistiller, hint_loss
from llmdistill.vision.kd.methods import KdPipeline
from llmdistill.vision.models import feature_names
from tests.vision.kd.lessons import SMALL, built, digits, divergence, drawn, lesson, softmax, taught

DEEP = Net(arch="convnet", width=8, depth=3)
NETS = [DEEP, Net(arch="resnet", width=4, depth=8), Net(arch="vgg", width=4), Net(arch="mlp", width=12, depth=3)]
IMAGES, LABELS = digits().train.images[:16], digits().train.labels[:16]


def distiller(net: Net = DEEP, **settings) -> EarlyExitsDistiller:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EarlyExitsDistiller(built(net), EarlyExits(**settings), IMAGES[:4])


class TestHint:
    def test_it_is_the_mean_over_images_of_the_squared_distance(self):
        one, other = drawn(0, 3, 2, 2, 2), drawn(1, 3, 2, 2, 2)
        rows = zip(one.flatten(1).tolist(), other.flatten(1).tolist(), strict=True)
        expected = sum((a - b) ** 2 for row in rows for a, b in zip(*row, strict=True)) / 3
        assert float(hint_loss(one, other)) == pytest.approx(expected, rel=1e-12)

    def test_its_gradient_agrees_with_finite_differences_and_leaves_the_deepest_alone(self):
        one, other = drawn(0, 3, 4).requires_grad_(), drawn(1, 3, 4).requires_grad_()
        assert torch.autograd.gradcheck(lambda features: hint_loss(features, other.detach()), one)
        assert torch.autograd.grad(hint_loss(one, other), other, allow_unused=True) == (None,)

    def test_it_does_not_depend_on_the_batch_size(self):
        one, other = drawn(0, 3, 4), drawn(1, 3, 4)
        twice = hint_loss(torch.cat([one, one]), torch.cat([other, other]))
        assert float(twice) == pytest.approx(float(hint_loss(one, other)), rel=1e-12)


class TestTerms:
    def test_they_are_those_of_the_paper(self):
        taught_by = distiller(soft_weight=0.3, hint_weight=0.02, temperature=2.0).double()
        images = IMAGES.double()
        (*early, deepest), (*features, last) = taught_by.exits(images)
        found = {name: value.item() for name, value in taught_by.terms(images, LABELS).items()}
        ones = [cross_entropy(logits) for logits in early]
        assert found["hard"] == pytest.approx(cross_entropy(deepest) + 0.7 * sum(ones), rel=1e-9)
        goal = [softmax(row, 2.0) for row in deepest.tolist()]
        soft = sum(
            4.0 * divergence(p, softmax(row, 2.0)) for one in early for p, row in zip(goal, one.tolist(), strict=True)
        )
        assert found["soft"] == pytest.approx(0.3 * soft / len(images), rel=1e-9)
        hint = sum(((feature - last) ** 2).sum().item() for feature in features)
        assert found["hint"] == pytest.approx(0.02 * hint / len(images), rel=1e-9)

    @pytest.mark.parametrize("net", NETS, ids=lambda net: net.arch)
    def test_the_deepest_exit_is_moved_by_its_labels_alone(self, net):
        taught_by = distiller(net)
        terms = taught_by.terms(IMAGES, LABELS)
        last = taught_by.student.get_submodule(taught_by.layers[-1])
        own = [*last.parameters(), *taught_by.student.classifier.parameters()]
        lesson_of_itself = terms["soft"] + terms["hint"]
        found = torch.autograd.grad(lesson_of_itself, own, allow_unused=True, retain_graph=True)
        assert all(gradient is None for gradient in found)
        assert all(gradient is not None for gradient in torch.autograd.grad(terms["hard"], own))

    def test_soft_is_zero_where_all_exits_say_the_same(self):
        taught_by = distiller()
        for classifier in (taught_by.student.classifier, *(head.classifier for head in taught_by.heads)):
            torch.nn.init.zeros_(classifier.weight)
            torch.nn.init.zeros_(classifier.bias)
        assert taught_by.terms(IMAGES, LABELS)["soft"].item() == pytest.approx(0.0, abs=1e-9)


class TestHeads:
    @pytest.mark.parametrize("net", NETS, ids=lambda net: net.arch)
    def test_there_is_one_after_each_earlier_block_and_all_are_trained(self, net):
        taught_by = distiller(net)
        assert len(taught_by.heads) == len(feature_names(taught_by.student)) - 1
        logits, features = taught_by.exits(IMAGES)
        assert {one.shape for one in logits} == {(16, 10)} and len({one.shape for one in features}) == 1
        loss = torch.stack(list(taught_by.terms(IMAGES, LABELS).values())).sum()
        assert all((gradient != 0).any() for gradient in torch.autograd.grad(loss, list(taught_by.heads.parameters())))
        trained = {id(parameter) for parameter in taught_by.trained()}
        assert {id(parameter) for parameter in taught_by.heads.parameters()} <= trained

    def test_a_last_batch_of_one_image_can_be_trained_on(self):
        taught_by = distiller(DEEP)
        terms = taught_by.terms(IMAGES[:1], LABELS[:1])
        assert all(torch.isfinite(term) for term in terms.values())

    def test_the_student_is_left_without_a_trace(self):
        student = built(Net(arch="resnet", width=4, depth=8))
        before = {name: value.clone() for name, value in student.state_dict().items()}
        taught_by = EarlyExitsDistiller(student, EarlyExits(), IMAGES[:4])
        assert student.training
        assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
        taught_by.exits(IMAGES)
        assert not any(module._forward_hooks for module in student.modules())
        assert taught_by.deployed() is student

    def test_tokens_are_averaged(self):
        class Tokens(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.blocks = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Linear(6, 6))
                self.classifier = torch.nn.Linear(6, 10)

            def forward(self, images):
                return self.classifier(self.blocks(images.squeeze(1)).mean(1))

        taught_by = EarlyExitsDistiller(Tokens(), EarlyExits(), IMAGES[:4])
        assert [one.shape for one in taught_by.exits(IMAGES)[0]] == [(16, 10), (16, 10)]

    @pytest.mark.parametrize(
        ("net", "settings", "message"),
        [
            (Net(arch="convnet", width=8, depth=1), {}, "an early exit needs two layers or more"),
            (DEEP, {"layers": ("blocks.0", "없음")}, "no module '없음'"),
            (DEEP, {"layers": ("blocks.0", "classifier")}, "no early exit for features of shape"),
        ],
    )
    def test_layers_that_cannot_be_used_are_named(self, net, settings, message):
        with pytest.raises(ConfigError, match=message):
            distiller(net, **settings)


def test_a_training_gives_the_student_and_reports_every_exit():
    found = taught(EarlyExits(), None, lesson(Protocol(epochs=6)))
    assert list(found.measures) == ["validation_exit_1", "validation_exit_2"]
    assert all(value > 0.7 for value in found.measures.values())
    assert found.measures["validation_exit_2"] == pytest.approx(accuracy(found.net, digits().validation))
    assert found.net.state_dict().keys() == built(SMALL).state_dict().keys()


def test_a_pipeline_file_knows_it():
    values = {"name": "m", "student": {"arch": "mlp"}, "teacher": {"arch": "mlp"}}
    pipeline = KdPipeline.model_validate({**values, "methods": [{"name": "early_exits", "temperature": 2}]})
    assert pipeline.methods[0] == EarlyExits(temperature=2.0)


def cross_entropy(logits: torch.Tensor) -> float:
    from math import log

    rows = zip(logits.tolist(), LABELS.tolist(), strict=True)
    return -sum(log(softmax(row)[label]) for row, label in rows) / len(logits)
