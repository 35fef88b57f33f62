"""Data-free distillation: the student learns from images made of the teacher alone.

`inverted` images are found by gradient steps so that the teacher sees a class in them and its batch norms see what they
saw in training (DeepInversion, arXiv 1912.08795). `noise` is the baseline that needs no gradient. What both know beside
the teacher is the shape of an image, the number of classes, and how pixels in 0..1 are normalised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from llmdistill.config.base import Fraction, NotNegative, Positive
from llmdistill.errors import ConfigError, StageError
from llmdistill.run.progress import progress
from llmdistill.vision.data import ImageData, Part, batches
from llmdistill.vision.kd.base import Lesson, Method, Taught
from llmdistill.vision.kd.response import Response, ResponseDistiller

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


def statistics_loss(inputs: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """||mean(inputs) - mean||_2 + ||var(inputs) - variance||_2 of one batch norm (arXiv 1912.08795, equation 4).

    Args:
        inputs: [N, C, H, W] or [N, C], what the batch norm is given.
        mean, variance: [C], its running statistics.
    """
    axes = [axis for axis in range(inputs.ndim) if axis != 1]
    found_variance, found_mean = torch.var_mean(inputs, axes, correction=0)
    return (found_mean - mean).norm() + (found_variance - variance).norm()


def roughness(images: torch.Tensor) -> torch.Tensor:
    """Squared differences of neighbouring pixels, down and to the right: their mean, summed over both directions."""
    down, right = images.diff(dim=2), images.diff(dim=3)
    return down.pow(2).mean() + right.pow(2).mean()


class DataFree(Method):
    """T^2 * KL(teacher || student) on made images; no label and no image of the data is trained on.

    Attributes:
        images: how they are made.
        mixed: share of the images that are mixtures of two inverted ones, which shows the student what the teacher
            says between the classes.
        steps: gradient steps on each batch of `batch_size` images.
        statistics_weight, smooth_weight: of `statistics_loss`, summed over batch norms, and of `roughness`.
    """

    can_be_timed: ClassVar[bool] = False  # its time lies before the training, in making images

    name: Literal["data_free"] = "data_free"
    images: Literal["inverted", "noise"] = "inverted"
    num_images: Positive = 2000
    mixed: Fraction = 0.5
    batch_size: Annotated[int, Field(ge=2)] = 200
    steps: Positive = 200
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.1
    statistics_weight: NotNegative = 1.0
    smooth_weight: NotNegative = 0.1
    temperature: Annotated[float, Field(gt=0.0)] = 4.0

    def teach(self, student: nn.Module, teacher: nn.Module | None, lesson: Lesson) -> Taught:
        """Make images, and train on them.

        Reported: the number of batch norms that were followed, the share of classes the teacher sees in the images,
        and how often the student agrees with the teacher on validation images.

        Raises:
            ConfigError: there is no teacher.
            StageError: the images are not finite.
        """
        if teacher is None:
            raise ConfigError("data_free needs a teacher", where="teacher")
        part = made_images(teacher, lesson.data, self, lesson.seed)
        settings = Response(soft_weight=1.0, hard_weight=0.0, temperature=self.temperature)
        history = lesson.fit(ResponseDistiller(student, teacher, settings), data=replace(lesson.data, train=part))
        measures = {
            "batch_norms": float(len(_batch_norms(teacher)) if self.images == "inverted" else 0),
            "classes_seen": len(torch.bincount(part.labels).nonzero()) / lesson.data.num_classes,
            "agreement": _agreement(student, teacher, lesson.data.validation),
        }
        return Taught(student, history, measures)


def made_images(teacher: nn.Module, data: ImageData, settings: DataFree, seed: int) -> Part:
    """Images and the teacher's labels of them. Of `data`, its shape, normalisation and number of classes are used.

    Raises:
        StageError: the images are not finite.
    """
    teacher.requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(seed)
    if settings.images == "noise":
        images = noise(settings.num_images, data, generator)
    else:
        found = _all_inverted(teacher, data, settings, generator)
        images = torch.cat([found, mixtures(found, settings.num_images - len(found), generator)])
    if not torch.isfinite(images).all():
        raise StageError("the made images are not finite", do="lower the method's learning_rate or weights")
    with torch.no_grad():
        labels = torch.cat([teacher(images[start : start + 500]).argmax(-1) for start in range(0, len(images), 500)])
    return Part(images, labels)


def noise(number: int, data: ImageData, generator: torch.Generator) -> torch.Tensor:
    """Mixtures of uniform noise of three grains: single pixels, and two and four times as coarse.

    Returns:
        [N, C, H, W], normalised as the data.
    """
    channels, height, width = data.shape
    drawn = []
    for grain in (1, 2, 4):
        size = (max(2, height // grain), max(2, width // grain))
        coarse = torch.rand(number, channels, *size, generator=generator)
        drawn.append(nn.functional.interpolate(coarse, (height, width), mode="bilinear"))
    return _normalised(mixtures(torch.cat(drawn).to(data.mean.device), number, generator), data)


def mixtures(images: torch.Tensor, number: int, generator: torch.Generator) -> torch.Tensor:
    """Two drawn images each, laid over one another with a uniform share (mixup with alpha 1, arXiv 1710.09412)."""
    one, other = torch.randint(len(images), (2, number), generator=generator).to(images.device)
    share = torch.rand(number, 1, 1, 1, generator=generator).to(images.device)
    return share * images[one] + (1 - share) * images[other]


def _all_inverted(teacher: nn.Module, data: ImageData, settings: DataFree, generator: torch.Generator) -> torch.Tensor:
    """All but the share `mixed` of the images, batch by batch."""
    number = max(1, round((1 - settings.mixed) * settings.num_images))
    sizes = [min(settings.batch_size, number - start) for start in range(0, number, settings.batch_size)]
    found = []
    with progress("images", len(sizes)) as bar:
        for size in sizes:
            found.append(inverted(teacher, noise(size, data, generator), data, settings, generator))
            bar.advance()
    return torch.cat(found)


def inverted(
    teacher: nn.Module, start: torch.Tensor, data: ImageData, settings: DataFree, generator: torch.Generator
) -> torch.Tensor:
    """Images that the teacher takes for drawn classes, found from `start` by Adam.

    Cross-entropy + statistics_weight * statistics + smooth_weight * roughness, on images shifted by up to an eighth;
    pixels stay in 0..1.
    """
    targets = torch.randint(data.num_classes, (len(start),), generator=generator).to(start.device)
    images = start.clone().requires_grad_()
    black, white = _normalised(torch.zeros_like(start[:1]), data), _normalised(torch.ones_like(start[:1]), data)
    optimiser = torch.optim.Adam([images], settings.learning_rate, betas=(0.5, 0.9))
    with _inputs_of(_batch_norms(teacher)) as inputs:
        for _ in range(settings.steps):
            logits = teacher(_shifted(images, generator))
            loss = nn.functional.cross_entropy(logits, targets) + settings.smooth_weight * roughness(images)
            for norm, given in inputs:
                assert norm.running_mean is not None and norm.running_var is not None
                statistics = statistics_loss(given, norm.running_mean, norm.running_var)
                loss = loss + settings.statistics_weight * statistics
            inputs.clear()
            (images.grad,) = torch.autograd.grad(loss, images)
            optimiser.step()
            with torch.no_grad():
                images.clamp_(black, white)
    return images.detach()


def _normalised(pixels: torch.Tensor, data: ImageData) -> torch.Tensor:
    return (pixels - data.mean[:, None, None]) / data.std[:, None, None]


def _shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    reach = [side // 8 for side in images.shape[2:]]
    down, right = (int(torch.randint(-most, most + 1, (), generator=generator)) for most in reach)
    return images.roll((down, right), (2, 3))


def _batch_norms(net: nn.Module) -> list[BatchNorm]:
    """Those with running statistics."""
    return [module for module in net.modules() if isinstance(module, BatchNorm) and module.track_running_stats]


@contextmanager
def _inputs_of(norms: Sequence[BatchNorm]) -> Iterator[list[tuple[BatchNorm, torch.Tensor]]]:
    """Batch norms and what they are given, filled by each forward pass inside the block."""
    found: list[tuple[BatchNorm, torch.Tensor]] = []

    def keep(norm: BatchNorm, given: tuple[torch.Tensor, ...]) -> None:
        found.append((norm, given[0]))

    hooks = [norm.register_forward_pre_hook(keep) for norm in norms]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _agreement(student: nn.Module, teacher: nn.Module, part: Part) -> float:
    """Share of images for which both have the same greatest logit."""
    student.eval()
    with torch.no_grad():
        same = [
            (student(batch.images).argmax(-1) == teacher(batch.images).argmax(-1)).sum()
            for batch in batches(part, 500, None)
        ]
    return float(torch.stack(same).sum()) / len(part)
