"""Generations of one network."""

import pytest
import torch
from torch import nn

from llmdistill.vision.fit import accuracy
from llmdistill.vision.kd.born_again import BornAgain
from llmdistill.vision.kd.plain import PlainDistiller
from tests.vision.kd.response_lessons import Recorded, digits, named, net, same, state


class NeverAsked(nn.Module):
    """A teacher that must not be."""

    def forward(self, images):
        raise AssertionError("the pipeline's teacher was asked")


class 학생(nn.Module):
    """A user's own network."""

    def __init__(self):
        super().__init__()
        self.층 = nn.Linear(64, 10)

    def forward(self, images):
        return self.층(images.flatten(1))


@pytest.mark.parametrize("generations", [1, 3])
def test_each_generation_is_taught_by_the_one_before_and_the_first_by_the_labels(generations):
    recorded, student = Recorded(epochs=1), net()
    taught = BornAgain(generations=generations).teach(student, NeverAsked(), recorded.lesson)
    first, *others = recorded.distillers
    assert isinstance(first, PlainDistiller) and first.student is student
    assert len(others) == generations
    assert [each.teacher for each in others] == [each.student for each in recorded.distillers[:-1]]
    assert taught.net is others[-1].student


def test_no_teacher_is_needed():
    assert BornAgain(generations=1).teach(net(), None, Recorded(epochs=1).lesson).measures


def test_every_generation_begins_with_weights_of_its_own():
    recorded = Recorded(epochs=1)
    BornAgain(generations=3).teach(net(), None, recorded.lesson)
    first = recorded.first_weights
    assert not any(torch.equal(first[one], first[other]) for one in range(4) for other in range(one))


def test_generations_of_a_users_own_module_begin_with_the_weights_it_came_with():
    recorded, own = Recorded(epochs=1, student=None), 학생()
    came = next(own.parameters()).detach().clone()
    taught = BornAgain(generations=2).teach(own, None, recorded.lesson)
    assert all(torch.equal(each, came) for each in recorded.first_weights)
    assert isinstance(taught.net, 학생) and taught.net is not own
    assert not same(state(taught.net), state(own))


def test_the_same_seed_gives_the_same_last_generation():
    nets = [BornAgain().teach(net(), None, Recorded(epochs=1).lesson).net for _ in range(2)]
    assert same(state(nets[0]), state(nets[1]))


def test_the_ensemble_is_the_mean_of_the_probabilities_of_all_taught_generations():
    recorded = Recorded(epochs=1)
    ensemble = BornAgain(generations=2, ensemble=True).teach(net(), None, recorded.lesson).net.eval()
    images = digits().validation.images
    with torch.no_grad():
        each = [distiller.student.eval()(images).softmax(-1) for distiller in recorded.distillers[1:]]
        assert torch.allclose(ensemble(images).softmax(-1), (each[0] + each[1]) / 2, atol=1e-6)


def test_the_ensemble_is_reported_beside_every_generation_though_only_one_network_is_kept():
    recorded = Recorded(epochs=2)
    taught = BornAgain(generations=2).teach(net(), None, recorded.lesson)
    assert list(taught.measures) == ["generation 0", "generation 1", "generation 2", "ensemble"]
    assert taught.measures["generation 2"] == accuracy(taught.net, digits().validation)
    assert len(state(taught.net)) == len(state(net()))


def test_its_name_in_a_pipeline_file_finds_it():
    assert named(name="born_again", generations=3, ensemble=True) == BornAgain(generations=3, ensemble=True)


def test_the_last_generation_learns_digits():
    taught = BornAgain().teach(net(), None, Recorded().lesson)
    assert accuracy(taught.net, digits().test) > 0.8
