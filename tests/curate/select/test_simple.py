"""Chance and score: the two methods that look at no vector."""

from __future__ import annotations

import numpy as np

from llmdistill.curate.select import Task, choose
from tests.curate.select.small_tasks import INSTANCES


def test_top_score_is_the_best_by_score_then_row_after_the_given():
    for task in INSTANCES:
        rest = sorted(set(range(len(task.scores))) - set(task.given), key=lambda row: (-task.scores[row], row))
        expected = [*task.given, *rest][: max(task.size, len(task.given))]
        assert choose("top_score", task).chosen.tolist() == expected


def test_random_is_uniform_without_replacement():
    counts = np.zeros(6)
    for seed in range(3000):
        chosen = choose("random", Task(np.zeros((6, 1)), np.zeros(6), 2, seed)).chosen
        assert len(set(chosen.tolist())) == 2
        counts[chosen] += 1
    assert np.abs(counts / 3000 - 2 / 6).max() < 0.04  # 4.6 standard deviations


def test_random_is_uniform_among_what_is_not_given():
    counts = np.zeros(6)
    for seed in range(3000):
        chosen = choose("random", Task(np.zeros((6, 1)), np.zeros(6), 3, seed, given=(4,))).chosen.tolist()
        assert chosen[0] == 4 and len(set(chosen)) == 3
        counts[chosen[1:]] += 1
    assert counts[4] == 0
    assert np.abs(np.delete(counts, 4) / 3000 - 2 / 5).max() < 0.04
