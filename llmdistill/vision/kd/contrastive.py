"""Contrastive distillation (CRD, arXiv 1910.10699): an image's two embeddings agree more than those of two images.

`bank` is the paper's objective: noise-contrastive estimation against many negatives out of two banks that hold the last
embeddings of every training image. `batch` is simpler and another loss: InfoNCE (arXiv 1807.03748) against the other
images of the batch, in both directions.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from llmdistill.config.base import Fraction, NotNegative, Positive
from llmdistill.errors import ConfigError
from llmdistill.vision.data import ImageData
from llmdistill.vision.distiller import Distiller
from llmdistill.vision.kd.adapters import (
    FeatureDistiller,
    FeatureMethod,
    Look,
    Pair,
    embedding,
    example_maps,
    layer_pairs,
    unit,
)
from llmdistill.vision.kd.base import Lesson, Taught

NUM_NEGATIVES = 16_384
"""Of the paper, section 4; fewer where there are fewer images."""


def nce_loss(positive: torch.Tensor, negatives: torch.Tensor, log_z: torch.Tensor, num_images: int) -> torch.Tensor:
    """-log h(positive) - sum over negatives of log(1 - h), the mean over images (eq. 18).

    h(s) = e / (e + N / M) with e = exp(s) / Z, N negatives to each image and M images in the data. That is the
    logistic function of s - log Z - log(N / M), as which it is computed.

    Args:
        positive: [B], similarities of an image's own pair divided by the temperature.
        negatives: [B, N], those with other images.
        log_z: [], log Z.
        num_images: M.
    """
    offset = log_z + math.log(negatives.shape[1] / num_images)
    logistic = nn.functional.logsigmoid
    return -(logistic(positive - offset) + logistic(offset - negatives).sum(1)).mean()


def log_z_of(scores: torch.Tensor, num_images: int) -> torch.Tensor:
    """Log of Z, the mean of exp(score) times the number of images, as the authors' code takes it of the first batch."""
    return scores.flatten().logsumexp(0) - math.log(scores.numel()) + math.log(num_images)


def info_nce(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float, labels: torch.Tensor | None = None
) -> torch.Tensor:
    """-log(exp(s_ii / T) / sum over j of exp(s_ij / T)), the mean over images and over both directions.

    Args:
        student, teacher: [B, D], vectors of length one; s_ij is their inner product.
        labels: [B]; where given, other images of the same class are left out of the sum.
    """
    scores = student @ teacher.T / temperature
    if labels is not None:
        own = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        scores = scores.masked_fill((labels[:, None] == labels) & ~own, -math.inf)
    places = torch.arange(len(scores), device=scores.device)
    return (nn.functional.cross_entropy(scores, places) + nn.functional.cross_entropy(scores.T, places)) / 2


class Contrastive(FeatureMethod):
    """weight * contrastive loss + hard_weight * cross-entropy (+ soft_weight * response).

    Attributes:
        layer: the student's and the teacher's layer whose outputs (as `embedding`), projected, are compared; None takes
            the last blocks.
        negatives: `bank`, `nce_loss` in both directions, their sum, or `batch`, `info_nce`. Of other classes in both.
        num_negatives: of the bank, drawn anew for each image with repetition; None is 16,384 as in the paper, or the
            number of images where there are fewer.
        momentum: share of the old embedding in the bank when an image comes again.
        size: numbers of an embedding.
    """

    name: Literal["contrastive"] = "contrastive"
    layer: Pair | None = None
    negatives: Literal["bank", "batch"] = "bank"
    num_negatives: Positive | None = None
    momentum: Fraction = 0.5
    contrast_temperature: Annotated[float, Field(gt=0.0)] = 0.07
    size: Positive = 128
    weight: NotNegative = 0.8

    def distiller(self, student: nn.Module, teacher: nn.Module | None, example: torch.Tensor) -> Distiller:
        """The student, its teacher, and a projection for each; of negatives in the batch only."""
        if self.negatives == "bank":
            what = "the bank has to know the training images"
            raise ConfigError(what, where="methods.negatives", do="use teach() or Bank, or set negatives: batch")
        return ContrastiveDistiller(student, teacher, self, example)

    def teach(self, student: nn.Module, teacher: nn.Module | None, lesson: Lesson) -> Taught:
        """Train with either kind of negatives."""
        if self.negatives == "batch":
            return super().teach(student, teacher, lesson)
        bank = Bank(lesson.data.train.labels, self, lesson.seed)
        distiller = BankDistiller(student, teacher, self, lesson.example, bank)
        history = lesson.fit(distiller, data=placed(lesson.data))
        return Taught(distiller.deployed(), history)


def placed(data: ImageData) -> ImageData:
    """The data with the training images' places in the labels' stead; `BankDistiller` knows the labels of places."""
    train = data.train
    return replace(data, train=replace(train, labels=torch.arange(len(train), device=train.labels.device)))


