"""Semantic duplicates against a slow reference, on inputs without a clear answer, and at block borders."""

from __future__ import annotations

import numpy as np
import pytest

from llmdistill.curate import semantic
from llmdistill.curate.duplicates import Match
from llmdistill.curate.embed import unit
from llmdistill.curate.semantic import how, semantic_duplicates


def reference(vectors: np.ndarray, threshold: float) -> list[int | None]:
    """The definition: each row against every row kept before it, one product at a time."""
    kept: list[int] = []
    found: list[int | None] = []
    for row in range(len(vectors)):
        similar = [(float(vectors[other] @ vectors[row]), -other) for other in kept if vectors[other].any()]
        best, other = max(similar, default=(-2.0, 0))
        found.append(-other if vectors[row].any() and best >= threshold - 1e-6 else None)
        if found[-1] is None:
            kept.append(row)
    return found


def indices(matches: list[Match | None]) -> list[int | None]:
    return [match.index if match else None for match in matches]


def instance(seed: int) -> tuple[np.ndarray, float]:
    """Rows around a few centres, so that chains of duplicates are common; some equal, some zero."""
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(0, 40))
    centres = rng.normal(size=(4, 5))
    vectors = centres[rng.integers(0, 4, size=rows)] + rng.normal(0, rng.choice([0.05, 0.3]), size=(rows, 5))
    if rows > 5:
        vectors[rng.integers(0, rows, size=3)] = vectors[0]
        vectors[rng.integers(0, rows)] = 0
    return unit(vectors).astype(np.float32), float(rng.choice([0.5, 0.9, 0.99]))


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_it_equals_the_definition_on_200_random_instances_whatever_the_blocks(block, monkeypatch):
    monkeypatch.setattr(semantic, "_BLOCK", block)
    monkeypatch.setattr(semantic, "_KEPT_BLOCK", block + 1)
    dropped = 0
    for seed in range(200):
        vectors, threshold = instance(seed)
        found = semantic_duplicates(vectors, threshold)
        assert indices(found) == reference(vectors.astype(np.float64), threshold)
        dropped += sum(match is not None for match in found)
    assert dropped > 1000


def test_the_similarity_is_the_cosine_to_the_row_named():
    vectors, threshold = instance(3)
    for row, match in enumerate(semantic_duplicates(vectors, threshold)):
        if match:
            assert match.similarity == pytest.approx(float(vectors[row] @ vectors[match.index]), abs=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_of_identical_rows_the_first_is_kept_at_any_threshold(threshold):
    row = unit(np.random.default_rng(0).normal(size=(1, 384))).astype(np.float32)
    found = semantic_duplicates(np.repeat(row, 3000, axis=0), threshold)
    assert found[0] is None
    assert all(match is not None and match.index == 0 and match.similarity <= 1.0 for match in found[1:])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("width", [0, 3])
def test_no_rows_give_no_matches(width):
    assert semantic_duplicates(np.zeros((0, width), dtype=np.float32), 0.9) == []


@pytest.mark.filterwarnings("error")
def test_rows_that_are_zero_or_not_finite_equal_nothing():
    vectors = np.array([[0, 0], [np.nan, 1], [1, 0], [0, 0], [np.inf, 0], [1, 0]], dtype=np.float32)
    assert indices(semantic_duplicates(vectors, 0.0)) == [None, None, None, None, None, 2]


def test_a_copy_of_a_dropped_row_is_kept_where_it_differs_from_the_kept_one():
    angles = np.radians([0, 15, 30])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert indices(semantic_duplicates(vectors, 0.95)) == [None, 0, None]


def test_large_pools_are_compared_within_clusters_and_lose_few_copies(monkeypatch):
    rng = np.random.default_rng(0)
    originals = rng.normal(size=(2000, 32)) + 3 * rng.normal(size=(8, 32))[rng.integers(0, 8, 2000)]
    copies = originals + rng.normal(0, 0.05, size=originals.shape)
    vectors = unit(np.concatenate([originals, copies])).astype(np.float32)
    exact = semantic_duplicates(vectors, 0.98)
    monkeypatch.setattr(semantic, "EXACT_PRODUCTS", 1e6)
    monkeypatch.setattr(semantic, "CLUSTER_ROWS", 500)
    assert how(*vectors.shape) == "clusters"
    found = semantic_duplicates(vectors, 0.98)
    both = [(one, other) for one, other in zip(exact, found, strict=True) if one]
    assert len(both) >= 2000
    assert np.mean([other is not None for _, other in both]) > 0.98
    assert found == semantic_duplicates(vectors, 0.98)


def test_a_pool_of_55_185_is_compared_exactly():
    assert how(55_185, 384) == "exact"
    assert how(1_000_000, 384) == "clusters"
