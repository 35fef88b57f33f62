"""The DEITA rule against the loop that the paper describes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llmdistill.curate.select import Task, choose
from tests.curate.select.small_tasks import INSTANCES, unit


def reference(task: Task) -> list[int]:
    """From the best score down: keep what has no near neighbour among the kept."""
    kept = list(task.given)
    for row in sorted(range(len(task.scores)), key=lambda row: (-task.scores[row], row)):
        cosines = task.vectors[kept] @ task.vectors[row]
        if len(kept) < task.size and row not in kept and np.all(cosines < task.max_similarity - 1e-12):
            kept.append(row)
    return kept


def test_deita_is_the_plain_loop():
    num_short = 0
    for task in INSTANCES:
        chosen = choose("deita", task).chosen.tolist()
        assert chosen == reference(task)
        num_short += len(chosen) < task.size
    assert num_short > 20  # the instances do use up their pools


def test_deita_is_the_plain_loop_over_several_blocks():
    num = 2500
    rng = np.random.default_rng(0)
    task = Task(unit(rng.normal(size=(num, 3))), rng.integers(0, 9, num).astype(float), num, max_similarity=0.99)
    chosen = choose("deita", task).chosen.tolist()
    assert chosen == reference(task)
    assert 100 < len(chosen) < num


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("max_similarity", [0.5, 0.9, 1.0])
def test_of_two_copies_exactly_one_is_kept_the_better(dtype, max_similarity):
    vectors = np.repeat(unit(np.random.default_rng(0).normal(size=(20, 384))), 2, axis=0).astype(dtype)
    scores = np.tile([1.0, 2.0], 20)
    chosen = choose("deita", Task(vectors, scores, 40, max_similarity=max_similarity)).chosen
    assert sorted(chosen.tolist()) == list(range(1, 40, 2))


def test_given_copies_are_both_kept_and_keep_others_out():
    vectors = np.array([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    task = Task(vectors, np.array([1.0, 1, 9, 1]), 4, given=(1, 0))
    assert choose("deita", task).chosen.tolist() == [1, 0, 3]


def test_a_smaller_size_is_the_beginning_of_a_larger_one():
    for task in INSTANCES:
        larger = choose("deita", replace(task, size=len(task.scores))).chosen.tolist()
        assert choose("deita", task).chosen.tolist() == larger[: max(task.size, len(task.given))]
