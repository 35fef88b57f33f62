"""FitNets: hints first, then response distillation."""

from dataclasses import replace

import pytest
import torch

from llmdistill.vision.config import Net, Protocol
from llmdistill.vision.fit import accuracy
from llmdistill.vision.kd.adapters import pooled
from llmdistill.vision.kd.fitnets import FitNets, Regressor, hint_loss
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


def moved(before, module):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def copied(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_the_loss_is_half_the_mean_of_squares():
    regressed, hint = drawn(2, 3, 2, 2), drawn(2, 3, 2, 2, seed=1)
    pairs = zip(regressed.flatten().tolist(), hint.flatten().tolist(), strict=True)
    expected = sum((one - two) ** 2 for one, two in pairs) / 24 / 2
    assert hint_loss(regressed, hint).item() == pytest.approx(expected, rel=1e-12)
    assert gradient_checked(lambda own: hint_loss(own, hint), regressed)


class TestRegressor:
    @pytest.mark.parametrize("guided, hint", [((8, 8), (8, 8)), ((8, 7), (5, 4)), ((4, 1), (2, 1))])
    def test_it_brings_the_guided_map_to_the_hints_size(self, guided, hint):
        found = Regressor(torch.randn(2, 3, *guided), torch.randn(2, 5, *hint))(torch.randn(2, 3, *guided))
        assert found.shape == (2, 5, *hint)

    def test_a_smaller_guided_map_stays_at_its_size(self):
        assert Regressor(torch.randn(2, 3, 4, 4), torch.randn(2, 5, 8, 8))(torch.randn(2, 3, 4, 4)).shape[2:] == (4, 4)

    def test_it_ends_in_a_relu_where_the_hint_does(self):
        guided, hint = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
        assert Regressor(guided, hint)(guided).min() < 0
        assert Regressor(guided, hint.relu())(guided).min() == 0


def test_the_middle_blocks_are_taken_by_default():
    five = Net(arch="vgg", width=4)
    assert FitNets().hints(net(five), net(five), images(), alone=True).layers == (("blocks.2", "blocks.2"),)


def test_stage_1_trains_the_lower_part_and_the_regressor_and_nothing_else():
    student = net(STUDENT)
    hints = FitNets().hints(student, taught_teacher(), digits().train.images[:4], alone=True)
    before = copied(hints)
    history = lesson(Protocol(epochs=3, batch_size=16, learning_rate=0.2)).fit(hints)
    names = moved(before, hints)
    assert {name for name in names if not name.startswith("student.blocks.0.")} == {
        "regressor.convolution.weight",
        "regressor.convolution.bias",
    }
    assert "student.blocks.0.0.weight" in names
    assert history.loss[-1] < 0.9 * history.loss[0]


def test_both_stages_run_and_the_first_is_reported():
    stages = []
    taught_by = lesson(Protocol(epochs=3))

    def watched(distiller, data, protocol):
        history = taught_by.train(distiller, data, protocol)
        stages.append((sorted(distiller.terms(images(), torch.arange(6))), protocol.epochs))
        return history

    taught = FitNets(hint_epochs=2).teach(net(STUDENT), taught_teacher(), replace(taught_by, train=watched))
    assert stages == [(["hint"], 2), (["hard", "soft"], 3)]
    assert taught.measures["hint_epochs"] == 2 and taught.measures["hint_loss"] > 0
    assert len(taught.history.loss) == 3
    assert taught.net.state_dict().keys() == net(STUDENT).state_dict().keys()


def test_the_joint_form_is_one_stage_with_100_times_the_mean_of_squares():
    torch.manual_seed(0)
    distiller = FitNets(joint=True).distiller(net(STUDENT), net(TEACHER), images())
    terms = distiller.terms(images(), torch.arange(6))
    ((guided, hint),) = distiller.look(images()).maps
    regressed = distiller.regressor(guided)
    squares = (regressed - pooled(hint, tuple(regressed.shape[2:]))).pow(2).mean().item()
    assert sorted(terms) == ["hard", "hint", "soft"]
    assert terms["hint"].item() == pytest.approx(100 * squares, rel=1e-5)


def test_nothing_to_learn_in_stage_2_is_refused():
    with pytest.raises(ValueError, match="nothing to learn"):
        FitNets(soft_weight=0, hard_weight=0)


@pytest.mark.parametrize("joint", [False, True])
def test_a_student_learns_digits(joint):
    taught = teach(FitNets(joint=joint, hint_weight=1.0))
    assert accuracy(taught.net, digits().test) > 0.5
    assert bool(taught.measures) is not joint
