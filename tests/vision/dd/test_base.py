"""What every method has of its base: the schedule of the images' learning rate."""

from __future__ import annotations

import pytest
import torch

from llmdistill.vision.dd.base import Method
from llmdistill.vision.dd.cafe import Cafe
from llmdistill.vision.dd.distribution import Distribution
from llmdistill.vision.dd.gradient import Gradient
from llmdistill.vision.dd.kernel import Kip
from llmdistill.vision.dd.unrolled import Unrolled
from tests.vision.dd.making import goes_on_bit_equal, iterated, task_of
from tests.vision.images import small_data

AFTER = (2, 3)
METHODS: list[Method] = [
    Cafe(batch_real=8, probe_images=8, window=3, most_matchings=4, most_epochs=3, milestones=AFTER),
    Distribution(batch_real=8, milestones=AFTER),
    Gradient(batch_real=8, milestones=AFTER),
    Kip(batch_real=9, milestones=AFTER),
    Unrolled(batch_real=30, epochs=1, milestones=AFTER),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_images_learning_rate_is_halved_after_each_milestone(method: Method):
    distillation = method.distillation(task_of(small_data(), 1))
    rates = []
    for _ in range(4):
        distillation.iterate()
        rates.append(distillation.optimiser.param_groups[0]["lr"])
    assert [rate / method.learning_rate for rate in rates] == [1.0, 1.0, 0.5, 0.25]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_set_that_is_resumed_past_a_milestone_has_the_same_images_bit_by_bit(method: Method):
    assert goes_on_bit_equal(method, small_data(), 1, before=3, after=1)


def test_a_smaller_learning_rate_moves_the_images_less():
    def moved(milestones: tuple[int, ...]) -> torch.Tensor:
        method = METHODS[2].model_copy(update={"milestones": milestones, "momentum": 0.0})
        distillation = iterated(method.distillation(task_of(small_data(), 1)), 1)
        before = distillation.synthesiser()[0].detach().clone()
        return iterated(distillation, 1).synthesiser()[0].detach() - before

    torch.testing.assert_close(moved((1,)), moved(()) / 2, rtol=1e-4, atol=1e-7)
