"""Blocked products are the products."""

from __future__ import annotations

import numpy as np
import pytest

from llmdistill.curate import blocks


@pytest.mark.parametrize("others", [1, 3, 1300])
def test_nearest_is_the_largest_product(others: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors, some = rng.standard_normal((2100, 8)), rng.standard_normal((others, 8))
    similarity, index = blocks.nearest(vectors, some)
    products = vectors @ some.T
    assert index.tolist() == products.argmax(1).tolist()
    np.testing.assert_allclose(similarity, products.max(1), atol=1e-13)


def test_nearest_takes_the_lowest_of_equals_across_blocks() -> None:
    vectors = np.eye(4, dtype=np.float32)[:2]
    assert blocks.nearest(vectors, np.tile(vectors, (700, 1)))[1].tolist() == [0, 1]


def test_nearest_without_others_is_defined() -> None:
    similarity, index = blocks.nearest(np.ones((3, 2), dtype=np.float32), np.zeros((0, 2), dtype=np.float32))
    assert index.tolist() == [-1] * 3 and np.isneginf(similarity).all() and similarity.dtype == np.float32


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    from threadpoolctl import threadpool_limits

    vectors = np.random.default_rng(0).standard_normal((5000, 64), dtype=np.float32)
    with threadpool_limits(1):
        one = blocks.nearest(vectors, vectors[:900])
    with threadpool_limits(2):
        two = blocks.nearest(vectors, vectors[:900])
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1])


def test_top_takes_the_lower_rows_of_equals_and_outside_names_the_first_left() -> None:
    values = np.array([1.0, 3, 2, 2, 2, 0])
    assert blocks.top(values, 3).tolist() == [1, 2, 3]
    assert blocks.outside(values, np.array([1, 2, 3])) == (2.0, 4)
    assert blocks.outside(values, np.arange(6)) == (blocks.CHOSEN, 6)
