"""What a selection stands for: every number equal to its definition, written out slowly."""

import json

import numpy as np
import pytest

from llmdistill.curate import coverage as module
from llmdistill.curate.coverage import coverage_curve, nearest_chosen, plane


def unit_rows(num: int, size: int, seed: int = 0, dtype=np.float64) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(num, size))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


def slow_coverage(vectors, chosen):
    """(coverage, radius) from the definitions."""
    best = [max(float(row @ vectors[other]) for other in chosen) for row in vectors]
    distances = [min(float(np.linalg.norm(row - vectors[other])) for other in chosen) for row in vectors]
    return sum((1 + cosine) / 2 for cosine in best) / len(vectors), max(distances)


@pytest.fixture
def in_small_blocks(monkeypatch):
    """Blocks of a few rows, so that small pools have many of them."""
    monkeypatch.setattr(module, "_ROWS", 7)
    monkeypatch.setattr(module, "_CHOSEN", 3)


@pytest.mark.parametrize(("num", "num_chosen"), [(1, 1), (2, 2), (40, 1), (40, 17), (60, 60)])
def test_every_point_of_the_curve_is_the_definition(in_small_blocks, num, num_chosen):
    vectors = unit_rows(num, 6)
    chosen = np.random.default_rng(1).permutation(num)[:num_chosen]
    found = coverage_curve(vectors, chosen, seed=3)
    assert found.sizes[0] == 1 and found.sizes[-1] == num_chosen and found.sizes == sorted(set(found.sizes))
    assert found.num_pool == found.num_measured == num
    for size, coverage, radius in zip(found.sizes, found.coverage, found.radius, strict=True):
        assert (coverage, radius) == pytest.approx(slow_coverage(vectors, chosen[:size]), abs=2e-6)


def test_the_band_holds_what_its_random_choices_cover():
    vectors = unit_rows(50, 5)
    several = coverage_curve(vectors, np.arange(20), seed=3, num_random=4)
    for band in (several.random_coverage, several.random_radius):
        assert all(low <= mean <= high for low, mean, high in zip(band.low, band.mean, band.high, strict=True))
        assert band.low[0] < band.high[0]
    rng = np.random.default_rng(3)
    draws = [rng.choice(50, 20, replace=False) for _ in range(4)]
    covered = [slow_coverage(vectors, draw)[0] for draw in draws]
    band = several.random_coverage
    assert (band.low[-1], band.mean[-1], band.high[-1]) == pytest.approx(
        (min(covered), np.mean(covered), max(covered)), abs=2e-6
    )


def test_the_same_seed_gives_the_same_numbers_and_another_one_other_draws():
    vectors = unit_rows(80, 8, dtype=np.float32)
    first = coverage_curve(vectors, np.arange(10), seed=1)
    assert first == coverage_curve(vectors, np.arange(10), seed=1)
    other = coverage_curve(vectors, np.arange(10), seed=2)
    assert first.coverage == other.coverage and first.random_coverage != other.random_coverage


def test_a_spread_choice_covers_more_than_chance_and_a_crowded_one_less():
    centres = np.eye(8)
    vectors = np.repeat(centres, [40, 2, 2, 2, 2, 2, 2, 2], axis=0)
    spread = np.array([0, *range(40, 54, 2)])
    better = coverage_curve(vectors, spread, seed=0)
    assert better.coverage[-1] == 1.0 > better.random_coverage.high[-1] and better.radius[-1] == 0.0
    worse = coverage_curve(vectors, np.arange(8), seed=0)
    assert worse.coverage[-1] < worse.random_coverage.mean[-1]


def test_coverage_grows_and_the_radius_shrinks_with_every_chosen_row():
    found = coverage_curve(unit_rows(300, 12), np.arange(100), seed=0)
    for growing, shrinking in ((found.coverage, found.radius), (found.random_coverage.mean, found.random_radius.mean)):
        assert growing == sorted(growing) and shrinking == sorted(shrinking, reverse=True)


def test_of_a_large_pool_a_sample_is_measured_and_the_result_says_so(monkeypatch):
    vectors = unit_rows(900, 6)
    whole = coverage_curve(vectors, np.arange(20), seed=0)
    monkeypatch.setattr(module, "_MOST_MEASURED", 300)
    sampled = coverage_curve(vectors, np.arange(20), seed=0)
    assert (sampled.num_pool, sampled.num_measured) == (900, 300)
    assert sampled.coverage != whole.coverage
    assert sampled.coverage == pytest.approx(whole.coverage, abs=0.03)


def test_with_many_chosen_fewer_rows_are_measured_but_never_too_few(monkeypatch):
    monkeypatch.setattr(module, "_LEAST_MEASURED", 50)
    monkeypatch.setattr(module, "_MOST_PRODUCTS", 10_000)
    vectors = unit_rows(200, 4)
    measured = [coverage_curve(vectors, np.arange(n), 0, num_random=0).num_measured for n in (10, 100, 200)]
    assert measured == [200, 100, 50]