class ContrastiveDistiller(FeatureDistiller):
    """See `Contrastive`: negatives of the batch."""

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None, settings: Contrastive, example: torch.Tensor
    ) -> None:
        pair = layer_pairs(student, teacher, None if settings.layer is None else [settings.layer])[-1]
        super().__init__(student, teacher, settings, [pair])
        self.settings = settings
        ((own, other),) = example_maps(student, teacher, [pair], example)
        self.own_projection = nn.Linear(embedding(own).shape[1], settings.size)
        self.other_projection = nn.Linear(embedding(other).shape[1], settings.size)

    def embeddings(self, look: Look) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, size] of the student and of the teacher, vectors of length one."""
        own, other = look.maps[0]
        return unit(self.own_projection(embedding(own))), unit(self.other_projection(embedding(other)))

    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Hard, soft where it has a weight, and the contrast."""
        look = self.look(images)
        loss = info_nce(*self.embeddings(look), self.settings.contrast_temperature, labels)
        return {**self.label_terms(look, labels), "contrast": self.settings.weight * loss}


class Bank(nn.Module):
    """The last embeddings of every training image, by both networks, and negatives drawn from them.

    What is drawn depends on the seed and on the number of batches seen, which are kept with the embeddings: a training
    that is resumed draws what it would have drawn.

    Attributes:
        labels: [M] of all training images.
        own, other: [M, size] embeddings, vectors of length one, random ones at first.
        log_z: [2], log Z of either direction, nan before the first batch.
        seen: [], batches so far.
    """

    labels: torch.Tensor
    order: torch.Tensor
    sizes: torch.Tensor
    own: torch.Tensor
    other: torch.Tensor
    log_z: torch.Tensor
    seen: torch.Tensor

    def __init__(self, labels: torch.Tensor, settings: Contrastive, seed: int) -> None:
        super().__init__()
        num, self.settings, self.seed = len(labels), settings, seed
        self.num_negatives = settings.num_negatives or min(NUM_NEGATIVES, num)
        self.register_buffer("labels", labels.cpu())
        self.register_buffer("order", self.labels.argsort(stable=True))
        self.register_buffer("sizes", self.labels.bincount())
        if int(self.sizes.max()) == num:
            raise ConfigError("contrast needs images of two classes", where="data.path")
        generator = torch.Generator().manual_seed(seed)
        for name in ("own", "other"):
            self.register_buffer(name, unit(torch.randn(num, settings.size, generator=generator)))
        self.register_buffer("log_z", torch.full((2,), math.nan))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def draw(self, labels: torch.Tensor) -> torch.Tensor:
        """Places [B, N] of images of other classes than `labels` [B], each as likely as any other."""
        generator = torch.Generator(labels.device).manual_seed((self.seed << 31) + int(self.seen))
        uniform = torch.rand(len(labels), self.num_negatives, generator=generator, device=labels.device)
        others = len(self.labels) - self.sizes[labels][:, None]
        drawn = (uniform.double() * others).long()
        first = (self.sizes.cumsum(0) - self.sizes)[labels][:, None]
        return self.order[drawn + (drawn >= first) * self.sizes[labels][:, None]]

    def loss(self, own: torch.Tensor, other: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """`nce_loss` of the student against the teacher's bank and of the teacher against the student's, their sum.

        Args:
            own, other: embeddings [B, size] of the student and of the teacher.
            places: [B], which images they are.
        """
        negatives = self.draw(self.labels[places])
        total = torch.zeros((), device=own.device)
        for side, (anchors, bank) in enumerate(((own, self.other), (other, self.own))):
            scores = anchors @ bank.T / self.settings.contrast_temperature
            positive, against = scores.gather(1, places[:, None]), scores.gather(1, negatives)
            if self.seen == 0:
                both = torch.cat([positive, against], 1).detach()
                self.log_z[side] = log_z_of(both, len(self.labels))
            total = total + nce_loss(positive[:, 0], against, self.log_z[side].clone(), len(self.labels))
        return total

    @torch.no_grad()
    def keep(self, own: torch.Tensor, other: torch.Tensor, places: torch.Tensor) -> None:
        """Move the images' embeddings in the bank towards the new ones."""
        share = self.settings.momentum
        # New tensors: the backward pass still needs those that the loss was computed with.
        self.own = self.own.index_copy(0, places, unit(share * self.own[places] + (1 - share) * own))
        self.other = self.other.index_copy(0, places, unit(share * self.other[places] + (1 - share) * other))
        self.seen += 1


class BankDistiller(ContrastiveDistiller):
    """See `Contrastive`: negatives of the bank. Its labels are the places of images (`placed`)."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        settings: Contrastive,
        example: torch.Tensor,
        bank: Bank,
    ) -> None:
        super().__init__(student, teacher, settings, example)
        self.bank = bank

    def terms(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Hard, soft where it has a weight, and the contrast."""
        look = self.look(images)
        own, other = self.embeddings(look)
        loss = self.bank.loss(own, other, labels)
        self.bank.keep(own, other, labels)
        return {**self.label_terms(look, self.bank.labels[labels]), "contrast": self.settings.weight * loss}
