"""ZCA whitening against its definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from llmdistill.errors import ConfigError
from llmdistill.vision.data import Part
from llmdistill.vision.dd import whitening as module
from llmdistill.vision.dd.whitening import fit, whitened
from tests.vision.images import small_data


def correlated(num: int = 200, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(12, 12, generator=generator)
    return (torch.randn(num, 12, generator=generator) @ mixing + 3).reshape(num, 3, 2, 2)


def test_the_matrix_is_the_inverse_root_of_the_regularised_covariance():
    images = correlated()
    flat = images.flatten(1).double().numpy()
    u, s, _ = np.linalg.svd(np.cov(flat.T))
    wanted = u @ np.diag(1 / np.sqrt(s + 0.1)) @ u.T
    found = fit(images)
    np.testing.assert_allclose(found.matrix.numpy(), wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.of(images).flatten(1), (flat - flat.mean(0)) @ wanted, rtol=1e-3, atol=1e-4)


def test_whitened_pixels_are_as_uncorrelated_as_those_of_principal_components():
    from sklearn.decomposition import PCA

    images = correlated()
    found = fit(images, eps=1e-9).of(images).flatten(1).double()
    torch.testing.assert_close(torch.cov(found.T), torch.eye(12, dtype=torch.double), rtol=1e-3, atol=1e-3)
    components = PCA(whiten=True).fit(images.flatten(1).numpy())
    theirs = components.transform(images.flatten(1).numpy()) @ components.components_
    np.testing.assert_allclose(found, theirs, atol=2e-3)


def test_images_come_back():
    images = correlated()
    whitening = fit(images)
    torch.testing.assert_close(whitening.undone(whitening.of(images)), images, rtol=1e-4, atol=1e-4)


def test_pixels_that_are_always_the_same_stay_finite_and_come_back():
    images = correlated()
    images[:, 0, 0] = 5.0
    whitening = fit(images)
    found = whitening.of(images)
    assert found.isfinite().all() and found[:, 0, 0].abs().max() < 1e-3
    torch.testing.assert_close(whitening.undone(found), images, rtol=1e-4, atol=1e-4)


def test_it_is_the_same_when_rows_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch):
    images = correlated()
    whole = fit(images)
    monkeypatch.setattr(module, "_ROWS", 7)
    pieces = fit(images)
    torch.testing.assert_close(whole.matrix, pieces.matrix)
    torch.testing.assert_close(whole.of(images), pieces.of(images), rtol=1e-4, atol=1e-5)


def test_all_parts_are_whitened_by_what_the_training_part_gave():
    data = small_data()
    found, whitening = whitened(data)
    for name in ("train", "validation", "test"):
        part, its = getattr(found, name), getattr(data, name)
        torch.testing.assert_close(part.images, whitening.of(its.images))
        assert torch.equal(part.labels, its.labels) and part.images.dtype == torch.float32
    other = replace(data, test=Part(data.test.images * 9, data.test.labels), validation=data.test)
    assert torch.equal(whitened(other)[1].matrix, whitening.matrix)
    assert found.shape == data.shape and torch.equal(found.mean, data.mean)


def test_one_image_is_refused():
    with pytest.raises(ConfigError, match="whitening needs two training images"):
        fit(correlated(1))
