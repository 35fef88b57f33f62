"""Data-free distillation: the formulas, images made of the teacher alone, and what a student learns from them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llmdistill.errors import ConfigError
from llmdistill.vision.config import Net, Protocol
from llmdistill.vision.data import Part
from llmdistill.vision.fit import accuracy
from llmdistill.vision.kd.data_free import (
    DataFree,
    _all_inverted,
    _inputs_of,
    made_images,
    mixtures,
    noise,
    roughness,
    statistics_loss,
)
from llmdistill.vision.kd.methods import KdPipeline
from tests.vision.kd.lessons import built, digits, drawn, lesson, taught, trained, weights

BATCH = Net(arch="convnet", width=8, depth=2, norm="batch")
FEW = {"num_images": 60, "batch_size": 40, "steps": 10}


class TestLosses:
    @pytest.mark.parametrize("shape", [(6, 3, 4, 5), (6, 3)])
    def test_statistics_are_those_of_their_definition(self, shape):
        inputs, mean, variance = drawn(0, *shape), drawn(1, 3), drawn(2, 3).exp()
        columns = [inputs[:, channel].flatten().numpy() for channel in range(3)]
        expected = sum(
            np.sqrt(sum((found - goal) ** 2 for found, goal in zip(ours, theirs.tolist(), strict=True)))
            for ours, theirs in (([np.mean(c) for c in columns], mean), ([np.var(c) for c in columns], variance))
        )
        assert float(statistics_loss(inputs, mean, variance)) == pytest.approx(expected, rel=1e-12)

    def test_statistics_are_zero_for_what_the_batch_norm_saw(self):
        inputs = drawn(0, 6, 3, 4, 4)
        variance, mean = torch.var_mean(inputs, (0, 2, 3), correction=0)
        assert float(statistics_loss(inputs, mean, variance)) == 0.0

    def test_gradients_agree_with_finite_differences(self):
        inputs, mean, variance = drawn(0, 3, 2, 3, 3).requires_grad_(), drawn(1, 2), drawn(2, 2).exp()
        assert torch.autograd.gradcheck(lambda images: statistics_loss(images, mean, variance), inputs)
        assert torch.autograd.gradcheck(roughness, inputs)

    def test_roughness_is_the_mean_square_of_steps_in_both_directions(self):
        image = torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, 2.0]])[None, None]
        assert float(roughness(image)) == pytest.approx((4 + 1 + 1) / 3 + (1 + 4 + 0 + 0) / 4)
        assert float(roughness(torch.ones(2, 3, 4, 4))) == 0.0

    def test_each_batch_norm_is_compared_with_its_own_statistics(self):
        class Backwards(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.last, self.first = torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(1)

            def forward(self, images):
                return self.last(self.first(images).expand(-1, 2, -1, -1))

        net = Backwards()
        with _inputs_of([net.last, net.first]) as inputs:
            net(drawn(0, 4, 1, 3, 3).float())
        assert [(norm is net.first, given.shape[1]) for norm, given in inputs] == [(True, 1), (False, 2)]


class TestImages:
    @pytest.mark.parametrize("kind", ["inverted", "noise"])
    def test_they_are_as_many_as_asked_for_and_can_be_shown(self, kind):
        data, teacher = digits(), trained(BATCH)
        made = made_images(teacher, data, DataFree(images=kind, **FEW), 0)
        assert made.images.shape == (60, *data.shape) and made.labels.shape == (60,)
        pixels = made.images * data.std[:, None, None] + data.mean[:, None, None]
        assert -1e-5 < float(pixels.min()) < float(pixels.max()) < 1 + 1e-5
        with torch.no_grad():
            assert torch.equal(made.labels, teacher(made.images).argmax(-1))

    @pytest.mark.parametrize("kind", ["inverted", "noise"])
    def test_no_image_and_no_label_of_the_data_has_a_part_in_them(self, kind):
        data, settings = digits(), DataFree(images=kind, **FEW)
        nothing = Part(torch.full_like(data.train.images, torch.nan), torch.zeros_like(data.train.labels))
        blind = replace(data, train=nothing, validation=nothing, test=nothing)
        one, other = (made_images(trained(BATCH), given, settings, 3) for given in (data, blind))
        assert torch.equal(one.images, other.images)

    def test_a_mixture_lies_between_two_images(self):
        images = torch.tensor([0.0, 10.0]).reshape(2, 1, 1, 1).expand(2, 1, 3, 3) + torch.arange(9.0).reshape(3, 3)
        mixed = mixtures(images, 200, torch.Generator().manual_seed(0)) - torch.arange(9.0).reshape(3, 3)
        first = mixed[:, :, :1, :1]
        assert torch.allclose(mixed, first.expand_as(mixed), atol=1e-5)
        assert 0 <= float(first.min()) and float(first.max()) <= 10 and int(((first > 1) & (first < 9)).sum()) > 40

    @pytest.mark.parametrize(("mixed", "number"), [(0.0, 60), (0.5, 30), (1.0, 1)])
    def test_all_but_the_mixed_share_are_inverted(self, mixed, number):
        generator = torch.Generator().manual_seed(0)
        assert len(_all_inverted(trained(BATCH), digits(), DataFree(mixed=mixed, **FEW), generator)) == number
        assert len(made_images(trained(BATCH), digits(), DataFree(mixed=mixed, **FEW), 0)) == 60

    def test_they_come_from_the_seed_and_leave_the_global_generator_alone(self):
        before = torch.get_rng_state()
        one, again, other = (made_images(trained(BATCH), digits(), DataFree(**FEW), seed).images for seed in (1, 1, 2))
        assert torch.equal(one, again) and not torch.equal(one, other)
        assert torch.equal(torch.get_rng_state(), before)

    def test_the_teacher_is_left_as_it_was(self):
        teacher = trained(BATCH)
        teacher.zero_grad(set_to_none=True)
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        made_images(teacher, digits(), DataFree(**FEW), 0)
        assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
        assert not teacher.training and all(p.grad is None for p in teacher.parameters())
        assert not any(module._forward_pre_hooks for module in teacher.modules())

    def test_the_teachers_batch_norms_see_in_them_what_they_saw_in_training(self):
        data, teacher = digits(), trained(BATCH)
        norms = [module for module in teacher.modules() if isinstance(module, torch.nn.BatchNorm2d)]

        def strangeness(images: torch.Tensor) -> float:
            with _inputs_of(norms) as inputs, torch.no_grad():
                teacher(images)
            return sum(float(statistics_loss(given, norm.running_mean, norm.running_var)) for norm, given in inputs)

        start = noise(100, data, torch.Generator().manual_seed(0))
        made = made_images(teacher, data, DataFree(num_images=100, batch_size=100, steps=60), 0).images
        assert strangeness(data.train.images[:100]) < strangeness(made) < strangeness(start) / 3


def test_a_student_that_saw_no_data_reads_it_and_noise_teaches_less():
    teacher, student = trained(BATCH), Net(arch="convnet", width=8, depth=2, norm="batch")
    found = {}
    for kind in ("inverted", "noise"):
        method = DataFree(images=kind, num_images=400, batch_size=200, steps=40)
        result = taught(method, teacher, lesson(Protocol(epochs=10)), student)
        found[kind] = accuracy(result.net, digits().validation)
        assert set(result.measures) == {"batch_norms", "classes_seen", "agreement"}
        assert 0 < result.measures["classes_seen"] <= 1 and 0 <= result.measures["agreement"] <= 1
    assert found["inverted"] > 0.7 and found["inverted"] > found["noise"] + 0.1


def test_a_student_is_the_same_whatever_the_training_images_are():
    data = digits()
    torn = replace(data, train=Part(torch.full_like(data.train.images, torch.nan), data.train.labels))
    one, other = (
        taught(DataFree(**FEW), trained(BATCH), lesson(Protocol(epochs=2), data=given), BATCH) for given in (data, torn)
    )
    assert torch.equal(weights(one.net), weights(other.net))


def test_without_a_teacher_it_says_so():
    with pytest.raises(ConfigError, match="data_free needs a teacher"):
        DataFree().teach(built(BATCH), None, lesson(Protocol(epochs=1)))


def test_a_pipeline_file_knows_it():
    values = {"name": "m", "student": {"arch": "mlp"}, "teacher": {"arch": "mlp"}}
    pipeline = KdPipeline.model_validate({**values, "methods": [{"name": "data_free", "images": "noise"}]})
    assert pipeline.methods[0] == DataFree(images="noise")
