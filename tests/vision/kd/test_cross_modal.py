"""Cross-modal distillation: what the views show, that pairs stay pairs, and a student measured on its own side."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load

from llmdistill.errors import ConfigError
from llmdistill.vision.config import Net, Protocol
from llmdistill.vision.data import Part
from llmdistill.vision.deploy import serialised
from llmdistill.vision.fit import accuracy, fit
from llmdistill.vision.kd.cross_modal import CrossModal, CrossModalDistiller, View, Viewing, blurred, coarse, grey
from llmdistill.vision.kd.methods import KdPipeline
from tests.vision.kd.lessons import SMALL, built, digits, drawn, lesson, taught, trained, weights

NET = Net(arch="mlp", width=32, depth=1)
MEAN, STD = torch.tensor([0.5, 0.4, 0.3], dtype=torch.float64), torch.tensor([0.2, 0.25, 0.3], dtype=torch.float64)


def coloured(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels in 0..1 and the same normalised, [2, 3, 6, 5]."""
    pixels = drawn(seed, 2, 3, 6, 5).sigmoid()
    return pixels, (pixels - MEAN[:, None, None]) / STD[:, None, None]


class Listening(torch.nn.Module):
    """A network that keeps what it is given."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net, self.given = net, []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training or not any(p.requires_grad for p in self.parameters()):
            self.given.append(images.detach().clone())
        return self.net(images)


class TestViews:
    def test_grey_is_the_luminance_of_the_pixels_in_every_channel(self):
        pixels, images = coloured()
        found = grey(images, MEAN[:, None, None], STD[:, None, None]) * STD[:, None, None] + MEAN[:, None, None]
        red, green, blue = pixels.unbind(1)
        luminance = 0.299 * red + 0.587 * green + 0.114 * blue
        assert all(torch.allclose(found[:, channel], luminance) for channel in range(3))

    def test_grey_of_one_channel_is_the_image(self):
        images = drawn(0, 2, 1, 4, 4)
        assert torch.allclose(grey(images, MEAN[:1, None, None], STD[:1, None, None]), images)

    def test_blur_is_the_gaussian_of_its_definition(self):
        image = torch.zeros(1, 1, 15, 15, dtype=torch.float64)
        image[0, 0, 7, 7] = 1.0
        values = [math.exp(-(offset**2) / 8) for offset in range(-6, 7)]
        expected = torch.tensor(values, dtype=torch.float64)
        expected = torch.outer(expected, expected) / expected.sum() ** 2
        assert torch.allclose(blurred(image, 2.0)[0, 0, 1:14, 1:14], expected)

    def test_blur_keeps_channels_apart_and_flat_images_flat(self):
        flat = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64).reshape(1, 3, 1, 1).expand(2, 3, 6, 5)
        assert torch.allclose(blurred(flat, 1.5), flat)

    def test_coarse_is_the_mean_of_each_square_also_at_the_edge(self):
        image = torch.arange(15.0).reshape(1, 1, 3, 5)
        found = coarse(image, 2)[0, 0]
        expected = [[3.0, 3.0, 5.0, 5.0, 6.5], [3.0, 3.0, 5.0, 5.0, 6.5], [10.5, 10.5, 12.5, 12.5, 14.0]]
        assert found.tolist() == expected

    def test_noise_is_as_strong_as_it_says_new_in_training_and_the_same_at_each_measurement(self):
        view = View(CrossModal(view=("noise",), noise=0.1), MEAN, STD)
        images = torch.zeros(200, 3, 8, 8, dtype=torch.float64)
        assert not torch.equal(view(images), view(images))
        view.eval()
        before = torch.get_rng_state()
        found = view(images)
        assert torch.equal(found, view(images)) and torch.equal(torch.get_rng_state(), before)
        assert torch.allclose(found.std((0, 2, 3)) * STD, torch.full((3,), 0.1, dtype=torch.float64), rtol=0.03)

    def test_changes_follow_one_another_in_their_order(self):
        _, images = coloured()
        found = View(CrossModal(view=("coarse", "blur"), blur=0.8), MEAN, STD)(images)
        assert torch.allclose(found, blurred(coarse(images, 2), 0.8))
        assert not torch.allclose(found, coarse(blurred(images, 0.8), 2))


class TestPairs:
    def test_they_survive_shuffling_and_random_changes(self):
        teacher, student = Listening(built(SMALL)), Listening(built(SMALL))
        data = replace(digits(), train=Part(digits().train.images[:100], digits().train.labels[:100]))
        view = View(CrossModal(view=("blur",)), data.mean, data.std)
        distiller = CrossModalDistiller(student, teacher, view, CrossModal())
        fit(distiller, data, Protocol(epochs=2, batch_size=32, augment=("crop", "flip", "cutout")), 0)
        assert len(teacher.given) == len(student.given) == 8
        assert all(
            torch.allclose(blurred(clean, 1.0), seen, atol=1e-5)
            for clean, seen in zip(teacher.given, student.given, strict=True)
        )
        assert not torch.equal(teacher.given[0].sort(0).values, teacher.given[4].sort(0).values)

    def test_with_soft_alone_the_labels_do_not_matter(self):
        settings = CrossModal(soft_weight=1.0, hard_weight=0.0)
        distiller = CrossModalDistiller(built(SMALL, 1), built(SMALL, 2), torch.nn.Identity(), settings)
        images, labels = digits().train.images[:16], digits().train.labels[:16]
        one, other = (sum(distiller.terms(images, its).values()) for its in (labels, labels.flip(0)))
        assert one.item() == other.item() > 0

    def test_a_student_like_its_teacher_that_sees_all_has_nothing_to_learn(self):
        settings = CrossModal(soft_weight=1.0, hard_weight=0.0)
        distiller = CrossModalDistiller(built(SMALL), built(SMALL), torch.nn.Identity(), settings)
        terms = distiller.terms(digits().train.images[:16], digits().train.labels[:16])
        assert terms["soft"].item() == pytest.approx(0.0, abs=1e-6)

    def test_the_teacher_is_not_trained(self):
        teacher = built(SMALL)
        before = weights(teacher)
        taught(CrossModal(view=("blur",)), teacher, lesson(Protocol(epochs=1)))
        assert torch.equal(weights(teacher), before)


class TestDeployed:
    def test_it_is_given_images_and_measured_on_views(self):
        data = digits()
        view = View(CrossModal(view=("coarse",), coarse=4), data.mean, data.std)
        net = trained(SMALL)
        seen = Part(coarse(data.test.images, 4), data.test.labels)
        distiller = CrossModalDistiller(net, net, view, CrossModal())
        assert accuracy(distiller.deployed(), data.test) == accuracy(net, seen) < accuracy(net, data.test)
        net.requires_grad_(True)

    def test_what_is_saved_and_loaded_again_says_the_same(self):
        data, settings = digits(), CrossModal(view=("grey", "noise"))
        one = Viewing(built(SMALL, 1), View(settings, data.mean, data.std)).eval()
        other = Viewing(built(SMALL, 2), View(settings, torch.zeros(1), torch.ones(1))).eval()
        other.load_state_dict(load(serialised(one)))
        assert torch.equal(one(data.test.images[:8]), other(data.test.images[:8]))


def test_a_student_learns_to_read_what_its_teacher_cannot():
    method, given = CrossModal(view=("coarse", "noise"), coarse=3), lesson(Protocol(epochs=8), NET)
    found = taught(method, trained(NET), given, NET)
    learned = accuracy(found.net, digits().validation)
    assert found.measures["validation_teacher_view"] + 0.1 < learned
    assert found.measures["validation_teacher_image"] > 0.9
    assert torch.equal(weights(found.net), weights(taught(method, trained(NET), given, NET).net))


def test_without_a_teacher_or_with_squares_larger_than_the_image_it_says_so():
    with pytest.raises(ConfigError, match="cross_modal needs a teacher"):
        taught(CrossModal(), None, lesson(Protocol(epochs=1)))
    with pytest.raises(ConfigError, match="squares of 9 pixels are larger than the images"):
        taught(CrossModal(view=("coarse",), coarse=9), built(SMALL), lesson(Protocol(epochs=1)))


def test_a_pipeline_file_knows_it():
    values = {"name": "m", "student": {"arch": "mlp"}, "teacher": {"arch": "mlp"}}
    method = {"name": "cross_modal", "view": ["grey", "noise"], "label": "회색"}
    pipeline = KdPipeline.model_validate({**values, "methods": [method]})
    assert pipeline.methods[0] == CrossModal(view=("grey", "noise"), label="회색")
