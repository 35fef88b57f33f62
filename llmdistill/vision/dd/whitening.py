"""ZCA whitening, the preprocessing of the trajectory papers (MTT, arXiv 2203.11932, section 4.1).

Neighbouring pixels say much the same; whitened ones are uncorrelated. It is fitted on the training part, after the
normalisation by channel, and must go wherever a set made in whitened space goes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from llmdistill.errors import ConfigError
from llmdistill.vision.data import ImageData, Part

EPS = 0.1
"""Added to the eigenvalues, as the paper's code does."""

_ROWS = 4096


@dataclass(frozen=True)
class Whitening:
    """A linear map of flattened images.

    Attributes:
        mean: [d] float32.
        matrix: [d, d] float32, symmetric, (covariance + eps)^(-1/2).
    """

    mean: torch.Tensor
    matrix: torch.Tensor

    def of(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] to the same, whitened."""
        return torch.cat([self._mapped(rows - self.mean, self.matrix) for rows in _rows(images)]).reshape(images.shape)

    def undone(self, images: torch.Tensor) -> torch.Tensor:
        """The other way round."""
        inverse = torch.linalg.inv(self.matrix.double()).float()
        found = [self._mapped(rows, inverse) + self.mean for rows in _rows(images)]
        return torch.cat(found).reshape(images.shape)

    def to(self, device: str | torch.device) -> Whitening:
        """The same on another device."""
        return Whitening(self.mean.to(device), self.matrix.to(device))

    @staticmethod
    def _mapped(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        return rows.to(matrix) @ matrix


def fit(images: torch.Tensor, eps: float = EPS) -> Whitening:
    """The whitening of these images: with covariance U S U^T (divided by N - 1), matrix U (S + eps)^(-1/2) U^T.

    It is computed in float64 from the covariance, d x d whatever the number of images.

    Args:
        images: [N, C, H, W].

    Raises:
        ConfigError: there are fewer than two images.
    """
    if len(images) < 2:
        raise ConfigError("whitening needs two training images", where="data.limit", do="use more images")
    total = sum(rows.double().sum(0) for rows in _rows(images))
    mean = torch.as_tensor(total) / len(images)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=images.device)
    for rows in _rows(images):
        centred = rows.double() - mean
        covariance.addmm_(centred.T, centred)
    values, vectors = torch.linalg.eigh(covariance / (len(images) - 1))
    matrix = (vectors * (values.clamp_min(0) + eps).rsqrt()) @ vectors.T
    return Whitening(mean.float(), matrix.float().contiguous())


def whitened(data: ImageData, eps: float = EPS) -> tuple[ImageData, Whitening]:
    """All parts whitened by what was fitted on the training part."""
    whitening = fit(data.train.images, eps)

    def of(part: Part) -> Part:
        return replace(part, images=whitening.of(part.images))

    return replace(data, train=of(data.train), validation=of(data.validation), test=of(data.test)), whitening


def _rows(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Flattened images, some at a time: a copy of all of them in float64 may not fit."""
    return torch.split(images.flatten(1), _ROWS)
