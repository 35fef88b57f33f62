"""What needs no distillation, always in the table: random images, class means, herding and k-means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from llmdistill.config.base import Positive
from llmdistill.vision.config import Protocol
from llmdistill.vision.data import bounds
from llmdistill.vision.dd.base import Distillation, Method, Task
from llmdistill.vision.models import embed, evaluating

Choose = Callable[[torch.Tensor], torch.Tensor]
"""Features [n, d] of one class to the images [k] of it that are kept, k at most n, as row numbers."""


class Baseline(Method):
    """A set that is whole as it begins."""

    iterations: Positive = 1


class Random(Baseline):
    """Real images of every class, drawn."""

    name: Literal["random"] = "random"
    start: Literal["real"] = "real"

    def distillation(self, task: Task) -> Distillation:
        """See `Method`."""
        return AsItBegins(task, self)


class ClassMean(Baseline):
    """The mean image of every class, as often as there are images for each class."""

    name: Literal["class_mean"] = "class_mean"
    start: Literal["mean"] = "mean"

    def distillation(self, task: Task) -> Distillation:
        """See `Method`."""
        return AsItBegins(task, self)


class Herding(Baseline):
    """Real images, each the one that brings the mean of the chosen ones nearest to the mean of the class.

    Greedy, without repetition (arXiv 1611.07725, algorithm 4).

    Attributes:
        space: where means are compared: `pixels`, or the last features of a `network` trained on the training part.
        epochs: of that network's training.
    """

    name: Literal["herding"] = "herding"
    start: Literal["mean"] = "mean"
    space: Literal["pixels", "network"] = "pixels"
    epochs: Positive = 20

    def distillation(self, task: Task) -> Distillation:
        """See `Method`."""
        features = task.data.train.images if self.space == "pixels" else trained_features(task, self.epochs)
        return AsItBegins(task, self, chosen(task, features, lambda some: herded(some, task.ipc)))


class KMeans(Baseline):
    """Clusters of the pixels of each class, one for each image: of each the real image that is nearest to its centre.

    Attributes:
        centres: the centres themselves, which are no real images.
    """

    name: Literal["k_means"] = "k_means"
    start: Literal["mean"] = "mean"
    centres: bool = False

    def distillation(self, task: Task) -> Distillation:
        """See `Method`."""
        train = task.data.train
        if self.centres:
            found = [clusters(some.flatten(1), task.ipc, task.seed)[0] for some in _by_class(task, train.images)]
            images = torch.stack([_filled(some.to(train.images), task.ipc) for some in found])
            return AsItBegins(task, self, images.reshape(*images.shape[:2], *task.data.shape))
        nearest = chosen(task, train.images, lambda some: nearest_to_centres(some, task.ipc, task.seed))
        return AsItBegins(task, self, nearest)


class AsItBegins(Distillation):
    """Nothing is learned.

    Args:
        images: [classes, ipc, C, H, W]; None takes the images that `settings.start` names.
    """

    def __init__(self, task: Task, settings: Method, images: torch.Tensor | None = None) -> None:
        super().__init__(task, settings)
        if images is not None:
            with torch.no_grad():
                self.synthesiser.images.copy_(images.flatten(0, 1))

    def improve(self) -> float:
        """Nothing to do."""
        return 0.0


def chosen(task: Task, features: torch.Tensor, choose: Choose) -> torch.Tensor:
    """[classes, ipc, C, H, W] training images that `choose` takes by their features [N, ...], class by class."""
    found = []
    for images, some in zip(_by_class(task, task.data.train.images), _by_class(task, features), strict=True):
        found.append(images[_filled(choose(some.flatten(1)), task.ipc).to(images.device)])
    return torch.stack(found)


def herded(features: torch.Tensor, number: int) -> torch.Tensor:
    """[min(number, n)] rows of features [n, d], in the order in which they are chosen."""
    features = features.double()
    mean = features.mean(0)
    squares = features.square().sum(1)
    total = torch.zeros_like(mean)
    rows: list[int] = []
    for step in range(1, min(number, len(features)) + 1):
        # || step * mean - total - f ||^2 without what is the same for every f
        distances = squares - 2 * features @ (step * mean - total)
        distances[rows] = torch.inf
        rows.append(int(distances.argmin()))
        total += features[rows[-1]]
    return torch.tensor(rows)


def clusters(features: torch.Tensor, number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres [k, d] and the cluster [n] of each row of features [n, d]; k is at most the number of different rows."""
    import numpy as np
    from sklearn.cluster import KMeans as SklearnKMeans

    rows = features.double().cpu().numpy()
    number = min(number, len(np.unique(rows, axis=0)))
    found = SklearnKMeans(number, random_state=seed).fit(rows)
    return torch.from_numpy(found.cluster_centers_), torch.from_numpy(found.labels_).long()


def nearest_to_centres(features: torch.Tensor, number: int, seed: int) -> torch.Tensor:
    """[k] different rows of features [n, d]: of each cluster the one nearest to its centre."""
    centres, members = clusters(features, number, seed)
    distances = torch.cdist(centres, features.double().cpu())
    distances[members != torch.arange(len(centres))[:, None]] = torch.inf
    return distances.argmin(1)


def trained_features(task: Task, epochs: int) -> torch.Tensor:
    """[N, d] last features of the training images, in a network that is trained on them for so many epochs."""
    from llmdistill.vision.fit import fit
    from llmdistill.vision.kd.plain import PlainDistiller

    net = task.fresh_net()
    fit(PlainDistiller(net), task.data, Protocol(epochs=epochs), task.seed)
    with evaluating(net), torch.no_grad():
        images = task.data.train.images
        return torch.cat([embed(net, images[part]) for part in bounds(len(images), 500)])


def _by_class(task: Task, rows: torch.Tensor) -> list[torch.Tensor]:
    labels = task.data.train.labels
    return [rows[labels == label] for label in range(task.data.num_classes)]


def _filled(some: torch.Tensor, number: int) -> torch.Tensor:
    """`number` of them: from the first on again where there are too few."""
    return some[torch.arange(number, device=some.device) % len(some)]
