"""What every selection method does where there is little or nothing to choose from, and what none of them minds."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from llmdistill.curate.select import METHODS, Choice, Task, choose
from tests.curate.select.small_tasks import INSTANCES, spread_out, unit

pytestmark = pytest.mark.filterwarnings("error")

VECTORS = {
    "zero": np.zeros((6, 3)),
    "identical": unit(np.ones((6, 3))),
    "distinct": np.eye(6),
    "one row": np.eye(3)[:1],
    "one zero row": np.zeros((1, 3)),
    "two groups": np.repeat(np.eye(2), 3, axis=0),
    "some zero": np.repeat(np.eye(3)[:2], 3, axis=0) * np.array([[1], [1], [0], [1], [0], [1]]),
    "no rows": np.zeros((0, 3)),
}


def check_shape(choice: Choice, task: Task, method: str) -> None:
    chosen = choice.chosen.tolist()
    wanted = max(min(task.size, len(task.vectors)), len(task.given))
    assert len(chosen) == len(set(chosen)) == len(choice.gains)
    assert len(chosen) <= wanted if method == "deita" else len(chosen) == wanted
    assert set(chosen) <= set(range(len(task.vectors)))
    assert tuple(chosen[: len(task.given)]) == task.given
    assert np.isnan(choice.gains[: len(task.given)]).all() and not np.isinf(choice.gains).any()
    assert choice.chosen.dtype == np.int64
    if choice.clusters is not None:
        assert choice.clusters.shape == (len(task.vectors),)


@pytest.fixture(params=METHODS)
def method(request) -> str:
    return request.param


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("vectors", VECTORS.values(), ids=VECTORS)
def test_inputs_without_a_clear_choice_give_a_defined_one(method, vectors, dtype, capfd):
    for size in (0, 1, 2, 5, 6, 7):
        for given in ((), (0,), (4, 1)):
            if max(given, default=-1) >= len(vectors):
                continue
            for scores in (np.full(len(vectors), 3.0), np.arange(len(vectors)) // 2 * 1.0):
                task = Task(vectors.astype(dtype), scores, size, given=given)
                first, second = choose(method, task), choose(method, task)
                check_shape(first, task, method)
                assert first.chosen.tolist() == second.chosen.tolist()
    assert capfd.readouterr().err == ""


def test_ties_and_copies_still_give_as_many_as_asked_for_and_the_given_first(method):
    for task in INSTANCES[:60]:
        check_shape(choose(method, task), task, method)


def test_of_identical_rows_the_best_judged_is_first(method):
    task = Task(unit(np.ones((6, 3))), np.array([1.0, 2, 5, 4, 3, 0]), 3)
    if method != "random":
        assert choose(method, task).chosen[0] == 2


def test_all_are_chosen_where_there_are_no_more_than_wanted(method):
    task = spread_out(10)
    for size in (10, 11, 10**9):
        assert sorted(choose(method, replace(task, size=size)).chosen.tolist()) == list(range(10))


def test_vectors_on_disk_choose_the_same(method, tmp_path):
    task = spread_out(300)
    np.save(tmp_path / "vectors.npy", task.vectors)
    on_disk = replace(task, vectors=np.load(tmp_path / "vectors.npy", mmap_mode="r"), given=(7, 3))
    assert choose(method, on_disk).chosen.tolist() == choose(method, replace(task, given=(7, 3))).chosen.tolist()


def test_the_vectors_are_not_written_to(method):
    task = spread_out(100)
    before = task.vectors.copy()
    task.vectors.setflags(write=False)
    choose(method, task)
    assert np.array_equal(before, task.vectors)


def separated(num_groups: int = 12, rows: int = 10) -> Task:
    """Tight groups far from each other, no two scores equal: what to choose is plain."""
    rng = np.random.default_rng(3)
    vectors = np.repeat(np.eye(num_groups), rows, axis=0) + rng.normal(0, 0.01, (num_groups * rows, num_groups))
    scores = rng.permutation(num_groups * rows) / (num_groups * rows)
    return Task(unit(vectors), scores, num_groups)


def test_float32_chooses_as_float64_where_rows_are_well_apart(method):
    task = separated()
    single = replace(task, vectors=task.vectors.astype(np.float32))
    assert set(choose(method, task).chosen.tolist()) == set(choose(method, single).chosen.tolist())


@pytest.mark.parametrize("make", [separated, lambda: spread_out(120)], ids=["groups", "spread out"])
def test_the_order_of_the_rows_does_not_matter_without_ties(method, make):
    if method == "random":
        pytest.skip("chance is by row number; the stage sorts by id")
    task = replace(make(), given=(5, 40))
    expected = set(choose(method, task).chosen.tolist())
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(task.vectors))
        given = tuple(int(np.flatnonzero(order == row)[0]) for row in task.given)
        shuffled = replace(task, vectors=task.vectors[order], scores=task.scores[order], given=given)
        assert {int(order[row]) for row in choose(method, shuffled).chosen} == expected


GOOD = Task(np.eye(4), np.arange(4.0), 2)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (replace(GOOD, vectors=np.where(np.eye(4) > 0, np.nan, 0.0)), "the vector of row 0 is not finite"),
        (replace(GOOD, vectors=np.array([[1.0, 0], [0, 1], [0, np.inf], [1, 0]])), "the vector of row 2 is not finite"),
        (replace(GOOD, scores=np.array([1, 2, np.nan, 3])), "the score of row 2 is not finite"),
        (replace(GOOD, scores=np.arange(3.0)), "4 vectors need as many scores, not [3]"),
        (replace(GOOD, scores=np.zeros((4, 1))), "4 vectors need as many scores, not [4, 1]"),
        (replace(GOOD, vectors=np.ones(4)), "not [4] float64"),
        (replace(GOOD, vectors=np.eye(4, dtype=np.int64)), "not [4, 4] int64"),
        (replace(GOOD, size=-1), "-1 rows cannot be chosen"),
        (replace(GOOD, given=(4,)), "given rows are distinct and between 0 and 3"),
        (replace(GOOD, given=(-1,)), "given rows are distinct and between 0 and 3"),
        (replace(GOOD, given=(1, 1)), "given rows are distinct and between 0 and 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_task_that_makes_no_sense_is_refused(method, task, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        choose(method, task)
