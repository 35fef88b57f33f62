"""The fast facility location is the slow one."""

from __future__ import annotations

import importlib
import itertools

import numpy as np
import pytest

from llmdistill.curate.select import coverage_gain
from llmdistill.curate.select.base import Task
from llmdistill.curate.select.facility_location import facility_location, facility_value
from tests.curate.hard_tasks import instance

module = importlib.import_module("llmdistill.curate.select.facility_location")  # the package names the function alike


def objective(task: Task, chosen: list[int]) -> float:
    """F from the definition, in float64."""
    if not chosen:
        return 0.0
    vectors = np.asarray(task.vectors, dtype=np.float64)
    size = max(min(task.size, len(vectors)), len(task.given))
    similar = (1 + np.einsum("id,jd->ij", vectors, vectors[chosen])) / 2
    return float((1 - task.quality) * similar.max(1).mean() + task.quality / size * task.qualities[chosen].sum())


def reference(task: Task) -> tuple[list[int], list[float]]:
    chosen, gains = list(task.given), [np.nan] * len(task.given)
    while len(chosen) < min(task.size, len(task.vectors)):
        now = objective(task, chosen)
        rest = [row for row in range(len(task.vectors)) if row not in chosen]
        gain = np.array([objective(task, [*chosen, row]) - now for row in rest])
        best = int(np.argmax(gain >= gain.max() - 1e-14))
        chosen.append(rest[best])
        gains.append(gain[best])
    return chosen, gains


@pytest.mark.parametrize("held", [True, False])
def test_equals_the_slow_reference_on_200_instances(monkeypatch: pytest.MonkeyPatch, held: bool) -> None:
    monkeypatch.setattr(module, "_HELD_BYTES", module._HELD_BYTES if held else 0)
    monkeypatch.setattr(coverage_gain, "_COLUMNS", 7)
    monkeypatch.setattr(coverage_gain.Cosines, "rows_at_once", 5)
    for seed in range(200):
        task = instance(seed, most=20)
        chosen, gains = reference(task)
        choice = facility_location(task)
        np.testing.assert_allclose(choice.gains, gains, atol=1e-12, err_msg=str(seed))
        assert choice.chosen.tolist() == chosen, seed
        assert choice.notes["value"] == pytest.approx(objective(task, chosen), abs=1e-12)


def test_reaches_63_percent_of_the_best_set() -> None:
    for seed in range(60):
        task = instance(seed, most=12)
        size = min(task.size, 4, len(task.vectors))
        task = Task(task.vectors, task.scores, size, quality=task.quality)
        best = max(objective(task, list(some)) for some in itertools.combinations(range(len(task.vectors)), size))
        assert objective(task, facility_location(task).chosen.tolist()) >= (1 - np.exp(-1)) * best - 1e-12


def clustered(num: int, dims: int = 32, groups: int = 60) -> np.ndarray:
    rng = np.random.default_rng(1)
    vectors = 0.6 * rng.standard_normal((num, dims)) + rng.standard_normal((groups, dims))[rng.integers(0, groups, num)]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_float32_loses_nothing_that_matters_and_evaluates_few_gains() -> None:
    vectors = clustered(3000)
    choice = facility_location(Task(vectors, np.ones(3000), 200, quality=0.0))
    exact = facility_location(Task(vectors.astype(np.float64), np.ones(3000), 200, quality=0.0))
    assert choice.notes["value"] == pytest.approx(exact.notes["value"], abs=1e-5)
    assert choice.notes["evaluations"] < 0.1 * choice.notes["evaluations_naive"]
    assert facility_value(vectors, choice.chosen) == pytest.approx(np.nansum(choice.gains), abs=1e-5)


def test_parts_come_close_to_the_whole_and_hold_given_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task(clustered(3000), np.arange(3000) % 7, 100, given=(5, 1000), quality=0.2)
    whole = facility_location(task)
    monkeypatch.setattr(module, "_EXACT_ROWS", 1000)
    monkeypatch.setattr(module, "_PART_ROWS", 600)
    monkeypatch.setattr(module, "_SAMPLE_ROWS", 1500)
    parts, again = facility_location(task), facility_location(task)
    assert parts.notes["parts"] == 5
    assert parts.chosen[:2].tolist() == [5, 1000] and len(set(parts.chosen.tolist())) == 100
    assert parts.notes["value"] > 0.98 * whole.notes["value"]
    assert parts.chosen.tolist() == again.chosen.tolist()


def test_copies_are_chosen_last_and_size_is_reached() -> None:
    vectors = np.vstack([np.tile(np.eye(4)[0], (3, 1)), np.eye(4)[1:2], np.zeros((2, 4))])
    choice = facility_location(Task(vectors, np.ones(6), 6, quality=0.0))
    assert sorted(choice.chosen.tolist()) == list(range(6))
    assert set(choice.chosen[:2].tolist()) == {0, 3}


@pytest.mark.parametrize(("num", "size"), [(0, 3), (1, 3), (4, 9), (4, 0)])
def test_few_rows(num: int, size: int) -> None:
    choice = facility_location(Task(np.eye(4)[:num], np.arange(num), size))
    assert len(choice.chosen) == len(choice.gains) == len(set(choice.chosen.tolist())) == min(num, size)
