"""Kernel methods: images for which kernel ridge regression (KRR) with an infinitely wide network is right on real ones.

KIP learns the images, and the labels if wanted (Nguyen et al., arXiv 2011.00050 and 2107.13034); Label Solve has the
best labels for fixed images in closed form. All of it is in float64. The accuracy of KRR on a set is a measure of its
own, called `kernel`: networks of finite width reach less.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from llmdistill.config.base import Fraction, NotNegative, Positive, Settings
from llmdistill.errors import InputError, StageError
from llmdistill.vision.data import Part, bounds
from llmdistill.vision.dd.artefact import DistilledDataset
from llmdistill.vision.dd.base import Distillation, Method, Presets, Task
from llmdistill.vision.dd.synthesis import Pixels

if TYPE_CHECKING:
    from llmdistill.vision.config import Net
    from llmdistill.vision.data import ImageData

_EDGE = 1e-12
"""A cosine so near to 1 is rounded to 1, and has no gradient: the arc cosine's is infinite at 1."""


def ntk(
    one: torch.Tensor, other: torch.Tensor, depth: int = 1, weight_std: float = math.sqrt(2), bias_std: float = 0.1
) -> torch.Tensor:
    """Neural tangent kernel of an infinitely wide fully connected ReLU network (arXiv 1806.07572, 2011.00050).

    Every layer is weight_std / sqrt(width before) W x + bias_std b with W and b drawn from N(0, 1).

    Args:
        one: [n, d].
        other: [m, d].
        depth: hidden layers.

    Returns:
        [n, m], of one output.
    """
    weights, biases = weight_std**2, bias_std**2
    covariance = weights / one.shape[1] * (one @ other.T) + biases
    own, its = (weights / rows.shape[1] * torch.linalg.vecdot(rows, rows) + biases for rows in (one, other))
    kernel = covariance
    for _ in range(depth):
        scale = (own[:, None] * its).sqrt()
        cosine = covariance / scale
        angle = _angle(cosine)
        beside = (math.pi - angle) / (2 * math.pi)
        covariance = weights * scale * (angle.sin() / (2 * math.pi) + beside * cosine) + biases
        kernel = covariance + weights * kernel * beside
        own, its = weights * own / 2 + biases, weights * its / 2 + biases
    return kernel


def _angle(cosine: torch.Tensor) -> torch.Tensor:
    """Arc cosine; within `_EDGE` of 1 and -1 with gradient 0."""
    edge = cosine.abs() > 1 - _EDGE
    return torch.where(edge, cosine.detach().round().acos(), cosine.masked_fill(edge, 0).acos())


