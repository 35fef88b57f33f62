"""LIMA's recipe: the k-means against Lloyd's loop, the choice within the clusters against its definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from llmdistill.curate.select import Task, choose
from llmdistill.curate.select.cluster import assign, fit, start
from tests.curate.select.small_tasks import INSTANCES, spread_out, unit


def lloyd(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The textbook loop, until nothing moves; an empty cluster keeps its centre."""
    while True:
        labels = np.square(rows[:, None] - centres[None]).sum(-1).argmin(1)
        moved = np.array(
            [rows[labels == k].mean(0) if (labels == k).any() else centres[k] for k in range(len(centres))]
        )
        if np.allclose(moved, centres, atol=1e-12):
            return moved
        centres = moved


def test_the_best_row_of_every_cluster_then_the_best_of_the_rest():
    for task in INSTANCES:
        if task.size >= len(task.scores) or task.size <= len(task.given):
            continue
        choice = choose("cluster", task)
        labels = choice.clusters.tolist()
        centres = {label: task.vectors[choice.clusters == label].mean(0) for label in labels}
        far = {row: round(float(np.linalg.norm(task.vectors[row] - centres[k])), 9) for row, k in enumerate(labels)}
        order = sorted(far, key=lambda row: (-task.scores[row], far[row], row))
        expected = list(task.given)
        served = {labels[row] for row in task.given}
        for row in order:
            if labels[row] not in served:
                served.add(labels[row])
                expected.append(row)
        expected += [row for row in sorted(far, key=lambda row: (-task.scores[row], row)) if row not in expected]
        found = choice.chosen.tolist()
        assert len(set(found)) == len(found) == task.size
        # rows as near to their centre as floating point tells may stand for each other
        assert task.scores[found].tolist() == task.scores[expected[: task.size]].tolist()
        assert [far[row] for row in found] == pytest.approx([far[row] for row in expected[: task.size]], abs=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_k_means_is_lloyds_loop_from_the_same_start(seed):
    rows = np.random.default_rng(seed).normal(size=(60, 3))
    centres = start(rows, 5, seed)
    assert {tuple(centre) for centre in centres} <= {tuple(row) for row in rows}
    expected = lloyd(rows, centres)
    assert np.allclose(fit(rows.copy(), centres), expected, atol=1e-2)
    moved = (assign(rows, fit(rows.copy(), centres))[0] != assign(rows, expected)[0]).mean()
    assert moved <= 0.05  # scikit-learn stops when centres move by less than its tolerance


def test_separated_groups_are_each_represented_by_their_best():
    vectors = unit(np.repeat(np.eye(3), 4, axis=0) + np.random.default_rng(0).normal(0, 0.01, (12, 3)))
    scores = np.array([1, 5, 2, 3, 4, 1, 2, 3, 1, 2, 3, 3.5])
    assert choose("cluster", Task(vectors, scores, 3)).chosen.tolist() == [1, 4, 11]


def test_a_cluster_with_a_given_row_is_served_by_it():
    vectors = unit(np.repeat(np.eye(3), 4, axis=0) + np.random.default_rng(0).normal(0, 0.01, (12, 3)))
    scores = np.array([1, 5, 2, 3, 4, 1, 2, 3, 1, 2, 3, 3.5])
    assert choose("cluster", Task(vectors, scores, 3, given=(0,))).chosen.tolist() == [0, 4, 11]
    assert choose("cluster", Task(vectors, scores, 3, given=(8, 6))).chosen.tolist() == [8, 6, 1]


def test_two_given_rows_of_one_cluster_leave_out_the_cluster_whose_best_is_worst():
    vectors = unit(np.repeat(np.eye(3), 4, axis=0) + np.random.default_rng(0).normal(0, 0.01, (12, 3)))
    scores = np.array([1, 5, 2, 3, 4, 1, 2, 3, 1, 2, 3, 3.5])
    assert choose("cluster", Task(vectors, scores, 3, given=(0, 2))).chosen.tolist() == [0, 2, 4]


def test_the_number_of_threads_changes_no_bit():
    task = replace(spread_out(3000, width=32), size=40)
    task = replace(task, vectors=task.vectors.astype(np.float32))
    choices = []
    for threads in (1, 2, 4):
        with threadpool_limits(threads):
            choices.append(choose("cluster", task))
    assert len({choice.clusters.tobytes() for choice in choices}) == 1
    assert len({choice.chosen.tobytes() for choice in choices}) == 1


def test_a_large_pool_on_disk_is_clustered_by_a_sample_and_every_row_has_a_cluster(tmp_path):
    task = replace(spread_out(70_000, width=4), size=10)
    np.save(tmp_path / "vectors.npy", task.vectors.astype(np.float32))
    choice = choose("cluster", replace(task, vectors=np.load(tmp_path / "vectors.npy", mmap_mode="r")))
    assert choice.notes["sample"] == 65_536
    assert set(choice.clusters.tolist()) == set(range(10))
    best = [task.scores[choice.clusters == label].max() for label in range(10)]
    assert task.scores[choice.chosen].tolist() == sorted(best, reverse=True)


def test_rows_that_differ_by_rounding_only_make_no_noise(recwarn, capfd):
    vectors = np.ones((50, 4), dtype=np.float32) / 2
    vectors[25:] += np.float32(1e-7)
    choice = choose("cluster", Task(vectors, np.arange(50.0), 10))
    assert choice.chosen.tolist()[0] == 49 and len(set(choice.chosen.tolist())) == 10
    assert not recwarn.list and not capfd.readouterr().err
