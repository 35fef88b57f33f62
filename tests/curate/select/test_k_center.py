"""The fast k-center is the slow one."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from llmdistill.curate.select.base import Task
from llmdistill.curate.select.k_center import k_center
from tests.curate.hard_tasks import instance

module = importlib.import_module("llmdistill.curate.select.k_center")  # the package names the function alike


def reference(task: Task) -> tuple[list[int], list[float]]:
    """Written from the definition, in float64."""
    vectors, quality = np.asarray(task.vectors, dtype=np.float64), task.qualities
    num = len(vectors)
    weights = 1 - task.quality + task.quality * quality
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    chosen, gains = list(task.given), [np.nan] * len(task.given)
    if not chosen and num and task.size:
        chosen, gains = [min(range(num), key=lambda row: (-quality[row], row))], [np.nan]
    while len(chosen) < min(task.size, num):
        rest = [row for row in range(num) if row not in chosen]
        value = {row: distances[row, chosen].min() * weights[row] for row in rest}
        best = max(value.values())
        level = [row for row in rest if value[row] >= best - 1e-12]
        chosen.append(level[0] if best > 0 else min(level, key=lambda row: (-quality[row], row)))
        gains.append(best)
    return chosen, gains


@pytest.mark.parametrize(("dtype", "pool"), [(np.float64, 2), (np.float32, 2), (np.float32, 2048)])
def test_equals_the_slow_reference_on_200_instances(
    monkeypatch: pytest.MonkeyPatch, dtype: type[np.floating], pool: int
) -> None:
    monkeypatch.setattr(module, "_POOL", pool)
    for seed in range(200):
        task = instance(seed, dtype)
        chosen, gains = reference(task)
        choice = k_center(task)
        assert choice.chosen.tolist() == chosen, seed
        np.testing.assert_allclose(choice.gains, gains, atol=1e-12, err_msg=str(seed))


def test_copies_follow_by_score_then_row_until_size_is_reached() -> None:
    vectors = np.tile(np.eye(4, dtype=np.float32)[:1], (6, 1))
    choice = k_center(Task(vectors, np.array([1, 3, 2, 3, 2, 1]), 5))
    assert choice.chosen.tolist() == [1, 3, 2, 4, 0]
    assert choice.gains[1:].tolist() == [0, 0, 0, 0]


def test_float32_products_never_decide_between_close_rows() -> None:
    """Thousands of rows around few points, closer to one another than float32 products can tell."""
    rng = np.random.default_rng(5)
    base = rng.standard_normal((40, 64))[rng.integers(0, 40, 3000)]
    vectors = base + 1e-4 * rng.standard_normal(base.shape)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    task = Task(vectors, rng.integers(1, 4, 3000), 120, quality=0.3)
    exact = Task(vectors.astype(np.float64), task.scores, 120, quality=0.3)
    assert k_center(task).chosen.tolist() == k_center(exact).chosen.tolist()


def test_most_rows_are_never_compared_with_most_centres(tmp_path: Path) -> None:
    """On disk, and the same whether or not they are in memory."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((20_000, 32), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.save(tmp_path / "v.npy", vectors)
    scores = rng.integers(1, 11, 20_000)
    choice = k_center(Task(np.load(tmp_path / "v.npy", mmap_mode="r"), scores, 300))
    assert choice.notes["products"] < 0.5
    assert choice.chosen.tolist() == k_center(Task(vectors, scores, 300)).chosen.tolist()
    exact = k_center(Task(vectors.astype(np.float64), scores, 300))
    assert choice.chosen.tolist() == exact.chosen.tolist()


@pytest.mark.parametrize(("num", "size"), [(0, 3), (1, 3), (4, 9), (4, 0)])
def test_few_rows(num: int, size: int) -> None:
    choice = k_center(Task(np.eye(4)[:num], np.arange(num), size))
    assert len(choice.chosen) == len(choice.gains) == min(num, size)
    assert len(set(choice.chosen.tolist())) == min(num, size)
