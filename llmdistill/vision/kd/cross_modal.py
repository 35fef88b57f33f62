"""Cross-modal distillation: the teacher sees one side of a pair and the student the other.

After Gupta et al., arXiv 1507.00448, who match features; here the softened logits are matched. The pair is made of one
image: the teacher sees it as it is, the student a grey, blurred, coarse or noisy view of it. Random changes come before
the view, so that both sides show the same.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from llmdistill.config.base import NotNegative, Positive
from llmdistill.errors import ConfigError
from llmdistill.vision.distiller import Distiller
from llmdistill.vision.fit import accuracy
from llmdistill.vision.kd.base import Lesson, Method, Taught
from llmdistill.vision.kd.response import response_loss

Change = Literal["grey", "blur", "coarse", "noise"]

_LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue (ITU-R BT.601)."""


class CrossModal(Method):
    """soft_weight * T^2 * KL(teacher on the image || student on its view) + hard_weight * cross-entropy.

    The student is measured on views, as it will be used; `soft_weight` 0 and `hard_weight` 1 is what it should be
    compared with. `soft_weight` 1 and `hard_weight` 0 needs no labels.

    Attributes:
        view: changes of the student's images, in this order.
        blur: standard deviation of the Gaussian, in pixels.
        coarse: side of the squares that are averaged, in pixels.
        noise: standard deviation of Gaussian noise on pixels in 0..1; the same at each measurement, new in training.
    """

    name: Literal["cross_modal"] = "cross_modal"
    view: Annotated[tuple[Change, ...], Field(min_length=1)] = ("grey",)
    blur: Annotated[float, Field(gt=0.0)] = 1.0
    coarse: Positive = 2
    noise: NotNegative = 0.3
    soft_weight: NotNegative = 0.9
    hard_weight: NotNegative = 0.1
    temperature: Annotated[float, Field(gt=0.0)] = 4.0

    def teach(self, student: nn.Module, teacher: nn.Module | None, lesson: Lesson) -> Taught:
        """Train on views; the teacher's validation accuracy on images and on views is reported.

        Raises:
            ConfigError: there is no teacher, or the view does not fit the images.
        """
        if teacher is None:
            raise ConfigError("cross_modal needs a teacher", where="teacher")
        data = lesson.data
        if "coarse" in self.view and self.coarse > min(data.shape[1:]):
            raise ConfigError(f"squares of {self.coarse} pixels are larger than the images", where="coarse")
        view = View(self, data.mean, data.std)
        distiller = CrossModalDistiller(student, teacher, view, self)
        history = lesson.fit(distiller)
        seen = {"image": teacher, "view": Viewing(teacher, view)}
        measures = {f"validation_teacher_{name}": accuracy(net.eval(), data.validation) for name, net in seen.items()}
        return Taught(distiller.deployed(), history, measures)


class View(nn.Module):
    """What the student sees of an image, in the shape and normalisation of the image.

    Args:
        mean, std: [C], what images are normalised with, of pixels in 0..1.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, settings: CrossModal, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("mean", mean.reshape(-1, 1, 1).clone())
        self.register_buffer("std", std.reshape(-1, 1, 1).clone())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] to the same."""
        settings = self.settings
        for change in settings.view:
            if change == "grey":
                images = grey(images, self.mean, self.std)
            elif change == "blur":
                images = blurred(images, settings.blur)
            elif change == "coarse":
                images = coarse(images, settings.coarse)
            else:
                images = images + settings.noise / self.std * self._noise(images)
        return images

    def _noise(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            return torch.randn_like(images)
        generator = torch.Generator(images.device).manual_seed(0)
        return torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)


def grey(images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Luminance in every channel; the mean of the channels where they are not three.

    Args:
        images: [N, C, H, W], normalised with `mean` and `std`, [C, 1, 1].
    """
    channels = images.shape[1]
    weights = _LUMINANCE if channels == 3 else (1 / channels,) * channels
    pixels = images * std + mean
    luminance = (pixels * pixels.new_tensor(weights)[:, None, None]).sum(1, keepdim=True)
    return (luminance - mean) / std


def blurred(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Convolved with a Gaussian of `sigma` pixels, cut at three sigma; the edge is repeated outside."""
    reach = max(1, math.ceil(3 * sigma))
    places = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = (-(places**2) / (2 * sigma**2)).exp()
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    padded = nn.functional.pad(images, (reach, reach, reach, reach), mode="replicate")
    rows = nn.functional.conv2d(padded, kernel, groups=images.shape[1])
    return nn.functional.conv2d(rows, kernel.transpose(2, 3), groups=images.shape[1])


def coarse(images: torch.Tensor, side: int) -> torch.Tensor:
    """Every square of `side` pixels replaced by its mean; squares at the lower and right edge may be smaller."""
    height, width = images.shape[2:]
    small = nn.functional.avg_pool2d(images, side, ceil_mode=True, count_include_pad=False)
    return small.repeat_interleave(side, 2).repeat_interleave(side, 3)[:, :, :height, :width]


class Viewing(nn.Module):
    """A network behind a view: it is given images, and sees views."""

    def __init__(self, net: nn.Module, view: nn.Module) -> None:
        super().__init__()
        self.net, self.view = net, view

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, classes]."""
        return self.net(self.view(images))


class CrossModalDistiller(Distiller):
    """See `CrossModal`. `view` is any module from the teacher's side of the pair to the student's.

    What is deployed is the student behind its view, so that whoever measures it gives it images like any other.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, view: nn.Module, settings: CrossModal) -> None:
        super().__init__(Viewing(student, view), teacher)
        self.settings = settings

    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Soft and hard."""
        logits = self.student(images)
        soft = response_loss(logits, self.taught(images), self.settings.temperature)
        hard = nn.functional.cross_entropy(logits, labels)
        return {"soft": self.settings.soft_weight * soft, "hard": self.settings.hard_weight * hard}
