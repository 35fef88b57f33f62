"""Chains of teacher assistants."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from llmdistill.errors import ConfigError
from llmdistill.vision.checkpoint import Checkpoints
from llmdistill.vision.config import Net
from llmdistill.vision.fit import accuracy, fit
from llmdistill.vision.kd.assistant import Assistant, seeds_after, teach_chain
from llmdistill.vision.kd.response import Response
from tests.vision.kd.response_lessons import Recorded, digits, named, net, same, state, trained

BETWEEN = tuple(Net(arch="mlp", width=width, depth=1) for width in (96, 64, 32))


def width_of(module: nn.Module) -> int:
    return next(module.parameters()).shape[0]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_each_network_is_taught_by_the_one_before_and_the_student_by_the_last(length):
    recorded, teacher, student = Recorded(epochs=1), trained(), net()
    taught = Assistant(assistants=BETWEEN[:length]).teach(student, teacher, recorded.lesson)
    nets = [distiller.student for distiller in recorded.distillers]
    assert [width_of(each) for each in nets] == [*(96, 64, 32)[:length], 24]
    assert [distiller.teacher for distiller in recorded.distillers] == [teacher, *nets[:-1]]
    assert taught.net is nets[-1] is student
    assert list(taught.measures) == [f"assistant {number}" for number in range(1, length + 1)]


def test_an_assistant_does_not_change_once_it_teaches():
    recorded = Recorded(epochs=1)
    Assistant(assistants=BETWEEN[:2]).teach(net(), trained(), recorded.lesson)
    assert all(same(state(each.student), then) for each, then in zip(recorded.distillers, recorded.after, strict=True))


def test_the_same_seed_gives_the_same_student_and_another_seed_other_assistants():
    method = Assistant(assistants=BETWEEN[:1])
    lessons = [Recorded(epochs=1, seed=seed) for seed in (0, 0, 1)]
    nets = [method.teach(net(), trained(), each.lesson).net for each in lessons]
    assert same(state(nets[0]), state(nets[1]))
    assert not torch.equal(lessons[0].first_weights[0], lessons[2].first_weights[0])


def test_two_assistants_of_one_size_begin_with_different_weights():
    recorded = Recorded(epochs=1)
    Assistant(assistants=(BETWEEN[0], BETWEEN[0])).teach(net(), trained(), recorded.lesson)
    assert not torch.equal(recorded.first_weights[0], recorded.first_weights[1])


class Stopped(Exception):
    """Ends a training in the middle."""


def taught_in(folder, stop_after=None):
    """A student at the end of a chain of three links, kept in a folder, and stopped after so many epochs in all."""
    recorded, checkpoints, done = Recorded(epochs=2), Checkpoints(folder, every=0.0), []

    def after_epoch(_):
        done.append(1)
        if len(done) == stop_after:
            raise Stopped

    def train(distiller, data, protocol):
        return fit(distiller, data, protocol, 0, after_epoch, checkpoints.next())

    return Assistant(assistants=BETWEEN[:2]).teach(net(), trained(), replace(recorded.lesson, train=train))


def test_a_chain_that_is_stopped_goes_on_to_the_same_student(tmp_path):
    whole = taught_in(tmp_path / "whole")
    with pytest.raises(Stopped):
        taught_in(tmp_path / "멈춤", stop_after=3)
    again = taught_in(tmp_path / "멈춤")
    assert same(state(again.net), state(whole.net))
    assert again.measures == whole.measures


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_seeds_of_a_longer_chain_begin_as_those_of_a_shorter_one(seed):
    longer = seeds_after(seed, 9)
    assert seeds_after(seed, 4) == longer[:4]
    assert len(set(longer)) == 9


def test_a_chain_of_ones_own_networks_needs_no_settings():
    own = [nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)) for width in (40, 20)]
    recorded = Recorded(epochs=2, student=None, build=None)
    histories = teach_chain(own, trained(), Response(), recorded.lesson)
    assert [distiller.teacher for distiller in recorded.distillers] == [trained(), own[0]]
    assert [len(history.validation) for history in histories] == [2, 2]


def test_a_chain_without_settings_says_what_to_use_instead():
    with pytest.raises(ConfigError, match="teach_chain"):
        Assistant(assistants=BETWEEN[:1]).teach(net(), trained(), Recorded(build=None).lesson)


def test_no_teacher_is_one_clear_line():
    with pytest.raises(ConfigError, match="needs a teacher"):
        Assistant(assistants=BETWEEN[:1]).teach(net(), None, Recorded().lesson)


def test_an_empty_chain_is_refused():
    with pytest.raises(ValidationError, match="at least 1"):
        Assistant(assistants=())


def test_its_name_in_a_pipeline_file_finds_it():
    found = named(name="assistant", assistants=[{"arch": "mlp", "width": 64, "depth": 1}])
    assert found == Assistant(assistants=BETWEEN[1:2])


def test_assistant_and_student_learn_digits():
    taught = Assistant(assistants=BETWEEN[1:2]).teach(net(), trained(), Recorded().lesson)
    assert taught.measures["assistant 1"] > 0.8
    assert accuracy(taught.net, digits().test) > 0.8
