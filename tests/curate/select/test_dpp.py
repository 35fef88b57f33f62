"""Greedy MAP of a determinantal point process against explicit determinants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llmdistill.curate.select import Task, choose
from llmdistill.curate.select.dpp import SPENT, bandwidth
from llmdistill.errors import UsageError
from tests.curate.select.small_tasks import INSTANCES, spread_out, unit


def kernel(task: Task) -> np.ndarray:
    """S by its definition."""
    differences = task.vectors[:, None] - task.vectors[None]
    return np.exp(-np.square(differences).sum(-1) / 2 / bandwidth(task.vectors))


def log_det(similar: np.ndarray, rows: list[int]) -> float:
    """Log of the determinant of S of these rows, -inf where it is 0."""
    sign, value = np.linalg.slogdet(similar[np.ix_(rows, rows)]) if rows else (1, 0.0)
    return float(value) if sign > 0 else -np.inf


def added_by(task: Task, similar: np.ndarray, rows: list[int], row: int) -> float:
    """What a row adds to quality * sum of qualities + (1 - quality) * log det S; -inf for a copy of `rows`."""
    rise = log_det(similar, [*rows, row]) - log_det(similar, rows)
    return -np.inf if rise < np.log(SPENT) else float(task.quality * task.qualities[row] + (1 - task.quality) * rise)


def test_every_row_is_the_one_that_raises_the_log_determinant_most():
    num_copies_last = 0
    for task in INSTANCES:
        if task.size >= len(task.scores):
            continue
        choice, similar = choose("dpp", task), kernel(task)
        base = list(dict.fromkeys(task.given))
        assert choice.chosen[: len(base)].tolist() == base
        independent: list[int] = []
        for row in base:
            independent += [row] if added_by(task, similar, independent, row) > -np.inf else []
        for place in range(len(base), len(choice.chosen)):
            left = sorted(set(range(len(task.scores))) - set(choice.chosen[:place].tolist()))
            added = {row: added_by(task, similar, independent, row) for row in left}
            best = max(added.values())
            row = int(choice.chosen[place])
            if best == -np.inf:  # copies only: by score, then row
                assert row == min(left, key=lambda row: (-task.scores[row], row))
                assert np.isnan(choice.gains[place])
                num_copies_last += 1
                continue
            assert added[row] >= best - 1.1e-9  # gains are rounded to 1e-9
            assert row <= min(other for other in left if added[other] >= best - 1e-12)
            assert choice.gains[place] == pytest.approx(best, abs=2e-9)
            independent.append(row)
    assert num_copies_last > 10


def test_lazy_bounds_skip_most_of_the_work_and_change_nothing():
    task = replace(spread_out(800), size=60)
    choice = choose("dpp", task)
    exact = kernel(task)
    rest, factors = np.ones(800), np.zeros((60, 800))
    for place in range(60):  # Alg. 1 of the paper, every row at every step
        gains = np.round(task.quality * task.qualities + (1 - task.quality) * np.log(np.maximum(rest, 1e-300)), 9)
        gains[choice.chosen[:place]] = -np.inf
        row = int(np.argmax(gains))
        assert row == choice.chosen[place]
        factors[place] = (exact[row] - factors[:place, row] @ factors[:place]) / np.sqrt(rest[row])
        rest -= factors[place] ** 2
    assert choice.notes["evaluated"] < 800 * 60 / 5


def test_more_rows_than_dimensions_can_be_told_apart():
    task = Task(unit(np.random.default_rng(0).normal(size=(60, 2))), np.ones(60), 20)
    choice = choose("dpp", task)
    assert np.isfinite(choice.gains).all()


def test_quality_one_is_top_score_and_quality_zero_does_not_see_scores():
    task = spread_out(40)
    assert choose("dpp", replace(task, quality=1.0)).chosen.tolist() == choose("top_score", task).chosen.tolist()
    other = replace(task, quality=0.0, scores=-task.scores)
    assert choose("dpp", replace(task, quality=0.0)).chosen.tolist() == choose("dpp", other).chosen.tolist()


def test_a_size_beyond_memory_is_refused_with_a_way_out():
    vectors = np.zeros((30_000, 1), dtype=np.float32)
    with pytest.raises(UsageError, match="dpp chooses at most 16,384 records, not 20,000"):
        choose("dpp", Task(vectors, np.zeros(30_000), 20_000))