class Kernel(Settings):
    """The kernel of a regression, and its regularisation.

    Attributes:
        depth: hidden layers of the infinitely wide network.
        weight_std, bias_std: deviations of its weights and biases.
        ridge: lambda, in units of the mean of the kernel's diagonal.
    """

    depth: Positive = 1
    weight_std: Annotated[float, Field(gt=0.0)] = math.sqrt(2)
    bias_std: Annotated[float, Field(gt=0.0)] = 0.1
    ridge: NotNegative = 1e-6

    def between(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """[n, m] float64 of images [n, ...] and [m, ...]."""
        return ntk(one.flatten(1).double(), other.flatten(1).double(), self.depth, self.weight_std, self.bias_std)

    def solve(self, support: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """(K_ss + lambda tr(K_ss) / n I)^-1 times [n, k].

        Raises:
            StageError: K_ss is singular, or not finite.
        """
        kernel = self.between(support, support)
        regular = kernel + self.ridge * kernel.diagonal().mean() * torch.eye(len(kernel)).to(kernel)
        factor, failed = torch.linalg.cholesky_ex(regular)
        if failed or not factor.isfinite().all():
            what = "the kernel of the set with itself cannot be inverted: images are equal, or not finite"
            raise StageError(what, where="kernel.ridge", do="raise it, or lower learning_rate")
        return torch.cholesky_solve(right, factor)

    def regression(self, support: torch.Tensor, targets: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """[m, classes]: what KRR on support images [n, ...] with targets [n, classes] says of images [m, ...]."""
        return self.between(images, support) @ self.solve(support, targets)


def regression_loss(said: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Half the mean square of the difference, over images and classes (arXiv 2107.13034, equation 2)."""
    return (said - targets).square().mean() / 2


def centred(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """[N] class numbers as targets [N, classes] float64: one-hot - 1 / classes."""
    return nn.functional.one_hot(labels, num_classes).double() - 1 / num_classes


def targets_of(dataset: DistilledDataset) -> torch.Tensor:
    """[N, classes] float64: what KRR is to say of a set's own images."""
    if dataset.labels.ndim == 1:
        return centred(dataset.labels, dataset.num_classes)
    labels = dataset.labels.double()
    return labels if dataset.targets else labels.softmax(1) - 1 / dataset.num_classes


def krr_accuracy(dataset: DistilledDataset, part: Part, kernel: Kernel | None = None, batch_size: int = 5000) -> float:
    """Share of a part's images, 0 to 1, whose class KRR on the set tells right.

    Raises:
        InputError: there is no image in the part.
        StageError: see `Kernel.solve`.
    """
    if not len(part):
        raise InputError("there is no image to measure on", where="data", do="add images")
    kernel, support = kernel or Kernel(), dataset.images.to(part.images.device)
    weights = kernel.solve(support, targets_of(dataset).to(part.images.device))
    right = 0
    for rows in bounds(len(part), batch_size):
        said = (kernel.between(part.images[rows], support) @ weights).argmax(1)
        right += int((said == part.labels[rows]).sum())
    return right / len(part)


class KernelMethod(Method):
    """What both methods share."""

    kernel: Kernel = Kernel()

    def measures(
        self, dataset: DistilledDataset, data: ImageData, net: Net, part: Part, seed: int
    ) -> dict[str, list[float]]:
        """See `Method`: the accuracy of KRR."""
        return {"kernel": [krr_accuracy(dataset, part, self.kernel)]}


class Kip(KernelMethod):
    """Kernel inducing points: Adam on the images, and on the labels if `learn_labels`.

    Attributes:
        momentum: Adam's first beta.
        batch_real: real images in an iteration, the same number of every class.
    """

    presets: ClassVar[Presets] = {"ci": {None: {"iterations": 60, "batch_real": 1000}}}

    name: Literal["kip"] = "kip"
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.04
    momentum: Fraction = 0.9
    batch_real: Positive = 5000
    learn_labels: bool = False

    def distillation(self, task: Task) -> Distillation:
        """See `Method`."""
        return KipDistillation(task, self)


class LabelSolve(KernelMethod):
    """The labels for which KRR comes nearest to those of all real images; the images stay as they begin."""

    presets: ClassVar[Presets] = {"ci": {}}

    name: Literal["label_solve"] = "label_solve"
    iterations: Literal[1] = 1

    def distillation(self, task: Task) -> Distillation:
        """See `Method`."""
        return LabelSolveDistillation(task, self)


class Support(Pixels):
    """Pixels and their targets in float64.

    Args:
        soft: the targets are learned, and thus part of the set.
    """

    def __init__(self, task: Task, start: str, soft: bool) -> None:
        super().__init__(task, start)
        self.double()
        self.soft = soft
        targets = centred(self.labels, task.data.num_classes)
        self.targets: torch.Tensor
        if soft:
            self.targets = nn.Parameter(targets)
        else:
            self.register_buffer("targets", targets)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Synthesiser`; soft labels are targets of least squares."""
        return self.images, self.targets if self.soft else self.labels


class KernelDistillation(Distillation):
    """A set whose images and labels are made in float64 and given in float32."""

    synthesiser: Support

    def result(self, provenance: dict[str, Any]) -> DistilledDataset:
        """See `Distillation`."""
        made, soft = super().result(provenance), self.synthesiser.soft
        return replace(
            made, images=made.images.float(), labels=made.labels.float() if soft else made.labels, targets=soft
        )


class KipDistillation(KernelDistillation):
    """See `Kip`."""

    settings: Kip

    def __init__(self, task: Task, settings: Kip) -> None:
        super().__init__(task, settings)
        self.synthesiser = Support(task, settings.start, settings.learn_labels)
        betas = (settings.momentum, 0.999)
        self.optimiser = torch.optim.Adam(self.synthesiser.parameters(), settings.learning_rate, betas)
        greatest = int(task.data.train.labels.bincount().max())
        self.num_real = max(1, min(settings.batch_real // task.data.num_classes, greatest))

    def loss(self) -> torch.Tensor:
        """The regression's loss on real images."""
        real = self.task.real(self.num_real)
        labels = torch.arange(len(real), device=real.device).repeat_interleave(real.shape[1])
        support = self.synthesiser
        said = self.settings.kernel.regression(support.images, support.targets, real.flatten(0, 1))
        return regression_loss(said, centred(labels, len(real)))


class LabelSolveDistillation(KernelDistillation):
    """See `LabelSolve`. It holds a matrix of real images by synthetic ones, float64."""

    settings: LabelSolve

    def __init__(self, task: Task, settings: LabelSolve) -> None:
        super().__init__(task, settings)
        self.synthesiser = Support(task, settings.start, soft=True)

    @torch.no_grad()
    def improve(self) -> float:
        """y* = (K_ts (K_ss + lambda I)^-1)^+ y_t."""
        train, images = self.task.data.train, self.synthesiser.images
        kernel = self.settings.kernel
        said = torch.cat(
            [kernel.between(train.images[rows], images) for rows in bounds(len(train), 5000)]
        ) @ kernel.solve(images, torch.eye(len(images)).to(images))
        targets = centred(train.labels, self.task.data.num_classes)
        # Only LAPACK on the CPU has the driver that gives the pseudo-inverse where images depend on one another.
        solved = torch.linalg.lstsq(said.cpu(), targets.cpu(), driver="gelsd").solution.to(images)
        self.synthesiser.targets.copy_(solved)
        return float(regression_loss(said @ solved, targets))