@pytest.mark.parametrize("num", [0, 3])
def test_nothing_chosen_gives_an_empty_curve(num):
    found = coverage_curve(np.ones((num, 1)), np.empty(0, dtype=np.int64), seed=0)
    assert found.sizes == found.coverage == found.random_radius.mean == []


def test_zero_rows_are_like_nothing_and_all_equal_rows_are_covered_by_one():
    zeros = coverage_curve(np.zeros((4, 3)), np.arange(2), seed=0)
    assert zeros.coverage == [0.5, 0.5] and zeros.radius == pytest.approx([2**0.5] * 2, abs=1e-6)
    equal = coverage_curve(np.tile(unit_rows(1, 3, dtype=np.float32), (4, 1)), np.arange(2), seed=0)
    assert equal.coverage == pytest.approx([1.0, 1.0], abs=1e-6) and max(equal.radius) < 1e-3


def test_the_curve_is_json_and_comes_back_equal():
    values = coverage_curve(unit_rows(30, 4, dtype=np.float32), np.arange(9), seed=0).as_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("num", "num_chosen"), [(1, 1), (2, 2), (40, 1), (40, 11), (30, 30)])
def test_nearest_chosen_is_the_most_similar_other_one(in_small_blocks, dtype, num, num_chosen):
    vectors = unit_rows(num, 5, dtype=dtype)
    chosen = np.random.default_rng(2).permutation(num)[:num_chosen]
    rows, cosines = nearest_chosen(vectors, chosen)
    for row in range(num):
        others = [int(other) for other in chosen if other != row]
        if not others:
            assert rows[row] == -1 and np.isnan(cosines[row])
            continue
        expected = max(others, key=lambda other: float(vectors[row] @ vectors[other]))
        assert rows[row] == expected and cosines[row] == pytest.approx(
            float(vectors[row] @ vectors[expected]), abs=1e-6
        )


def test_of_equally_similar_ones_the_first_chosen_is_named(in_small_blocks):
    rows, cosines = nearest_chosen(np.ones((12, 1)), np.array([9, 4, 7, 2, 11]))
    assert rows.tolist() == [9] * 9 + [4, 9, 9] and (cosines == 1).all()


@pytest.mark.parametrize("num", [0, 3])
def test_without_chosen_rows_nothing_is_near(num):
    rows, cosines = nearest_chosen(np.ones((num, 2)), np.empty(0, dtype=np.int64))
    assert (rows == -1).all() and np.isnan(cosines).all() and len(rows) == len(cosines) == num


def test_too_many_pairs_are_not_compared(monkeypatch):
    monkeypatch.setattr(module, "_MOST_PAIRS", 24)
    vectors = unit_rows(5, 3)
    assert (nearest_chosen(vectors, np.arange(5))[0] == -1).all()
    assert (nearest_chosen(vectors, np.arange(4))[0] >= 0).all()


def test_the_plane_is_that_of_the_singular_vectors():
    vectors = unit_rows(200, 9) * np.linspace(1, 3, 9)
    centred = vectors - vectors.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    expected, found = centred @ axes[:2].T, plane(vectors)
    signs = np.sign((expected * found).sum(0))
    np.testing.assert_allclose(found, expected * signs, atol=2e-6)


def test_an_axis_points_the_same_way_however_the_rows_lie():
    vectors = unit_rows(100, 5, dtype=np.float32) * np.arange(1, 6, dtype=np.float32)
    order = np.random.default_rng(0).permutation(100)
    np.testing.assert_allclose(plane(vectors)[order], plane(vectors[order]), atol=2e-6)


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (3, 1), (3, 2), (2, 5), (4, 0)])
def test_the_plane_of_little_has_a_place_for_every_row(shape):
    places = plane(np.random.default_rng(0).normal(size=shape))
    assert places.shape == (shape[0], 2) and np.isfinite(places).all()
    if shape == (3, 1):
        assert np.ptp(places[:, 0]) > 0 and (places[:, 1] == 0).all()


def test_equal_rows_lie_on_one_place():
    assert np.abs(plane(np.tile(unit_rows(1, 6, dtype=np.float32), (50, 1)))).max() < 1e-6


def test_vectors_on_disk_give_what_vectors_in_memory_give(tmp_path):
    vectors = unit_rows(500, 7, dtype=np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    np.testing.assert_array_equal(plane(mapped), plane(vectors))
    assert coverage_curve(mapped, np.arange(9), 0) == coverage_curve(vectors, np.arange(9), 0)
    np.testing.assert_array_equal(nearest_chosen(mapped, np.arange(9))[0], nearest_chosen(vectors, np.arange(9))[0])
